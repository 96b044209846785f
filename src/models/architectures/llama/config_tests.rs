use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::models::architectures::llama::model::{HeadNorms, NormNames};

/// The model of a `config.json` with `extra`.
fn read_as(model_type: &str, extra: impl Into<Value>) -> Result<Llama> {
    let mut json = json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100, "max_position_embeddings": 131072});
    if let Value::Object(extra) = extra.into() {
        json.as_object_mut().unwrap().extend(extra);
    }
    let dialect = DIALECTS.iter().find(|dialect| dialect.model_type == model_type).unwrap();
    let file = ConfigFile { model: "m", path: Path::new("config.json"), json: &json };
    ConfigParts::parse(&file, dialect).unwrap().llama("m", dialect)
}

fn refusal(model_type: &str, extra: impl Into<Value>) -> String {
    read_as(model_type, extra).unwrap_err().to_string()
}

/// Keys before each query, layer by layer.
fn windows(model_type: &str, extra: impl Into<Value>) -> Vec<usize> {
    let layers = read_as(model_type, extra).unwrap().attention;
    layers.iter().map(|layer| if layer.mask == Mask::CAUSAL { 0 } else { layer.mask.before + 1 }).collect()
}

#[test]
fn what_is_not_supported_is_named() {
    assert!(refusal("llama", json!({"hidden_act": "mish"})).contains("hidden_act is \"mish\""));
    assert!(refusal("gemma", json!({"hidden_act": "silu"})).contains("\"silu\""));
    assert!(refusal("llama", json!({"rope_scaling": {"type": "klingon"}})).contains("\"klingon\""));
    assert!(refusal("llama", json!({"head_dim": 7})).contains("do not fit together"));
    assert!(refusal("llama", json!({"num_hidden_layers": 5000})).contains("do not fit together"));
    assert!(
        refusal("gemma2", json!({"attn_logit_softcapping": 0.0})).contains("attn_logit_softcapping is 0")
    );
    assert!(refusal("gemma2", json!({"final_logit_softcapping": -1.0})).contains("softcapping"));
    assert!(refusal("gemma3_text", json!({"sliding_window": null})).contains("sliding_window"));
    assert!(refusal("granite", json!({"logits_scaling": 0.0})).contains("logits_scaling"));
    assert!(refusal("smollm3", json!({"no_rope_layers": [1, 0]})).contains("2 of 6 layers"));
    assert!(refusal("qwen3", json!({"layer_types": ["full_attention"]})).contains("1 of 6 layers"));
    assert!(refusal("qwen3", json!({"layer_types": ["x", "x", "x", "x", "x", "x"]})).contains("\"x\""));
    let sliding =
        json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 0, "is_causal": false});
    assert!(refusal("qwen2", sliding).contains("in both directions"));
    // transformers computes windows of other lengths where `is_causal` says it.
    let both =
        [json!({"is_causal": false}), json!({"is_causal": false, "use_bidirectional_attention": true})];
    for mut extra in both {
        extra["sliding_window"] = json!(8);
        assert!(refusal("gemma3_text", extra.clone()).contains("in both directions"), "{extra}");
    }
    assert!(refusal("eurobert", json!({"is_causal": true})).contains("is_causal is true"));
    assert_eq!(read_as("eurobert", json!({"is_causal": false})).unwrap().attention[0].mask, Mask::FULL);
    let phi3 = json!({"rope_scaling": {"type": "yarn", "factor": 2.0}});
    assert!(refusal("phi3", phi3).contains("yarn"));
}

#[test]
fn variants_follow_the_family() {
    let variant = |model_type| read_as(model_type, json!({})).unwrap().variant;
    assert_eq!(variant("llama"), Variant::LLAMA);
    assert_eq!(variant("qwen2"), Variant { qkv_bias: true, ..Variant::LLAMA });
    assert_eq!(variant("qwen3"), Variant { head_norms: HeadNorms::Each, ..Variant::LLAMA });
    let biased = |model_type| {
        let Variant { qkv_bias, output_bias, .. } =
            read_as(model_type, json!({"attention_bias": true})).unwrap().variant;
        (qkv_bias, output_bias)
    };
    assert_eq!(
        ["llama", "qwen2", "glm4", "olmo2"].map(biased),
        [(true, true), (true, false), (true, false), (true, true)]
    );
    assert!(variant("glm4").qkv_bias && variant("glm4").fused_mlp && !variant("glm4").fused_qkv);
    assert_eq!(variant("olmo2").norms.attention, None);
    assert_eq!(variant("gemma").norms, NormNames::FIRST);
    assert_eq!(variant("gemma").norm_offset, 1.0);
}

