//! Text generation: prompts and keywords in, text and events out.

use std::sync::Arc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyInt, PyList, PyString, PyTuple};

use super::argument::{Argument, WrongArgument, argument, is_sequence, unexpected};
use super::chat;
use super::discard::discard;
use super::errors::{OrRaise, to_py, wrong_type, wrong_type_of};
use super::gil::{calling, detached};
use super::handle::Handle;
use super::host::interruptible;
use super::options::{keep_alive, timeout};
use super::report;
use super::texts::{copied, text_of};
use super::tracing::{Call, CallOutcome, Ending};
use super::utf8::{Utf8, owned};
use crate::Error;
use crate::compute::memory::reserve;
use crate::config::Settings;
use crate::generation::params::MAX_STOP_TEXTS;
use crate::generation::{EngineTicket, Event, GenerationParams, OnEvent, PrefixScope};
use crate::manager::{GenerateOptions, GenerationTicket, OwnedPrompt, TextStream};
use crate::sync::Mutex;

/// Names of the keywords of a generation.
const PARAMETERS: &str = "do_sample temperature top_k top_p min_p repetition_penalty no_repeat_ngram_size max_length \
                          max_new_tokens min_new_tokens seed stop timeout keep_alive prefix_scope user \
                          chat_template_kwargs continue_final_message";

/// A str, token ids, or messages: mappings with the keys "role" and "content".
fn prompt(prompt: &Bound<'_, PyAny>) -> PyResult<OwnedPrompt> {
    if let Ok(text) = prompt.cast::<PyString>() {
        return Ok(OwnedPrompt::Text(copied(text, None)?));
    }
    let Ok(messages) = prompt.cast::<PyList>() else {
        let reason = format!(
            "prompt must be a str, a list of token ids, or a list of messages {{\"role\": ..., \"content\": ...}}, \
             not {}",
            prompt.get_type().name()?
        );
        return Err(wrong_type(prompt.py(), "prompt", reason));
    };
    if messages.is_empty() {
        return Err(to_py(prompt.py(), &Error::argument("prompt", " must not be an empty list")));
    }
    let first = messages.get_item(0)?;
    // Numbers of numpy are no int, but say which one they are.
    if first.is_instance_of::<PyInt>() || first.extract::<i64>().is_ok() {
        return ids(messages).map(OwnedPrompt::Tokens);
    }
    Ok(OwnedPrompt::Chat(chat::turns(messages)?))
}

/// Token ids of the model's own vocabulary.
fn ids(list: &Bound<'_, PyList>) -> PyResult<Vec<u32>> {
    let id = |number: usize, id: Bound<'_, PyAny>| match (id.is_instance_of::<PyBool>(), id.extract::<u32>())
    {
        (false, Ok(id)) => Ok(id),
        _ => {
            let rest = format!(" is {id}, which is no token id of any vocabulary");
            Err(to_py(list.py(), &Error::item("prompt", &[number], rest)))
        }
    };
    let mut ids = Vec::new();
    reserve(&mut ids, list.len()).or_raise(list.py())?;
    for (number, item) in list.iter().enumerate() {
        ids.push(id(number, item)?);
    }
    Ok(ids)
}

/// Prompt and keywords of a call.
pub(super) fn request(
    prompt: &Bound<'_, PyAny>,
    model: Option<Utf8>,
    keywords: Option<&Bound<'_, PyDict>>,
    handle: &Handle,
) -> PyResult<(OwnedPrompt, GenerationParams, GenerateOptions)> {
    let mut given = self::prompt(prompt)?;
    let (params, options) = parameters(&mut given, keywords, &handle.settings(prompt.py())?, prompt.py())?;
    Ok((given, params, GenerateOptions { model: owned(model), ..options }))
}

