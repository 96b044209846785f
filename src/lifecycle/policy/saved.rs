//! What was learned, across restarts: one file for each process, whose counts add up.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::daily::DailyHabits;
use super::gaps::GapHistogram;

/// Raised when the layout changes. A file of another version is left alone.
const VERSION: u32 = 1;
/// Files that were not written for so long belong to processes that have ended.
const ABANDONED: Duration = Duration::from_secs(1800);
/// A larger file is none of ours.
const LARGEST: u64 = 16 << 20;

/// What was learned of one slot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SlotHabits {
    /// How long it was idle.
    pub gaps: GapHistogram,
    /// When it was used.
    pub daily: DailyHabits,
}

impl SlotHabits {
    fn merge(&mut self, other: &Self) {
        self.gaps.merge(&other.gaps);
        self.daily.merge(&other.daily);
    }
}

#[derive(Serialize, Deserialize)]
struct HabitFile {
    version: u32,
    slots: BTreeMap<String, SlotHabits>,
}

/// The folder of all processes' habits.
pub(super) struct SavedHabits {
    folder: PathBuf,
    own: PathBuf,
    /// What processes that have ended had learned: it goes on in the file of this one.
    inherited: BTreeMap<String, SlotHabits>,
    /// What all had learned when this process began.
    learned: BTreeMap<String, SlotHabits>,
}

impl SavedHabits {
    /// Reads what all processes have learned. Files that are damaged or of another version count for nothing.
    pub(super) fn open(folder: &Path) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now();
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let own = folder.join(format!("{}-{since}-{count}.json", std::process::id()));
        let mut saved =
            Self { folder: folder.to_path_buf(), own, inherited: BTreeMap::new(), learned: BTreeMap::new() };
        let mut ended = Vec::new();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Some(slots) = read(&path) else { continue };
            merge(&mut saved.learned, &slots);
            let age = entry.metadata().and_then(|meta| meta.modified()).ok();
            if age.and_then(|at| now.duration_since(at).ok()).is_some_and(|age| age > ABANDONED) {
                ended.push((path, slots));
            }
        }
        for (path, slots) in ended {
            // Whoever removes the file takes it over.
            if fs::remove_file(&path).is_ok() {
                merge(&mut saved.inherited, &slots);
            }
        }
        if !saved.inherited.is_empty() {
            let _ = saved.save(&BTreeMap::new());
        }
        saved
    }

    /// What all processes had learned of a slot.
    pub(super) fn learned(&self, slot: &str) -> SlotHabits {
        self.learned.get(slot).cloned().unwrap_or_default()
    }

    /// Replaces what this process has saved.
    ///
    /// # Errors
    /// Those of the folder and the file.
    pub(super) fn save(&self, own: &BTreeMap<String, SlotHabits>) -> io::Result<()> {
        let mut slots = self.inherited.clone();
        merge(&mut slots, own);
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(&self.folder)?;
        let temporary = self.own.with_extension("tmp");
        let json = serde_json::to_vec(&HabitFile { version: VERSION, slots })?;
        let written = fs::File::create(&temporary)
            .and_then(|mut file| file.write_all(&json))
            .and_then(|()| fs::rename(&temporary, &self.own));
        if written.is_err() {
            let _ = fs::remove_file(temporary);
        }
        written
    }
}

fn merge(all: &mut BTreeMap<String, SlotHabits>, other: &BTreeMap<String, SlotHabits>) {
    for (slot, habits) in other {
        all.entry(slot.clone()).or_default().merge(habits);
    }
}

fn read(path: &Path) -> Option<BTreeMap<String, SlotHabits>> {
    if path.extension()? != "json" || fs::metadata(path).ok()?.len() > LARGEST {
        return None;
    }
    let file: HabitFile = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let valid = |habits: &SlotHabits| habits.gaps.is_valid() && habits.daily.is_valid();
    (file.version == VERSION && file.slots.values().all(valid)).then_some(file.slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn habits(gaps: usize) -> BTreeMap<String, SlotHabits> {
        let mut habits = SlotHabits::default();
        (0..gaps).for_each(|_| habits.gaps.add(100.0));
        BTreeMap::from([("slot".to_owned(), habits)])
    }

    fn weight(folder: &Path) -> f64 {
        SavedHabits::open(folder).learned("slot").gaps.weight().round()
    }

    #[test]
    fn processes_add_up_and_damage_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(weight(folder.path()), 0.0);
        let (one, other) = (SavedHabits::open(folder.path()), SavedHabits::open(folder.path()));
        one.save(&habits(5)).unwrap();
        other.save(&habits(3)).unwrap();
        one.save(&habits(6)).unwrap(); // in the place of the five
        assert_eq!(weight(folder.path()), 9.0);
        let whole = fs::read_to_string(&one.own).unwrap();
        for damaged in [&whole[..whole.len() / 2], "", "[]", &whole.replace("\"version\":1", "\"version\":2")]
        {
            fs::write(&one.own, damaged).unwrap();
            assert_eq!(weight(folder.path()), 3.0, "{damaged:.20}");
            assert!(one.own.exists());
        }
        fs::write(&one.own, whole.replace("[0.0", "[-1.0")).unwrap();
        assert_eq!(weight(folder.path()), 3.0);
    }

    #[test]
    fn the_habits_of_ended_processes_go_on_in_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - Duration::from_secs(7200);
        for _ in 0..3 {
            let ended = SavedHabits::open(folder.path());
            ended.save(&habits(2)).unwrap();
            fs::File::options().write(true).open(&ended.own).unwrap().set_modified(old).unwrap();
        }
        // The first and the second were taken over by the next ones.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(weight(folder.path()), 6.0);
        assert_eq!(weight(folder.path()), 6.0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
