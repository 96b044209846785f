//! Models of the Hugging Face hub: its cache on disk, and what to download when the cache lacks something.
//!
//! The layout is that of Python's `huggingface_hub`, so both share one copy:
//!
//! ```text
//! models--organisation--name/
//!   refs/main                     the commit that the branch was at
//!   snapshots/COMMIT/config.json  → ../../blobs/ETAG
//!   blobs/ETAG                    whole files only; ETAG.incomplete while it downloads
//!   .no_exist/COMMIT/modules.json known not to exist
//! ```
//!
//! Models that sentence-transformers or transformers downloaded into a folder of their own (`cache_folder`,
//! `SENTENCE_TRANSFORMERS_HOME`, `TRANSFORMERS_CACHE`) are used from there; nothing is written there.
//!
//! A complete snapshot is used with no request. Complete means: every file that [`Selection`] wants is there, and
//! it is settled whether the model has a `modules.json` (a snapshot that transformers made alone lacks it, and would
//! silently lose its pooling).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::blobs::{Blobs, temporary};
use super::files::{Missing, ResolveOptions, Selection, read_modules};
use super::source::safe_relative;
use super::transfer::{Client, Listing};
use crate::config::Host;
use crate::{Error, Result};

/// How far the download of one file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file, relative to the model.
    pub file: &'a str,
    /// Bytes on disk, those of an earlier attempt included.
    pub done: u64,
    /// Bytes in all, when the server says so.
    pub total: Option<u64>,
}

/// What [`super::files::resolve`] calls during downloads.
pub(crate) type OnProgress<'a> = dyn FnMut(&Progress<'_>) -> Result<()> + 'a;

/// The hub as configured: cache, address, access.
pub(crate) struct Hub {
    cache: PathBuf,
    /// Further folders with models, which are only read.
    others: Vec<PathBuf>,
    client: Client,
    offline: bool,
    revision: String,
}

impl Hub {
    pub(crate) fn new(options: &ResolveOptions) -> Result<Self> {
        let host = options.host.as_ref();
        let home = home(host);
        let cache = options
            .cache_dir
            .clone()
            .or_else(|| folder(host, "HF_HUB_CACHE"))
            .or_else(|| folder(host, "HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| home.join("hub"));
        let endpoint = options.endpoint.clone().or_else(|| setting(host, "HF_ENDPOINT"));
        let token = options.token.clone().or_else(|| token(host, &home));
        let timeout = match setting(host, "HF_HUB_DOWNLOAD_TIMEOUT") {
            None => None,
            Some(value) => Some(value.parse().ok().filter(|s| *s > 0).ok_or_else(|| Error::Config {
                setting: "HF_HUB_DOWNLOAD_TIMEOUT".into(),
                value,
                reason: "a number of seconds above 0".into(),
            })?),
        };
        let revision = options.revision.clone().unwrap_or_else(|| "main".into());
        if safe_relative(&revision).is_none_or(|path| path.as_os_str().is_empty()) {
            return Err(Error::Config {
                setting: "revision".into(),
                value: revision,
                reason: "a branch, tag or commit".into(),
            });
        }
        let client = Client::new(endpoint.as_deref(), token.as_deref(), timeout, host)?;
        let named = ["SENTENCE_TRANSFORMERS_HOME", "TRANSFORMERS_CACHE"];
        let named = named.into_iter().filter_map(|name| folder(host, name));
        let mut others: Vec<PathBuf> = Vec::new();
        for other in named.chain(host.model_folders()) {
            if other != cache && !others.contains(&other) {
                others.push(other);
            }
        }
        Ok(Self { cache, others, client, offline: options.offline, revision })
    }

    /// The folder that holds the files of `id`; downloads what is missing unless offline.
    pub(crate) fn snapshot(&self, id: &str, progress: &mut OnProgress<'_>) -> Result<PathBuf> {
        let repo = self.cache.join(format!("models--{}", id.replace('/', "--")));
        let mut cached = self.cached(&repo)?;
        if let Cached::Complete(snapshot) = cached {
            return Ok(snapshot);
        }
        for other in &self.others {
            match self.elsewhere(other, id) {
                Ok(Cached::Complete(folder)) => return Ok(folder),
                Ok(found) if matches!(cached, Cached::Nothing) => cached = found,
                Ok(_) => {}
                Err(error) => log::warn!("{id}: its copy in {} is not used: {error}", other.display()),
            }
        }
        if self.offline {
            return cached.usable().ok_or_else(|| Error::ModelNotFound {
                model: id.into(),
                reason: format!(
                    "it is not complete in the cache {}{} and HF_HUB_OFFLINE forbids to download it; unset that, or copy the \
                     model's folder here and give its path",
                    self.cache.display(),
                    self.others.iter().map(|other| format!(", nor in {}", other.display())).collect::<String>()
                ),
            });
        }
        match (self.fetch(id, &repo, progress), cached.usable()) {
            (Err(error @ Error::Download { .. }), Some(snapshot)) => {
                log::warn!("{id}: using the cached copy; {error}");
                Ok(snapshot)
            }
            (result, _) => result,
        }
    }

    /// The model in a folder that another program filled, in the hub's layout or in the one that sentence-transformers
    /// had before version 2.3: `organisation_name`, with the files in it.
    fn elsewhere(&self, folder: &Path, id: &str) -> Result<Cached> {
        let cached = self.cached(&folder.join(format!("models--{}", id.replace('/', "--"))))?;
        let plain = folder.join(id.replace('/', "_"));
        if !matches!(cached, Cached::Nothing) || self.revision != "main" || !plain.is_dir() {
            return Ok(cached);
        }
        // Such a folder was downloaded whole, so what is not there does not exist.
        Ok(if is_complete(&plain)? { Cached::Complete(plain) } else { Cached::Nothing })
    }

    fn cached(&self, repo: &Path) -> Result<Cached> {
        let reference = repo.join("refs").join(&self.revision);
        let commit = match fs::read_to_string(&reference) {
            Ok(commit) => commit.trim().to_string(),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Error::io(&reference, "read", &e));
            }
            Err(_) => self.revision.clone(), // a commit names its own snapshot
        };
        let snapshot = repo.join("snapshots").join(&commit);
        if safe_relative(&commit).is_none() || commit.is_empty() || !snapshot.is_dir() {
            return Ok(Cached::Nothing);
        }
        if !is_complete(&snapshot)? {
            return Ok(Cached::Nothing);
        }
        let has = |name: &str| snapshot.join(name).is_file();
        let settled =
            has("modules.json") || repo.join(".no_exist").join(&commit).join("modules.json").exists();
        Ok(if settled { Cached::Complete(snapshot) } else { Cached::Unsettled(snapshot) })
    }

