//! The memory of all models together: the budget, and how models return memory to it.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::device::ComputeDevice;
use super::model::LoadedModel;
use super::registry::{LoadFor, NamedSlots};
use crate::compute::memory;
use crate::generation::engine::{Allowance, KvMemory, Reclaim};
use crate::lifecycle::{
    Budget, Charge, Managed, MemoryProbe, State, UnloadReason, in_leaving_order, is_loading_ahead,
};
use crate::sync::StopFlag;
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
    let others: Vec<Arc<dyn Managed>> = all
        .iter()
        .filter(|entry| entry.name != name && entry.is_in(on_card))
        .map(|entry| entry.slot.managed())
        .collect();
    budget.make_room(name, needed, &others)
}

/// How long a load waits for memory that calls under way hold.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it looks for it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The same for a load, which waits while models that are loading or in use may leave.
///
/// # Errors
/// [`Error::Budget`]; [`Error::Closed`] when `closing` is raised meanwhile.
pub(super) fn make_room_in_time(
    budget: &Budget,
    LoadFor { entries, name, .. }: &LoadFor<'_>,
    needed: u64,
    on_card: bool,
    closing: &StopFlag,
) -> Result<Charge> {
    let started = Instant::now();
    loop {
        let outcome = make_room(budget, entries, name, needed, on_card);
        let waits = matches!(outcome, Err(Error::Budget { .. }))
            && started.elapsed() < PATIENCE
            && may_leave(budget, entries, name, needed, on_card);
        if !waits {
            return outcome;
        }
        if !closing.pause(LOOK_AGAIN) {
            return Err(Error::Closed);
        }
    }
}

/// Whether `needed` bytes may be free once calls under way have ended.
fn may_leave(budget: &Budget, entries: &NamedSlots, name: &str, needed: u64, on_card: bool) -> bool {
    if is_loading_ahead() {
        return false;
    }
    let (mut stays, mut leaves) = (0u64, false);
    for entry in entries.all().iter().filter(|entry| entry.name != name && entry.is_in(on_card)) {
        let status = entry.slot.status();
        if status.options.pinned {
            stays = stays.saturating_add(status.bytes);
        } else {
            leaves |= status.state == State::Loading || (status.leases > 0 && status.bytes > 0);
        }
    }
    leaves && budget.limit().is_none_or(|limit| needed.saturating_add(stays) <= limit)
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
