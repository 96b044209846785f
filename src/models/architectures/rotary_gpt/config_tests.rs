use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::compute::{Activation, Rotary};
use crate::models::architectures::architecture::Description;

fn read_as(model_type: &str, extra: impl Into<Value>) -> Result<Box<dyn Architecture>> {
    let mut json = json!({"model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 2048});
    if model_type == "gpt_neox" {
        json.as_object_mut().unwrap().remove("num_key_value_heads");
    }
    if let Value::Object(extra) = extra.into() {
        json.as_object_mut().unwrap().extend(extra);
    }
    read(&ConfigFile { model: "m", path: Path::new("config.json"), json: &json })
}

fn refusal(model_type: &str, extra: impl Into<Value>) -> String {
    read_as(model_type, extra).unwrap_err().to_string()
}

fn describe(model_type: &str, extra: impl Into<Value>) -> Description {
    read_as(model_type, extra).unwrap().describe()
}

#[test]
fn what_is_not_supported_is_named() {
    assert!(refusal("phi", json!({"hidden_act": "mish"})).contains("\"mish\""));
    assert!(refusal("phi", json!({"num_key_value_heads": 3})).contains("3 heads of keys"));
    assert!(refusal("stablelm", json!({"num_key_value_heads": 0})).contains("0 heads of keys"));
    assert!(refusal("phi", json!({"num_attention_heads": 5})).contains("does not divide"));
    assert!(refusal("phi", json!({"is_causal": false})).contains("is_causal"));
    assert!(refusal("stablelm", json!({"vocab_size": 0})).contains("its vocab_size is 0; it must be 1 to"));
    assert!(refusal("stablelm", json!({"partial_rotary_factor": 0.2})).contains("3 values of each head"));
    assert!(refusal("stablelm", json!({"rope_scaling": {"type": "klingon"}})).contains("\"klingon\""));
    assert!(refusal("starcoder2", json!({"sliding_window": 0})).contains("sliding_window is 0"));
    assert!(refusal("starcoder2", json!({"mlp_type": "gated"})).contains("mlp_type is \"gated\""));
    assert!(refusal("starcoder2", json!({"norm_type": "rms"})).contains("norm_type"));
    assert!(refusal("starcoder2", json!({"scale_attn_weights": false})).contains("scale_attn_weights"));
    let part = json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}});
    assert!(refusal("starcoder2", part).contains("rotates whole heads"));
    assert!(refusal("gpt_neox", json!({"rope_theta": 500.0})).contains("rotary_emb_base"));
    assert!(refusal("gpt_neox", json!({"partial_rotary_factor": 0.5})).contains("rotary_pct"));
    let absent = json!({"model_type": "phi", "hidden_size": 64});
    let file = ConfigFile { model: "m", path: Path::new("config.json"), json: &absent };
    assert!(read(&file).unwrap_err().to_string().contains("missing field"));
}

/// transformers' own defaults.
#[test]
fn absent_keys_have_defaults() {
    let rotary = |width| Some(Rotary::new(10_000.0, width, RopeStyle::Neox));
    for (model_type, activation, rotated) in [
        ("gpt_neox", Activation::Gelu, 4),
        ("phi", Activation::GeluTanh, 8),
        ("stablelm", Activation::Silu, 4),
        ("starcoder2", Activation::GeluTanh, 16),
    ] {
        let found = describe(model_type, json!({}));
        assert_eq!(
            (found.activation, &found.attention[0].rotary),
            (activation, &rotary(rotated)),
            "{model_type}"
        );
        assert_eq!(found.attention[0].mask, Mask::CAUSAL, "{model_type}");
        assert_eq!(found.heads.kv_heads, if model_type == "gpt_neox" { 4 } else { 2 }, "{model_type}");
    }
    let parallel = |model_type, extra: Value| read_as(model_type, extra).unwrap().has_parallel_blocks();
    let flag = |flag: bool| json!({"use_parallel_residual": flag});
    assert_eq!(
        ["gpt_neox", "phi", "stablelm", "starcoder2"].map(|of| parallel(of, json!({}))),
        [true, true, false, false]
    );
    assert!(parallel("stablelm", flag(true)) && !parallel("gpt_neox", flag(false)));
}

#[test]
fn what_the_file_says_counts() {
    let neox = describe("gpt_neox", json!({"rotary_pct": 0.5, "rotary_emb_base": 500, "rope_theta": 500.0}));
    assert_eq!(neox.attention[0].rotary, Some(Rotary::new(500.0, 8, RopeStyle::Neox)));
    let window = describe("starcoder2", json!({"sliding_window": 9}));
    assert_eq!(window.attention[0].mask, Mask::sliding(9));
    assert_eq!(describe("phi", json!({"num_key_value_heads": 4})).heads.kv_heads, 4);
    let scaled = describe("stablelm", json!({"rope_scaling": {"type": "linear", "factor": 2.0}}));
    assert_eq!(scaled.attention[0].rotary.as_ref().unwrap().frequencies[0], 0.5);
}
