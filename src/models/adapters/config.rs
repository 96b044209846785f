//! `adapter_config.json` of PEFT.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::models::architectures::ModelKind;
use crate::models::json::read_json;
use crate::models::keys::{refusal, refuse_unknown};
use crate::{Error, Result};

/// Its file.
pub(crate) const CONFIG: &str = "adapter_config.json";

/// Keys that are read or checked here.
const KEYS: &[&str] = &[
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "bias",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "init_lora_weights",
];

/// Keys that change nothing.
const IGNORED: &[&str] = &[
    // Bookkeeping.
    "auto_mapping",
    "inference_mode",
    "peft_version",
    "runtime_config",
    // The tensors say which modules have one.
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    // The model says which of its matrices are stored turned: PEFT corrects the flag by it, too.
    "fan_in_fan_out",
    // Training.
    "lora_dropout",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    // Without use_qalora, megatron_config and alora_invocation_tokens, which are refused, these say nothing.
    "qalora_group_size",
    "megatron_core",
];

/// How the matrices begin in training, where the model's own weights stay as they are. Others change them.
const PLAIN_BEGINNINGS: [&str; 5] = ["gaussian", "eva", "orthogonal", "true", "false"];

/// What the file says.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct PeftConfig {
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    pub(crate) base_model_name_or_path: Option<String>,
    #[serde(default)]
    pub(crate) revision: Option<String>,
    #[serde(default = "default_rank")]
    r: usize,
    #[serde(default = "default_alpha")]
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    pub(super) use_dora: bool,
    #[serde(default)]
    pub(super) lora_bias: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    rank_pattern: Map<String, Value>,
    #[serde(default)]
    alpha_pattern: Map<String, Value>,
    #[serde(default)]
    pub(super) modules_to_save: Vec<String>,
}

/// What PEFT takes where the file does not say.
fn default_rank() -> usize {
    8
}

fn default_alpha() -> f64 {
    8.0
}

/// The heads that PEFT saves with every adapter for classification, whether the file names them or not.
const CLASSIFIER_HEADS: [&str; 2] = ["classifier", "score"];

