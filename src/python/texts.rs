//! Texts and token ids as Python gives them.

use pyo3::exceptions::{PyMemoryError, PyOverflowError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyMemoryView, PyString};

use super::argument::is_mapping;
use super::arrow;
use super::errors::{OrRaise, to_py, wrong_type, wrong_type_of};
use super::utf8::LONE_SURROGATE;
use crate::Error;
use crate::compute::memory::{joined, push, reserve};
use crate::manager::Inputs;

/// Why the inputs of a call are refused.
enum Refusal {
    /// Their form, or an exception that they raised.
    Python(PyErr),
    /// There is no memory for the copies. The exception is made after the copies so far are freed: it needs memory too.
    Core(Error),
}

impl From<PyErr> for Refusal {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Core(error)
    }
}

impl Refusal {
    fn raise(self, py: Python<'_>) -> PyErr {
        match self {
            Self::Python(error) => error,
            Self::Core(error) => to_py(py, &error),
        }
    }
}

/// Copies of the texts that the argument `name` gives, of one text too. `place` says where in the argument a text of a
/// number is.
pub(super) fn texts(
    name: &'static str,
    given: &Bound<'_, PyAny>,
    place: impl Fn(usize) -> Vec<usize>,
) -> PyResult<Vec<String>> {
    if let Ok(text) = given.cast::<PyString>() {
        return Ok(vec![copied(text, Some((name, &[])))?]);
    }
    let text = |item: &Bound<'_, PyAny>, number| text_item(name, item, &place(number));
    let many = collected(given.len().unwrap_or(0), numbered(name, given)?, text);
    many.map_err(|refusal| refusal.raise(given.py()))
}

/// A text, or several, in the memory of their Python objects: a call that only reads them copies nothing. The second value
/// is true for one text.
pub(super) fn kept(texts: &Bound<'_, PyAny>) -> PyResult<(Vec<PyBackedStr>, bool)> {
    if let Ok(text) = texts.cast::<PyString>() {
        return Ok((vec![kept_text(text, None)?], true));
    }
    let many = collected(texts.len().unwrap_or(0), numbered("texts", texts)?, |item, number| {
        let place = [number];
        Ok(kept_text(text_at("texts", item, &place)?, Some(("texts", &place)))?)
    });
    many.map(|many| (many, false)).map_err(|refusal| refusal.raise(texts.py()))
}

/// The items of several texts with their numbers.
fn numbered<'py>(
    name: &str,
    texts: &Bound<'py, PyAny>,
) -> PyResult<impl Iterator<Item = PyResult<(usize, Bound<'py, PyAny>)>> + use<'py>> {
    let Some(items) = items(texts)? else {
        let reason = format!("{name} must be a str or an iterable of str, not {}", kind(texts)?);
        return Err(wrong_type(texts.py(), name, reason));
    };
    Ok(items.enumerate().map(|(number, item)| item.map(|item| (number, item))))
}

/// What `embed` takes as the argument `name`: a text, texts, token ids, or several lists of those. The second value is true
/// for a single input.
pub(super) fn inputs(name: &'static str, given: &Bound<'_, PyAny>) -> PyResult<(Inputs, bool)> {
    if let Ok(text) = given.cast::<PyString>() {
        return Ok((vec![copied(text, None)?].into(), true));
    }
    if let Some(texts) = arrow::texts(given)? {
        return Ok((texts.into(), false));
    }
    let Some(items) = items(given)? else {
        let takes = "a str, token ids (int), or an iterable of one of these";
        return Err(wrong_type(given.py(), name, format!("{name} must be {takes}, not {}", kind(given)?)));
    };
    several(name, given, items).map_err(|refusal| refusal.raise(given.py()))
}

fn several<'py>(
    name: &'static str,
    given: &Bound<'py, PyAny>,
    mut items: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
) -> Result<(Inputs, bool), Refusal> {
    // The first item determines the form; the others must have it too.
    let Some(first) = items.next().transpose()? else { return Ok((Inputs::Texts(Vec::new()), false)) };
    let expected = given.len().unwrap_or(0);
    let rest = items.enumerate().map(|(number, item)| item.map(|item| (number + 1, item)));
    let all = std::iter::once(Ok((0, first.clone()))).chain(rest);
    if first.is_instance_of::<PyString>() {
        let text = |item: &Bound<'py, PyAny>, number| text_item(name, item, &[number]);
        Ok((Inputs::Texts(collected(expected, all, text)?), false))
    } else if self::items(&first)?.is_some() {
        let ids = |item: &Bound<'py, PyAny>, number| list_of_ids(name, item, number);
        Ok((Inputs::Tokens(collected(expected, all, ids)?), false))
    } else {
        let one = |item: &Bound<'_, PyAny>, number| Ok(id(name, item, number > 0, &[number])?);
        Ok((Inputs::Tokens(vec![collected(expected, all, one)?]), true))
    }
}

/// Items for which memory is taken before the first one is seen: an iterable may be wrong about its length.
const MOST_EXPECTED: usize = 1 << 16;

