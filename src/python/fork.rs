//! The hooks that `os.register_at_fork` calls: they pause computing and carry every manager over the fork.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::gil::{forget_others, keep};
use super::numpy_api::settle_numpy;
use crate::manager::{Inheritance, Manager};
use crate::sync::{Mutex, fork};

/// Every manager of the process. Locked briefly, and across no fork.
static MANAGERS: Mutex<Vec<Weak<Manager>>> = Mutex::new(Vec::new());

/// A manager and what a child inherits of it.
type Carried = (Arc<Manager>, Inheritance);

thread_local! {
    /// Whether computing was paused for the fork, and what the forking thread carries over it.
    static CARRIED: RefCell<(bool, Vec<Carried>)> = const { RefCell::new((false, Vec::new())) };
}

/// Registers `manager`, so that forks carry it over.
pub(super) fn watch(manager: &Arc<Manager>) {
    let mut managers = MANAGERS.lock();
    managers.retain(|manager| manager.strong_count() > 0);
    managers.push(Arc::downgrade(manager));
}

/// Called before `os.fork`: waits until no model computes, and notes what a child inherits.
#[pyfunction]
pub(super) fn _before_fork(py: Python<'_>) {
    let managers: Vec<_> = MANAGERS.lock().iter().filter_map(Weak::upgrade).collect();
    // First of all: waiting for it lets other threads run.
    settled(py);
    let paused = py.detach(fork::pause);
    // Attached from here to the fork, so that no other thread begins. Does nothing, unless one has begun the import meanwhile.
    settled(py);
    let carried = managers.into_iter().map(|manager| {
        let inheritance = manager.before_fork();
        (manager, inheritance)
    });
    CARRIED.set((paused, carried.collect()));
}

/// How often numpy is waited for while signal handlers interrupt that.
const ATTEMPTS: usize = 16;

/// `settle_numpy`, also while signal handlers raise: Python has no place for an exception before a fork.
fn settled(py: Python<'_>) {
    for _ in 0..ATTEMPTS {
        match settle_numpy(py) {
            Err(raised) if !raised.is_instance_of::<PyException>(py) => keep(raised),
            Err(error) => return log::error!("numpy may not work in a forked child: {error}"),
            Ok(()) => return,
        }
    }
}

/// Called after `os.fork` in the parent: computing goes on.
#[pyfunction]
pub(super) fn _after_fork_parent(py: Python<'_>) {
    fork::resume();
    let carried = CARRIED.take();
    // The last lease of a model may be among them.
    py.detach(|| drop(carried));
}

/// Called after `os.fork` in the child: managers get new threads and keep their models.
#[pyfunction]
pub(super) fn _after_fork_child() {
    fork::resume_in_child();
    forget_others();
    let (paused, carried) = CARRIED.take();
    for (manager, inheritance) in carried {
        if let Err(error) = manager.after_fork_child(inheritance, paused) {
            log::error!("models were not carried over a fork: {error}");
        }
    }
}
