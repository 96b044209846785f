//! The folders of the hub's cache: which models they contain, and how files are written to them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::models::manifest::{Selection, files_in, read_modules};
use crate::models::source::safe_relative;
use crate::{Error, Result};

/// The state of a model in a cache.
pub(super) enum Cached {
    /// No model that can be loaded.
    Nothing,
    /// Loadable, but the hub may know of a `modules.json`.
    Unsettled(PathBuf),
    /// All files are there.
    Complete(PathBuf),
}

impl Cached {
    /// The model in a folder that another program filled, in the hub's layout or in the one that sentence-transformers
    /// had before version 2.3: `organization_name`, with the files in it.
    pub(super) fn elsewhere(folder: &Path, id: &str, revision: &str) -> Result<Self> {
        let cached = Self::of_repository(&folder.join(folder_name(id)), revision)?;
        let plain = folder.join(id.replace('/', "_"));
        if !matches!(cached, Self::Nothing) || revision != "main" || !plain.is_dir() {
            return Ok(cached);
        }
        // Such a folder was downloaded in full, so a missing file does not exist on the hub.
        Ok(if is_complete(&plain)? { Self::Complete(plain) } else { Self::Nothing })
    }

    /// The snapshot in `repo`, a folder such as `models--organization--name`.
    pub(super) fn of_repository(repo: &Path, revision: &str) -> Result<Self> {
        let reference = repo.join("refs").join(revision);
        let commit = match fs::read_to_string(&reference) {
            Ok(commit) => commit.trim().to_string(),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Error::io(&reference, "read", &e));
            }
            Err(_) => revision.to_owned(), // a commit names its own snapshot
        };
        let Some(snapshot) = snapshot_at(repo, &commit) else { return Ok(Self::Nothing) };
        if !is_complete(&snapshot)? {
            return Ok(Self::Nothing);
        }
        let has = |name: &str| snapshot.join(name).is_file();
        let settled =
            has("modules.json") || repo.join(".no_exist").join(&commit).join("modules.json").exists();
        Ok(if settled { Self::Complete(snapshot) } else { Self::Unsettled(snapshot) })
    }

    pub(super) fn usable(self) -> Option<PathBuf> {
        match self {
            Self::Nothing => None,
            Self::Unsettled(path) | Self::Complete(path) => Some(path),
        }
    }
}

/// The folder of `repo` with the files of a commit.
fn snapshot_at(repo: &Path, commit: &str) -> Option<PathBuf> {
    let snapshot = repo.join("snapshots").join(commit);
    (safe_relative(commit).is_some() && !commit.is_empty() && snapshot.is_dir()).then_some(snapshot)
}

/// The folder of `repo` with files of the commit that `revision` names, whether all of a model or not.
pub(super) fn snapshot_of(repo: &Path, revision: &str) -> Option<PathBuf> {
    let commit = fs::read_to_string(repo.join("refs").join(revision));
    snapshot_at(repo, commit.as_deref().map_or(revision, str::trim))
}

/// Whether the folder contains all files of a model, those of its modules included.
fn is_complete(folder: &Path) -> Result<bool> {
    let has = |name: &str| folder.join(name).is_file();
    let modules = if has("modules.json") { read_modules(&folder.join("modules.json"))? } else { Vec::new() };
    let complete = match Selection::new(&modules, &has, &|inner| files_in(&folder.join(inner))) {
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

/// The name of a model's folder in a cache.
pub(super) fn folder_name(id: &str) -> String {
    format!("models--{}", id.replace('/', "--"))
}

/// Writes a small file by a rename, so that no reader sees a part of it.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    create_folder_of(path)?;
    let temporary = temporary(path);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content))
        .map_err(|e| Error::io(&temporary, "write", &e))?;
    fs::rename(&temporary, path).map_err(|e| Error::io(path, "write", &e))
}

pub(super) fn create_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "write", &e))
}

/// Opens a file for writing and refuses a link in its place: other users may write to the cache.
pub(super) fn open_own(path: &Path, options: &mut OpenOptions) -> Result<File> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Without NONBLOCK, opening a named pipe in its place would wait for a reader.
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    let refused = || {
        Error::invalid_file(
            path,
            "a link or something else than a plain file is in the place of a download; remove it",
        )
    };
    let file = options.open(path).map_err(|e| match path.symlink_metadata() {
        Ok(found) if !found.is_file() => refused(),
        _ => Error::io(path, "write", &e),
    })?;
    let found = file.metadata().map_err(|e| Error::io(path, "read", &e))?;
    // Windows has no flag for it.
    let linked = path.symlink_metadata().is_ok_and(|found| found.is_symlink());
    #[cfg(unix)]
    let linked = linked || std::os::unix::fs::MetadataExt::nlink(&found) > 1;
    if linked || !found.is_file() { Err(refused()) } else { Ok(file) }
}

/// Makes `pointer` a relative link to `blob`, or a copy of it where the system has no links.
pub(super) fn link(blob: &Path, pointer: &Path) -> Result<()> {
    create_folder_of(pointer)?;
    let temporary = temporary(pointer);
    let linked = relative(blob, pointer).is_some_and(|target| symlink(&target, &temporary).is_ok());
    if !linked {
        let written = File::open(blob).and_then(|mut from| {
            io::copy(&mut from, &mut OpenOptions::new().write(true).create_new(true).open(&temporary)?)
        });
        written.map_err(|e| Error::io(&temporary, "write", &e))?;
    }
    fs::rename(&temporary, pointer).map_err(|e| Error::io(pointer, "write", &e))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

/// `to` as seen from the folder of `from`; both lie in one repository's folder.
fn relative(to: &Path, from: &Path) -> Option<PathBuf> {
    let shared = to.components().zip(from.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().count().checked_sub(shared + 1)?;
    Some(
        std::iter::repeat_n(Path::new(".."), up)
            .collect::<PathBuf>()
            .join(to.components().skip(shared).collect::<PathBuf>()),
    )
}

/// An unused name in the folder of `path`.
fn temporary(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = with_suffix(path, &format!(".{}.{count}.tmp", std::process::id()));
        // A file that an earlier process of the same id left there is not overwritten.
        if name.symlink_metadata().is_err() {
            return name;
        }
    }
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_relative() {
        let link = relative(Path::new("/c/m/blobs/e"), Path::new("/c/m/snapshots/s/1_Pooling/config.json"));
        assert_eq!(link.unwrap(), Path::new("../../../blobs/e"));
    }
}
