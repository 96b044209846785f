//! Users' loaders, and the objects that they return.

use std::sync::{Arc, mpsc};
use std::thread::{self, ThreadId};

use pyo3::prelude::*;

use super::errors::to_py;
use super::gil::calling;
use crate::lifecycle::act_for;
use crate::manager::{HostLoader, HostObject};
use crate::sync::Mutex;
use crate::{Error, Result};

/// A user's loader, and the exception that it raised last.
pub(super) struct PythonLoader {
    callable: Py<PyAny>,
    raised: Mutex<Option<PyErr>>,
}

/// A user's object in a slot.
struct PythonObject(Py<PyAny>);

/// One call of a loader, on a thread that Python started: see `model_manager/_loader.py`.
#[pyclass(frozen, name = "_Loading", module = "model_manager._core")]
struct Loading {
    model: String,
    loader: Arc<PythonLoader>,
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
            Err(Error::Loader { model: self.model.clone(), reason: "it returned None".into() })
        } else {
            Ok(Arc::new(PythonObject(object)) as HostObject)
        };
        // The receiver waits on a thread of its own until this is sent.
        let _ = self.outcome.send(outcome);
    }

    /// The loader has raised `error`.
    fn raised(&self, error: Bound<'_, PyAny>) {
        let _ = self.outcome.send(Err(self.loader.failed(&self.model, PyErr::from_value(error))));
    }
}

impl PythonLoader {
    pub(super) fn new(callable: Py<PyAny>) -> Arc<Self> {
        Arc::new(Self { callable, raised: Mutex::new(None) })
    }

    /// The loader as the core calls it, for the slot `name`.
    ///
    /// It runs on a thread of Python's: when the interpreter ends, Python unwinds the threads that run its code, and no
    /// frame of Rust may be among theirs.
    pub(super) fn into_host(self: Arc<Self>, name: &str) -> HostLoader {
        let name = name.to_owned();
        Arc::new(move || {
            let (sender, outcome) = mpsc::channel();
            let started =
                calling(|py| self.start(py, &name, sender).map_err(|error| self.failed(&name, error)));
            started.unwrap_or(Err(Error::Closed))?;
            outcome.recv().unwrap_or(Err(Error::Closed))
        })
    }

    fn start(
        self: &Arc<Self>,
        py: Python<'_>,
        name: &str,
        outcome: mpsc::Sender<Result<HostObject>>,
    ) -> PyResult<()> {
        let (model, loader, thread) = (name.to_owned(), Arc::clone(self), thread::current().id());
        let loading = Bound::new(py, Loading { model, loader, thread, outcome })?;
        let run = py.import("model_manager._loader")?.getattr("run")?;
        // Not `threading`'s: that waits for the thread to begin.
        py.import("_thread")?.call_method1("start_new_thread", (run, (&self.callable, loading))).map(drop)
    }

    /// Keeps what was raised as the cause of the error that callers get.
    fn failed(&self, name: &str, error: PyErr) -> Error {
        let reason = error.to_string();
        let before = self.raised.lock().replace(error);
        // Not under the lock: its frames own objects whose destructors are Python's code, which may call the manager.
        drop(before);
        Error::Loader { model: name.to_owned(), reason }
    }

    /// `error` as an exception whose cause is what the loader raised.
    pub(super) fn explain(&self, py: Python<'_>, error: &Error) -> PyErr {
        let exception = to_py(py, error);
        let cause = self.raised.lock().as_ref().map(|raised| raised.clone_ref(py));
        exception.set_cause(py, cause);
        exception
    }
}

/// The user's object behind `object`.
pub(super) fn unwrap_object(py: Python<'_>, object: &HostObject) -> Option<Py<PyAny>> {
    object.downcast_ref::<PythonObject>().map(|object| object.0.clone_ref(py))
}
