//! Arrow's C structures in Python capsules: the PyCapsule interface of Arrow.
//!
//! Source: <https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html>.

#![allow(unsafe_code)] // the calls of `crate::arrow`

use std::ffi::CStr;

use arrow_array::array::Array;
use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema, to_ffi};
use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_schema::ArrowError;
use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;
use pyo3::sync::critical_section::{with_critical_section, with_critical_section2};
use pyo3::types::{PyCapsule, PyTuple, PyType};

use crate::Error;
use crate::arrow::{Imported, import_array, import_stream};
use crate::python::errors::{OrRaise, to_py};

const SCHEMA: &CStr = c"arrow_schema";
const ARRAY: &CStr = c"arrow_array";
const STREAM: &CStr = c"arrow_array_stream";

/// What `exporter` has under `__arrow_c_stream__` or `__arrow_c_array__`; None when it has neither, or exports only with a
/// package that is not installed (a pandas Series without pyarrow).
pub(super) fn import(exporter: &Bound<'_, PyAny>) -> PyResult<Option<Imported>> {
    let py = exporter.py();
    if exporter.is_instance_of::<PyType>() {
        return Ok(None); // its methods need an object
    }
    let exported = |method: &str| {
        let Some(export) = exporter.getattr_opt(method)? else { return Ok(None) };
        match export.call0() {
            Err(error) if error.is_instance_of::<PyImportError>(py) => Ok(None),
            result => result.map(Some),
        }
    };
    if let Some(capsule) = exported("__arrow_c_stream__")? {
        let capsule = capsule.cast_into::<PyCapsule>()?;
        let stream = capsule.pointer_checked(Some(STREAM))?.cast::<FFI_ArrowArrayStream>();
        // SAFETY:
        // - The capsule has the name of the interface, so its exporter put an aligned and initialized stream behind it whose
        //   functions are those of the interface.
        // - `capsule` keeps the structure alive. No Python code runs between `pointer_checked` and the move, which is the first
        //   thing that the function does, and a released structure stays behind.
        // - This thread is attached, as functions need that are written in Python. Without a GIL, another thread that imports the
        //   same capsule waits for the critical section, and finds it released.
        let imported = with_critical_section(&capsule, || unsafe { import_stream(stream) });
        return imported.or_raise(py).map(Some);
    }
    let Some(pair) = exported("__arrow_c_array__")? else { return Ok(None) };
    let pair = pair.cast_into::<PyTuple>()?;
    let (schema, array) = (pair.get_item(0)?, pair.get_item(1)?);
    let (schema, array) = (schema.cast::<PyCapsule>()?, array.cast::<PyCapsule>()?);
    let of_schema = schema.pointer_checked(Some(SCHEMA))?.cast::<FFI_ArrowSchema>();
    let of_array = array.pointer_checked(Some(ARRAY))?.cast::<FFI_ArrowArray>();
    // SAFETY:
    // - Both capsules have the names of the interface, so their exporter put an aligned and initialized schema and an array of
    //   it behind them, as the interface demands them or released.
    // - `pair` keeps both structures alive until the end of this function. The array is moved out first, and a released one
    //   stays behind. The schema is not moved and only read, before anything is released, so nothing changes it meanwhile.
    // - This thread is attached, as functions need that are written in Python. Without a GIL, another thread that imports the
    //   same capsules waits for the critical section, and finds the array released.
    let import = || unsafe { import_array(of_array, of_schema.as_ref()) };
    with_critical_section2(schema, array, import).or_raise(py).map(Some)
}

/// The capsules of `array`: its schema and itself. A consumer moves the structures out; what it does not move is released
/// with the capsules.
pub(super) fn export<'py>(py: Python<'py>, array: &dyn Array) -> PyResult<Bound<'py, PyTuple>> {
    let (array, schema) = to_ffi(&array.to_data()).map_err(|error| failed(py, &error))?;
    let schema = PyCapsule::new_with_value(py, schema, SCHEMA)?;
    let array = PyCapsule::new_with_value(py, array, ARRAY)?;
    PyTuple::new(py, [schema, array])
}

/// The capsule of the schema alone.
pub(super) fn export_schema<'py>(py: Python<'py>, array: &dyn Array) -> PyResult<Bound<'py, PyCapsule>> {
    let schema = FFI_ArrowSchema::try_from(array.data_type()).map_err(|error| failed(py, &error))?;
    PyCapsule::new_with_value(py, schema, SCHEMA)
}

/// An error of our own array.
fn failed(py: Python<'_>, error: &ArrowError) -> PyErr {
    to_py(py, &Error::internal("arrow", error))
}