/// Keywords of a generation; those of the chat template are added to the prompt. Without any about length: the configured
/// `max_tokens`. Without `temperature` the configured one; without `do_sample`, tokens are drawn unless the temperature is 0.
fn parameters(
    prompt: &mut OwnedPrompt,
    keywords: Option<&Bound<'_, PyDict>>,
    settings: &Settings,
    py: Python<'_>,
) -> PyResult<(GenerationParams, GenerateOptions)> {
    let mut params =
        GenerationParams { temperature: settings.temperature as f32, ..GenerationParams::default() };
    let mut options = GenerateOptions::default();
    let mut do_sample = None;
    for (name, value) in keywords.into_iter().flatten() {
        let name: Utf8 = name.extract()?;
        if value.is_none() {
            continue;
        }
        match &*name {
            "do_sample" => do_sample = Some(argument("do_sample", &value)?),
            "temperature" => params.temperature = argument("temperature", &value)?,
            // -1 is what other servers call "off", which is 0 here.
            "top_k" => params.top_k = if is_minus_one(&value) { 0 } else { argument("top_k", &value)? },
            "top_p" => params.top_p = argument("top_p", &value)?,
            "min_p" => params.min_p = argument("min_p", &value)?,
            "repetition_penalty" => params.repetition_penalty = argument("repetition_penalty", &value)?,
            "no_repeat_ngram_size" => params.no_repeat_ngram_size = argument("no_repeat_ngram_size", &value)?,
            "max_length" => params.max_length = Some(argument("max_length", &value)?),
            "max_new_tokens" => params.max_new_tokens = Some(argument("max_new_tokens", &value)?),
            "min_new_tokens" => params.min_new_tokens = argument("min_new_tokens", &value)?,
            "seed" => params.seed = Some(argument::<Seed>("seed", &value)?.0),
            "stop" => params.stop = stops(&value)?,
            "timeout" => options.timeout = timeout(py, argument("timeout", &value)?)?,
            "keep_alive" => options.keep_alive = keep_alive(Some(&value))?,
            "user" => options.user = owned(argument("user", &value)?),
            "prefix_scope" => {
                options.prefix_scope = Some(PrefixScope::new(&argument::<Utf8>("prefix_scope", &value)?));
            }
            "chat_template_kwargs" => chat::add_kwargs(prompt, &value)?,
            "continue_final_message" => chat::continue_last(prompt, &value)?,
            other => return Err(unexpected("a generation", other, PARAMETERS.split_whitespace())),
        }
    }
    params.do_sample = do_sample.unwrap_or(params.temperature > 0.0);
    if params.max_length.is_none() && params.max_new_tokens.is_none() {
        params.max_new_tokens = Some(settings.max_tokens);
    }
    Ok((params, options))
}

/// A seed: any 64-bit number, so that a call accepts every one that a completion reports. A negative one counts from 2⁶⁴
/// down, as over HTTP.
struct Seed(u64);

impl<'py> Argument<'py> for Seed {
    const TAKES: &'static str = "an int";

    fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument> {
        match (u64::take(given), given.extract::<i64>()) {
            (Ok(seed), _) => Ok(Self(seed)),
            (Err(WrongArgument::Type), _) => Err(WrongArgument::Type),
            (Err(_), Ok(negative)) => Ok(Self(negative as u64)),
            (Err(_), Err(_)) => Err(WrongArgument::Value("must lie between -2**63 and 2**64 - 1".into())),
        }
    }
}

fn is_minus_one(value: &Bound<'_, PyAny>) -> bool {
    value.extract::<i64>().is_ok_and(|whole| whole == -1)
}

fn stops(value: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(vec![text_of(text, None)?.to_owned()]);
    }
    let wrong = || wrong_type_of(value.py(), "stop", &[], " must be a str or a list of str");
    if !is_sequence(value)? {
        return Err(wrong());
    }
    let count = value.len()?;
    // Before they are copied.
    if count > MAX_STOP_TEXTS {
        let many = format!(" has {count} texts: at most {MAX_STOP_TEXTS} are allowed");
        return Err(to_py(value.py(), &Error::argument("stop", many)));
    }
    let text = |text: Bound<'_, PyAny>| {
        let text = text.cast::<PyString>().map_err(|_| wrong())?;
        Ok(text_of(text, None)?.to_owned())
    };
    value.try_iter()?.map(|item| text(item?)).collect()
}

/// What a stream's next reader finds.
enum StreamState {
    Ready(Box<TextStream>),
    /// A thread waits for a piece.
    Read,
    Ended,
}

/// The pieces of one answer: an iterator of str. Dropping it ends the generation.
#[pyclass(frozen, name = "TextStream", module = "model_manager._core")]
pub(super) struct PyTextStream {
    stream: Mutex<StreamState>,
    ticket: EngineTicket,
    completion: Mutex<Option<Py<PyDict>>>,
    call: Ending,
}

impl PyTextStream {
    pub(super) fn new(stream: TextStream, call: Option<Arc<Call>>) -> Self {
        let ticket = stream.ticket();
        Self {
            stream: Mutex::new(StreamState::Ready(Box::new(stream))),
            ticket,
            completion: Mutex::new(None),
            call: Ending(call),
        }
    }
}

impl PyTextStream {
    /// The stream, which is taken out while a thread waits for a piece.
    fn take(&self) -> StreamState {
        let mut state = self.stream.lock();
        match &*state {
            StreamState::Ready(_) => std::mem::replace(&mut *state, StreamState::Read),
            StreamState::Read => StreamState::Read,
            StreamState::Ended => StreamState::Ended,
        }
    }
}

impl Drop for PyTextStream {
    fn drop(&mut self) {
        if let StreamState::Ready(stream) = std::mem::replace(self.stream.get_mut(), StreamState::Ended) {
            // At once: the thread that frees the stream may start late.
            self.ticket.mark_cancelled();
            discard(stream);
        }
    }
}

