//! The import of numpy and of its C API, before any array is made.
//!
//! It runs on a thread of Python's own: signal handlers run on the main thread only. One that raised in the middle of the
//! import (Ctrl-C) would leave numpy half imported, and no later import mends that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use numpy::PyArray1;
use pyo3::exceptions::{PyImportError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::gil::{detached, inside, interrupted};

/// Set when arrays can be made.
static SETTLED: PyOnceLock<()> = PyOnceLock::new();
/// Whether an import was begun here.
static BEGUN: AtomicBool = AtomicBool::new(false);
/// How often a thread that waits for the import looks for signals.
const SIGNALS: Duration = Duration::from_millis(20);

/// One import, for `model_manager/_numpy.py`.
#[pyclass(frozen, name = "_NumpyImport", module = "model_manager._core")]
struct NumpyImport(mpsc::Sender<PyResult<()>>);

#[pymethods]
impl NumpyImport {
    /// Numpy is imported: its C API is set up. Making an array does that, and panics where it fails.
    fn settle(&self, py: Python<'_>) {
        SETTLED.get_or_init(py, || drop(PyArray1::<f32>::zeros(py, 0, false)));
        // Without a receiver the caller was interrupted.
        let _ = self.0.send(Ok(()));
    }

    /// The import has raised `error`.
    fn raised(&self, error: Bound<'_, PyAny>) {
        let _ = self.0.send(Err(PyErr::from_value(error)));
    }
}

/// Completes the set-up of numpy's C API, which another thread may have begun. A child process that is forked in the middle
/// of it would wait for that thread, which does not exist there.
pub(super) fn settle_numpy(py: Python<'_>) -> PyResult<()> {
    let begun = BEGUN.load(Ordering::Relaxed);
    if begun || py.import("sys")?.getattr("modules")?.contains("numpy")? { import_numpy(py) } else { Ok(()) }
}

/// Imports numpy and its C API: before any array is made, best while its numbers are still computed. An interrupt (Ctrl-C)
/// ends the waiting, and the import goes on.
///
/// # Errors
/// What the import raised, and what a signal handler raised meanwhile.
pub(super) fn import_numpy(py: Python<'_>) -> PyResult<()> {
    if SETTLED.get(py).is_some() {
        return Ok(());
    }
    let _inside = inside(py);
    if is_importing(py)? {
        // Waits for another thread that imports it.
        py.import("numpy")?;
        if is_importing(py)? {
            // This thread imports it, and would wait for a thread that waits for this one.
            let reason = "vectors are asked for in the middle of the import of numpy; import numpy before";
            return Err(PyImportError::new_err(reason));
        }
    }
    BEGUN.store(true, Ordering::Relaxed);
    let (sender, mut outcome) = mpsc::channel();
    let import = Bound::new(py, NumpyImport(sender))?;
    let run = py.import("model_manager._numpy")?.getattr("run")?;
    // Not `threading`'s: that waits for the thread to begin.
    let started = py.import("_thread")?.call_method1("start_new_thread", (&run, (&import,)));
    match started {
        Ok(_) => drop(import),
        // No thread can be had: the interpreter ends, for example.
        Err(error) if error.is_instance_of::<PyRuntimeError>(py) => drop(run.call1((import,))?),
        Err(error) => return Err(error),
    }
    loop {
        let arrived;
        (arrived, outcome) = detached(py, move || (outcome.recv_timeout(SIGNALS), outcome));
        match arrived {
            // Here, where it can be raised: what comes next may be a hook of Python's, such as those before a fork.
            Ok(imported) => return imported.and_then(|()| py.check_signals()),
            Err(RecvTimeoutError::Timeout) => {
                interrupted()?;
                py.check_signals()?;
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyImportError::new_err("the thread that imports numpy has ended"));
            }
        }
    }
}

/// Whether some thread is in the middle of importing numpy.
fn is_importing(py: Python<'_>) -> PyResult<bool> {
    let modules = py.import("sys")?.getattr("modules")?;
    if !modules.contains("numpy")? {
        return Ok(false);
    }
    let spec = modules.get_item("numpy")?.getattr_opt("__spec__")?;
    let initializing = spec.map(|spec| spec.getattr_opt("_initializing")).transpose()?.flatten();
    initializing.map_or(Ok(false), |initializing| initializing.is_truthy())
}
