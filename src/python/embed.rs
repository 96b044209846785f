//! Bodies of the methods of `Manager` that embed and count.

use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use super::arrow::{self, ArrowVectors};
use super::errors::OrRaise;
use super::gil::{attached, inside};
use super::handle::Handle;
use super::texts::{self, Texts, text_of};
use super::vectors::{array, copied_array, shared_array};
use crate::Error;
use crate::manager::{EmbedOptions, Inputs};
use crate::output::Output;

/// The array of one text, or of several.
pub(super) fn embed(
    handle: &Handle,
    texts: &Bound<'_, PyAny>,
    options: EmbedOptions,
    copy: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    let py = texts.py();
    if let (Ok(text), None) = (texts.cast::<PyString>(), &progress) {
        let text = text_of(text, None)?;
        // Attached: a hit takes less time than detaching from the interpreter.
        let found = match handle.built(py)?.cached(text, &options).or_raise(py)? {
            Some(found) => found,
            None => {
                handle.enter_for_array(py, |manager, check| manager.embed_missed(text, options, check))?
            }
        };
        let _inside = inside(py);
        return if copy { copied_array(py, found.item()) } else { shared_array(py, &found) };
    }
    let (inputs, single) = texts::inputs(texts)?;
    array(py, run(handle, py, inputs, options, progress)?, single, copy)
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
        let (place, reason) = ("embed".into(), "the result is no vectors".into());
        return Err(Error::Internal { place, reason }).or_raise(py);
    };
    arrow::vectors_of(vectors, column.valid).or_raise(py)
}

/// The output of the core, with the callback's own exception if it raises one.
fn run(
    handle: &Handle,
    py: Python<'_>,
    inputs: Inputs,
    options: EmbedOptions,
    progress: Option<Py<PyAny>>,
) -> PyResult<Output> {
    let mut raised = None;
    let result = handle.enter_for_array(py, |manager, check| {
        let mut report = |done: usize, all: usize| match &progress {
            None => Ok(()),
            Some(progress) => attached(|py| progress.call1(py, (done, all)).map(drop)).map_err(|error| {
                raised = Some(error);
                Error::Cancelled
            }),
        };
        manager.embed(inputs, options, check, &mut report)
    });
    match raised {
        Some(raised) => Err(raised),
        None => Ok(result?.output),
    }
}

/// Numbers of tokens: an int for one text, a list for several.
pub(super) fn count_tokens<'py>(
    handle: &Handle,
    texts: &Bound<'py, PyAny>,
    model: Option<&str>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = texts.py();
    let (texts, single) = match Texts::extract(texts)? {
        Texts::One(text) => (vec![text], true),
        Texts::Many(texts) => (texts, false),
    };
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
