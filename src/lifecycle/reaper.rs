//! The thread that unloads idle models.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::keep_alive::KeepAlive;
use super::managed::{Managed, State, UnloadReason};
use crate::Error;
use crate::clock::Clock;
use crate::sync::{Work, Worker, WorkerThread};

/// How long [`Reaper::stop`] waits for the thread. The thread logs, and may wait for the lock of a logging handler that
/// the caller holds: an unlimited wait would be a deadlock.
const PATIENCE: Duration = Duration::from_secs(1);

/// While the manager is busy, a load ahead of a use is tried again after so long.
const BUSY: Duration = Duration::from_secs(1);
/// While an adaptive value is in memory, the system's memory is looked at so often.
const LOOK_AT_MEMORY: Duration = Duration::from_secs(10);

/// "Never", among nanoseconds.
const NEVER: u64 = u64::MAX;

/// When idle models leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaperSettings {
    /// Whether slots without a keep-alive of their own are unloaded when idle. Other slots always are.
    pub enabled: bool,
    /// While enabled and anything is in memory, a clean-up runs at least this often, deadline or not.
    pub interval: Duration,
    /// The keep-alive of slots that have none of their own.
    pub max_idle: Duration,
}

impl Default for ReaperSettings {
    /// Enabled, every 300 s, 600 s.
    fn default() -> Self {
        Self { enabled: true, interval: Duration::from_secs(300), max_idle: Duration::from_secs(600) }
    }
}

/// Unloads slots when their idle time is up, from one thread that sleeps until the next deadline. The thread starts
/// with the first deadline and ends with the reaper.
pub struct Reaper {
    core: Arc<Core>,
    worker: Worker<Control>,
}

/// What the thread and the callers share without a lock.
struct Core {
    clock: Clock,
    origin: Instant,
    initial: ReaperSettings,
    /// Nanoseconds from `origin` at which the thread will wake by itself. `NEVER` while it sleeps without a deadline,
    /// is awake and looking, or does not exist: every deadline is then worth a notification.
    wakes_at: AtomicU64,
    /// `max_idle` in nanoseconds; `NEVER` when disabled.
    default_idle: AtomicU64,
    housekeeping: Box<dyn Fn() + Send + Sync>,
    /// Whether nothing is computed and nothing waits. Always, where it is not set.
    is_quiet: OnceLock<Box<dyn Fn() -> bool + Send + Sync>>,
}

struct Control {
    settings: ReaperSettings,
    slots: Vec<Weak<dyn Managed>>,
    last_cleanup: Instant,
    /// Something changed since the thread last looked.
    poked: bool,
}

impl Reaper {
    /// A reaper without slots. `housekeeping` runs after every clean-up, outside all locks.
    #[must_use]
    pub fn new(
        clock: Clock,
        settings: ReaperSettings,
        housekeeping: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let core = Arc::new(Core {
            origin: clock.now(),
            clock,
            initial: settings,
            wakes_at: AtomicU64::new(NEVER),
            default_idle: AtomicU64::new(default_idle(settings)),
            housekeeping: Box::new(housekeeping),
            is_quiet: OnceLock::new(),
        });
        Self { worker: Worker::new("reaper", Arc::clone(&core) as _), core }
    }

    /// Says whether nothing is computed and nothing waits: only then models are loaded ahead of their use. Set once.
    pub fn ask_before_loading(&self, is_quiet: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.core.is_quiet.set(Box::new(is_quiet));
    }

    /// Changes the settings; they govern every slot from now on, idle ones included.
    pub fn set(&self, settings: ReaperSettings) {
        // Both under one lock: of two racing calls the same one wins in both places.
        self.worker.look(|control| {
            control.settings = settings;
            self.core.default_idle.store(default_idle(settings), Ordering::Relaxed);
        });
        self.reconsider();
    }

    /// The present settings.
    #[must_use]
    pub fn settings(&self) -> ReaperSettings {
        self.worker.look(|control| control.settings)
    }

    /// Time since the latest clean-up, or since construction when there was none.
    #[must_use]
    pub fn since_cleanup(&self) -> Duration {
        let now = self.core.clock.now();
        self.worker.look(|control| now.saturating_duration_since(control.last_cleanup))
    }

    /// Cleans up now, on this thread: unloads what is due. Returns the number of slots unloaded.
    pub fn clean_up(&self) -> usize {
        let slots = self.worker.look(|control| living(control));
        let cleaned = self.core.clean_up(slots);
        self.worker.look(|control| control.last_cleanup = cleaned.at);
        cleaned.unloaded
    }

    /// Ends the thread and waits for it, one second at most. A slot that it is unloading then is still unloaded; later
    /// deadlines are not met. In a child made by `fork`, where the thread does not exist, it does nothing.
    pub fn stop(&self) {
        self.worker.stop();
        self.worker.join(Some(Instant::now() + PATIENCE));
    }

    /// The keep-alive of slots that have none of their own.
    pub(super) fn default_keep_alive(&self) -> KeepAlive {
        self.core.default_keep_alive()
    }

    /// Adds a slot, as a weak reference.
    pub(super) fn watch(&self, slot: &Arc<dyn Managed>) {
        self.worker.look(|control| {
            control.slots.retain(|slot| slot.strong_count() > 0);
            control.slots.push(Arc::downgrade(slot));
        });
    }

    /// A slot is idle and due at `deadline`: wakes the thread if it would sleep past that.
    pub(super) fn expect(&self, deadline: Instant) {
        if self.core.nanoseconds(deadline) < self.core.wakes_at.load(Ordering::SeqCst) {
            self.reconsider();
        }
    }

