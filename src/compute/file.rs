//! Files of weights, read by position. They are not mapped into memory: if a file is truncated or rewritten while it is in
//! use, a read returns an error, whereas a mapping would raise a signal or return other numbers.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;

use super::memory::{try_resized, zeroed};
use crate::sync::Mutex;
use crate::{Error, Result};

/// File systems round modification times, to at most two seconds. Only if a file has not been written for that long is the
/// next write certain to change its modification time.
const SETTLED: Duration = Duration::from_secs(2);

/// Bytes up to which an embedding table is read whole when a model is loaded.
const SMALL_TABLE: usize = 1 << 20;
/// Bytes of a table in memory that one read compares with their file: short next to a pass over a model.
const COMPARED: usize = 256 << 10;

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
        let settled = has_settled(modified);
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

    /// Whether [`check`](Self::check) detects any write since the file was opened.
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

/// Whether the next write to a file that was modified at this time will change its modification time.
fn has_settled(modified: Option<SystemTime>) -> bool {
    modified.is_some_and(|time| time.elapsed().is_ok_and(|age| age > SETTLED))
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
    Settling(Arc<Settling>),
}

impl Bytes {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::File(_, range) => range.len(),
            Self::Memory(bytes) => bytes.len(),
            Self::Settling(bytes) => bytes.range.len(),
        }
    }

    /// Where they lie in a file, if they do: equal places have equal bytes.
    #[cfg(feature = "cuda")]
    pub(crate) fn place(&self) -> Option<(std::sync::Weak<WeightFile>, Range<usize>)> {
        match self {
            Self::File(file, range) => Some((Arc::downgrade(file), range.clone())),
            Self::Memory(_) | Self::Settling(_) => None,
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
            Self::File(file, range) => read_part(file, range, part, scratch),
            Self::Settling(bytes) => bytes.read(part, scratch),
        }
    }

    /// The bytes `part`.
    ///
    /// # Panics
    ///
    /// If `part` lies outside.
    pub(crate) fn slice(&self, part: Range<usize>) -> Self {
        assert!(part.start <= part.end && part.end <= self.len(), "bytes {part:?} of {}", self.len());
        let in_file = |file: &Arc<WeightFile>, range: &Range<usize>| {
            Self::File(Arc::clone(file), range.start + part.start..range.start + part.end)
        };
        match self {
            Self::Memory(bytes) => Self::Memory(bytes[part].to_vec().into()),
            Self::File(file, range) => in_file(file, range),
            Self::Settling(table) => in_file(&table.file, &table.range),
        }
    }

    /// The same bytes as an embedding table keeps them. A large one stays in its file, if a change of the file can be
    /// detected: reading a row takes less than a microsecond, and most rows of a vocabulary are never read. That of a file
    /// that has just been written is in memory at first. `memory` counts the bytes in memory.
    pub(crate) fn table(&self, memory: &Arc<AtomicU64>) -> Result<Self> {
        let table = match self {
            Self::File(file, range) if range.len() > SMALL_TABLE => {
                if file.is_settled() {
                    return Ok(self.clone());
                }
                Self::Settling(Arc::new(Settling::new(file, range, memory)?))
            }
            Self::File(file, range) => Self::Memory(read_all(file, range)?.into()),
            Self::Memory(_) | Self::Settling(_) => self.clone(),
        };
        memory.fetch_add(table.len() as u64, Ordering::Relaxed);
        Ok(table)
    }
}

/// Reads some of the bytes of `range` into `scratch`.
fn read_part<'a>(
    file: &WeightFile,
    range: &Range<usize>,
    part: Range<usize>,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8]> {
    assert!(part.start <= part.end && part.end <= range.len(), "bytes {part:?} of {range:?}");
    let out = try_resized(scratch, part.len())?;
    file.read(range.start + part.start, out)?;
    Ok(out)
}

fn read_all(file: &WeightFile, range: &Range<usize>) -> Result<Vec<u8>> {
    let mut bytes = zeroed(range.len())?;
    file.read(range.start, &mut bytes)?;
    Ok(bytes)
}

/// The bytes of a table whose file was written just before it was opened: a later write might leave the modification time as
/// it was, so they are in memory. Once the file has settled, each read compares a part of them with the file. When all
/// of it is the same, the memory is freed, and rows are read from the file.
pub(crate) struct Settling {
    file: Arc<WeightFile>,
    range: Range<usize>,
    bytes: ArcSwapOption<Vec<u8>>,
    /// How many bytes were compared; `None` when one of them differed.
    compared: Mutex<Option<usize>>,
    memory: Arc<AtomicU64>,
}

