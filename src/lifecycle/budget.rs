//! How much memory models may take together, and which are unloaded when another one needs memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::managed::{HeldCharge, Idle, Managed, UnloadReason};
use crate::{Error, Result};

/// The memory that all models of a manager may take. A cheap-clone handle: clones are the same budget.
///
/// A loader takes a [`Charge`] before it loads, and puts it into [`super::Loaded`]. The charge lives as long as the value:
/// models that are loading, and models that are unloaded but still leased, are counted too. Slots whose values are the same
/// memory share one charge.
#[derive(Debug, Clone)]
pub struct Budget {
    ledger: Arc<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    /// `u64::MAX` is none.
    limit: u64,
    used: AtomicU64,
    /// Of those, bytes that become free when the calls under way end.
    passing: AtomicU64,
}

/// Bytes taken out of a budget; dropping gives them back.
#[derive(Debug)]
pub struct Charge {
    ledger: Arc<Ledger>,
    bytes: AtomicU64,
    passing: bool,
}

/// All the slots that hold one charge, each of them idle: unloading all of them gives it back.
struct Holders<S> {
    slots: Vec<(S, Idle)>,
    charge: HeldCharge,
}

impl Budget {
    /// A budget of `limit` bytes; `None` is no limit.
    #[must_use]
    pub fn new(limit: Option<u64>) -> Self {
        let limit = limit.unwrap_or(u64::MAX);
        Self { ledger: Arc::new(Ledger { limit, used: AtomicU64::new(0), passing: AtomicU64::new(0) }) }
    }

    /// The limit in bytes; `None` is none.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        Some(self.ledger.limit).filter(|&limit| limit != u64::MAX)
    }

    /// Bytes charged at present.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.ledger.used.load(Ordering::Acquire)
    }

    /// Bytes that must become free before `needed` more fit.
    #[must_use]
    pub fn missing(&self, needed: u64) -> u64 {
        self.used().saturating_add(needed).saturating_sub(self.ledger.limit)
    }

    /// Whether `needed` bytes fit once the calls under way have ended.
    #[must_use]
    pub fn will_fit(&self, needed: u64) -> bool {
        let passing = self.ledger.passing.load(Ordering::Acquire);
        self.used().saturating_sub(passing).saturating_add(needed) <= self.ledger.limit
    }

    /// Takes `needed` bytes for `model`, unloading idle ones of `slots` if it has to: those of the lowest priority first,
    /// none that is not needed, and none at all when that would not free enough.
    ///
    /// # Errors
    /// [`Error::Budget`] when models in use, pinned or loading leave too little.
    pub fn make_room(&self, model: &str, needed: u64, slots: &[Arc<dyn Managed>]) -> Result<Charge> {
        // Another caller may take what was freed here; each round unloads something or ends.
        loop {
            if let Some(charge) = self.ledger.take(needed) {
                return Ok(charge);
            }
            let (limit, used) = (self.ledger.limit, self.used());
            let missing = used.saturating_add(needed).saturating_sub(limit);
            let idle = slots.iter().filter_map(|slot| Some((slot, slot.idle()?)));
            let victims = choose(holders(idle), missing).map_err(|evictable| Error::Budget {
                model: model.into(),
                needed,
                budget: limit,
                in_use: used.saturating_sub(evictable),
            })?;
            for (slot, idle) in victims {
                slot.unload_idle(&idle, UnloadReason::Evicted);
            }
        }
    }
}

/// Idle slots by the charge that they hold. Left out are slots without one, and those of a charge that others hold too:
/// to unload them would free nothing.
fn holders<S>(idle: impl Iterator<Item = (S, Idle)>) -> Vec<Holders<S>> {
    let mut all: Vec<Holders<S>> = Vec::new();
    for (slot, idle) in idle {
        let Some(charge) = idle.charge.filter(|charge| charge.bytes > 0) else { continue };
        match all.iter_mut().find(|holders| holders.charge.id == charge.id) {
            Some(holders) => {
                holders.slots.push((slot, idle));
                holders.charge = charge;
            }
            None => all.push(Holders { slots: vec![(slot, idle)], charge }),
        }
    }
    all.retain(|holders| holders.slots.len() >= holders.charge.holders);
    all
}

impl<S> Holders<S> {
    /// Of several, the lowest leaves first. A shared model is worth as much as to the slot that it is worth most to.
    fn order(&self) -> Option<(u64, Instant, u64)> {
        self.slots.iter().map(|(_, idle)| (idle.priority, idle.since, idle.period)).max()
    }
}

/// The models that are idle in all slots that have them, in the order in which they leave: for each, its slots.
pub fn in_leaving_order(slots: impl Iterator<Item = Arc<dyn Managed>>) -> Vec<Vec<(Arc<dyn Managed>, Idle)>> {
    let mut all = holders(slots.filter_map(|slot| slot.idle().map(|idle| (slot, idle))));
    all.sort_by_key(Holders::order);
    all.into_iter().map(|holders| holders.slots).collect()
}

/// The slots to unload for `missing` bytes, or how many bytes all of them would free when that is not enough.
fn choose<S>(mut idle: Vec<Holders<S>>, missing: u64) -> std::result::Result<Vec<(S, Idle)>, u64> {
    idle.sort_by_key(Holders::order);
    let mut freed = 0;
    let enough = idle.iter().position(|holders| {
        freed += holders.charge.bytes;
        freed >= missing
    });
    let Some(last) = enough else { return Err(freed) };
    idle.truncate(last + 1);
    // A large one at the end may make small ones before it unnecessary: keep the most recently used of them.
    for index in (0..idle.len()).rev() {
        if freed - idle[index].charge.bytes >= missing {
            freed -= idle[index].charge.bytes;
            idle.remove(index);
        }
    }
    Ok(idle.into_iter().flat_map(|holders| holders.slots).collect())
}

