//! Calls as a tracer of Python's sees them: it is called when a traced call begins and when it has ended, never between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::discard::discard;
use super::gil::calling;
use crate::cache::CachedItem;
use crate::generation::{Completion, FinishReason, GenerationParams};
use crate::manager::{Embeddings, GENERATOR, OwnedPrompt};
use crate::output::{Output, View};
use crate::sync::Mutex;
use crate::trace::{Trace, TraceStage};

/// Whether there is a tracer: all that a call without one looks at.
static ON: AtomicBool = AtomicBool::new(false);
static TRACER: Mutex<Option<Py<PyAny>>> = Mutex::new(None);

/// Sets the tracer of all managers, or none. It has ``begin(operation, model, inputs, parameters, start)``, which returns
/// None or a span and the headers that carry it on, and ``end(span, end, stages, figures, error)``. Times are nanoseconds
/// since 1970.
#[pyfunction]
pub(super) fn _set_tracer(tracer: Option<Py<PyAny>>) {
    ON.store(tracer.is_some(), Ordering::Relaxed);
    let former = std::mem::replace(&mut *TRACER.lock(), tracer);
    // Not under the lock: its destructor is Python's code.
    drop(former);
}

/// A call that is traced.
pub(super) struct Call {
    tracer: Py<PyAny>,
    span: Py<PyAny>,
    trace: Arc<Trace>,
    /// The same moment on both clocks.
    wall: SystemTime,
    began: Instant,
    ended: AtomicBool,
    /// Whether it is being submitted.
    submission: AtomicU8,
}

/// Values of `Call::submission`: not now; now; now, and its reply was dropped meanwhile.
const NONE: u8 = 0;
const SUBMITTING: u8 = 1;
const DROPPED: u8 = 2;

/// What a call returned, for its span.
pub(super) enum CallOutcome<'a> {
    Embeddings { tokens: Option<u64>, width: Option<usize> },
    Completion(&'a Completion),
    Loaded,
    Cancelled,
    Failed(&'a PyErr),
}

impl CallOutcome<'_> {
    pub(super) fn item(found: &CachedItem) -> CallOutcome<'_> {
        let width = match found.item().view() {
            View::Dense(vector) => Some(vector.len()),
            _ => None,
        };
        CallOutcome::Embeddings { tokens: Some(found.tokens().into()), width }
    }

    pub(super) fn of(found: &Embeddings) -> CallOutcome<'_> {
        let width = match &found.output {
            Output::Dense(vectors) => Some(vectors.width()),
            _ => None,
        };
        CallOutcome::Embeddings { tokens: Some(found.tokens), width }
    }
}

/// Whether there is a tracer.
pub(super) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// A call begins; `None` unless it is traced. What goes wrong in a tracer is reported and does not fail the call.
///
/// # Errors
/// What a signal handler raised in the tracer (Ctrl-C).
#[inline]
pub(super) fn begin(
    py: Python<'_>,
    operation: &'static str,
    model: Option<&str>,
    inputs: usize,
) -> PyResult<Option<Arc<Call>>> {
    if is_on() { begin_traced(py, operation, model, inputs, Vec::new()) } else { Ok(None) }
}

/// A parameter of a generation.
#[derive(IntoPyObject)]
enum Parameter {
    Float(f32),
    Int(i64),
}

/// The same for a generation.
pub(super) fn begin_generation(
    py: Python<'_>,
    prompt: &OwnedPrompt,
    model: Option<&str>,
    params: &GenerationParams,
) -> PyResult<Option<Arc<Call>>> {
    if !is_on() {
        return Ok(None);
    }
    let operation = if matches!(prompt, OwnedPrompt::Chat(_)) { "chat" } else { "text_completion" };
    let samples = params.samples();
    let mut values = vec![("temperature", Parameter::Float(if samples { params.temperature } else { 0.0 }))];
    if samples && params.top_p < 1.0 {
        values.push(("top_p", Parameter::Float(params.top_p)));
    }
    if samples && params.top_k > 0 {
        values.push(("top_k", Parameter::Int(params.top_k as i64)));
    }
    // A larger one is no integer of OpenTelemetry.
    let seed = params.seed.and_then(|seed| i64::try_from(seed).ok());
    values.extend(seed.map(|seed| ("seed", Parameter::Int(seed))));
    values.extend(params.max_new_tokens.map(|tokens| ("max_tokens", Parameter::Int(tokens as i64))));
    begin_traced(py, operation, Some(model.unwrap_or(GENERATOR)), 1, values)
}

fn begin_traced(
    py: Python<'_>,
    operation: &'static str,
    model: Option<&str>,
    inputs: usize,
    parameters: Vec<(&str, Parameter)>,
) -> PyResult<Option<Arc<Call>>> {
    let Some(tracer) = TRACER.lock().as_ref().map(|tracer| tracer.clone_ref(py)) else { return Ok(None) };
    let (wall, began) = (SystemTime::now(), Instant::now());
    let made = tracer
        .call_method1(py, "begin", (operation, model, inputs, parameters, nanoseconds(wall)))
        .and_then(|made| made.extract::<Option<(Py<PyAny>, Vec<(String, String)>)>>(py));
    match made {
        Ok(Some((span, headers))) => {
            let trace = Arc::new(Trace::new(headers));
            let (ended, submission) = (AtomicBool::new(false), AtomicU8::new(NONE));
            Ok(Some(Arc::new(Call { tracer, span, trace, wall, began, ended, submission })))
        }
        Ok(None) => Ok(None),
        Err(error) => unless_interrupt(py, error, &tracer).map(|()| None),
    }
}

