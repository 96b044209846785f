//! What the segments of a folder hold, by key.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::path::Path;

use super::super::key::TierKey;
use super::format::DiskEntry;
use super::segment::{SegmentFiles, list};

/// A key is a part of a SHA-256 already: its first bytes are its hash.
#[derive(Default)]
pub(super) struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for (at, byte) in bytes.iter().take(8).enumerate() {
            self.0 ^= u64::from(*byte) << (8 * at);
        }
    }

    fn write_usize(&mut self, _length: usize) {}
}

/// One result on disk.
pub(super) struct IndexedRow {
    pub(super) entry: DiskEntry,
    pub(super) segment: u32,
    /// It was asked for since its segment was opened.
    pub(super) hit: bool,
}

/// All rows of all segments.
#[derive(Default)]
pub(super) struct SegmentIndex {
    pub(super) rows: HashMap<TierKey, IndexedRow, BuildHasherDefault<FirstBytes>>,
    /// By number, which grows with age's end: the oldest first.
    pub(super) segments: BTreeMap<u32, SegmentFiles>,
    known: HashSet<String>,
    next: u32,
}

impl SegmentIndex {
    /// Reads what is new in `folder`: other processes write there too. Files that cannot be read are left out.
    pub(super) fn refresh(&mut self, folder: &Path) -> io::Result<()> {
        let ids = list(folder)?;
        let gone: Vec<u32> = self
            .segments
            .iter()
            .filter(|(_, segment)| ids.binary_search(&segment.id).is_err())
            .map(|(number, _)| *number)
            .collect();
        self.forget(&gone);
        for id in &ids {
            if self.known.contains(id) {
                continue;
            }
            // Of another version, removed at this moment, or begun at this moment: then a later look finds it whole.
            let Ok(Some(segment)) = SegmentFiles::open(folder, id) else { continue };
            self.known.insert(id.clone());
            self.segments.insert(self.next, segment);
            self.next += 1;
        }
        let Self { rows, segments, .. } = self;
        // Once for all: a table of a million rows that grows by doubling is copied twenty times.
        let _ = rows.try_reserve(segments.values().map(SegmentFiles::unread).sum());
        for (&number, segment) in segments {
            let _ = segment.news(|entry| {
                rows.entry(entry.key)
                    .and_modify(|row| {
                        // Values are immutable: the younger copy lives longer.
                        if row.segment <= number {
                            *row = IndexedRow { entry, segment: number, hit: row.hit };
                        }
                    })
                    .or_insert(IndexedRow { entry, segment: number, hit: false });
            });
        }
        Ok(())
    }

    /// Forgets segments and their rows.
    pub(super) fn forget(&mut self, numbers: &[u32]) {
        if numbers.is_empty() {
            return;
        }
        for number in numbers {
            self.segments.remove(number);
        }
        self.rows.retain(|_, row| !numbers.contains(&row.segment));
    }

    /// Bytes of all segments.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }
}
