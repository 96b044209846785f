//! Methods of `Manager` that compute vectors, scores and tokens.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::{PyManager, entered};
use crate::manager::EmbedOptions;
use crate::python::argument::{self, Callable, no_others, unknown_keyword};
use crate::python::arrow::ArrowVectors;
use crate::python::errors::OrRaise;
use crate::python::infer::InferenceCall;
use crate::python::options::{self, set_option};
use crate::python::submit::{self, PyTicket};
use crate::python::utf8::{Utf8, owned};
use crate::python::{embed, texts};
use crate::wire::Encoding;

#[pymethods]
impl PyManager {
    /// Embed one text (float32, shape (dim,)) or several (shape (n, dim)).
    // Its keywords are named, not read from a dictionary as those of the other calls: a cached answer takes less than a
    // microsecond, of which a dictionary of two is a fifth.
    #[pyo3(signature = (texts, model = None, *, prompt = None, prompt_name = None, normalize = true,
                        truncate_dim = None, truncate = true, copy = false, timeout = None, keep_alive = None, user = None,
                        progress = None, outputs = None, **others),
           text_signature = "($self, texts, model=None, *, prompt=None, prompt_name=None, normalize=True, \
                             truncate_dim=None, truncate=True, copy=False, timeout=None, keep_alive=None, user=None, \
                             progress=None, outputs=None)")]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn embed(
        slf: &Bound<'_, Self>,
        texts: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
        #[pyo3(from_py_with = argument::prompt)] prompt: Option<Utf8>,
        #[pyo3(from_py_with = argument::prompt_name)] prompt_name: Option<Utf8>,
        #[pyo3(from_py_with = argument::normalize)] normalize: bool,
        #[pyo3(from_py_with = argument::truncate_dim)] truncate_dim: Option<usize>,
        #[pyo3(from_py_with = argument::truncate)] truncate: bool,
        #[pyo3(from_py_with = argument::copy)] copy: bool,
        #[pyo3(from_py_with = argument::timeout)] timeout: Option<f64>,
        keep_alive: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = argument::user)] user: Option<Utf8>,
        #[pyo3(from_py_with = argument::progress)] progress: Option<Callable>,
        outputs: Option<&Bound<'_, PyAny>>,
        others: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        no_others::<Self>(py, "embed", others)?;
        if let Some(outputs) = outputs {
            let keywords = PyDict::new(py);
            keywords.set_item("prompt", prompt.as_deref())?;
            keywords.set_item("prompt_name", prompt_name.as_deref())?;
            keywords.set_item("normalize", normalize)?;
            keywords.set_item("truncate_dim", truncate_dim)?;
            keywords.set_item("truncate", truncate)?;
            keywords.set_item("timeout", timeout)?;
            keywords.set_item("keep_alive", keep_alive)?;
            keywords.set_item("user", user.as_deref())?;
            keywords.set_item("copy", copy)?;
            keywords.set_item("progress", progress.map(Py::<PyAny>::from))?;
            let helper = py.import("model_manager._vectors")?.getattr("embed_outputs")?;
            return helper.call((slf, texts, model.as_deref(), outputs), Some(&keywords)).map(Bound::unbind);
        }
        let options = EmbedOptions {
            model: owned(model),
            prompt: owned(prompt),
            prompt_name: owned(prompt_name),
            normalize,
            truncate_dim,
            truncate,
            timeout: options::timeout(py, timeout)?,
            keep_alive: options::keep_alive(keep_alive)?,
            user: owned(user),
            ..EmbedOptions::default()
        };
        embed::embed(&slf.get().0, texts, options, copy, progress.map(Py::from))
    }

    /// `embed`, and what the model of the slot computes.
    #[pyo3(signature = (texts, model = None, **keywords))]
    fn _embed_identified(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
        keywords: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<(Py<PyAny>, Option<String>)> {
        let options = call_options(py, "_embed_identified", model, keywords, &[])?;
        embed::embed_identified(&self.0, texts, options)
    }

    /// Embed an Arrow column into an Arrow array.
    #[pyo3(signature = (texts, model = None, *, progress = None, **keywords),
           text_signature = "($self, texts, model=None, *, prompt=None, prompt_name=None, normalize=True, \
                             truncate_dim=None, truncate=True, timeout=None, keep_alive=None, user=None, \
                             progress=None)")]
    fn embed_arrow(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
        #[pyo3(from_py_with = argument::progress)] progress: Option<Callable>,
        keywords: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<ArrowVectors> {
        let options = call_options(py, "embed_arrow", model, keywords, &[])?;
        embed::embed_arrow(&self.0, texts, options, progress.map(Py::from))
    }

    /// `embed` without waiting.
    #[pyo3(signature = (texts, on_done, model = None, *, copy = false, **keywords),
           text_signature = "($self, texts, on_done, model=None, *, prompt=None, prompt_name=None, normalize=True, \
                             truncate_dim=None, truncate=True, copy=False, timeout=None, keep_alive=None, user=None)")]
    fn submit(
        slf: &Bound<'_, Self>,
        texts: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = argument::on_done)] on_done: Callable,
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
        #[pyo3(from_py_with = argument::copy)] copy: bool,
        keywords: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyTicket> {
        let py = slf.py();
        let options = call_options(py, "submit", model, keywords, &[])?;
        let (inputs, single) = texts::inputs("texts", texts)?;
        submit::results(&slf.get().0, slf, inputs, options, on_done.into(), single, copy)
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
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
        #[pyo3(from_py_with = argument::progress)] progress: Option<Callable>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<(Py<PyAny>, u64)> {
        InferenceCall::new(kind, first, second, owned(model), options)?.wait(
            py,
            &self.0,
            progress.map(Py::from).as_ref(),
        )
    }

    /// The labels that the model of a slot scores, as its latest load found them.
    fn _labels(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::name)] name: Utf8,
    ) -> PyResult<Vec<String>> {
        entered(py, || self.0.manager.labels(&name))
    }

    /// `_infer` without waiting: `on_done(results, tokens, error)`.
    #[pyo3(signature = (kind, on_done, first, second = None, model = None, **options))]
    fn _submit_inference(
        slf: &Bound<'_, Self>,
        kind: &str,
        #[pyo3(from_py_with = argument::on_done)] on_done: Callable,
        first: &Bound<'_, PyAny>,
        second: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyTicket> {
        InferenceCall::new(kind, first, second, owned(model), options)?.submit(
            &slf.get().0,
            slf,
            on_done.into(),
        )
    }

    /// `submit`, with the answer as the JSON body of OpenAI's `POST /v1/embeddings`.
    #[pyo3(signature = (inputs, on_done, model = None, *, served_model, encoding_format = Utf8::from("float"),
                        **keywords),
           text_signature = "($self, inputs, on_done, model=None, *, served_model, encoding_format='float', \
                             prompt=None, prompt_name=None, truncate_dim=None, truncate=True, timeout=None, \
                             keep_alive=None, user=None)")]
    fn submit_response(
        slf: &Bound<'_, Self>,
        inputs: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = argument::on_done)] on_done: Callable,
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
        #[pyo3(from_py_with = argument::served_model)] served_model: Utf8,
        #[pyo3(from_py_with = argument::encoding_format)] encoding_format: Utf8,
        keywords: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyTicket> {
        let py = slf.py();
        let options = call_options(py, "submit_response", model, keywords, &["normalize"])?;
        let encoding = Encoding::parse(&encoding_format).or_raise(py)?;
        let (inputs, _) = texts::inputs("inputs", inputs)?;
        submit::response(&slf.get().0, slf, inputs, options, served_model.into(), encoding, on_done.into())
    }

    /// Tokens of each text, special tokens included, not cut to the model's maximum.
    #[pyo3(signature = (texts, model = None))]
    fn count_tokens<'py>(
        &self,
        texts: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
    ) -> PyResult<Bound<'py, PyAny>> {
        embed::count_tokens(&self.0, texts, model.as_deref())
    }

    /// A text in chunks that the model reads whole: (text, start, end, tokens) each.
    #[pyo3(signature = (text, model = None, *, max_tokens = None, overlap = 0, prompt = None, prompt_name = None,
                        timeout = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn _chunk(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::text)] text: Bound<'_, PyString>,
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
        #[pyo3(from_py_with = argument::max_tokens)] max_tokens: Option<usize>,
        #[pyo3(from_py_with = argument::overlap)] overlap: usize,
        #[pyo3(from_py_with = argument::prompt)] prompt: Option<Utf8>,
        #[pyo3(from_py_with = argument::prompt_name)] prompt_name: Option<Utf8>,
        #[pyo3(from_py_with = argument::timeout)] timeout: Option<f64>,
    ) -> PyResult<Vec<embed::ChunkParts>> {
        let options = EmbedOptions {
            model: owned(model),
            prompt: owned(prompt),
            prompt_name: owned(prompt_name),
            timeout: options::timeout(py, timeout)?,
            ..EmbedOptions::default()
        };
        embed::chunks(&self.0, &text, max_tokens, overlap, &options)
    }

    /// The same, and a vector for each chunk from one pass over the whole text: shape (n, dim).
    #[pyo3(signature = (text, model = None, *, max_tokens = None, overlap = 0, prompt = None, prompt_name = None,
                        normalize = true, timeout = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn _embed_chunks(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::text)] text: Bound<'_, PyString>,
        #[pyo3(from_py_with = argument::model)] model: Option<Utf8>,
        #[pyo3(from_py_with = argument::max_tokens)] max_tokens: Option<usize>,
        #[pyo3(from_py_with = argument::overlap)] overlap: usize,
        #[pyo3(from_py_with = argument::prompt)] prompt: Option<Utf8>,
        #[pyo3(from_py_with = argument::prompt_name)] prompt_name: Option<Utf8>,
        #[pyo3(from_py_with = argument::normalize)] normalize: bool,
        #[pyo3(from_py_with = argument::timeout)] timeout: Option<f64>,
    ) -> PyResult<(Vec<embed::ChunkParts>, Py<PyAny>)> {
        let options = EmbedOptions {
            model: owned(model),
            prompt: owned(prompt),
            prompt_name: owned(prompt_name),
            normalize,
            timeout: options::timeout(py, timeout)?,
            ..EmbedOptions::default()
        };
        embed::embed_chunks(&self.0, &text, max_tokens, overlap, &options)
    }
}

/// The options of a call of `method`. Its `keywords` are those that embedding calls share, but for `lacking`.
fn call_options(
    py: Python<'_>,
    method: &str,
    model: Option<Utf8>,
    keywords: Option<&Bound<'_, PyDict>>,
    lacking: &[&str],
) -> PyResult<EmbedOptions> {
    let mut options = EmbedOptions { model: owned(model), ..EmbedOptions::default() };
    for (name, value) in keywords.into_iter().flatten() {
        let name = texts::text_of(name.cast()?, None)?;
        if lacking.contains(&name) || !set_option(&mut options, name, &value)? {
            return Err(unknown_keyword::<PyManager>(py, method, name));
        }
    }
    Ok(options)
}
