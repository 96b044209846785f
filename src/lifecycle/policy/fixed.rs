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
