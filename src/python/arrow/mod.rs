//! Texts from Arrow columns, and vectors as Arrow arrays, without Python objects for single values.

mod capsules;

use std::sync::Arc;

use arrow_array::array::{Array, ArrayRef, FixedSizeListArray, Float32Array};
use arrow_buffer::NullBuffer;
use arrow_schema::{ArrowError, DataType, Field};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict, PyTuple};

use super::errors::OrRaise;
use crate::arrow::{Column, ColumnKind, Imported};
use crate::compute::memory::reserve;
use crate::output::Dense;
use crate::{Error, Result};

/// Vectors of one call as an Arrow array: FixedSizeList<float32, dim>, null where a text was null.
#[pyclass(frozen, name = "ArrowVectors", module = "model_manager._core")]
pub(super) struct ArrowVectors(FixedSizeListArray);

#[pymethods]
impl ArrowVectors {
    /// The schema and the array in capsules, of the same memory.
    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        // The interface lets an exporter ignore the request; the consumer casts.
        drop(requested_schema);
        capsules::export(py, &self.0)
    }

    /// The schema in a capsule.
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        capsules::export_schema(py, &self.0)
    }

    /// numpy's array interface, version 3: read-only float32 of shape (n, dim), of the same memory. Null rows are NaN.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("shape", (self.0.len(), self.0.value_length()))?;
        interface.set_item("typestr", if cfg!(target_endian = "little") { "<f4" } else { ">f4" })?;
        interface.set_item("data", (self.0.values().to_data().buffers()[0].as_ptr() as usize, true))?;
        Ok(interface)
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// Length of a vector.
    #[getter]
    fn dimension(&self) -> i32 {
        self.0.value_length()
    }

    /// Rows that are null.
    #[getter]
    fn null_count(&self) -> usize {
        self.0.null_count()
    }

    fn __repr__(&self) -> String {
        format!("<ArrowVectors {} x {}, {} null>", self.0.len(), self.0.value_length(), self.0.null_count())
    }
}

/// The texts of a column.
fn read(py: Python<'_>, mut imported: Imported) -> PyResult<Column> {
    // Dropped attached: a release function may be Python's.
    py.detach(|| imported.read()).or_raise(py)
}

/// The texts of an object that exports a column of text. None for columns of other types, which may be token ids; a frame,
/// whose items are columns, is an error.
pub(super) fn texts(exporter: &Bound<'_, PyAny>) -> PyResult<Option<Vec<String>>> {
    match capsules::import(exporter)? {
        Some(imported) if !matches!(imported.kind(), ColumnKind::Other(_)) => {
            let column = read(exporter.py(), imported)?;
            column.all().map(Some).or_raise(exporter.py())
        }
        _ => Ok(None),
    }
}

/// The column of an object that must export one.
pub(super) fn column(exporter: &Bound<'_, PyAny>) -> PyResult<Column> {
    match capsules::import(exporter)? {
        Some(imported) => read(exporter.py(), imported),
        None => Err(PyTypeError::new_err(format!(
            "texts must export an Arrow column (__arrow_c_stream__ or __arrow_c_array__), not be a {}; embed() takes lists",
            exporter.get_type().name()?
        ))),
    }
}

/// The array of `vectors`; those of rows that are not valid are missing among them.
pub(super) fn vectors_of(vectors: Dense, valid: Option<Vec<bool>>) -> Result<ArrowVectors> {
    let width = vectors.width();
    let values = match &valid {
        None => vectors.into_values(),
        Some(valid) => spread(&vectors, valid)?,
    };
    let internal = |error: ArrowError| Error::internal("arrow", error);
    let length =
        i32::try_from(width).map_err(|error| internal(ArrowError::ComputeError(error.to_string())))?;
    let rows = valid.as_ref().map_or(values.len() / width.max(1), Vec::len);
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let values: ArrayRef = Arc::new(Float32Array::from(values));
    let nulls = valid.map(NullBuffer::from);
    FixedSizeListArray::try_new_with_length(item, length, values, nulls, rows)
        .map(ArrowVectors)
        .map_err(internal)
}

/// A row for each text and for each null; those of nulls are NaN.
fn spread(vectors: &Dense, valid: &[bool]) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    reserve(&mut values, valid.len().saturating_mul(vectors.width()))?;
    let mut next = 0;
    for &valid in valid {
        if valid {
            values.extend_from_slice(vectors.row(next));
            next += 1;
        } else {
            values.resize(values.len() + vectors.width(), f32::NAN);
        }
    }
    Ok(values)
}
