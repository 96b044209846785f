//! Reports of what was learned of the use of models, and the policy over a series of uses.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::errors::OrRaise;
use super::gil::detached;
use super::options::positive_seconds;
use crate::lifecycle::policy::{AdaptiveSettings, Explanation, Simulated, Spent, simulate};
use crate::manager::{Forecast, ManagerStatistics, SlotExplanation};

fn spent<'py>(py: Python<'py>, spent: &Spent) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("cold_starts", spent.cold_starts)?;
    dict.set_item("resident_seconds", spent.resident_seconds)?;
    Ok(dict)
}

/// The figures of one slot.
pub(super) fn figures<'py>(py: Python<'py>, found: &Explanation) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("adaptive", spent(py, &found.spent)?)?;
    dict.set_item("fixed", spent(py, &found.fixed)?)?;
    dict.set_item("prewarms", found.ahead.0)?;
    dict.set_item("prewarms_used", found.ahead.1)?;
    dict.set_item("keep_alive", found.stay.as_secs_f64())?;
    dict.set_item("known_gaps", found.gaps)?;
    Ok(dict)
}

/// `stats()["adaptive"]`: slots by name.
pub(super) fn statistics<'py>(py: Python<'py>, all: &ManagerStatistics) -> PyResult<Bound<'py, PyDict>> {
    let slots = PyDict::new(py);
    for slot in &all.slots {
        if let Some(found) = &slot.adaptive {
            slots.set_item(&slot.name, figures(py, found)?)?;
        }
    }
    Ok(slots)
}

/// `explain(slot)`.
pub(super) fn explanation<'py>(
    py: Python<'py>,
    name: &str,
    sentence: String,
    found: Option<&SlotExplanation>,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("slot", name)?;
    dict.set_item("adaptive", found.is_some())?;
    dict.set_item("sentence", sentence)?;
    let Some(SlotExplanation { explanation, successors }) = found else { return Ok(dict) };
    dict.set_item("figures", figures(py, explanation)?)?;
    dict.set_item("cold_start_price", explanation.price.as_secs_f64())?;
    dict.set_item("window", explanation.window.map(|window| (window.from, window.to)))?;
    dict.set_item("memory_pressure", explanation.pressed)?;
    let followers = PyDict::new(py);
    for (slot, probability) in successors {
        followers.set_item(slot, probability)?;
    }
    dict.set_item("successors", followers)?;
    Ok(dict)
}

/// `forecast()`.
pub(super) fn forecast<'py>(py: Python<'py>, planned: &[Forecast]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for next in planned {
        let dict = PyDict::new(py);
        dict.set_item("slot", &next.slot)?;
        dict.set_item("seconds", next.after.as_secs_f64())?;
        dict.set_item("until_seconds", next.until.as_secs_f64())?;
        dict.set_item("reason", next.load.why.name())?;
        dict.set_item("probability", next.load.probability)?;
        list.append(dict)?;
    }
    Ok(list)
}

/// The adaptive policy over one series of uses, for benchmarks: what it and the fixed timer would have spent, and which uses
/// would have waited for a load.
#[pyfunction]
#[pyo3(signature = (uses, *, load_seconds, max_idle_time = 600.0, cold_start_price = 1200.0, max_keep_alive = 14400.0))]
pub(super) fn _simulate_adaptive(
    py: Python<'_>,
    uses: Vec<f64>,
    load_seconds: f64,
    max_idle_time: f64,
    cold_start_price: f64,
    max_keep_alive: f64,
) -> PyResult<(Bound<'_, PyDict>, Vec<bool>)> {
    let settings = AdaptiveSettings {
        usual: positive_seconds("max_idle_time", max_idle_time).or_raise(py)?,
        price: positive_seconds("cold_start_price", cold_start_price).or_raise(py)?,
        longest: positive_seconds("max_keep_alive", max_keep_alive).or_raise(py)?,
    };
    let load = positive_seconds("load_seconds", load_seconds).or_raise(py)?;
    let Simulated { explanation, cold } = detached(py, || simulate(&uses, load, settings));
    Ok((figures(py, &explanation)?, cold))
}
