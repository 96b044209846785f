//! Mixtures of experts without gates, in blocks that end with their norm: Nomic BERT's, against candle and in batches.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::models::architectures::{ConfigFile, find};

/// The tensors of folders, without those of GGUF files.
struct InFolders;

impl Tensors for InFolders {
    fn contains(&self, name: &str) -> bool {
        !name.contains("ffn_")
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        Made.matrix(name, shape)
    }

    fn vector(&self, name: &str, length: usize) -> Result<Weight> {
        Made.vector(name, length)
    }
}

fn read_with(extra: &Value) -> Result<Box<dyn Architecture>> {
    let mut json = json!({"model_type": "nomic_bert", "n_embd": 36, "n_layer": 3, "n_head": 2, "n_inner": 22, "vocab_size": 40,
        "n_positions": 5000, "type_vocab_size": 1, "activation_function": "gelu", "layer_norm_epsilon": 1e-5,
        "qkv_proj_bias": true, "mlp_fc1_bias": true, "mlp_fc2_bias": true, "num_experts": 5, "moe_top_k": 2,
        "moe_every_n_layers": 2});
    if let Value::Object(extra) = extra {
        json.as_object_mut().unwrap().extend(extra.clone());
    }
    let file = ConfigFile { model: "m", path: Path::new("config.json"), json: &json };
    find("nomic_bert").unwrap().read_config(&file)
}

fn models() -> Vec<Box<dyn Architecture>> {
    let others = [
        json!({}),
        json!({"num_experts": 16, "moe_top_k": 4, "n_inner": 13, "type_vocab_size": 0}),
        json!({"num_experts": 1, "moe_top_k": 1, "n_layer": 2, "n_inner": 70}),
        json!({"moe_every_n_layers": 3, "n_layer": 5}),
    ];
    others.iter().map(|extra| read_with(extra).unwrap()).collect()
}

#[test]
fn experts_without_gates_agree_with_candle() {
    let texts = texts(&[1, 2, 0, 13, 70, 300, 5, 1100]);
    for tensors in [&Made as &dyn Tensors, &InFolders] {
        for described in models() {
            assert_agrees_within(&[(WeightFormat::F32, 3e-5)], &*described, tensors, &texts);
        }
    }
}

/// What a text gives does not depend on the texts with it: to the bit.
#[test]
fn a_text_has_the_same_states_with_any_experts_without_gates() {
    // Tiles of bfloat16 are emulated on many CPUs, and weights of few bits are unpacked into them.
    let texts = texts(&[130, 64, 40, 1]);
    for described in models() {
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4] {
            for isa in [Isa::best(), Isa::Portable] {
                let model = Transformer::load(Cpu::new(isa, format), &*described, &InFolders).unwrap();
                for pooling in [Pooling::Mean, Pooling::Cls] {
                    let whole = encode(&model, &texts, pooling);
                    for (text, row) in texts.iter().zip(whole.chunks(36)) {
                        let alone = encode(&model, std::slice::from_ref(text), pooling);
                        assert_eq!(alone, row, "{isa} {format:?} {pooling:?} {described:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn experts_of_nomic_bert_that_are_not_computed_are_named() {
    for (extra, said) in [
        (
            json!({"moe_normalize_expert_weights": true}),
            "moe_normalize_expert_weights is true; supported is false",
        ),
        (json!({"expert_choice_router": true}), "expert_choice_router is true"),
        (json!({"num_shared_experts": 1}), "num_shared_experts is 1"),
        (json!({"ffn_div": 2}), "ffn_div is 2"),
        (json!({"moe_top_k": 0}), "moe_top_k is 0, of 5 experts"),
        (json!({"moe_top_k": 6}), "moe_top_k is 6, of 5 experts"),
        (json!({"num_experts": 100_000}), "up to 16384 experts"),
        (json!({"num_experts": 0}), "moe_every_n_layers is 2, and its num_experts is 0"),
        (json!({"moe_every_n_layers": 1}), "gives experts to no layer"),
        (json!({"moe_every_n_layers": 0}), "gives experts to no layer"),
        (json!({"activation_function": "swiglu"}), "experts with gates"),
        (json!({"activation_function": "relu"}), "activation_function is \"relu\""),
        (json!({"activation_function": "glu"}), "activation_function is \"glu\""),
        (json!({"hidden_size": 40}), "its n_embd is 36, and its hidden_size is 40"),
        (json!({"num_hidden_layers": 2}), "its n_layer is 3, and its num_hidden_layers is 2"),
        (json!({"layer_norm_eps": 1e-12}), "layer_norm_eps is 1e-12"),
        (
            json!({"hidden_act": "silu"}),
            "its activation_function is \"gelu\", and its hidden_act is \"silu\"",
        ),
        (
            json!({"rotary_emb_base": 1000, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
            "rotary_emb_base is 1000",
        ),
        (
            json!({"rotary_emb_base": 1000, "rope_theta": 500.0}),
            "its rotary_emb_base is 1000, and its rope_theta is 500",
        ),
    ] {
        let found = read_with(&extra).unwrap_err().to_string();
        assert!(found.contains(said), "{said}: {found}");
    }
    assert!(read_with(&json!({"moe_top_k": null, "num_experts": 0, "moe_every_n_layers": 0})).is_ok());
}

/// Files have the names of GPT-2 and those of transformers.
#[test]
fn sizes_may_be_said_twice() {
    let twice = json!({"hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 22,
        "max_position_embeddings": 2048, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "head_dim": 18});
    let (once, found) = (read_with(&json!({})).unwrap().describe(), read_with(&twice).unwrap().describe());
    assert_eq!(found, once, "the longest text is that of n_positions");
}
