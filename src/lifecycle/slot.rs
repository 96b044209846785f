//! A model's place in memory: `absent → loading → ready → absent`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::Context;
use super::lease::{Continuation, Lease};
use super::managed::{Managed, SlotOptions, State, Status};
use super::oneshot::Oneshot;
use super::phase::AcquireStep;
use super::policy::AdaptivePolicy;
use super::residency::Loaded;
use super::state::SlotState;
use crate::{Error, Result};

/// How often a waiting caller looks for a reason to stop waiting.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// One model's place in memory. A cheap-clone handle: clones are the same slot.
///
/// * The first call that needs the value starts its load on a thread of its own. Callers that come meanwhile wait for
///   that load. All of them get its failure, and the next call tries again.
/// * [`Slot::unload`] makes the slot absent at once. Existing leases stay valid, and callers that wait for a load in
///   progress still get its value, which is freed after the last of them. Later calls load again, even while the
///   earlier load still runs.
/// * No lock is held while a loader, a continuation or a value's destructor runs.
pub struct Slot<T: ?Sized + Send + Sync + 'static> {
    state: Arc<SlotState<T>>,
}

impl<T: ?Sized + Send + Sync + 'static> Slot<T> {
    /// An absent slot, watched by the context's reaper. `loader` runs on a thread of its own, once per load.
    pub fn new(
        name: impl Into<Arc<str>>,
        options: SlotOptions,
        context: Context,
        loader: impl Fn() -> Result<Loaded<T>> + Send + Sync + 'static,
    ) -> Self {
        Self { state: SlotState::new(name.into(), options, context, None, Arc::new(loader)) }
    }

    /// The same, with a stay that `policy` decides where neither the options nor a use do.
    pub fn adaptive(
        name: impl Into<Arc<str>>,
        options: SlotOptions,
        context: Context,
        policy: Arc<AdaptivePolicy>,
        loader: impl Fn() -> Result<Loaded<T>> + Send + Sync + 'static,
    ) -> Self {
        Self { state: SlotState::new(name.into(), options, context, Some(policy), Arc::new(loader)) }
    }

    /// The value, loading it when absent. Waits at most `timeout` (`None`: as long as it takes); calls `check` when
    /// the waiting begins and about every 50 ms of it, and its error ends the wait. The load itself goes on either way.
    ///
    /// # Errors
    /// The loader's own; [`Error::Internal`] when it panicked; [`Error::Timeout`]; [`Error::Loader`] when the caller is a
    /// load that this one waits for; whatever `check` returns.
    pub fn acquire(
        &self,
        timeout: Option<Duration>,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Lease<T>> {
        if let Some(lease) = self.try_acquire() {
            return Ok(lease);
        }
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let oneshot = Arc::new(Oneshot::new());
        let sender = Arc::clone(&oneshot);
        self.when_ready(Box::new(move |outcome| sender.put(outcome)));
        let _waiting = self.state.waits()?;
        check()?;
        loop {
            let now = Instant::now();
            let next_check = now + CHECK_EVERY;
            let wake = deadline.map_or(next_check, |deadline| deadline.min(next_check));
            if let Some(outcome) = oneshot.wait_until(wake) {
                return outcome;
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                // A lease that arrives in the oneshot later is dropped with it.
                let what = format!("model {:?}", self.name());
                return Err(Error::Timeout { what, after: timeout.unwrap_or_default() });
            }
            check()?;
        }
    }

    /// Calls `done` with the value, loading it when absent: at once on this thread when it is ready, otherwise on the
    /// loader's thread. `done` is called exactly once, outside all locks.
    pub fn when_ready(&self, done: Continuation<T>) {
        match self.state.join(done) {
            AcquireStep::Wait => {}
            AcquireStep::Start(flight) => self.state.start(flight),
            AcquireStep::Take(residency, done) => {
                done(Ok(Lease::new(Arc::<SlotState<T>>::clone(&self.state), residency)));
            }
            AcquireStep::Refuse(done) => {
                done(Err(Error::loader(self.name(), "it asked for the model that it is loading")));
            }
        }
    }

    /// The value if it is ready. Never loads and never waits.
    #[must_use]
    pub fn try_acquire(&self) -> Option<Lease<T>> {
        let residency = self.state.take_ready()?;
        Some(Lease::new(Arc::<SlotState<T>>::clone(&self.state), residency))
    }

    /// What `look` returns for the value if it is ready. Does not count as a use: idle deadlines stay. For reports; work
    /// that computes takes a lease.
    pub fn inspect<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.state.residency().map(|residency| look(residency.value()))
    }

    /// Makes the slot absent. True when it had or was loading a value.
    pub fn unload(&self) -> bool {
        self.state.unload()
    }

    /// Makes an absent slot ready with a value that exists already. Not counted as a load.
    ///
    /// # Errors
    /// Gives `loaded` back when the slot is loading or ready.
    pub fn adopt(&self, loaded: Loaded<T>) -> std::result::Result<(), Loaded<T>> {
        self.state.adopt(loaded)
    }

    /// The slot's state and options.
    #[must_use]
    pub fn status(&self) -> Status {
        self.state.status()
    }

    /// Absent, loading or ready.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.status().state
    }

    /// The slot's name.
    #[must_use]
    pub fn name(&self) -> &str {
        Managed::name(&*self.state)
    }

    /// The slot as the budget sees it.
    #[must_use]
    pub fn managed(&self) -> Arc<dyn Managed> {
        Arc::<SlotState<T>>::clone(&self.state)
    }
}

impl<T: ?Sized + Send + Sync + 'static> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state) }
    }
}

impl<T: ?Sized + Send + Sync + 'static> std::fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("name", &self.name()).field("status", &self.status()).finish()
    }
}