#[pymethods]
impl PyTextStream {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let mut stream = match self.take() {
            StreamState::Ready(stream) => stream,
            StreamState::Read => {
                return Err(PyRuntimeError::new_err(
                    "another thread already waits for a piece of this answer",
                ));
            }
            StreamState::Ended => return Ok(None),
        };
        let piece = interruptible(py, |_| Ok(()), |check| stream.next(check));
        if let Ok(Ok(Some(_))) = piece {
            *self.stream.lock() = StreamState::Ready(stream);
        } else {
            *self.stream.lock() = StreamState::Ended;
            let completion = stream.completion().cloned();
            // It may have the last lease of a model.
            detached(py, || drop(stream));
            if let Some(call) = &self.call.0 {
                match (&piece, &completion) {
                    (Ok(Ok(_)), Some(completion)) => call.end(py, &CallOutcome::Completion(completion)),
                    (Ok(Ok(_)), None) => call.end(py, &CallOutcome::Cancelled),
                    (Ok(Err(error)), _) => call.end(py, &CallOutcome::Failed(&to_py(py, error))),
                    (Err(error), _) => call.end(py, &CallOutcome::Failed(error)),
                }?;
            }
            if let Some(completion) = completion {
                *self.completion.lock() = Some(report::completion(py, &completion)?.unbind());
            }
        }
        piece?.map_err(|error| to_py(py, &error))
    }

    /// End the answer within one token, also while another thread waits for a piece; the iterator then stops.
    fn cancel(&self, py: Python<'_>) {
        detached(py, || self.ticket.cancel());
    }

    /// End the answer within one token; the iterator stops at once. Another thread that waits for a piece gets what was
    /// written.
    fn close(&self, py: Python<'_>) {
        self.cancel(py);
        let mut state = self.stream.lock();
        if let StreamState::Ready(_) = *state {
            let stream = std::mem::replace(&mut *state, StreamState::Ended);
            drop(state);
            // It may have the last lease of a model.
            detached(py, || drop(stream));
            if let Some(call) = &self.call.0 {
                call.end_unraisable(py, &CallOutcome::Cancelled);
            }
        }
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) {
        self.close(py);
    }

    /// The whole answer and its figures once the iterator has ended; None before, and after an error.
    #[getter]
    fn completion(&self, py: Python<'_>) -> Option<Py<PyDict>> {
        self.completion.lock().as_ref().map(|completion| completion.clone_ref(py))
    }
}

/// A generation under way, as `Manager.submit_generation` returns it.
#[pyclass(frozen, name = "GenerationTicket", module = "model_manager._core")]
pub(super) struct PyGenerationTicket(pub(super) GenerationTicket);

#[pymethods]
impl PyGenerationTicket {
    /// End the generation within one token, or before it starts.
    fn cancel(&self, py: Python<'_>) {
        detached(py, || self.0.cancel());
    }

    /// Whether this thread is the one that writes the answer: what waits for it here waits without end.
    #[getter]
    fn _waits_for_its_thread(&self) -> bool {
        self.0.waits_for_this_thread()
    }
}

/// Events of the core as calls of `on_event(piece, completion, error)`, exactly one of them not None.
pub(super) fn events(on_event: Py<PyAny>, call: Option<Arc<Call>>) -> OnEvent {
    let mut on_event = Some(on_event);
    let traced = Ending(call);
    Box::new(move |event| {
        // Not called while the interpreter shuts down.
        calling(|py| {
            let last = matches!(event, Event::Done(_));
            let Some(callback) = on_event.as_ref() else { return };
            match (&event, &traced.0) {
                (Event::Done(Ok(completion)), Some(call)) => {
                    call.end_unraisable(py, &CallOutcome::Completion(completion));
                }
                (Event::Done(Err(error)), Some(call)) => {
                    call.end_unraisable(py, &CallOutcome::Failed(&to_py(py, error)));
                }
                _ => {}
            }
            if let Err(error) = report_event(py, callback, event) {
                error.write_unraisable(py, Some(callback.bind(py)));
            }
            if last {
                on_event = None;
            }
        });
    })
}

fn report_event(py: Python<'_>, callback: &Py<PyAny>, event: Event) -> PyResult<Py<PyAny>> {
    match event {
        Event::Piece(piece) => callback.call1(py, (piece, py.None(), py.None())),
        Event::Done(Ok(completion)) => {
            callback.call1(py, (py.None(), report::completion(py, &completion)?, py.None()))
        }
        Event::Done(Err(error)) => {
            callback.call1(py, (py.None(), py.None(), to_py(py, &error).into_value(py)))
        }
    }
}
