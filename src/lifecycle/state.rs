//! A slot's state and its transitions. Every method takes the slot's lock briefly. Side effects (threads, destructors,
//! continuations, statistics, log records) happen only after it is released.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::ahead::loading_ahead;
use super::caller::caller;
use super::context::Context;
use super::keep_alive::KeepAlive;
use super::lease::{Continuation, Lease, LeaseCounter};
use super::managed::{Idle, Managed, SlotOptions, State, Status, UnloadReason};
use super::memory::megabytes;
use super::phase::{AcquireStep, Flight, LockedSlot, Phase, Ready, longer};
use super::policy::AdaptivePolicy;
use super::residency::{Loaded, Residency};
use super::tracker::Record;
use super::wait_graph::GraphedWait;
use crate::size::size_text;
use crate::sync::{Mutex, spawn, thread};
use crate::{Error, Result};

pub(super) type Loader<T> = dyn Fn() -> Result<Loaded<T>> + Send + Sync;

/// What the clones of a slot and its leases share.
pub(super) struct SlotState<T: ?Sized + Send + Sync + 'static> {
    name: Arc<str>,
    loader: Arc<Loader<T>>,
    context: Context,
    record: Arc<Record>,
    /// Decides the stay where nothing else does.
    policy: Option<Arc<AdaptivePolicy>>,
    /// Itself.
    own: Weak<Self>,
    inner: Mutex<LockedSlot<T>>,
}

