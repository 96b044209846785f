//! `Manager`: each method extracts, detaches, calls the core, converts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyType};

use super::arrow::ArrowVectors;
use super::config::{PyConfig, keywords, pairs};
use super::discard::discard;
use super::errors::OrRaise;
use super::generation::{self, PyGenerationTicket, PyTextStream};
use super::gil::detached;
use super::handle::Handle;
use super::host::ManagerHost;
use super::infer::InferenceCall;
use super::loader::unwrap_object;
use super::options::{call_options, positive_seconds, slot_keep_alive, timeout};
use super::register::{AboutVectors, Registration, SlotSource};
use super::submit::{self, PyTicket};
use super::texts::{self, text_of};
use super::tracker::PyTracker;
use super::{caching, chat, embed, fork, report};
use crate::lifecycle::ReaperSettings;
use crate::manager::{EmbedOptions, GenerateOptions, Manager, Retention, SlotValue};
use crate::wire::Encoding;

/// Model slots, the embedding cache and the queues. All methods may be called from any thread.
#[pyclass(frozen, subclass, weakref, name = "Manager", module = "model_manager._core")]
pub(super) struct PyManager(pub(super) Arc<Handle>);

impl PyManager {
    /// What `get` and `peek` return for a slot: the user's object, or a handle on the model.
    fn slot_value(slf: &Bound<'_, Self>, name: &str, value: &SlotValue) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let (module, class) = match value {
            SlotValue::Object(object) => return Ok(unwrap_object(py, object).unwrap_or_else(|| py.None())),
            SlotValue::Encoder => ("model_manager.encoder", "SentenceModel"),
            SlotValue::Scorer => ("model_manager.handles", "CrossEncoder"),
            SlotValue::Generator => ("model_manager.generator", "TextGenerator"),
        };
        Ok(py.import(module)?.getattr(class)?.call1((slf, name))?.unbind())
    }
}

impl Drop for PyManager {
    /// As `close`, but waits for nothing.
    fn drop(&mut self) {
        if let Some(abandoned) = self.0.manager.abandon() {
            discard(abandoned);
        }
    }
}

#[pymethods]
impl PyManager {
    #[new]
    #[pyo3(signature = (config = None, **overrides))]
    fn new(
        py: Python<'_>,
        config: Option<&Bound<'_, PyConfig>>,
        overrides: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let overrides = keywords(overrides)?;
        let host = Arc::new(ManagerHost::default());
        let own = Arc::clone(&host);
        let manager = match config {
            None => Manager::from_environment(overrides, own).or_raise(py)?,
            Some(config) => Manager::new(config.get().0.clone().with(pairs(&overrides)).or_raise(py)?, own),
        };
        let handle = Handle::new(manager, host);
        fork::watch(&handle.manager);
        Ok(Self(Arc::new(handle)))
    }

    /// Makes this the manager that the whole process shares: it reads the file `.env` of the working directory before
    /// its settings, and finds models in the folder `models_cache`.
    fn _make_process_wide(&self) {
        self.0.host.process_wide.store(true, Ordering::Relaxed);
    }

    /// The settings in force; reading it fixes them.
    #[getter]
    fn config(&self, py: Python<'_>) -> PyResult<PyConfig> {
        self.0.settings(py).map(PyConfig)
    }

    /// Where models compute: ``cpu``, ``cuda`` or ``mps``.
    #[getter]
    fn device(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.0.built(py)?.device().or_raise(py)
    }

    /// This manager's tracker.
    #[getter]
    fn tracker(&self) -> PyTracker {
        PyTracker(self.0.manager.tracker())
    }

    /// Seconds since the last clean-up of idle models (since construction when there was none).
    #[getter]
    fn last_cleanup_seconds(&self, py: Python<'_>) -> PyResult<f64> {
        Ok(self.0.built(py)?.since_clean_up().or_raise(py)?.as_secs_f64())
    }

    /// What `set_auto_cleanup` last set: (enabled, cleanup_interval, max_idle_time); at first the settings'.
    #[getter]
    fn auto_cleanup(&self, py: Python<'_>) -> PyResult<(bool, f64, f64)> {
        let reaper = self.0.built(py)?.reaper_settings().or_raise(py)?;
        Ok((reaper.enabled, reaper.interval.as_secs_f64(), reaper.max_idle.as_secs_f64()))
    }

