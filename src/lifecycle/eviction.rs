//! Which idle value leaves when another one needs its memory: the least recently used, or the cheapest to lose.
//!
//! The second is greedy-dual: a value is worth its uses times the seconds of its load, for each byte. What leaves raises the
//! level from which the worth of later uses counts, so that a value which was worth much long ago leaves too.

use std::sync::atomic::{AtomicU64, Ordering};

/// Worth of one second of loading for each megabyte.
const SCALE: f64 = 1e6;

/// The order in which idle values leave.
#[derive(Debug, Default)]
pub struct Eviction {
    by_cost: bool,
    level: AtomicU64,
}

impl Eviction {
    /// By cost, or the least recently used first.
    #[must_use]
    pub fn new(by_cost: bool) -> Self {
        Self { by_cost, level: AtomicU64::new(0) }
    }

    /// The priority of a value after a use: the lowest leaves first. Equal for all where recency alone decides.
    pub(super) fn priority(&self, uses: u64, load_seconds: f64, bytes: u64) -> u64 {
        if !self.by_cost {
            return 0;
        }
        let megabytes = (bytes as f64 / 1e6).max(1.0);
        let worth = uses as f64 * load_seconds.max(0.0) * SCALE / megabytes;
        self.level.load(Ordering::Relaxed).saturating_add(worth as u64)
    }

    /// A value with this priority leaves for another one.
    pub(super) fn evicted(&self, priority: u64) {
        self.level.fetch_max(priority, Ordering::Relaxed);
    }
}
