//! Tiers below the memory: results outlive the process, and processes share them.
//!
//! ```text
//! memory ─ miss → disk ─ miss → redis ─ miss → compute
//!    ↑              ↑                            │
//!    └── a hit is copied to the tiers above ─────┴→ written behind, by one thread for each tier
//! ```
//! Look-ups in fast tiers run on the caller's thread, those in other tiers on threads of their own. A result's key has the
//! content of its model in it, so a model of another content never finds it. Whatever fails is a miss.

mod asking;
mod behind;
pub mod disk;
mod gate;
mod key;
mod record;
pub mod redis;
mod tier;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::item::CachedItem;
use super::key::KeyRef;
use crate::sync::{Work, Worker, WorkerThread};

pub use asking::{Asked, OnFound};
pub use behind::ModelContent;
use behind::{PendingWrite, WriteBehind};
use gate::AskingGate;
pub use key::{InputKey, TierKey};
pub use record::ValueFormat;
pub(crate) use record::stores;
pub use tier::{Tier, TierStatistics};

/// Threads that ask slow tiers.
const THREADS: usize = 4;

/// Which tiers take part in a call. By name; `None` is all of them.
pub type TierNames = Option<Arc<[String]>>;

/// All tiers below the memory, in the order in which they are asked.
pub struct Tiers {
    tiers: Vec<WriteBehind>,
    gate: AskingGate,
    asking: Worker<VecDeque<TierCall>>,
}

type TierCall = Box<dyn FnOnce() + Send>;

impl Tiers {
    /// These tiers, the fastest first.
    #[must_use]
    pub fn new(tiers: Vec<Arc<dyn Tier>>) -> Self {
        Self {
            tiers: tiers.into_iter().map(WriteBehind::new).collect(),
            gate: AskingGate::default(),
            asking: Worker::with_threads("cache-asking", THREADS, Arc::new(TierAsker)),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tiers.is_empty()
    }

    /// The key of an input. The model's content is added when it is known.
    #[must_use]
    pub fn key(key: &KeyRef<'_>) -> InputKey {
        InputKey::of(key)
    }

    /// Looks for results and calls `on_found` with them, in the order of `keys`: on this thread when fast tiers answer, else
    /// on another one. The result is to be watched: [`Asked::expire`] ends the waiting at the time that comes with it.
    pub fn ask(
        self: &Arc<Self>,
        keys: Vec<TierKey>,
        names: &TierNames,
        on_found: OnFound,
    ) -> Option<(Instant, Arc<Asked>)> {
        let mut found = vec![None; keys.len()];
        self.search(&keys, &mut found, names, true);
        let missing = found.iter().filter(|found| found.is_none()).count();
        let slow: Vec<_> = self.named(names).filter(|tier| !tier.tier().is_fast()).collect();
        if missing == 0 || slow.is_empty() {
            on_found(found);
            return None;
        }
        if !(slow.iter().any(|tier| tier.tier().is_working()) && self.gate.is_open()) {
            slow.iter().for_each(|tier| tier::TierCounts::add(&tier.tier().counts().skipped, missing));
            on_found(found);
            return None;
        }
        let asked = Arc::new(Asked::new(found.clone(), on_found));
        let (this, names, call) = (Arc::clone(self), names.clone(), Arc::clone(&asked));
        let patience = slow.iter().map(|tier| tier.tier().patience(missing)).sum();
        let queued = Instant::now();
        let search = Box::new(move || {
            let started = Instant::now();
            if call.is_over() {
                // All threads were busy for so long that the caller no longer waits for the answer.
                this.gate.asked(missing, 0, queued.elapsed());
                return;
            }
            this.search(&keys, &mut found, &names, false);
            let left = found.iter().filter(|found| found.is_none()).count();
            let in_time = call.finish(found);
            this.gate.asked(missing, if in_time { missing - left } else { 0 }, started.elapsed());
        });
        if self.asking.with(|calls| calls.push_back(search)).is_err() {
            asked.expire();
            return None;
        }
        Some((queued + patience, asked))
    }

    /// Asks tiers in turn for what is missing, and copies what one has to those above it.
    fn search(&self, keys: &[TierKey], found: &mut [Option<CachedItem>], names: &TierNames, fast: bool) {
        for (place, tier) in self.tiers.iter().enumerate() {
            if tier.tier().is_fast() != fast || !is_named(tier, names) {
                continue;
            }
            let places: Vec<usize> = (0..keys.len()).filter(|at| found[*at].is_none()).collect();
            let asked: Vec<TierKey> = places.iter().map(|at| keys[*at]).collect();
            if asked.is_empty() {
                return;
            }
            let mut copies = Vec::new();
            for (at, item) in places.into_iter().zip(tier.tier().get(&asked)) {
                let Some(item) = item else { continue };
                copies.push((keys[at], item.clone()));
                found[at] = Some(item);
            }
            for above in self.tiers[..place].iter().filter(|above| is_named(above, names)) {
                above.copy(&copies);
            }
        }
    }

    /// Stores a computed result in all tiers, some time later.
    pub fn put(&self, entries: &[(InputKey, CachedItem)], model: &ModelContent, names: &TierNames) {
        for tier in self.named(names) {
            tier.push(entries.iter().map(|(key, item)| PendingWrite {
                key: *key,
                model: model.clone(),
                item: item.clone(),
            }));
        }
    }

    /// `results` were computed, which took so long: asking must be faster.
    pub fn computed(&self, results: usize, took: Duration) {
        self.gate.computed(results, took);
    }

    /// Removes what all tiers hold, and what is on its way to them. Results of calls under way are stored later. Returns the
    /// places that could not be emptied, each with the reason.
    pub fn clear(&self) -> Vec<(String, String)> {
        // The lowest first: what it has is copied to those above.
        self.tiers.iter().rev().flat_map(WriteBehind::clear).collect()
    }

    /// Asks all servers now: their addresses without passwords, and whether they answer.
    #[must_use]
    pub fn probe(&self) -> Vec<(String, bool)> {
        self.tiers.iter().flat_map(|tier| tier.tier().probe()).collect()
    }

    /// What each has done.
    #[must_use]
    pub fn statistics(&self) -> Vec<TierStatistics> {
        self.tiers.iter().map(|tier| TierStatistics::of(&**tier.tier())).collect()
    }

    /// Waits until everything that is queued is stored in all tiers, until `until` at most. True when it is.
    pub fn flush(&self, until: Instant) -> bool {
        self.tiers.iter().all(|tier| tier.flush(until, true))
    }

    /// Stores what is queued, within a second, and ends the threads.
    pub fn close(&self) {
        self.tiers.iter().for_each(WriteBehind::close);
        self.asking.stop();
    }

    fn named(&self, names: &TierNames) -> impl Iterator<Item = &WriteBehind> {
        self.tiers.iter().filter(move |tier| is_named(tier, names))
    }
}

fn is_named(tier: &WriteBehind, names: &TierNames) -> bool {
    names.as_ref().is_none_or(|names| names.iter().any(|name| name == tier.tier().name()))
}

struct TierAsker;

impl Work<VecDeque<TierCall>> for TierAsker {
    fn fresh(&self) -> VecDeque<TierCall> {
        VecDeque::new()
    }

    fn run(&self, thread: &WorkerThread<'_, VecDeque<TierCall>>) {
        let mut calls = thread.lock();
        while !calls.is_stopping() {
            match calls.pop_front() {
                Some(call) => {
                    drop(calls);
                    // The panic hook reports; the caller is answered when its time is over.
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
                    calls = thread.lock();
                }
                None => calls = calls.wait(),
            }
        }
    }
}
