//! Methods of `Manager` for what was learned of the use of models.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::{PyManager, entered};
use crate::config::Choice as _;
use crate::python::utf8::Utf8;
use crate::python::{adaptive, argument};

#[pymethods]
impl PyManager {
    /// Say that a slot will be needed soon.
    #[pyo3(signature = (name, user = None))]
    fn hint(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::name)] name: Utf8,
        #[pyo3(from_py_with = argument::user)] user: Option<Utf8>,
    ) -> PyResult<bool> {
        entered(py, || self.0.manager.hint(&name, user.as_deref()))
    }

    /// What decides how long a slot stays in memory.
    fn explain<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = argument::name)] name: Utf8,
    ) -> PyResult<Bound<'py, PyDict>> {
        let manager = &self.0.manager;
        let (found, fixed, profile) = entered(py, || {
            let found = manager.explain(&name)?;
            let profile = manager.settings()?.profile;
            Ok((found, manager.fixed_stay(&name)?, profile))
        })?;
        let sentence = found.as_ref().map_or(fixed, |found| found.explanation.sentence());
        let explained = adaptive::explanation(py, &name, sentence, found.as_ref())?;
        explained.set_item("profile", profile.as_str())?;
        Ok(explained)
    }

    /// The loads ahead of a use that are planned.
    fn forecast<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let planned = entered(py, || self.0.manager.forecast())?;
        adaptive::forecast(py, &planned)
    }
}
