//! Users' loaders, and the objects that they return.

use std::sync::{Arc, mpsc};
use std::thread::{self, ThreadId};

use pyo3::prelude::*;

use super::gil::calling;
use crate::error::HostCause;
use crate::lifecycle::act_for;
use crate::manager::{HostLoader, HostObject};
use crate::{Error, Result};

/// A user's object in a slot.
struct PythonObject(Py<PyAny>);

/// One call of a loader, on a thread that Python started: see `model_manager/_loader.py`.
#[pyclass(frozen, name = "_Loading", module = "model_manager._core")]
struct Loading {
    model: String,
    /// The core's loader thread, which waits for this one.
    thread: ThreadId,
    outcome: mpsc::Sender<Result<HostObject>>,
}

#[pymethods]
impl Loading {
    /// Called first, on the thread that loads.
    fn begin(&self) {
        act_for(self.thread);
    }

    /// The loader has returned `object`.
    fn returned(&self, object: Py<PyAny>, py: Python<'_>) {
        let outcome = if object.is_none(py) {
            Err(Error::loader(&self.model, "it returned None"))
        } else {
            Ok(Arc::new(PythonObject(object)) as HostObject)
        };
        // The receiver waits on a thread of its own until this is sent.
        let _ = self.outcome.send(outcome);
    }

    /// The loader has raised `error`.
    fn raised(&self, error: Bound<'_, PyAny>) {
        let _ = self.outcome.send(Err(failed(&self.model, PyErr::from_value(error))));
    }
}

/// A user's loader as the core calls it, for the slot `name`.
///
/// It runs on a thread of Python's: when the interpreter ends, Python unwinds the threads that run its code, and no frame
/// of Rust may be among theirs.
pub(super) fn host_loader(name: &str, callable: Py<PyAny>) -> HostLoader {
    let name = name.to_owned();
    Arc::new(move || {
        let (sender, outcome) = mpsc::channel();
        let started = calling(|py| start(py, &name, &callable, sender).map_err(|error| failed(&name, error)));
        started.unwrap_or(Err(Error::Closed))?;
        outcome.recv().unwrap_or(Err(Error::Closed))
    })
}

fn start(
    py: Python<'_>,
    name: &str,
    callable: &Py<PyAny>,
    outcome: mpsc::Sender<Result<HostObject>>,
) -> PyResult<()> {
    let loading =
        Bound::new(py, Loading { model: name.to_owned(), thread: thread::current().id(), outcome })?;
    let run = py.import("model_manager._loader")?.getattr("run")?;
    // Not `threading`'s: that waits for the thread to begin.
    py.import("_thread")?.call_method1("start_new_thread", (run, (callable, loading))).map(drop)
}

/// The error of a loader that raised.
fn failed(name: &str, raised: PyErr) -> Error {
    let reason = raised.to_string();
    Error::Loader { model: name.to_owned(), reason, cause: Some(HostCause(Arc::new(raised))) }
}

/// The exception that a loader raised, if that is why it failed.
pub(super) fn cause(error: &Error) -> Option<&PyErr> {
    match error {
        Error::Loader { cause: Some(HostCause(raised)), .. } => raised.downcast_ref(),
        _ => None,
    }
}

/// The user's object behind `object`.
pub(super) fn unwrap_object(py: Python<'_>, object: &HostObject) -> Option<Py<PyAny>> {
    object.downcast_ref::<PythonObject>().map(|object| object.0.clone_ref(py))
}
