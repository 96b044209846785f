//! Which keys of a model's JSON files are read, and what becomes of the others.
//!
//! A file may ask for something that this crate does not do. Each reader declares the keys that it reads; [`HARMLESS`]
//! lists those that never change a result. A key in neither list is refused by name, unless its value means "not set":
//! null, false, or empty. A key whose false has a meaning must therefore be declared by its reader.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Keys of `config.json` that change no vector and no logit.
pub(crate) const HARMLESS: &[&str] = &[
    // Bookkeeping of transformers and of other tools.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_name_or_path",
    // What `transformers` writes into a configuration that it read from a GGUF file.
    "_model_name_or_path",
    "architectures",
    "attn_implementation",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "transformers.js_config",
    "sentence_transformers",
    "tokenizer_class",
    "unsloth_fixed",
    "unsloth_version",
    "unsloth_training",
    "is_llama_config",
    "language",
    "license",
    "model_name",
    "tags",
    "trust_remote_code",
    // Lengths that a vector may be cut to.
    "matryoshka_dimensions",
    // How the computation is carried out.
    "chunk_size_feed_forward",
    "gradient_checkpointing",
    "low_cpu_mem_usage",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "pretraining_tp",
    "reorder_and_upcast_attn",
    "return_dict",
    "torchscript",
    "use_bfloat16",
    "cache_implementation",
    "use_cache",
    "use_flash_attn",
    "use_return_dict",
    "xla_device",
    // Training.
    "finetuning_task",
    "gradient_checkpointing_kwargs",
    "layerdrop",
    "loss_type",
    "initializer_range",
    "initializer_factor",
    "output_router_logits",
    // Tokens, which the tokenizer's own files decide.
    "bos_token",
    "bos_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "eos_token",
    "eos_token_id",
    "mask_token",
    "mask_token_id",
    "pad_token",
    "pad_token_id",
    "sep_token_id",
    "unk_token",
    "unk_token_id",
    // Lengths, where `max_position_embeddings` is the one that counts.
    "max_sequence_length",
    "model_max_length",
    "prefix",
    // Heads behind the last state, which are not used.
    "directionality",
    "id2label",
    "label2id",
    "num_labels",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "problem_type",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "predict_special_tokens",
    "sbert_ce_default_activation_function",
    "sbert_ce_default_activation_fn",
    // Defaults of a generation; here the caller and the settings decide.
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    // Encoder and decoder as one model.
    "cross_attention_hidden_size",
    "tie_encoder_decoder",
    "is_encoder_decoder",
];

/// Keys that every family checks in [`check_config`].
const CHECKED: &[&str] = &["auto_map", "model_type"];

/// Keys of what norms add to a variance or a mean square.
const EPSILONS: [&str; 5] =
    ["layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "rms_norm_eps"];

/// Whether `value` says the same as no value.
pub(crate) fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// Dropout is active in training alone.
fn is_dropout(key: &str) -> bool {
    ["dropout", "dropout_prob", "dropout_rate", "_pdrop"].iter().any(|end| key.ends_with(end))
}

/// Refuses the first key of `json` that is set and that is in none of `known`.
///
/// # Errors
/// [`Error::Unsupported`] naming the key, its value, the file and the remedy.
pub(crate) fn refuse_unknown(
    model: &str,
    path: &Path,
    json: &Map<String, Value>,
    known: &[&[&str]],
) -> Result<()> {
    let is_known = |key: &str| known.iter().any(|keys| keys.contains(&key));
    match json.iter().find(|(key, value)| !is_unset(value) && !is_known(key)) {
        None => Ok(()),
        Some((key, value)) if QUANTIZATIONS.contains(&key.as_str()) => {
            Err(Error::Unsupported { model: model.into(), reason: quantized(path, key, value) })
        }
        Some((key, value)) => Err(refusal(model, path, key, value, "this package does not know that key")),
    }
}

/// Keys that say how the weights of a model are quantized.
const QUANTIZATIONS: [&str; 2] = ["compression_config", "quantization_config"];

/// Why a model with quantized weights is not read. Without the key, its tensors would not be understood.
pub(crate) fn quantized(path: &Path, key: &str, value: &Value) -> String {
    let method = value["quant_method"].as_str().map(|method| format!(", by {method:?}")).unwrap_or_default();
    format!(
        "its weights are quantized{method} ({} sets {key:?}); quantized weights are read from GGUF files, so choose a GGUF file of \
         this model, or the model of the same name that is not quantized (often without the -FP8, -AWQ, -GPTQ or -4bit at its \
         end)",
        path.display()
    )
}

/// The refusal of one key, with its remedy.
pub(crate) fn refusal(model: &str, path: &Path, key: &str, value: &Value, reason: &str) -> Error {
    let mut value = value.to_string();
    if value.chars().count() > 80 {
        value = value.chars().take(80).chain(['…']).collect();
    }
    Error::Unsupported {
        model: model.into(),
        reason: format!(
            "{} sets {key:?} to {value}, and {reason}; choose another model, or remove the key from the file if the \
             model's results do not depend on it",
            path.display()
        ),
    }
}

/// Checks that every key of a `config.json` is one of `keys` or changes nothing, and that what norms add is sound. `classes`
/// are what the names of its family's classes in transformers begin with, and full names of other classes.
///
/// # Errors
/// [`Error::Unsupported`] naming the key.
pub(crate) fn check_config(
    model: &str,
    path: &Path,
    json: &Value,
    (classes, code): (&str, &[&str]),
    keys: &[&str],
) -> Result<()> {
    let Some(config) = json.as_object() else { return Ok(()) };
    if let Some(auto_map) = config.get("auto_map").filter(|value| !is_unset(value))
        && !names_own_classes(auto_map, classes, code)
    {
        let reason = format!("code of its own is not run: only what {classes}… classes compute is known");
        return Err(refusal(model, path, "auto_map", auto_map, &reason));
    }
    let is_sound = |value: &Value| value.as_f64().is_none_or(|epsilon| (0.0..=1.0).contains(&epsilon));
    let epsilons = EPSILONS.iter().filter_map(|key| Some((*key, config.get(*key)?)));
    if let Some((key, value)) = epsilons.into_iter().find(|(_, value)| !is_sound(value)) {
        return Err(refusal(model, path, key, value, "norms need 0 to 1 there"));
    }
    let others = config.iter().filter(|(key, _)| !is_dropout(key));
    let others: Map<String, Value> = others.map(|(key, value)| (key.clone(), value.clone())).collect();
    refuse_unknown(model, path, &others, &[CHECKED, HARMLESS, keys])
}

/// Whether `auto_map` names classes of the family alone: `"AutoModel": "modeling_qwen3.Qwen3Model"`, or a pair of
/// tokenizers.
fn names_own_classes(auto_map: &Value, family: &str, code: &[&str]) -> bool {
    const ENDS: [&str; 10] = [
        "Config",
        "Model",
        "ForCausalLM",
        "LMHeadModel",
        "ForMaskedLM",
        "ForPreTraining",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
        "PreTrainedModel",
    ];
    let own = |class: &Value| {
        let name = class.as_str().and_then(|class| class.rsplit('.').next()).unwrap_or_default();
        let end = name.strip_prefix(family);
        code.contains(&name)
            || end.is_some_and(|end| ENDS.contains(&end) || end == "Tokenizer" || end == "TokenizerFast")
    };
    let entry = |class: &Value| match class {
        Value::Null => true,
        Value::Array(pair) => pair.iter().all(|class| class.is_null() || own(class)),
        one => own(one),
    };
    auto_map.as_object().is_some_and(|map| map.values().all(entry))
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
