use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::models::architectures::architecture::Description;

fn read_with(extra: impl Into<Value>) -> Result<Box<dyn Architecture>> {
    let mut json = json!({"model_type": "embedding_gemma2_text", "hidden_size": 32, "num_hidden_layers": 7,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "vocab_size": 40});
    if let Value::Object(extra) = extra.into() {
        json.as_object_mut().unwrap().extend(extra);
    }
    read_encoder(&ConfigFile { model: "m", path: Path::new("config.json"), json: &json })
}

fn describe(extra: impl Into<Value>) -> Description {
    read_with(extra).unwrap().describe()
}

/// Of each layer, whether it sees all tokens, its heads of keys and their width.
fn layers(description: &Description) -> Vec<(bool, usize, usize)> {
    let layer = |layer: &LayerAttention| {
        let heads = layer.heads.unwrap();
        (layer.mask == Mask::FULL, heads.kv_heads, heads.width)
    };
    description.attention.iter().map(layer).collect()
}

#[test]
fn each_sixth_layer_and_the_last_see_all_tokens_with_wider_heads() {
    let (near, far) = ((false, 2, 8), (true, 1, 512));
    assert_eq!(layers(&describe(json!({}))), [near, near, near, near, near, far, far]);
    let own = json!({"sliding_window_pattern": 3, "global_head_dim": 16, "num_global_key_value_heads": 2});
    let far = (true, 2, 16);
    assert_eq!(layers(&describe(own)), [near, near, far, near, near, far, far]);
    let types = vec!["sliding_attention"; 7];
    let found = describe(json!({"layer_types": types, "global_head_dim": 16}));
    assert_eq!(layers(&found)[6], (true, 1, 16), "the last layer of transformers sees all tokens");
    assert!(!found.is_causal());
}

#[test]
fn layers_have_what_per_layer_config_says() {
    let own = json!({"head_dim": 12, "num_key_value_heads": 4});
    let found = describe(json!({"per_layer_config": {"05": own, "6": own}, "global_head_dim": 16}));
    assert_eq!(layers(&found)[4..], [(false, 2, 8), (true, 4, 12), (true, 4, 12)]);
    // In transformers, null counts as given too: without the key, `global_head_dim` is that of layers with full attention.
    for none in [json!({}), Value::Null] {
        let found = describe(json!({"per_layer_config": none, "global_head_dim": 16}));
        assert!(layers(&found).iter().all(|layer| layer.2 == 8), "{none}");
    }
}

#[test]
fn windows_are_a_radius_and_each_kind_has_its_rotary_positions() {
    let found = describe(json!({"sliding_window": 3}));
    let [near, far] = [&found.attention[0], &found.attention[5]];
    assert_eq!((near.mask, near.scale, far.scale), (Mask::local(3), Some(1.0), Some(1.0)));
    assert_eq!(*near.rotary.as_ref().unwrap(), Rotary::new(10_000.0, 8, RopeStyle::Neox));
    assert_eq!(*far.rotary.as_ref().unwrap(), Rotary::new(1_000_000.0, 512, RopeStyle::Neox));
    let proportional =
        json!({"rope_type": "proportional", "rope_theta": 100.0, "partial_rotary_factor": 0.25});
    let plain = json!({"rope_type": "default", "rope_theta": 50.0});
    let parameters = json!({"sliding_attention": plain, "full_attention": proportional});
    let found = describe(json!({"rope_parameters": parameters, "global_head_dim": 16}));
    let far = found.attention[5].rotary.as_ref().unwrap();
    let whole = Rotary::new(100.0, 16, RopeStyle::Neox).frequencies;
    assert_eq!(far.frequencies, [whole[0], whole[1], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(found.attention[0].rotary, Some(Rotary::new(50.0, 8, RopeStyle::Neox)));
}

#[test]
fn what_is_absent_is_that_of_transformers() {
    let json = json!({"model_type": "embedding_gemma2_text"});
    let found =
        read_encoder(&ConfigFile { model: "m", path: Path::new("config.json"), json: &json }).unwrap();
    let described = found.describe();
    assert_eq!((described.hidden, described.layers, described.vocabulary), (512, 24, 262_144));
    assert_eq!((found.output_width(), described.context), (768, 262_144));
    assert_eq!(described.attention[0].mask, Mask::local(512));
    assert_eq!(layers(&described)[4..6], [(false, 2, 256), (true, 1, 512)]);
    assert!(found.placeholders().is_none());
}

#[test]
fn what_is_not_supported_is_named() {
    let plain = json!({"rope_type": "default", "rope_theta": 50.0});
    let partial = json!({"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5});
    for (extra, said) in [
        (json!({"layer_types": ["full_attention"]}), "layer_types"),
        (json!({"layer_types": vec!["linear_attention"; 7]}), "layer_types"),
        (json!({"num_hidden_layers": 0}), "num_hidden_layers is 0"),
        (json!({"num_hidden_layers": 5000}), "num_hidden_layers is 5000"),
        (json!({"sliding_window": 0}), "sliding_window is 0"),
        (json!({"sliding_window": null}), "sliding_window is null"),
        (json!({"sliding_window_pattern": 0}), "sliding_window_pattern is 0"),
        (json!({"num_attention_heads": 3}), "3 heads with 2 of keys"),
        (json!({"num_key_value_heads": 0}), "0 of keys"),
        (json!({"head_dim": 7}), "7 wide"),
        (json!({"global_head_dim": 514}), "514 wide"),
        (json!({"hidden_size_per_layer_input": 0}), "hidden_size_per_layer_input is 0"),
        (json!({"embedding_dim": 0}), "embedding_dim is 0"),
        (json!({"hidden_activation": "mish"}), "\"mish\""),
        (json!({"per_layer_config": {"7": {"head_dim": 8}}}), "per_layer_config"),
        (json!({"per_layer_config": {"x": {"head_dim": 8}}}), "per_layer_config"),
        (json!({"per_layer_config": {"1": {"intermediate_size": 8}}}), "\"intermediate_size\" to 8"),
        (json!({"per_layer_config": {"1": {"skip": ["mlp"]}}}), "\"skip\""),
        (json!({"per_layer_config": {"1": {"head_dim": 12}}}), "sliding_attention different heads"),
        (json!({"rope_parameters": {"full_attention": plain}}), "sliding_attention"),
        (json!({"rope_parameters": plain}), "rope_theta of layers with sliding_attention"),
        (
            json!({"rope_parameters": {"full_attention": partial, "sliding_attention": plain}}),
            "partial_rotary_factor is 0.5",
        ),
    ] {
        let found = read_with(extra).unwrap_err().to_string();
        assert!(found.contains(said), "{said}: {found}");
    }
}
