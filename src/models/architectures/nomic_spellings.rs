//! The two spellings of the sizes of a Nomic BERT.

use serde_json::Value;

use super::family::ConfigFile;
use crate::Result;

/// What a file calls the sizes of its model as GPT-2 does, and as transformers does for this family. Published files have one
/// or both.
const SPELLINGS: [(&str, &str); 7] = [
    ("n_embd", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("n_inner", "intermediate_size"),
    ("n_positions", "max_position_embeddings"),
    ("activation_function", "hidden_act"),
    ("layer_norm_epsilon", "layer_norm_eps"),
];

/// The configuration with one spelling of each key.
///
/// # Errors
/// [`Error::Unsupported`](crate::Error::Unsupported) naming keys that contradict each other.
pub(super) fn said_once(file: &ConfigFile<'_>) -> Result<Value> {
    let mut json = file.json.clone();
    let contradict = |one: (&str, &Value), other: (&str, &Value)| {
        let reason = format!("its {} is {}, and its {} is {}", one.0, one.1, other.0, other.1);
        Err(file.unsupported(reason))
    };
    for (first, second) in SPELLINGS {
        let (Some(one), Some(other)) = (file.json.get(first), file.json.get(second)) else { continue };
        let same = match (one.as_f64(), other.as_f64()) {
            (Some(one), Some(other)) => one == other,
            _ => one == other,
        };
        match first {
            // The length that the model was trained with stands next to that of the longest text: positions are computed.
            "n_positions" if one.is_u64() && other.is_u64() => {
                json[second] = one.as_u64().max(other.as_u64()).into();
            }
            // The first names the form of the perceptron, the second its function.
            "activation_function" => {
                let function = match one.as_str() {
                    Some("swiglu") => "silu",
                    Some("geglu") => "gelu",
                    Some(name) => name,
                    None => "",
                };
                if other.as_str() != Some(function) {
                    return contradict((first, one), (second, other));
                }
                json.as_object_mut().map(|json| json.remove(second));
                continue;
            }
            _ if !same => return contradict((first, one), (second, other)),
            _ => {}
        }
        json.as_object_mut().map(|json| json.remove(first));
    }
    let rope = [&file.json["rope_parameters"]["rope_theta"], &file.json["rope_theta"]];
    if let Some(base) = file.json.get("rotary_emb_base").filter(|base| base.is_number()) {
        let other = |other: &&&Value| other.is_number() && other.as_f64() != base.as_f64();
        if let Some(other) = rope.iter().find(other) {
            return contradict(("rotary_emb_base", base), ("rope_theta", other));
        }
    }
    Ok(json)
}
