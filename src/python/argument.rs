//! Arguments of Python calls. An error names the argument, what it was given, and what it takes.
//!
//! PyO3's own conversions do not say which argument they refuse. A parameter of a method is annotated
//! `#[pyo3(from_py_with = argument::timeout)]`, and an item of a dict of keywords is read by [`argument`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use pyo3::PyTypeInfo;
use pyo3::exceptions::{PyException, PyTypeError, PyUnicodeEncodeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyInt, PyList, PyString, PyTuple, PyType};

use super::config::PyConfig;
use super::errors::{to_py, wrong_type_of};
use super::utf8::{LONE_SURROGATE, Utf8, shortened};
use crate::Error;
use crate::similar::similar;

/// Why an argument is refused.
pub(super) enum WrongArgument {
    /// It is of another type.
    Type,
    /// A part of it, named as in Python (`[0]`), is no str.
    Part(String, String),
    /// Its value cannot be used, for this reason.
    Value(String),
    /// Python's code raised an exception.
    Raised(PyErr),
}

impl From<PyErr> for WrongArgument {
    fn from(error: PyErr) -> Self {
        Self::Raised(error)
    }
}

impl WrongArgument {
    /// Why a conversion that runs Python's own code failed: the type, or what a signal handler raised there (Ctrl-C).
    fn of(given: &Bound<'_, PyAny>, error: PyErr) -> Self {
        if error.is_instance_of::<PyException>(given.py()) { Self::Type } else { Self::Raised(error) }
    }
}

/// Whether `given` is a mapping. For what is neither a dict nor a list this runs Python's own code, whose exceptions are
/// returned: a cast to PyO3's type of mappings would lose an interrupt (Ctrl-C) that comes there.
///
/// # Errors
/// What Python's code raised.
pub(super) fn is_mapping(given: &Bound<'_, PyAny>) -> PyResult<bool> {
    static MAPPING: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    if given.is_instance_of::<PyDict>() {
        return Ok(true);
    }
    if given.is_instance_of::<PyList>() || given.is_instance_of::<PyTuple>() {
        return Ok(false);
    }
    given.is_instance(MAPPING.import(given.py(), "collections.abc", "Mapping")?)
}

/// The pairs of a mapping, or `None` of what is none.
///
/// # Errors
/// As [`is_mapping`].
pub(super) fn items_of_mapping<'py>(given: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyList>>> {
    if let Ok(dict) = given.cast::<PyDict>() {
        return Ok(Some(dict.items()));
    }
    if !is_mapping(given)? {
        return Ok(None);
    }
    let items = given.call_method0("items")?.try_iter()?.collect::<PyResult<Vec<_>>>()?;
    PyList::new(given.py(), items).map(Some)
}

/// Whether `given` is a sequence, a str too. Exceptions are returned as those of [`is_mapping`].
///
/// # Errors
/// What Python's code raised.
pub(super) fn is_sequence(given: &Bound<'_, PyAny>) -> PyResult<bool> {
    static SEQUENCE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    if given.is_instance_of::<PyList>() || given.is_instance_of::<PyTuple>() {
        return Ok(true);
    }
    given.is_instance(SEQUENCE.import(given.py(), "collections.abc", "Sequence")?)
}

impl WrongArgument {
    fn raise(self, name: &'static str, takes: &str, given: &Bound<'_, PyAny>) -> PyErr {
        let py = given.py();
        match self {
            Self::Type => match type_name(given) {
                Ok(kind) => wrong_type_of(py, name, &[], &format!(" must be {takes}, not {kind}")),
                Err(error) => error,
            },
            Self::Part(part, kind) => {
                wrong_type_of(py, name, &[], &format!("{part} must be a str, not {kind}"))
            }
            Self::Value(reason) => {
                let shown =
                    given.repr().map_or_else(|_| "…".into(), |text| shortened(&text.to_string_lossy()));
                to_py(py, &Error::argument(name, format!("={shown}: {reason}")))
            }
            Self::Raised(error) => error,
        }
    }
}