#[test]
fn windows_are_where_the_family_has_them() {
    assert_eq!(windows("llama", json!({})), [0]);
    assert_eq!(windows("mistral", json!({"sliding_window": 9})), [9]);
    assert_eq!(windows("mistral", json!({"sliding_window": null})), [0]);
    assert_eq!(windows("ministral", json!({"sliding_window": 9})), [9]);
    let caps = json!({"sliding_window": 5, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0});
    assert_eq!(windows("gemma2", caps), [5, 0, 5, 0, 5, 0]);
    assert_eq!(windows("gemma3_text", json!({"sliding_window": 5})), [5, 5, 5, 5, 5, 0]);
    assert_eq!(
        windows("gemma3_text", json!({"sliding_window": 5, "sliding_window_pattern": 3})),
        [5, 5, 0, 5, 5, 0]
    );
    // transformers 5 writes the second key too, and reads the first alone.
    let saved = json!({"sliding_window": 5, "sliding_window_pattern": 2, "_sliding_window_pattern": 3});
    assert_eq!(windows("gemma3_text", saved), [5, 0, 5, 0, 5, 0]);
    let second = json!({"sliding_window": 5, "_sliding_window_pattern": 3});
    assert_eq!(windows("gemma3_text", second), [5, 5, 5, 5, 5, 0]);
    assert_eq!(windows("qwen2", json!({"sliding_window": 5, "max_window_layers": 4})), [0]);
    let flagged = json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 4});
    assert_eq!(windows("qwen2", flagged), [0, 0, 0, 0, 5, 5]);
    let (full, sliding) = ("full_attention", "sliding_attention");
    let listed = json!({"sliding_window": 5, "layer_types": [full, sliding, full, full, full, sliding]});
    assert_eq!(windows("ministral", listed), [0, 5, 0, 0, 0, 5]);
    // The flag is for files without the list.
    let listed = json!({"sliding_window": 5, "layer_types": [full, full, full, sliding, full, full]});
    assert_eq!(windows("smollm3", listed), [0, 0, 0, 5, 0, 0]);
    assert_eq!(windows("smollm3", json!({"sliding_window": 5})), [0; 6]);
    let both = json!({"sliding_window": 8, "use_bidirectional_attention": true});
    let layers = read_as("gemma3_text", both).unwrap().attention;
    assert_eq!((layers[0].mask, layers[5].mask), (Mask::local(4), Mask::FULL));
}

