//! What all lower tiers have in common.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::item::CachedItem;
use super::key::TierKey;

/// A place for results outside this process. Whatever fails in it is a miss: a tier reports no error to callers.
pub trait Tier: Send + Sync + 'static {
    /// disk or redis
    fn name(&self) -> &'static str;

    /// Whether a look-up takes microseconds, so that callers do it on their own threads.
    fn is_fast(&self) -> bool;

    /// How long a look-up of `keys` results may take, connecting included, before its answer no longer matters. Not asked of
    /// fast tiers.
    fn patience(&self, keys: usize) -> Duration {
        let _ = keys;
        Duration::ZERO
    }

    /// The results under `keys`, in their order.
    fn get(&self, keys: &[TierKey]) -> Vec<Option<CachedItem>>;

    /// Stores results. Called from one thread.
    fn put(&self, entries: &[(TierKey, CachedItem)]);

    /// Removes everything that this tier holds. Returns the places that could not be emptied, each with the reason.
    fn clear(&self) -> Vec<(String, String)>;

    /// Asks each server of the tier now, the resting ones too: its address without a password, and whether it answers.
    fn probe(&self) -> Vec<(String, bool)> {
        Vec::new()
    }

    /// What it has done.
    fn counts(&self) -> &TierCounts;

    /// Entries and bytes now, where the tier knows them.
    fn size(&self) -> (Option<usize>, Option<u64>) {
        (None, None)
    }

    /// Whether it takes part now; false while its circuit is open, or after an error that switched it off.
    fn is_working(&self) -> bool;

    /// Whether its latest request succeeded, for reports. A tier that may be asked again after a failure has not answered yet.
    fn answers(&self) -> bool {
        self.is_working()
    }
}

/// What a tier has done so far.
#[derive(Debug, Default)]
pub struct TierCounts {
    /// Look-ups answered.
    pub hits: AtomicU64,
    /// Look-ups not answered.
    pub misses: AtomicU64,
    /// Look-ups not made, because computing is faster or the tier does not work.
    pub skipped: AtomicU64,
    /// Results stored.
    pub writes: AtomicU64,
    /// Results not stored because the queue was full.
    pub dropped: AtomicU64,
    /// Failures.
    pub errors: AtomicU64,
    /// Results that were read into memory before somebody asked for them.
    pub read_ahead: AtomicU64,
}

impl TierCounts {
    pub(super) fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// A snapshot of one tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierStatistics {
    /// disk or redis
    pub name: &'static str,
    /// Look-ups answered.
    pub hits: u64,
    /// Look-ups not answered.
    pub misses: u64,
    /// Look-ups not made.
    pub skipped: u64,
    /// Results stored.
    pub writes: u64,
    /// Results not stored because the queue was full.
    pub dropped: u64,
    /// Failures.
    pub errors: u64,
    /// Results that were read into memory before somebody asked for them.
    pub read_ahead: u64,
    /// Entries now, where the tier knows them.
    pub entries: Option<usize>,
    /// Bytes now, where the tier knows them.
    pub bytes: Option<u64>,
    /// Whether it takes part, and its latest request succeeded.
    pub working: bool,
}

impl TierStatistics {
    pub(super) fn of(tier: &dyn Tier) -> Self {
        let (entries, bytes) = tier.size();
        let counts = tier.counts();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            name: tier.name(),
            hits: read(&counts.hits),
            misses: read(&counts.misses),
            skipped: read(&counts.skipped),
            writes: read(&counts.writes),
            dropped: read(&counts.dropped),
            errors: read(&counts.errors),
            read_ahead: read(&counts.read_ahead),
            entries,
            bytes,
            working: tier.answers(),
        }
    }
}