    fn fetch(&self, id: &str, repo: &Path, progress: &mut OnProgress<'_>) -> Result<PathBuf> {
        let Listing { commit, files } = self.client.listing(id, &self.revision)?;
        let locks = self.cache.join(".locks").join(repo.file_name().unwrap_or_default());
        let blobs = Blobs { client: &self.client, repo, locks: &locks, id, commit: &commit };
        let snapshot = repo.join("snapshots").join(&commit);
        let has = |name: &str| files.iter().any(|file| file == name);

        // What to fetch depends on modules.json, and the shards on the index: those two come first.
        let modules = if has("modules.json") {
            blobs.download("modules.json", progress)?;
            read_modules(&snapshot.join("modules.json"))?
        } else {
            Vec::new()
        };
        let selection = Selection::new(&modules, &has)
            .map_err(|missing: Missing| missing.error(id, Path::new(&self.client.page(id))))?;
        for file in &selection.files {
            blobs.download(file, progress)?;
        }
        for path in selection.weight_files(&snapshot)?.paths() {
            let file = path.strip_prefix(&snapshot).unwrap_or(path).to_string_lossy().replace('\\', "/");
            blobs.download(&file, progress)?;
        }

        // The branch moves to this commit only now that all of it is here: a download cut short leaves the old one.
        if modules.is_empty() {
            write_whole(&repo.join(".no_exist").join(&commit).join("modules.json"), b"")?;
        }
        if self.revision != commit {
            write_whole(&repo.join("refs").join(&self.revision), commit.as_bytes())?;
        }
        Ok(snapshot)
    }
}

enum Cached {
    /// Nothing that could be loaded.
    Nothing,
    /// Loadable, but the hub may know of a `modules.json`.
    Unsettled(PathBuf),
    /// All there.
    Complete(PathBuf),
}

impl Cached {
    fn usable(self) -> Option<PathBuf> {
        match self {
            Self::Nothing => None,
            Self::Unsettled(path) | Self::Complete(path) => Some(path),
        }
    }
}

/// Whether the folder holds all files of a model, those of its modules included.
fn is_complete(folder: &Path) -> Result<bool> {
    let has = |name: &str| folder.join(name).is_file();
    let modules = if has("modules.json") { read_modules(&folder.join("modules.json"))? } else { Vec::new() };
    let complete = match Selection::new(&modules, &has) {
        Ok(selection) => selection.weight_files(folder)?.paths().iter().all(|path| path.is_file()),
        Err(_) => false,
    };
    let staged = modules.iter().all(|module| {
        let has = |name: &str| folder.join(&module.path).join(name).is_file();
        match module.kind.as_str() {
            "Pooling" => has("config.json"),
            "Dense" => has("config.json") && (has("model.safetensors") || has("pytorch_model.bin")),
            _ => true,
        }
    });
    Ok(complete && staged)
}

/// Writes a small file so that no reader sees half of it.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "write", &e))?;
    let temporary = temporary(path);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content))
        .map_err(|e| Error::io(&temporary, "write", &e))?;
    fs::rename(&temporary, path).map_err(|e| Error::io(path, "write", &e))
}

fn home(host: &dyn Host) -> PathBuf {
    folder(host, "HF_HOME")
        .or_else(|| folder(host, "XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| {
            let home = folder(host, "HOME").or_else(std::env::home_dir)?;
            Some(home.join(".cache/huggingface"))
        })
        .unwrap_or_else(|| PathBuf::from(".cache/huggingface"))
}

fn token(host: &dyn Host, home: &Path) -> Option<String> {
    let file = folder(host, "HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
    setting(host, "HF_TOKEN")
        .or_else(|| setting(host, "HUGGING_FACE_HUB_TOKEN"))
        .or_else(|| fs::read_to_string(file).ok().map(|token| token.trim().to_string()))
        .filter(|token| !token.is_empty())
}

fn setting(host: &dyn Host, name: &str) -> Option<String> {
    host.env(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
}

fn folder(host: &dyn Host, name: &str) -> Option<PathBuf> {
    let value = setting(host, name)?;
    match (value.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(PathBuf::from(value)),
    }
}
