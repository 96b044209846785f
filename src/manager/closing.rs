//! The turns of callers that close the same manager.

use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};

/// How long a call to close waits for another one. An unlimited wait could be a deadlock: a logging handler that closes
/// the manager holds the handler's lock, and closing logs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether a caller closes the manager now.
#[derive(Default)]
pub(super) struct Closing {
    under_way: Mutex<bool>,
    ended: Condvar,
}

/// While it exists, no other caller closes.
pub(super) struct Turn<'a>(&'a Closing);

impl Closing {
    /// Waits for the other callers; `None` when that takes too long.
    pub(super) fn enter(&self) -> Option<Turn<'_>> {
        let deadline = Instant::now() + PATIENCE;
        let mut under_way = self.under_way.lock();
        while *under_way {
            let late;
            (under_way, late) = self.ended.wait_until(under_way, deadline);
            if late {
                return None;
            }
        }
        *under_way = true;
        Some(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.under_way.lock() = false;
        self.0.ended.notify_all();
    }
}
