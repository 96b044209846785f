//! The memory of all models together: the budget, and how models return memory to it.

use std::sync::{Arc, Weak};

use super::device::ComputeDevice;
use super::model::LoadedModel;
use super::registry::{NamedSlot, NamedSlots};
use crate::compute::memory;
use crate::generation::engine::{Allowance, KvMemory, Reclaim};
use crate::lifecycle::{
    Budget, Charge, Managed, MemoryProbe, UnloadReason, in_leaving_order, is_loading_ahead,
};
use crate::{Error, Result};

/// The process's memory, as the operating system and the allocator report it.
pub(super) struct ProcessMemory {
    pub(super) device: ComputeDevice,
}

impl MemoryProbe for ProcessMemory {
    fn resident(&self) -> u64 {
        memory::resident_bytes()
    }

    fn trim(&self) {
        memory::trim();
        self.device.settle();
    }
}

/// Takes `needed` bytes of the budget for the slot `name`, of a card's memory if `on_card`. Kept beginnings of prompts are
/// freed first, then idle models of other slots in the same memory.
pub(super) fn make_room(
    budget: &Budget,
    entries: &NamedSlots,
    name: &str,
    needed: u64,
    on_card: bool,
) -> Result<Charge> {
    if is_loading_ahead() {
        return budget.take(name, needed);
    }
    let all = entries.all();
    let in_same = |entry: &&Arc<NamedSlot>| {
        entry.slot.inspect(LoadedModel::is_on_card).is_none_or(|model| model == on_card)
    };
    let others: Vec<Arc<dyn Managed>> = all
        .iter()
        .filter(in_same)
        .filter(|entry| entry.name != name)
        .map(|entry| entry.slot.managed())
        .collect();
    budget.make_room(name, needed, &others)
}

/// Unloads one idle model of a card, from all slots that have it: of several, the one that eviction chooses first. True
/// when there was one.
pub(super) fn relieve(entries: &NamedSlots, name: &str) -> bool {
    let all = entries.all();
    let others = all.iter().filter(|entry| entry.name != name);
    let on_card = others.filter(|entry| entry.slot.inspect(LoadedModel::is_on_card) == Some(true));
    in_leaving_order(on_card.map(|entry| entry.slot.managed())).iter().any(|slots| {
        slots.iter().fold(false, |unloaded, (slot, idle)| {
            log::info!("{name}: its card is out of memory; unloading {}", slot.name());
            slot.unload_idle(idle, UnloadReason::Evicted) || unloaded
        })
    })
}

/// Keys and values of one generator, counted in the budget of all models.
#[derive(Clone)]
pub(super) struct KvShare {
    pub(super) budget: Budget,
    pub(super) entries: Weak<NamedSlots>,
    pub(super) model: String,
    pub(super) on_card: bool,
}

impl std::fmt::Debug for KvShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvShare").field("model", &self.model).finish_non_exhaustive()
    }
}

impl KvMemory for KvShare {
    fn take(&self, bytes: u64) -> Result<Option<Box<dyn Allowance>>> {
        // While a manager closes, answers that are being written grow to their end.
        let charge = match self.entries.upgrade() {
            Some(entries) => make_room(&self.budget, &entries, &self.model, bytes, self.on_card),
            None => self.budget.make_room(&self.model, bytes, &[]),
        };
        match charge {
            Ok(charge) => Ok(Some(Box::new(charge.passing()))),
            Err(Error::Budget { .. }) if self.budget.will_fit(bytes) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn lend(&self, kept: Weak<dyn Reclaim>) {
        self.budget.lend(move |bytes| Some(kept.upgrade()?.reclaim(bytes)));
    }
}

impl Allowance for Charge {
    fn shrink(&mut self, bytes: u64) {
        Self::shrink(self, bytes);
    }
}
