//! What was learned, across restarts: one file for each process, whose counts add up.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::daily::DailyHabits;
use super::gaps::GapHistogram;
use crate::error::system_words;
use crate::private_files::{create_folder, replace};
use crate::sync::Mutex;

/// Raised when the layout changes. A file of another version is left alone.
const VERSION: u32 = 2;
/// Files that were not written for so long, and that no process holds, belong to processes that have ended.
const ABANDONED: Duration = Duration::from_secs(1800);
/// Load times that are remembered: the longest of them but one in twenty is expected.
const RECENT_LOADS: usize = 32;
/// A day. No load takes longer.
const LONGEST_LOAD: f32 = 86_400.0;
/// A larger file is none of ours.
const LARGEST: u64 = 16 << 20;

/// What was learned of one slot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SlotHabits {
    /// How long it was idle.
    pub gaps: GapHistogram,
    /// When it was used.
    pub daily: DailyHabits,
    /// Seconds that its latest loads took.
    #[serde(default)]
    pub loads: VecDeque<f32>,
}

impl SlotHabits {
    fn merge(&mut self, other: &Self) {
        self.gaps.merge(&other.gaps);
        self.daily.merge(&other.daily);
        let room = RECENT_LOADS.saturating_sub(self.loads.len());
        self.loads.extend(other.loads.iter().take(room));
    }

    /// A load took so long.
    pub fn loaded(&mut self, seconds: f64) {
        if self.loads.len() >= RECENT_LOADS {
            self.loads.pop_front();
        }
        self.loads.push_back(seconds as f32);
    }

    /// The 95th percentile of the latest load times.
    pub fn load_time(&self) -> Duration {
        let mut sorted: Vec<f32> = self.loads.iter().copied().collect();
        sorted.sort_by(f32::total_cmp);
        let place = (sorted.len() * 95).div_ceil(100).saturating_sub(1);
        sorted.get(place).and_then(|seconds| Duration::try_from_secs_f32(*seconds).ok()).unwrap_or_default()
    }

    fn is_valid(&self) -> bool {
        let plausible = |seconds: &f32| (0.0..=LONGEST_LOAD).contains(seconds);
        self.gaps.is_valid() && self.daily.is_valid() && self.loads.iter().all(plausible)
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
    /// That file, locked as long as the process lives.
    held: Mutex<Option<File>>,
    /// What processes that have ended had learned: it goes on in the file of this one.
    inherited: BTreeMap<String, SlotHabits>,
    opened: Instant,
    /// What all had learned when this process began.
    learned: BTreeMap<String, SlotHabits>,
    /// The latest attempt to save has failed.
    failed: AtomicBool,
}

impl SavedHabits {
    /// Reads what all processes have learned. Files that are damaged or of another version count for nothing.
    pub(super) fn open(folder: &Path) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now();
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let own = folder.join(format!("{}-{since}-{count}.json", std::process::id()));
        let mut saved = Self {
            folder: folder.to_path_buf(),
            own,
            held: Mutex::default(),
            inherited: BTreeMap::new(),
            opened: Instant::now(),
            learned: BTreeMap::new(),
            failed: AtomicBool::new(false),
        };
        let mut ended = Vec::new();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            // A file from the future is as good as new: the clock was set back.
            let written = entry.metadata().and_then(|meta| meta.modified()).ok();
            let age = written.and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
            if age > ABANDONED && path.extension().is_some_and(|ending| ending == "tmp") {
                // Of a process that was killed while it saved.
                let _ = fs::remove_file(&path);
                continue;
            }
            let claimed = if age > ABANDONED { claim(&path) } else { None };
            let Some(mut slots) = read(&path) else { continue };
            if claimed.is_some() {
                fade(&mut slots, age);
            }
            merge(&mut saved.learned, &slots);
            ended.extend(claimed.map(|lock| EndedFile { path, slots, _lock: lock }));
        }
        saved.take_over(&ended);
        saved
    }

    /// Goes on with what these files say in that of this process, and removes them when it is written.
    fn take_over(&mut self, ended: &[EndedFile]) {
        ended.iter().for_each(|file| merge(&mut self.inherited, &file.slots));
        if ended.is_empty() {
            return;
        }
        match self.save(&BTreeMap::new()) {
            Ok(()) => ended.iter().for_each(|file| drop(fs::remove_file(&file.path))),
            Err(error) => {
                // They stay where they are, for a process that can write.
                self.inherited.clear();
                self.warn(&error);
            }
        }
    }

    /// Logs why it cannot be saved, once until it can.
    pub(super) fn warn(&self, error: &io::Error) {
        if self.failed.swap(true, Ordering::Relaxed) {
            return;
        }
        let (folder, error) = (self.folder.display(), system_words(error));
        log::warn!("what was learned of the use of models is not saved: {folder} (adaptive_state): {error}");
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
        fade(&mut slots, self.opened.elapsed());
        merge(&mut slots, own);
        create_folder(&self.folder)?;
        let json = serde_json::to_vec(&HabitFile { version: VERSION, slots })?;
        replace(&self.own, |file| file.write_all(&json))?;
        // Where files cannot be locked, their age alone says that a process has ended.
        let own = File::open(&self.own).ok().filter(|own| own.try_lock_shared().is_ok());
        *self.held.lock() = own;
        self.failed.store(false, Ordering::Relaxed);
        Ok(())
    }
}

