//! The text model of a folder whose model reads images too. Its `config.json` describes both, and its weights have the tensors
//! of both: those of images, and of the projection of their states, are never read.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::json::NULL_COUNTS;
use super::keys::{HARMLESS, refusal, refuse_unknown};
use crate::Result;

/// Models that read images, and what their text model is where `text_config` does not say.
const PARTS: [(&str, &str); 7] = [
    ("gemma3", "gemma3_text"),
    ("mistral3", "mistral"),
    ("gemma4", "gemma4_text"),
    ("gemma4_unified", "gemma4_unified_text"),
    ("embedding_gemma2", "embedding_gemma2_text"),
    ("qwen3_5", "qwen3_5_text"),
    ("qwen3_5_moe", "qwen3_5_moe_text"),
];

/// The tokens that stand for an image, a video and sound in texts, and their numbers where the file gives none. A text that
/// names one has the embedding of padding there.
const PLACEHOLDERS: [(&str, u32); 3] =
    [("image_token_id", 258_880), ("video_token_id", 258_884), ("audio_token_id", 258_881)];
/// Models with such tokens.
const WITH_PLACEHOLDERS: [&str; 3] = ["gemma4", "gemma4_unified", "embedding_gemma2"];

/// Keys next to `text_config` that say nothing of texts without images, and those that count for both models.
const KEYS: &[&str] = &[
    "model_type",
    "text_config",
    "tie_word_embeddings",
    // Images, and sound.
    "audio_config",
    "audio_token_id",
    "boa_token_id",
    "boi_token_id",
    "eoa_token_id",
    "eoa_token_index",
    "eoi_token_id",
    "video_token_id",
    "vision_config",
    "boi_token_index",
    "eoi_token_index",
    "image_token_id",
    "image_token_index",
    "language_model_only",
    "mm_tokens_per_image",
    "multimodal_projector_bias",
    "projector_hidden_act",
    "spatial_merge_size",
    "video_token_id",
    "vision_end_token_id",
    "vision_feature_layer",
    "vision_soft_tokens_per_image",
    "vision_start_token_id",
];

/// Keys of the whole model that come before those of its text model: the tokens at which text begins and ends.
const OUTER: [&str; 2] = ["bos_token_id", "eos_token_id"];

/// What transformers takes for each key that a Gemma 3 does not give.
fn defaults(model_type: &str) -> Value {
    if model_type != "gemma3_text" {
        return json!({});
    }
    json!({
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "hidden_activation": "gelu_pytorch_tanh",
    })
}

/// The configuration of the text model of `json`; `json` itself if that is all there is.
pub(super) fn text_part(json: Value) -> Value {
    let part = PARTS.iter().find(|(whole, _)| json["model_type"] == *whole).map(|(_, own)| *own);
    let Some((own, text)) = part.zip(json["text_config"].as_object()) else {
        return json;
    };
    let model_type = text.get("model_type").and_then(Value::as_str).unwrap_or(own);
    let mut all = defaults(model_type);
    all["model_type"] = model_type.into();
    let counts = |key: &str, value: &Value| !value.is_null() || NULL_COUNTS.contains(&key);
    for (key, value) in text.iter().filter(|(key, value)| counts(key, value)) {
        all[key] = value.clone();
    }
    for key in OUTER {
        if let Some(value) = json.get(key).filter(|value| !value.is_null()) {
            all[key] = value.clone();
        }
    }
    if WITH_PLACEHOLDERS.iter().any(|whole| json["model_type"] == *whole) {
        let id = |(key, usual): (&str, u32)| json.get(key).cloned().unwrap_or_else(|| usual.into());
        all["placeholder_token_ids"] = PLACEHOLDERS.map(id).to_vec().into();
    }
    if let Some(tied) = tied(&json, &all) {
        all["tie_word_embeddings"] = tied;
    }
    all
}

/// Whether the table of words is the matrix of logits: what the whole model says, and its text model `text`. One head serves
/// both.
fn tied(json: &Value, text: &Value) -> Option<Value> {
    let own = json.get("tie_word_embeddings").cloned();
    match json["model_type"].as_str() {
        // It has no such head.
        Some("embedding_gemma2") => own,
        // transformers reads one of the two keys, by the class that loads the model: what the other class has then is no head
        // of the file, but random numbers.
        Some("qwen3_5" | "qwen3_5_moe") if text["tie_word_embeddings"] == true => Some(true.into()),
        Some("qwen3_5" | "qwen3_5_moe") => own,
        // The key of the text model does not count.
        _ => Some(own.unwrap_or(Value::Bool(true))),
    }
}

/// Refuses keys next to `text_config` that are not known. `json` is the whole file.
pub(super) fn check_whole(model: &str, path: &Path, json: &Value) -> Result<()> {
    let Some(whole) = json.as_object().filter(|json| json.contains_key("text_config")) else { return Ok(()) };
    refuse_unknown(model, path, whole, &[KEYS, HARMLESS])?;
    match whole.get("text_config").filter(|text| !text.is_object()) {
        Some(text) => Err(refusal(model, path, "text_config", text, "a configuration is expected")),
        None => Ok(()),
    }
}

