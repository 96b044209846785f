//! Late interaction over numpy arrays.

use numpy::{PyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::errors::OrRaise;
use super::gil::detached;
use super::numpy_api::import_numpy;
use crate::Error;
use crate::compute::{Isa, maxsim};
use crate::sync::fork;

/// MaxSim of a query with each document: contiguous float32 arrays of rows of one width. Other threads run meanwhile.
#[pyfunction]
pub(super) fn _maxsim<'py>(
    query: &Bound<'py, PyAny>,
    documents: Vec<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let py = query.py();
    import_numpy(py)?;
    let query: PyReadonlyArray2<'py, f32> = query.extract()?;
    let documents: Vec<PyReadonlyArray2<'py, f32>> =
        documents.iter().map(|document| document.extract()).collect::<Result<_, _>>()?;
    let width = query.shape()[1];
    let rows = |array: &'_ PyReadonlyArray2<'py, f32>| -> crate::Result<()> {
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
    let slices = documents.iter().map(|document| document.as_slice()).collect::<Result<Vec<_>, _>>();
    let (query, slices) = (query.as_slice()?, slices?);
    let scores = detached(py, || {
        let _computing = fork::computing();
        maxsim(Isa::from_env()?, query, &slices, width)
    });
    Ok(PyArray1::from_vec(py, scores.or_raise(py)?))
}
