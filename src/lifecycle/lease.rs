//! A hold on a loaded value, and what happens when the last hold goes.

use std::ops::Deref;
use std::sync::Arc;

use super::budget::Charge;
use super::keep_alive::KeepAlive;
use super::managed::Managed;
use super::memory::{MemoryProbe, megabytes};
use super::shared::Shared;
use super::slot::Loaded;
use super::tracker::Record;

/// Keeps a loaded value alive while it is used. Cloning is cheap.
///
/// While any lease exists, the slot is not idle: neither the reaper nor the budget touches it. When the last one
/// drops, the idle time starts; if the keep-alive is zero, the value leaves at once.
pub struct Lease<T: ?Sized + Send + Sync + 'static> {
    stay: Arc<Residency<T>>,
    // Dropped after `stay`: once the slot counts no lease, no lease holds the value any more.
    count: Count<T>,
}

/// One lease in the slot's count.
struct Count<T: ?Sized + Send + Sync + 'static> {
    slot: Arc<Shared<T>>,
    stay: u64,
    keep_alive: Option<KeepAlive>,
}

impl<T: ?Sized + Send + Sync + 'static> Lease<T> {
    /// The caller has already counted this lease in the slot.
    pub(super) fn new(slot: Arc<Shared<T>>, stay: Arc<Residency<T>>) -> Self {
        let count = Count { slot, stay: stay.id, keep_alive: None };
        Self { stay, count }
    }

    /// Replaces the slot's keep-alive for the idle time after this use. When uses overlap, the longest applies.
    pub fn keep_alive(&mut self, keep_alive: KeepAlive) {
        self.count.keep_alive = Some(keep_alive);
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
        &self.stay.value
    }
}

impl<T: ?Sized + Send + Sync + 'static> Clone for Lease<T> {
    fn clone(&self) -> Self {
        let Count { slot, stay, keep_alive } = &self.count;
        slot.lease_again(*stay);
        let count = Count { slot: Arc::clone(slot), stay: *stay, keep_alive: *keep_alive };
        Self { stay: Arc::clone(&self.stay), count }
    }
}

impl<T: ?Sized + Send + Sync + 'static> Drop for Count<T> {
    fn drop(&mut self) {
        self.slot.release(self.stay, self.keep_alive);
    }
}

impl<T: ?Sized + Send + Sync + 'static> std::fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("slot", &self.slot()).finish_non_exhaustive()
    }
}

/// One value's time in memory, from its load to the drop of its last owner: the slot, or a lease that outlived the
/// unloading. Whoever is last frees the value, and measures what the operating system got back.
pub(super) struct Residency<T: ?Sized> {
    /// Tells it from the slot's other stays.
    pub(super) id: u64,
    value: Arc<T>,
    // Dropped after `value`, in declaration order.
    departure: FreeOnDrop,
}

/// Closes the books on a value that has just been freed.
struct FreeOnDrop {
    slot: Arc<str>,
    bytes: u64,
    resident_before: u64,
    record: Arc<Record>,
    memory: Arc<dyn MemoryProbe>,
    /// Goes with the rest: the budget gets the bytes back once they are free.
    charge: Option<Charge>,
}

impl<T: ?Sized + Send + Sync + 'static> Residency<T> {
    /// `loaded.bytes` is settled: the size that the budget is to count.
    pub(super) fn new(slot: &Shared<T>, id: u64, loaded: Loaded<T>) -> Self {
        let Loaded { value, bytes, mut charge } = loaded;
        if let Some(charge) = &mut charge {
            charge.settle(bytes);
        }
        let departure = FreeOnDrop {
            slot: slot.name_shared(),
            bytes,
            resident_before: 0,
            record: slot.record(),
            memory: Arc::clone(&slot.context().memory),
            charge,
        };
        Self { id, value, departure }
    }

    pub(super) fn value(&self) -> &Arc<T> {
        &self.value
    }

    pub(super) fn bytes(&self) -> u64 {
        self.departure.bytes
    }

    /// Bytes that the budget gets back when this stay ends.
    pub(super) fn charged(&self) -> u64 {
        self.departure.charge.as_ref().map_or(0, Charge::bytes)
    }
}

impl<T: ?Sized> Drop for Residency<T> {
    fn drop(&mut self) {
        self.departure.resident_before = self.departure.memory.resident();
    }
}

impl Drop for FreeOnDrop {
    fn drop(&mut self) {
        self.memory.trim();
        let returned = self.resident_before.saturating_sub(self.memory.resident());
        self.record.returned(returned);
        log::debug!("freed {:?}: {:.1} MB went back to the system", self.slot, megabytes(returned));
    }
}
