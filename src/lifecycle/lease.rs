//! Leases: they keep a loaded value in memory while it is used.

use std::ops::Deref;
use std::sync::Arc;

use super::keep_alive::KeepAlive;
use super::residency::Residency;
use crate::Result;

/// Receives a lease, or the failure of the load.
pub type Continuation<T> = Box<dyn FnOnce(Result<Lease<T>>) + Send>;

/// Where leases are counted: the slot.
pub(super) trait LeaseCounter: Send + Sync {
    /// The slot's name.
    fn name(&self) -> &str;
    /// Counts one more lease on a value that the caller has a lease on already, with the same keep-alive of its own.
    fn lease_again(&self, residency: u64, keep_alive: Option<KeepAlive>);
    /// A lease has a keep-alive of its own from now on. `is_first`: it had none before.
    fn keeps(&self, residency: u64, keep_alive: KeepAlive, is_first: bool);
    /// Ends one lease. After the last one the idle time starts, or the value leaves at once.
    fn release(&self, residency: u64, keep_alive: Option<KeepAlive>);
}

/// Keeps a loaded value alive while it is used. Cloning is cheap.
///
/// While any lease exists, the slot is not idle: neither the reaper nor the budget touches it. When the last one
/// drops, the idle time starts; if the keep-alive is zero, the value leaves at once.
pub struct Lease<T: ?Sized + Send + Sync + 'static> {
    residency: Arc<Residency<T>>,
    // Dropped after `residency`: once the slot counts no lease, none owns the value any more.
    count: Count,
}

/// One lease in the slot's count.
struct Count {
    slot: Arc<dyn LeaseCounter>,
    residency: u64,
    keep_alive: Option<KeepAlive>,
}

impl<T: ?Sized + Send + Sync + 'static> Lease<T> {
    /// The caller has already counted this lease in the slot.
    pub(super) fn new(slot: Arc<dyn LeaseCounter>, residency: Arc<Residency<T>>) -> Self {
        let count = Count { slot, residency: residency.id, keep_alive: None };
        Self { residency, count }
    }

    /// Replaces the slot's keep-alive for the idle time after this use. When uses overlap, the longest applies.
    pub fn keep_alive(&mut self, keep_alive: KeepAlive) {
        let is_first = self.count.keep_alive.replace(keep_alive).is_none();
        self.count.slot.keeps(self.count.residency, keep_alive, is_first);
    }

    /// The slot's name.
    #[must_use]
    pub fn slot(&self) -> &str {
        self.count.slot.name()
    }
}

impl<T: ?Sized + Send + Sync + 'static> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.residency.value()
    }
}

impl<T: ?Sized + Send + Sync + 'static> Clone for Lease<T> {
    fn clone(&self) -> Self {
        let Count { slot, residency, keep_alive } = &self.count;
        slot.lease_again(*residency, *keep_alive);
        let count = Count { slot: Arc::clone(slot), residency: *residency, keep_alive: *keep_alive };
        Self { residency: Arc::clone(&self.residency), count }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.slot.release(self.residency, self.keep_alive);
    }
}

impl<T: ?Sized + Send + Sync + 'static> std::fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("slot", &self.slot()).finish_non_exhaustive()
    }
}