/// What `take` makes of each item; about `expected` there will be.
fn collected<'py, T>(
    expected: usize,
    items: impl Iterator<Item = PyResult<(usize, Bound<'py, PyAny>)>>,
    take: impl Fn(&Bound<'py, PyAny>, usize) -> Result<T, Refusal>,
) -> Result<Vec<T>, Refusal> {
    let mut taken = Vec::new();
    reserve(&mut taken, expected.min(MOST_EXPECTED))?;
    for item in items {
        let (number, item) = item?;
        push(&mut taken, take(&item, number)?)?;
    }
    Ok(taken)
}

/// The argument that a text comes from, and where in it.
type TextPlace<'a> = Option<(&'static str, &'a [usize])>;

/// The text as UTF-8. A lone surrogate has none.
pub(super) fn copied(text: &Bound<'_, PyString>, place: TextPlace<'_>) -> PyResult<String> {
    joined(&[text_of(text, place)?]).or_raise(text.py())
}

/// The text as UTF-8, without a copy. A lone surrogate has none.
pub(super) fn text_of<'a>(text: &'a Bound<'_, PyString>, place: TextPlace<'_>) -> PyResult<&'a str> {
    text.to_str().map_err(|error| no_utf8(text.py(), error, place))
}

/// The text as UTF-8, in the memory of its Python object. A lone surrogate has none.
fn kept_text(text: &Bound<'_, PyString>, place: TextPlace<'_>) -> PyResult<PyBackedStr> {
    PyBackedStr::try_from(text.clone()).map_err(|error| no_utf8(text.py(), error, place))
}

/// Why a text has no UTF-8.
fn no_utf8(py: Python<'_>, error: PyErr, place: TextPlace<'_>) -> PyErr {
    if error.is_instance_of::<PyMemoryError>(py) {
        return error;
    }
    let error = match place {
        None => Error::Input(format!("the text {LONE_SURROGATE}")),
        Some((name, place)) => Error::item(name, place, format!(" {LONE_SURROGATE}")),
    };
    to_py(py, &error)
}

fn text_item(name: &'static str, item: &Bound<'_, PyAny>, place: &[usize]) -> Result<String, Refusal> {
    Ok(joined(&[text_of(text_at(name, item, place)?, Some((name, place)))?])?)
}

/// The item as a text.
fn text_at<'a, 'py>(
    name: &str,
    item: &'a Bound<'py, PyAny>,
    place: &[usize],
) -> PyResult<&'a Bound<'py, PyString>> {
    match item.cast::<PyString>() {
        Ok(text) => Ok(text),
        Err(_) => {
            let rest = format!(" must be a str, not {}", kind(item)?);
            Err(wrong_type_of(item.py(), name, place, &rest))
        }
    }
}

fn list_of_ids(name: &'static str, item: &Bound<'_, PyAny>, number: usize) -> Result<Vec<u32>, Refusal> {
    let wrong = item.is_instance_of::<PyString>();
    let Some(items) = items(item)?.filter(|_| !wrong) else {
        let rest = format!(" must be a list of token ids like the first one, not {}", kind(item)?);
        return Err(wrong_type_of(item.py(), name, &[number], &rest).into());
    };
    let all = items.enumerate().map(|(at, item)| item.map(|item| (at, item)));
    let one = |item: &Bound<'_, PyAny>, at| Ok(id(name, item, true, &[number, at])?);
    collected(item.len().unwrap_or(0), all, one)
}

/// A token id: anything that Python counts as an integer, numpy's included, but no bool. `settled`: other forms
/// are ruled out already.
fn id(name: &'static str, item: &Bound<'_, PyAny>, settled: bool, place: &[usize]) -> PyResult<u32> {
    let py = item.py();
    if !item.is_instance_of::<PyBool>() {
        match item.extract() {
            Ok(id) => return Ok(id),
            Err(error) if error.is_instance_of::<PyOverflowError>(py) => {
                let rest = format!(" is {item}, which is no token id of any vocabulary");
                return Err(to_py(py, &Error::item(name, place, rest)));
            }
            Err(_) => {}
        }
    }
    let wanted = if settled { "a token id (int)" } else { "a str, a token id (int) or a list of ids" };
    Err(wrong_type_of(py, name, place, &format!(" must be {wanted}, not {}", kind(item)?)))
}

/// The items of an iterable that may be meant as several inputs.
fn items<'py>(
    given: &Bound<'py, PyAny>,
) -> PyResult<Option<impl Iterator<Item = PyResult<Bound<'py, PyAny>>> + use<'py>>> {
    // Iterable, but never meant as texts or ids.
    let wrong = given.is_instance_of::<PyBytes>()
        || given.is_instance_of::<PyByteArray>()
        || given.is_instance_of::<PyMemoryView>()
        || is_mapping(given)?;
    Ok(if wrong { None } else { given.try_iter().ok() })
}

fn kind(object: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(object.get_type().name()?.to_string())
}
