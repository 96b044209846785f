//! Bodies of the methods of `Manager` that embed and count.

use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use super::arrow::{self, ArrowVectors};
use super::errors::OrRaise;
use super::gil::inside;
use super::handle::Handle;
use super::host::entered;
use super::numpy_api::import_numpy;
use super::texts::{self, text_of};
use super::tracing::{self, Call, CallOutcome};
use super::vectors::{array, copied_array, shared_array};
use crate::cache::CachedItem;
use crate::manager::{Check, EmbedOptions, Inputs, Manager};
use crate::models::TextChunk;
use crate::output::Output;
use crate::{Error, Result};

/// The array of one text, or of several.
pub(super) fn embed(
    handle: &Handle,
    texts: &Bound<'_, PyAny>,
    mut options: EmbedOptions,
    copy: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    let py = texts.py();
    if let (Ok(text), None) = (texts.cast::<PyString>(), &progress) {
        let text = text_of(text, None)?;
        let call = tracing::begin(py, "embeddings", options.model.as_deref(), 1)?;
        options.trace = Call::trace(call.as_ref());
        let found = Call::end_with(call.as_ref(), py, one(handle, py, text, options), CallOutcome::item)?;
        let _inside = inside(py);
        return if copy { copied_array(py, found.item()) } else { shared_array(py, &found) };
    }
    let (inputs, single) = texts::inputs("texts", texts)?;
    array(py, run(handle, py, inputs, options, progress)?, single, copy)
}

fn one(handle: &Handle, py: Python<'_>, text: &str, options: EmbedOptions) -> PyResult<CachedItem> {
    // Attached: a hit takes less time than detaching from the interpreter.
    let manager = handle.built(py)?;
    match manager.cached(text, &options).or_raise(py)? {
        Some(found) => {
            if options.keep_alive.is_some() {
                entered(py, || manager.keep_for(text, &options))?;
            }
            Ok(found)
        }
        None => handle.enter_for_array(py, |manager, check| manager.embed_missed(text, options, check)),
    }
}

/// The array of several texts, and 64 hexadecimal digits that say which model made it, if that is known.
pub(super) fn embed_identified(
    handle: &Handle,
    texts: &Bound<'_, PyAny>,
    mut options: EmbedOptions,
) -> PyResult<(Py<PyAny>, Option<String>)> {
    let py = texts.py();
    let (inputs, single) = texts::inputs("texts", texts)?;
    let call = tracing::begin(py, "embeddings", options.model.as_deref(), inputs.len())?;
    options.trace = Call::trace(call.as_ref());
    let found = handle.enter(py, |manager, check| manager.embed_identified(inputs, options, check));
    let (found, content) = Call::end_with(call.as_ref(), py, found, |(found, _)| CallOutcome::of(found))?;
    Ok((array(py, found.output, single, false)?, content.map(|content| content.to_string())))
}

/// The Arrow array of a column of texts.
pub(super) fn embed_arrow(
    handle: &Handle,
    texts: &Bound<'_, PyAny>,
    options: EmbedOptions,
    progress: Option<Py<PyAny>>,
) -> PyResult<ArrowVectors> {
    let py = texts.py();
    let column = arrow::column(texts)?;
    let Output::Dense(vectors) = run(handle, py, Inputs::Texts(column.texts), options, progress)? else {
        return Err(Error::internal("embed", "the result is no vectors")).or_raise(py);
    };
    arrow::vectors_of(vectors, column.valid).or_raise(py)
}

/// The output of the core.
fn run(
    handle: &Handle,
    py: Python<'_>,
    inputs: Inputs,
    mut options: EmbedOptions,
    progress: Option<Py<PyAny>>,
) -> PyResult<Output> {
    let call = tracing::begin(py, "embeddings", options.model.as_deref(), inputs.len())?;
    options.trace = Call::trace(call.as_ref());
    let work = |manager: &Manager, check: Check<'_>, report: &mut dyn FnMut(usize, usize) -> Result<()>| {
        manager.embed(inputs, options, check, report)
    };
    let found = handle.enter_reporting(py, progress.as_ref(), work);
    Ok(Call::end_with(call.as_ref(), py, found, CallOutcome::of)?.output)
}

/// A chunk: (text, start, end, tokens).
pub(super) type ChunkParts = (String, usize, usize, usize);

/// A text in chunks.
pub(super) fn chunks(
    handle: &Handle,
    text: &Bound<'_, PyString>,
    max_tokens: Option<usize>,
    overlap: usize,
    options: &EmbedOptions,
) -> PyResult<Vec<ChunkParts>> {
    let whole = texts::copied(text, None)?;
    let chunks = handle
        .enter(text.py(), |manager, check| manager.chunks(&whole, max_tokens, overlap, options, check))?;
    Ok(made(&whole, chunks))
}

fn made(whole: &str, chunks: Vec<TextChunk>) -> Vec<ChunkParts> {
    let parts = chunks.into_iter().map(|chunk| {
        (whole[chunk.bytes].to_owned(), chunk.characters.start, chunk.characters.end, chunk.tokens)
    });
    parts.collect()
}

/// A text in chunks, and an array with a vector for each.
pub(super) fn embed_chunks(
    handle: &Handle,
    text: &Bound<'_, PyString>,
    max_tokens: Option<usize>,
    overlap: usize,
    options: &EmbedOptions,
) -> PyResult<(Vec<ChunkParts>, Py<PyAny>)> {
    let (py, whole) = (text.py(), texts::copied(text, None)?);
    let call = tracing::begin(py, "embeddings", options.model.as_deref(), 1)?;
    let options = &EmbedOptions { trace: Call::trace(call.as_ref()), ..options.clone() };
    let found =
        handle.enter(py, |manager, check| manager.embed_chunks(&whole, max_tokens, overlap, options, check));
    let found = Call::end_with(call.as_ref(), py, found, |(chunks, _, width)| CallOutcome::Embeddings {
        tokens: Some(chunks.iter().map(|chunk| chunk.tokens as u64).sum()),
        width: Some(*width),
    });
    let (chunks, vectors, width) = found?;
    let _inside = inside(py);
    import_numpy(py)?;
    let array = PyArray1::from_vec(py, vectors).reshape([chunks.len(), width])?;
    Ok((made(&whole, chunks), array.into_any().unbind()))
}

/// Numbers of tokens: an int for one text, a list for several.
pub(super) fn count_tokens<'py>(
    handle: &Handle,
    texts: &Bound<'py, PyAny>,
    model: Option<&str>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = texts.py();
    let (texts, single) = texts::kept(texts)?;
    let counts = handle.enter(py, |manager, check| manager.count_tokens(&texts, model, check))?;
    match (single, counts.as_slice()) {
        (true, [count]) => Ok(count.into_pyobject(py)?.into_any()),
        _ => {
            // One by one: without memory for all at once, the list's own constructor panics.
            let list = PyList::empty(py);
            counts.into_iter().try_for_each(|count| list.append(count))?;
            Ok(list.into_any())
        }
    }
}
