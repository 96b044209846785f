//! Where a waiting caller receives its lease.

use std::time::Instant;

use super::lease::Lease;
use crate::Result;
use crate::sync::{Condvar, Mutex};

/// A place for one lease, or the failure of its load.
pub(super) struct Oneshot<T: ?Sized + Send + Sync + 'static> {
    content: Mutex<Option<Result<Lease<T>>>>,
    arrived: Condvar,
}

impl<T: ?Sized + Send + Sync + 'static> Oneshot<T> {
    pub(super) fn new() -> Self {
        Self { content: Mutex::new(None), arrived: Condvar::new() }
    }

    pub(super) fn put(&self, outcome: Result<Lease<T>>) {
        *self.content.lock() = Some(outcome);
        self.arrived.notify_one();
    }

    /// What has arrived, or arrives before `wake`.
    pub(super) fn wait_until(&self, wake: Instant) -> Option<Result<Lease<T>>> {
        let mut content = self.content.lock();
        if content.is_none() {
            content = self.arrived.wait_until(content, wake).0;
        }
        content.take()
    }
}
