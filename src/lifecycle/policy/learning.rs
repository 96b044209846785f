//! The adaptive policies of all slots: what they share, and what is saved of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::adaptive::{AdaptivePolicy, AdaptiveSettings, Explanation, LoadAhead, LoadReason};
use super::pressure::MemoryPressure;
use super::saved::{SavedHabits, SlotHabits};
use super::successors::Successors;
use crate::clock::Clock;
use crate::sync::Mutex;

/// How often what was learned is saved.
const SAVE_EVERY: Duration = Duration::from_secs(600);

/// Slots, and how likely each is.
pub type Probabilities = Vec<(Arc<str>, f64)>;

/// What all adaptive slots of a manager share. Nothing is read or written before the first of them exists.
pub struct Learning {
    clock: Clock,
    settings: Mutex<AdaptiveSettings>,
    folder: Option<PathBuf>,
    saved: OnceLock<Option<SavedHabits>>,
    pressure: Arc<MemoryPressure>,
    successors: Successors,
    policies: Mutex<BTreeMap<Arc<str>, SlotPolicy>>,
    saved_at: Mutex<Instant>,
}

/// The policy of a slot that is, or was, adaptive.
#[derive(Clone)]
struct SlotPolicy {
    policy: Arc<AdaptivePolicy>,
    /// The slot's own price of a load.
    price: Option<Duration>,
    /// The slot is adaptive now. Others are kept for what was learned.
    applies: bool,
}

impl Learning {
    /// `folder` is where habits are saved; `None`: nowhere.
    pub fn new(clock: Clock, settings: AdaptiveSettings, folder: Option<PathBuf>) -> Self {
        Self {
            saved_at: Mutex::new(clock.now()),
            clock,
            settings: Mutex::new(settings),
            folder,
            saved: OnceLock::new(),
            pressure: Arc::default(),
            successors: Successors::default(),
            policies: Mutex::default(),
        }
    }

    /// The policy of a slot that is adaptive from now on: a new one, or that which it had. `price` replaces the usual one.
    pub fn policy(&self, slot: &str, price: Option<Duration>) -> Arc<AdaptivePolicy> {
        let open = || self.folder.as_deref().map(SavedHabits::open);
        let saved = self.saved.get_or_init(open);
        let settings = *self.settings.lock();
        let mut policies = self.policies.lock();
        if let Some(known) = policies.get_mut(slot) {
            known.policy.set(settings.usual, price.unwrap_or(settings.price));
            (known.price, known.applies) = (price, true);
            return Arc::clone(&known.policy);
        }
        let learned = saved.as_ref().map(|saved| saved.learned(slot)).unwrap_or_default();
        let own = AdaptiveSettings { price: price.unwrap_or(settings.price), ..settings };
        let pressure = Arc::clone(&self.pressure);
        let policy = Arc::new(AdaptivePolicy::new(self.clock.clone(), own, pressure, learned));
        policies.insert(slot.into(), SlotPolicy { policy: Arc::clone(&policy), price, applies: true });
        policy
    }

    /// The slot is not adaptive any more. What was learned of it is saved, and applies when it is again.
    pub fn end(&self, slot: &str) {
        let mut policies = self.policies.lock();
        if let Some(known) = policies.get_mut(slot) {
            known.applies = false;
            if known.policy.habits() == SlotHabits::default() {
                policies.remove(slot);
            }
        }
    }

    /// How long models stay after a use while little is known.
    pub fn set_usual(&self, usual: Duration) {
        let settings = {
            let mut settings = self.settings.lock();
            settings.usual = usual;
            *settings
        };
        let policies = self.policies.lock().clone();
        for SlotPolicy { policy, price, .. } in policies.values() {
            policy.set(usual, price.unwrap_or(settings.price));
        }
    }

    /// The policies that apply.
    fn applying(&self) -> BTreeMap<Arc<str>, Arc<AdaptivePolicy>> {
        let policies = self.policies.lock();
        let applying = policies.iter().filter(|(_, known)| known.applies);
        applying.map(|(slot, known)| (Arc::clone(slot), Arc::clone(&known.policy))).collect()
    }

    /// Whether any slot is adaptive.
    pub fn is_active(&self) -> bool {
        self.policies.lock().values().any(|known| known.applies)
    }

    /// How many seconds in memory a load is worth.
    fn price(&self) -> Duration {
        self.settings.lock().price
    }

    /// Whether the system is short of memory.
    pub fn pressure(&self) -> &MemoryPressure {
        &self.pressure
    }

    /// `slot` is used now: slots that usually follow are expected. True when there are any.
    pub fn used(&self, slot: &str, user: Option<&str>) -> bool {
        if !self.is_active() {
            return false;
        }
        let policies = self.applying();
        let slot = policies.get_key_value(slot).map_or_else(|| slot.into(), |(name, _)| Arc::clone(name));
        let (now, price) = (self.clock.now(), self.price());
        let next = self.successors.used(&slot, user, now, price.as_secs_f64());
        let expected: Vec<_> = next.iter().filter_map(|slot| policies.get(slot)).collect();
        expected.iter().for_each(|policy| policy.expect(LoadReason::Successor, now));
        !expected.is_empty()
    }

    /// The host says that `slot` will be needed, on behalf of `user`: it is expected, and slots that usually follow are.
    /// False when it is not adaptive.
    pub fn hint(&self, slot: &str, user: Option<&str>) -> bool {
        let policies = self.applying();
        let Some(policy) = policies.get(slot) else { return false };
        let now = self.clock.now();
        policy.expect(LoadReason::Hint, now);
        let next = self.successors.announced(slot, user, self.price().as_secs_f64());
        let followers = next.iter().filter_map(|slot| policies.get(slot));
        followers.for_each(|policy| policy.expect(LoadReason::Successor, now));
        true
    }

    /// What the policy of a slot knows and does, and which slots follow; `None` for a slot that is not adaptive.
    pub fn explain(&self, slot: &str) -> Option<(Explanation, Probabilities)> {
        let policy = self.applying().remove(slot)?;
        Some((policy.explain(), self.successors.of(slot)))
    }

    /// The loads ahead that are planned, the next first; and the present moment.
    pub fn forecast(&self) -> (Instant, Vec<(Arc<str>, LoadAhead)>) {
        let now = self.clock.now();
        let mut next: Vec<_> = self
            .applying()
            .into_iter()
            .filter_map(|(slot, policy)| Some((slot, policy.next(now)?)))
            .collect();
        next.sort_by_key(|(_, next)| next.at);
        (now, next)
    }

    /// Saves what was learned, if that was not done in the last ten minutes.
    pub fn save_if_due(&self) {
        let now = self.clock.now();
        {
            let mut saved_at = self.saved_at.lock();
            if now.saturating_duration_since(*saved_at) < SAVE_EVERY {
                return;
            }
            *saved_at = now;
        }
        self.save();
    }

    /// Saves what was learned. What cannot be saved is forgotten at the end of the process.
    pub fn save(&self) {
        let Some(Some(saved)) = self.saved.get() else { return };
        let policies = self.policies.lock().clone();
        let habits: BTreeMap<_, _> =
            policies.iter().map(|(slot, known)| (slot.to_string(), known.policy.habits())).collect();
        if habits.values().all(|habits| *habits == Default::default()) {
            return;
        }
        if let Err(error) = saved.save(&habits) {
            saved.warn(&error);
        }
    }
}