impl<T: ?Sized + Send + Sync + 'static> SlotState<T> {
    pub(super) fn new(
        name: Arc<str>,
        options: SlotOptions,
        context: Context,
        policy: Option<Arc<AdaptivePolicy>>,
        loader: Arc<Loader<T>>,
    ) -> Arc<Self> {
        let record = context.tracker.record(&name);
        let shared = Arc::new_cyclic(|own: &Weak<Self>| {
            let inner = Mutex::new(LockedSlot::new(options));
            Self { name, loader, context, record, policy, own: Weak::clone(own), inner }
        });
        let managed: Arc<dyn Managed> = Arc::<Self>::clone(&shared);
        shared.context.reaper.watch(&managed);
        if shared.policy.is_some() {
            // Earlier processes may have learned when it is used.
            shared.context.reaper.reconsider();
        }
        shared
    }

    /// How long the value stays where neither the slot's options nor a use say it.
    fn default_keep_alive(&self) -> KeepAlive {
        match &self.policy {
            Some(policy) => KeepAlive::For(policy.stay()),
            None => self.context.reaper.default_keep_alive(),
        }
    }

    /// A use begins.
    fn begins(&self, now: Instant, resident: bool) {
        if let Some(policy) = &self.policy {
            policy.begins(now, resident);
        }
    }

    /// The value with a lease counted, if it is ready.
    pub(super) fn take_ready(&self) -> Option<Arc<Residency<T>>> {
        let (residency, first) = {
            let mut inner = self.inner.lock();
            let Phase::Ready(ready) = &mut inner.phase else { return None };
            ready.count_lease();
            (Arc::clone(&ready.residency), ready.leases == 1)
        };
        let now = self.context.clock.now();
        self.context.tracker.accessed(&self.record, now);
        if first {
            self.begins(now, true);
        }
        Some(residency)
    }

    /// The value if it is ready, without a lease. Does not count as a use.
    pub(super) fn residency(&self) -> Option<Arc<Residency<T>>> {
        match &self.inner.lock().phase {
            Phase::Ready(ready) => Some(Arc::clone(&ready.residency)),
            Phase::Absent | Phase::Loading(_) => None,
        }
    }

    /// Asks for the value. `done` is returned unless it now waits for a load.
    pub(super) fn join(&self, done: Continuation<T>) -> AcquireStep<T> {
        let now = self.context.clock.now();
        self.context.tracker.accessed(&self.record, now);
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let own_load = matches!(&inner.phase, Phase::Loading(flight) if flight.thread == Some(caller()));
        if !own_load {
            // The policy's lock is a leaf: nothing is locked under it.
            self.begins(now, matches!(inner.phase, Phase::Ready(_)));
        }
        match &mut inner.phase {
            Phase::Ready(ready) => {
                ready.count_lease();
                AcquireStep::Take(Arc::clone(&ready.residency), done)
            }
            Phase::Loading(flight) if flight.thread == Some(caller()) => AcquireStep::Refuse(done),
            Phase::Loading(flight) => {
                flight.waiters.push(done);
                AcquireStep::Wait
            }
            Phase::Absent => {
                inner.arrivals += 1;
                let id = inner.arrivals;
                inner.phase = Phase::Loading(Flight { id, thread: None, waiters: vec![done], ahead: None });
                AcquireStep::Start(id)
            }
        }
    }

    /// Starts the thread of load `id`.
    pub(super) fn start(self: &Arc<Self>, id: u64) {
        let shared = Arc::clone(self);
        if let Err(error) = spawn(&format!("load-{}", self.name), move || shared.load(id)) {
            let reason = format!("no thread could be started for it: {error}");
            self.land(id, Err(Error::loader(&self.name, reason)));
        }
    }

    fn load(self: &Arc<Self>, id: u64) {
        let mut ahead = false;
        if let Some(flight) = self.inner.lock().flight_mut(id) {
            flight.thread = Some(thread::current().id());
            ahead = flight.ahead.is_some();
        }
        let resident_before = self.context.memory.resident();
        let started = self.context.clock.now();
        let loading = self.context.wait_graph.load(thread::current().id(), &self.name);
        let load = || if ahead { loading_ahead(|| (self.loader)()) } else { (self.loader)() };
        let outcome = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|payload| {
            Err(Error::panic(format!("the loader of {:?}", self.name), payload.as_ref()))
        });
        drop(loading);
        let outcome = outcome.map(|mut loaded| {
            let seconds = (self.context.clock.now() - started).as_secs_f64();
            if loaded.bytes == 0 {
                loaded.bytes = self.context.memory.resident().saturating_sub(resident_before);
            }
            self.record.loaded(seconds, megabytes(loaded.bytes));
            if let Some(policy) = &self.policy {
                policy.loaded(seconds);
            }
            {
                let mut inner = self.inner.lock();
                (inner.uses, inner.load_seconds) = (0, seconds);
            }
            log::info!("loaded {:?} in {seconds:.2} s, {}", self.name, size_text(loaded.bytes));
            Arc::new(self.residency_of(id, loaded))
        });
        self.land(id, outcome);
    }

    /// The caller waits for this slot until the value is dropped.
    ///
    /// # Errors
    /// [`Error::Loader`] when the caller is a load that this slot's load waits for.
    pub(super) fn waits(&self) -> Result<Option<GraphedWait<'_>>> {
        self.context.wait_graph.wait(&self.name).map_err(|path| {
            let path: Vec<_> = path.iter().map(|slot| format!("{slot:?}")).collect();
            let reason = format!("loaders wait for each other: {}", path.join(" needs "));
            Error::loader(&self.name, reason)
        })
    }

    /// Ends load `id`: the slot takes the value unless it has detached the load, and each waiting caller gets a lease.
    fn land(self: &Arc<Self>, id: u64, outcome: Result<Arc<Residency<T>>>) {
        let now = self.context.clock.now();
        let mut again = None;
        let (waiters, attached, ahead) = {
            let mut guard = self.inner.lock();
            let inner = &mut *guard;
            let Some((mut flight, attached)) = inner.take_flight(id) else { return };
            // Only those that still wait make it a load ahead of no use.
            let ahead = flight.ahead.filter(|_| flight.waiters.is_empty());
            if attached && outcome.is_err() && flight.ahead.is_some() && ahead.is_none() {
                // It had to do without the memory of others. A caller has come meanwhile, for whom it need not.
                inner.arrivals += 1;
                again = Some(inner.arrivals);
                let waiters = std::mem::take(&mut flight.waiters);
                let flight = Flight { id: inner.arrivals, thread: None, waiters, ahead: None };
                inner.phase = Phase::Loading(flight);
            } else if attached {
                if ahead.is_none() || outcome.is_ok() {
                    inner.last_error = outcome.as_ref().err().cloned();
                }
                if let Ok(residency) = &outcome {
                    inner.last_used = Some(now);
                    // Every waiter's lease counts from here: the slot is not idle before they have it.
                    let leases = flight.waiters.len();
                    let stay = |until: Instant| KeepAlive::For(until.saturating_duration_since(now));
                    let keep_alive = Some(ahead.map_or(KeepAlive::AFTER_USE, stay));
                    inner.idle_periods += u64::from(ahead.is_some());
                    inner.phase = Phase::Ready(Ready::new(Arc::clone(residency), leases, keep_alive));
                }
            }
            (flight.waiters, attached, ahead)
        };
        if let Some(id) = again {
            if let Some(own) = self.own.upgrade() {
                own.start(id);
            }
            return;
        }
        if let (Err(error), Some(_)) = (&outcome, ahead) {
            // No caller gets it.
            log::warn!("{:?} was not loaded ahead of its use: {error}", self.name);
        }
        if let Some(policy) = &self.policy {
            match (&outcome, ahead) {
                (Ok(_), Some(_)) if attached => policy.loaded_ahead(now),
                (Ok(_), None) if attached => policy.arrived(now),
                (Err(_), None) => policy.ends(now),
                _ => {}
            }
        }
        if let (true, Ok(_), Some(until)) = (attached, &outcome, ahead) {
            self.context.reaper.expect(until);
        }
        if !attached && outcome.is_ok() {
            self.record.unloaded();
        }
        let deliveries: Vec<_> = waiters
            .into_iter()
            .map(|done| {
                let lease = outcome.clone().map(|residency| Lease::new(Arc::<Self>::clone(self), residency));
                (done, lease)
            })
            .collect();
        // From here on only leases own the value, so that the slot is idle when they are dropped.
        drop(outcome);
        for (done, lease) in deliveries {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| done(lease))) {
                // The other callers still get theirs.
                let error = Error::panic(format!("a caller waiting for {:?}", self.name), payload.as_ref());
                log::error!("{error}");
            }
        }
    }

    /// Makes an absent slot ready with a value that exists already.
    pub(super) fn adopt(&self, loaded: Loaded<T>) -> std::result::Result<(), Loaded<T>> {
        let now = self.context.clock.now();
        let deadline = {
            let mut inner = self.inner.lock();
            if !matches!(inner.phase, Phase::Absent) {
                return Err(loaded);
            }
            let keep_alive = inner.options.keep_alive;
            inner.arrivals += 1;
            let residency = Arc::new(self.residency_of(inner.arrivals, loaded));
            inner.phase = Phase::Ready(Ready::new(residency, 0, keep_alive));
            inner.last_used = Some(now);
            inner.idle_periods += 1;
            keep_alive.unwrap_or(self.default_keep_alive()).deadline(now)
        };
        if let Some(policy) = &self.policy {
            policy.arrived(now);
        }
        if let Some(deadline) = deadline {
            self.context.reaper.expect(deadline);
        }
        Ok(())
    }

    fn residency_of(&self, id: u64, loaded: Loaded<T>) -> Residency<T> {
        Residency::new(&self.name, id, loaded, &self.record, &self.context.memory)
    }

    /// A value has left the slot: counts it, then drops it.
    fn left(&self, why: &str, residency: Arc<Residency<T>>) {
        self.record.unloaded();
        if let Some(policy) = &self.policy {
            policy.left(self.context.clock.now());
        }
        log::info!("unloaded {:?} {why}", self.name);
        drop(residency);
    }
}

