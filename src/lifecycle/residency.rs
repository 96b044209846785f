//! A loaded value, and what happens when its last owner drops it.

use std::sync::Arc;

use super::budget::Charge;
use super::managed::HeldCharge;
use super::memory::MemoryProbe;
use super::tracker::Record;
use crate::size::size_text;

/// What a loader returns.
pub struct Loaded<T: ?Sized> {
    /// The model.
    pub value: Arc<T>,
    /// Bytes that it takes in memory; 0 when unknown: then the growth of the process while it loaded is taken.
    pub bytes: u64,
    /// Its share of the memory budget, given back when the value has been freed. Values that are the same memory share it.
    pub charge: Option<Arc<Charge>>,
}

impl<T: ?Sized> Loaded<T> {
    /// A value of `bytes` bytes outside any budget.
    #[must_use]
    pub fn new(value: Arc<T>, bytes: u64) -> Self {
        Self { value, bytes, charge: None }
    }
}

/// One value's time in memory, from its load to the drop of its last owner: the slot, or a lease that outlives the
/// unloading. The last owner frees the value, and measures how much memory the operating system got back.
pub(super) struct Residency<T: ?Sized> {
    /// Distinguishes it from earlier and later values of the slot.
    pub(super) id: u64,
    value: Arc<T>,
    // Dropped after `value`, in declaration order.
    on_drop: FreeOnDrop,
}

/// Records what freeing a value returned. Dropped right after the value.
struct FreeOnDrop {
    slot: Arc<str>,
    bytes: u64,
    resident_before: u64,
    record: Arc<Record>,
    memory: Arc<dyn MemoryProbe>,
    /// Dropped with the rest: the budget gets the bytes back once they are free.
    charge: Option<Arc<Charge>>,
}

impl<T: ?Sized> Residency<T> {
    /// The value of the slot that `record` belongs to. `loaded.bytes` is its size as the budget counts it.
    pub(super) fn new(
        slot: &Arc<str>,
        id: u64,
        loaded: Loaded<T>,
        record: &Arc<Record>,
        memory: &Arc<dyn MemoryProbe>,
    ) -> Self {
        let Loaded { value, bytes, charge } = loaded;
        if let Some(charge) = &charge {
            charge.settle(bytes);
        }
        let on_drop = FreeOnDrop {
            slot: Arc::clone(slot),
            bytes,
            resident_before: 0,
            record: Arc::clone(record),
            memory: Arc::clone(memory),
            charge,
        };
        Self { id, value, on_drop }
    }

    pub(super) fn value(&self) -> &Arc<T> {
        &self.value
    }

    pub(super) fn bytes(&self) -> u64 {
        self.on_drop.bytes
    }

    pub(super) fn charge(&self) -> Option<HeldCharge> {
        self.on_drop.charge.as_ref().map(Charge::held)
    }
}

impl<T: ?Sized> Drop for Residency<T> {
    fn drop(&mut self) {
        self.on_drop.resident_before = self.on_drop.memory.resident();
    }
}

impl Drop for FreeOnDrop {
    fn drop(&mut self) {
        self.memory.trim();
        let returned = self.resident_before.saturating_sub(self.memory.resident());
        self.record.returned(returned);
        log::debug!("freed {:?}: {} were returned to the system", self.slot, size_text(returned));
    }
}
