//! The clock of the modules that have deadlines.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, NaiveDateTime, TimeDelta};

use crate::sync::Mutex;

/// Where "now" comes from: the operating system, or in simulations and tests a hand that they move.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The operating system's monotonic clock.
    #[default]
    System,
    /// Stands still until it is moved.
    Manual {
        /// Where it stood at first.
        origin: Instant,
        /// Where it stands.
        hand: Arc<Mutex<Instant>>,
    },
}

/// The local time at the origin of a manual clock, in seconds since 1970: Monday, the first of June 2026, 00:00.
const MANUAL_ORIGIN: i64 = 1_780_272_000;

impl Clock {
    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Instant {
        match self {
            Self::System => Instant::now(),
            Self::Manual { hand, .. } => *hand.lock(),
        }
    }

    /// The local time of day, which may jump.
    #[must_use]
    pub fn local(&self) -> NaiveDateTime {
        match self {
            Self::System => {
                // chrono's own way panics where the clock stands before 1970.
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let utc = DateTime::from_timestamp(i64::try_from(since.as_secs()).unwrap_or(0), 0)
                    .unwrap_or_default();
                utc.with_timezone(&chrono::Local).naive_local()
            }
            Self::Manual { origin, .. } => {
                let since = TimeDelta::from_std(self.now().saturating_duration_since(*origin));
                let start = DateTime::from_timestamp(MANUAL_ORIGIN, 0).unwrap_or_default().naive_utc();
                start + since.unwrap_or_default()
            }
        }
    }

    /// A clock that stands still.
    #[must_use]
    pub fn manual() -> Self {
        let origin = Instant::now();
        Self::Manual { origin, hand: Arc::new(Mutex::new(origin)) }
    }

    /// Moves a manual clock on to `at`; back it does not go. The system's clock is not moved.
    pub fn advance_to(&self, at: Instant) {
        if let Self::Manual { hand, .. } = self {
            let mut hand = hand.lock();
            *hand = at.max(*hand);
        }
    }
}

#[cfg(test)]
impl Clock {
    pub(crate) fn advance(&self, by: std::time::Duration) {
        assert!(matches!(self, Self::Manual { .. }), "the system's clock cannot be moved");
        self.advance_to(self.now() + by);
    }
}
