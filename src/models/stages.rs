//! The modules around a sentence model's transformer, as `modules.json` and the folders that it names describe them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::adapters::own::has_own;
use super::heads::Pooling;
use super::json::{read_json, read_json_with_nulls};
use super::keys::{refusal, refuse_unknown};
use super::manifest::{ModelFiles, TASK_TRANSFORMER};
use crate::{Error, Result};

/// The keys of a pooling's `config.json` that are read, in addition to [`FLAGS`].
const POOLING_KEYS: &[&str] =
    &["word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"];

/// What `modules.json` and the folders that it names say.
pub(super) struct Stages {
    pub(super) pooling: Pooling,
    pub(super) include_prompt: bool,
    pub(super) dense: Vec<PathBuf>,
    pub(super) normalize: bool,
}

impl Stages {
    pub(super) fn read(files: &ModelFiles) -> Result<Self> {
        let pooling = if files.modules.is_empty() { pooling_of_bare(files)? } else { Pooling::Mean };
        let mut stages = Self { pooling, include_prompt: true, dense: Vec::new(), normalize: false };
        let unsupported = |reason: String| Error::Unsupported { model: files.model.clone(), reason };
        const ORDER: &str = "supported are Transformer and Pooling, or StaticEmbedding, then any Dense, Normalize, in this order";
        // A table stands in place of transformer and pooling.
        let table = files.modules.first().is_some_and(|first| first.kind == "StaticEmbedding");
        let mut at = if table { 2 } else { 0 };
        for module in files.modules.iter().skip(table.into()) {
            // Dropout does nothing outside of training.
            let place = match module.kind.as_str() {
                "Transformer" => 1,
                TASK_TRANSFORMER if has_own(&read_json(&files.transformer.join("config.json"))?) => 1,
                "Pooling" => 2,
                "Dense" => 3,
                "Normalize" => 4,
                "Dropout" => continue,
                other => return Err(unsupported(format!("its modules.json lists {other}; {ORDER}"))),
            };
            let again = place == at && place != 3;
            if place < at || again || (at < 2 && place > at + 1) {
                return Err(unsupported(format!(
                    "its modules.json lists {} out of order; {ORDER}",
                    module.kind
                )));
            }
            at = place;
            let folder = files.root.join(&module.path);
            match place {
                2 => (stages.pooling, stages.include_prompt) = read_pooling(&files.model, &folder)?,
                3 => stages.dense.push(folder),
                4 => {
                    check_normalize(&files.model, &folder)?;
                    stages.normalize = true;
                }
                _ => {}
            }
        }
        if at == 1 {
            return Err(unsupported(format!("its modules.json lists no Pooling; {ORDER}")));
        }
        Ok(stages)
    }
}

/// How sentence-transformers pools a model without `modules.json`: one that was made to write text by its last state, unless it
/// attends in both directions, others by the mean of all.
fn pooling_of_bare(files: &ModelFiles) -> Result<Pooling> {
    let config: Map<String, Value> = read_json_with_nulls(&files.transformer.join("config.json"))?;
    let class = config.get("architectures").and_then(|classes| classes[0].as_str()).unwrap_or_default();
    let is_causal = match config.get("is_causal") {
        None => true,
        Some(value) => *value != false && !value.is_null(),
    };
    Ok(if class.ends_with("ForCausalLM") && is_causal { Pooling::Last } else { Pooling::Mean })
}

/// The classic flags, in the order in which sentence-transformers concatenates.
const FLAGS: [(&str, &str); 6] = [
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

/// Refuses a normalization of anything but the pooled vector. The folder of the module is usually empty.
fn check_normalize(model: &str, folder: &Path) -> Result<()> {
    const KEYS: [&str; 2] = ["module_input_name", "module_output_name"];
    let path = folder.join("config.json");
    // The module of a model in one folder has the folder of the transformer.
    if !path.is_file() || folder.join("tokenizer_config.json").is_file() {
        return Ok(());
    }
    let config: Map<String, Value> = read_json(&path)?;
    refuse_unknown(model, &path, &config, &[&KEYS])?;
    match KEYS
        .iter()
        .find_map(|key| Some((*key, config.get(*key).filter(|name| *name != "sentence_embedding")?)))
    {
        Some((key, name)) => {
            Err(refusal(model, &path, key, name, "only \"sentence_embedding\" is supported"))
        }
        None => Ok(()),
    }
}

fn read_pooling(model: &str, folder: &Path) -> Result<(Pooling, bool)> {
    let path = folder.join("config.json");
    if fs::metadata(&path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        return Err(Error::MissingFile {
            model: model.into(),
            file: "config.json".into(),
            folder: folder.to_path_buf(),
            remedy: "modules.json names this pooling; copy its folder too".into(),
        });
    }
    let config: Map<String, Value> = read_json(&path)?;
    let flags = FLAGS.map(|(flag, _)| flag);
    refuse_unknown(model, &path, &config, &[POOLING_KEYS, &flags])?;
    let config = Value::Object(config);
    let modes: Vec<String> = match &config["pooling_mode"] {
        Value::String(mode) => vec![mode.clone()],
        Value::Array(modes) => {
            modes.iter().filter_map(|mode| mode.as_str().map(ToString::to_string)).collect()
        }
        _ => FLAGS
            .iter()
            .filter(|(flag, _)| config[flag] == true)
            .map(|(_, mode)| (*mode).to_string())
            .collect(),
    };
    let pooling = match modes.as_slice() {
        [] => Pooling::Mean, // sentence-transformers' own default
        [mode] => Pooling::from_name(mode).ok_or_else(|| Error::invalid_file(path, format!("pooling_mode {mode:?} is unknown; known are cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken")))?,
        several => {
            return Err(Error::Unsupported {
                model: model.into(),
                reason: format!("it concatenates the poolings {}; one of them alone is supported", several.join(", ")),
            });
        }
    };
    Ok((pooling, config["include_prompt"] != false))
}
