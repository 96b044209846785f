//! How much memory models may take together, and which are unloaded when another one needs memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::managed::{Idle, Managed, Why};
use crate::{Error, Result};

/// The memory that all models of a manager may take. A cheap-clone handle: clones are the same budget.
///
/// A loader takes a [`Charge`] before it loads, and puts it into [`super::Loaded`]. The charge lives as long as the value:
/// models that are loading, and models that are unloaded but still leased, are counted too.
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
    bytes: u64,
    passing: bool,
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
            let mut idle: Vec<_> = slots.iter().filter_map(|slot| Some((slot, slot.idle()?))).collect();
            idle.retain(|(_, idle)| idle.charged > 0);
            let victims = choose(idle, missing).map_err(|evictable| Error::Budget {
                model: model.into(),
                needed,
                budget: limit,
                in_use: used.saturating_sub(evictable),
            })?;
            for (slot, idle) in victims {
                slot.unload_idle(&idle, Why::Evicted);
            }
        }
    }
}

/// The slots to unload for `missing` bytes, or how many bytes all of them would free when that is not enough.
fn choose<S>(mut idle: Vec<(S, Idle)>, missing: u64) -> std::result::Result<Vec<(S, Idle)>, u64> {
    idle.sort_by_key(|(_, idle)| (idle.priority, idle.since, idle.period));
    let mut freed = 0;
    let enough = idle.iter().position(|(_, idle)| {
        freed += idle.charged;
        freed >= missing
    });
    let Some(last) = enough else { return Err(freed) };
    idle.truncate(last + 1);
    // A large one at the end may make small ones before it unnecessary: keep the most recently used of them.
    for index in (0..idle.len()).rev() {
        if freed - idle[index].1.charged >= missing {
            freed -= idle[index].1.charged;
            idle.remove(index);
        }
    }
    Ok(idle)
}

impl Ledger {
    fn take(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                used.checked_add(bytes).filter(|&used| used <= self.limit)
            })
            .ok()
            .map(|_| Charge { ledger: Arc::clone(self), bytes, passing: false })
    }
}

impl Charge {
    /// Bytes charged.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The same bytes, taken until a call ends.
    #[must_use]
    pub fn passing(mut self) -> Self {
        self.passing = true;
        self.ledger.passing.fetch_add(self.bytes, Ordering::AcqRel);
        self
    }

    /// Gives back all but `bytes` bytes.
    pub fn shrink(&mut self, bytes: u64) {
        if bytes < self.bytes {
            if self.passing {
                self.ledger.passing.fetch_sub(self.bytes - bytes, Ordering::AcqRel);
            }
            self.settle(bytes);
        }
    }

    /// Corrects the estimate to what the value really takes, even past the limit: it is in memory already.
    pub(super) fn settle(&mut self, bytes: u64) {
        if bytes > self.bytes {
            self.ledger.used.fetch_add(bytes - self.bytes, Ordering::AcqRel);
        } else {
            self.ledger.used.fetch_sub(self.bytes - bytes, Ordering::AcqRel);
        }
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.passing {
            self.ledger.passing.fetch_sub(self.bytes, Ordering::AcqRel);
        }
        self.ledger.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

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

    proptest! {
        /// Enough, nothing unnecessary, and refused exactly when all of them together are too small.
        #[test]
        fn chooses_enough_and_nothing_needless(sizes in prop::collection::vec((0..5_u64, 1..20_u64), 0..8), missing in 1..60_u64) {
            let now = Instant::now();
            let idle: Vec<_> = sizes.iter().enumerate().map(|(index, &(age, charged))| {
                let since = now + Duration::from_secs(age);
                (index, Idle { since, keep_alive: None, charged, priority: 0, period: 0 })
            }).collect();
            let total: u64 = sizes.iter().map(|&(_, charged)| charged).sum();
            match choose(idle, missing) {
                Err(all) => prop_assert!(all == total && total < missing),
                Ok(chosen) => {
                    let freed: u64 = chosen.iter().map(|(_, idle)| idle.charged).sum();
                    prop_assert!(freed >= missing);
                    for (_, idle) in &chosen {
                        prop_assert!(freed - idle.charged < missing);
                    }
                    // No slot is chosen while another one was used longer ago and is at least as large.
                    for (_, left) in &chosen {
                        for (index, &(age, charged)) in sizes.iter().enumerate() {
                            let stayed = chosen.iter().all(|&(one, _)| one != index);
                            prop_assert!(!(stayed && now + Duration::from_secs(age) < left.since && charged >= left.charged));
                        }
                    }
                }
            }
        }
    }
}
