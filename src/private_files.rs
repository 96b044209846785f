//! Files and folders that only their owner can read.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Options of a file that only its owner can read.
pub(crate) fn private() -> OpenOptions {
    #[cfg_attr(not(unix), allow(unused_mut, reason = "only Unix has modes"))]
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Makes a folder that only its owner can read.
pub(crate) fn create_folder(folder: &Path) -> io::Result<()> {
    #[cfg_attr(not(unix), allow(unused_mut, reason = "only Unix has modes"))]
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

/// Writes a file in place of an earlier one, and returns what `write` returns. Readers see the earlier file or the whole
/// new one. After an error the earlier one is still there.
///
/// A link stays one, and a file keeps its permissions; a new file is private. What is no regular file, such as a pipe, is
/// written itself.
///
/// # Errors
/// Those of the folder and of `write`.
pub(crate) fn replace<T>(path: &Path, write: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // Fails for a file that does not exist yet.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let earlier = fs::metadata(&target).ok();
    let mut options = private();
    options.write(true).create(true).truncate(true);
    if earlier.as_ref().is_some_and(|earlier| !earlier.is_file()) {
        return write(&mut options.open(&target)?);
    }
    let name = target.file_name().and_then(OsStr::to_str).unwrap_or("file");
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = target.with_file_name(format!(".{name}.{}-{count}.tmp", std::process::id()));
    let written = options.open(&temporary).and_then(|mut file| {
        if let Some(earlier) = earlier {
            file.set_permissions(earlier.permissions())?;
        }
        let done = write(&mut file)?;
        fs::rename(&temporary, &target)?;
        Ok(done)
    });
    if written.is_err() {
        let _ = fs::remove_file(temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        fs::read_dir(folder).unwrap().map(name).collect()
    }

    #[test]
    fn an_earlier_file_stays_until_the_new_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vectors.bin");
        assert_eq!(replace(&path, |file| file.write(b"one")).unwrap(), 3);
        let failed = replace(&path, |file| {
            file.write_all(b"half")?;
            assert_eq!(fs::read(&path)?, b"one");
            Err::<(), _>(io::Error::other("on purpose"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "on purpose");
        assert_eq!(
            (fs::read(&path).unwrap(), names(folder.path())),
            (b"one".to_vec(), vec!["vectors.bin".into()])
        );
        replace(&path, |file| file.write_all(b"two")).unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), names(folder.path())),
            (b"two".to_vec(), vec!["vectors.bin".into()])
        );
        assert!(replace(&folder.path().join("none/vectors.bin"), |_| Ok(())).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn links_permissions_and_special_files_stay() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};

        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("file"), folder.path().join("link"));
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        replace(&path, |file| file.write_all(b"one")).unwrap();
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        symlink(&path, &link).unwrap();
        replace(&link, |file| file.write_all(b"two")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!((fs::read(&path).unwrap(), mode()), (b"two".to_vec(), 0o644));
        replace(Path::new("/dev/null"), |file| file.write_all(b"three")).unwrap();
        assert!(replace(folder.path(), |_| Ok(())).is_err(), "a folder");
    }
}
