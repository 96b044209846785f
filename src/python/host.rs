//! Python as the core's host: its environment, its packages, its patience.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;

use super::gil::{attached, calling, detached, interrupted_while_logging};
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
        calling(read)?.unwrap_or_else(|error| {
            log::warn!("{name} of os.environ cannot be read, so it counts as not set: {error}");
            None
        })
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
        let read =
            calling(|py| py.import("model_manager._dotenv")?.call_method0("load_into_environment").map(drop));
        if let Some(Err(error)) = read {
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
            interrupted_while_logging()?;
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
        None => interrupted_while_logging().map(|()| result),
    }
}
