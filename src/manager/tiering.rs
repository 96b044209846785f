//! The tiers that the settings ask for.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::known::KnownModels;
use crate::cache::tiers::disk::{Disk, DiskSettings};
use crate::cache::tiers::redis::{Redis, RedisSettings};
use crate::cache::tiers::{Tier, Tiers, ValueFormat};
use crate::clock::Clock;
use crate::config::{DiskDType, FolderSetting, Host, SettingValue, Settings};
use crate::sync::spawn;
use crate::{Error, Result};

/// The tiers below the memory, and the part of them that is the disk.
pub(super) struct Tiering {
    pub(super) tiers: Arc<Tiers>,
    pub(super) disk: Option<Arc<Disk>>,
    /// Where what is known of models is written.
    models: Option<PathBuf>,
}

impl Tiering {
    /// The setting that would make the tier of this name, if there is none.
    pub(super) fn missing(&self, tier: &str) -> Option<&'static str> {
        let setting = match tier {
            "disk" => "cache_disk",
            "redis" => "cache_url",
            _ => return None,
        };
        self.tiers.statistics().iter().all(|known| known.name != tier).then_some(setting)
    }

    /// # Errors
    /// [`Error::Config`] for a folder that has no usual place, or an address that is none.
    pub(super) fn new(settings: &Settings, host: &dyn Host) -> Result<Self> {
        let mut tiers: Vec<Arc<dyn Tier>> = Vec::new();
        let folder = folder(&settings.cache_disk, "cache_disk", "vectors", host)?;
        let disk = folder.clone().map(|folder| {
            Arc::new(Disk::new(DiskSettings {
                folder: folder.join("segments"),
                max_bytes: settings.cache_disk_bytes.bytes,
                format: match settings.cache_disk_dtype {
                    DiskDType::Float32 => ValueFormat::Float32,
                    DiskDType::Float16 => ValueFormat::Float16,
                    DiskDType::Int8 => ValueFormat::Int8,
                },
                time_to_live: settings.cache_disk_ttl.as_ref().map(|span| span.duration),
            }))
        });
        if let Some(disk) = &disk {
            disk.check_folder();
        }
        tiers.extend(disk.clone().map(|disk| disk as Arc<dyn Tier>));
        if let Some(url) = &settings.cache_url {
            let asked = RedisSettings {
                url: url.as_str().to_owned(),
                time_to_live: settings.cache_url_ttl.duration,
                timeout: settings.cache_timeout.duration(),
                secret: settings.cache_secret.as_ref().map(|secret| secret.as_str().to_owned()),
            };
            tiers.push(Arc::new(Redis::new(&asked, host, &Clock::System)?));
        }
        if let Some(disk) = disk.clone().filter(|_| settings.warm_restart > 0) {
            let most = settings.warm_restart;
            let read = move || {
                let read = disk.read_ahead(most);
                log::debug!("{read} results were read from {} ahead of their use", disk.folder().display());
            };
            if let Err(error) = spawn("cache-warm", read) {
                log::warn!("results are not read ahead of their use: {error}");
            }
        }
        let models = folder.map(|folder| folder.join("models"));
        Ok(Self { tiers: Arc::new(Tiers::new(tiers)), disk, models })
    }

    /// Where models are remembered; `None` when no tier asks for their content.
    pub(super) fn known(&self) -> Option<KnownModels> {
        (!self.tiers.is_empty()).then(|| KnownModels::new(self.models.clone()))
    }
}

/// Refuses a path at which no folder can be: there, or at a part of it, is something else.
///
/// # Errors
/// [`Error::Config`].
pub(super) fn refuse_file(value: &FolderSetting, setting: &str) -> Result<()> {
    let FolderSetting::Path(path) = value else { return Ok(()) };
    // What cannot be looked at is reported when it is used.
    let found = path.ancestors().find_map(|part| Some((part, fs::metadata(part).ok()?)));
    match found {
        Some((part, about)) if !about.is_dir() => Err(Error::Config {
            setting: setting.into(),
            value: SettingValue::Text(path.display().to_string()).to_string(),
            reason: format!("{} is no folder; name a folder, or give False for none", part.display()),
        }),
        _ => Ok(()),
    }
}

/// The folder that `setting` means; the usual one is `name` in the user's cache folder.
pub(super) fn folder(
    value: &FolderSetting,
    setting: &str,
    name: &str,
    host: &dyn Host,
) -> Result<Option<PathBuf>> {
    let given = |variable| host.env(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
    let usual = || {
        let caches = given("XDG_CACHE_HOME").or_else(|| Some(given("HOME")?.join(".cache")));
        caches.map(|caches| caches.join("model_manager").join(name))
    };
    match value {
        FolderSetting::Off => Ok(None),
        FolderSetting::Path(path) => Ok(Some(path.clone())),
        FolderSetting::Usual => usual().map(Some).ok_or_else(|| Error::Config {
            setting: setting.into(),
            value: "True".into(),
            reason: "neither XDG_CACHE_HOME nor HOME is set; name a folder".into(),
        }),
    }
}
