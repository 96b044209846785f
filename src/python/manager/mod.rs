//! `Manager`: each method extracts, detaches, calls the core, converts.

mod adaptive;
mod cache;
mod embedding;
mod generation;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyType};

use super::argument::{self, Callable, no_others};
use super::config::{PyConfig, keywords, pairs};
use super::discard::discard;
use super::errors::OrRaise;
use super::gil::calling;
use super::handle::Handle;
use super::host::{ManagerHost, entered};
use super::loader::unwrap_object;
use super::options::{positive_seconds, slot_keep_alive, timeout};
use super::register::{self, AboutVectors, SlotSource, Terms, path_text, source_text};
use super::texts::text_of;
use super::tracing::{self, Call, CallOutcome};
use super::tracker::PyTracker;
use super::utf8::{Utf8, owned};
use super::{caching, fork, known, report};
use crate::lifecycle::ReaperSettings;
use crate::manager::{Manager, Retention, SlotValue};
use crate::models::ModelKind;

/// Model slots, the embedding cache and the queues. All methods may be called from any thread.
#[pyclass(frozen, subclass, weakref, name = "Manager", module = "model_manager._core")]
pub(super) struct PyManager(pub(super) Arc<Handle>);

impl PyManager {
    /// What `get` and `peek` return for a slot: the user's object, or a handle on the model.
    fn slot_value(slf: &Bound<'_, Self>, name: &str, value: &SlotValue) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let class = match value {
            SlotValue::Object(object) => return Ok(unwrap_object(py, object).unwrap_or_else(|| py.None())),
            SlotValue::Encoder => "SentenceModel",
            SlotValue::Scorer => "CrossEncoder",
            SlotValue::Generator => "TextGenerator",
        };
        Ok(py.import("model_manager.handles")?.getattr(class)?.call1((slf, name))?.unbind())
    }
}

impl PyManager {
    /// The span of a load, if calls are traced and the slot is not in memory.
    fn begin_load(&self, py: Python<'_>, name: &str) -> PyResult<Option<Arc<Call>>> {
        let absent = tracing::is_on() && matches!(self.0.built(py)?.is_loaded(name), Ok(false));
        if absent { tracing::begin(py, "load", Some(name), 0) } else { Ok(None) }
    }

