//! Each error of the core becomes one exception of `model_manager.errors`. The only place that knows both.

use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::loader::cause;
use crate::Error;
use crate::error::placed;

/// Every error kind with the name of its exception class.
macro_rules! kinds {
    ($($variant:ident => $class:literal,)+) => {
        /// The exception class of an error, by name.
        fn class_name(error: &Error) -> &'static str {
            // No wildcard: a new error does not compile without its exception.
            match error {
                $(Error::$variant { .. } => $class,)+
            }
        }

        /// Error kinds and exception classes, for the test that both lists are complete.
        const KINDS: &[(&str, &str)] = &[$((stringify!($variant), $class)),+];
    };
}

kinds! {
    Config => "ConfigError",
    Input => "InputError",
    Argument => "ArgumentError",
    UnknownModel => "UnknownModelError",
    Task => "TaskError",
    ModelNotFound => "ModelNotFoundError",
    MissingFile => "MissingFileError",
    InvalidFile => "InvalidFileError",
    Unsupported => "UnsupportedModelError",
    Permission => "ModelPermissionError",
    Download => "DownloadError",
    Remote => "RemoteError",
    RemoteRefused => "RemoteRefusedError",
    Io => "ModelIOError",
    Timeout => "WaitTimeoutError",
    Overloaded => "OverloadedError",
    Budget => "MemoryBudgetError",
    OutOfMemory => "OutOfMemoryError",
    DeviceMemory => "DeviceMemoryError",
    NotFinite => "NotFiniteError",
    Cancelled => "RequestCancelledError",
    Forked => "ForkedError",
    Closed => "ClosedError",
    Loader => "LoaderError",
    NoGenerator => "NoGeneratorError",
    Internal => "InternalError",
}

fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("model_manager.errors")?.getattr(name)
}

/// The exception for `error`.
pub(super) fn to_py(py: Python<'_>, error: &Error) -> PyErr {
    let message = error.to_string();
    let made = class(py, class_name(error)).and_then(|class| {
        let exception = class.call1((&message,))?;
        if let Some(param) = error.param() {
            exception.setattr("param", param)?;
        }
        if let Some(code) = error.code() {
            exception.setattr("code", code)?;
        }
        if error.passes() {
            exception.setattr("transient", true)?;
        }
        if let Some((path, code)) = error.system() {
            exception.setattr("filename", path.into_os_string())?;
            exception.setattr("errno", code)?;
        }
        if let Some((place, rest)) = error.about() {
            set_about(&exception, place, rest)?;
        }
        Ok(exception)
    });
    match made {
        Ok(exception) => {
            let exception = PyErr::from_value(exception);
            if let Some(raised) = cause(error) {
                exception.set_cause(py, Some(raised.clone_ref(py)));
            }
            exception
        }
        // The interpreter is shutting down, or the package is damaged.
        Err(_) => PyRuntimeError::new_err(message),
    }
}

/// A `TypeError` that names the argument to blame, as the exceptions of the core's own errors do.
pub(super) fn wrong_type(py: Python<'_>, param: &str, message: String) -> PyErr {
    let error = PyTypeError::new_err(message);
    // Without the attribute the message still says it.
    let _ = error.value(py).setattr("param", param);
    error
}

/// The same, where the message begins with the argument or the item at `place` in it, and goes on with `rest`.
pub(super) fn wrong_type_of(py: Python<'_>, param: &str, place: &[usize], rest: &str) -> PyErr {
    let error = wrong_type(py, param, format!("{}{rest}", placed(param, place)));
    let _ = set_about(error.value(py), place, rest);
    error
}

/// What a host needs to write the message with its own name of the argument.
fn set_about(exception: &Bound<'_, PyAny>, place: &[usize], rest: &str) -> PyResult<()> {
    exception.setattr("_place", PyTuple::new(exception.py(), place)?)?;
    exception.setattr("_rest", rest)
}

/// Results of the core as results of Python.
pub(super) trait OrRaise<T> {
    /// Raises the exception of an error.
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for crate::Result<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| to_py(py, &error))
    }
}

/// Each error kind of the core and the exception that it becomes.
#[pyfunction]
pub(super) fn _error_classes(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let classes = PyDict::new(py);
    for (kind, name) in KINDS {
        classes.set_item(kind, class(py, name)?)?;
    }
    Ok(classes)
}