/// A type that arguments have.
pub(super) trait Argument<'py>: Sized {
    /// What such an argument must be.
    const TAKES: &'static str;

    /// # Errors
    /// Why the object is none.
    fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument>;
}

/// The argument `name` as `T`.
pub(super) fn argument<'py, T: Argument<'py>>(name: &'static str, given: &Bound<'py, PyAny>) -> PyResult<T> {
    T::take(given).map_err(|refusal| refusal.raise(name, T::TAKES, given))
}

/// A function for each name, for `from_py_with`.
macro_rules! arguments {
    ($($name:ident)+) => {$(
        /// The argument of this name.
        pub(super) fn $name<'py, T: Argument<'py>>(given: &Bound<'py, PyAny>) -> PyResult<T> {
            argument(stringify!($name), given)
        }
    )+};
}

arguments! {
    add_generation_prompt chat_template cleanup_interval cold_start_price config continue_final_message copy dtype
    enabled encoding_format fallback kind load load_time loader max_idle_time max_length max_tokens memory_mb model
    model_type name names normalize on_done on_event overlap path pinned pooling progress prompt prompt_name prompts replace revision served_model
    text tiers timeout truncate truncate_dim user
}

impl<'py, T: Argument<'py>> Argument<'py> for Option<T> {
    const TAKES: &'static str = T::TAKES;

    fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument> {
        if given.is_none() { Ok(None) } else { T::take(given).map(Some) }
    }
}

impl<'py> Argument<'py> for bool {
    const TAKES: &'static str = "True or False";

    fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument> {
        // numpy's included.
        given.extract().map_err(|_| WrongArgument::Type)
    }
}

impl<'py> Argument<'py> for f64 {
    const TAKES: &'static str = "a number";

    fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument> {
        if given.is_instance_of::<PyBool>() {
            return Err(WrongArgument::Type);
        }
        given.extract().map_err(|error| {
            if given.is_instance_of::<PyInt>() {
                WrongArgument::Value("is too large".into())
            } else {
                WrongArgument::of(given, error)
            }
        })
    }
}

impl<'py> Argument<'py> for f32 {
    const TAKES: &'static str = f64::TAKES;

    fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument> {
        let number = f64::take(given)?;
        let narrow = number as Self;
        // Not what it is rounded to, which later checks would name.
        if number.is_finite() && (narrow.is_infinite() || (narrow == 0.0 && number != 0.0)) {
            return Err(WrongArgument::Value(
                "is no number of 32 bits: those lie between 1.4e-45 and 3.4e38".into(),
            ));
        }
        Ok(narrow)
    }
}

/// Whole numbers: whatever Python takes as an index, numpy's included, but no bool.
macro_rules! whole_numbers {
    ($($type:ty: $range:literal;)+) => {$(
        impl<'py> Argument<'py> for $type {
            const TAKES: &'static str = "an int";

            fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument> {
                if given.is_instance_of::<PyBool>() {
                    return Err(WrongArgument::Type);
                }
                let number =
                    given.call_method0("__index__").map_err(|error| WrongArgument::of(given, error))?;
                number.extract().map_err(|_| match number.lt(0) {
                    Ok(true) => WrongArgument::Value("must not be negative".into()),
                    _ => WrongArgument::Value(concat!("must be less than ", $range).into()),
                })
            }
        }
    )+};
}

whole_numbers! {
    u64: "2**64";
    usize: "2**64";
}

impl<'py> Argument<'py> for Utf8 {
    const TAKES: &'static str = "a str";

    fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument> {
        let text = Bound::<PyString>::take(given)?;
        match text.to_str() {
            Ok(text) => Ok(Self::from(text)),
            Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(given.py()) => {
                Err(WrongArgument::Value(LONE_SURROGATE.into()))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl<'py> Argument<'py> for Bound<'py, PyString> {
    const TAKES: &'static str = "a str";

    fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument> {
        given.cast::<PyString>().cloned().map_err(|_| WrongArgument::Type)
    }
}

impl<'py> Argument<'py> for Vec<Utf8> {
    const TAKES: &'static str = "a list of str";

    fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument> {
        if given.is_instance_of::<PyString>() || is_mapping(given)? {
            return Err(WrongArgument::Type);
        }
        let items = given.try_iter().map_err(|error| WrongArgument::of(given, error))?;
        items.enumerate().map(|(number, item)| part(&item?, || format!("[{number}]"))).collect()
    }
}

impl<'py> Argument<'py> for BTreeMap<Utf8, Utf8> {
    const TAKES: &'static str = "a mapping of names to texts";

    fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument> {
        let items = items_of_mapping(given)?.ok_or(WrongArgument::Type)?;
        let entry = |pair: Bound<'py, PyAny>| {
            let (key, value): (Bound<'py, PyAny>, Bound<'py, PyAny>) = pair.extract()?;
            let shown = key.repr()?;
            let key = part(&key, || format!(": the name {shown}"))?;
            Ok((key, part(&value, || format!("[{shown}]"))?))
        };
        items.iter().map(entry).collect()
    }
}

/// A part of an argument that is a str.
fn part(given: &Bound<'_, PyAny>, place: impl Fn() -> String) -> Result<Utf8, WrongArgument> {
    match Utf8::take(given) {
        Err(WrongArgument::Type) => Err(WrongArgument::Part(place(), type_name(given)?)),
        other => other,
    }
}

impl<'py> Argument<'py> for PathBuf {
    const TAKES: &'static str = "a str or a path";

    fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument> {
        given.extract().map_err(|error| WrongArgument::of(given, error))
    }
}

impl<'py> Argument<'py> for Bound<'py, PyConfig> {
    const TAKES: &'static str = "a Config";

    fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument> {
        given.cast::<PyConfig>().cloned().map_err(|_| WrongArgument::Type)
    }
}

/// A function, or another object that can be called.
pub(super) struct Callable(Py<PyAny>);

impl From<Callable> for Py<PyAny> {
    fn from(callable: Callable) -> Self {
        callable.0
    }
}

impl<'py> Argument<'py> for Callable {
    const TAKES: &'static str = "a function";

    fn take(given: &Bound<'py, PyAny>) -> Result<Self, WrongArgument> {
        if given.is_callable() { Ok(Self(given.clone().unbind())) } else { Err(WrongArgument::Type) }
    }
}

/// The name of an object's type.
fn type_name(given: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(given.get_type().name()?.to_string())
}

/// Refuses keywords that `method` of a class does not have.
pub(super) fn no_others<C: PyTypeInfo>(
    py: Python<'_>,
    method: &str,
    others: Option<&Bound<'_, PyDict>>,
) -> PyResult<()> {
    match others.and_then(|others| others.iter().next()) {
        Some((name, _)) => Err(unknown_keyword::<C>(py, method, &name.extract::<Utf8>()?)),
        None => Ok(()),
    }
}

/// The error for a keyword that `method` of a class does not have.
pub(super) fn unknown_keyword<C: PyTypeInfo>(py: Python<'_>, method: &str, name: &str) -> PyErr {
    let known = || -> PyResult<Vec<String>> {
        let method = py.get_type::<C>().getattr(method)?;
        let signature = py.import("inspect")?.call_method1("signature", (method,))?;
        signature.getattr("parameters")?.try_iter()?.map(|name| name?.extract()).collect()
    };
    match known() {
        Ok(known) => {
            let known = known.iter().map(String::as_str).filter(|name| *name != "self");
            unexpected(&format!("{method}()"), name, known)
        }
        Err(error) => error,
    }
}

/// The error for a keyword that a call does not have, with the one that was meant.
pub(super) fn unexpected<'a>(call: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> PyErr {
    let remedy = match similar(name, known.clone()) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("there are {}", known.collect::<Vec<_>>().join(", ")),
    };
    let shown = shortened(name);
    PyTypeError::new_err(format!("{call} got an unexpected keyword argument {shown:?}; {remedy}"))
}
