//! Files of weights, read by position. They are not mapped into memory: if a file is truncated or rewritten while it is in
//! use, a read returns an error, whereas a mapping would raise a signal or return other numbers.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::memory::zeroed;
use crate::{Error, Result};

/// File systems round modification times, to at most two seconds. Only if a file has not been written for that long is the
/// next write certain to change its modification time.
const SETTLED: Duration = Duration::from_secs(2);

/// An open file, with its size and modification time when it was opened.
#[derive(Debug)]
pub struct WeightFile {
    file: File,
    path: PathBuf,
    size: usize,
    modified: Option<SystemTime>,
    settled: bool,
}

impl WeightFile {
    /// Opens `path`.
    ///
    /// # Errors
    /// [`Error::Permission`] or [`Error::Io`]; [`Error::InvalidFile`] for an empty file, or for a path that is not a file.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let failed = |error: std::io::Error| Error::io(path, "read", &error);
        let invalid = |reason: &str| Error::InvalidFile { path: path.to_path_buf(), reason: reason.into() };
        // Checked before opening, because opening a pipe waits for its writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(invalid("it is no regular file"));
        }
        let file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if meta.len() == 0 {
            return Err(invalid("it is empty; download it again"));
        }
        let size = usize::try_from(meta.len()).map_err(|_| invalid("it is too large for this system"))?;
        let modified = meta.modified().ok();
        let settled = modified.is_some_and(|time| time.elapsed().is_ok_and(|age| age > SETTLED));
        Ok(Arc::new(Self { file, path: path.to_path_buf(), size, modified, settled }))
    }

    /// Size in bytes when it was opened.
    pub fn len(&self) -> usize {
        self.size
    }

    /// Whether the file is empty; never true.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether [`check`](Self::check) detects any later write.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// Fills `out` with the bytes from `at` on.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`] if the file has become shorter.
    pub fn read(&self, mut at: usize, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            match read_at(&self.file, out, at as u64) {
                Ok(0) => return Err(self.changed()),
                Ok(n) => {
                    at += n;
                    out = &mut out[n..];
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(&self.path, "read", &error)),
            }
        }
        Ok(())
    }

    /// Checks that the file has not changed since it was opened. Replacing the path by another file passes the check,
    /// because the open file stays the same. If the check passes, earlier reads returned the original contents.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if size or modification time differ; [`Error::Io`].
    pub fn check(&self) -> Result<()> {
        let meta = self.file.metadata().map_err(|error| Error::io(&self.path, "read", &error))?;
        if meta.len() == self.size as u64 && meta.modified().ok() == self.modified {
            return Ok(());
        }
        Err(self.changed())
    }

    fn changed(&self) -> Error {
        Error::InvalidFile {
            path: self.path.clone(),
            reason: "it was changed while it was in use; the next call loads it anew. Replace model files by renaming, \
                     not by writing over them"
                .into(),
        }
    }
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], at: u64) -> std::io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, out, at)
}

#[cfg(windows)]
fn read_at(file: &File, out: &mut [u8], at: u64) -> std::io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, out, at)
}

/// The bytes of a tensor: in a file, or in memory.
#[derive(Debug, Clone)]
pub(crate) enum Bytes {
    File(Arc<WeightFile>, Range<usize>),
    Memory(Arc<Vec<u8>>),
}

impl Bytes {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::File(_, range) => range.len(),
            Self::Memory(bytes) => bytes.len(),
        }
    }

    /// Some of the bytes. Those of a file are read into `scratch`.
    ///
    /// # Panics
    ///
    /// If `part` lies outside.
    pub(crate) fn read<'a>(&'a self, part: Range<usize>, scratch: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        match self {
            Self::Memory(bytes) => Ok(&bytes[part]),
            Self::File(file, range) => {
                assert!(part.start <= part.end && part.end <= range.len(), "bytes {part:?} of {range:?}");
                if scratch.len() < part.len() {
                    *scratch = zeroed(part.len())?;
                }
                let out = &mut scratch[..part.len()];
                file.read(range.start + part.start, out)?;
                Ok(out)
            }
        }
    }

    /// The same bytes in memory.
    pub(crate) fn load(&self) -> Result<Self> {
        match self {
            Self::Memory(_) => Ok(self.clone()),
            Self::File(file, range) => {
                let mut bytes = zeroed(range.len())?;
                file.read(range.start, &mut bytes)?;
                Ok(Self::Memory(bytes.into()))
            }
        }
    }

    /// Bytes of memory in use: none while they are in a file.
    pub(crate) fn owned(&self) -> usize {
        if let Self::Memory(bytes) = self { bytes.len() } else { 0 }
    }

    /// Whether they may stay in their file, because a change of the file would be detected.
    pub(crate) fn may_stay(&self) -> bool {
        matches!(self, Self::File(file, _) if file.is_settled())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8], age: u64) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, bytes).unwrap();
        let time = SystemTime::now() - Duration::from_secs(age);
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        (folder, path)
    }

    #[test]
    fn a_file_is_read_by_position_and_faults_keep_their_kind() {
        let (folder, path) = file(b"abcdef", 100);
        let open = WeightFile::open(&path).unwrap();
        let mut out = [0; 3];
        open.read(2, &mut out).unwrap();
        assert_eq!((&out, open.len(), open.path(), open.is_settled()), (b"cde", 6, path.as_path(), true));
        assert!(open.read(4, &mut out).is_err());
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(WeightFile::open(&path), Err(Error::InvalidFile { .. })));
        assert!(matches!(WeightFile::open(folder.path()), Err(Error::InvalidFile { .. })));
        assert!(matches!(WeightFile::open(&folder.path().join("none")), Err(Error::Io { .. })));
    }

    #[test]
    fn a_change_is_an_error_and_a_replacement_is_none() {
        let (folder, path) = file(b"abcdef", 100);
        let bytes = Bytes::File(WeightFile::open(&path).unwrap(), 1..6);
        let Bytes::File(open, _) = &bytes else { panic!("in a file") };
        assert_eq!(bytes.read(0..2, &mut Vec::new()).unwrap(), b"bc");
        open.check().unwrap();
        let other = folder.path().join("other");
        std::fs::write(&other, b"ABCDEF").unwrap();
        std::fs::rename(&other, &path).unwrap();
        open.check().unwrap();
        assert_eq!(bytes.read(0..2, &mut Vec::new()).unwrap(), b"bc");
        let again = WeightFile::open(&path).unwrap();
        assert!(!again.is_settled(), "it has just been written");
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&path, b"abcdef").unwrap();
        assert!(again.check().unwrap_err().to_string().contains("changed while it was in use"));
        std::fs::write(&path, b"abc").unwrap();
        let error = Bytes::File(again, 1..6).load().unwrap_err();
        assert!(error.to_string().contains("changed while it was in use"), "{error}");
    }
}
