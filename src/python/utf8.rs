//! Names and short texts among the arguments of a call.

use std::fmt;
use std::ops::Deref;

use pyo3::exceptions::PyUnicodeEncodeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::errors::to_py;
use crate::Error;

/// What is wrong with a text that cannot be encoded.
pub(super) const LONE_SURROGATE: &str = "holds a lone surrogate, which no UTF-8 text can; clean it with \
                                         text.encode('utf-8', 'replace').decode()";
/// The longest text that an error shows, in characters.
const SHOWN: usize = 80;

/// A str that is valid Unicode. Python's own exception for a lone surrogate names neither the argument nor a remedy.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Utf8(String);

impl<'py> FromPyObject<'_, 'py> for Utf8 {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let text = given.cast::<PyString>()?;
        match text.to_str() {
            Ok(valid) => Ok(Self(valid.to_owned())),
            Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(given.py()) => Err(refused(&text)),
            Err(error) => Err(error),
        }
    }
}

impl Deref for Utf8 {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Utf8 {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, out)
    }
}

impl From<&str> for Utf8 {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<Utf8> for String {
    fn from(text: Utf8) -> Self {
        text.0
    }
}

/// The owned text of an optional argument.
pub(super) fn owned(text: Option<Utf8>) -> Option<String> {
    text.map(String::from)
}

fn refused(text: &Bound<'_, PyString>) -> PyErr {
    // Python writes a lone surrogate as \ud800, in quotes.
    let Ok(quoted) = text.repr() else {
        return to_py(text.py(), &Error::Input(format!("the text {LONE_SURROGATE}")));
    };
    let shown = shortened(&quoted.to_string_lossy());
    to_py(text.py(), &Error::Input(format!("{shown} {LONE_SURROGATE}")))
}

/// The beginning of a text, as an error shows it.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
