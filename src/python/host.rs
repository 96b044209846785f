//! Python as the core's host: its environment, its packages, its patience.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::errors::OrRaise;
use super::gil::{attached, calling, detached, interrupted, keep};
use crate::config::Host;
use crate::{Error, Result};

/// The interpreter that imported this module. Called from loader threads, without locks.
pub(super) struct PythonHost;

impl Host for PythonHost {
    /// From `os.environ`, not from the C library: reading that while Python writes it is a race.
    fn env(&self, name: &str) -> Option<String> {
        let read = |py: Python<'_>| -> PyResult<Option<String>> {
            py.import("os")?.getattr("environ")?.call_method1("get", (name,))?.extract()
        };
        calling(|py| uninterrupted(py, read))?.unwrap_or_else(|error| {
            log::warn!("{name} of os.environ cannot be read, so it counts as not set: {error}");
            None
        })
    }

    fn package_dir(&self, name: &str) -> Option<PathBuf> {
        let find = |py: Python<'_>| -> PyResult<Option<PathBuf>> {
            let spec = py.import("importlib.util")?.call_method1("find_spec", (name,))?;
            if spec.is_none() {
                return Ok(None);
            }
            let folders = spec.getattr("submodule_search_locations")?;
            // A module without a folder has no locations.
            if folders.is_none() { Ok(None) } else { folders.get_item(0)?.extract() }
        };
        calling(|py| uninterrupted(py, find))?.unwrap_or_default()
    }
}

/// How often one thing is read while signal handlers interrupt it.
const READINGS: usize = 16;

/// What `read` returns, which calls Python's own code. A signal handler may raise there (Ctrl-C): its exception is kept for
/// the end of the call, and `read` begins again, so that what it reads never counts as absent. An exception of the usual
/// kind that comes a second time is that of `read`.
fn uninterrupted<T>(py: Python<'_>, read: impl Fn(Python<'_>) -> PyResult<T>) -> PyResult<T> {
    let (mut interrupt, mut unclear) = (None, None);
    let mut found = read(py);
    for _ in 1..READINGS {
        match found {
            Err(raised) if !raised.is_instance_of::<PyException>(py) => {
                interrupt = interrupt.or(Some(raised));
            }
            Err(raised) if unclear.is_none() => unclear = Some(raised),
            _ => break,
        }
        found = read(py);
    }
    // Not before: calls within `read` would raise it.
    let of_handler = interrupt.or(unclear.filter(|_| found.is_ok()));
    if let Some(raised) = of_handler {
        keep(raised);
    }
    found
}

/// The interpreter as the host of one manager.
#[derive(Default)]
pub(super) struct ManagerHost {
    /// Set for the manager that the whole process shares: it also looks where the chatbot keeps settings and models.
    pub(super) process_wide: AtomicBool,
}

impl Host for ManagerHost {
    fn env(&self, name: &str) -> Option<String> {
        PythonHost.env(name)
    }

    fn package_dir(&self, name: &str) -> Option<PathBuf> {
        PythonHost.package_dir(name)
    }

    fn before_settings(&self) {
        if !self.process_wide.load(Ordering::Relaxed) {
            return;
        }
        let load = |py: Python<'_>| -> PyResult<()> {
            py.import("model_manager._dotenv")?.call_method0("load_into_environment").map(drop)
        };
        if let Some(Err(error)) = calling(|py| uninterrupted(py, load)) {
            log::warn!("the file .env cannot be read: {error}");
        }
    }

    fn model_folders(&self) -> Vec<PathBuf> {
        let own = self.process_wide.load(Ordering::Relaxed).then(|| PathBuf::from("models_cache"));
        own.into_iter().filter(|folder| folder.is_dir()).collect()
    }
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
        let mut check = || match attached(|py| {
            interrupted()?;
            meanwhile(py)?;
            py.check_signals()
        }) {
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
        None => interrupted().map(|()| result),
    }
}

/// Runs `work`, which does not wait for long, detached and to its end. What a signal handler raised meanwhile (Ctrl-C) comes out
/// as the exception itself.
pub(super) fn entered<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    let result = detached(py, work);
    interrupted()?;
    result.or_raise(py)
}
