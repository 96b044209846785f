//! Attaching to the interpreter, and detaching from it, also while it ends.
//!
//! Python ends a daemon thread by unwinding it when it next attaches to the interpreter; frames of Rust turn that into an
//! abort of the process. So from [`_at_exit`] on, no thread but the one that ends the interpreter goes back into it from
//! here: it sleeps until the process is gone. Threads that run Python's code for the core are waited for, and may go in and
//! out meanwhile: one that slept with the lock of a logging handler would stop the end, which takes that lock too.

use std::cell::{Cell, RefCell};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use crate::held_log;

/// The thread that ends the interpreter, once it does.
static LEADER: OnceLock<ThreadId> = OnceLock::new();
/// Threads that have passed the check and are not back in the interpreter yet.
static RETURNING: AtomicUsize = AtomicUsize::new(0);
/// The end of the interpreter waits for them no more.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);
/// They wait for the interpreter for some switch intervals of 5 ms, import numpy, or run callbacks.
const PATIENCE: Duration = Duration::from_secs(5);

thread_local! {
    /// How many [`Inside`] this thread has.
    static INSIDE: Cell<usize> = const { Cell::new(0) };
}

/// `Python::detach`, without coming back to an interpreter that ends.
pub(super) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    let result = py.detach(|| {
        let result = work();
        announce();
        result
    });
    RETURNING.fetch_sub(1, Ordering::SeqCst);
    result
}

/// `Python::attach` for a thread that called `detached`, with the same care.
pub(super) fn attached<T>(work: impl FnOnce(Python<'_>) -> T) -> T {
    announce();
    Python::attach(|py| {
        RETURNING.fetch_sub(1, Ordering::SeqCst);
        work(py)
    })
}

/// `Python::try_attach` for threads of this crate that call Python's code: the end of the interpreter waits for those under way,
/// and later ones are not made. Never sleeps without limit: closing a manager joins these threads.
pub(super) fn calling<T>(work: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    let _inside = Inside::enter()?;
    Python::try_attach(work)
}

/// While it exists, this thread runs Python's own code from here, which the end of the interpreter waits for.
pub(super) struct Inside(());

/// To be kept, attached, around calls that may run much of Python's own code, such as the import of numpy.
pub(super) fn inside(py: Python<'_>) -> Inside {
    Inside::enter().unwrap_or_else(|| py.detach(stay_out))
}

impl Inside {
    /// `None` when the interpreter ends, and does not wait for this thread.
    fn enter() -> Option<Self> {
        RETURNING.fetch_add(1, Ordering::SeqCst);
        if is_shut() {
            RETURNING.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        INSIDE.set(INSIDE.get() + 1);
        Some(Self(()))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(INSIDE.get() - 1);
        RETURNING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The bridge to Python's logging, closed when the interpreter ends: a thread of the core's own that logs then would be
/// unwound too. Its record is lost.
struct Logger(pyo3_log::Logger);

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.while_open(|logger| logger.enabled(metadata)).unwrap_or(false)
    }

    fn log(&self, record: &log::Record<'_>) {
        if held_log::keep(record) {
            return;
        }
        self.while_open(|logger| {
            if logger.enabled(record.metadata()) {
                Python::attach(|py| {
                    let before = PyErr::take(py);
                    logger.log(record);
                    let raised = PyErr::take(py);
                    if let Some(before) = before {
                        before.restore(py);
                    }
                    if let Some(raised) = raised {
                        after_logging(py, raised);
                    }
                });
            }
        });
    }

    fn flush(&self) {}
}

thread_local! {
    /// What a signal handler raised on this thread where nothing could be raised.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Keeps what a signal handler raised (Ctrl-C) while Python's logging ran. An error of a logging handler is reported as one
/// that cannot be raised.
fn after_logging(py: Python<'_>, raised: PyErr) {
    if raised.is_instance_of::<PyException>(py) {
        raised.write_unraisable(py, None);
    } else {
        keep(raised);
    }
}

/// Keeps what a signal handler raised (Ctrl-C) until [`interrupted`], which every method calls at its end: for places that
/// have no result to return it in, such as a log call. Of several, the first one is kept.
pub(super) fn keep(raised: PyErr) {
    let kept = RAISED.take().unwrap_or(raised);
    RAISED.set(Some(kept));
}

/// What a signal handler raised on this thread where it could not be raised, once.
pub(super) fn interrupted() -> PyResult<()> {
    RAISED.take().map_or(Ok(()), Err)
}

impl Logger {
    fn while_open<T>(&self, work: impl FnOnce(&pyo3_log::Logger) -> T) -> Option<T> {
        let _inside = Inside::enter()?;
        Some(work(&self.0))
    }
}

/// Log records of the core go to Python's `logging`. A second interpreter in the process shares the first's logger.
///
/// Python decides on each record, since its levels may change at any time; records are few. Libraries' records below
/// warnings are not passed on.
pub(super) fn install_logger(py: Python<'_>) -> PyResult<()> {
    let logger = pyo3_log::Logger::new(py, pyo3_log::Caching::Loggers)?
        .filter(log::LevelFilter::Warn)
        .filter_target(env!("CARGO_CRATE_NAME").to_owned(), log::LevelFilter::Debug);
    if log::set_boxed_logger(Box::new(Logger(logger))).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
    Ok(())
}

fn announce() {
    RETURNING.fetch_add(1, Ordering::SeqCst);
    if is_shut() {
        RETURNING.fetch_sub(1, Ordering::SeqCst);
        stay_out();
    }
}

/// Whether this thread may not go into the interpreter, which ends.
fn is_shut() -> bool {
    let ends_elsewhere = || LEADER.get().is_some_and(|leader| *leader != thread::current().id());
    ends_elsewhere() && (INSIDE.get() == 0 || GIVEN_UP.load(Ordering::SeqCst))
}

/// Whether the interpreter is about to end, or has.
pub(super) fn is_ending() -> bool {
    LEADER.get().is_some()
}

fn stay_out() -> ! {
    loop {
        thread::park();
    }
}

/// Called when the interpreter is about to end: keeps other threads out, after those on their way in have arrived.
#[pyfunction]
pub(super) fn _at_exit(py: Python<'_>) {
    if LEADER.set(thread::current().id()).is_err() {
        return;
    }
    py.detach(|| {
        let deadline = Instant::now() + PATIENCE;
        while RETURNING.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        GIVEN_UP.store(true, Ordering::SeqCst);
    });
}

/// In a forked child: the other threads that were counted do not exist.
pub(super) fn forget_others() {
    RETURNING.store(INSIDE.get(), Ordering::SeqCst);
}
