//! A slot's state and its transitions. Every method takes the slot's lock briefly. Side effects (threads, destructors,
//! continuations, statistics, log records) happen only after it is released.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use super::caller::caller;
use super::context::Context;
use super::keep_alive::KeepAlive;
use super::lease::{Continuation, Lease, LeaseCounter};
use super::managed::{Idle, Managed, SlotOptions, State, Status, Why};
use super::memory::megabytes;
use super::phase::{AcquireStep, Flight, LockedSlot, Phase, Ready, longer};
use super::residency::{Loaded, Residency};
use super::tracker::Record;
use crate::sync::{Mutex, spawn};
use crate::{Error, Result};

pub(super) type Loader<T> = dyn Fn() -> Result<Loaded<T>> + Send + Sync;

/// What the clones of a slot and its leases share.
pub(super) struct SlotState<T: ?Sized + Send + Sync + 'static> {
    name: Arc<str>,
    loader: Arc<Loader<T>>,
    context: Context,
    record: Arc<Record>,
    inner: Mutex<LockedSlot<T>>,
}

impl<T: ?Sized + Send + Sync + 'static> SlotState<T> {
    pub(super) fn new(
        name: Arc<str>,
        options: SlotOptions,
        context: Context,
        loader: Arc<Loader<T>>,
    ) -> Arc<Self> {
        let record = context.tracker.record(&name);
        let shared =
            Arc::new(Self { name, loader, context, record, inner: Mutex::new(LockedSlot::new(options)) });
        let managed: Arc<dyn Managed> = Arc::<Self>::clone(&shared);
        shared.context.reaper.watch(&managed);
        shared
    }

    /// The value with a lease counted, if it is ready.
    pub(super) fn take_ready(&self) -> Option<Arc<Residency<T>>> {
        let residency = {
            let mut inner = self.inner.lock();
            let Phase::Ready(ready) = &mut inner.phase else { return None };
            ready.count_lease();
            Arc::clone(&ready.residency)
        };
        self.context.tracker.accessed(&self.record, self.context.clock.now());
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
        self.context.tracker.accessed(&self.record, self.context.clock.now());
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
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
                inner.phase = Phase::Loading(Flight { id, thread: None, waiters: vec![done] });
                AcquireStep::Start(id)
            }
        }
    }

    /// Starts the thread of load `id`.
    pub(super) fn start(self: &Arc<Self>, id: u64) {
        let shared = Arc::clone(self);
        if let Err(error) = spawn(&format!("load-{}", self.name), move || shared.load(id)) {
            let reason = format!("no thread could be started for it: {error}");
            self.land(id, Err(Error::Loader { model: self.name.to_string(), reason }));
        }
    }

    fn load(self: &Arc<Self>, id: u64) {
        if let Some(flight) = self.inner.lock().flight_mut(id) {
            flight.thread = Some(thread::current().id());
        }
        let resident_before = self.context.memory.resident();
        let started = self.context.clock.now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.loader)())).unwrap_or_else(|payload| {
            Err(Error::panic(format!("the loader of {:?}", self.name), payload.as_ref()))
        });
        let outcome = outcome.map(|mut loaded| {
            let seconds = (self.context.clock.now() - started).as_secs_f64();
            if loaded.bytes == 0 {
                loaded.bytes = self.context.memory.resident().saturating_sub(resident_before);
            }
            self.record.loaded(seconds, megabytes(loaded.bytes));
            log::info!("loaded {:?} in {seconds:.2} s, {:.1} MB", self.name, megabytes(loaded.bytes));
            Arc::new(self.residency_of(id, loaded))
        });
        self.land(id, outcome);
    }

    /// Ends load `id`: the slot takes the value unless it has detached the load, and each waiting caller gets a lease.
    fn land(self: &Arc<Self>, id: u64, outcome: Result<Arc<Residency<T>>>) {
        let now = self.context.clock.now();
        let (waiters, attached) = {
            let mut inner = self.inner.lock();
            let Some((flight, attached)) = inner.take_flight(id) else { return };
            if attached {
                inner.last_error = outcome.as_ref().err().cloned();
                if let Ok(residency) = &outcome {
                    inner.last_used = Some(now);
                    // Every waiter's lease counts from here: the slot is not idle before they have it.
                    let leases = flight.waiters.len();
                    let keep_alive = Some(KeepAlive::AFTER_USE);
                    inner.phase =
                        Phase::Ready(Ready { residency: Arc::clone(residency), leases, keep_alive });
                }
            }
            (flight.waiters, attached)
        };
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
            inner.phase = Phase::Ready(Ready { residency, leases: 0, keep_alive });
            inner.last_used = Some(now);
            inner.idle_periods += 1;
            keep_alive.unwrap_or(self.context.reaper.default_keep_alive()).deadline(now)
        };
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
        log::info!("unloaded {:?} {why}", self.name);
        drop(residency);
    }
}

impl<T: ?Sized + Send + Sync + 'static> LeaseCounter for SlotState<T> {
    fn name(&self) -> &str {
        &self.name
    }

    fn lease_again(&self, residency: u64) {
        if let Phase::Ready(ready) = &mut self.inner.lock().phase
            && ready.residency.id == residency
        {
            ready.leases += 1;
        }
    }

    fn release(&self, residency: u64, keep_alive: Option<KeepAlive>) {
        let now = self.context.clock.now();
        let default = self.context.reaper.default_keep_alive();
        let (deadline, gone) = {
            let mut guard = self.inner.lock();
            let inner = &mut *guard;
            let Phase::Ready(ready) = &mut inner.phase else { return };
            if ready.residency.id != residency {
                return;
            }
            ready.keep_alive = longer(ready.keep_alive, keep_alive.or(inner.options.keep_alive), default);
            ready.leases -= 1;
            if ready.leases > 0 {
                return;
            }
            let idle_for = ready.keep_alive.unwrap_or(default);
            inner.last_used = Some(now);
            inner.idle_periods += 1;
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
        let inner = self.inner.lock();
        let (state, leases, bytes) = match &inner.phase {
            Phase::Absent => (State::Absent, 0, 0),
            Phase::Loading(_) => (State::Loading, 0, 0),
            Phase::Ready(ready) => (State::Ready, ready.leases, ready.residency.bytes()),
        };
        let last_used = if leases > 0 { Some(now) } else { inner.last_used };
        let deadline = match &inner.phase {
            Phase::Ready(ready) if !inner.options.pinned => {
                let default = self.context.reaper.default_keep_alive();
                let keep_alive = if leases > 0 {
                    longer(ready.keep_alive, inner.options.keep_alive, default)
                } else {
                    ready.keep_alive
                };
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
        self.inner.lock().idle()
    }

    fn unload_idle(&self, seen: &Idle, why: Why) -> bool {
        let gone = {
            let mut inner = self.inner.lock();
            if inner.idle().is_none_or(|idle| idle.period != seen.period) { None } else { inner.take_value() }
        };
        let Some(gone) = gone else { return false };
        let why = match why {
            Why::Idle => "because it was idle",
            Why::Evicted => "to make room for another model",
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
        if let Some(gone) = gone {
            self.left("on request", gone);
        }
        true
    }
}
