//! The extension module `model_manager._core`. PyO3 and nothing else: extract, detach, call the manager, convert.

#![allow(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over by value")]

mod adaptive;
mod argument;
mod arrow;
mod caching;
mod chat;
mod config;
mod discard;
mod embed;
mod errors;
mod fork;
mod generation;
mod gil;
mod handle;
mod host;
mod infer;
mod known;
mod loader;
mod manager;
mod maxsim;
mod numpy_api;
mod options;
mod register;
mod report;
mod submit;
mod texts;
mod tokenizer;
mod tracing;
mod tracker;
mod utf8;
mod vectors;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use self::errors::OrRaise;
use crate::compute::{Isa, memory};
use crate::models::Source;
use crate::{json, language};

/// The chatbot's detector on the text as given.
#[pyfunction]
fn is_turkish(#[pyo3(from_py_with = argument::text)] text: Bound<'_, PyString>) -> PyResult<bool> {
    Ok(language::is_turkish(texts::text_of(&text, None)?))
}

/// The name of a model with the whole path of its folder, if it is one that is named from the working directory.
#[pyfunction]
fn _settled_source(name: &str) -> String {
    Source::settled(name).unwrap_or_else(|| name.to_owned())
}

/// The improved detector on the text as given.
#[pyfunction]
fn _is_turkish_improved(#[pyo3(from_py_with = argument::text)] text: Bound<'_, PyString>) -> PyResult<bool> {
    Ok(language::improved::is_turkish(texts::text_of(&text, None)?))
}

/// Resident memory of this process, bytes; 0 on a system that does not report it.
#[pyfunction]
fn resident_bytes() -> u64 {
    memory::resident_bytes()
}

/// Ask the allocator to return unused memory; the bytes by which resident memory fell.
#[pyfunction]
fn trim_memory(py: Python<'_>) -> u64 {
    gil::detached(py, || {
        let before = memory::resident_bytes();
        memory::trim();
        before.saturating_sub(memory::resident_bytes())
    })
}

/// Instruction set that the kernels use.
#[pyfunction]
fn isa(py: Python<'_>) -> PyResult<String> {
    Ok(Isa::from_env().or_raise(py)?.to_string())
}

/// Instruction sets that this CPU has kernels for, lowest first.
#[pyfunction]
fn available_isas() -> Vec<String> {
    Isa::available().map(|isa| isa.to_string()).collect()
}

/// Values and keys in a JSON text, no fewer than a parser would make. Other threads run meanwhile.
#[pyfunction]
fn _json_values(py: Python<'_>, text: &Bound<'_, PyBytes>) -> usize {
    let bytes = text.as_bytes();
    gil::detached(py, || json::values(bytes))
}

/// The Rust core of model_manager.
#[pymodule]
mod _core {
    #[pymodule_export]
    use super::adaptive::_simulate_adaptive;
    #[pymodule_export]
    use super::arrow::ArrowVectors;
    #[pymodule_export]
    use super::config::{_config_from, _hub_cache, PyConfig};
    #[pymodule_export]
    use super::errors::_error_classes;
    #[pymodule_export]
    use super::fork::{_after_fork_child, _after_fork_parent, _before_fork};
    #[pymodule_export]
    use super::generation::{PyGenerationTicket, PyTextStream};
    #[pymodule_export]
    use super::gil::_at_exit;
    #[pymodule_export]
    use super::known::{_families, _refusal};
    #[pymodule_export]
    use super::manager::PyManager;
    #[pymodule_export]
    use super::maxsim::_maxsim;
    #[pymodule_export]
    use super::submit::PyTicket;
    #[pymodule_export]
    use super::tokenizer::PyTokenizer;
    #[pymodule_export]
    use super::tracing::_set_tracer;
    #[pymodule_export]
    use super::tracker::PyTracker;
    #[pymodule_export]
    use super::{
        _is_turkish_improved, _json_values, _settled_source, available_isas, is_turkish, isa, resident_bytes,
        trim_memory,
    };

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        super::gil::install_logger(module.py())?;
        Ok(())
    }
}