/// The file of a process that has ended, which no other one takes over meanwhile.
struct EndedFile {
    path: PathBuf,
    slots: BTreeMap<String, SlotHabits>,
    _lock: File,
}

/// Locks an old file, unless its process holds it, or another one takes it over.
fn claim(path: &Path) -> Option<File> {
    let file = File::options().read(true).write(true).open(path).ok()?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => None,
        // Whoever had the lock before may have removed the file.
        Ok(()) | Err(TryLockError::Error(_)) => path.exists().then_some(file),
    }
}

/// So much time has passed since these were seen.
fn fade(slots: &mut BTreeMap<String, SlotHabits>, time: Duration) {
    slots.values_mut().for_each(|habits| habits.gaps.fade(time.as_secs_f64()));
}

fn merge(all: &mut BTreeMap<String, SlotHabits>, other: &BTreeMap<String, SlotHabits>) {
    for (slot, habits) in other {
        all.entry(slot.clone()).or_default().merge(habits);
    }
}

fn read(path: &Path) -> Option<BTreeMap<String, SlotHabits>> {
    let about = fs::metadata(path).ok()?;
    // Reading a pipe may never return.
    if path.extension()? != "json" || !about.is_file() || about.len() > LARGEST {
        return None;
    }
    let file: HabitFile = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (file.version == VERSION && file.slots.values().all(SlotHabits::is_valid)).then_some(file.slots)
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
        for damaged in [&whole[..whole.len() / 2], "", "[]", &whole.replace("\"version\":2", "\"version\":1")]
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
        // The first and the second were taken over by the next ones. What is old counts a little less: 1.99 each.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(weight(folder.path()), 6.0);
        assert_eq!(weight(folder.path()), 6.0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_process_that_is_idle_for_hours_keeps_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let live = SavedHabits::open(folder.path());
        live.save(&habits(8)).unwrap();
        let old = SystemTime::now() - Duration::from_secs(7200);
        fs::File::options().write(true).open(&live.own).unwrap().set_modified(old).unwrap();
        assert_eq!(weight(folder.path()), 8.0);
        live.save(&habits(9)).unwrap();
        assert_eq!(weight(folder.path()), 9.0, "nothing counts twice");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_taken_over_stays() {
        let folder = tempfile::tempdir().unwrap();
        let ended = SavedHabits::open(folder.path());
        ended.save(&habits(8)).unwrap();
        *ended.held.lock() = None;
        let mut next = SavedHabits::open(folder.path());
        // As on a full disk.
        next.own = folder.path().join("a file").join("below it.json");
        fs::write(folder.path().join("a file"), "").unwrap();
        next.folder = next.own.clone();
        let slots = read(&ended.own).unwrap();
        next.take_over(&[EndedFile { path: ended.own.clone(), slots, _lock: claim(&ended.own).unwrap() }]);
        assert_eq!((next.inherited.len(), weight(folder.path())), (0, 8.0));
        assert!(claim(&ended.own).is_some_and(|_| ended.own.exists()));
    }

    #[test]
    fn what_ended_long_ago_weighs_less_and_the_clock_may_jump() {
        let folder = tempfile::tempdir().unwrap();
        let file = SavedHabits::open(folder.path());
        let written = |at: SystemTime| {
            file.save(&habits(40)).unwrap();
            fs::File::options().write(true).open(&file.own).unwrap().set_modified(at).unwrap();
            // Its process has ended.
            *file.held.lock() = None;
        };
        let week = Duration::from_secs(7 * 86_400);
        written(SystemTime::now() + 52 * week);
        assert_eq!(weight(folder.path()), 40.0, "written in the future, before the clock was set back");
        written(SystemTime::now() - week);
        assert_eq!(weight(folder.path()), 20.0);
        // The first of these reads took it over, with what was left of it.
        assert_eq!(weight(folder.path()), 20.0);
        assert!(!file.own.exists());
    }

    #[test]
    fn load_times_are_remembered_and_nonsense_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = SavedHabits::open(folder.path());
        let mut own = habits(1);
        for seconds in 1..=100 {
            own.get_mut("slot").unwrap().loaded(f64::from(seconds));
        }
        file.save(&own).unwrap();
        let learned = || SavedHabits::open(folder.path()).learned("slot");
        assert_eq!(learned().load_time(), Duration::from_secs(99));
        let whole = fs::read_to_string(&file.own).unwrap();
        for wrong in ["-1.0", "1e30", "86401.0"] {
            fs::write(&file.own, whole.replace("99.0", wrong)).unwrap();
            assert_eq!(learned(), SlotHabits::default(), "{wrong}");
        }
        // Files of before load times were remembered.
        let (before, after) = (whole.find(",\"loads\"").unwrap(), whole.find("100.0]").unwrap() + 6);
        fs::write(&file.own, format!("{}{}", &whole[..before], &whole[after..])).unwrap();
        assert_eq!(learned().gaps.weight(), 1.0);
    }
}
