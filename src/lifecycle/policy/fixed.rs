//! The fixed timer: what it would have cost, to compare with.

use std::time::Duration;

/// Loads and seconds in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// Uses that had to wait for a load.
    pub cold_starts: u64,
    /// Seconds in memory.
    pub resident_seconds: f64,
}

/// A model that leaves a fixed time after each use.
#[derive(Debug, Clone, Copy)]
pub(super) struct FixedTimer {
    pub(super) stay: Duration,
    pub(super) spent: Spent,
}

impl FixedTimer {
    pub(super) fn new(stay: Duration) -> Self {
        Self { stay, spent: Spent::default() }
    }

    /// A use begins, after so long without one; `None`: it is the first.
    pub(super) fn used(&mut self, idle: Option<f64>) {
        let stay = self.stay.as_secs_f64();
        self.spent.cold_starts += u64::from(idle.is_none_or(|idle| idle > stay));
        self.spent.resident_seconds += idle.map_or(0.0, |idle| idle.min(stay));
    }

    /// A use took so long.
    pub(super) fn busy(&mut self, seconds: f64) {
        self.spent.resident_seconds += seconds;
    }
}

/// The learned policy is dropped once it costs this many times what the fixed timer would have cost.
const MOST_COST: f64 = 1.04;
/// Loads by which it may be worse before the timer applies, and by which it may be better at most: what was saved long ago
/// is no reason to be worse today.
const PATIENCE: f64 = 2.0;
const MOST_SAVED: f64 = 20.0;

/// By how much what was learned has been better than the timer, so that it never becomes much worse, whatever is done to it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lead {
    /// Seconds of memory that it has cost more than that many times what the timer would have.
    excess: f64,
    /// Seconds in memory so far, at the latest use.
    in_memory: f64,
    /// The timer applies until that is made up for.
    pub(super) behind: bool,
}

impl Lead {
    /// An idle period ends after `idle` seconds. `left`: the policy had the value leave, and a load is needed. It has been
    /// in memory for `in_memory` seconds in all. A load costs `price` seconds, the timer's stay is `stay`.
    pub(super) fn idle(&mut self, idle: f64, left: bool, in_memory: f64, price: f64, stay: f64) {
        let own = in_memory - self.in_memory + if left { price } else { 0.0 };
        let fixed = idle.min(stay) + if idle > stay { price } else { 0.0 };
        self.in_memory = in_memory;
        self.excess = (self.excess + own - MOST_COST * fixed).max(-MOST_SAVED * price);
        self.behind = self.excess > if self.behind { 0.0 } else { PATIENCE * price };
    }
}