/// A slot that was replaced while it was absent may load once more, for a caller that had it already. That value leaves with
/// the slot.
impl<T: ?Sized + Send + Sync + 'static> Drop for SlotState<T> {
    fn drop(&mut self) {
        if let Phase::Ready(_) = self.inner.get_mut().phase {
            self.record.unloaded();
            if let Some(policy) = &self.policy {
                policy.left(self.context.clock.now());
            }
        }
    }
}

impl<T: ?Sized + Send + Sync + 'static> LeaseCounter for SlotState<T> {
    fn name(&self) -> &str {
        &self.name
    }

    fn lease_again(&self, residency: u64, keep_alive: Option<KeepAlive>) {
        if let Phase::Ready(ready) = &mut self.inner.lock().phase
            && ready.residency.id == residency
        {
            ready.leases += 1;
            ready.own += usize::from(keep_alive.is_some());
        }
    }

    fn keeps(&self, residency: u64, keep_alive: KeepAlive, is_first: bool) {
        if let Phase::Ready(ready) = &mut self.inner.lock().phase
            && ready.residency.id == residency
        {
            ready.own += usize::from(is_first);
            ready.longest_own = ready.longest_own.max(keep_alive);
        }
    }

    fn release(&self, residency: u64, keep_alive: Option<KeepAlive>) {
        let now = self.context.clock.now();
        let default = self.default_keep_alive();
        let (deadline, gone) = {
            let mut guard = self.inner.lock();
            let inner = &mut *guard;
            let Phase::Ready(ready) = &mut inner.phase else { return };
            if ready.residency.id != residency {
                return;
            }
            ready.keep_alive = longer(ready.keep_alive, keep_alive.or(inner.options.keep_alive), default);
            ready.leases -= 1;
            ready.own -= usize::from(keep_alive.is_some());
            if ready.leases > 0 {
                return;
            }
            let idle_for = ready.keep_alive.unwrap_or(default);
            if let Some(policy) = &self.policy {
                policy.ends(now);
            }
            let bytes = ready.residency.bytes();
            inner.last_used = Some(now);
            inner.idle_periods += 1;
            inner.uses += 1;
            inner.priority = self.context.eviction.priority(inner.uses, inner.load_seconds, bytes);
            if inner.options.pinned {
                return;
            }
            let gone = if idle_for == KeepAlive::AFTER_USE { inner.take_value() } else { None };
            (idle_for.deadline(now), gone)
        };
        match (gone, deadline) {
            (Some(gone), _) => self.left("after its use", gone),
            (None, Some(deadline)) => self.context.reaper.expect(deadline),
            (None, None) => {}
        }
    }
}

