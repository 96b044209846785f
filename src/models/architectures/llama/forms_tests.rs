use std::path::Path;

use serde_json::json;

use super::*;
use crate::compute::RopeStyle;

/// The model of a `config.json` with `extra`.
fn read_as(model_type: &str, extra: Value) -> Result<Llama> {
    let mut json = json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 4096});
    if let Value::Object(extra) = extra {
        json.as_object_mut().unwrap().extend(extra);
    }
    let dialect = DIALECTS.iter().find(|dialect| dialect.model_type == model_type).unwrap();
    let file = ConfigFile { model: "m", path: Path::new("config.json"), json: &json };
    check_fixed(&file, dialect)?;
    ConfigParts::parse(&file, dialect)?.llama("m", dialect)
}

/// Of each layer, keys before a query, or 0 for all, and whether it is rotated.
fn layers(model_type: &str, extra: Value) -> Vec<(usize, bool)> {
    let all = read_as(model_type, extra).unwrap().attention;
    let window = |mask: Mask| if mask == Mask::CAUSAL { 0 } else { mask.before + 1 };
    (0..4).map(|i| &all[i % all.len()]).map(|layer| (window(layer.mask), layer.rotary.is_some())).collect()
}

#[test]
fn windows_and_positions_are_where_the_family_has_them() {
    let (near, bare, full) = ((8, true), (0, false), (0, true));
    assert_eq!(layers("cohere2", json!({"sliding_window": 8})), [near, near, near, bare]);
    assert_eq!(
        layers("cohere2", json!({"sliding_window": 8, "sliding_window_pattern": 2})),
        [near, bare, near, bare]
    );
    let all = json!({"sliding_window": 8, "layer_types": vec!["full_attention"; 4]});
    assert_eq!(layers("cohere2", all), [bare; 4], "layers without a window are never rotated");
    assert_eq!(layers("cohere", json!({})), [full; 4]);
    assert_eq!(layers("olmo3", json!({"sliding_window": 8})), [near, near, near, full]);
    let granite = |position: Value| {
        json!({"layer_types": vec!["attention"; 4], "num_local_experts": 0,
        "position_embedding_type": position})
    };
    assert_eq!(layers("granitemoehybrid", granite(json!("rope"))), [full; 4]);
    assert_eq!(layers("granitemoehybrid", granite(json!("nope"))), [bare; 4]);
    assert_eq!(layers("granitemoehybrid", granite(Value::Null)), [bare; 4], "transformers' default");
}

#[test]
fn bases_and_scalings_are_those_of_layers() {
    let of = |model_type: &str, extra: Value, layer: usize| {
        read_as(model_type, extra).unwrap().attention[layer].rotary.clone().unwrap()
    };
    let new = |base| Rotary::new(base, 16, RopeStyle::Neox);
    let olmo = json!({"sliding_window": 8, "rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}});
    // The base outside of the object is of layers without a window.
    assert_eq!(of("olmo3", olmo.clone(), 0), new(500_000.0));
    assert_eq!(of("olmo3", olmo, 3).frequencies[0], 0.25);
    let flat = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}});
    assert!(read_as("olmo3", flat).unwrap_err().to_string().contains("not divided"));
    let alpha =
        json!({"rope_theta": 100.0, "rope_scaling": {"type": "dynamic", "alpha": 3.0, "factor": 1.0}});
    let found = of("hunyuan_v1_dense", alpha, 0);
    assert!((found.frequencies[1] - (100.0 * 3.0_f32.powf(16.0 / 14.0)).powf(-0.125)).abs() < 1e-6);
    // Without an alpha it changes nothing within the context.
    let none = json!({"rope_theta": 100.0, "rope_scaling": {"type": "dynamic", "alpha": 0.0, "factor": 2.0}});
    assert!(read_as("hunyuan_v1_dense", none).unwrap_err().to_string().contains("alpha"));
    let plain = json!({"rope_theta": 100.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}});
    assert_eq!(of("hunyuan_v1_dense", plain, 0), new(100.0));
    assert!(read_as("apertus", json!({})).unwrap_err().to_string().contains("rope_parameters"));
    assert_eq!(of("nemotron", json!({}), 0).frequencies.len(), 4, "half of a head");
}

#[test]
fn sizes_and_biases_follow_the_family() {
    let head = |model_type: &str, extra: Value| read_as(model_type, extra).unwrap().head;
    for family in ["ernie4_5", "seed_oss"] {
        assert_eq!(
            [json!({}), json!({"head_dim": null})].map(|extra| head(family, extra)),
            [128, 16],
            "{family}"
        );
    }
    assert_eq!(head("glm", json!({})), 128);
    let biases = |model_type: &str, extra: Value| {
        let variant = read_as(model_type, extra).unwrap().variant;
        [variant.qkv_bias, variant.output_bias, variant.mlp_bias]
    };
    assert_eq!(biases("ernie4_5", json!({"use_bias": true})), [true; 3]);
    assert_eq!(biases("seed_oss", json!({})), [true, false, false]);
    let both = json!({"attention_bias": false, "attention_out_bias": true, "mlp_bias": true});
    assert_eq!(biases("seed_oss", both), [false, true, true]);
    let granite = json!({"layer_types": vec!["attention"; 4], "num_local_experts": 0});
    assert_eq!(read_as("granitemoehybrid", granite).unwrap().intermediate, 1024);
    assert_eq!(read_as("cohere", json!({})).unwrap().factors.logits, 0.0625);
    assert_eq!(read_as("arcee", json!({})).unwrap().activation, Activation::ReluSquared);
    assert!(read_as("arcee", json!({"hidden_act": "xielu"})).unwrap_err().to_string().contains("xielu"));
}
