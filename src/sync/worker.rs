//! Background threads with a queue: one mechanism for all of them.
//!
//! A [`Worker`] owns a state behind a lock, and threads that wait for that state to change. The rules:
//!
//! * Threads are named `mm-<role>`. The first call that needs them starts them.
//! * A worker does not survive `fork`. The first call in a child makes a new state and new threads. The parent's state is
//!   neither locked nor freed there: a thread that does not exist in the child may hold its lock.
//! * A thread never waits for its own end, so the last owner of a worker may be one of its own threads.
//! * A panic ends its thread. Callers that wait get an error, and the next call starts a new thread.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::fork::Process;
use super::locks::{Condvar, Mutex, MutexGuard};
use super::primitives::thread::{self, JoinHandle};
use crate::{Error, Result};

/// Starts a thread named `mm-<role>`.
///
/// # Errors
/// The operating system's, when it provides no thread.
pub fn spawn(role: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("mm-{role}")).spawn(body)
}

/// Reports an error to the callers that were taken out of a state. Called without the lock.
pub type Abandon = Box<dyn FnOnce(&Error)>;

/// What the threads of a worker do with its state `S`.
pub trait Work<S>: Send + Sync + 'static {
    /// A state in which nothing waits: the first one of a process.
    fn fresh(&self) -> S;

    /// Serves the state until [`Guard::is_stopping`]. Runs on each thread of the worker.
    fn run(&self, thread: &WorkerThread<'_, S>);

    /// Takes the callers that still wait out of `state`, because the worker is closed or a thread has panicked.
    fn abandon(&self, state: &mut S) -> Option<Abandon> {
        let _ = state;
        None
    }
}

/// A state and the threads that serve it. Dropping it stops the threads and waits for nothing; [`Worker::close`] waits.
pub struct Worker<S: Send + 'static> {
    role: &'static str,
    threads: usize,
    work: Arc<dyn Work<S>>,
    monitor: ArcSwap<Monitor<S>>,
}

/// The state of a worker in one process, and the signals that it has changed.
pub struct Monitor<S> {
    process: Process,
    inner: Mutex<LockedWorker<S>>,
    /// The state has changed, or the worker stops.
    changed: Condvar,
    /// The worker stops, or one of its threads has ended.
    ending: Condvar,
    /// A thread has done a part of its work: [`Guard::report`].
    progress: Condvar,
}

struct LockedWorker<S> {
    state: S,
    stopping: bool,
    /// By number; `None` while not started.
    threads: Vec<Option<Member>>,
}

impl<S> LockedWorker<S> {
    /// Notes the stage of the calling thread, unless another one has taken its place.
    fn set_stage(&mut self, number: usize, stage: ThreadStage) {
        let own = thread::current().id();
        let member = self.threads[number].as_mut().filter(|member| member.handle.thread().id() == own);
        if let Some(member) = member {
            member.stage = stage;
        }
    }
}

struct Member {
    handle: JoinHandle<()>,
    stage: ThreadStage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ThreadStage {
    Running,
    /// Inside something that cannot be interrupted. [`Worker::join`] does not wait for it.
    Away,
    /// Serves no more, and reports to the callers that waited.
    Leaving,
    Ended,
}

impl<S: Send + 'static> Worker<S> {
    /// A worker of one thread, which is not started yet.
    pub fn new(role: &'static str, work: Arc<dyn Work<S>>) -> Self {
        Self::with_threads(role, 1, work)
    }

    /// A worker of several threads, which are not started yet.
    pub fn with_threads(role: &'static str, threads: usize, work: Arc<dyn Work<S>>) -> Self {
        let monitor = Monitor::new(Process::current(), work.fresh(), threads);
        Self { role, threads, work, monitor: ArcSwap::from_pointee(monitor) }
    }

    /// Changes the state and wakes a thread. Starts the threads that do not run.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`Worker::stop`]; [`Error::Internal`] when the operating system provides no thread.
    pub fn with<R>(&self, change: impl FnOnce(&mut S) -> R) -> Result<R> {
        let monitor = self.monitor();
        let mut inner = monitor.inner.lock();
        if inner.stopping {
            return Err(Error::Closed);
        }
        for number in 0..self.threads {
            let gone = |member: &Member| matches!(member.stage, ThreadStage::Leaving | ThreadStage::Ended);
            if inner.threads[number].as_ref().is_none_or(gone) {
                let handle = self.start_thread(&monitor, number).map_err(|error| Error::Internal {
                    place: format!("thread mm-{}", self.role),
                    reason: error.to_string(),
                })?;
                inner.threads[number] = Some(Member { handle, stage: ThreadStage::Running });
            }
        }
        let result = change(&mut inner.state);
        drop(inner);
        monitor.changed.notify_one();
        Ok(result)
    }

