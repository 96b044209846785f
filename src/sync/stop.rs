//! A flag that ends pauses.

use std::time::{Duration, Instant};

use super::locks::{Condvar, Mutex};

/// Raised once, when what it belongs to ends. Whoever pauses under it wakes at once.
#[derive(Debug, Default)]
pub struct StopFlag {
    raised: Mutex<bool>,
    signal: Condvar,
}

impl StopFlag {
    /// Ends all pauses, those to come too.
    pub fn raise(&self) {
        *self.raised.lock() = true;
        self.signal.notify_all();
    }

    /// Whether it was raised.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        *self.raised.lock()
    }

    /// Pauses for so long. False when the flag was raised before the end.
    #[must_use]
    pub fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut raised = self.raised.lock();
        while !*raised && Instant::now() < until {
            raised = self.signal.wait_until(raised, until).0;
        }
        !*raised
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn a_pause_ends_by_itself_or_by_the_flag() {
        let flag = Arc::new(StopFlag::default());
        assert!(flag.pause(Duration::from_millis(2)));
        let pausing = Arc::clone(&flag);
        let paused = thread::spawn(move || pausing.pause(Duration::from_secs(600)));
        flag.raise();
        assert!(!paused.join().unwrap() && flag.is_raised());
        assert!(!flag.pause(Duration::from_secs(600)));
    }
}
