//! Python as the core's host: its environment, its packages, its patience.

use std::path::PathBuf;

use pyo3::prelude::*;

use super::leave::{attached, calling, detached};
use crate::config::Host;
use crate::{Error, Result};

/// The interpreter that imported us. Called from loader threads, which hold no lock then.
pub(super) struct PythonHost;

impl Host for PythonHost {
    /// From `os.environ`, not from the C library: reading that while Python writes it is a race.
    fn env(&self, name: &str) -> Option<String> {
        calling(|py| {
            py.import("os").ok()?.getattr("environ").ok()?.call_method1("get", (name,)).ok()?.extract().ok()
        })
        .flatten()
    }

    fn package_dir(&self, name: &str) -> Option<PathBuf> {
        calling(|py| {
            let spec = py.import("importlib.util").ok()?.call_method1("find_spec", (name,)).ok()?;
            // A module without a folder has no locations.
            spec.getattr("submodule_search_locations").ok()?.get_item(0).ok()?.extract().ok()
        })
        .flatten()
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
