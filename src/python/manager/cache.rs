//! Methods of `Manager` for the embedding cache and its tiers.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::{PyManager, entered};
use crate::manager::EmbedOptions;
use crate::python::errors::OrRaise;
use crate::python::options::patience;
use crate::python::utf8::{Utf8, owned};
use crate::python::{argument, report};

#[pymethods]
impl PyManager {
    /// State of the embedding cache.
    fn cache_info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let statistics = entered(py, || self.0.manager.statistics())?;
        report::cache(py, &statistics, &self.0.settings(py)?)
    }

    /// Empty the cache and set its counts to zero. With `tiers`, disk and Redis are emptied too.
    #[pyo3(signature = (*, tiers = false))]
    fn cache_clear(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::tiers)] tiers: bool,
    ) -> PyResult<()> {
        self.0.enter(py, |manager, check| manager.clear_cache(tiers, check))
    }

    /// Wait until every result that is on its way to disk or Redis is stored, `timeout` seconds at most.
    #[pyo3(signature = (timeout = 10.0))]
    fn cache_flush(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::timeout)] timeout: f64,
    ) -> PyResult<()> {
        let patience = patience("timeout", timeout).or_raise(py)?;
        self.0.enter(py, |manager, check| manager.flush_cache(patience, check))
    }

    /// Read everything on disk: {whole, damaged}.
    fn cache_verify<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let verified = entered(py, || self.0.manager.verify_cache())?;
        let found = PyDict::new(py);
        found.set_item("whole", verified.whole)?;
        found.set_item("damaged", verified.damaged)?;
        Ok(found)
    }

    /// Write everything on disk to one file; how many results.
    fn cache_export(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::path)] path: PathBuf,
    ) -> PyResult<usize> {
        entered(py, || self.0.manager.export_cache(&path))
    }

    /// Add the results of such a file; how many were new.
    fn cache_import(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::path)] path: PathBuf,
    ) -> PyResult<usize> {
        entered(py, || self.0.manager.import_cache(&path))
    }

    /// Ask the servers of the cache now: (address, whether it answers) of each.
    fn _cache_probe(&self, py: Python<'_>) -> PyResult<Vec<(String, bool)>> {
        self.0.enter(py, |manager, check| manager.probe_cache(check))
    }

    /// Have the results of texts in the cache; with `pin`, they do not leave it because it is full.
    fn _cache_texts(&self, py: Python<'_>, texts: Vec<Utf8>, model: Option<Utf8>, pin: bool) -> PyResult<()> {
        let options = EmbedOptions { model: owned(model), pin, ..EmbedOptions::default() };
        let texts: Vec<String> = texts.into_iter().map(String::from).collect();
        self.0
            .enter(py, |manager, check| manager.embed(texts, options, check, &mut |_, _| Ok(())).map(|_| ()))
    }
}
