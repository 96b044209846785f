//! Results of the core as numpy arrays, without copying. Each kind of result has its own form.

use std::sync::Arc;

use numpy::{PyArray1, PyArrayMethods, PyReadwriteArray1};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::errors::OrRaise;
use super::gil::inside;
use super::numpy_api::import_numpy;
use crate::cache::CachedItem;
use crate::compute::memory::reserve;
use crate::output::{Combined, Dense, Item, MultiVector, Output, SparseVector};

/// Owner of a cached vector's memory, as numpy's base object: it gives their address and keeps them alive.
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

/// A read-only array that shares the memory of a cached result.
pub(super) fn shared_array(py: Python<'_>, cached: &CachedItem) -> PyResult<Py<PyAny>> {
    match cached.item() {
        // numpy lets a caller change the shape and the type of a read-only array: each has a view of its own.
        Item::Dense(values) | Item::Scores(values) => {
            parked_array(py, cached, values)?.call_method0(py, intern!(py, "view"))
        }
        Item::Sparse(_) | Item::Multi(_) | Item::All(_) => copied_array(py, cached.item()),
    }
}

/// The array that views of a cached result are made of: made at the first call, the same object afterwards.
fn parked_array(py: Python<'_>, cached: &CachedItem, values: &Arc<[f32]>) -> PyResult<Py<PyAny>> {
    let parked = |cached: &CachedItem| {
        let array = cached.parked().get()?.downcast_ref::<Py<PyAny>>()?;
        Some(array.clone_ref(py))
    };
    if let Some(array) = parked(cached) {
        return Ok(array);
    }
    import_numpy(py)?;
    let owner = Bound::new(py, SharedVector(Arc::clone(values)))?;
    // A view, which no caller reaches: the base of views of it is the array below, whose shape callers may change.
    let array = py.import("numpy")?.call_method1("asarray", (owner,))?.call_method0("view")?.unbind();
    // Another thread may have parked its own meanwhile: then both return that one.
    let _ = cached.parked().set(Box::new(array.clone_ref(py)));
    Ok(parked(cached).unwrap_or(array))
}

/// An array of the caller's own.
pub(super) fn copied_array(py: Python<'_>, item: &Item) -> PyResult<Py<PyAny>> {
    import_numpy(py)?;
    match item {
        Item::Dense(vector) | Item::Scores(vector) => {
            let mut values = Vec::new();
            reserve(&mut values, vector.len()).or_raise(py)?;
            values.extend_from_slice(vector);
            Ok(PyArray1::from_vec(py, values).into_any().unbind())
        }
        Item::Sparse(item) => sparse(py, item),
        Item::Multi(item) => multi(py, item),
        Item::All(item) => combined(py, item),
    }
}

/// The result of a call, whose memory is handed over: the item of one input, or those of several.
pub(super) fn array(py: Python<'_>, output: Output, single: bool, copy: bool) -> PyResult<Py<PyAny>> {
    let _inside = inside(py);
    import_numpy(py)?;
    match output {
        Output::Dense(vectors) if single => row_array(py, vectors, copy),
        Output::Dense(vectors) | Output::Scores(vectors) => {
            let shape = [vectors.rows(), vectors.width()];
            Ok(PyArray1::from_vec(py, vectors.into_values()).reshape(shape)?.into_any().unbind())
        }
        other => results(py, other),
    }
}

/// The results of several inputs: an array where all have the same width, else a list.
pub(super) fn results(py: Python<'_>, output: Output) -> PyResult<Py<PyAny>> {
    match output {
        Output::Sparse(ragged) => list(py, &ragged.items, sparse),
        Output::Multi(ragged) => list(py, &ragged.items, multi),
        Output::All(ragged) => list(py, &ragged.items, combined),
        dense => array(py, dense, false, true),
    }
}

fn list<T>(
    py: Python<'_>,
    items: &[T],
    convert: fn(Python<'_>, &T) -> PyResult<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    let _inside = inside(py);
    import_numpy(py)?;
    let list = PyList::empty(py);
    items.iter().try_for_each(|item| list.append(convert(py, item)?))?;
    Ok(list.into_any().unbind())
}

/// The three results of a text: an array, a pair of arrays, and an array.
fn combined(py: Python<'_>, item: &Combined) -> PyResult<Py<PyAny>> {
    let dense = PyArray1::from_slice(py, &item.dense);
    let (sparse, multi) = (sparse(py, &item.sparse)?, multi(py, &item.multi)?);
    Ok((dense, sparse, multi).into_pyobject(py)?.into_any().unbind())
}

/// The entries and weights of a sparse vector: a pair of arrays.
fn sparse(py: Python<'_>, item: &SparseVector) -> PyResult<Py<PyAny>> {
    let indices = PyArray1::from_slice(py, &item.indices);
    let values = PyArray1::from_slice(py, &item.values);
    Ok((indices, values).into_pyobject(py)?.into_any().unbind())
}

/// The vectors of tokens: one row each.
fn multi(py: Python<'_>, item: &MultiVector) -> PyResult<Py<PyAny>> {
    let rows = item.values.len().checked_div(item.width).unwrap_or(0);
    Ok(PyArray1::from_slice(py, &item.values).reshape([rows, item.width])?.into_any().unbind())
}

/// A matrix of one row as an array (dim,); read-only unless `copy`, like one from the cache.
fn row_array(py: Python<'_>, vectors: Dense, copy: bool) -> PyResult<Py<PyAny>> {
    let array = PyArray1::from_vec(py, vectors.into_values());
    if !copy {
        let writing: PyReadwriteArray1<'_, f32> = array.try_readwrite().map_err(PyErr::from)?;
        drop(writing.make_nonwriteable());
    }
    Ok(array.into_any().unbind())
}
