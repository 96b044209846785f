use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::compute::{Activation, Heads};

fn read_with(extra: impl Into<Value>) -> Result<Box<dyn Architecture>> {
    let mut json = json!({"model_type": "gptj", "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8});
    if let Value::Object(extra) = extra.into() {
        json.as_object_mut().unwrap().extend(extra);
    }
    read(&ConfigFile { model: "m", path: Path::new("config.json"), json: &json })
}

fn refusal(extra: impl Into<Value>) -> String {
    read_with(extra).unwrap_err().to_string()
}

#[test]
fn what_is_not_supported_is_named() {
    for (extra, said) in [
        (json!({"activation_function": "mish"}), "activation_function \"mish\""),
        (json!({"rotary_dim": null}), "rotary_dim is null"),
        (json!({"rotary_dim": 0}), "rotary_dim is 0"),
        (json!({"rotary_dim": 7}), "rotary_dim is 7"),
        (json!({"rotary_dim": 18}), "rotary_dim is 18; supported is an even number from 2 to 16"),
        (json!({"rotary": false}), "rotary is false"),
        (json!({"scale_attn_weights": false}), "scale_attn_weights is false"),
        (json!({"is_causal": false}), "is_causal is false"),
        (json!({"n_head": 5}), "does not divide"),
        (json!({"n_head": 0}), "does not divide"),
        (json!({"vocab_size": 0}), "vocab_size is 0; it must be 1 to"),
        (json!({"n_inner": 0}), "n_inner is 0; it must be 1 to"),
    ] {
        let found = refusal(extra);
        assert!(found.contains(said), "{said}: {found}");
    }
    let json = json!({"model_type": "gptj", "n_embd": 64, "n_head": 4});
    let file = ConfigFile { model: "m", path: Path::new("config.json"), json: &json };
    let found = read(&file).unwrap_err().to_string();
    assert!(found.contains("it has no rotary_dim, and the default, 64,"), "{found}");
}

/// transformers' own defaults.
#[test]
fn absent_keys_have_defaults() {
    let found = read_with(json!({"n_embd": 1024})).unwrap();
    assert!(found.has_parallel_blocks());
    let found = found.describe();
    assert_eq!((found.vocabulary, found.context, found.activation), (50_400, 2048, Activation::GeluTanh));
    assert_eq!(found.heads, Heads { heads: 4, kv_heads: 4, width: 256 });
    let json = json!({"model_type": "gptj"});
    let whole = read(&ConfigFile { model: "m", path: Path::new("config.json"), json: &json }).unwrap();
    let found = whole.describe();
    assert_eq!((found.hidden, found.layers, found.heads.heads), (4096, 28, 16));
    assert_eq!(found.attention[0].rotary, Some(Rotary::new(10_000.0, 64, RopeStyle::Interleaved)));
}
