//! The adapters that a model's own files have, as jina-embeddings-v3 was published: one for each task, in the same tensors.
//!
//! Sturua et al., "jina-embeddings-v3: Multilingual Embeddings With Task LoRA", 2024. `config.json` names the tasks
//! (`lora_adaptations`), the rank and `lora_alpha`, and the text that goes before those of a task (`task_instructions`).

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::similar::similar;
use crate::{Error, Result};

/// The class of such models, as `auto_map` names it.
const CLASS: &str = "XLMRobertaLoRA";

/// What `config.json` says of the adapters.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct OwnAdapters {
    /// Their names, in the order of the tensors.
    #[serde(rename = "lora_adaptations")]
    pub(crate) names: Vec<String>,
    #[serde(rename = "lora_rank")]
    pub(crate) rank: usize,
    #[serde(rename = "lora_alpha")]
    alpha: f32,
    /// The text before the texts of a task.
    #[serde(rename = "task_instructions", default)]
    pub(crate) instructions: BTreeMap<String, String>,
    #[serde(default = "yes")]
    load_trained_adapters: bool,
}

fn yes() -> bool {
    true
}

/// Whether `config.json` is that of a model with adapters of its own.
pub(crate) fn has_own(json: &Value) -> bool {
    let class = json["auto_map"]["AutoModel"].as_str().and_then(|class| class.rsplit('.').next());
    class == Some(CLASS)
}

impl OwnAdapters {
    /// Reads what the file `path` says; `None` where the model has no adapters of its own.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for what does not name adapters.
    pub(crate) fn read(path: &Path, json: &Value) -> Result<Option<Self>> {
        if !has_own(json) {
            return Ok(None);
        }
        let invalid = |reason: String| {
            Error::invalid_file(path, format!("it does not describe the model's adapters: {reason}"))
        };
        let own = Self::deserialize(json).map_err(|error| invalid(error.to_string()))?;
        let unknown = own.instructions.keys().find(|name| !own.names.contains(name));
        match unknown {
            _ if own.names.is_empty() || own.rank == 0 || !own.alpha.is_finite() => {
                Err(invalid("lora_adaptations, lora_rank and lora_alpha are expected".into()))
            }
            Some(name) => {
                Err(invalid(format!("task_instructions has {name:?}, which lora_adaptations does not")))
            }
            None if own.names.iter().collect::<HashSet<_>>().len() < own.names.len() => {
                Err(invalid("lora_adaptations has a name twice".into()))
            }
            None if !own.load_trained_adapters => {
                Err(invalid("load_trained_adapters is false, so its weights have none".into()))
            }
            None => Ok(Some(own)),
        }
    }

    /// The factor of all changes.
    pub(crate) fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}

/// The error for an adapter that a model does not have among `names`, its own.
pub(crate) fn unknown_adapter(model: &str, name: &str, names: &[String]) -> Error {
    let remedy = match similar(name, names.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean {meant:?}? It has: {}", names.join(", ")),
        None if names.is_empty() => "its files have none of their own".to_owned(),
        None => format!("it has: {}", names.join(", ")),
    };
    Error::argument("adapter", format!("={name:?}: model {model:?} has no such adapter; {remedy}"))
}
