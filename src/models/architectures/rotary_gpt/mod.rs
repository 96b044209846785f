//! GPTs with rotary positions and layer normalization: GPT-NeoX, Phi, StableLM, StarCoder 2, Falcon and GPT-J.
//!
//! Black et al., "GPT-NeoX-20B: An Open-Source Autoregressive Language Model", 2022; Li et al., "Textbooks Are All You Need II:
//! phi-1.5 technical report", 2023; Bellagente et al., "Stable LM 2 1.6B Technical Report", 2024; Lozhkov et al.,
//! "StarCoder 2 and The Stack v2: The Next Generation", 2024. Falcon and GPT-J have files of their own
//! for their configurations.

mod config;
mod falcon;
mod gguf;
mod gptj;
mod model;

use self::config::{RotaryGptConfig, VariantConfig, read};
use self::gguf::from_gguf;
use super::family::{ConfigFields, Family, GgufFamily, keys_of};
use super::rope_scaling::RopeConfig;

/// The keys that all families but Falcon and GPT-J read.
const COMMON: ConfigFields = ConfigFields::All(keys_of::<RotaryGptConfig>);

/// GPT-NeoX has its own names for two numbers; `rope_theta` and `partial_rotary_factor` may repeat them.
const NEOX: ConfigFields =
    own(&["layer_norm_eps", "use_parallel_residual", "attention_bias", "rotary_pct", "rotary_emb_base"]);

const PHI: ConfigFields = own(&["num_key_value_heads", "layer_norm_eps", "qk_layernorm"]);

const STABLELM: ConfigFields =
    own(&["num_key_value_heads", "layer_norm_eps", "qk_layernorm", "use_qkv_bias", "use_parallel_residual"]);

const STARCODER2: ConfigFields = own(&[
    "num_key_value_heads",
    "norm_epsilon",
    "use_bias",
    "sliding_window",
    "mlp_type",
    "norm_type",
    "scale_attn_weights",
]);

/// Those that one family reads in addition.
const fn own(keys: &'static [&'static str]) -> ConfigFields {
    ConfigFields::Only(keys_of::<VariantConfig>, keys)
}

/// What the published files say of the code that trained them.
const STARCODER2_IGNORED: &[&str] = &[
    "activation_function",
    "layer_norm_epsilon",
    "attention_softmax_in_fp32",
    "scale_attention_softmax_in_fp32",
];

/// The families.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        fields: &[COMMON, NEOX, RopeConfig::PARTIAL],
        // transformers' code does not use it.
        keys: &["is_decoder"],
        ..family("gpt_neox", "GPTNeoX", &[GgufFamily::generators("gptneox")])
    },
    Family {
        fields: &[COMMON, PHI, RopeConfig::PARTIAL],
        ..family("phi", "Phi", &[GgufFamily::generators("phi2")])
    },
    Family {
        fields: &[COMMON, STABLELM, RopeConfig::PARTIAL],
        ..family("stablelm", "StableLm", &[GgufFamily::generators("stablelm")])
    },
    Family {
        fields: &[COMMON, STARCODER2, RopeConfig::WHOLE],
        keys: STARCODER2_IGNORED,
        ..family("starcoder2", "Starcoder2", &[GgufFamily::generators("starcoder2")])
    },
    Family {
        fields: falcon::FIELDS,
        keys: falcon::IGNORED,
        read: falcon::read,
        ..family("falcon", "Falcon", &[GgufFamily::generators("falcon")])
    },
    // No converter writes GGUF files of it.
    Family { fields: gptj::FIELDS, read: gptj::read, read_gguf: None, ..family("gptj", "GPTJ", &[]) },
];

const fn family(model_type: &'static str, classes: &'static str, gguf: &'static [GgufFamily]) -> Family {
    Family { embeds: false, gguf, read_gguf: Some(from_gguf), ..Family::new(model_type, classes, &[], read) }
}