impl PeftConfig {
    /// Reads the file of `folder`. `model` is what messages call the model.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the key that asks for what is not computed, [`Error::InvalidFile`], [`Error::Io`].
    pub(crate) fn read(model: &str, folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let json: Map<String, Value> = read_json(&path)?;
        let refuse = |key: &str, reason: &str| {
            Err(refusal(model, &path, key, json.get(key).unwrap_or(&Value::Null), reason))
        };
        if json.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return refuse("peft_type", "only LORA is supported");
        }
        refuse_unknown(model, &path, &json, &[KEYS, IGNORED])?;
        let config = Self::deserialize(Value::Object(json.clone())).map_err(|error| {
            Error::invalid_file(&path, format!("it does not describe an adapter: {error}"))
        })?;
        if config.r == 0 && config.rank_pattern.is_empty() {
            return refuse("r", "a rank of at least 1 is expected");
        }
        if !config.lora_alpha.is_finite() {
            return refuse("lora_alpha", "a finite number is expected");
        }
        if config.bias.as_deref().is_some_and(|bias| !["none", "all", "lora_only"].contains(&bias)) {
            return refuse("bias", "supported are none, all and lora_only");
        }
        if config.lora_bias && config.use_dora {
            return refuse("lora_bias", "DoRA has no biases of its own");
        }
        let beginning = json.get("init_lora_weights").filter(|value| !value.is_boolean());
        if beginning.is_some_and(|value| !value.as_str().is_some_and(|name| PLAIN_BEGINNINGS.contains(&name)))
        {
            return refuse(
                "init_lora_weights",
                "such a training changes the weights of the base model too; save it with PEFT as a plain LoRA \
                 (save_pretrained(…, path_initial_model_for_weight_conversion=…)), or merge it into its base",
            );
        }
        if let Some(task) = config.task_type.as_deref().filter(|task| task_kind(task).is_none()) {
            let reason = "supported are FEATURE_EXTRACTION, SEQ_CLS and CAUSAL_LM";
            return refuse("task_type", &format!("{reason}, not {task}"));
        }
        for (key, pattern) in
            [("rank_pattern", &config.rank_pattern), ("alpha_pattern", &config.alpha_pattern)]
        {
            let plain = |name: &String| {
                name.trim_start_matches('^').chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
            };
            if pattern.keys().any(|name| !plain(name)) {
                return refuse(key, "regular expressions are not supported in it, only names of modules");
            }
            if pattern.values().any(|value| !value.as_f64().is_some_and(f64::is_finite)) {
                return refuse(key, "numbers are expected");
            }
        }
        Ok(config)
    }

    /// What the adapter was trained for.
    pub(crate) fn kind(&self) -> Option<ModelKind> {
        task_kind(self.task_type.as_deref()?)
    }

    /// The factor of the change of `module`, whose matrices are of this rank.
    ///
    /// # Errors
    /// Why it has none: another rank than the file says, or several patterns that it matches.
    pub(super) fn scale(&self, module: &str, rank: usize) -> Result<f32, String> {
        let expected = matched(&self.rank_pattern, "rank_pattern", module)?.unwrap_or(self.r as f64);
        if expected != rank as f64 {
            return Err(format!("is of rank {rank}, where {CONFIG} says {expected}"));
        }
        let alpha = matched(&self.alpha_pattern, "alpha_pattern", module)?.unwrap_or(self.lora_alpha);
        let rank = rank as f64;
        Ok((if self.use_rslora { alpha / rank.sqrt() } else { alpha / rank }) as f32)
    }

    /// Whether the parameters of `module` were saved as a copy, which takes the place of the module. As in PEFT, the name of a
    /// module that was to be saved is the end of that of the module, or of one that it is in.
    pub(super) fn saves(&self, module: &str) -> bool {
        let ends = module.match_indices('.').map(|(at, _)| at).chain([module.len()]);
        let heads = CLASSIFIER_HEADS.iter().filter(|_| self.kind() == Some(ModelKind::Classifier));
        let names: Vec<&str> =
            self.modules_to_save.iter().map(String::as_str).chain(heads.copied()).collect();
        ends.into_iter().any(|end| names.iter().any(|name| module[..end].ends_with(name)))
    }

    /// Whether biases of the model were trained.
    pub(super) fn trains_biases(&self) -> bool {
        self.bias.as_deref().is_some_and(|bias| bias != "none")
    }
}

/// What a model that was trained for this task of PEFT gives.
fn task_kind(task: &str) -> Option<ModelKind> {
    match task {
        "FEATURE_EXTRACTION" => Some(ModelKind::Embedding),
        "SEQ_CLS" => Some(ModelKind::Classifier),
        "CAUSAL_LM" => Some(ModelKind::Generator),
        _ => None,
    }
}

/// The value for the module, if a key of `pattern` is its name or the end of it. PEFT takes the first key that matches, in an
/// order that is not kept here, so several are taken only if they agree.
fn matched(pattern: &Map<String, Value>, key: &str, module: &str) -> Result<Option<f64>, String> {
    let matches = |name: &str| match name.strip_prefix('^') {
        Some(whole) => module == whole,
        None => module == name || module.ends_with(&format!(".{name}")),
    };
    let mut values = pattern.iter().filter(|(name, _)| matches(name)).filter_map(|(_, value)| value.as_f64());
    let first = values.next();
    if values.any(|value| Some(value) != first) {
        return Err(format!("matches several names of {key} in {CONFIG}, whose numbers differ"));
    }
    Ok(first)
}

/// Whether `folder` has an adapter.
pub(crate) fn is_adapter(folder: &Path) -> bool {
    folder.join(CONFIG).is_file()
}

