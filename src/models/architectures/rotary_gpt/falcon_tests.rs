use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::compute::{Activation, Rotary};
use crate::models::formats::gguf::Gguf;
use crate::models::formats::gguf::tests::{Writer, f32s};

fn read_with(extra: impl Into<Value>) -> Result<Box<dyn Architecture>> {
    let mut json =
        json!({"model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8});
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
        (json!({"alibi": true}), "alibi is true"),
        (json!({"activation": "mish"}), "\"mish\""),
        (json!({"num_ln_in_parallel_attn": 2}), "num_ln_in_parallel_attn is 2"),
        (
            json!({"new_decoder_architecture": true, "num_ln_in_parallel_attn": 3}),
            "num_ln_in_parallel_attn is 3",
        ),
        (json!({"new_decoder_architecture": true, "parallel_attn": false}), "parallel_attn is false"),
        (json!({"new_decoder_architecture": true, "num_kv_heads": 3}), "num_kv_heads is 3"),
        (json!({"num_kv_heads": 0}), "num_kv_heads is 0"),
        (json!({"num_attention_heads": 5}), "does not divide"),
        (json!({"vocab_size": 0}), "is 0; it must be 1 to"),
        (json!({"ffn_hidden_size": 0}), "is 0; it must be 1 to"),
        (json!({"rope_scaling": {"type": "klingon"}}), "\"klingon\""),
        (
            json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
            "rotates whole heads",
        ),
    ] {
        let found = refusal(extra);
        assert!(found.contains(said), "{said}: {found}");
    }
}

/// transformers' own defaults.
#[test]
fn absent_keys_have_defaults() {
    let found = read_with(json!({})).unwrap();
    assert!(found.has_parallel_blocks());
    let found = found.describe();
    assert_eq!((found.vocabulary, found.context, found.activation), (65_024, 2048, Activation::Gelu));
    assert_eq!(found.heads, Heads { heads: 8, kv_heads: 1, width: 8 });
    assert_eq!(found.attention[0].rotary, Some(Rotary::new(10_000.0, 8, RopeStyle::Neox)));
}

#[test]
fn heads_of_keys_and_the_order_of_blocks_follow_from_the_form() {
    let form = |extra: Value| {
        let found = read_with(extra).unwrap();
        (found.describe().heads.kv_heads, found.has_parallel_blocks())
    };
    // `num_kv_heads` counts in the new decoder alone.
    assert_eq!(form(json!({"num_kv_heads": 4})), (1, true));
    assert_eq!(form(json!({"num_kv_heads": 4, "multi_query": false})), (8, true));
    assert_eq!(form(json!({"multi_query": false, "parallel_attn": false})), (8, false));
    assert_eq!(form(json!({"parallel_attn": false, "num_ln_in_parallel_attn": 2})), (1, false));
    assert_eq!(form(json!({"new_decoder_architecture": true})), (8, true));
    let one_norm = json!({"new_decoder_architecture": true, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1});
    assert_eq!(form(one_norm), (2, true));
}

#[test]
fn old_names_of_sizes_and_scaled_positions_are_read() {
    let found = read_with(json!({"n_embed": 32, "rope_theta": 500.0})).unwrap().describe();
    assert_eq!((found.hidden, found.heads.width), (32, 4));
    assert_eq!(found.attention[0].rotary, Some(Rotary::new(500.0, 4, RopeStyle::Neox)));
    let scaled = json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}});
    let scaled = read_with(scaled).unwrap().describe();
    assert_eq!(scaled.attention[0].rotary.as_ref().unwrap().frequencies[0], 0.5);
}

#[test]
fn what_gguf_files_do_not_say_whole_is_refused() {
    let named = |writer: Writer, kv_heads: usize| {
        let (_folder, path) = writer.text("general.architecture", "falcon").write();
        let gguf = Gguf::open(&path).unwrap();
        gguf_names(&Metadata::of(&gguf), Heads { heads: 4, kv_heads, width: 8 })
    };
    let with = |name: &str| Writer::default().tensor(name, &[1], 0, &f32s(&[1.0]));
    assert_eq!(named(Writer::default(), 1), Ok(GGUF));
    assert_eq!(named(with("blk.0.attn_norm_2.weight"), 2), Ok(GGUF_OF_TWO_NORMS));
    let based = |writer: Writer| writer.float("falcon.rope.freq_base", 500.0);
    assert_eq!(named(based(Writer::default()), 2), Ok(GGUF));
    let layout = |name: &str| Writer::default().text("falcon.tensor_data_layout", name);
    assert_eq!(named(layout("jploski"), 1), Ok(GGUF));
    for (writer, kv_heads, said) in [
        (layout("Meta AI original pth"), 1, "tensor_data_layout"),
        (with("blk.0.ffn_norm.weight"), 1, "Falcon RW"),
        (with("blk.0.attn_qkv.bias"), 1, "Falcon RW"),
        (Writer::default(), 2, "falcon.rope.freq_base"),
    ] {
        let found = named(writer, kv_heads).unwrap_err().to_string();
        assert!(found.contains(said), "{said}: {found}");
    }
}
