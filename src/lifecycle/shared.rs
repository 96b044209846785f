//! A slot's state and its transitions. Every method takes the slot's lock briefly and acts on the world (threads,
//! destructors, continuations, statistics, log records) only after releasing it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Instant;

use super::caller::caller;
use super::keep_alive::KeepAlive;
use super::lease::{Lease, Residency};
use super::managed::{Idle, Managed, State, Status, Why};
use super::memory::megabytes;
use super::slot::{Context, Continuation, Loaded, SlotOptions};
use super::tracker::Record;
use crate::sync::{Mutex, spawn};
use crate::{Error, Result};

pub(super) type Loader<T> = dyn Fn() -> Result<Loaded<T>> + Send + Sync;

/// What the clones of a slot and its leases share.
pub(super) struct Shared<T: ?Sized + Send + Sync + 'static> {
    name: Arc<str>,
    loader: Arc<Loader<T>>,
    context: Context,
    record: Arc<Record>,
    inner: Mutex<Inner<T>>,
}

struct Inner<T: ?Sized + Send + Sync + 'static> {
    phase: Phase<T>,
    options: SlotOptions,
    last_error: Option<Error>,
    /// End of the latest use, or the moment of loading.
    last_used: Option<Instant>,
    /// Loads that an `unload` has let go of: they land for those who wait for them, not for the slot.
    detached: Vec<Flight<T>>,
    /// Number of the latest load or adoption; also the id of the stay that it brings.
    arrivals: u64,
    idle_periods: u64,
}

enum Phase<T: ?Sized + Send + Sync + 'static> {
    Absent,
    Loading(Flight<T>),
    Ready(Ready<T>),
}

/// A load in progress.
struct Flight<T: ?Sized + Send + Sync + 'static> {
    id: u64,
    /// Its thread, once that runs.
    thread: Option<ThreadId>,
    waiters: Vec<Continuation<T>>,
}

struct Ready<T: ?Sized> {
    stay: Arc<Residency<T>>,
    leases: usize,
    /// Governs the idle time that follows the present uses: the longest that one of them brought.
    keep_alive: Option<KeepAlive>,
}

/// What a caller who wants the value has to do next.
pub(super) enum Step<T: ?Sized + Send + Sync + 'static> {
    /// The value is ready, and the caller's lease is counted.
    Take(Arc<Residency<T>>, Continuation<T>),
    /// The continuation waits for a load.
    Wait,
    /// The continuation waits for a load that the caller is to start.
    Start(u64),
    /// The caller is that load itself.
    Refuse(Continuation<T>),
}

impl<T: ?Sized + Send + Sync + 'static> Inner<T> {
    /// The value goes to the caller, who drops it after unlocking.
    fn take_value(&mut self) -> Option<Arc<Residency<T>>> {
        match std::mem::replace(&mut self.phase, Phase::Absent) {
            Phase::Ready(ready) => Some(ready.stay),
            other => {
                self.phase = other;
                None
            }
        }
    }

    /// The flight with this id, out of the slot. True beside it when the slot was waiting for it.
    fn take_flight(&mut self, id: u64) -> Option<(Flight<T>, bool)> {
        match std::mem::replace(&mut self.phase, Phase::Absent) {
            Phase::Loading(flight) if flight.id == id => Some((flight, true)),
            other => {
                self.phase = other;
                let index = self.detached.iter().position(|flight| flight.id == id)?;
                Some((self.detached.swap_remove(index), false))
            }
        }
    }

    fn flight_mut(&mut self, id: u64) -> Option<&mut Flight<T>> {
        let current = match &mut self.phase {
            Phase::Loading(flight) => Some(flight),
            Phase::Absent | Phase::Ready(_) => None,
        };
        current.into_iter().chain(&mut self.detached).find(|flight| flight.id == id)
    }

    fn idle(&self) -> Option<Idle> {
        match &self.phase {
            Phase::Ready(ready) if ready.leases == 0 && !self.options.pinned => Some(Idle {
                since: self.last_used?,
                keep_alive: ready.keep_alive,
                charged: ready.stay.charged(),
                period: self.idle_periods,
            }),
            _ => None,
        }
    }
}

