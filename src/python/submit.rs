//! Calls that do not wait: their results go to a callback of Python's.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::errors::to_py;
use super::gil::{calling, detached, interrupted};
use super::handle::Handle;
use super::tracing::{self, Call, CallOutcome, Ending};
use super::vectors::array;
use crate::manager::{EmbedOptions, Embeddings, Inputs, Manager, Ticket};
use crate::sync::fork::Process;
use crate::wire::Encoding;
use crate::{Error, Result};

/// A request under way.
#[pyclass(frozen, name = "Ticket", module = "model_manager._core")]
pub(super) struct PyTicket {
    ticket: Ticket,
    call: Option<Arc<Call>>,
    process: Process,
}

#[pymethods]
impl PyTicket {
    /// Whether `on_done` has been called, is about to be, or never will be (cancelled).
    #[getter]
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        let done = detached(py, || self.ticket.is_done());
        // The threads that would answer exist in the parent only.
        if done || self.process.is_current() { Ok(done) } else { Err(to_py(py, &Error::Forked)) }
    }

    /// Whether a callback submitted the request on the thread that will call `on_done`: what waits for it there waits
    /// without end.
    #[getter]
    fn _waits_for_its_thread(&self) -> bool {
        self.ticket.waits_for_its_thread()
    }

    /// Give the request up. True: `on_done` will not be called any more; False: it is too late.
    fn cancel(&self, py: Python<'_>) -> bool {
        let cancelled = detached(py, || self.ticket.cancel());
        if let (true, Some(call)) = (cancelled, &self.call) {
            call.end_unraisable(py, &CallOutcome::Cancelled);
        }
        cancelled
    }
}

/// `on_done(array, error)`.
pub(super) fn results(
    handle: &Arc<Handle>,
    owner: &Bound<'_, PyAny>,
    inputs: Inputs,
    mut options: EmbedOptions,
    on_done: Py<PyAny>,
    single: bool,
    copy: bool,
) -> PyResult<PyTicket> {
    let call = tracing::begin(owner.py(), "embeddings", options.model.as_deref(), inputs.len())?;
    options.trace = Call::trace(call.as_ref());
    let traced = Traced { call: call.clone(), outcome: CallOutcome::of };
    let reply = reply(owner, on_done, traced, move |py, result: PyResult<Embeddings>| {
        match result.and_then(|found| array(py, found.output, single, copy)) {
            Ok(array) => (array, py.None()).into_pyobject(py),
            Err(error) => (py.None(), error.into_value(py)).into_pyobject(py),
        }
    });
    started(owner.py(), handle, call, |manager| manager.submit(inputs, options, Box::new(reply)))
}

/// `on_done(body, tokens, error)`.
pub(super) fn response(
    handle: &Arc<Handle>,
    owner: &Bound<'_, PyAny>,
    inputs: Inputs,
    mut options: EmbedOptions,
    served_model: String,
    encoding: Encoding,
    on_done: Py<PyAny>,
) -> PyResult<PyTicket> {
    let call = tracing::begin(owner.py(), "embeddings", options.model.as_deref(), inputs.len())?;
    options.trace = Call::trace(call.as_ref());
    let outcome = |&(_, tokens): &_| CallOutcome::Embeddings { tokens: Some(tokens), width: None };
    let traced = Traced { call: call.clone(), outcome };
    let reply = reply(owner, on_done, traced, |py, result: PyResult<(Vec<u8>, u64)>| {
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
    started(owner.py(), handle, call, |manager| {
        manager.submit_response(inputs, options, served_model, encoding, Box::new(reply))
    })
}

/// Submits detached: a result from the cache is reported, and a short body written, before `submit` returns.
pub(super) fn started(
    py: Python<'_>,
    handle: &Handle,
    call: Option<Arc<Call>>,
    submit: impl FnOnce(&Manager) -> Result<Ticket> + Send,
) -> PyResult<PyTicket> {
    let submitted = Call::submit(call.as_ref(), || detached(py, || submit(&handle.manager)));
    let started = match (interrupted(), submitted) {
        (Ok(()), submitted) => submitted.map_err(|error| to_py(py, &error)),
        (Err(raised), submitted) => {
            // There is no ticket to cancel it with.
            if let Ok(ticket) = submitted {
                detached(py, || ticket.cancel());
            }
            Err(raised)
        }
    };
    match started {
        Ok(ticket) => Ok(PyTicket { ticket, call, process: Process::current() }),
        Err(error) => {
            Call::fail(call.as_ref(), py, &error);
            Err(error)
        }
    }
}

/// The traced call that a result belongs to, and what its span says of the result.
pub(super) struct Traced<T> {
    pub(super) call: Option<Arc<Call>>,
    pub(super) outcome: fn(&T) -> CallOutcome<'_>,
}

/// Has `on_done` called with what `arguments` makes of the result, on the thread that has it. `owner` stays alive until
/// then: the manager is not closed before its calls are answered.
pub(super) fn reply<T: 'static>(
    owner: &Bound<'_, PyAny>,
    on_done: Py<PyAny>,
    traced: Traced<T>,
    arguments: impl for<'py> FnOnce(Python<'py>, PyResult<T>) -> PyResult<Bound<'py, PyTuple>> + Send + 'static,
) -> impl FnOnce(Result<T>) + Send + 'static {
    let owner = owner.clone().unbind();
    let Traced { call, outcome } = traced;
    let ending = Ending(call);
    move |result: Result<T>| {
        // Not called while the interpreter shuts down.
        calling(|py| {
            let result = result.map_err(|error| to_py(py, &error));
            if let Some(call) = &ending.0 {
                let failed = |error| CallOutcome::Failed(error);
                call.end_unraisable(py, &result.as_ref().map_or_else(failed, outcome));
            }
            if let Err(error) = arguments(py, result).and_then(|arguments| on_done.call1(py, arguments)) {
                error.write_unraisable(py, Some(on_done.bind(py)));
            }
            // Python objects: dropped here, attached.
            drop((owner, on_done, ending));
        });
    }
}
