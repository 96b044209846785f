//! GPTs with rotary positions and layer normalization: GPT-NeoX, Phi, StableLM, StarCoder 2 and Falcon.
//!
//! Black et al., "GPT-NeoX-20B: An Open-Source Autoregressive Language Model", 2022; Li et al., "Textbooks Are All You Need II:
//! phi-1.5 technical report", 2023; Bellagente et al., "Stable LM 2 1.6B Technical Report", 2024; Lozhkov et al., "StarCoder 2 and
//! The Stack v2: The Next Generation", 2024. Falcon has a page of its own for its configuration.

mod config;
mod falcon;
mod gguf;
mod model;

use self::config::read;
use self::gguf::from_gguf;
use super::family::{Family, GgufFamily, joined};

/// The keys of `config.json` that all families read.
const COMMON: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "tie_word_embeddings",
    "rope_scaling",
    "rope_parameters",
    "is_causal",
];

const NEOX: &[&str] = &[
    "layer_norm_eps",
    "use_parallel_residual",
    "attention_bias",
    "rotary_pct",
    "rotary_emb_base",
    // They repeat the two.
    "partial_rotary_factor",
    "rope_theta",
    // transformers' code does not use it.
    "is_decoder",
];

const PHI: &[&str] =
    &["num_key_value_heads", "layer_norm_eps", "rope_theta", "partial_rotary_factor", "qk_layernorm"];

const STABLELM: &[&str] = &[
    "num_key_value_heads",
    "layer_norm_eps",
    "rope_theta",
    "partial_rotary_factor",
    "qk_layernorm",
    "use_qkv_bias",
    "use_parallel_residual",
];

const STARCODER2: &[&str] = &[
    "num_key_value_heads",
    "norm_epsilon",
    "rope_theta",
    "use_bias",
    "sliding_window",
    // What the published files say of the code that trained them.
    "mlp_type",
    "norm_type",
    "activation_function",
    "layer_norm_epsilon",
    "scale_attn_weights",
    "attention_softmax_in_fp32",
    "scale_attention_softmax_in_fp32",
];

const NEOX_KEYS: [&str; COMMON.len() + NEOX.len()] = joined(COMMON, NEOX);
const PHI_KEYS: [&str; COMMON.len() + PHI.len()] = joined(COMMON, PHI);
const STABLELM_KEYS: [&str; COMMON.len() + STABLELM.len()] = joined(COMMON, STABLELM);
const STARCODER2_KEYS: [&str; COMMON.len() + STARCODER2.len()] = joined(COMMON, STARCODER2);

/// The families.
pub(super) const FAMILIES: &[Family] = &[
    family("gpt_neox", "GPTNeoX", &NEOX_KEYS, &[GgufFamily::generators("gptneox")]),
    family("phi", "Phi", &PHI_KEYS, &[GgufFamily::generators("phi2")]),
    family("stablelm", "StableLm", &STABLELM_KEYS, &[GgufFamily::generators("stablelm")]),
    family("starcoder2", "Starcoder2", &STARCODER2_KEYS, &[GgufFamily::generators("starcoder2")]),
    Family {
        read: falcon::read,
        ..family("falcon", "Falcon", falcon::KEYS, &[GgufFamily::generators("falcon")])
    },
];

const fn family(
    model_type: &'static str,
    classes: &'static str,
    keys: &'static [&'static str],
    gguf: &'static [GgufFamily],
) -> Family {
    Family { embeds: false, gguf, read_gguf: Some(from_gguf), ..Family::new(model_type, classes, keys, read) }
}