    /// Has the thread look for loads ahead of a use now.
    pub fn look_ahead(&self) {
        self.reconsider();
    }

    /// Has the thread look at all deadlines again, starting it if need be.
    pub(super) fn reconsider(&self) {
        match self.worker.with(|control| control.poked = true) {
            Ok(()) | Err(Error::Closed) => {}
            Err(error) => log::warn!("idle models are not unloaded: {error}"),
        }
    }
}

/// The slots that still exist.
fn living(control: &Control) -> Vec<Arc<dyn Managed>> {
    control.slots.iter().filter_map(Weak::upgrade).collect()
}

impl Work<Control> for Core {
    fn fresh(&self) -> Control {
        self.wakes_at.store(NEVER, Ordering::SeqCst);
        Control { settings: self.initial, slots: Vec::new(), last_cleanup: self.clock.now(), poked: false }
    }

    fn run(&self, thread: &WorkerThread<'_, Control>) {
        loop {
            // From here to the end of the look, every new deadline pokes: none is missed between look and sleep.
            self.wakes_at.store(NEVER, Ordering::SeqCst);
            let slots = {
                let mut control = thread.lock();
                if control.is_stopping() {
                    return;
                }
                control.poked = false;
                living(&control)
            };
            let (ahead, adaptive) = (self.load_ahead(&slots), self.is_adaptive_in_memory(&slots));
            let cleaned = self.clean_up(slots);
            let mut control = thread.lock();
            control.last_cleanup = cleaned.at;
            let settings = control.settings;
            let regular = (settings.enabled && cleaned.in_memory > 0)
                .then(|| cleaned.at.checked_add(settings.interval))
                .flatten();
            let look = adaptive.then(|| cleaned.at.checked_add(LOOK_AT_MEMORY)).flatten();
            let wake = [cleaned.next, regular, ahead, look].into_iter().flatten().min();
            self.wakes_at.store(wake.map_or(NEVER, |wake| self.nanoseconds(wake)), Ordering::SeqCst);
            let mut due = false;
            while !(control.poked || control.is_stopping() || due) {
                match wake {
                    Some(wake) => (control, due) = control.wait_until(wake),
                    None => control = control.wait(),
                }
            }
        }
    }
}

impl Core {
    /// Begins the load of one slot whose use is expected, if all is quiet. Returns when to look again.
    fn load_ahead(&self, slots: &[Arc<dyn Managed>]) -> Option<Instant> {
        let now = self.clock.now();
        let due: Vec<_> = slots.iter().filter_map(|slot| Some((slot.next_load(now)?, slot))).collect();
        let later = due.iter().map(|(at, _)| *at).filter(|at| *at > now).min();
        let Some((_, slot)) = due.iter().filter(|(at, _)| *at <= now).min_by_key(|(at, _)| *at) else {
            return later;
        };
        let is_loading = slots.iter().any(|slot| slot.status().state == State::Loading);
        if !is_loading && self.is_quiet.get().is_none_or(|is_quiet| is_quiet()) {
            slot.load_ahead();
        }
        let again = now.checked_add(BUSY);
        [later, again].into_iter().flatten().min()
    }

    fn is_adaptive_in_memory(&self, slots: &[Arc<dyn Managed>]) -> bool {
        slots.iter().any(|slot| slot.is_adaptive() && slot.status().state != State::Absent)
    }

    /// Unloads those of `slots` that are due.
    fn clean_up(&self, slots: Vec<Arc<dyn Managed>>) -> Cleaned {
        let cleaned = sweep(&slots, self.clock.now(), self.default_keep_alive());
        // May be the last owners, so they are dropped outside the lock.
        drop(slots);
        if catch_unwind(AssertUnwindSafe(|| (self.housekeeping)())).is_err() {
            log::error!("the housekeeping after a clean-up panicked");
        }
        cleaned
    }

    fn default_keep_alive(&self) -> KeepAlive {
        match self.default_idle.load(Ordering::Relaxed) {
            NEVER => KeepAlive::Forever,
            nanoseconds => KeepAlive::For(Duration::from_nanos(nanoseconds)),
        }
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        clamped(at.saturating_duration_since(self.origin))
    }
}

fn default_idle(settings: ReaperSettings) -> u64 {
    if settings.enabled { clamped(settings.max_idle) } else { NEVER }
}

fn clamped(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}

/// What a clean-up found.
#[derive(Debug, PartialEq, Eq)]
struct Cleaned {
    at: Instant,
    unloaded: usize,
    /// Slots that still have or load a value.
    in_memory: usize,
    /// The earliest deadline among the idle ones that remain.
    next: Option<Instant>,
}

/// Unloads every slot whose idle time is up at `now`.
fn sweep(slots: &[Arc<dyn Managed>], now: Instant, default: KeepAlive) -> Cleaned {
    let mut cleaned = Cleaned { at: now, unloaded: 0, in_memory: 0, next: None };
    for slot in slots {
        if let Some(idle) = slot.idle()
            && let Some(deadline) = idle.keep_alive.unwrap_or(default).deadline(idle.since)
        {
            if deadline <= now {
                // A destructor that panics costs its own slot, not the reaper.
                match catch_unwind(AssertUnwindSafe(|| slot.unload_idle(&idle, UnloadReason::Idle))) {
                    Ok(unloaded) => cleaned.unloaded += usize::from(unloaded),
                    Err(_) => log::error!("freeing {:?} panicked", slot.name()),
                }
            } else {
                cleaned.next = cleaned.next.into_iter().chain([deadline]).min();
            }
        }
        cleaned.in_memory += usize::from(slot.status().state != State::Absent);
    }
    cleaned
}
