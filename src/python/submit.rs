//! Calls that do not wait: their results go to a callback of Python's.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::gil::{calling, detached};
use super::manager::PyManager;
use crate::Result;
use crate::manager::{EmbedOptions, Inputs, Manager, Matrix, Ticket};
use crate::wire::Encoding;

/// A request under way.
#[pyclass(frozen, name = "Ticket", module = "model_manager._core")]
pub(super) struct PyTicket(Ticket);

#[pymethods]
impl PyTicket {
    /// Whether `on_done` has been called, is about to be, or never will be (cancelled).
    #[getter]
    fn done(&self, py: Python<'_>) -> bool {
        detached(py, || self.0.is_done())
    }

    /// Give the request up. True: `on_done` will not be called any more; False: it is too late.
    fn cancel(&self, py: Python<'_>) -> bool {
        detached(py, || self.0.cancel())
    }
}

/// `on_done(array, error)`.
pub(super) fn vectors(
    manager: &Bound<'_, PyManager>,
    inputs: Inputs,
    options: EmbedOptions,
    on_done: Py<PyAny>,
    array: impl FnOnce(Python<'_>, Matrix) -> PyResult<Py<PyAny>> + Send + 'static,
) -> PyResult<PyTicket> {
    let reply = reply(manager, on_done, move |py, result: PyResult<Matrix>| {
        match result.and_then(|matrix| array(py, matrix)) {
            Ok(array) => (array, py.None()).into_pyobject(py),
            Err(error) => (py.None(), error.into_value(py)).into_pyobject(py),
        }
    });
    started(manager, |manager| manager.submit(inputs, options, Box::new(reply)))
}

/// `on_done(body, tokens, error)`.
pub(super) fn response(
    manager: &Bound<'_, PyManager>,
    inputs: Inputs,
    options: EmbedOptions,
    served_model: String,
    encoding: Encoding,
    on_done: Py<PyAny>,
) -> PyResult<PyTicket> {
    let reply = reply(manager, on_done, |py, result: PyResult<(Vec<u8>, u64)>| {
        // Python may have no memory for its copy.
        let copied = result.and_then(|(body, tokens)| {
            let copy = |bytes: &mut [u8]| {
                bytes.copy_from_slice(&body);
                Ok(())
            };
            Ok((PyBytes::new_with(py, body.len(), copy)?, tokens))
        });
        match copied {
            Ok((body, tokens)) => (body, tokens, py.None()).into_pyobject(py),
            Err(error) => (py.None(), 0, error.into_value(py)).into_pyobject(py),
        }
    });
    started(manager, |manager| {
        manager.submit_response(inputs, options, served_model, encoding, Box::new(reply))
    })
}

/// Submits detached: a result from the cache is told, and a body written, before `submit` returns.
fn started(
    manager: &Bound<'_, PyManager>,
    submit: impl FnOnce(&Manager) -> Result<Ticket> + Send,
) -> PyResult<PyTicket> {
    let (py, manager) = (manager.py(), manager.get());
    detached(py, || submit(manager.core())).map(PyTicket).map_err(|error| manager.explain(py, &error))
}

/// Has `on_done` called with what `arguments` makes of the result, on whichever thread has it.
fn reply<T>(
    manager: &Bound<'_, PyManager>,
    on_done: Py<PyAny>,
    arguments: impl for<'py> FnOnce(Python<'py>, PyResult<T>) -> PyResult<Bound<'py, PyTuple>> + Send + 'static,
) -> impl FnOnce(Result<T>) + Send + 'static {
    let manager = manager.clone().unbind();
    move |result: Result<T>| {
        // Nobody is there to be told while the interpreter shuts down.
        calling(|py| {
            let result = result.map_err(|error| manager.get().explain(py, &error));
            if let Err(error) = arguments(py, result).and_then(|arguments| on_done.call1(py, arguments)) {
                error.write_unraisable(py, Some(on_done.bind(py)));
            }
            // Both are Python's: let go of them here, attached.
            drop((manager, on_done));
        });
    }
}
