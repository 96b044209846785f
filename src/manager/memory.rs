//! The memory of all models together: the budget, and how models return memory to it.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::device::ComputeDevice;
use super::model::LoadedModel;
use super::registry::{LoadFor, NamedSlots};
use crate::compute::memory;
use crate::generation::engine::{Allowance, KvMemory, Reclaim};
use crate::lifecycle::{
    Budget, Charge, Managed, MemoryProbe, State, Status, UnloadReason, in_leaving_order, is_loading_ahead,
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
    let all = entries.all();
    let others = all.iter().filter(|entry| entry.name != name && entry.is_in(on_card));
    fits_later(needed, budget.limit(), others.map(|entry| entry.slot.status()))
}

/// Whether `needed` bytes fit into `limit` once those of the `others` that load or are in use have left. Pinned ones stay.
fn fits_later(needed: u64, limit: Option<u64>, others: impl Iterator<Item = Status>) -> bool {
    let (mut stays, mut leaves) = (0u64, false);
    for other in others {
        if other.options.pinned {
            stays = stays.saturating_add(other.bytes);
        } else {
            leaves |= other.state == State::Loading || (other.leases > 0 && other.bytes > 0);
        }
    }
    leaves && limit.is_none_or(|limit| needed.saturating_add(stays) <= limit)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::SlotOptions;

    fn other(state: State, bytes: u64, leases: usize, pinned: bool) -> Status {
        let options = SlotOptions { pinned, ..SlotOptions::default() };
        Status { state, leases, bytes, last_used: None, deadline: None, options, last_error: None }
    }

    #[test]
    fn a_load_waits_for_models_that_may_leave_alone() {
        let waits = |others: &[&Status]| fits_later(60, Some(100), others.iter().copied().cloned());
        let (in_use, pinned) = (other(State::Ready, 80, 1, false), other(State::Ready, 80, 1, true));
        assert!(waits(&[&in_use]));
        assert!(waits(&[&other(State::Loading, 0, 0, false)]));
        assert!(!waits(&[]), "nothing leaves");
        assert!(!waits(&[&other(State::Ready, 80, 0, false)]), "what is idle has left already");
        assert!(!waits(&[&other(State::Absent, 0, 1, false)]), "it holds nothing");
        assert!(!waits(&[&pinned]), "it never leaves");
        assert!(!waits(&[&in_use, &pinned]), "too little is left next to what is pinned");
        assert!(waits(&[&in_use, &other(State::Ready, 40, 0, true)]));
        assert!(!fits_later(101, Some(100), [in_use.clone()].into_iter()), "it never fits");
        assert!(fits_later(101, None, [in_use].into_iter()));
    }
}
