//! Methods of `Manager` that write text.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::PyManager;
use crate::manager::{GENERATOR, GenerateOptions};
use crate::python::argument::{self, Callable};
use crate::python::errors::OrRaise;
use crate::python::generation::{self, PyGenerationTicket, PyTextStream};
use crate::python::gil::{detached, interrupted};
use crate::python::texts::text_of;
use crate::python::tracing::{self, Call, CallOutcome};
use crate::python::utf8::{Utf8, owned};
use crate::python::{chat, options, report};

#[pymethods]
impl PyManager {
    /// The whole answer to `prompt`, with its figures.
    #[pyo3(signature = (prompt, model = None, **parameters))]
    fn complete<'py>(
        &self,
        py: Python<'py>,
        prompt: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
        parameters: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (prompt, params, mut options) = generation::request(prompt, model, parameters, &self.0)?;
        let call = tracing::begin_generation(py, &prompt, options.model.as_deref(), &params)?;
        options.trace = Call::trace(call.as_ref());
        let completion =
            self.0.enter(py, |manager, check| manager.generate(&prompt, params, &options, check));
        let completion =
            Call::end_with(call.as_ref(), py, completion, |found| CallOutcome::Completion(found))?;
        report::completion(py, &completion)
    }

    /// The prompt that the model's chat template makes of messages.
    #[pyo3(signature = (
        messages, model = None, *, add_generation_prompt = None, continue_final_message = false, chat_template = None,
        timeout = None, **variables
    ))]
    #[allow(clippy::too_many_arguments, reason = "keywords of Python")]
    fn apply_chat_template(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
        #[pyo3(from_py_with = argument::add_generation_prompt)] add_generation_prompt: Option<bool>,
        #[pyo3(from_py_with = argument::continue_final_message)] continue_final_message: bool,
        #[pyo3(from_py_with = argument::chat_template)] chat_template: Option<Bound<'_, PyString>>,
        #[pyo3(from_py_with = argument::timeout)] timeout: Option<f64>,
        variables: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<String> {
        let mut conversation = chat::conversation(chat::messages(messages)?)?;
        conversation.end = chat::prompt_end(py, add_generation_prompt, continue_final_message)?;
        if let Some(variables) = variables {
            chat::add_variables(&mut conversation, variables)?;
        }
        let source = chat_template.as_ref().map(|source| text_of(source, None)).transpose()?;
        let timeout = options::timeout(py, timeout)?;
        let options = GenerateOptions { model: owned(model), timeout, ..GenerateOptions::default() };
        self.0.enter(py, |manager, check| manager.chat_text(&conversation, source, &options, check))
    }

    /// The answer to `prompt` as an iterator of pieces of text.
    #[pyo3(signature = (prompt, model = None, **parameters))]
    fn stream(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
        parameters: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyTextStream> {
        let (prompt, params, mut options) = generation::request(prompt, model, parameters, &self.0)?;
        let call = tracing::begin_generation(py, &prompt, options.model.as_deref(), &params)?;
        options.trace = Call::trace(call.as_ref());
        let stream = self.0.enter(py, |manager, check| manager.stream(&prompt, params, &options, check));
        let stream = stream.inspect_err(|error| Call::fail(call.as_ref(), py, error))?;
        Ok(PyTextStream::new(stream, call))
    }

    /// `stream` without waiting: `on_event(piece, completion, error)` is called from another thread.
    #[pyo3(signature = (prompt, on_event, model = None, **parameters))]
    fn submit_generation(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = argument::on_event)] on_event: Callable,
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
        parameters: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyGenerationTicket> {
        let (prompt, params, mut options) = generation::request(prompt, model, parameters, &self.0)?;
        let call = tracing::begin_generation(py, &prompt, options.model.as_deref(), &params)?;
        options.trace = Call::trace(call.as_ref());
        let events = generation::events(on_event.into(), call.clone());
        let submitted = Call::submit(call.as_ref(), || {
            detached(py, || self.0.manager.submit_generation(prompt, params, &options, events))
        });
        let started = match (interrupted(), submitted) {
            (Ok(()), submitted) => submitted.or_raise(py),
            (Err(raised), submitted) => {
                // There is no ticket to cancel it with.
                if let Ok(ticket) = submitted {
                    detached(py, || ticket.cancel());
                }
                Err(raised)
            }
        };
        started.map(PyGenerationTicket).inspect_err(|error| Call::fail(call.as_ref(), py, error))
    }

    /// What the model of a slot with a generator is. Without `load`, None when it is not in memory.
    #[pyo3(signature = (name = None, load = true), text_signature = "($self, name='text_generator', load=True)")]
    fn describe_generator<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = argument::name)] name: Option<Utf8>,
        #[pyo3(from_py_with = argument::load)] load: bool,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let name = name.as_deref().unwrap_or(GENERATOR);
        let call = if load { self.begin_load(py, name)? } else { None };
        let described = self.0.enter(py, |manager, check| manager.describe_generator(name, load, check));
        let described = Call::end_with(call.as_ref(), py, described, |_| CallOutcome::Loaded)?;
        described.map(|described| report::generator(py, &described)).transpose()
    }
}
