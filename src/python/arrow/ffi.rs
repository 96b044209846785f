//! Arrow's C structures in Python capsules: the PyCapsule interface of Arrow. The only unsafe code outside of `compute/`.
//!
//! Source: <https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html>.

#![allow(unsafe_code)]

use std::ffi::CStr;

use arrow_array::array::{ArrayRef, make_array};
use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi, to_ffi};
use arrow_array::ffi_stream::{ArrayStreamReader, FFI_ArrowArrayStream};
use arrow_array::{Array, ArrayReader};
use arrow_schema::{ArrowError, DataType};
use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple, PyType};

use crate::Error;
use crate::python::errors::to_py;

const SCHEMA: &CStr = c"arrow_schema";
const ARRAY: &CStr = c"arrow_array";
const STREAM: &CStr = c"arrow_array_stream";

/// A column: its type, and its arrays. Their values are not checked yet.
pub(super) type Chunks = (DataType, Vec<ArrayRef>);

/// What `exporter` has under `__arrow_c_stream__` or `__arrow_c_array__`; None when it has neither, or exports only with a
/// package that is not installed (a pandas Series without pyarrow).
pub(super) fn import(exporter: &Bound<'_, PyAny>) -> PyResult<Option<Result<Chunks, ArrowError>>> {
    if exporter.is_instance_of::<PyType>() {
        return Ok(None); // its methods need an object
    }
    let exported = |method: &str| {
        let Some(export) = exporter.getattr_opt(method)? else { return Ok(None) };
        match export.call0() {
            Err(error) if error.is_instance_of::<PyImportError>(exporter.py()) => Ok(None),
            result => result.map(Some),
        }
    };
    if let Some(capsule) = exported("__arrow_c_stream__")? {
        let capsule = capsule.cast_into::<PyCapsule>()?;
        let stream = capsule.pointer_checked(Some(STREAM))?.cast::<FFI_ArrowArrayStream>();
        // SAFETY:
        // - The capsule has the name of the interface, whose exporters put a valid `ArrowArrayStream` behind it.
        // - `from_raw` moves the structure out and leaves a released one, which the capsule's destructor skips.
        // - No Python code runs between `pointer_checked` and the move; the capsule is alive until the end of this block.
        let reader = unsafe { ArrayStreamReader::from_raw(stream.as_ptr()) };
        return Ok(Some(reader.and_then(|reader| {
            let kind = reader.field().data_type().clone();
            let chunks = reader.collect::<Result<_, _>>();
            if kind == DataType::Null && chunks.is_err() {
                // Exporters differ in what buffers such a column has.
                let reason = "the column has no type, since it holds nulls alone; cast it to strings";
                return Err(ArrowError::CDataInterface(reason.into()));
            }
            Ok((kind, chunks?))
        })));
    }
    let Some(pair) = exported("__arrow_c_array__")? else { return Ok(None) };
    let pair = pair.cast_into::<PyTuple>()?;
    let (schema, array) = (pair.get_item(0)?, pair.get_item(1)?);
    let (schema, array) = (schema.cast::<PyCapsule>()?, array.cast::<PyCapsule>()?);
    let schema = schema.pointer_checked(Some(SCHEMA))?.cast::<FFI_ArrowSchema>();
    let array = array.pointer_checked(Some(ARRAY))?.cast::<FFI_ArrowArray>();
    // SAFETY:
    // - Both capsules have the names of the interface, whose exporters put a valid `ArrowSchema` and a valid `ArrowArray` of
    //   that schema behind them.
    // - `from_raw` moves the array out and leaves a released one, which the capsule's destructor skips.
    // - The schema is read only, while its capsule is alive: `pair` holds both until the end of this function.
    let data = unsafe { from_ffi(FFI_ArrowArray::from_raw(array.as_ptr()), schema.as_ref()) };
    Ok(Some(data.map(|data| (data.data_type().clone(), vec![make_array(data)]))))
}

/// The capsules of `array`: its schema and itself. A consumer moves the structures out; what it does not move is released
/// with the capsules.
pub(super) fn export<'py>(py: Python<'py>, array: &dyn Array) -> PyResult<Bound<'py, PyTuple>> {
    let (array, schema) = to_ffi(&array.to_data()).map_err(|error| foreign(py, &error))?;
    let schema = PyCapsule::new_with_value(py, schema, SCHEMA)?;
    let array = PyCapsule::new_with_value(py, array, ARRAY)?;
    PyTuple::new(py, [schema, array])
}

/// The capsule of the schema alone.
pub(super) fn export_schema<'py>(py: Python<'py>, array: &dyn Array) -> PyResult<Bound<'py, PyCapsule>> {
    let schema = FFI_ArrowSchema::try_from(array.data_type()).map_err(|error| foreign(py, &error))?;
    PyCapsule::new_with_value(py, schema, SCHEMA)
}

/// An error of another library's data.
pub(super) fn foreign(py: Python<'_>, error: &ArrowError) -> PyErr {
    to_py(py, &Error::argument("texts", format!("the Arrow data cannot be read: {error}")))
}
