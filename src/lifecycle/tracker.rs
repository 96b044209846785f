//! What loading has cost so far: times, counts, memory, latest accesses.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::clock::Clock;
use crate::sync::Mutex;

/// Load times kept for the percentiles; older ones are forgotten.
const RECENT_LOADS: usize = 64;

/// Statistics of all slots, by slot name. Slots without a figure are absent from that figure's map.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrackerStatistics {
    /// Seconds that the latest load took.
    pub load_times: BTreeMap<String, f64>,
    /// Completed loads.
    pub load_counts: BTreeMap<String, u64>,
    /// Seconds since the latest access.
    pub last_access: BTreeMap<String, f64>,
    /// Megabytes (2²⁰ bytes) that the latest load took.
    pub memory_usage: BTreeMap<String, f64>,
    /// Median of the latest 64 load times, in seconds (nearest rank: always a time that was measured).
    pub load_time_p50: BTreeMap<String, f64>,
    /// 95th percentile of the latest 64 load times, in seconds (nearest rank).
    pub load_time_p95: BTreeMap<String, f64>,
    /// Times unloaded, for every slot that was ever loaded.
    pub unload_counts: BTreeMap<String, u64>,
    /// Bytes by which the process shrank while unloaded values were freed, for every slot that was ever loaded.
    pub bytes_returned: BTreeMap<String, u64>,
}

/// Collects what every slot's loads, accesses and unloads cost. Memory is bounded per slot name.
pub struct Tracker {
    clock: Clock,
    origin: Instant,
    records: Mutex<BTreeMap<Arc<str>, Arc<Record>>>,
}

/// One slot's figures. A slot has its record, so that an access costs one atomic store and no look-up.
#[derive(Default)]
pub(super) struct Record {
    /// Nanoseconds from the tracker's origin, plus one; 0 is never.
    last_access: AtomicU64,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    loads: u64,
    recent_seconds: VecDeque<f64>,
    memory_mb: f64,
    unloads: u64,
    bytes_returned: u64,
}

impl Tracker {
    /// An empty tracker.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { origin: clock.now(), clock, records: Mutex::default() }
    }

    /// A load of `slot` ended well: it took `seconds` and `memory_mb` MiB. It counts as an access.
    pub fn record_load(&self, slot: &str, seconds: f64, memory_mb: f64) {
        let record = self.record(slot);
        record.loaded(seconds, memory_mb);
        self.accessed(&record, self.clock.now());
    }

    /// `slot` was used now.
    pub fn record_access(&self, slot: &str) {
        self.accessed(&self.record(slot), self.clock.now());
    }

    /// Everything so far.
    #[must_use]
    pub fn statistics(&self) -> TrackerStatistics {
        let now = self.nanoseconds(self.clock.now());
        let records: Vec<_> =
            self.records.lock().iter().map(|(name, record)| (name.to_string(), Arc::clone(record))).collect();
        let mut all = TrackerStatistics::default();
        for (name, record) in records {
            if let Some(accessed) = record.last_access.load(Ordering::Relaxed).checked_sub(1) {
                all.last_access.insert(name.clone(), now.saturating_sub(accessed) as f64 * 1e-9);
            }
            let counts = record.counts.lock();
            if counts.loads + counts.unloads + counts.bytes_returned == 0 {
                continue;
            }
            all.unload_counts.insert(name.clone(), counts.unloads);
            all.bytes_returned.insert(name.clone(), counts.bytes_returned);
            let Some(&latest) = counts.recent_seconds.back() else { continue };
            let mut sorted: Vec<f64> = counts.recent_seconds.iter().copied().collect();
            sorted.sort_unstable_by(f64::total_cmp);
            all.load_times.insert(name.clone(), latest);
            all.load_counts.insert(name.clone(), counts.loads);
            all.memory_usage.insert(name.clone(), counts.memory_mb);
            all.load_time_p50.insert(name.clone(), nearest_rank(&sorted, 50));
            all.load_time_p95.insert(name, nearest_rank(&sorted, 95));
        }
        all
    }

    /// Forgets what is known of `slot`, which is no more. What its last uses still record is not reported.
    pub(crate) fn forget(&self, slot: &str) {
        self.records.lock().remove(slot);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut records = self.records.lock();
        // Records that a slot still writes to are emptied in place; the other ones are removed.
        records.retain(|_, record| Arc::strong_count(record) > 1);
        for record in records.values() {
            record.last_access.store(0, Ordering::Relaxed);
            *record.counts.lock() = Counts::default();
        }
    }

    pub(super) fn record(&self, slot: &str) -> Arc<Record> {
        let mut records = self.records.lock();
        if let Some(record) = records.get(slot) {
            return Arc::clone(record);
        }
        let record = Arc::new(Record::default());
        records.insert(slot.into(), Arc::clone(&record));
        record
    }

    pub(super) fn accessed(&self, record: &Record, at: Instant) {
        record.last_access.store(self.nanoseconds(at) + 1, Ordering::Relaxed);
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        // 2⁶³ ns are 292 years of uptime.
        at.saturating_duration_since(self.origin).as_nanos() as u64
    }
}

