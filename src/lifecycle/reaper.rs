//! The thread that unloads idle models.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::keep_alive::KeepAlive;
use super::managed::{Managed, State, Why};
use crate::clock::Clock;
use crate::sync::{Condvar, Mutex};

/// How long [`Reaper::stop`] waits for the thread. Longer would be for ever where the thread waits for what the caller
/// holds: it logs, and a logging handler may have a lock.
const PATIENCE: Duration = Duration::from_secs(1);

/// "Never", among nanoseconds.
const NEVER: u64 = u64::MAX;

/// When idle models leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaperSettings {
    /// Whether slots without a keep-alive of their own are unloaded when idle. The others always are.
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
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Where the thread lives: it does not survive a `fork`.
    process: u32,
}

struct Core {
    clock: Clock,
    origin: Instant,
    /// Nanoseconds from `origin` at which the thread will wake by itself. `NEVER` while it sleeps without a deadline,
    /// is awake and looking, or does not exist: any deadline is then worth telling.
    wakes_at: AtomicU64,
    /// `max_idle` in nanoseconds; `NEVER` when disabled.
    default_idle: AtomicU64,
    housekeeping: Box<dyn Fn() + Send + Sync>,
    control: Mutex<Control>,
    changed: Condvar,
}

struct Control {
    settings: ReaperSettings,
    slots: Vec<Weak<dyn Managed>>,
    last_cleanup: Instant,
    /// Something changed since the thread last looked.
    poked: bool,
    stopping: bool,
    /// The thread is over.
    ended: bool,
}

impl Reaper {
    /// A reaper without slots. `housekeeping` runs after every clean-up, outside all locks.
    #[must_use]
    pub fn new(
        clock: Clock,
        settings: ReaperSettings,
        housekeeping: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let now = clock.now();
        let core = Core {
            clock,
            origin: now,
            wakes_at: AtomicU64::new(NEVER),
            default_idle: AtomicU64::new(default_idle(settings)),
            housekeeping: Box::new(housekeeping),
            control: Mutex::new(Control {
                settings,
                slots: Vec::new(),
                last_cleanup: now,
                poked: false,
                stopping: false,
                ended: false,
            }),
            changed: Condvar::new(),
        };
        Self { core: Arc::new(core), thread: Mutex::new(None), process: std::process::id() }
    }

    /// Changes the settings; they govern every slot from now on, idle ones included.
    pub fn set(&self, settings: ReaperSettings) {
        {
            // Both under one lock: of two racing calls the same one wins in both places.
            let mut control = self.core.control.lock();
            control.settings = settings;
            self.core.default_idle.store(default_idle(settings), Ordering::Relaxed);
        }
        self.reconsider();
    }

    /// The present settings.
    #[must_use]
    pub fn settings(&self) -> ReaperSettings {
        self.core.control.lock().settings
    }

    /// Time since the latest clean-up, or since construction when there was none.
    #[must_use]
    pub fn since_cleanup(&self) -> Duration {
        let now = self.core.clock.now();
        now.saturating_duration_since(self.core.control.lock().last_cleanup)
    }

    /// Cleans up now, on this thread: unloads what is due. Returns the number of slots unloaded.
    pub fn clean_up(&self) -> usize {
        self.core.clean_up().unloaded
    }