impl Settling {
    fn new(file: &Arc<WeightFile>, range: &Range<usize>, memory: &Arc<AtomicU64>) -> Result<Self> {
        Ok(Self {
            file: Arc::clone(file),
            range: range.clone(),
            bytes: ArcSwapOption::from_pointee(read_all(file, range)?),
            compared: Mutex::new(Some(0)),
            memory: Arc::clone(memory),
        })
    }

    fn read<'a>(&self, part: Range<usize>, scratch: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        let bytes = self.bytes.load();
        let Some(bytes) = &*bytes else { return read_part(&self.file, &self.range, part, scratch) };
        if has_settled(self.file.modified) {
            self.compare(bytes, scratch)?;
        }
        let out = try_resized(scratch, part.len())?;
        out.copy_from_slice(&bytes[part]);
        Ok(out)
    }

    /// Compares the next part with the file, and frees the memory after the last one. One thread at a time does that.
    fn compare(&self, bytes: &[u8], scratch: &mut Vec<u8>) -> Result<()> {
        let Some(mut compared) = self.compared.try_lock() else { return Ok(()) };
        let Some(start) = *compared else { return Ok(()) };
        let part = start..bytes.len().min(start + COMPARED);
        let same = read_part(&self.file, &self.range, part.clone(), scratch)? == &bytes[part.clone()];
        *compared = same.then_some(part.end);
        // All comparisons were with one version of the file if it has not changed until now.
        if same && part.end == bytes.len() && self.bytes.load().is_some() {
            self.file.check()?;
            self.bytes.store(None);
            self.memory.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Settling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settling")
            .field("file", &self.file)
            .field("range", &self.range)
            .finish_non_exhaustive()
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
        let error = Bytes::File(again, 1..6).read(0..5, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("changed while it was in use"), "{error}");
    }
    /// A table of three comparisons in `file`, its bytes in memory, and the counter of those.
    fn settling(file: &Arc<WeightFile>) -> (Bytes, Arc<AtomicU64>) {
        let memory = Arc::new(AtomicU64::new(file.len() as u64));
        (Bytes::Settling(Arc::new(Settling::new(file, &(0..file.len()), &memory).unwrap())), memory)
    }

    #[test]
    fn a_table_moves_to_its_file_once_that_has_settled() {
        let numbers: Vec<u8> = (0..2 * COMPARED + 5).map(|i| (i % 251) as u8).collect();
        let read = |table: &Bytes| table.read(7..300, &mut Vec::new()).unwrap() == &numbers[7..300];
        let (_folder, path) = file(&numbers, 100);
        let (table, memory) = settling(&WeightFile::open(&path).unwrap());
        for left in [numbers.len(), numbers.len(), 0, 0] {
            assert!(read(&table));
            assert_eq!(memory.load(Ordering::Relaxed), left as u64);
        }

        // A write that left the modification time as it was.
        let (_folder, path) = file(&numbers, 100);
        let open = WeightFile::open(&path).unwrap();
        let (table, memory) = settling(&open);
        let other: Vec<u8> = numbers.iter().map(|byte| byte ^ 1).collect();
        std::fs::write(&path, other).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(open.modified.unwrap()).unwrap();
        assert!((0..5).all(|_| read(&table)) && memory.load(Ordering::Relaxed) == numbers.len() as u64);

        // A file that has not settled yet.
        let (_folder, path) = file(&numbers, 0);
        File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() + SETTLED).unwrap();
        let (table, memory) = settling(&WeightFile::open(&path).unwrap());
        assert!((0..5).all(|_| read(&table)) && memory.load(Ordering::Relaxed) == numbers.len() as u64);
    }

    #[test]
    fn a_large_table_stays_in_a_settled_file_alone() {
        let memory = Arc::default();
        for (length, age, in_memory) in
            [(100, 100, 100), (SMALL_TABLE + 1, 100, 0), (SMALL_TABLE + 1, 0, SMALL_TABLE + 1)]
        {
            let (_folder, path) = file(&vec![7; length], age);
            let before = memory_of(&memory);
            let table = Bytes::File(WeightFile::open(&path).unwrap(), 0..length).table(&memory).unwrap();
            assert_eq!(memory_of(&memory) - before, in_memory as u64, "{length} {age}");
            assert_eq!(table.read(3..5, &mut Vec::new()).unwrap(), [7, 7]);
        }
    }

    fn memory_of(memory: &Arc<AtomicU64>) -> u64 {
        memory.load(Ordering::Relaxed)
    }
}