impl Record {
    pub(super) fn loaded(&self, seconds: f64, memory_mb: f64) {
        let mut counts = self.counts.lock();
        counts.loads += 1;
        counts.memory_mb = memory_mb;
        if counts.recent_seconds.len() == RECENT_LOADS {
            counts.recent_seconds.pop_front();
        }
        counts.recent_seconds.push_back(seconds);
    }

    pub(super) fn unloaded(&self) {
        self.counts.lock().unloads += 1;
    }

    pub(super) fn returned(&self, bytes: u64) {
        self.counts.lock().bytes_returned += bytes;
    }
}

/// The smallest of `sorted` that at least `percent` % of them do not exceed. `sorted` is not empty.
fn nearest_rank(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn reports_what_was_recorded() {
        let clock = Clock::manual();
        let tracker = Tracker::new(clock.clone());
        tracker.record_load("a", 2.0, 90.0);
        tracker.record_load("a", 1.0, 91.5);
        tracker.record_access("a");
        clock.advance(Duration::from_secs(7));
        tracker.record_access("b");
        let record = tracker.record("a");
        record.unloaded();
        record.returned(1000);
        record.returned(24);

        let all = tracker.statistics();
        assert_eq!(all.load_times, BTreeMap::from([("a".into(), 1.0)]));
        assert_eq!(all.load_counts, BTreeMap::from([("a".into(), 2)]));
        assert_eq!(all.last_access, BTreeMap::from([("a".into(), 7.0), ("b".into(), 0.0)]));
        assert_eq!(all.memory_usage, BTreeMap::from([("a".into(), 91.5)]));
        assert_eq!(all.unload_counts, BTreeMap::from([("a".into(), 1)]));
        assert_eq!(all.bytes_returned, BTreeMap::from([("a".into(), 1024)]));
        assert_eq!(all.load_time_p50["a"], 1.0);
        assert_eq!(all.load_time_p95["a"], 2.0);
    }

    #[test]
    fn a_load_is_an_access() {
        let clock = Clock::manual();
        let tracker = Tracker::new(clock.clone());
        clock.advance(Duration::from_secs(3));
        tracker.record_load("a", 2.0, 90.0);
        clock.advance(Duration::from_secs(5));
        assert_eq!(tracker.statistics().last_access, BTreeMap::from([("a".into(), 5.0)]));
    }

    #[test]
    fn percentiles_are_measured_times_of_the_latest_loads() {
        assert_eq!(nearest_rank(&[3.0], 50), 3.0);
        assert_eq!(nearest_rank(&[1.0, 2.0, 3.0], 50), 2.0);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(nearest_rank(&hundred, 95), 95.0);

        let tracker = Tracker::new(Clock::manual());
        for second in 0..1000 {
            tracker.record_load("a", f64::from(second), 0.0);
        }
        let all = tracker.statistics();
        // 936..=999 are left: the 32nd and the 61st of them.
        assert_eq!((all.load_time_p50["a"], all.load_time_p95["a"]), (967.0, 996.0));
        assert_eq!(all.load_counts["a"], 1000);
        assert_eq!(tracker.record("a").counts.lock().recent_seconds.len(), RECENT_LOADS);
    }

    #[test]
    fn a_slot_that_is_no_more_is_forgotten() {
        let tracker = Tracker::new(Clock::manual());
        let held = tracker.record("gone");
        held.loaded(1.0, 1.0);
        tracker.record_load("stays", 1.0, 1.0);
        tracker.forget("gone");
        held.unloaded();
        assert_eq!(tracker.statistics().unload_counts, BTreeMap::from([("stays".into(), 0)]));
        assert_eq!(tracker.records.lock().len(), 1);
        // A new slot of that name begins anew.
        tracker.record("gone").loaded(2.0, 1.0);
        assert_eq!(tracker.statistics().load_counts["gone"], 1);
    }

    #[test]
    fn clear_forgets_everything_and_held_records_go_on() {
        let tracker = Tracker::new(Clock::manual());
        let held = tracker.record("held");
        held.loaded(1.0, 1.0);
        tracker.record_access("held");
        tracker.record_load("gone", 1.0, 1.0);
        tracker.clear();
        assert_eq!(tracker.statistics(), TrackerStatistics::default());
        held.loaded(2.0, 3.0);
        assert_eq!(tracker.statistics().load_times, BTreeMap::from([("held".into(), 2.0)]));
    }
}
