//! The folder as a tier: look-ups, appends, bounds.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::super::super::item::CachedItem;
use super::super::key::TierKey;
use super::super::record::{ValueFormat, decode, encode};
use super::super::tier::{Tier, TierCounts};
use super::format::{DiskEntry, ENTRY};
use super::index::{IndexedRow, SegmentIndex};
use super::segment::{Appender, list, remove, value};
use crate::held_log;
use crate::sync::Mutex;

/// A look-up that finds nothing looks for what other processes have written, at most this often.
const REFRESH: Duration = Duration::from_millis(500);
/// Seconds by which the clocks of machines with one folder may differ.
const CLOCKS_DIFFER: u32 = 60;
/// Segments of a folder; when there are more, the oldest are merged.
const MOST_SEGMENTS: usize = 64;
/// The folder's bound holds so many segments.
const SEGMENTS_OF_BOUND: u64 = 16;
const SMALLEST_SEGMENT: u64 = 64 << 10;

/// Where results are stored, and how.
#[derive(Debug, Clone)]
pub struct DiskSettings {
    /// The folder.
    pub folder: PathBuf,
    /// Bytes of all its files.
    pub max_bytes: u64,
    /// How values are written.
    pub format: ValueFormat,
    /// Age at which a result is no longer returned.
    pub time_to_live: Option<Duration>,
}

/// Results in the files of a folder.
pub struct Disk {
    settings: DiskSettings,
    index: Mutex<Option<OpenedIndex>>,
    /// The segment of this process; taken before the lock of the index.
    appender: Mutex<Option<Appender>>,
    /// Writing has failed.
    off: AtomicBool,
    counts: TierCounts,
    /// Results that were read ahead of their use. Each leaves with its first use: the memory above has it then.
    warm: Mutex<HashMap<TierKey, (DiskEntry, CachedItem)>>,
}

pub(super) struct OpenedIndex {
    pub(super) index: SegmentIndex,
    refreshed: Instant,
}

impl Disk {
    /// Results in `settings.folder`. Nothing is opened before the first use.
    #[must_use]
    pub fn new(settings: DiskSettings) -> Self {
        Self {
            settings,
            index: Mutex::new(None),
            appender: Mutex::new(None),
            off: AtomicBool::new(false),
            counts: TierCounts::default(),
            warm: Mutex::default(),
        }
    }

    /// Warns now if the folder cannot be made, or no file in it: the first result would find it out.
    pub fn check_folder(&self) {
        self.note(Appender::probe(&self.settings.folder), "written");
    }

    /// Reads those `most` results that were stored last, ahead of their use. How many there were.
    pub fn read_ahead(&self, most: usize) -> usize {
        let mut entries: Vec<_> = self
            .with_index(|opened| opened.index.rows.values().map(|row| (row.segment, row.entry)).collect());
        // The youngest first; of one second, those further on in the younger segment.
        entries.sort_unstable_by_key(|(segment, entry)| Reverse((entry.stored, *segment, entry.offset)));
        let mut read = 0;
        for (_, entry) in entries.into_iter().take(most) {
            if let Some(item) = self.find_stored(entry.key) {
                self.warm.lock().insert(entry.key, (entry, item));
                TierCounts::add(&self.counts.read_ahead, 1);
                read += 1;
            }
        }
        read
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.settings.folder
    }

    /// Runs `look` on the index, which is read first where that is not done.
    pub(super) fn with_index<R>(&self, look: impl FnOnce(&mut OpenedIndex) -> R) -> R {
        let (done, lines) = held_log::hold(|| {
            let mut opened = self.index.lock();
            let opened = opened.get_or_insert_with(|| {
                let mut index = SegmentIndex::default();
                self.note(index.refresh(&self.settings.folder), "read");
                OpenedIndex { index, refreshed: Instant::now() }
            });
            look(opened)
        });
        lines.write();
        done
    }

