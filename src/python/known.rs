//! Which families there are, and what a model is before it is loaded.

use std::path::Path;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde_json::Value;

use super::errors::OrRaise;
use crate::Error;
use crate::manager::ModelReport;
use crate::models::architectures::{example, families};
use crate::models::{ModelConfig, ModelKind};

/// The families, in the order of the registry.
#[pyfunction]
pub(super) fn _families(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let served = |serves: &dyn Fn(ModelKind) -> bool| -> Vec<_> {
        ModelKind::ALL.into_iter().filter(|kind| serves(*kind)).map(ModelKind::name).collect()
    };
    let list = PyList::empty(py);
    for family in families() {
        let row = PyDict::new(py);
        row.set_item("model_type", family.model_type)?;
        row.set_item("classes", family.classes)?;
        row.set_item("kinds", served(&|kind| family.serves(kind)))?;
        let gguf = PyDict::new(py);
        for file in family.gguf {
            gguf.set_item(file.architecture, served(&|kind| file.serves(kind)))?;
        }
        row.set_item("gguf", gguf)?;
        row.set_item("example", example(family.model_type))?;
        list.append(row)?;
    }
    Ok(list)
}

/// Why a model with this `config.json` does not run when it is used so; `None` if it does, as far as the file shows.
#[pyfunction]
pub(super) fn _refusal(py: Python<'_>, config: &str, kind: &str) -> PyResult<Option<String>> {
    let kind = ModelKind::from_name(kind).or_raise(py)?;
    let path = Path::new("config.json");
    let json: Value = serde_json::from_str(config)
        .map_err(|error| Error::invalid_file(path, error.to_string()))
        .or_raise(py)?;
    Ok(ModelConfig::family_of("the model", path, &json, kind).err().map(|error| error.to_string()))
}

/// What a model is.
pub(super) fn report(py: Python<'_>, found: ModelReport) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("source", found.source)?;
    dict.set_item("adapter", found.adapter)?;
    dict.set_item("family", found.family)?;
    dict.set_item("kind", found.kind)?;
    dict.set_item("tasks", found.tasks)?;
    dict.set_item("hidden", found.hidden)?;
    dict.set_item("max_length", found.max_length)?;
    dict.set_item("tokenizer", found.tokenizer)?;
    dict.set_item("stored", found.stored)?;
    dict.set_item("dtype", found.dtype)?;
    dict.set_item("parameters", found.parameters)?;
    dict.set_item("weight_bytes", found.weight_bytes)?;
    dict.set_item("memory_bytes", found.memory_bytes)?;
    dict.set_item("local", found.local)?;
    let prompts = PyDict::new(py);
    for (name, prompt) in found.prompts {
        prompts.set_item(name, prompt)?;
    }
    dict.set_item("prompts", prompts)?;
    dict.set_item("default_prompt_name", found.default_prompt_name)?;
    Ok(dict)
}
