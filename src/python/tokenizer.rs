//! A model's tokenizer alone, for the benchmarks.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyList;

use super::errors::OrRaise;
use super::gil;
use super::utf8::Utf8;
use crate::models::Tokenizer;

/// The tokenizer of a `tokenizer.json` or of a GGUF file.
#[pyclass(name = "_Tokenizer", module = "model_manager._core", frozen)]
pub(super) struct PyTokenizer(Tokenizer);

#[pymethods]
impl PyTokenizer {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        gil::detached(py, || Tokenizer::of_file(&path)).or_raise(py).map(Self)
    }

    /// The ids of each text, special tokens included.
    fn ids<'py>(&self, py: Python<'py>, texts: Vec<Utf8>) -> PyResult<Bound<'py, PyList>> {
        let encode = || texts.iter().map(|text| self.0.encode(text, usize::MAX)).collect();
        let ids: Vec<Vec<u32>> = gil::detached(py, || -> crate::Result<_> { encode() }).or_raise(py)?;
        PyList::new(py, ids)
    }

    /// How many ids each text has.
    fn counts(&self, py: Python<'_>, texts: Vec<Utf8>) -> PyResult<Vec<usize>> {
        let count = || texts.iter().map(|text| self.0.count(text)).collect();
        gil::detached(py, || -> crate::Result<_> { count() }).or_raise(py)
    }
}
