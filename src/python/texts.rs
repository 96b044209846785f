//! Texts and token ids as Python gives them.

use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyMapping, PyString};

use super::errors::to_py;
use crate::Error;
use crate::manager::Inputs;

/// One text, or several.
pub(super) enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    pub(super) fn extract(texts: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(text) = texts.cast::<PyString>() {
            return Ok(Self::One(text_of(text, None)?.to_owned()));
        }
        let Some(items) = items(texts) else {
            return Err(PyTypeError::new_err(format!(
                "texts must be a str or an iterable of str, not {}",
                kind(texts)?
            )));
        };
        let mut many = Vec::with_capacity(texts.len().unwrap_or(0));
        for (number, item) in items.enumerate() {
            many.push(text_item(&item?, number)?);
        }
        Ok(Self::Many(many))
    }
}

/// What `embed` takes: a text, texts, token ids, or several lists of those. The second value tells whether it is one.
pub(super) fn inputs(given: &Bound<'_, PyAny>) -> PyResult<(Inputs, bool)> {
    if let Ok(text) = given.cast::<PyString>() {
        return Ok((vec![text_of(text, None)?.to_owned()].into(), true));
    }
    let Some(mut items) = items(given) else {
        return Err(PyTypeError::new_err(format!(
            "texts must be a str, token ids (int), or an iterable of one of these, not {}",
            kind(given)?
        )));
    };
    // The first item tells which of the forms it is; the others must be like it.
    let Some(first) = items.next().transpose()? else { return Ok((Inputs::Texts(Vec::new()), false)) };
    let expected = given.len().unwrap_or(0);
    let rest = items.enumerate().map(|(number, item)| item.map(|item| (number + 1, item)));
    let all = std::iter::once(Ok((0, first.clone()))).chain(rest);
    if first.is_instance_of::<PyString>() {
        let mut texts = Vec::with_capacity(expected);
        for item in all {
            let (number, item) = item?;
            texts.push(text_item(&item, number)?);
        }
        Ok((Inputs::Texts(texts), false))
    } else if self::items(&first).is_some() {
        let mut lists = Vec::with_capacity(expected);
        for item in all {
            let (number, item) = item?;
            lists.push(list_of_ids(&item, number)?);
        }
        Ok((Inputs::Tokens(lists), false))
    } else {
        let mut ids = Vec::with_capacity(expected);
        for item in all {
            let (number, item) = item?;
            ids.push(id(&item, number > 0, || format!("texts[{number}]"))?);
        }
        Ok((Inputs::Tokens(vec![ids]), true))
    }
}

/// The text as UTF-8, without a copy. A lone surrogate has none.
pub(super) fn text_of<'a>(text: &'a Bound<'_, PyString>, number: Option<usize>) -> PyResult<&'a str> {
    text.to_str().map_err(|_| {
        let which = number.map_or_else(|| "the text".to_owned(), |number| format!("texts[{number}]"));
        let reason = "holds a lone surrogate, which no UTF-8 text can; clean it with \
                      text.encode('utf-8', 'replace').decode()";
        to_py(text.py(), &Error::Input(format!("{which} {reason}")))
    })
}

fn text_item(item: &Bound<'_, PyAny>, number: usize) -> PyResult<String> {
    match item.cast::<PyString>() {
        Ok(text) => Ok(text_of(text, Some(number))?.to_owned()),
        Err(_) => Err(PyTypeError::new_err(format!("texts[{number}] must be a str, not {}", kind(item)?))),
    }
}

fn list_of_ids(item: &Bound<'_, PyAny>, number: usize) -> PyResult<Vec<u32>> {
    let wrong = item.is_instance_of::<PyString>();
    let Some(items) = items(item).filter(|_| !wrong) else {
        return Err(PyTypeError::new_err(format!(
            "texts[{number}] must be a list of token ids like texts[0], not {}",
            kind(item)?
        )));
    };
    let mut ids = Vec::with_capacity(item.len().unwrap_or(0));
    for (at, item) in items.enumerate() {
        ids.push(id(&item?, true, || format!("texts[{number}][{at}]"))?);
    }
    Ok(ids)
}

/// A token id: anything that Python counts as an integer, numpy's included, but no bool. `settled` tells that nothing
/// else could be meant.
fn id(item: &Bound<'_, PyAny>, settled: bool, which: impl Fn() -> String) -> PyResult<u32> {
    let py = item.py();
    if !item.is_instance_of::<PyBool>() {
        match item.extract() {
            Ok(id) => return Ok(id),
            Err(error) if error.is_instance_of::<PyOverflowError>(py) => {
                let reason = format!("{} is {item}, which is no token id of any vocabulary", which());
                return Err(to_py(py, &Error::Input(reason)));
            }
            Err(_) => {}
        }
    }
    let wanted = if settled { "a token id (int)" } else { "a str, a token id (int) or a list of ids" };
    Err(PyTypeError::new_err(format!("{} must be {wanted}, not {}", which(), kind(item)?)))
}

/// The items of an iterable that may be meant as several inputs.
fn items<'py>(
    given: &Bound<'py, PyAny>,
) -> Option<impl Iterator<Item = PyResult<Bound<'py, PyAny>>> + use<'py>> {
    // Iterable, but never meant as texts or ids.
    let wrong = given.is_instance_of::<PyBytes>()
        || given.is_instance_of::<PyByteArray>()
        || given.cast::<PyMapping>().is_ok();
    if wrong { None } else { given.try_iter().ok() }
}

fn kind(object: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(object.get_type().name()?.to_string())
}