impl<T: ?Sized + Send + Sync + 'static> Managed for SlotState<T> {
    fn name(&self) -> &str {
        &self.name
    }

    fn status(&self) -> Status {
        let now = self.context.clock.now();
        let default = self.default_keep_alive();
        let inner = self.inner.lock();
        let (state, leases, bytes) = match &inner.phase {
            Phase::Absent => (State::Absent, 0, 0),
            Phase::Loading(_) => (State::Loading, 0, 0),
            Phase::Ready(ready) => (State::Ready, ready.leases, ready.residency.bytes()),
        };
        let last_used = if leases > 0 { Some(now) } else { inner.last_used };
        let deadline = match &inner.phase {
            Phase::Ready(ready) if !inner.options.pinned => {
                let keep_alive = ready.expected(inner.options.keep_alive, default);
                keep_alive.unwrap_or(default).deadline(last_used.unwrap_or(now))
            }
            _ => None,
        };
        Status {
            state,
            leases,
            bytes,
            last_used,
            deadline,
            options: inner.options,
            last_error: inner.last_error.clone(),
        }
    }

    fn idle(&self) -> Option<Idle> {
        let mut idle = self.inner.lock().idle()?;
        if self.policy.is_some() && idle.keep_alive.is_none() {
            idle.keep_alive = Some(self.default_keep_alive());
        }
        Some(idle)
    }

    fn next_load(&self, now: Instant) -> Option<Instant> {
        let policy = self.policy.as_ref()?;
        if !matches!(self.inner.lock().phase, Phase::Absent) {
            return None;
        }
        Some(policy.next(now)?.at)
    }

    fn load_ahead(&self) -> bool {
        let (Some(policy), Some(own)) = (&self.policy, self.own.upgrade()) else { return false };
        let now = self.context.clock.now();
        let Some(next) = policy.next(now).filter(|next| next.at <= now) else { return false };
        let id = {
            let mut guard = self.inner.lock();
            let inner = &mut *guard;
            if !matches!(inner.phase, Phase::Absent) {
                return false;
            }
            inner.arrivals += 1;
            let (id, waiters) = (inner.arrivals, Vec::new());
            inner.phase = Phase::Loading(Flight { id, thread: None, waiters, ahead: Some(next.until) });
            id
        };
        log::info!("loading {:?} ahead of its use ({})", self.name, next.why.name());
        policy.loads_ahead(next.why);
        own.start(id);
        true
    }

    fn is_adaptive(&self) -> bool {
        self.policy.is_some()
    }

    fn unload_idle(&self, seen: &Idle, reason: UnloadReason) -> bool {
        let gone = {
            let mut inner = self.inner.lock();
            if inner.idle().is_none_or(|idle| idle.period != seen.period) { None } else { inner.take_value() }
        };
        let Some(gone) = gone else { return false };
        if reason == UnloadReason::Evicted {
            self.context.eviction.evicted(seen.priority);
        }
        let why = match reason {
            UnloadReason::Idle => "because it was idle",
            UnloadReason::Evicted => "to make room for another model",
        };
        self.left(why, gone);
        true
    }

    fn unload(&self) -> bool {
        let gone = {
            let mut inner = self.inner.lock();
            match std::mem::replace(&mut inner.phase, Phase::Absent) {
                Phase::Absent => return false,
                Phase::Loading(flight) => {
                    inner.detached.push(flight);
                    None
                }
                Phase::Ready(ready) => Some(ready.residency),
            }
        };
        if let Some(policy) = &self.policy {
            policy.ends(self.context.clock.now());
        }
        if let Some(gone) = gone {
            self.left("on request", gone);
        }
        true
    }
}
