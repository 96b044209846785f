//! Vectors of the core as numpy arrays, without copying.

use std::sync::Arc;

use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadwriteArray1};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use super::errors::OrRaise;
use super::gil::inside;
use crate::cache::Vector;
use crate::compute::memory::reserve;
use crate::manager::Matrix;

/// Owner of a cached vector's memory, as numpy's base object: it tells where the values are and keeps them alive.
#[pyclass(frozen, name = "_SharedVector", module = "model_manager._core")]
struct SharedVector(Arc<[f32]>);

#[pymethods]
impl SharedVector {
    /// numpy's array interface, version 3: a read-only C-contiguous float32 vector.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("shape", (self.0.len(),))?;
        interface.set_item("typestr", if cfg!(target_endian = "little") { "<f4" } else { ">f4" })?;
        interface.set_item("data", (self.0.as_ptr() as usize, true))?;
        Ok(interface)
    }
}

/// Ends the set-up of the link to numpy that another thread may have begun: a child process that is forked in the middle
/// of it would wait for that thread for ever.
pub(super) fn settle_numpy(py: Python<'_>) -> PyResult<()> {
    if py.import("sys")?.getattr("modules")?.contains("numpy")? {
        PyArray1::<f32>::zeros(py, 0, false);
    }
    Ok(())
}

/// Imports numpy; for a thread that waits for what it will put into an array.
pub(super) fn import_numpy(py: Python<'_>) -> PyResult<()> {
    static IMPORTED: PyOnceLock<()> = PyOnceLock::new();
    let _inside = inside(py);
    IMPORTED.get_or_try_init(py, || py.import("numpy").map(drop)).copied()
}

/// The read-only array that shares the memory of `vector`: made at the first call, the same object afterwards.
pub(super) fn shared_array(py: Python<'_>, vector: &Vector) -> PyResult<Py<PyAny>> {
    let parked = |vector: &Vector| {
        vector.view().get().and_then(|view| view.downcast_ref::<Py<PyAny>>()).map(|array| array.clone_ref(py))
    };
    if let Some(array) = parked(vector) {
        return Ok(array);
    }
    let owner = Bound::new(py, SharedVector(Arc::clone(vector.values())))?;
    let array = py.import("numpy")?.call_method1("asarray", (owner,))?.unbind();
    // Another thread may have parked its own meanwhile: then both return that one.
    let _ = vector.view().set(Box::new(array.clone_ref(py)));
    Ok(parked(vector).unwrap_or(array))
}

/// An array of the caller's own.
pub(super) fn copied_array<'py>(py: Python<'py>, vector: &Vector) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let mut values = Vec::new();
    reserve(&mut values, vector.as_slice().len()).or_raise(py)?;
    values.extend_from_slice(vector.as_slice());
    Ok(PyArray1::from_vec(py, values))
}

/// The matrix as an array (n, dim) of the caller's own; the memory is handed over.
pub(super) fn matrix_array(py: Python<'_>, matrix: Matrix) -> PyResult<Bound<'_, PyArray2<f32>>> {
    let shape = [matrix.rows, matrix.width];
    PyArray1::from_vec(py, matrix.values).reshape(shape)
}

/// A matrix of one row as an array (dim,); read-only unless `copy`, like one from the cache.
pub(super) fn row_array(py: Python<'_>, matrix: Matrix, copy: bool) -> PyResult<Py<PyAny>> {
    let array = PyArray1::from_vec(py, matrix.values);
    if !copy {
        let writing: PyReadwriteArray1<'_, f32> = array.try_readwrite().map_err(PyErr::from)?;
        drop(writing.make_nonwriteable());
    }
    Ok(array.into_any().unbind())
}
