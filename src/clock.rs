//! The clock of the modules that have deadlines.

use std::time::Instant;

/// Where "now" comes from: the monotonic clock, or in tests a hand that is moved by the test.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The operating system's monotonic clock.
    #[default]
    System,
    /// Stands still until a test moves it.
    #[cfg(test)]
    Manual(std::sync::Arc<crate::sync::Mutex<Instant>>),
}

impl Clock {
    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Instant {
        match self {
            Self::System => Instant::now(),
            #[cfg(test)]
            Self::Manual(hand) => *hand.lock(),
        }
    }
}

#[cfg(test)]
impl Clock {
    pub(crate) fn manual() -> Self {
        Self::Manual(std::sync::Arc::new(crate::sync::Mutex::new(Instant::now())))
    }

    pub(crate) fn advance(&self, by: std::time::Duration) {
        match self {
            Self::System => panic!("the system's clock cannot be moved"),
            Self::Manual(hand) => *hand.lock() += by,
        }
    }
}
