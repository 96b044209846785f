//! The keyword `cache` of `Manager.register`, and reports of the tiers.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyString};

use super::errors::{OrRaise, to_py, wrong_type};
use super::options::of_argument;
use super::texts::text_of;
use super::utf8::Utf8;
use crate::Error;
use crate::cache::Policy;
use crate::cache::tiers::TierStatistics;
use crate::config::TimeSpan;
use crate::manager::{CacheOptions, ManagerStatistics};

/// The tiers that a model can name.
const TIERS: [&str; 3] = ["memory", "disk", "redis"];

/// `False`, `True`, `None`, or `{"size": …, "policy": …, "ttl": …, "tiers": […]}`.
pub(super) fn options(value: Option<&Bound<'_, PyAny>>) -> PyResult<CacheOptions> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(CacheOptions::default()) };
    let py = value.py();
    if let Ok(on) = value.cast::<PyBool>() {
        return Ok(CacheOptions { off: !on.is_true(), ..CacheOptions::default() });
    }
    let Ok(given) = value.cast::<PyDict>() else {
        let kind = value.get_type().name()?;
        return Err(wrong_type(py, "cache", format!("cache must be False or a dict, not {kind}")));
    };
    let mut options = CacheOptions::default();
    for (key, value) in given {
        let key: Utf8 = key.extract()?;
        match &*key {
            "size" => {
                let number = if value.is_instance_of::<PyBool>() { None } else { value.extract().ok() };
                let size = number.ok_or_else(|| {
                    let reason = format!(" size={value} must be a number of results, 0 or more");
                    to_py(py, &Error::argument("cache", reason))
                });
                options.size = Some(size?);
            }
            "policy" => {
                let name =
                    value.extract::<Utf8>().map_err(|error| wrong_or(error, "policy", "a name", &value))?;
                options.policy = Some(
                    Policy::parse("policy", &name)
                        .map_err(|error| of_argument("cache", " policy", error))
                        .or_raise(py)?,
                );
            }
            "ttl" => {
                let text = match value.cast::<PyString>() {
                    Ok(text) => text_of(text, None)?.to_owned(),
                    Err(_) => {
                        let seconds = Some(&value).filter(|value| !value.is_instance_of::<PyBool>());
                        let seconds = seconds.and_then(|value| value.extract::<f64>().ok());
                        seconds
                            .ok_or_else(|| wrong("ttl", "seconds, or a text such as \"1h\"", &value))?
                            .to_string()
                    }
                };
                options.time_to_live = Some(
                    TimeSpan::parse("ttl", &text)
                        .map_err(|error| of_argument("cache", " ttl", error))
                        .or_raise(py)?,
                );
            }
            "tiers" if !value.is_instance_of::<PyString>() => {
                let names: Vec<Utf8> =
                    value.extract().map_err(|error| wrong_or(error, "tiers", "a list of names", &value))?;
                if let Some(wrong) = names.iter().map(|name| &**name).find(|name| !TIERS.contains(name)) {
                    let reason = format!(": there is no tier {wrong:?}; there are {}", TIERS.join(", "));
                    return Err(to_py(py, &Error::argument("cache", reason)));
                }
                options.tiers = Some(names.into_iter().map(String::from).collect());
            }
            "tiers" => return Err(wrong("tiers", "a list of names", &value)),
            _ => {
                let reason = format!(" has no {key:?}; it has size, policy, ttl and tiers");
                return Err(to_py(py, &Error::argument("cache", reason)));
            }
        }
    }
    Ok(options)
}

/// The error for an entry of another type.
fn wrong(name: &str, expected: &str, value: &Bound<'_, PyAny>) -> PyErr {
    let kind = value.get_type().name().map_or_else(|_| "this".to_owned(), |kind| kind.to_string());
    wrong_type(value.py(), "cache", format!("cache {name} must be {expected}, not {kind}"))
}

/// The same for `error`, unless the type is right: half a character is no text.
fn wrong_or(error: PyErr, name: &str, expected: &str, value: &Bound<'_, PyAny>) -> PyErr {
    if error.is_instance_of::<PyTypeError>(value.py()) { wrong(name, expected, value) } else { error }
}

/// The tiers by name.
pub(super) fn tiers<'py>(py: Python<'py>, tiers: &[TierStatistics]) -> PyResult<Bound<'py, PyDict>> {
    let all = PyDict::new(py);
    for tier in tiers {
        let one = PyDict::new(py);
        one.set_item("hits", tier.hits)?;
        one.set_item("misses", tier.misses)?;
        one.set_item("skipped", tier.skipped)?;
        one.set_item("writes", tier.writes)?;
        one.set_item("dropped", tier.dropped)?;
        one.set_item("errors", tier.errors)?;
        one.set_item("read_ahead", tier.read_ahead)?;
        one.set_item("entries", tier.entries)?;
        one.set_item("bytes", tier.bytes)?;
        one.set_item("working", tier.working)?;
        all.set_item(tier.name, one)?;
    }
    Ok(all)
}

/// The models by slot: of those that were asked for results.
pub(super) fn models<'py>(py: Python<'py>, all: &ManagerStatistics) -> PyResult<Bound<'py, PyDict>> {
    let models = PyDict::new(py);
    for slot in &all.slots {
        let report = &slot.cache;
        if report.hits + report.misses == 0 && report.own.is_none() && !report.off {
            continue;
        }
        let one = PyDict::new(py);
        one.set_item("hits", report.hits)?;
        one.set_item("misses", report.misses)?;
        one.set_item("off", report.off)?;
        one.set_item("entries", report.own.map(|own| own.entries))?;
        one.set_item("max_entries", report.own.map(|own| own.max_entries))?;
        models.set_item(&slot.name, one)?;
    }
    Ok(models)
}