    /// Starts the threads now.
    ///
    /// # Errors
    /// As [`Worker::with`].
    pub fn start(&self) -> Result<()> {
        self.with(|_| ())
    }

    /// Reads or changes the state. Starts and wakes no thread, and works after [`Worker::stop`] too.
    pub fn look<R>(&self, look: impl FnOnce(&mut S) -> R) -> R {
        look(&mut self.monitor().inner.lock().state)
    }

    /// Waits while `waiting` holds, until `until` at most. It is asked at first, and whenever a thread reports progress. True
    /// when it holds no more.
    pub fn wait_while(&self, until: Instant, mut waiting: impl FnMut(&mut S) -> bool) -> bool {
        let monitor = self.monitor();
        let mut inner = monitor.inner.lock();
        let mut late = false;
        while waiting(&mut inner.state) {
            if late {
                return false;
            }
            (inner, late) = monitor.progress.wait_until(inner, until);
        }
        true
    }

    /// The state of this process. In a child made by `fork` the first call makes a new one.
    pub fn monitor(&self) -> Arc<Monitor<S>> {
        let found = self.monitor.load_full();
        if found.process.is_current() {
            return found;
        }
        let fresh = Arc::new(Monitor::new(Process::current(), self.work.fresh(), self.threads));
        // Of several threads that notice at once, one wins.
        let before = self.monitor.compare_and_swap(&found, fresh);
        if Arc::ptr_eq(&before, &found) {
            // The parent's state is not freed here: this reference is never returned.
            std::mem::forget(before.clone());
        }
        self.monitor.load_full()
    }

    /// Asks the threads to end, and waits for nothing. Later calls of [`Worker::with`] are refused.
    pub fn stop(&self) {
        let monitor = self.monitor.load();
        if monitor.process.is_current() {
            monitor.inner.lock().stopping = true;
            monitor.changed.notify_all();
            monitor.ending.notify_all();
        }
    }

    /// Waits for the threads to end, until `until` at most. True when they have. Does not wait for the calling thread, nor
    /// for threads that are away.
    pub fn join(&self, until: Option<Instant>) -> bool {
        let monitor = self.monitor.load();
        if !monitor.process.is_current() {
            return true;
        }
        let own = thread::current().id();
        let runs = |member: &Member| {
            matches!(member.stage, ThreadStage::Running | ThreadStage::Leaving)
                && member.handle.thread().id() != own
        };
        let mut inner = monitor.inner.lock();
        while inner.threads.iter().flatten().any(runs) {
            let late;
            (inner, late) = match until {
                Some(until) => monitor.ending.wait_until(inner, until),
                None => (monitor.ending.wait(inner), false),
            };
            if late {
                return false;
            }
        }
        let over = |thread: &mut Option<Member>| thread.take_if(|member| member.stage == ThreadStage::Ended);
        let ended: Vec<Member> = inner.threads.iter_mut().filter_map(over).collect();
        drop(inner);
        for member in ended {
            // Its last instructions. Panics were caught and reported.
            let _ = member.handle.join();
        }
        true
    }

    /// Stops the threads, gives callers that wait [`Error::Closed`], and waits for the threads.
    pub fn close(&self) {
        self.stop();
        let monitor = self.monitor.load();
        if monitor.process.is_current() {
            let abandon = self.work.abandon(&mut monitor.inner.lock().state);
            abandon.into_iter().for_each(|abandon| abandon(&Error::Closed));
            self.join(None);
        }
    }

    fn start_thread(&self, monitor: &Arc<Monitor<S>>, number: usize) -> io::Result<JoinHandle<()>> {
        let (role, work, monitor) = (self.role, Arc::clone(&self.work), Arc::clone(monitor));
        let body = move || serve(role, &*work, &monitor, number);
        if self.threads == 1 { spawn(role, body) } else { spawn(&format!("{role}-{number}"), body) }
    }
}

impl<S: Send + 'static> Drop for Worker<S> {
    fn drop(&mut self) {
        self.stop();
        let monitor = self.monitor.load_full();
        if !monitor.process.is_current() {
            std::mem::forget(monitor);
        }
    }
}

