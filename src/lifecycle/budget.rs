//! How much memory models may take together, and which are unloaded when another one needs memory.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::managed::{HeldCharge, Idle, Managed, UnloadReason};
use crate::sync::Mutex;
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

struct Ledger {
    /// `u64::MAX` is none.
    limit: u64,
    used: AtomicU64,
    /// Of those, bytes that become free when the calls under way end.
    passing: AtomicU64,
    lent: Mutex<Vec<Arc<LentMemory>>>,
}

/// Frees up to so many bytes that are charged and that no call needs. Returns how many; `None` when it has ended.
type LentMemory = dyn Fn(u64) -> Option<u64> + Send + Sync;

/// Bytes taken out of a budget; dropping gives them back.
#[derive(Debug)]
pub struct Charge {
    ledger: Arc<Ledger>,
    bytes: AtomicU64,
    passing: bool,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("limit", &self.limit).field("used", &self.used).finish_non_exhaustive()
    }
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
        let (used, passing, lent) = Default::default();
        Self { ledger: Arc::new(Ledger { limit, used, passing, lent }) }
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

    /// `reclaim` is asked for memory before a slot is unloaded: it frees up to so many bytes that are charged and that
    /// no call needs, returns how many, and `None` when it has ended.
    pub fn lend(&self, reclaim: impl Fn(u64) -> Option<u64> + Send + Sync + 'static) {
        // Those that have ended are forgotten.
        self.reclaim(0);
        self.ledger.lent.lock().push(Arc::new(reclaim));
    }

    /// Frees up to `bytes` bytes of what was lent. Returns how many.
    fn reclaim(&self, bytes: u64) -> u64 {
        // Not under the lock: it takes the locks of others.
        let lent = self.ledger.lent.lock().clone();
        let mut freed = 0;
        for reclaim in lent {
            match reclaim(bytes.saturating_sub(freed)) {
                Some(more) => freed += more,
                None => self.ledger.lent.lock().retain(|other| !Arc::ptr_eq(other, &reclaim)),
            }
        }
        freed
    }

    /// Whether `needed` bytes fit once the calls under way have ended.
    #[must_use]
    pub fn will_fit(&self, needed: u64) -> bool {
        let passing = self.ledger.passing.load(Ordering::Acquire);
        self.used().saturating_sub(passing).saturating_add(needed) <= self.ledger.limit
    }

    /// Takes `needed` bytes for `model` that are free already.
    ///
    /// # Errors
    /// [`Error::Budget`] when there are too few.
    pub fn take(&self, model: &str, needed: u64) -> Result<Charge> {
        self.ledger.take(needed).ok_or_else(|| self.short(model, needed, self.used()))
    }

    fn short(&self, model: &str, needed: u64, in_use: u64) -> Error {
        Error::Budget { model: model.into(), needed, budget: self.ledger.limit, in_use }
    }

    /// Takes `needed` bytes for `model`. What was lent is freed if it has to be, then idle ones of `slots` are unloaded:
    /// those of the lowest priority first, none that is not needed, and none at all when that would not free enough.
    ///
    /// # Errors
    /// [`Error::Budget`] when models in use, pinned or loading leave too little.
    pub fn make_room(&self, model: &str, needed: u64, slots: &[Arc<dyn Managed>]) -> Result<Charge> {
        // Another caller may take what was freed here; each round frees something or ends.
        loop {
            if let Some(charge) = self.ledger.take(needed) {
                return Ok(charge);
            }
            let (limit, used) = (self.ledger.limit, self.used());
            let missing = used.saturating_add(needed).saturating_sub(limit);
            if self.reclaim(missing) > 0 {
                continue;
            }
            let idle = slots.iter().filter_map(|slot| Some((slot, slot.idle()?)));
            let victims = choose(holders(idle), missing)
                .map_err(|evictable| self.short(model, needed, used.saturating_sub(evictable)))?;
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
        assert!(budget.take("m", 10).is_ok() && budget.take("m", 25).is_err());
        assert!(budget.will_fit(60) && !budget.will_fit(61));
        call.shrink(20);
        assert_eq!(budget.used(), 60);
        assert!(budget.will_fit(60) && !budget.will_fit(61));
        drop(call);
        assert_eq!(budget.used(), 40);
        assert!(budget.take("m", 60).is_ok());
        assert!(budget.will_fit(60) && !budget.will_fit(61));
    }

    /// Memory that is lent counts as used, and is given back before a call is refused.
    #[test]
    fn what_is_lent_makes_room() {
        let budget = Budget::new(Some(100));
        let kept = Arc::new(Mutex::new(vec![budget.take("m", 30).unwrap(), budget.take("m", 40).unwrap()]));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (lent, log) = (Arc::downgrade(&kept), Arc::clone(&asked));
        budget.lend(move |bytes| {
            let kept = lent.upgrade()?;
            log.lock().push(bytes);
            let mut freed = 0;
            while freed < bytes
                && let Some(charge) = kept.lock().pop()
            {
                freed += charge.bytes();
            }
            Some(freed)
        });
        assert!(budget.take("m", 50).is_err(), "it takes what is free alone");
        let first = budget.make_room("m", 50, &[]).unwrap();
        assert_eq!((budget.used(), kept.lock().len()), (80, 1));
        let error = budget.make_room("m", 60, &[]).unwrap_err();
        assert!(matches!(error, Error::Budget { in_use: 50, .. }), "{error}");
        assert_eq!(*asked.lock(), [20, 40, 10], "so many bytes are missing");
        drop((first, kept));
        budget.lend(|_| Some(0));
        assert_eq!(budget.ledger.lent.lock().len(), 1, "what has ended is forgotten");
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