impl Ledger {
    fn take(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                used.checked_add(bytes).filter(|&used| used <= self.limit)
            })
            .ok()
            .map(|_| Charge { ledger: Arc::clone(self), bytes: AtomicU64::new(bytes), passing: false })
    }
}

impl Charge {
    /// Bytes charged.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// The same bytes, taken until a call ends.
    #[must_use]
    pub fn passing(mut self) -> Self {
        self.passing = true;
        self.ledger.passing.fetch_add(self.bytes(), Ordering::AcqRel);
        self
    }

    /// Gives back all but `bytes` bytes.
    pub fn shrink(&mut self, bytes: u64) {
        let before = self.bytes();
        if bytes < before {
            if self.passing {
                self.ledger.passing.fetch_sub(before - bytes, Ordering::AcqRel);
            }
            self.settle(bytes);
        }
    }

    /// Corrects the estimate to what the value really takes, even past the limit: it is in memory already.
    pub(super) fn settle(&self, bytes: u64) {
        let before = self.bytes.swap(bytes, Ordering::AcqRel);
        if bytes > before {
            self.ledger.used.fetch_add(bytes - before, Ordering::AcqRel);
        } else {
            self.ledger.used.fetch_sub(before - bytes, Ordering::AcqRel);
        }
    }

    /// The charge as one of its holders has it.
    pub(super) fn held(self: &Arc<Self>) -> HeldCharge {
        HeldCharge { bytes: self.bytes(), id: Arc::as_ptr(self) as usize, holders: Arc::strong_count(self) }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let bytes = self.bytes();
        if self.passing {
            self.ledger.passing.fetch_sub(bytes, Ordering::AcqRel);
        }
        self.ledger.used.fetch_sub(bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_ends_with_a_call_will_be_free() {
        let budget = Budget::new(Some(100));
        let _model = budget.make_room("m", 40, &[]).unwrap();
        let mut call = budget.make_room("m", 50, &[]).unwrap().passing();
        assert_eq!((budget.missing(10), budget.missing(25)), (0, 15));
        assert!(budget.will_fit(60) && !budget.will_fit(61));
        call.shrink(20);
        assert_eq!((budget.used(), budget.missing(60)), (60, 20));
        assert!(budget.will_fit(60) && !budget.will_fit(61));
        drop(call);
        assert_eq!((budget.used(), budget.missing(60)), (40, 0));
        assert!(budget.will_fit(60) && !budget.will_fit(61));
    }

    /// A slot used `age` seconds after `now`, which holds `bytes` of the charge `id` as one of `holders`.
    fn idle(now: Instant, age: u64, id: usize, bytes: u64, holders: usize) -> Idle {
        let since = now + Duration::from_secs(age);
        let charge = Some(HeldCharge { bytes, id, holders });
        Idle { since, keep_alive: None, charge, priority: 0, period: 0 }
    }

    proptest! {
        /// Enough, nothing unnecessary, and refused exactly when all of them together are too small.
        #[test]
        fn chooses_enough_and_nothing_needless(sizes in prop::collection::vec((0..5_u64, 1..20_u64), 0..8), missing in 1..60_u64) {
            let now = Instant::now();
            let idle = sizes.iter().enumerate().map(|(index, &(age, bytes))| (index, idle(now, age, index, bytes, 1)));
            let total: u64 = sizes.iter().map(|&(_, bytes)| bytes).sum();
            match choose(holders(idle), missing) {
                Err(all) => prop_assert!(all == total && total < missing),
                Ok(chosen) => {
                    let bytes = |idle: &Idle| idle.charge.map_or(0, |charge| charge.bytes);
                    let freed: u64 = chosen.iter().map(|(_, idle)| bytes(idle)).sum();
                    prop_assert!(freed >= missing);
                    for (_, idle) in &chosen {
                        prop_assert!(freed - bytes(idle) < missing);
                    }
                    // No slot is chosen while another one was used longer ago and is at least as large.
                    for (_, left) in &chosen {
                        for (index, &(age, size)) in sizes.iter().enumerate() {
                            let stayed = chosen.iter().all(|&(one, _)| one != index);
                            prop_assert!(!(stayed && now + Duration::from_secs(age) < left.since && size >= bytes(left)));
                        }
                    }
                }
            }
        }

        /// Slots of one model leave together or not at all, and its bytes count once.
        #[test]
        fn slots_of_one_model_leave_together(
            slots in prop::collection::vec((0..5_u64, 0..4_usize), 0..10), busy in 0..4_usize, missing in 1..60_u64,
        ) {
            let now = Instant::now();
            let bytes = |model: usize| 10 + model as u64;
            // One model has a holder more, which is in use.
            let count = |model: usize| slots.iter().filter(|&&(_, of)| of == model).count();
            let idle = slots.iter().enumerate().map(|(index, &(age, model))| {
                (index, idle(now, age, model, bytes(model), count(model) + usize::from(model == busy)))
            });
            let free: u64 = (0..4).filter(|&model| model != busy && count(model) > 0).map(bytes).sum();
            match choose(holders(idle), missing) {
                Err(all) => prop_assert!(all == free && free < missing),
                Ok(chosen) => {
                    let models: BTreeSet<usize> = chosen.iter().map(|&(index, _)| slots[index].1).collect();
                    prop_assert!(!models.contains(&busy));
                    prop_assert!(models.iter().map(|&model| bytes(model)).sum::<u64>() >= missing);
                    prop_assert_eq!(models.iter().map(|&model| count(model)).sum::<usize>(), chosen.len());
                }
            }
        }
    }
}
