//! Late interaction over numpy arrays.

use numpy::{PyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::errors::OrRaise;
use super::gil::detached;
use crate::compute::{Isa, maxsim};
use crate::sync::fork;
use crate::{Error, Result};

/// MaxSim of a query with each document: contiguous float32 arrays of rows of one width. Other threads run meanwhile.
#[pyfunction]
pub(super) fn _maxsim<'py>(
    query: PyReadonlyArray2<'py, f32>,
    documents: Vec<PyReadonlyArray2<'py, f32>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let py = query.py();
    let width = query.shape()[1];
    let rows = |array: &'_ PyReadonlyArray2<'py, f32>| -> Result<()> {
        if array.shape()[1] == width {
            return Ok(());
        }
        let reason = format!(
            ": the vectors of the query have {width} dimensions, and those of a document {}; embed both with one model",
            array.shape()[1]
        );
        Err(Error::argument("documents", reason))
    };
    documents.iter().try_for_each(rows).or_raise(py)?;
    let slices =
        documents.iter().map(|document| document.as_slice()).collect::<std::result::Result<Vec<_>, _>>();
    let (query, slices) = (query.as_slice()?, slices?);
    let scores = detached(py, || {
        let _computing = fork::computing();
        maxsim(Isa::from_env()?, query, &slices, width)
    });
    Ok(PyArray1::from_vec(py, scores.or_raise(py)?))
}
