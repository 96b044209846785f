//! Methods of `Manager` that compute vectors, scores and tokens.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::PyManager;
use crate::manager::EmbedOptions;
use crate::python::arrow::ArrowVectors;
use crate::python::errors::OrRaise;
use crate::python::infer::InferenceCall;
use crate::python::options::{call_options, timeout};
use crate::python::submit::{self, PyTicket};
use crate::python::utf8::{Utf8, owned};
use crate::python::{embed, texts};
use crate::wire::Encoding;

#[pymethods]
impl PyManager {
    /// Embed one text (float32, shape (dim,)) or several (shape (n, dim)).
    #[pyo3(signature = (texts, model = None, *, prompt = None, prompt_name = None, normalize = true,
                        truncate_dim = None, truncate = true, copy = false, timeout = None, keep_alive = None, user = None, progress = None,
                        outputs = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn embed(
        slf: &Bound<'_, Self>,
        texts: &Bound<'_, PyAny>,
        model: Option<Utf8>,
        prompt: Option<Utf8>,
        prompt_name: Option<Utf8>,
        normalize: bool,
        truncate_dim: Option<&Bound<'_, PyAny>>,
        truncate: bool,
        copy: bool,
        timeout: Option<f64>,
        keep_alive: Option<&Bound<'_, PyAny>>,
        user: Option<Utf8>,
        progress: Option<Py<PyAny>>,
        outputs: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
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
            keywords.set_item("progress", progress)?;
            let helper = py.import("model_manager._vectors")?.getattr("embed_outputs")?;
            return helper.call((slf, texts, model.as_deref(), outputs), Some(&keywords)).map(Bound::unbind);
        }
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
        embed::embed(&slf.get().0, texts, options, copy, progress)
    }

    /// Embed an Arrow column into an Arrow array.
    #[pyo3(signature = (texts, model = None, *, prompt = None, prompt_name = None, normalize = true,
                        truncate_dim = None, truncate = true, timeout = None, keep_alive = None, user = None, progress = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn embed_arrow(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        model: Option<Utf8>,
        prompt: Option<Utf8>,
        prompt_name: Option<Utf8>,
        normalize: bool,
        truncate_dim: Option<&Bound<'_, PyAny>>,
        truncate: bool,
        timeout: Option<f64>,
        keep_alive: Option<&Bound<'_, PyAny>>,
        user: Option<Utf8>,
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
        model: Option<Utf8>,
        prompt: Option<Utf8>,
        prompt_name: Option<Utf8>,
        normalize: bool,
        truncate_dim: Option<&Bound<'_, PyAny>>,
        truncate: bool,
        copy: bool,
        timeout: Option<f64>,
        keep_alive: Option<&Bound<'_, PyAny>>,
        user: Option<Utf8>,
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
        model: Option<Utf8>,
        progress: Option<Py<PyAny>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<(Py<PyAny>, u64)> {
        InferenceCall::new(kind, first, second, owned(model), options)?.wait(py, &self.0, progress.as_ref())
    }

    /// `_infer` without waiting: `on_done(results, tokens, error)`.
    #[pyo3(signature = (kind, on_done, first, second = None, model = None, **options))]
    fn _submit_inference(
        slf: &Bound<'_, Self>,
        kind: &str,
        on_done: Py<PyAny>,
        first: &Bound<'_, PyAny>,
        second: Option<&Bound<'_, PyAny>>,
        model: Option<Utf8>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyTicket> {
        InferenceCall::new(kind, first, second, owned(model), options)?.submit(&slf.get().0, slf, on_done)
    }

    /// `submit`, with the answer as the JSON body of OpenAI's `POST /v1/embeddings`.
    #[pyo3(signature = (inputs, on_done, model = None, *, served_model, encoding_format = "float", prompt = None,
                        prompt_name = None, truncate_dim = None, truncate = true, timeout = None, keep_alive = None, user = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn submit_response(
        slf: &Bound<'_, Self>,
        inputs: &Bound<'_, PyAny>,
        on_done: Py<PyAny>,
        model: Option<Utf8>,
        served_model: Utf8,
        encoding_format: &str,
        prompt: Option<Utf8>,
        prompt_name: Option<Utf8>,
        truncate_dim: Option<&Bound<'_, PyAny>>,
        truncate: bool,
        timeout: Option<f64>,
        keep_alive: Option<&Bound<'_, PyAny>>,
        user: Option<Utf8>,
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
        submit::response(&slf.get().0, slf, inputs, options, served_model.into(), encoding, on_done)
    }

    /// Tokens of each text, special tokens included, not cut to the model's maximum.
    #[pyo3(signature = (texts, model = None))]
    fn count_tokens<'py>(
        &self,
        texts: &Bound<'py, PyAny>,
        model: Option<Utf8>,
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
        text: &Bound<'_, PyString>,
        model: Option<Utf8>,
        max_tokens: Option<usize>,
        overlap: usize,
        prompt: Option<Utf8>,
        prompt_name: Option<Utf8>,
        timeout: Option<f64>,
    ) -> PyResult<Vec<embed::ChunkParts>> {
        let options = EmbedOptions {
            model: owned(model),
            prompt: owned(prompt),
            prompt_name: owned(prompt_name),
            timeout: self::timeout(py, timeout)?,
            ..EmbedOptions::default()
        };
        embed::chunks(&self.0, text, max_tokens, overlap, &options)
    }

    /// The same, and a vector for each chunk from one pass over the whole text: shape (n, dim).
    #[pyo3(signature = (text, model = None, *, max_tokens = None, overlap = 0, prompt = None, prompt_name = None,
                        normalize = true, timeout = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python function")]
    fn _embed_chunks(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyString>,
        model: Option<Utf8>,
        max_tokens: Option<usize>,
        overlap: usize,
        prompt: Option<Utf8>,
        prompt_name: Option<Utf8>,
        normalize: bool,
        timeout: Option<f64>,
    ) -> PyResult<(Vec<embed::ChunkParts>, Py<PyAny>)> {
        let options = EmbedOptions {
            model: owned(model),
            prompt: owned(prompt),
            prompt_name: owned(prompt_name),
            normalize,
            timeout: self::timeout(py, timeout)?,
            ..EmbedOptions::default()
        };
        embed::embed_chunks(&self.0, text, max_tokens, overlap, &options)
    }
}
