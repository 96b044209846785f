//! Keywords of an embedding call.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString};

use super::argument::argument;
use super::errors::{OrRaise, to_py, wrong_type};
use super::texts::text_of;
use super::utf8::owned;
use crate::Error;
use crate::lifecycle::KeepAlive;
use crate::manager::EmbedOptions;
use crate::number::number_text;

/// Sets what the keyword `name` says, if it is one that embedding calls share; else false.
pub(super) fn set_option(options: &mut EmbedOptions, name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    match name {
        "prompt" => options.prompt = owned(argument("prompt", value)?),
        "prompt_name" => options.prompt_name = owned(argument("prompt_name", value)?),
        "normalize" => options.normalize = argument("normalize", value)?,
        "truncate_dim" => options.truncate_dim = argument("truncate_dim", value)?,
        "truncate" => options.truncate = argument("truncate", value)?,
        "timeout" => options.timeout = timeout(value.py(), argument("timeout", value)?)?,
        "keep_alive" => options.keep_alive = keep_alive(Some(value))?,
        "user" => options.user = owned(argument("user", value)?),
        _ => return Ok(false),
    }
    Ok(true)
}

pub(super) fn timeout(py: Python<'_>, seconds: Option<f64>) -> PyResult<Option<Duration>> {
    let Some(seconds) = seconds else { return Ok(None) };
    if seconds.is_nan() || seconds < 0.0 {
        let reason = format!("={} must be a number of seconds, not negative", number_text(seconds));
        return Err(to_py(py, &Error::argument("timeout", reason)));
    }
    // More than a Duration can represent is no limit.
    Ok(Duration::try_from_secs_f64(seconds).ok())
}

/// Seconds or text such as "5m"; 0: unload after use; negative: without limit.
pub(super) fn keep_alive(value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<KeepAlive>> {
    read_keep_alive(value, |error| error)
}

fn read_keep_alive(
    value: Option<&Bound<'_, PyAny>>,
    explained: impl FnOnce(Error) -> Error,
) -> PyResult<Option<KeepAlive>> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(None) };
    let keep_alive = if let Ok(text) = value.cast::<PyString>() {
        KeepAlive::parse("keep_alive", text_of(text, None)?)
    } else if let Ok(seconds) = argument("keep_alive", value) {
        KeepAlive::from_seconds("keep_alive", seconds)
    } else if value.is_exact_instance_of::<PyInt>() {
        return argument::<f64>("keep_alive", value).map(|_| None);
    } else {
        let kind = value.get_type().name()?;
        let reason = format!("keep_alive must be seconds or text such as \"5m\", not {kind}");
        return Err(wrong_type(value.py(), "keep_alive", reason));
    };
    keep_alive
        .map_err(explained)
        .map_err(|error| of_argument("keep_alive", "", error))
        .or_raise(value.py())
        .map(Some)
}

/// The same for a slot, which may also leave it to what was learned: `"auto"`, the second value.
pub(super) fn slot_keep_alive(value: Option<&Bound<'_, PyAny>>) -> PyResult<(Option<KeepAlive>, bool)> {
    let text = value.and_then(|value| value.cast::<PyString>().ok());
    match text {
        Some(text) if text_of(text, None)?.trim().eq_ignore_ascii_case("auto") => Ok((None, true)),
        _ => Ok((read_keep_alive(value, KeepAlive::or_auto)?, false)),
    }
}

/// A number of seconds greater than 0.
pub(super) fn positive_seconds(param: &'static str, value: f64) -> crate::Result<Duration> {
    let span = Duration::try_from_secs_f64(value).ok().filter(|span| !span.is_zero());
    span.ok_or_else(|| {
        let value = number_text(value);
        Error::argument(param, format!("={value}: must be a number of seconds greater than 0"))
    })
}

/// A number of seconds greater than 0; `None`: more than a `Duration` can represent, which is no limit.
pub(super) fn patience(param: &'static str, value: f64) -> crate::Result<Option<Duration>> {
    match Duration::try_from_secs_f64(value) {
        Err(_) if value > 0.0 => Ok(None),
        _ => positive_seconds(param, value).map(Some),
    }
}

/// The error of a value that a setting could have too, as one of `part` of the argument `param` of a call.
pub(super) fn of_argument(param: &'static str, part: &str, error: Error) -> Error {
    match error {
        Error::Config { value, reason, .. } => Error::argument(param, format!("{part}={value}: {reason}")),
        other => other,
    }
}
