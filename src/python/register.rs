//! Keywords of `Manager.register` as what a slot stands for.

use std::collections::BTreeMap;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::errors::{OrRaise, to_py, wrong_type};
use super::host::entered;
use super::loader::host_loader;
use super::texts::text_of;
use crate::Error;
use crate::config::{DTypeChoice, Setting};
use crate::manager::{BUILT_IN, EmbeddingSpec, GENERATOR, Manager, ModelSpec, RERANKER, SourceSpec, Spec};
use crate::models::{ModelKind, Pooling};

/// A source as text: a str, or a path object as `os.fspath` gives it.
pub(super) fn source_text(source: &Bound<'_, PyAny>) -> PyResult<String> {
    path_text("source", source)
}

/// The argument `name` as text: a str, or a path object.
pub(super) fn path_text(name: &'static str, source: &Bound<'_, PyAny>) -> PyResult<String> {
    let kind = source.get_type().name()?;
    let path = if source.is_instance_of::<PyString>() {
        Some(source.clone())
    } else {
        match source.call_method0("__fspath__") {
            // What a signal handler raised there (Ctrl-C).
            Err(raised) if !raised.is_instance_of::<PyException>(source.py()) => return Err(raised),
            path => path.ok(),
        }
    };
    let Some(text) = path.and_then(|path| path.cast_into::<PyString>().ok()) else {
        let message = format!("{name} must be a str or a path, not {kind}");
        return Err(wrong_type(source.py(), name, message));
    };
    Ok(text_of(&text, None)?.to_owned())
}

/// Where a slot's model comes from.
pub(super) enum SlotSource {
    Source(String),
    Loader(Py<PyAny>),
}

impl SlotSource {
    /// One of both.
    pub(super) fn of(
        py: Python<'_>,
        name: &str,
        source: Option<String>,
        loader: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        match (source, loader) {
            (Some(source), None) => Ok(Self::Source(source)),
            (None, Some(loader)) => Ok(Self::Loader(loader)),
            (Some(_), Some(_)) => Err(refused(py, format!("{name:?}: give source or loader, not both"))),
            (None, None) => Err(refused(py, format!("{name:?}: give a source or a loader"))),
        }
    }
}

/// Keywords that all models have.
pub(super) struct Terms<'a> {
    pub(super) kind: Option<&'a str>,
    pub(super) dtype: &'a str,
    pub(super) revision: Option<String>,
    pub(super) adapter: Option<String>,
}

/// Keywords that only embedding models have.
pub(super) struct AboutVectors {
    pub(super) fallback: Vec<String>,
    pub(super) pooling: Option<String>,
    pub(super) max_length: Option<usize>,
    pub(super) chat_template: Option<bool>,
    pub(super) prompts: BTreeMap<String, String>,
}

impl AboutVectors {
    fn has_any(&self) -> bool {
        let Self { fallback, pooling, max_length, chat_template, prompts } = self;
        let set = pooling.is_some() || max_length.is_some() || chat_template.is_some();
        set || !fallback.is_empty() || !prompts.is_empty()
    }

    /// Whether any says that the model embeds.
    fn embeds(&self) -> bool {
        self.pooling.is_some() || !self.prompts.is_empty()
    }
}

/// The kind of a model whose files say which vectors or scores it gives. A language model embeds.
const ENCODER: &str = "encoder";

/// The exception for a keyword that does not fit.
fn refused(py: Python<'_>, reason: String) -> PyErr {
    to_py(py, &Error::Input(reason))
}

