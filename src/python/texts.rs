//! Texts as Python gives them.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyMapping, PyString};

use super::errors::to_py;
use crate::Error;

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
        // Iterable, but never meant as texts.
        let wrong = texts.is_instance_of::<PyBytes>()
            || texts.is_instance_of::<PyByteArray>()
            || texts.cast::<PyMapping>().is_ok();
        let items = if wrong { None } else { texts.try_iter().ok() };
        let Some(items) = items else {
            let message = format!("texts must be a str or an iterable of str, not {}", kind(texts)?);
            return Err(PyTypeError::new_err(message));
        };
        let mut many = Vec::with_capacity(texts.len().unwrap_or(0));
        for (number, item) in items.enumerate() {
            let item = item?;
            let Ok(text) = item.cast::<PyString>() else {
                return Err(PyTypeError::new_err(format!(
                    "texts[{number}] must be a str, not {}",
                    kind(&item)?
                )));
            };
            many.push(text_of(text, Some(number))?.to_owned());
        }
        Ok(Self::Many(many))
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

fn kind(object: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(object.get_type().name()?.to_string())
}
