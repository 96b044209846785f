//! Python as the core's host: its environment, its packages, its objects, its patience.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;

use super::errors::to_py;
use super::leave::{attached, detached};
use crate::config::Host;
use crate::manager::{HostLoader, HostObject};
use crate::sync::Mutex;
use crate::{Error, Result};

/// The interpreter that imported us. Called from loader threads, which hold no lock then.
pub(super) struct PythonHost;

impl Host for PythonHost {
    /// From `os.environ`, not from the C library: reading that while Python writes it is a race.
    fn env(&self, name: &str) -> Option<String> {
        Python::try_attach(|py| {
            py.import("os").ok()?.getattr("environ").ok()?.call_method1("get", (name,)).ok()?.extract().ok()
        })
        .flatten()
    }

    fn package_dir(&self, name: &str) -> Option<PathBuf> {
        Python::try_attach(|py| {
            let spec = py.import("importlib.util").ok()?.call_method1("find_spec", (name,)).ok()?;
            // A module without a folder has no locations.
            spec.getattr("submodule_search_locations").ok()?.get_item(0).ok()?.extract().ok()
        })
        .flatten()
    }
}

/// A loader of the user's, and what it last raised.
pub(super) struct PythonLoader {
    callable: Py<PyAny>,
    raised: Mutex<Option<PyErr>>,
}

/// A user's object in a slot.
struct PythonObject(Py<PyAny>);

impl PythonLoader {
    pub(super) fn new(callable: Py<PyAny>) -> Arc<Self> {
        Arc::new(Self { callable, raised: Mutex::new(None) })
    }

    /// The loader as the core calls it, for the slot `name`.
    pub(super) fn into_host(self: Arc<Self>, name: &str) -> HostLoader {
        let name = name.to_owned();
        Arc::new(move || {
            let attached = Python::try_attach(|py| match self.callable.call0(py) {
                Ok(object) if object.is_none(py) => {
                    Err(Error::Loader { model: name.clone(), reason: "it returned None".into() })
                }
                Ok(object) => Ok(Arc::new(PythonObject(object)) as HostObject),
                Err(error) => {
                    let reason = error.to_string();
                    *self.raised.lock() = Some(error);
                    Err(Error::Loader { model: name.clone(), reason })
                }
            });
            attached.unwrap_or(Err(Error::Closed))
        })
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

/// Runs `work` detached from the interpreter. It gets a check to call while it waits, which does `meanwhile` and looks for
/// signals; what these raise (Ctrl-C) comes out as the exception itself.
pub(super) fn interruptible<T: Send>(
    py: Python<'_>,
    meanwhile: fn(Python<'_>) -> PyResult<()>,
    work: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> Result<T> + Send,
) -> PyResult<Result<T>> {
    let mut raised = None;
    let result = detached(py, || {
        let mut check = || match attached(|py| meanwhile(py).and_then(|()| py.check_signals())) {
            Ok(()) => Ok(()),
            Err(error) => {
                raised = Some(error);
                Err(Error::Cancelled)
            }
        };
        work(&mut check)
    });
    match raised {
        Some(error) => Err(error),
        None => Ok(result),
    }
}