    /// The same for each of `names`, once.
    fn begin_loads(&self, py: Python<'_>, names: &[String]) -> PyResult<Arc<[Option<Arc<Call>>]>> {
        let mut seen = HashSet::new();
        let calls =
            names.iter().map(|name| if seen.insert(name) { self.begin_load(py, name) } else { Ok(None) });
        calls.collect()
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
        #[pyo3(from_py_with = argument::config)] config: Option<Bound<'_, PyConfig>>,
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

    /// Where models compute: ``cpu``, or a card: ``cuda:0``, ``mps:0``.
    #[getter]
    fn device(&self, py: Python<'_>) -> PyResult<String> {
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
    #[pyo3(signature = (name, source = None, *, loader = None, dtype = Utf8::from("auto"), keep_alive = None, pinned = false,
                        fallback = Vec::new(), pooling = None, max_length = None, chat_template = None, revision = None,
                        adapter = None, prompts = None, kind = None, cache = None, cold_start_price = None, replace = false, **others),
           text_signature = "($self, name, source=None, *, loader=None, dtype='auto', keep_alive=None, pinned=False, \
                             fallback=..., pooling=None, max_length=None, chat_template=None, revision=None, adapter=None, \
                             prompts=None, kind=None, cache=None, cold_start_price=None, replace=False)")]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn register(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::name)] name: Utf8,
        source: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = argument::loader)] loader: Option<Callable>,
        #[pyo3(from_py_with = argument::dtype)] dtype: Utf8,
        keep_alive: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = argument::pinned)] pinned: bool,
        #[pyo3(from_py_with = argument::fallback)] fallback: Vec<Utf8>,
        #[pyo3(from_py_with = argument::pooling)] pooling: Option<Utf8>,
        #[pyo3(from_py_with = argument::max_length)] max_length: Option<usize>,
        #[pyo3(from_py_with = argument::chat_template)] chat_template: Option<bool>,
        #[pyo3(from_py_with = argument::revision)] revision: Option<Utf8>,
        adapter: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = argument::prompts)] prompts: Option<BTreeMap<Utf8, Utf8>>,
        #[pyo3(from_py_with = argument::kind)] kind: Option<Utf8>,
        cache: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = argument::cold_start_price)] cold_start_price: Option<f64>,
        #[pyo3(from_py_with = argument::replace)] replace: bool,
        others: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        no_others::<Self>(py, "register", others)?;
        let (keep_alive, adaptive) = slot_keep_alive(keep_alive)?;
        let price = cold_start_price.map(|price| positive_seconds("cold_start_price", price));
        let cold_start_price = price.transpose().or_raise(py)?;
        let cache = caching::options(cache)?;
        let keep = Retention { keep_alive, adaptive, cold_start_price, pinned, cache };
        let source = SlotSource::of(py, &name, source.map(source_text).transpose()?, loader.map(Py::from))?;
        let about_vectors = AboutVectors {
            fallback: fallback.into_iter().map(String::from).collect(),
            pooling: owned(pooling),
            max_length,
            chat_template,
            prompts: prompts.into_iter().flatten().map(|(name, text)| (name.into(), text.into())).collect(),
        };
        let manager = &self.0.manager;
        let adapter = adapter.map(|adapter| path_text("adapter", adapter)).transpose()?;
        let terms = Terms { kind: kind.as_deref(), dtype: &dtype, revision: owned(revision), adapter };
        let spec = register::spec(py, manager, &name, source, terms, about_vectors)?;
        entered(py, || manager.register(&name, spec, keep, replace))
    }

    /// Unload and forget the slot.
    fn unregister(&self, py: Python<'_>, #[pyo3(from_py_with = argument::name)] name: Utf8) -> PyResult<()> {
        entered(py, || self.0.manager.unregister(&name))
    }

    /// A number of the slot's latest registration, equal to that of no other one.
    fn _registration(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::name)] name: Utf8,
    ) -> PyResult<u64> {
        self.0.built(py)?.registration(&name).or_raise(py)
    }

    /// The slot that `embed` chooses for `text`.
    fn route(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::text)] text: Bound<'_, PyString>,
    ) -> PyResult<&'static str> {
        self.0.built(py)?.route(text_of(&text, None)?).or_raise(py)
    }

    /// Load the slot and wait for it; concurrent callers share one load.
    #[pyo3(signature = (name, timeout = None))]
    fn load(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::name)] name: Utf8,
        #[pyo3(from_py_with = argument::timeout)] timeout: Option<f64>,
    ) -> PyResult<()> {
        let timeout = self::timeout(py, timeout)?;
        let call = self.begin_load(py, &name)?;
        let loaded = if self.0.built(py)?.is_embedding(&name).or_raise(py)? {
            self.0.enter_for_array(py, |manager, check| manager.load(&name, timeout, check))
        } else {
            self.0.enter(py, |manager, check| manager.load(&name, timeout, check))
        };
        Call::end_with(call.as_ref(), py, loaded, |()| CallOutcome::Loaded)
    }

    /// Unload; True if it was loaded.
    fn unload(&self, py: Python<'_>, #[pyo3(from_py_with = argument::name)] name: Utf8) -> PyResult<bool> {
        entered(py, || self.0.manager.unload(&name))
    }

    /// Unload every slot; how many were loaded.
    fn unload_all(&self, py: Python<'_>) -> PyResult<usize> {
        entered(py, || self.0.manager.unload_all())
    }

    /// Whether the slot is in memory now.
    fn is_loaded(&self, py: Python<'_>, #[pyo3(from_py_with = argument::name)] name: Utf8) -> PyResult<bool> {
        self.0.built(py)?.is_loaded(&name).or_raise(py)
    }

    /// The slot's object, loaded if need be.
    #[pyo3(signature = (name, timeout = None))]
    fn get(
        slf: &Bound<'_, Self>,
        #[pyo3(from_py_with = argument::name)] name: Utf8,
        #[pyo3(from_py_with = argument::timeout)] timeout: Option<f64>,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let timeout = self::timeout(py, timeout)?;
        let call = slf.get().begin_load(py, &name)?;
        let held = slf.get().0.enter(py, |manager, check| manager.get(&name, timeout, check));
        let held = Call::end_with(call.as_ref(), py, held, |_| CallOutcome::Loaded)?;
        Self::slot_value(slf, &name, &held)
    }

    /// Like `get`, but None when the slot is not in memory.
    fn peek(
        slf: &Bound<'_, Self>,
        #[pyo3(from_py_with = argument::name)] name: Utf8,
    ) -> PyResult<Option<Py<PyAny>>> {
        let found = slf.get().0.built(slf.py())?.peek(&name).or_raise(slf.py())?;
        found.map(|held| Self::slot_value(slf, &name, &held)).transpose()
    }

    /// Names of all slots, in the order they were made.
    fn slots(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.0.built(py)?.names().or_raise(py)
    }

    /// What the model of an embedding slot is.
    #[pyo3(signature = (name, load = true))]
    fn describe<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = argument::name)] name: Utf8,
        #[pyo3(from_py_with = argument::load)] load: bool,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let call = if load { self.begin_load(py, &name)? } else { None };
        let description = self.0.enter(py, |manager, check| manager.describe(&name, load, check));
        let description = Call::end_with(call.as_ref(), py, description, |_| CallOutcome::Loaded)?;
        description.map(|description| report::description(py, &description)).transpose()
    }

    /// What the model of `source` is, from its small files.
    #[pyo3(signature = (source, kind, adapter = None))]
    fn _inspect<'py>(
        &self,
        py: Python<'py>,
        source: Utf8,
        kind: Option<Utf8>,
        adapter: Option<Utf8>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let kind = kind.as_deref().map(ModelKind::from_name).transpose().or_raise(py)?;
        known::report(py, entered(py, || self.0.manager.inspect(&source, adapter.as_deref(), kind))?)
    }

    /// Load several slots at the same time and wait for all.
    #[pyo3(signature = (names, timeout = None))]
    fn warmup(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::names)] names: Vec<Utf8>,
        #[pyo3(from_py_with = argument::timeout)] timeout: Option<f64>,
    ) -> PyResult<()> {
        let names: Vec<String> = names.into_iter().map(String::from).collect();
        let timeout = self::timeout(py, timeout)?;
        let calls = self.begin_loads(py, &names)?;
        let traced = Arc::clone(&calls);
        let ended: Arc<dyn Fn(usize, crate::Result<()>) + Send + Sync> = Arc::new(move |place, loaded| {
            let Some(Some(call)) = traced.get(place) else { return };
            calling(|py| match loaded.or_raise(py) {
                Ok(()) => call.end_unraisable(py, &CallOutcome::Loaded),
                Err(error) => call.end_unraisable(py, &CallOutcome::Failed(&error)),
            });
        });
        let mut warmed = self.0.enter(py, |manager, check| manager.warm_up(&names, timeout, &ended, check));
        // Those that the call no longer waits for.
        for call in calls.iter() {
            warmed = Call::end_with(call.as_ref(), py, warmed, |()| CallOutcome::Loaded);
        }
        warmed
    }

    /// Everything countable, JSON-serializable. Loads nothing.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let statistics = entered(py, || self.0.manager.statistics())?;
        report::manager(py, statistics, &self.0.settings(py)?, &self.device(py)?)
    }

    /// Switch the unloading of idle models on or off, at once.
    #[pyo3(signature = (enabled, cleanup_interval = 300.0, max_idle_time = 600.0))]
    fn set_auto_cleanup(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::enabled)] enabled: bool,
        #[pyo3(from_py_with = argument::cleanup_interval)] cleanup_interval: f64,
        #[pyo3(from_py_with = argument::max_idle_time)] max_idle_time: f64,
    ) -> PyResult<()> {
        let interval = positive_seconds("cleanup_interval", cleanup_interval).or_raise(py)?;
        let max_idle = positive_seconds("max_idle_time", max_idle_time).or_raise(py)?;
        entered(py, || self.0.manager.set_reaper(ReaperSettings { enabled, interval, max_idle }))
    }

    /// Unload now what has been idle for `max_idle_time`; how many slots.
    fn cleanup_idle(&self, py: Python<'_>) -> PyResult<usize> {
        entered(py, || self.0.manager.clean_up())
    }

    /// Unload everything and stop the threads. Further use raises `ClosedError`; closing again does nothing.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        entered(py, || {
            self.0.manager.close();
            Ok(())
        })
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
    ) -> PyResult<()> {
        let _ = (exc_type, exc, traceback);
        self.close(py)
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
        let all = entered(py, || inner.statistics())?;
        Ok(report::summary(&class.to_string(), &all))
    }
}
