//! What every method of `Manager` needs: the core's manager, entered detached.

use std::sync::Arc;

use pyo3::prelude::*;

use super::errors::OrRaise;
use super::gil::attached;
use super::host::{ManagerHost, entered, interruptible};
use super::numpy_api::import_numpy;
use crate::config::Settings;
use crate::manager::Manager;
use crate::{Error, Result};

/// A manager of the core, and what belongs to it in Python.
pub(super) struct Handle {
    pub(super) manager: Arc<Manager>,
    pub(super) host: Arc<ManagerHost>,
}

/// Code that runs detached. It gets the manager, and a check to call while it waits.
pub(super) trait DetachedWork<T>:
    FnOnce(&Manager, &mut dyn FnMut() -> Result<()>) -> Result<T> + Send
{
}
impl<T, F: FnOnce(&Manager, &mut dyn FnMut() -> Result<()>) -> Result<T> + Send> DetachedWork<T> for F {}

impl Handle {
    pub(super) fn new(manager: Manager, host: Arc<ManagerHost>) -> Self {
        Self { manager: Arc::new(manager), host }
    }

    /// Runs `work` detached.
    pub(super) fn enter<T: Send>(&self, py: Python<'_>, work: impl DetachedWork<T>) -> PyResult<T> {
        interruptible(py, |_| Ok(()), |check| work(&self.manager, check))?.or_raise(py)
    }

    /// `enter` for work that ends in an array, or leads to one: numpy is imported while the model loads, not after it.
    pub(super) fn enter_for_array<T: Send>(&self, py: Python<'_>, work: impl DetachedWork<T>) -> PyResult<T> {
        interruptible(py, import_numpy, |check| work(&self.manager, check))?.or_raise(py)
    }

    /// `enter_for_array` for work that reports its progress. An exception of `progress` ends the work and comes out as itself.
    pub(super) fn enter_reporting<T: Send>(
        &self,
        py: Python<'_>,
        progress: Option<&Py<PyAny>>,
        work: impl FnOnce(
            &Manager,
            &mut dyn FnMut() -> Result<()>,
            &mut dyn FnMut(usize, usize) -> Result<()>,
        ) -> Result<T>
        + Send,
    ) -> PyResult<T> {
        let mut raised = None;
        let result = self.enter_for_array(py, |manager, check| {
            let mut report = |done: usize, all: usize| match progress {
                None => Ok(()),
                Some(progress) => attached(|py| progress.call1(py, (done, all)).map(drop)).map_err(|error| {
                    raised = Some(error);
                    Error::Cancelled
                }),
            };
            work(manager, check, &mut report)
        });
        match raised {
            Some(raised) => Err(raised),
            None => result,
        }
    }

    /// The manager for a call that stays attached. It is built first, detached: building reads Python's environment, and
    /// another thread that builds may wait for the interpreter.
    pub(super) fn built(&self, py: Python<'_>) -> PyResult<&Manager> {
        if !self.manager.is_built() {
            entered(py, || self.manager.settings())?;
        }
        Ok(&self.manager)
    }

    pub(super) fn settings(&self, py: Python<'_>) -> PyResult<Settings> {
        self.built(py)?.settings().or_raise(py)
    }
}
