//! `LazyLoadTracker`: the core's tracker as a Python object.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::argument;
use super::errors::to_py;
use super::utf8::Utf8;
use crate::Error;
use crate::clock::Clock;
use crate::lifecycle::{Tracker, TrackerStatistics};
use crate::number::number_text;

/// Load times, memory and accesses by slot.
#[pyclass(frozen, name = "LazyLoadTracker", module = "model_manager._core")]
pub(super) struct PyTracker(pub(super) Arc<Tracker>);

#[pymethods]
impl PyTracker {
    #[new]
    fn new() -> Self {
        Self(Arc::new(Tracker::new(Clock::System)))
    }

    /// Note a load that took `load_time` seconds and `memory_mb` MiB, finite numbers; it counts as an access too.
    fn record_load(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::model_type)] model_type: Utf8,
        #[pyo3(from_py_with = argument::load_time)] load_time: f64,
        #[pyo3(from_py_with = argument::memory_mb)] memory_mb: f64,
    ) -> PyResult<()> {
        // Others are no JSON, which the statistics may be written as.
        for (name, figure) in [("load_time", load_time), ("memory_mb", memory_mb)] {
            if !figure.is_finite() {
                let wrong =
                    Error::argument(name, format!("={}: must be a finite number", number_text(figure)));
                return Err(to_py(py, &wrong));
            }
        }
        self.0.record_load(&model_type, load_time, memory_mb);
        Ok(())
    }

    /// Note a use now.
    fn record_access(&self, #[pyo3(from_py_with = argument::model_type)] model_type: Utf8) {
        self.0.record_access(&model_type);
    }

    /// All figures by slot; seconds and MiB.
    fn get_statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        statistics(py, self.0.statistics())
    }

    /// Forget everything.
    fn clear(&self) {
        self.0.clear();
    }
}

pub(super) fn statistics(py: Python<'_>, statistics: TrackerStatistics) -> PyResult<Bound<'_, PyDict>> {
    fn add<'py, V: IntoPyObject<'py>>(
        all: &Bound<'py, PyDict>,
        key: &str,
        figures: BTreeMap<String, V>,
    ) -> PyResult<()> {
        let by_slot = PyDict::new(all.py());
        for (slot, figure) in figures {
            by_slot.set_item(slot, figure)?;
        }
        all.set_item(key, by_slot)
    }
    let all = PyDict::new(py);
    add(&all, "load_times", statistics.load_times)?;
    add(&all, "load_counts", statistics.load_counts)?;
    add(&all, "last_access", statistics.last_access)?;
    add(&all, "memory_usage", statistics.memory_usage)?;
    add(&all, "load_time_p50", statistics.load_time_p50)?;
    add(&all, "load_time_p95", statistics.load_time_p95)?;
    add(&all, "unload_counts", statistics.unload_counts)?;
    add(&all, "bytes_returned", statistics.bytes_returned)?;
    Ok(all)
}