    /// Ends the thread and waits for it, one second at most: what it is unloading then, it still unloads. Nothing else is
    /// reaped any more. In a child made by `fork`, where the thread does not exist, only forgets it.
    pub fn stop(&self) {
        if self.process != std::process::id() {
            // Neither the thread nor, perhaps, the holders of the locks exist here.
            std::mem::forget(self.thread.try_lock().and_then(|mut thread| thread.take()));
            return;
        }
        self.signal();
        let Some(thread) = self.thread.lock().take() else { return };
        // A logging handler that the reaper's own thread calls may end up here.
        if thread.thread().id() == thread::current().id() {
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        let mut control = self.core.control.lock();
        while !control.ended {
            let late;
            (control, late) = self.core.changed.wait_until(control, deadline);
            if late {
                return;
            }
        }
        drop(control);
        if thread.join().is_err() {
            log::error!("the reaper's thread had panicked");
        }
    }

    /// Has the thread end.
    fn signal(&self) {
        self.core.control.lock().stopping = true;
        self.core.changed.notify_all();
    }

    /// The keep-alive of slots that have none of their own.
    pub(super) fn default_keep_alive(&self) -> KeepAlive {
        self.core.default_keep_alive()
    }

    /// Adds a slot. It is held weakly.
    pub(super) fn watch(&self, slot: &Arc<dyn Managed>) {
        let mut control = self.core.control.lock();
        control.slots.retain(|slot| slot.strong_count() > 0);
        control.slots.push(Arc::downgrade(slot));
    }

    /// A slot is idle and due at `deadline`: wakes the thread if it would sleep past that.
    pub(super) fn expect(&self, deadline: Instant) {
        if self.core.nanoseconds(deadline) < self.core.wakes_at.load(Ordering::SeqCst) {
            self.reconsider();
        }
    }

    /// Has the thread look at all deadlines again, starting it if need be.
    pub(super) fn reconsider(&self) {
        {
            let mut control = self.core.control.lock();
            if control.stopping {
                return;
            }
            control.poked = true;
        }
        self.core.changed.notify_one();
        if let Err(error) = self.ensure_thread() {
            log::warn!("no thread to unload idle models could be started: {error}");
        }
    }

    fn ensure_thread(&self) -> std::io::Result<()> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let core = Arc::clone(&self.core);
            *thread = Some(thread::Builder::new().name("mm-reaper".into()).spawn(move || core.run())?);
        }
        Ok(())
    }
}

impl Drop for Reaper {
    /// Waits for nothing: whoever drops it may hold what the thread needs.
    fn drop(&mut self) {
        if self.process == std::process::id() {
            self.signal();
        } else {
            std::mem::forget(self.thread.get_mut().take());
        }
    }
}

/// Says that the thread is over, however it ends.
struct Ended<'a>(&'a Core);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.control.lock().ended = true;
        self.0.changed.notify_all();
    }
}

impl Core {
    fn run(&self) {
        let _ended = Ended(self);
        loop {
            // From here to the end of the look, every new deadline pokes: none is missed between look and sleep.
            self.wakes_at.store(NEVER, Ordering::SeqCst);
            {
                let mut control = self.control.lock();
                if control.stopping {
                    return;
                }
                control.poked = false;
            }
            let cleaned = self.clean_up();
            let mut control = self.control.lock();
            let settings = control.settings;
            let regular = (settings.enabled && cleaned.in_memory > 0)
                .then(|| cleaned.at.checked_add(settings.interval))
                .flatten();
            let wake = [cleaned.next, regular].into_iter().flatten().min();
            self.wakes_at.store(wake.map_or(NEVER, |wake| self.nanoseconds(wake)), Ordering::SeqCst);
            let mut due = false;
            while !(control.poked || control.stopping || due) {
                match wake {
                    Some(wake) => (control, due) = self.changed.wait_until(control, wake),
                    None => control = self.changed.wait(control),
                }
            }
        }
    }

    fn clean_up(&self) -> Cleaned {
        let slots: Vec<_> = self.control.lock().slots.iter().filter_map(Weak::upgrade).collect();
        let cleaned = sweep(&slots, self.clock.now(), self.default_keep_alive());
        // May be the last owners: dropped outside the lock.
        drop(slots);
        if catch_unwind(AssertUnwindSafe(|| (self.housekeeping)())).is_err() {
            log::error!("the housekeeping after a clean-up panicked");
        }
        self.control.lock().last_cleanup = cleaned.at;
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
    /// Slots that still hold or load a value.
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
                match catch_unwind(AssertUnwindSafe(|| slot.unload_idle(&idle, Why::Idle))) {
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
