use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn read_with(extra: impl Into<Value>) -> Result<Box<dyn Architecture>> {
    let mut json = json!({"model_type": "convbert", "hidden_size": 48, "embedding_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 40});
    if let Value::Object(extra) = extra.into() {
        json.as_object_mut().unwrap().extend(extra);
    }
    read(&ConfigFile { model: "m", path: Path::new("config.json"), json: &json })
}

#[test]
fn what_is_not_supported_is_named() {
    for (extra, said) in [
        (json!({"conv_kernel_size": 4}), "conv_kernel_size is 4; supported is an odd number up to 63"),
        (json!({"conv_kernel_size": 0}), "conv_kernel_size is 0"),
        (json!({"conv_kernel_size": 65}), "conv_kernel_size is 65"),
        (json!({"num_groups": 5}), "num_groups is 5"),
        (json!({"num_groups": 0}), "num_groups is 0"),
        (json!({"num_groups": 2, "linear_groups": 1}), "linear_groups is 1"),
        (json!({"conv_type": "dconv"}), "conv_type is \"dconv\""),
        (json!({"position_embedding_type": "relative_key"}), "position_embedding_type is \"relative_key\""),
        (json!({"head_ratio": 0}), "head_ratio is 0"),
        (json!({"num_attention_heads": 10}), "48 does not divide into 5 attention heads"),
        (json!({"num_attention_heads": 32}), "48 does not divide into 16 attention heads"),
        (json!({"hidden_act": "mish"}), "\"mish\""),
        (json!({"type_vocab_size": 0}), "type_vocab_size is 0"),
    ] {
        let found = read_with(extra).unwrap_err().to_string();
        assert!(found.contains(said), "{said}: {found}");
    }
}

#[test]
fn heads_are_divided_by_their_ratio() {
    for (heads, ratio, count, width) in
        [(4, 2, 2, 12), (4, 4, 1, 24), (4, 9, 1, 24), (4, 1, 4, 6), (6, 2, 3, 8)]
    {
        let found = read_with(json!({"num_attention_heads": heads, "head_ratio": ratio})).unwrap().describe();
        assert_eq!(found.heads, Heads { heads: count, kv_heads: count, width }, "{heads} / {ratio}");
    }
    let whole = json!({"model_type": "convbert"});
    let found = read(&ConfigFile { model: "m", path: Path::new("config.json"), json: &whole }).unwrap();
    assert_eq!(found.describe().heads, Heads { heads: 6, kv_heads: 6, width: 64 });
}