/// transformers' own defaults, and what null means in their place.
#[test]
fn absent_keys_have_defaults_and_null_has_none() {
    assert_eq!(windows("mistral", json!({})), [4096]);
    assert_eq!(windows("ministral", json!({})), [4096]);
    assert_eq!(windows("ministral", json!({"sliding_window": null})), [0]);
    let default = json!({"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 16}});
    assert_eq!((windows("ministral3", default), windows("phi3", json!({}))), (vec![0], vec![0]));
    assert_eq!(windows("gemma3_text", json!({})), [4096, 4096, 4096, 4096, 4096, 0]);
    assert_eq!(windows("qwen2", json!({"use_sliding_window": true})), [0], "from layer 28 on");
    let first = json!({"use_sliding_window": true, "max_window_layers": 5});
    assert_eq!(windows("qwen2", first), [0, 0, 0, 0, 0, 4096]);
    let caps = |extra: Value| {
        let gemma2 = read_as("gemma2", extra).unwrap();
        (gemma2.attention[0].soft_cap, gemma2.factors.logits_cap)
    };
    assert_eq!(caps(json!({})), (Some(50.0), Some(30.0)));
    assert_eq!(caps(json!({"attn_logit_softcapping": null})), (None, Some(30.0)));
    assert_eq!(caps(json!({"final_logit_softcapping": null})), (Some(50.0), None));
    let head = |model_type: &str| read_as(model_type, json!({"head_dim": null})).unwrap().head;
    assert_eq!(["qwen3", "glm4", "helium", "gemma"].map(head), [128, 128, 128, 256]);
    let short = json!({"is_causal": false, "max_position_embeddings": 4096});
    assert_eq!(read_as("mistral", short).unwrap().attention[0].mask, Mask::FULL);
}

#[test]
fn phi3_scales_from_its_own_context_unless_the_file_says_another() {
    let from = |extra: Value| {
        let factors = json!([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        let mut json = json!({"rope_scaling": {"type": "longrope", "short_factor": factors, "long_factor": factors,
            "original_max_position_embeddings": 16}});
        json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let rotary = read_as("phi3", json).unwrap().attention[0].rotary.clone().unwrap();
        rotary.long.map(|long| long.from)
    };
    assert_eq!(from(json!({})), Some(4096));
    assert_eq!(from(json!({"original_max_position_embeddings": 32})), Some(32));
}

#[test]
fn rotary_positions_differ_by_layer() {
    let rotated = |extra| {
        let layers = read_as("smollm3", extra).unwrap().attention;
        layers.iter().map(|layer| u8::from(layer.rotary.is_some())).collect::<Vec<_>>()
    };
    assert_eq!(rotated(json!({})), [1, 1, 1, 0, 1, 1]);
    assert_eq!(rotated(json!({"no_rope_layer_interval": 2})), [1, 0, 1, 0, 1, 0]);
    assert_eq!(rotated(json!({"no_rope_layers": [0, 1, 1, 0, 0, 1]})), [0, 1, 1, 0, 0, 1]);
    let bases = |extra: Value| {
        let layers = read_as("gemma3_text", extra).unwrap().attention;
        [&layers[0], &layers[5]].map(|layer| layer.rotary.clone().unwrap())
    };
    let new = |base| Rotary::new(base, 16, crate::compute::RopeStyle::Neox);
    assert_eq!(bases(json!({"sliding_window": 4})), [new(10_000.0), new(1_000_000.0)]);
    let old = json!({"sliding_window": 4, "rope_theta": 500.0, "rope_local_base_freq": 70.0});
    assert_eq!(bases(old), [new(70.0), new(500.0)]);
    let nested = json!({"sliding_window": 4, "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 70.0}}});
    assert_eq!(bases(nested), [new(70.0), new(500.0)]);
    let scaled = bases(json!({"sliding_window": 4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}));
    assert_eq!((&scaled[0], scaled[1].frequencies[0]), (&new(10_000.0), 0.125));
}

/// EXAONE 4: in models with windows, the layers without one have no rotary positions.
#[test]
fn layers_without_a_window_may_be_without_rotary_positions() {
    let layers = |extra: Value| {
        let layers = read_as("exaone4", extra).unwrap().attention;
        layers.iter().map(|layer| (layer.mask.before.min(9), layer.rotary.is_some())).collect::<Vec<_>>()
    };
    let (near, far) = ((4, true), (9, false));
    assert_eq!(layers(json!({"sliding_window": 5})), [near, near, near, far, near, near]);
    let (full, sliding) = ("full_attention", "sliding_attention");
    let listed = json!({"sliding_window": 5, "sliding_window_pattern": "LG",
        "layer_types": [sliding, full, sliding, full, sliding, full]});
    assert_eq!(layers(listed), [near, far, near, far, near, far]);
    assert_eq!(
        layers(json!({"layer_types": [full, full, full, full, full, full]})),
        [far],
        "the default window"
    );
    let without = json!({"sliding_window": null, "layer_types": [full, full, full, full, full, full]});
    assert_eq!(layers(without), [(9, true)]);
    assert!(refusal("exaone4", json!({"sliding_window_pattern": "LLLG"})).contains("\"LLLG\""));
    assert!(refusal("exaone4", json!({"sliding_window": null})).contains("sliding_window"));
}

#[test]
fn factors_follow_the_family() {
    let gemma = read_as("gemma", json!({})).unwrap();
    assert_eq!((gemma.factors.embedding, gemma.activation), (8.0, Activation::GeluTanh));
    let gelu = |model_type, key: &str| read_as(model_type, json!({key: "gelu"})).unwrap().activation;
    assert_eq!(gelu("gemma", "hidden_act"), Activation::GeluTanh, "its first files mean that form");
    let later = [gelu("gemma2", "hidden_activation"), gelu("gemma3_text", "hidden_activation")];
    assert_eq!(later, [Activation::Gelu; 2]);
    let granite = json!({"embedding_multiplier": 12.0, "residual_multiplier": 0.25, "attention_multiplier": 0.5,
        "logits_scaling": 8.0});
    let granite = read_as("granite", granite).unwrap();
    let expected = Factors { embedding: 12.0, residual: 0.25, logits: 0.125, logits_cap: None };
    assert_eq!((granite.factors, granite.attention[0].scale), (expected, Some(0.5)));
    let absent = read_as("granite", json!({})).unwrap().attention[0].scale;
    assert_eq!(absent, Some(1.0), "transformers' default");
    assert!(refusal("ministral3", json!({})).contains("no rope_parameters"));
    let plain = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}});
    assert!(refusal("ministral3", plain).contains("no llama_4_scaling_beta"));
    let short = json!({"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}});
    assert!(refusal("ministral3", short).contains("without original_max_position_embeddings"));
    let growth = json!({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.1, "max_position_embeddings": 32}});
    let rotary = read_as("ministral3", growth.clone()).unwrap().attention[0].rotary.clone().unwrap();
    assert_eq!(rotary.query_growth.map(|growth| (growth.rate, growth.length)), Some((0.1, 16)));
    assert!(refusal("mistral", growth).contains("llama_4_scaling_beta"));
}

#[test]
fn mixtures_of_experts_are_read_by_family() {
    let layers = |model_type, extra: Value| {
        let experts = read_as(model_type, extra).unwrap().experts.unwrap();
        (0..6).filter(|&layer| experts.is_in(layer)).collect::<Vec<_>>()
    };
    assert_eq!(layers("qwen3_moe", json!({})), [0, 1, 2, 3, 4, 5]);
    assert_eq!(layers("qwen3_moe", json!({"decoder_sparse_step": 2, "mlp_only_layers": [3]})), [1, 5]);
    assert_eq!(layers("qwen2_moe", json!({"mlp_only_layers": [0, 9]})), [1, 2, 3, 4, 5]);
    for (model_type, extra, word) in [
        ("qwen3_moe", json!({"decoder_sparse_step": 0}), "decoder_sparse_step"),
        ("qwen3_moe", json!({"num_experts": 8, "num_local_experts": 9}), "num_local_experts"),
        ("qwen3_moe", json!({"num_experts": 4, "num_experts_per_tok": 5}), "5 of 4"),
        ("qwen3_moe", json!({"num_experts_per_tok": 0}), "0 of 128"),
        ("mixtral", json!({"num_local_experts": 0}), "num_local_experts is 0"),
        ("qwen3_moe", json!({"num_experts": 0}), "num_experts is 0"),
        ("qwen3_moe", json!({"shared_expert_intermediate_size": 9}), "shared_expert_intermediate_size is 9"),
        ("mixtral", json!({"num_local_experts": 1u64 << 40}), "do not fit together"),
        ("qwen2_moe", json!({"moe_intermediate_size": 0}), "do not fit together"),
        ("olmoe", json!({"clip_qkv": 8.0}), "clip_qkv is 8"),
    ] {
        let error = refusal(model_type, extra);
        assert!(error.contains(word), "{error}");
    }
    let sliding = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 4});
    assert_eq!(windows("qwen2_moe", sliding.clone()), [8, 0, 8, 0, 0, 0]);
    assert_eq!(windows("qwen3_moe", sliding), [8]);
    assert_eq!(windows("qwen3_moe", json!({"sliding_window": 8})), [0]);
    assert_eq!(windows("mixtral", json!({"sliding_window": 8})), [8]);
    assert!(read_as("qwen2_moe", json!({})).unwrap().variant.qkv_bias);
    assert!(!read_as("qwen2_moe", json!({"qkv_bias": false})).unwrap().variant.qkv_bias);
}