/// The file of `folder`.
pub(crate) fn config_path(folder: &Path) -> PathBuf {
    folder.join(CONFIG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(changes: &Value) -> Result<PeftConfig, String> {
        let mut json = json!({
            "peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "task_type": "FEATURE_EXTRACTION",
            "target_modules": ["query"], "base_model_name_or_path": "org/base", "revision": null,
            "inference_mode": true, "megatron_core": "megatron.core", "init_lora_weights": true,
            "qalora_group_size": 16, "use_qalora": false, "layer_replication": null,
        });
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(config_path(folder.path()), json.to_string()).unwrap();
        PeftConfig::read("m", folder.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        assert!(read(&json!({})).is_ok());
        for (changes, name) in [
            (json!({"peft_type": "IA3"}), "peft_type"),
            (json!({"peft_type": null}), "peft_type"),
            (json!({"task_type": "TOKEN_CLS"}), "TOKEN_CLS"),
            (json!({"r": 0}), "\"r\""),
            (json!({"bias": "some"}), "bias"),
            (json!({"init_lora_weights": "pissa_niter_4"}), "init_lora_weights"),
            (json!({"layer_replication": [[0, 2]]}), "layer_replication"),
            (json!({"use_qalora": true}), "use_qalora"),
            (json!({"trainable_token_indices": [1]}), "trainable_token_indices"),
            (json!({"target_parameters": ["experts.up"]}), "target_parameters"),
            (json!({"use_dora": true, "lora_bias": true}), "lora_bias"),
            (json!({"rank_pattern": {".*q": 4}}), "rank_pattern"),
            (json!({"alpha_pattern": {"q": "x"}}), "alpha_pattern"),
            (json!({"ensure_weight_tying": true}), "ensure_weight_tying"),
            (json!({"r": "8"}), "does not describe an adapter"),
        ] {
            let refusal = read(&changes).unwrap_err();
            assert!(refusal.contains(name), "{changes}: {refusal}");
        }
    }

    #[test]
    fn scales_follow_ranks_and_patterns() {
        let plain = read(&json!({})).unwrap();
        assert_eq!(plain.scale("encoder.query", 8), Ok(2.0));
        assert!(plain.scale("encoder.query", 4).unwrap_err().contains("rank 4"));
        let stable = read(&json!({"use_rslora": true, "r": 16})).unwrap();
        assert_eq!(stable.scale("q", 16), Ok(4.0));
        let patterns = json!({"rank_pattern": {"query": 4}, "alpha_pattern": {"0.query": 2, "^key": 32}});
        let patterns = read(&patterns).unwrap();
        assert_eq!(patterns.scale("layer.0.query", 4), Ok(0.5));
        assert_eq!(patterns.scale("layer.1.query", 4), Ok(4.0));
        assert_eq!((patterns.scale("key", 8), patterns.scale("layer.key", 8)), (Ok(4.0), Ok(2.0)));
        let several = read(&json!({"alpha_pattern": {"query": 2, "0.query": 4}})).unwrap();
        assert!(several.scale("layer.0.query", 8).unwrap_err().contains("several"));
    }

    #[test]
    fn what_the_file_does_not_say_is_as_in_peft() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(config_path(folder.path()), r#"{"peft_type": "LORA"}"#).unwrap();
        assert_eq!(PeftConfig::read("m", folder.path()).unwrap().scale("query", 8), Ok(1.0));
        let classes = read(&json!({"task_type": "SEQ_CLS", "modules_to_save": null})).unwrap();
        assert!(classes.saves("classifier.dense") && classes.saves("score") && !classes.saves("pooler"));
    }

    #[test]
    fn saved_modules_are_ends_of_names() {
        let config = read(&json!({"modules_to_save": ["classifier"]})).unwrap();
        for (module, saved) in [
            ("classifier", true),
            ("classifier.dense", true),
            ("bert.classifier", true),
            ("pre_classifier", true),
            ("classifiers.dense", false),
        ] {
            assert_eq!(config.saves(module), saved, "{module}");
        }
        assert!(!read(&json!({})).unwrap().saves("classifier"));
    }
}
