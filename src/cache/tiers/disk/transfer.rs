//! The whole folder at once: checked, written to one file, read from one.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write};
use std::path::Path;
use std::sync::Arc;

use super::super::key::TierKey;
use super::folder::Disk;
use super::format::{DiskEntry, ENTRY, HEADER, header};
use super::index::IndexedRow;
use super::segment::{list, value};
use crate::private_files::replace;

/// What a check of all results found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Results that are whole.
    pub whole: usize,
    /// Results that are damaged: each is a miss.
    pub damaged: usize,
}

/// What ended an import.
#[derive(Debug)]
pub enum ImportError {
    /// The file that is read, or what it holds.
    File(io::Error),
    /// The folder that is written to.
    Folder(io::Error),
}

impl From<io::Error> for ImportError {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

/// Results that are read from a file between two writes.
const BATCH: usize = 256;

impl Disk {
    /// Reads every result and compares its checksum.
    ///
    /// # Errors
    /// That of a folder that cannot be listed.
    pub fn verify(&self) -> io::Result<Verified> {
        let mut verified = Verified::default();
        self.each(|_, value| {
            *if value.is_some() { &mut verified.whole } else { &mut verified.damaged } += 1;
            Ok(())
        })?;
        Ok(verified)
    }

    /// Writes all results to one file, which replaces an earlier one when it is complete; how many.
    ///
    /// # Errors
    /// Those of the file and the folder.
    pub fn export(&self, path: &Path) -> io::Result<usize> {
        replace(path, |file| self.write_all(BufWriter::new(file)))
    }

    fn write_all(&self, mut file: impl Write) -> io::Result<usize> {
        file.write_all(&header())?;
        let mut count = 0;
        let mut bytes = Vec::new();
        self.each(|entry, value| {
            let Some(value) = value else { return Ok(()) };
            bytes.clear();
            entry.write(&mut bytes);
            file.write_all(&bytes)?;
            count += 1;
            file.write_all(&value)
        })?;
        bytes.clear();
        DiskEntry::end(count as u64).write(&mut bytes);
        file.write_all(&bytes)?;
        file.flush()?;
        Ok(count)
    }

    /// Adds the results of a file that [`Disk::export`] wrote; how many were new. What was added before an error stays: each
    /// result is whole.
    ///
    /// # Errors
    /// Those of the file and of the folder; [`io::ErrorKind::InvalidData`] for another file, or a damaged one;
    /// [`io::ErrorKind::UnexpectedEof`] for one that was cut off.
    pub fn import(&self, path: &Path) -> Result<usize, ImportError> {
        let mut file = BufReader::new(File::open(path)?);
        let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut found = [0; HEADER];
        file.read_exact(&mut found)?;
        if found != header() {
            return Err(damaged("it is no export of a cache, or one of another version").into());
        }
        let (mut count, mut read, mut batch) = (0, 0, Vec::<(TierKey, Vec<u8>, u32)>::new());
        loop {
            let mut bytes = [0; ENTRY];
            file.read_exact(&mut bytes)?;
            let entry = DiskEntry::read(&bytes).ok_or_else(|| damaged("an entry is damaged"))?;
            let end = entry == DiskEntry::end(read);
            if end || batch.len() == BATCH {
                let new: Vec<_> = self.with_index(|opened| {
                    batch.drain(..).filter(|(key, ..)| !opened.index.rows.contains_key(key)).collect()
                });
                if !new.is_empty() {
                    count += self.append(new.into_iter()).map_err(ImportError::Folder)?;
                    self.keep_bounds().map_err(ImportError::Folder)?;
                }
            }
            if end {
                return match file.fill_buf()? {
                    [] => Ok(count),
                    _ => Err(damaged("there is something behind its end").into()),
                };
            }
            let mut value = vec![0; entry.length as usize];
            file.read_exact(&mut value)?;
            if !entry.matches(&value) {
                return Err(damaged("a value is damaged").into());
            }
            read += 1;
            batch.push((entry.key, value, entry.stored));
        }
    }

    /// Every result with its value; `None` for a damaged one. An error where the folder cannot be listed: it may have results.
    fn each(&self, mut take: impl FnMut(&DiskEntry, Option<Vec<u8>>) -> io::Result<()>) -> io::Result<()> {
        list(self.folder())?;
        let rows: Vec<_> = self.with_index(|opened| {
            let index = &opened.index;
            let with_values =
                |row: &IndexedRow| Some((row.entry, Arc::clone(&index.segments.get(&row.segment)?.values)));
            index.rows.values().filter_map(with_values).collect()
        });
        rows.iter().try_for_each(|(entry, values)| take(entry, value(values, entry)))
    }
}