/// Reports an error of a tracer. What a signal handler raised in it is returned.
fn unless_interrupt(py: Python<'_>, error: PyErr, tracer: &Py<PyAny>) -> PyResult<()> {
    if !error.is_instance_of::<PyException>(py) {
        return Err(error);
    }
    error.write_unraisable(py, Some(tracer.bind(py)));
    Ok(())
}

fn nanoseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Call {
    /// The record of the call, for the core.
    pub(super) fn trace(call: Option<&Arc<Self>>) -> Option<Arc<Trace>> {
        call.map(|call| Arc::clone(&call.trace))
    }

    /// The call has ended. Only the first end counts.
    ///
    /// # Errors
    /// What a signal handler raised in the tracer (Ctrl-C).
    pub(super) fn end(&self, py: Python<'_>, outcome: &CallOutcome<'_>) -> PyResult<()> {
        if self.ended.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.report(py, outcome).or_else(|error| unless_interrupt(py, error, &self.tracer))
    }

    /// [`end`](Self::end) where nothing can be raised: on a thread of the core.
    pub(super) fn end_unraisable(&self, py: Python<'_>, outcome: &CallOutcome<'_>) {
        if let Err(raised) = self.end(py, outcome) {
            raised.write_unraisable(py, Some(self.tracer.bind(py)));
        }
    }

    /// Ends a call that has `result`, and returns it.
    ///
    /// # Errors
    /// That of `result`, and as [`end`](Self::end).
    pub(super) fn end_with<T>(
        call: Option<&Arc<Self>>,
        py: Python<'_>,
        result: PyResult<T>,
        outcome: impl FnOnce(&T) -> CallOutcome<'_>,
    ) -> PyResult<T> {
        if let Some(call) = call {
            match &result {
                Ok(found) => call.end(py, &outcome(found))?,
                Err(error) => call.end(py, &CallOutcome::Failed(error))?,
            }
        }
        result
    }

    /// The call has failed before it was under way.
    pub(super) fn fail(call: Option<&Arc<Self>>, py: Python<'_>, error: &PyErr) {
        if let Some(call) = call {
            call.end_unraisable(py, &CallOutcome::Failed(error));
        }
    }

    /// Runs `submit`, which may drop the reply of the call. When it fails, the caller ends the call with its error; until
    /// then the dropped reply ends nothing.
    pub(super) fn submit<T, E>(
        call: Option<&Arc<Self>>,
        submit: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let Some(call) = call else { return submit() };
        call.submission.store(SUBMITTING, Ordering::Release);
        let submitted = submit();
        let dropped = call.submission.swap(NONE, Ordering::AcqRel) == DROPPED;
        if dropped && submitted.is_ok() {
            drop(Ending(Some(Arc::clone(call))));
        }
        submitted
    }

    fn at(&self, instant: Instant) -> u64 {
        nanoseconds(self.wall + instant.saturating_duration_since(self.began))
    }

    fn report(&self, py: Python<'_>, outcome: &CallOutcome<'_>) -> PyResult<()> {
        let now = Instant::now();
        if let CallOutcome::Completion(completion) = outcome {
            self.note_generation(completion, now);
        }
        let record = self.trace.record();
        let stages = PyList::empty(py);
        for (stage, span) in record.spans() {
            stages.append((
                stage.name(),
                self.at(span.start),
                self.at(span.end),
                span.busy.as_secs_f64(),
                span.steps,
            ))?;
        }
        let figures = PyDict::new(py);
        figures.set_item("model", record.model)?;
        figures.set_item("cached", record.cached)?;
        figures.set_item("stored", record.stored)?;
        let mut error = None;
        match outcome {
            CallOutcome::Embeddings { tokens, width } => {
                figures.set_item("input_tokens", tokens)?;
                figures.set_item("dimension", width)?;
            }
            CallOutcome::Completion(completion) => {
                figures.set_item("input_tokens", completion.prompt_tokens)?;
                figures.set_item("output_tokens", completion.tokens.len())?;
                figures.set_item("reused_tokens", completion.reused_tokens)?;
                figures.set_item("finish_reason", completion.reason.as_str())?;
                figures.set_item("cancelled", completion.reason == FinishReason::Cancelled)?;
            }
            CallOutcome::Loaded => {}
            CallOutcome::Cancelled => figures.set_item("cancelled", true)?,
            CallOutcome::Failed(raised) => error = Some(raised.value(py)),
        }
        self.tracer.call_method1(py, "end", (&self.span, self.at(now), stages, figures, error))?;
        Ok(())
    }

    /// The stages of an answer, which the engine reports by their lengths.
    fn note_generation(&self, completion: &Completion, now: Instant) {
        let mut end = now;
        let stages = [
            (TraceStage::Decode, completion.decode),
            (TraceStage::Prefill, completion.prefill),
            (TraceStage::Queue, completion.queued),
        ];
        for (stage, length) in stages {
            let start = end.checked_sub(length).unwrap_or(self.began).max(self.began);
            if !length.is_zero() {
                self.trace.add(stage, start, end);
            }
            end = start;
        }
    }
}

/// Ends a call as cancelled when it is dropped, unless the call has ended. On a thread of its own: a tracer has locks.
pub(super) struct Ending(pub(super) Option<Arc<Call>>);

impl Drop for Ending {
    fn drop(&mut self) {
        let Some(call) = self.0.take().filter(|call| !call.ended.load(Ordering::Acquire)) else { return };
        let order = (Ordering::AcqRel, Ordering::Acquire);
        if call.submission.compare_exchange(SUBMITTING, DROPPED, order.0, order.1).is_err() {
            discard(Late(call));
        }
    }
}

struct Late(Arc<Call>);

impl Drop for Late {
    fn drop(&mut self) {
        calling(|py| self.0.end_unraisable(py, &CallOutcome::Cancelled));
    }
}