impl<T: ?Sized + Send + Sync + 'static> Shared<T> {
    pub(super) fn new(
        name: Arc<str>,
        options: SlotOptions,
        context: Context,
        loader: Arc<Loader<T>>,
    ) -> Arc<Self> {
        let inner = Inner {
            phase: Phase::Absent,
            options,
            last_error: None,
            last_used: None,
            detached: Vec::new(),
            arrivals: 0,
            idle_periods: 0,
        };
        let record = context.tracker.record(&name);
        let shared = Arc::new(Self { name, loader, context, record, inner: Mutex::new(inner) });
        let managed: Arc<dyn Managed> = Arc::<Self>::clone(&shared);
        shared.context.reaper.watch(&managed);
        shared
    }

    pub(super) fn name_shared(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    pub(super) fn record(&self) -> Arc<Record> {
        Arc::clone(&self.record)
    }

    /// The value with a lease counted, if it is ready.
    pub(super) fn take_ready(&self) -> Option<Arc<Residency<T>>> {
        let stay = {
            let mut inner = self.inner.lock();
            let Phase::Ready(ready) = &mut inner.phase else { return None };
            ready.count_lease();
            Arc::clone(&ready.stay)
        };
        self.context.tracker.accessed(&self.record, self.context.clock.now());
        Some(stay)
    }

    /// The value if it is ready, without a lease: not a use.
    pub(super) fn stay(&self) -> Option<Arc<Residency<T>>> {
        match &self.inner.lock().phase {
            Phase::Ready(ready) => Some(Arc::clone(&ready.stay)),
            Phase::Absent | Phase::Loading(_) => None,
        }
    }

    /// Joins those who want the value. `done` comes back unless it now waits for a load.
    pub(super) fn join(&self, done: Continuation<T>) -> Step<T> {
        self.context.tracker.accessed(&self.record, self.context.clock.now());
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        match &mut inner.phase {
            Phase::Ready(ready) => {
                ready.count_lease();
                Step::Take(Arc::clone(&ready.stay), done)
            }
            Phase::Loading(flight) if flight.thread == Some(caller()) => Step::Refuse(done),
            Phase::Loading(flight) => {
                flight.waiters.push(done);
                Step::Wait
            }
            Phase::Absent => {
                inner.arrivals += 1;
                let id = inner.arrivals;
                inner.phase = Phase::Loading(Flight { id, thread: None, waiters: vec![done] });
                Step::Start(id)
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
            Arc::new(Residency::new(self, id, loaded))
        });
        self.land(id, outcome);
    }

    /// Ends load `id`: the slot takes the value unless it has let go of the load, and all who wait get theirs.
    fn land(self: &Arc<Self>, id: u64, outcome: Result<Arc<Residency<T>>>) {
        let now = self.context.clock.now();
        let (waiters, attached) = {
            let mut inner = self.inner.lock();
            let Some((flight, attached)) = inner.take_flight(id) else { return };
            if attached {
                inner.last_error = outcome.as_ref().err().cloned();
                if let Ok(stay) = &outcome {
                    inner.last_used = Some(now);
                    // Every waiter's lease counts from here, so that nobody finds the slot idle before they have it.
                    let leases = flight.waiters.len();
                    let keep_alive = Some(KeepAlive::AFTER_USE);
                    inner.phase = Phase::Ready(Ready { stay: Arc::clone(stay), leases, keep_alive });
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
                let lease = outcome.clone().map(|stay| Lease::new(Arc::clone(self), stay));
                (done, lease)
            })
            .collect();
        // From here on only leases hold the value, so that the slot is idle when they are gone.
        drop(outcome);
        for (done, lease) in deliveries {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| done(lease))) {
                // The others still get theirs.
                let error = Error::panic(format!("a caller waiting for {:?}", self.name), payload.as_ref());
                log::error!("{error}");
            }
        }
    }

    /// Counts one more lease on a value that the caller holds already.
    pub(super) fn lease_again(&self, stay: u64) {
        if let Phase::Ready(ready) = &mut self.inner.lock().phase
            && ready.stay.id == stay
        {
            ready.leases += 1;
        }
    }

    /// Ends one lease. After the last one the idle time starts, or the value leaves at once.
    pub(super) fn release(&self, stay: u64, keep_alive: Option<KeepAlive>) {
        let now = self.context.clock.now();
        let default = self.context.reaper.default_keep_alive();
        let (deadline, gone) = {
            let mut guard = self.inner.lock();
            let inner = &mut *guard;
            let Phase::Ready(ready) = &mut inner.phase else { return };
            if ready.stay.id != stay {
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
            let stay = Arc::new(Residency::new(self, inner.arrivals, loaded));
            inner.phase = Phase::Ready(Ready { stay, leases: 0, keep_alive });
            inner.last_used = Some(now);
            inner.idle_periods += 1;
            keep_alive.unwrap_or(self.context.reaper.default_keep_alive()).deadline(now)
        };
        if let Some(deadline) = deadline {
            self.context.reaper.expect(deadline);
        }
        Ok(())
    }

    /// A value has left the slot: counts it, then lets go of it.
    fn left(&self, why: &str, stay: Arc<Residency<T>>) {
        self.record.unloaded();
        log::info!("unloaded {:?} {why}", self.name);
        drop(stay);
    }
}

impl<T: ?Sized> Ready<T> {
    fn count_lease(&mut self) {
        if self.leases == 0 {
            // The shortest there is: the uses that begin now will bring their own.
            self.keep_alive = Some(KeepAlive::AFTER_USE);
        }
        self.leases += 1;
    }
}

/// The longer of two, where `None` stands for `default`; `b` when they are equal.
fn longer(a: Option<KeepAlive>, b: Option<KeepAlive>, default: KeepAlive) -> Option<KeepAlive> {
    if a.unwrap_or(default) > b.unwrap_or(default) { a } else { b }
}

impl<T: ?Sized + Send + Sync + 'static> Managed for Shared<T> {
    fn name(&self) -> &str {
        &self.name
    }

    fn status(&self) -> Status {
        let now = self.context.clock.now();
        let inner = self.inner.lock();
        let (state, leases, bytes) = match &inner.phase {
            Phase::Absent => (State::Absent, 0, 0),
            Phase::Loading(_) => (State::Loading, 0, 0),
            Phase::Ready(ready) => (State::Ready, ready.leases, ready.stay.bytes()),
        };
        let last_used = if leases > 0 { Some(now) } else { inner.last_used };
        Status {
            state,
            leases,
            bytes,
            last_used,
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
                Phase::Ready(ready) => Some(ready.stay),
            }
        };
        if let Some(gone) = gone {
            self.left("on request", gone);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_keep_alive_wins_and_none_is_the_default() {
        let of = |seconds| Some(KeepAlive::For(std::time::Duration::from_secs(seconds)));
        let default = KeepAlive::For(std::time::Duration::from_secs(10));
        for (a, b, longest) in [
            (of(1), of(2), of(2)),
            (of(2), of(1), of(2)),
            (None, of(9), None),
            (of(11), None, of(11)),
            (Some(KeepAlive::Forever), None, Some(KeepAlive::Forever)),
            (Some(KeepAlive::AFTER_USE), None, None),
        ] {
            assert_eq!(longer(a, b, default), longest, "{a:?} {b:?}");
        }
    }
}