/// The life of one thread.
fn serve<S: 'static>(role: &str, work: &dyn Work<S>, monitor: &Monitor<S>, number: usize) {
    let _ended = Ended(monitor, number);
    let outcome = catch_unwind(AssertUnwindSafe(|| work.run(&WorkerThread { monitor, number })));
    let error = outcome.err().map_or(Error::Closed, |payload| {
        let error = Error::panic(format!("thread mm-{role}"), payload.as_ref());
        log::error!("{error}");
        error
    });
    let abandon = {
        let mut inner = monitor.inner.lock();
        // Under the lock that takes the callers out: who comes later starts another thread.
        inner.set_stage(number, ThreadStage::Leaving);
        let abandon = work.abandon(&mut inner.state);
        monitor.progress.notify_all();
        abandon
    };
    if let Some(abandon) = abandon
        && catch_unwind(AssertUnwindSafe(|| abandon(&error))).is_err()
    {
        log::error!("a caller of thread mm-{role} panicked");
    }
}

/// Marks a thread as ended, in whichever way it ends.
struct Ended<'a, S>(&'a Monitor<S>, usize);

impl<S> Drop for Ended<'_, S> {
    fn drop(&mut self) {
        self.0.inner.lock().set_stage(self.1, ThreadStage::Ended);
        self.0.ending.notify_all();
    }
}

impl<S> Monitor<S> {
    fn new(process: Process, state: S, threads: usize) -> Self {
        let threads = (0..threads).map(|_| None).collect();
        Self {
            process,
            inner: Mutex::new(LockedWorker { state, stopping: false, threads }),
            changed: Condvar::new(),
            ending: Condvar::new(),
            progress: Condvar::new(),
        }
    }

    /// Whether the threads are to end.
    #[cfg(test)]
    pub(crate) fn is_stopping(&self) -> bool {
        self.inner.lock().stopping
    }

    /// Has every waiting thread check its condition again. Does nothing in a child made by `fork`.
    pub fn wake_all(&self) {
        if self.process.is_current() {
            // Under the lock: a thread between its check and its wait does not miss the signal.
            let _inner = self.inner.lock();
            self.changed.notify_all();
        }
    }
}

impl<S> fmt::Debug for Monitor<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("process", &self.process).finish_non_exhaustive()
    }
}

/// One thread of a worker, as its work sees it.
pub struct WorkerThread<'a, S> {
    monitor: &'a Monitor<S>,
    number: usize,
}

impl<'a, S> WorkerThread<'a, S> {
    /// Locks the state.
    pub fn lock(&self) -> Guard<'a, S> {
        Guard { inner: self.monitor.inner.lock(), monitor: self.monitor, number: self.number }
    }

    /// Wakes another thread of the worker.
    pub fn wake_another(&self) {
        self.monitor.changed.notify_one();
    }
}

/// The locked state, on a thread of the worker.
pub struct Guard<'a, S> {
    inner: MutexGuard<'a, LockedWorker<S>>,
    monitor: &'a Monitor<S>,
    number: usize,
}

impl<S> Guard<'_, S> {
    /// Whether the thread is to end.
    pub fn is_stopping(&self) -> bool {
        self.inner.stopping
    }

    /// Waits for a change. May return without one.
    #[must_use]
    pub fn wait(self) -> Self {
        Self { inner: self.monitor.changed.wait(self.inner), ..self }
    }

    /// Waits for a change, until `at` at most. True when the wait ended by time.
    #[must_use]
    pub fn wait_until(self, at: Instant) -> (Self, bool) {
        let (inner, late) = self.monitor.changed.wait_until(self.inner, at);
        (Self { inner, ..self }, late)
    }

    /// Has callers of [`Worker::wait_while`] look at the state again, when the lock is free.
    pub fn report(&self) {
        self.monitor.progress.notify_all();
    }

    /// Waits until `at`, or until the worker stops.
    #[must_use]
    pub fn pause_until(mut self, at: Instant) -> Self {
        while !self.inner.stopping && Instant::now() < at {
            self.inner = self.monitor.ending.wait_until(self.inner, at).0;
        }
        self
    }

    /// Says whether this thread is inside something that cannot be interrupted: [`Worker::join`] does not wait for it.
    pub fn set_away(&mut self, away: bool) {
        self.inner.set_stage(self.number, if away { ThreadStage::Away } else { ThreadStage::Running });
        if away {
            self.monitor.ending.notify_all();
        }
    }
}

impl<S> Deref for Guard<'_, S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.inner.state
    }
}

impl<S> DerefMut for Guard<'_, S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.inner.state
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