/// What a slot of `manager` that is made with these keywords stands for.
pub(super) fn spec(
    py: Python<'_>,
    manager: &Manager,
    name: &str,
    given: SlotSource,
    terms: Terms<'_>,
    about: AboutVectors,
) -> PyResult<Spec> {
    let Terms { kind, dtype, revision, adapter } = terms;
    let source = match given {
        SlotSource::Source(source) => SourceSpec::Fixed(source),
        SlotSource::Loader(_) if kind.is_some() => {
            return Err(refused(py, "kind is for a source; a loader returns what it likes".into()));
        }
        SlotSource::Loader(_) if adapter.is_some() => {
            return Err(refused(py, "adapter is for a source; a loader returns what it likes".into()));
        }
        SlotSource::Loader(loader) => {
            return Ok(Spec::Object(host_loader(name, loader)));
        }
    };
    if adapter.as_ref().is_some_and(|adapter| adapter.trim().is_empty()) {
        return Err(to_py(
            py,
            &Error::argument("adapter", " is empty; leave it out for the model without one"),
        ));
    }
    if adapter.is_some() && !about.fallback.is_empty() {
        let reason = " is for the source alone, so a fallback would give other vectors; give one of both";
        return Err(to_py(py, &Error::argument("adapter", reason)));
    }
    let (has_vectors, has_any) = (about.embeds(), about.has_any());
    let kind = match kind {
        Some(ENCODER) => None,
        Some(kind) => {
            let unknown = |_| {
                let kinds = "embedding, generator, reranker, classifier, sparse or encoder";
                Error::argument("kind", format!("={kind:?}: expected {kinds}"))
            };
            Some(ModelKind::from_name(kind).map_err(unknown).or_raise(py)?)
        }
        None if name == GENERATOR => Some(ModelKind::Generator),
        None if name == RERANKER => Some(ModelKind::Classifier),
        None if has_vectors || BUILT_IN.contains(&name) => Some(ModelKind::Embedding),
        None => {
            let spec = model(py, source.clone(), dtype, revision.clone(), adapter.clone())?;
            match entered(py, || manager.installed_kind(&spec))? {
                None if !has_any => return Ok(Spec::Open(spec)),
                Some(ModelKind::Generator) if has_any => Some(ModelKind::Embedding),
                found => found,
            }
        }
    };
    if kind != Some(ModelKind::Generator) {
        let spec = embedding(py, source, dtype, revision, about)?;
        return Ok(Spec::Embedding(EmbeddingSpec { kind, adapter, ..spec }));
    }
    if has_any {
        let reason = "generates text: fallback, pooling, max_length, chat_template and prompts are for embedding models";
        return Err(refused(py, format!("{name:?} {reason}")));
    }
    Ok(Spec::Generator(model(py, source, dtype, revision, adapter)?))
}

fn model(
    py: Python<'_>,
    source: SourceSpec,
    dtype: &str,
    revision: Option<String>,
    adapter: Option<String>,
) -> PyResult<ModelSpec> {
    Ok(ModelSpec { source, dtype: parsed_dtype(py, dtype)?, revision, adapter })
}

fn parsed_dtype(py: Python<'_>, dtype: &str) -> PyResult<DTypeChoice> {
    DTypeChoice::from_text(dtype)
        .map_err(|reason| to_py(py, &Error::argument("dtype", format!("={dtype:?} {reason}"))))
}

fn embedding(
    py: Python<'_>,
    source: SourceSpec,
    dtype: &str,
    revision: Option<String>,
    about: AboutVectors,
) -> PyResult<EmbeddingSpec> {
    let AboutVectors { fallback, pooling, max_length, chat_template, prompts } = about;
    let dtype = parsed_dtype(py, dtype)?;
    let known = |name: String| {
        let unknown = || {
            let known: Vec<_> = Pooling::ALL.iter().map(|pooling| pooling.name()).collect();
            let reason = format!("={name:?} is unknown; use one of {}", known.join(", "));
            to_py(py, &Error::argument("pooling", reason))
        };
        Pooling::from_name(&name).ok_or_else(unknown)
    };
    let pooling = pooling.map(known).transpose()?;
    if max_length == Some(0) {
        return Err(to_py(py, &Error::argument("max_length", " must be greater than 0")));
    }
    Ok(EmbeddingSpec {
        source,
        fallback,
        dtype,
        pooling,
        max_length,
        chat_template,
        revision,
        adapter: None,
        prompts,
        kind: None,
    })
}
