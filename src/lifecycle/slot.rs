//! A model's place in memory: `absent → loading → ready → absent`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::Charge;
use super::keep_alive::KeepAlive;
use super::lease::Lease;
use super::managed::{Managed, State, Status};
use super::memory::MemoryProbe;
use super::reaper::Reaper;
use super::shared::{Shared, Step};
use super::tracker::Tracker;
use crate::clock::Clock;
use crate::sync::{Condvar, Mutex};
use crate::{Error, Result};

/// How often a waiting caller looks for a reason to stop waiting.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// What a loader brings.
pub struct Loaded<T: ?Sized> {
    /// The model.
    pub value: Arc<T>,
    /// Bytes that it takes in memory; 0 when unknown: then the growth of the process while it loaded is taken.
    pub bytes: u64,
    /// Its share of the memory budget, given back when the value has been freed.
    pub charge: Option<Charge>,
}

impl<T: ?Sized> Loaded<T> {
    /// A value of `bytes` bytes outside any budget.
    #[must_use]
    pub fn new(value: Arc<T>, bytes: u64) -> Self {
        Self { value, bytes, charge: None }
    }
}

/// How a slot keeps its value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotOptions {
    /// How long the value stays after its last use; `None` follows the reaper's settings.
    pub keep_alive: Option<KeepAlive>,
    /// A pinned value leaves only when it is unloaded by name.
    pub pinned: bool,
}

/// What all slots of one manager share.
#[derive(Clone)]
pub struct Context {
    /// The time that idle deadlines are measured by.
    pub clock: Clock,
    /// How resident memory is measured and trimmed.
    pub memory: Arc<dyn MemoryProbe>,
    /// Told of loads, accesses and unloads.
    pub tracker: Arc<Tracker>,
    /// Unloads idle slots.
    pub reaper: Arc<Reaper>,
}

/// Receives a lease, or the failure of the load.
pub type Continuation<T> = Box<dyn FnOnce(Result<Lease<T>>) + Send>;

/// One model's place in memory. A cheap-clone handle: clones are the same slot.
///
/// * The first call that needs the value starts its load on a thread of its own; callers who come meanwhile wait
///   for that same load. A failure is told to all of them, and the next call tries again.
/// * [`Slot::unload`] makes the slot absent at once, whatever it holds. What is already promised stays good: leases
///   live on, and those who wait for a load in progress still get its value; it is freed after the last of them.
///   Later calls load anew, even while the load that was let go of still runs.
/// * No lock is held while a loader, a continuation or a value's destructor runs.
pub struct Slot<T: ?Sized + Send + Sync + 'static> {
    pub(super) shared: Arc<Shared<T>>,
}

impl<T: ?Sized + Send + Sync + 'static> Slot<T> {
    /// An absent slot, watched by the context's reaper. `loader` runs on a thread of its own, once per load.
    pub fn new(
        name: impl Into<Arc<str>>,
        options: SlotOptions,
        context: Context,
        loader: impl Fn() -> Result<Loaded<T>> + Send + Sync + 'static,
    ) -> Self {
        Self { shared: Shared::new(name.into(), options, context, Arc::new(loader)) }
    }

    /// The value, loading it when absent. Waits at most `timeout` (`None`: as long as it takes); calls `check` when
    /// the waiting begins and about every 50 ms of it, and its error ends the wait. The load itself goes on either way.
    ///
    /// # Errors
    /// The loader's own; [`Error::Internal`] when it panicked; [`Error::Timeout`]; whatever `check` returns.
    pub fn acquire(
        &self,
        timeout: Option<Duration>,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Lease<T>> {
        if let Some(lease) = self.try_acquire() {
            return Ok(lease);
        }
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let parcel = Arc::new(Oneshot { content: Mutex::new(None), arrived: Condvar::new() });
        let sender = Arc::clone(&parcel);
        self.when_ready(Box::new(move |outcome| sender.put(outcome)));
        check()?;
        loop {
            let now = Instant::now();
            let next_check = now + CHECK_EVERY;
            let wake = deadline.map_or(next_check, |deadline| deadline.min(next_check));
            if let Some(outcome) = parcel.wait_until(wake) {
                return outcome;
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                // The parcel is left behind: a lease that still arrives in it is dropped with it.
                let what = format!("model {:?}", self.name());
                return Err(Error::Timeout { what, after: timeout.unwrap_or_default() });
            }
            check()?;
        }
    }

    /// Calls `done` with the value, loading it when absent: at once on this thread when it is ready, otherwise on the
    /// loader's thread. `done` is called exactly once, outside all locks.
    pub fn when_ready(&self, done: Continuation<T>) {
        match self.shared.join(done) {
            Step::Wait => {}
            Step::Start(flight) => self.shared.start(flight),
            Step::Take(stay, done) => done(Ok(Lease::new(Arc::clone(&self.shared), stay))),
            Step::Refuse(done) => done(Err(Error::Loader {
                model: self.name().into(),
                reason: "it asked for the model that it is loading".into(),
            })),
        }
    }

    /// The value if it is ready; never loads, never waits.
    #[must_use]
    pub fn try_acquire(&self) -> Option<Lease<T>> {
        let stay = self.shared.take_ready()?;
        Some(Lease::new(Arc::clone(&self.shared), stay))
    }

    /// What `look` sees in the value if it is ready. Not a use: idle deadlines stay. For reports; to compute, lease.
    pub fn inspect<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.shared.stay().map(|stay| look(stay.value()))
    }

    /// Makes the slot absent. True when it held or was loading a value.
    pub fn unload(&self) -> bool {
        self.shared.unload()
    }

    /// Makes an absent slot ready with a value that exists already. Not counted as a load.
    ///
    /// # Errors
    /// Gives `loaded` back when the slot is loading or ready.
    pub fn adopt(&self, loaded: Loaded<T>) -> std::result::Result<(), Loaded<T>> {
        self.shared.adopt(loaded)
    }

    /// What the slot holds and how.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Absent, loading or ready.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.status().state
    }

    /// The slot's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.shared.name()
    }

    /// The slot as the budget sees it.
    #[must_use]
    pub fn managed(&self) -> Arc<dyn Managed> {
        Arc::<Shared<T>>::clone(&self.shared)
    }
}

impl<T: ?Sized + Send + Sync + 'static> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T: ?Sized + Send + Sync + 'static> std::fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("name", &self.name()).field("status", &self.status()).finish()
    }
}

/// Where a waiting caller gets its lease.
struct Oneshot<T: ?Sized + Send + Sync + 'static> {
    content: Mutex<Option<Result<Lease<T>>>>,
    arrived: Condvar,
}

impl<T: ?Sized + Send + Sync + 'static> Oneshot<T> {
    fn put(&self, outcome: Result<Lease<T>>) {
        *self.content.lock() = Some(outcome);
        self.arrived.notify_one();
    }

    fn wait_until(&self, wake: Instant) -> Option<Result<Lease<T>>> {
        let mut content = self.content.lock();
        if content.is_none() {
            content = self.arrived.wait_until(content, wake).0;
        }
        content.take()
    }
}