/// The names under which a model that reads images stores the tensor `name` of its text model: as its first files have it,
/// and as transformers has it since version 5.
pub(super) fn stored_names(name: &str) -> [Option<String>; 2] {
    [
        Some(format!("language_model.{name}")),
        name.strip_prefix("model.").map(|rest| format!("model.language_model.{rest}")),
    ]
}

/// Whether a tensor belongs to images, to sound, or to layers that predict several tokens at once: it is never read.
pub(super) fn of_images(name: &str) -> bool {
    let name = name.strip_prefix("model.").unwrap_or(name);
    const PARTS: [&str; 7] = [
        "vision_tower.",
        "multi_modal_projector.",
        "audio_tower.",
        "embed_vision.",
        "embed_audio.",
        "visual.",
        "mtp.",
    ];
    PARTS.iter().any(|part| name.starts_with(part))
}

/// Whether `json` is that of a model whose text model writes text.
pub(super) fn writes(json: &Map<String, Value>) -> bool {
    let is_whole = |(whole, _): &(&str, &str)| json.get("model_type").is_some_and(|own| own == whole);
    json.get("model_type").is_some_and(|own| own != "embedding_gemma2")
        && PARTS.iter().any(is_whole)
        && json.get("text_config").is_some_and(Value::is_object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_model_has_its_own_keys_then_the_shared_ones_then_defaults() {
        let whole = json!({
            "model_type": "gemma3",
            "architectures": ["Gemma3ForConditionalGeneration"],
            "eos_token_id": [1, 106],
            "vision_config": {"hidden_size": 9},
            "text_config": {"hidden_size": 2560, "rms_norm_eps": null, "sliding_window": 1024},
        });
        let text = text_part(whole);
        assert_eq!((&text["model_type"], &text["hidden_size"]), (&json!("gemma3_text"), &json!(2560)));
        assert_eq!((&text["eos_token_id"], &text["sliding_window"]), (&json!([1, 106]), &json!(1024)));
        assert_eq!((&text["rms_norm_eps"], &text["num_attention_heads"]), (&json!(1e-6), &json!(8)));
        assert!(text.get("architectures").is_none() && text.get("vision_config").is_none());
        // Whole models end text where they say so; the padding of a text model is its own.
        let ends = json!({"model_type": "gemma4", "eos_token_id": [1, 106], "pad_token_id": 9,
            "text_config": {"eos_token_id": 1, "bos_token_id": 2}});
        let text = text_part(ends);
        assert_eq!((&text["eos_token_id"], &text["bos_token_id"]), (&json!([1, 106]), &json!(2)));
        assert!(text.get("pad_token_id").is_none());
        let other = json!({"model_type": "qwen2_vl", "text_config": {"hidden_size": 8}});
        assert_eq!(text_part(other.clone()), other);
        let mistral =
            text_part(json!({"model_type": "mistral3", "text_config": {"model_type": "ministral3"}}));
        assert_eq!(mistral, json!({"model_type": "ministral3", "tie_word_embeddings": true}));
    }

    #[test]
    fn the_whole_model_says_whether_its_table_of_words_is_that_of_logits() {
        let tied = |whole: &str, outer: Option<bool>, inner: Option<bool>| {
            let mut json = json!({"model_type": whole, "text_config": {}});
            if let Some(outer) = outer {
                json["tie_word_embeddings"] = outer.into();
            }
            if let Some(inner) = inner {
                json["text_config"]["tie_word_embeddings"] = inner.into();
            }
            text_part(json)["tie_word_embeddings"].as_bool()
        };
        for whole in ["gemma3", "gemma4", "gemma4_unified", "mistral3"] {
            for inner in [None, Some(true), Some(false)] {
                assert_eq!(tied(whole, None, inner), Some(true), "{whole} {inner:?}");
                assert_eq!(tied(whole, Some(true), inner), Some(true), "{whole} {inner:?}");
                assert_eq!(tied(whole, Some(false), inner), Some(false), "{whole} {inner:?}");
            }
        }
        for whole in ["qwen3_5", "qwen3_5_moe"] {
            assert_eq!(tied(whole, None, None), None);
            assert_eq!(tied(whole, Some(false), Some(true)), Some(true));
            assert_eq!(tied(whole, Some(true), Some(false)), Some(true));
            assert_eq!(tied(whole, Some(false), None), Some(false));
        }
    }

    #[test]
    fn unknown_keys_of_the_whole_are_refused() {
        let check =
            |json: Value| check_whole("m", Path::new("config.json"), &json).map_err(|e| e.to_string());
        assert_eq!(check(json!({"model_type": "gemma3", "text_config": {}, "image_token_index": 5})), Ok(()));
        let quantized =
            json!({"model_type": "gemma3", "text_config": {}, "quantization_config": {"bits": 4}});
        assert!(check(quantized).unwrap_err().contains("quantization_config"));
        let wrong = json!({"model_type": "gemma3", "text_config": 5});
        assert!(check(wrong).unwrap_err().contains("text_config"));
        assert_eq!(check(json!({"model_type": "llama", "auto_map": 5})), Ok(()), "no text_config");
    }
}
