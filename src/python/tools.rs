//! Functions of `Manager` for the tiers and for learned habits, which Python's `BaseManager` calls.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::adaptive::{explanation, figures, forecast};
use super::argument;
use super::errors::OrRaise;
use super::gil::detached;
use super::manager::PyManager;
use super::options::positive_seconds;
use super::utf8::{Utf8, owned};
use crate::config::Choice as _;
use crate::lifecycle::policy::{AdaptiveSettings, Simulated, simulate};
use crate::manager::EmbedOptions;

/// Wait until every result that is on its way to disk or Redis is stored, `timeout` seconds at most.
#[pyfunction]
pub(super) fn _cache_flush(
    manager: &Bound<'_, PyManager>,
    #[pyo3(from_py_with = argument::timeout)] timeout: f64,
) -> PyResult<()> {
    let py = manager.py();
    let patience = positive_seconds("timeout", timeout).or_raise(py)?;
    let handle = Arc::clone(&manager.get().0);
    detached(py, || handle.manager.flush_cache(patience)).or_raise(py)
}

/// Ask the servers of the cache now: (address, whether it answers) of each.
#[pyfunction]
pub(super) fn _cache_probe(manager: &Bound<'_, PyManager>) -> PyResult<Vec<(String, bool)>> {
    let py = manager.py();
    let handle = Arc::clone(&manager.get().0);
    detached(py, || handle.manager.probe_cache()).or_raise(py)
}

/// Read everything on disk: {whole, damaged}.
#[pyfunction]
pub(super) fn _cache_verify<'py>(manager: &Bound<'py, PyManager>) -> PyResult<Bound<'py, PyDict>> {
    let py = manager.py();
    let handle = Arc::clone(&manager.get().0);
    let verified = detached(py, || handle.manager.verify_cache()).or_raise(py)?;
    let found = PyDict::new(py);
    found.set_item("whole", verified.whole)?;
    found.set_item("damaged", verified.damaged)?;
    Ok(found)
}

/// Write everything on disk to one file; how many results.
#[pyfunction]
pub(super) fn _cache_export(
    manager: &Bound<'_, PyManager>,
    #[pyo3(from_py_with = argument::path)] path: PathBuf,
) -> PyResult<usize> {
    let py = manager.py();
    let handle = Arc::clone(&manager.get().0);
    detached(py, || handle.manager.export_cache(&path)).or_raise(py)
}

/// Add the results of such a file; how many were new.
#[pyfunction]
pub(super) fn _cache_import(
    manager: &Bound<'_, PyManager>,
    #[pyo3(from_py_with = argument::path)] path: PathBuf,
) -> PyResult<usize> {
    let py = manager.py();
    let handle = Arc::clone(&manager.get().0);
    detached(py, || handle.manager.import_cache(&path)).or_raise(py)
}

/// Have the results of texts in the cache; with `pin`, they do not leave it because it is full.
#[pyfunction]
pub(super) fn _cache_texts(
    manager: &Bound<'_, PyManager>,
    texts: Vec<Utf8>,
    model: Option<Utf8>,
    pin: bool,
) -> PyResult<()> {
    let options = EmbedOptions { model: owned(model), pin, ..EmbedOptions::default() };
    let texts: Vec<String> = texts.into_iter().map(String::from).collect();
    let handle = Arc::clone(&manager.get().0);
    handle.enter(manager.py(), |manager, check| {
        manager.embed(texts, options, check, &mut |_, _| Ok(())).map(|_| ())
    })
}

/// Say that a slot will be needed soon.
#[pyfunction]
#[pyo3(signature = (manager, name, user = None))]
pub(super) fn _hint(
    manager: &Bound<'_, PyManager>,
    #[pyo3(from_py_with = argument::name)] name: Utf8,
    #[pyo3(from_py_with = argument::user)] user: Option<Utf8>,
) -> PyResult<bool> {
    let py = manager.py();
    let handle = Arc::clone(&manager.get().0);
    detached(py, || handle.manager.hint(&name, user.as_deref())).or_raise(py)
}

/// What decides how long a slot stays in memory.
#[pyfunction]
pub(super) fn _explain<'py>(
    manager: &Bound<'py, PyManager>,
    #[pyo3(from_py_with = argument::name)] name: Utf8,
) -> PyResult<Bound<'py, PyDict>> {
    let py = manager.py();
    let handle = Arc::clone(&manager.get().0);
    let found = detached(py, || {
        let found = handle.manager.explain(&name)?;
        let profile = handle.manager.settings()?.profile;
        Ok::<_, crate::Error>((found, handle.manager.fixed_stay(&name)?, profile))
    });
    let (found, fixed, profile) = found.or_raise(py)?;
    let sentence = found.as_ref().map_or(fixed, |found| found.explanation.sentence());
    let explained = explanation(py, &name, sentence, found.as_ref())?;
    explained.set_item("profile", profile.as_str())?;
    Ok(explained)
}

/// The loads ahead of a use that are planned.
#[pyfunction]
pub(super) fn _forecast<'py>(manager: &Bound<'py, PyManager>) -> PyResult<Bound<'py, PyList>> {
    let py = manager.py();
    let handle = Arc::clone(&manager.get().0);
    let planned = detached(py, || handle.manager.forecast()).or_raise(py)?;
    forecast(py, &planned)
}

/// The adaptive policy over one series of uses, for benchmarks: what it and the fixed timer would have spent, and which uses
/// would have waited for a load.
#[pyfunction]
#[pyo3(signature = (uses, *, load_seconds, max_idle_time = 600.0, cold_start_price = 1200.0, max_keep_alive = 14400.0))]
pub(super) fn _simulate_adaptive(
    py: Python<'_>,
    uses: Vec<f64>,
    load_seconds: f64,
    max_idle_time: f64,
    cold_start_price: f64,
    max_keep_alive: f64,
) -> PyResult<(Bound<'_, PyDict>, Vec<bool>)> {
    let settings = AdaptiveSettings {
        usual: positive_seconds("max_idle_time", max_idle_time).or_raise(py)?,
        price: positive_seconds("cold_start_price", cold_start_price).or_raise(py)?,
        longest: positive_seconds("max_keep_alive", max_keep_alive).or_raise(py)?,
    };
    let load = positive_seconds("load_seconds", load_seconds).or_raise(py)?;
    let Simulated { explanation, cold } = detached(py, || simulate(&uses, load, settings));
    Ok((figures(py, &explanation)?, cold))
}
