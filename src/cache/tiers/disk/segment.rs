//! One pair of files: written by one process, read by all.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::format::{DiskEntry, ENTRY, HEADER, header};
use crate::private_files::{create_folder, private};

/// A segment that is read.
pub(super) struct SegmentFiles {
    /// The name of its files, without the ending. In the order of age.
    pub(super) id: String,
    pub(super) values: Arc<File>,
    keys: PathBuf,
    /// Bytes of the keys that have been read.
    read: u64,
    /// Bytes of both files.
    pub(super) bytes: u64,
}

impl SegmentFiles {
    /// Opens the segment `id` of `folder`; `None` when its files are of another version.
    pub(super) fn open(folder: &Path, id: &str) -> io::Result<Option<Self>> {
        let (keys, values) = (folder.join(format!("{id}.key")), folder.join(format!("{id}.vec")));
        // Opening a pipe may never return.
        if !(fs::metadata(&keys)?.is_file() && fs::metadata(&values)?.is_file()) {
            return Ok(None);
        }
        let mut values = File::open(values)?;
        for file in [&mut values, &mut File::open(&keys)?] {
            let mut found = [0; HEADER];
            if file.read_exact(&mut found).is_err() || found != header() {
                return Ok(None);
            }
        }
        Ok(Some(Self { id: id.to_owned(), values: Arc::new(values), keys, read: HEADER as u64, bytes: 0 }))
    }

    /// How many entries were added since the last call of [`SegmentFiles::news`], at most.
    pub(super) fn unread(&self) -> usize {
        let length = fs::metadata(&self.keys).map_or(0, |file| file.len());
        usize::try_from(length.saturating_sub(self.read)).unwrap_or(0) / ENTRY
    }

    /// The entries that were added since the last call. An entry that is being written is left for the next one.
    pub(super) fn news(&mut self, mut take: impl FnMut(DiskEntry)) -> io::Result<()> {
        let length = fs::metadata(&self.keys)?.len();
        if length <= self.read {
            return Ok(());
        }
        let mut file = File::open(&self.keys)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        let _ = bytes.try_reserve(usize::try_from(length - self.read).unwrap_or(0));
        file.take(length - self.read).read_to_end(&mut bytes)?;
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        entries.iter().filter_map(DiskEntry::read).for_each(&mut take);
        self.read += (entries.len() * ENTRY) as u64;
        self.bytes = self.read + self.values.metadata()?.len();
        Ok(())
    }
}

/// The value of an entry; `None` when it is cut off or damaged.
pub(super) fn value(values: &File, entry: &DiskEntry) -> Option<Vec<u8>> {
    let mut value = vec![0; entry.length as usize];
    read_at(values, &mut value, entry.offset).ok()?;
    entry.matches(&value).then_some(value)
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

/// Reads where it is said, whatever other threads do to the position that they share.
#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                bytes = &mut bytes[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The segment that this process appends to.
pub(super) struct Appender {
    pub(super) id: String,
    values: File,
    keys: File,
    /// Bytes of the values.
    pub(super) length: u64,
}

impl Appender {
    /// A new segment in `folder`, which is made if need be: only its owner can read it.
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        create_folder(folder)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{now:020}-{}-{count}", std::process::id());
        let create = |ending| {
            let mut file =
                private().create_new(true).append(true).open(folder.join(format!("{id}.{ending}")))?;
            file.write_all(&header())?;
            Ok::<_, io::Error>(file)
        };
        // The file that others look for comes last: then both exist.
        let values = create("vec")?;
        let keys = create("key")?;
        Ok(Self { id, values, keys, length: HEADER as u64 })
    }

    /// Makes `folder` if need be, and a file in it, which is removed.
    pub(super) fn probe(folder: &Path) -> io::Result<()> {
        create_folder(folder)?;
        let path = folder.join(format!(".writable-{}", std::process::id()));
        private().create(true).truncate(true).write(true).open(&path)?;
        fs::remove_file(path)
    }

    /// Whether another process has removed its files: what is appended then is not read by others.
    pub(super) fn is_removed(&self) -> bool {
        #[cfg(unix)]
        let removed =
            self.keys.metadata().is_ok_and(|meta| std::os::unix::fs::MetadataExt::nlink(&meta) == 0);
        #[cfg(not(unix))]
        let removed = false;
        removed
    }

    /// Appends values, then their entries, whose offsets count from `self.length`.
    pub(super) fn append(&mut self, values: &[u8], entries: &[u8]) -> io::Result<()> {
        self.values.write_all(values)?;
        self.keys.write_all(entries)?;
        self.length += values.len() as u64;
        Ok(())
    }
}

/// Removes the files of a segment. One that another process has removed is no error.
pub(super) fn remove(folder: &Path, id: &str) -> io::Result<()> {
    for ending in ["key", "vec"] {
        match fs::remove_file(folder.join(format!("{id}.{ending}"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The ids of all segments in `folder`, the oldest first; none when it does not exist.
pub(super) fn list(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        ids.extend(name.to_str().and_then(|name| name.strip_suffix(".key")).map(str::to_owned));
    }
    ids.sort();
    Ok(ids)
}