    /// Make the slot `name`. Nothing is loaded yet.
    #[pyo3(signature = (name, source = None, *, loader = None, dtype = "auto", keep_alive = None, pinned = false,
                        fallback = Vec::new(), pooling = None, max_length = None, revision = None, prompts = None,
                        kind = None, cache = None, cold_start_price = None, replace = false))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn register(
        &self,
        py: Python<'_>,
        name: &str,
        source: Option<String>,
        loader: Option<Py<PyAny>>,
        dtype: &str,
        keep_alive: Option<&Bound<'_, PyAny>>,
        pinned: bool,
        fallback: Vec<String>,
        pooling: Option<String>,
        max_length: Option<usize>,
        revision: Option<String>,
        prompts: Option<BTreeMap<String, String>>,
        kind: Option<&str>,
        cache: Option<&Bound<'_, PyAny>>,
        cold_start_price: Option<f64>,
        replace: bool,
    ) -> PyResult<()> {
        let (keep_alive, adaptive) = slot_keep_alive(keep_alive)?;
        let price = cold_start_price.map(|price| positive_seconds("cold_start_price", price));
        let cold_start_price = price.transpose().or_raise(py)?;
        let cache = caching::options(cache)?;
        let keep = Retention { keep_alive, adaptive, cold_start_price, pinned, cache };
        let source = SlotSource::of(py, name, source, loader)?;
        let about_vectors =
            AboutVectors { fallback, pooling, max_length, prompts: prompts.unwrap_or_default() };
        let Registration { spec, loader: own_loader } =
            Registration::new(py, name, source, kind, dtype, revision, about_vectors)?;
        detached(py, || self.0.manager.register(name, spec, keep, replace)).or_raise(py)?;
        self.0.set_loader(name, own_loader);
        Ok(())
    }

    /// Unload and forget the slot.
    fn unregister(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        detached(py, || self.0.manager.unregister(name)).or_raise(py)?;
        self.0.set_loader(name, None);
        Ok(())
    }

    /// Embed one text (float32, shape (dim,)) or several (shape (n, dim)).
    #[pyo3(signature = (texts, model = None, *, prompt = None, prompt_name = None, normalize = true,
                        truncate_dim = None, truncate = true, copy = false, timeout = None, keep_alive = None, user = None, progress = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn embed(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        model: Option<String>,
        prompt: Option<String>,
        prompt_name: Option<String>,
        normalize: bool,
        truncate_dim: Option<&Bound<'_, PyAny>>,
        truncate: bool,
        copy: bool,
        timeout: Option<f64>,
        keep_alive: Option<&Bound<'_, PyAny>>,
        user: Option<String>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let options = call_options(
            py,
            model,
            prompt,
            prompt_name,
            normalize,
            truncate_dim,
            truncate,
            timeout,
            keep_alive,
            user,
        )?;
        embed::embed(&self.0, texts, options, copy, progress)
    }

    /// Embed an Arrow column into an Arrow array.
    #[pyo3(signature = (texts, model = None, *, prompt = None, prompt_name = None, normalize = true,
                        truncate_dim = None, truncate = true, timeout = None, keep_alive = None, user = None, progress = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn embed_arrow(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        model: Option<String>,
        prompt: Option<String>,
        prompt_name: Option<String>,
        normalize: bool,
        truncate_dim: Option<&Bound<'_, PyAny>>,
        truncate: bool,
        timeout: Option<f64>,
        keep_alive: Option<&Bound<'_, PyAny>>,
        user: Option<String>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<ArrowVectors> {
        let options = call_options(
            py,
            model,
            prompt,
            prompt_name,
            normalize,
            truncate_dim,
            truncate,
            timeout,
            keep_alive,
            user,
        )?;
        embed::embed_arrow(&self.0, texts, options, progress)
    }

    /// `embed` without waiting.
    #[pyo3(signature = (texts, on_done, model = None, *, prompt = None, prompt_name = None, normalize = true,
                        truncate_dim = None, truncate = true, copy = false, timeout = None, keep_alive = None, user = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn submit(
        slf: &Bound<'_, Self>,
        texts: &Bound<'_, PyAny>,
        on_done: Py<PyAny>,
        model: Option<String>,
        prompt: Option<String>,
        prompt_name: Option<String>,
        normalize: bool,
        truncate_dim: Option<&Bound<'_, PyAny>>,
        truncate: bool,
        copy: bool,
        timeout: Option<f64>,
        keep_alive: Option<&Bound<'_, PyAny>>,
        user: Option<String>,
    ) -> PyResult<PyTicket> {
        let py = slf.py();
        let options = call_options(
            py,
            model,
            prompt,
            prompt_name,
            normalize,
            truncate_dim,
            truncate,
            timeout,
            keep_alive,
            user,
        )?;
        let (inputs, single) = texts::inputs(texts)?;
        submit::results(&slf.get().0, slf, inputs, options, on_done, single, copy)
    }

    /// Scores, sparse vectors or vectors of tokens of several inputs, and the tokens that were read.
    #[pyo3(signature = (kind, first, second = None, model = None, progress = None, **options))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn _infer(
        &self,
        py: Python<'_>,
        kind: &str,
        first: &Bound<'_, PyAny>,
        second: Option<&Bound<'_, PyAny>>,
        model: Option<String>,
        progress: Option<Py<PyAny>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<(Py<PyAny>, u64)> {
        InferenceCall::new(kind, first, second, model, options)?.wait(py, &self.0, progress.as_ref())
    }

    /// `_infer` without waiting: `on_done(results, tokens, error)`.
    #[pyo3(signature = (kind, on_done, first, second = None, model = None, **options))]
    fn _submit_inference(
        slf: &Bound<'_, Self>,
        kind: &str,
        on_done: Py<PyAny>,
        first: &Bound<'_, PyAny>,
        second: Option<&Bound<'_, PyAny>>,
        model: Option<String>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyTicket> {
        InferenceCall::new(kind, first, second, model, options)?.submit(&slf.get().0, slf, on_done)
    }

    /// `submit`, with the answer as the JSON body of OpenAI's `POST /v1/embeddings`.
    #[pyo3(signature = (inputs, on_done, model = None, *, served_model, encoding_format = "float", prompt = None,
                        prompt_name = None, truncate_dim = None, truncate = true, timeout = None, keep_alive = None, user = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn submit_response(
        slf: &Bound<'_, Self>,
        inputs: &Bound<'_, PyAny>,
        on_done: Py<PyAny>,
        model: Option<String>,
        served_model: String,
        encoding_format: &str,
        prompt: Option<String>,
        prompt_name: Option<String>,
        truncate_dim: Option<&Bound<'_, PyAny>>,
        truncate: bool,
        timeout: Option<f64>,
        keep_alive: Option<&Bound<'_, PyAny>>,
        user: Option<String>,
    ) -> PyResult<PyTicket> {
        let py = slf.py();
        let options = call_options(
            py,
            model,
            prompt,
            prompt_name,
            true,
            truncate_dim,
            truncate,
            timeout,
            keep_alive,
            user,
        )?;
        let encoding = Encoding::parse(encoding_format).or_raise(py)?;
        let (inputs, _) = texts::inputs(inputs)?;
        submit::response(&slf.get().0, slf, inputs, options, served_model, encoding, on_done)
    }

    /// The whole answer to `prompt`, with its figures.
    #[pyo3(signature = (prompt, model = None, **parameters))]
    fn complete<'py>(
        &self,
        py: Python<'py>,
        prompt: &Bound<'py, PyAny>,
        model: Option<String>,
        parameters: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (prompt, params, options) = generation::request(prompt, model, parameters, &self.0)?;
        let completion =
            self.0.enter(py, |manager, check| manager.generate(&prompt, params, &options, check))?;
        report::completion(py, &completion)
    }

    /// The prompt that the model's chat template makes of messages.
    #[pyo3(signature = (
        messages, model = None, *, add_generation_prompt = true, chat_template = None, timeout = None, **variables
    ))]
    #[allow(clippy::too_many_arguments, reason = "keywords of Python")]
    fn apply_chat_template(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyList>,
        model: Option<String>,
        add_generation_prompt: bool,
        chat_template: Option<&Bound<'_, PyString>>,
        timeout: Option<f64>,
        variables: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<String> {
        let mut conversation = chat::conversation(messages)?;
        conversation.add_generation_prompt = add_generation_prompt;
        if let Some(variables) = variables {
            chat::add_variables(&mut conversation, variables)?;
        }
        let source = chat_template.map(|source| text_of(source, None)).transpose()?;
        let timeout = super::options::timeout(py, timeout)?;
        let options = GenerateOptions { model, timeout, ..GenerateOptions::default() };
        self.0.enter(py, |manager, check| manager.chat_text(&conversation, source, &options, check))
    }

    /// The answer to `prompt` as an iterator of pieces of text.
    #[pyo3(signature = (prompt, model = None, **parameters))]
    fn stream(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        model: Option<String>,
        parameters: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyTextStream> {
        let (prompt, params, options) = generation::request(prompt, model, parameters, &self.0)?;
        let stream = self.0.enter(py, |manager, check| manager.stream(&prompt, params, &options, check))?;
        Ok(PyTextStream::new(stream))
    }

    /// `stream` without waiting: `on_event(piece, completion, error)` is called from another thread.
    #[pyo3(signature = (prompt, on_event, model = None, **parameters))]
    fn submit_generation(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        on_event: Py<PyAny>,
        model: Option<String>,
        parameters: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyGenerationTicket> {
        let (prompt, params, options) = generation::request(prompt, model, parameters, &self.0)?;
        let events = generation::events(on_event);
        let submitted = detached(py, || self.0.manager.submit_generation(prompt, params, &options, events));
        submitted.map(PyGenerationTicket).map_err(|error| self.0.explain(py, &error))
    }

    /// Context length, end-of-text token and whether there is a chat template, of a slot with a generator.
    #[pyo3(signature = (name = "text_generator"))]
    fn describe_generator<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyDict>> {
        let options = GenerateOptions { model: Some(name.to_owned()), ..GenerateOptions::default() };
        let lease = self.0.enter(py, |manager, check| manager.generator(&options, check))?;
        let described =
            lease.generator().or_raise(py).and_then(|generator| report::generator(py, name, generator));
        // The last lease of a model may free it.
        detached(py, || drop(lease));
        described
    }

    /// The slot that `embed` chooses for `text`.
    fn route(&self, py: Python<'_>, text: &Bound<'_, PyString>) -> PyResult<&'static str> {
        self.0.built(py)?.route(text_of(text, None)?).or_raise(py)
    }

    /// Load the slot and wait for it; concurrent callers share one load.
    #[pyo3(signature = (name, timeout = None))]
    fn load(&self, py: Python<'_>, name: &str, timeout: Option<f64>) -> PyResult<()> {
        let timeout = self::timeout(py, timeout)?;
        if self.0.built(py)?.is_embedding(name).or_raise(py)? {
            return self.0.enter_for_array(py, |manager, check| manager.load(name, timeout, check));
        }
        self.0.enter(py, |manager, check| manager.load(name, timeout, check))
    }

    /// Unload; True if it was loaded.
    fn unload(&self, py: Python<'_>, name: &str) -> PyResult<bool> {
        detached(py, || self.0.manager.unload(name)).or_raise(py)
    }

    /// Unload every slot; how many were loaded.
    fn unload_all(&self, py: Python<'_>) -> PyResult<usize> {
        detached(py, || self.0.manager.unload_all()).or_raise(py)
    }

    /// Whether the slot is in memory now.
    fn is_loaded(&self, py: Python<'_>, name: &str) -> PyResult<bool> {
        self.0.built(py)?.is_loaded(name).or_raise(py)
    }

    /// The slot's object, loaded if need be.
    #[pyo3(signature = (name, timeout = None))]
    fn get(slf: &Bound<'_, Self>, name: &str, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let timeout = self::timeout(py, timeout)?;
        let held = slf.get().0.enter(py, |manager, check| manager.get(name, timeout, check))?;
        Self::slot_value(slf, name, &held)
    }

    /// Like `get`, but None when the slot is not in memory.
    fn peek(slf: &Bound<'_, Self>, name: &str) -> PyResult<Option<Py<PyAny>>> {
        let found = slf.get().0.built(slf.py())?.peek(name).or_raise(slf.py())?;
        found.map(|held| Self::slot_value(slf, name, &held)).transpose()
    }

    /// Names of all slots, in the order they were made.
    fn slots(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.0.built(py)?.names().or_raise(py)
    }

    /// What the model of an embedding slot is.
    #[pyo3(signature = (name, load = true))]
    fn describe<'py>(&self, py: Python<'py>, name: &str, load: bool) -> PyResult<Option<Bound<'py, PyDict>>> {
        let description = self.0.enter(py, |manager, check| manager.describe(name, load, check))?;
        description.map(|description| report::description(py, &description)).transpose()
    }

    /// Tokens of each text, special tokens included, not cut to the model's maximum.
    #[pyo3(signature = (texts, model = None))]
    fn count_tokens<'py>(
        &self,
        texts: &Bound<'py, PyAny>,
        model: Option<&str>,
    ) -> PyResult<Bound<'py, PyAny>> {
        embed::count_tokens(&self.0, texts, model)
    }

    /// A text in chunks that the model reads whole: (text, start, end, tokens) each.
    #[pyo3(signature = (text, model = None, *, max_tokens = None, overlap = 0, prompt = None, prompt_name = None,
                        timeout = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn _chunk(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyString>,
        model: Option<String>,
        max_tokens: Option<usize>,
        overlap: usize,
        prompt: Option<String>,
        prompt_name: Option<String>,
        timeout: Option<f64>,
    ) -> PyResult<Vec<(String, usize, usize, usize)>> {
        let options = EmbedOptions {
            model,
            prompt,
            prompt_name,
            timeout: self::timeout(py, timeout)?,
            ..EmbedOptions::default()
        };
        embed::chunks(&self.0, text, max_tokens, overlap, &options)
    }

    /// Load several slots at the same time and wait for all.
    #[pyo3(signature = (names, timeout = None))]
    fn warmup(&self, py: Python<'_>, names: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<()> {
        if names.is_instance_of::<PyString>() {
            return Err(PyTypeError::new_err("names must be several names, not one str"));
        }
        let names: Vec<String> = names.try_iter()?.map(|name| name?.extract()).collect::<PyResult<_>>()?;
        let timeout = self::timeout(py, timeout)?;
        self.0.enter(py, |manager, check| manager.warm_up(&names, timeout, check))
    }

    /// State of the embedding cache.
    fn cache_info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let statistics = detached(py, || self.0.manager.statistics()).or_raise(py)?;
        report::cache(py, &statistics, &self.0.settings(py)?)
    }

    /// Empty the cache and set its counts to zero. With `tiers`, disk and Redis are emptied too.
    #[pyo3(signature = (*, tiers = false))]
    fn cache_clear(&self, py: Python<'_>, tiers: bool) -> PyResult<()> {
        detached(py, || self.0.manager.clear_cache(tiers)).or_raise(py)
    }

    /// Everything countable, JSON-serializable. Loads nothing.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let statistics = detached(py, || self.0.manager.statistics()).or_raise(py)?;
        report::manager(py, statistics, &self.0.settings(py)?, self.device(py)?)
    }

    /// Switch the unloading of idle models on or off, at once.
    #[pyo3(signature = (enabled, cleanup_interval = 300.0, max_idle_time = 600.0))]
    fn set_auto_cleanup(
        &self,
        py: Python<'_>,
        enabled: bool,
        cleanup_interval: f64,
        max_idle_time: f64,
    ) -> PyResult<()> {
        let interval = positive_seconds("cleanup_interval", cleanup_interval).or_raise(py)?;
        let max_idle = positive_seconds("max_idle_time", max_idle_time).or_raise(py)?;
        detached(py, || self.0.manager.set_reaper(ReaperSettings { enabled, interval, max_idle }))
            .or_raise(py)
    }

    /// Unload now what has been idle for `max_idle_time`; how many slots.
    fn cleanup_idle(&self, py: Python<'_>) -> PyResult<usize> {
        detached(py, || self.0.manager.clean_up()).or_raise(py)
    }

    /// Unload everything and stop the threads. Further use raises `ClosedError`; closing again does nothing.
    fn close(&self, py: Python<'_>) {
        detached(py, || self.0.manager.close());
    }

    /// Whether `close` was called.
    #[getter]
    fn closed(&self) -> bool {
        self.0.manager.is_closed()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (exc_type, exc, traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        exc_type: &Bound<'_, PyAny>,
        exc: &Bound<'_, PyAny>,
        traceback: &Bound<'_, PyAny>,
    ) {
        let _ = (exc_type, exc, traceback);
        self.close(py);
    }

    /// By configuration: models load again where it is unpickled.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyType>, (PyConfig,))> {
        Ok((slf.get_type(), (slf.get().config(slf.py())?,)))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let class = slf.get_type().name()?;
        let inner = &slf.get().0.manager;
        if inner.is_closed() {
            return Ok(format!("<{class} closed>"));
        }
        let py = slf.py();
        let all = detached(py, || inner.statistics()).or_raise(py)?;
        Ok(report::summary(&class.to_string(), &all))
    }
}