    /// Counts an error. One that prevents writing switches it off.
    fn note<T>(&self, result: io::Result<T>, what: &str) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                TierCounts::add(&self.counts.errors, 1);
                if !self.off.swap(true, Ordering::Relaxed) {
                    let folder = self.settings.folder.display();
                    log::warn!(
                        "the folder {folder} of the cache cannot be {what}: {error}; nothing more is stored there"
                    );
                }
                None
            }
        }
    }

    fn is_too_old(&self, entry: &DiskEntry) -> bool {
        let Some(most) = self.settings.time_to_live else { return false };
        let now = seconds_now();
        // What was stored in the future was stored before the clock was set back, at an unknown time.
        u64::from(now.saturating_sub(entry.stored)) >= most.as_secs().max(1)
            || entry.stored.saturating_sub(now) > CLOCKS_DIFFER
    }

    fn find(&self, key: TierKey) -> Option<CachedItem> {
        let warm = self.warm.lock().remove(&key);
        let young = warm.filter(|(entry, _)| !self.is_too_old(entry)).map(|(_, item)| item);
        young.or_else(|| self.find_stored(key))
    }

    fn find_stored(&self, key: TierKey) -> Option<CachedItem> {
        let (entry, values) = self.with_index(|opened| {
            let row = opened.index.rows.get_mut(&key)?;
            row.hit = true;
            let (entry, segment) = (row.entry, opened.index.segments.get(&row.segment)?);
            Some((entry, Arc::clone(&segment.values)))
        })?;
        if self.is_too_old(&entry) {
            return None;
        }
        let value = value(&values, &entry).and_then(|value| decode(&value));
        if value.is_none() {
            TierCounts::add(&self.counts.errors, 1);
            // Its next computation is stored again.
            self.with_index(|opened| opened.index.rows.remove(&key));
        }
        value
    }

    /// Looks for what other processes have written, unless that was done a moment ago.
    fn refresh(&self) {
        self.with_index(|opened| {
            if opened.refreshed.elapsed() >= REFRESH {
                // The folder may have vanished; it comes back with the next result.
                let _ = opened.index.refresh(&self.settings.folder);
                opened.refreshed = Instant::now();
            }
        });
    }

    /// Appends values under keys that are not there.
    pub(super) fn append(&self, values: impl Iterator<Item = (TierKey, Vec<u8>, u32)>) -> io::Result<usize> {
        let mut appender = self.appender.lock();
        if appender.as_ref().is_some_and(|own| own.length >= self.segment_bytes() || own.is_removed()) {
            *appender = None;
        }
        let own = match &mut *appender {
            Some(own) => own,
            none => none.insert(Appender::create(&self.settings.folder)?),
        };
        let (mut bytes, mut entries, mut count) = (Vec::new(), Vec::new(), 0);
        for (key, value, stored) in values {
            let Some(entry) = DiskEntry::new(key, own.length + bytes.len() as u64, &value, stored) else {
                continue;
            };
            bytes.extend(value);
            entry.write(&mut entries);
            count += 1;
        }
        let written = own.append(&bytes, &entries);
        if written.is_err() {
            // What follows a torn end would have wrong offsets.
            *appender = None;
        }
        drop(appender);
        written?;
        // The index learns of it as of any other process's.
        self.with_index(|opened| opened.index.refresh(&self.settings.folder))?;
        Ok(count)
    }

    fn segment_bytes(&self) -> u64 {
        (self.settings.max_bytes / SEGMENTS_OF_BOUND).max(SMALLEST_SEGMENT)
    }

    /// Keeps the bounds: removes the oldest segments, and writes those of their rows again that are still wanted.
    pub(super) fn keep_bounds(&self) -> io::Result<()> {
        loop {
            let own = self.appender.lock().as_ref().map(|own| own.id.clone());
            let oldest = self.with_index(|opened| {
                let index = &opened.index;
                let merging = index.segments.len() > MOST_SEGMENTS;
                if !merging && index.bytes() <= self.settings.max_bytes {
                    return None;
                }
                let (&number, segment) =
                    index.segments.iter().find(|(_, segment)| Some(&segment.id) != own.as_ref())?;
                let wanted = |row: &&IndexedRow| row.segment == number && (row.hit || merging);
                let rows: Vec<DiskEntry> = index.rows.values().filter(wanted).map(|row| row.entry).collect();
                Some((number, segment.id.clone(), segment.bytes, Arc::clone(&segment.values), rows))
            });
            let Some((number, id, size, values, rows)) = oldest else { return Ok(()) };
            // Of a segment that is removed for its bytes, at most half is kept, so that there is progress.
            let mut left = size / if self.bytes() > self.settings.max_bytes { 2 } else { 1 };
            let kept = rows.into_iter().filter(|entry| !self.is_too_old(entry)).map_while(|entry| {
                left = left.checked_sub(u64::from(entry.length) + ENTRY as u64)?;
                Some((entry.key, value(&values, &entry).unwrap_or_default(), entry.stored))
            });
            let kept: Vec<_> = kept.filter(|(_, value, _)| !value.is_empty()).collect();
            remove(&self.settings.folder, &id)?;
            self.with_index(|opened| opened.index.forget(&[number]));
            if !kept.is_empty() {
                self.append(kept.into_iter())?;
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.with_index(|opened| opened.index.bytes())
    }

    /// Reads the index if that is not done. For commands that report.
    pub fn open(&self) {
        self.with_index(|_| ());
    }
}

impl Tier for Disk {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn is_fast(&self) -> bool {
        true
    }

    fn get(&self, keys: &[TierKey]) -> Vec<Option<CachedItem>> {
        let mut found: Vec<_> = keys.iter().map(|key| self.find(*key)).collect();
        if found.contains(&None) {
            self.refresh();
            for (key, found) in keys.iter().zip(&mut found).filter(|(_, found)| found.is_none()) {
                *found = self.find(*key);
            }
        }
        let hits = found.iter().flatten().count();
        TierCounts::add(&self.counts.hits, hits);
        TierCounts::add(&self.counts.misses, keys.len() - hits);
        found
    }

    fn put(&self, entries: &[(TierKey, CachedItem)]) {
        if !self.is_working() {
            return;
        }
        let now = seconds_now();
        let new: Vec<_> = self.with_index(|opened| {
            let is_new =
                |key: &TierKey| opened.index.rows.get(key).is_none_or(|row| self.is_too_old(&row.entry));
            entries.iter().filter(|(key, _)| is_new(key)).collect()
        });
        let values =
            new.into_iter().filter_map(|(key, item)| Some((*key, encode(item, self.settings.format)?, now)));
        let values: Vec<_> = values.collect();
        if values.is_empty() {
            return;
        }
        if let Some(count) = self.note(self.append(values.into_iter()), "written to") {
            TierCounts::add(&self.counts.writes, count);
            self.note(self.keep_bounds(), "kept within its bound");
        }
    }

    fn clear(&self) -> Vec<(String, String)> {
        let folder = &self.settings.folder;
        let (failed, lines) = held_log::hold(|| {
            let mut appender = self.appender.lock();
            *appender = None;
            let mut opened = self.index.lock();
            let listed = list(folder);
            let mut failed = listed.as_ref().err().map(ToString::to_string);
            for id in listed.unwrap_or_default() {
                let removed = remove(folder, &id);
                failed = failed.or_else(|| Some(removed.as_ref().err()?.to_string()));
                self.note(removed, "emptied");
            }
            *opened = None;
            failed
        });
        lines.write();
        self.warm.lock().clear();
        failed.map(|reason| (folder.display().to_string(), reason)).into_iter().collect()
    }

    fn counts(&self) -> &TierCounts {
        &self.counts
    }

    fn size(&self) -> (Option<usize>, Option<u64>) {
        let opened = self.index.lock();
        let index = opened.as_ref().map(|opened| &opened.index);
        (index.map(|index| index.rows.len()), index.map(SegmentIndex::bytes))
    }

    fn is_working(&self) -> bool {
        !self.off.load(Ordering::Relaxed)
    }
}

fn seconds_now() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}
