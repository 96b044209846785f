//! The families of this kind with mixtures of experts, and all families.

use super::dialect::{DENSE, Dialect, FixedKey, LLAMA, NEOX, ScalingRule, UnsaidWindow, Windows};
use super::fields::{DialectConfig, LlamaConfig};
use super::forms::FORMS;
use super::model::{HeadNorms, Variant};
use super::parts::CLAMPED;
use crate::models::architectures::experts::{ExpertConfig, ExpertDefaults};
use crate::models::architectures::family::{ConfigFields, GgufFamily, keys_of};
use crate::models::architectures::rope_scaling::RopeConfig;

/// The keys of a family with experts: those of Llama and of the family, and after a `;` those of experts.
macro_rules! expert_keys {
    ($($own:literal),*; $($experts:literal),*) => {
        &[
            // transformers ignores this key in some of these families.
            ConfigFields::But(keys_of::<LlamaConfig>, &["use_bidirectional_attention"]),
            RopeConfig::PARTIAL,
            ConfigFields::Only(keys_of::<DialectConfig>, &[$($own),*]),
            ConfigFields::Only(keys_of::<ExpertConfig>, &[$($experts),*]),
        ]
    };
}

/// Of the loss in training.
const TRAINING: &[&str] = &["router_aux_loss_coef"];

const QWEN3_MOE: Dialect = Dialect {
    model_type: "qwen3_moe",
    classes: "Qwen3Moe",
    head: 0,
    fields: expert_keys![
        "attention_bias", "use_sliding_window", "sliding_window";
        "num_experts", "num_local_experts", "num_experts_per_tok", "norm_topk_prob", "moe_intermediate_size",
        "shared_expert_intermediate_size", "mlp_only_layers", "decoder_sparse_step"
    ],
    // transformers reads none of the last two in this family.
    ignored: &["router_aux_loss_coef", "max_window_layers", "use_qk_norm"],
    gguf: &[GgufFamily::generators("qwen3moe")],
    variant: Variant { head_norms: HeadNorms::Each, ..Variant::LLAMA },
    windows: Windows::AllFlagged,
    window: Some(4096),
    styles: NEOX,
    classifies: true,
    experts: Some(&ExpertDefaults::QWEN3),
    gguf_experts: Some(&ExpertDefaults::QWEN3),
    ..LLAMA
};

const MIXTRAL: Dialect = Dialect {
    model_type: "mixtral",
    classes: "Mixtral",
    fields: expert_keys!["sliding_window"; "num_experts", "num_local_experts", "num_experts_per_tok"],
    // Noise in training.
    ignored: &["router_aux_loss_coef", "router_jitter_noise"],
    gguf: &[],
    windows: Windows::Always,
    base: 1_000_000.0,
    epsilon: 1e-5,
    classifies: true,
    experts: Some(&ExpertDefaults::MIXTRAL),
    ..LLAMA
};

const OLMOE: Dialect = Dialect {
    model_type: "olmoe",
    classes: "Olmoe",
    fields: expert_keys![
        "attention_bias", "clip_qkv";
        "num_experts", "num_local_experts", "num_experts_per_tok", "norm_topk_prob"
    ],
    ignored: TRAINING,
    gguf: &[GgufFamily::generators("olmoe")],
    variant: Variant { head_norms: HeadNorms::All, ..Variant::LLAMA },
    styles: NEOX,
    epsilon: 1e-5,
    experts: Some(&OLMOE_EXPERTS),
    gguf_experts: Some(&OLMOE_EXPERTS),
    ..LLAMA
};

const OLMOE_EXPERTS: ExpertDefaults =
    ExpertDefaults { count: 64, intermediate: None, gguf_normalized: false, ..ExpertDefaults::QWEN3 };

const QWEN2_MOE: Dialect = Dialect {
    model_type: "qwen2_moe",
    classes: "Qwen2Moe",
    fields: expert_keys![
        "qkv_bias", "use_sliding_window", "sliding_window", "max_window_layers", "layer_types";
        "num_experts", "num_local_experts", "num_experts_per_tok", "norm_topk_prob", "moe_intermediate_size",
        "shared_expert_intermediate_size", "mlp_only_layers", "decoder_sparse_step"
    ],
    ignored: TRAINING,
    gguf: &[GgufFamily::generators("qwen2moe")],
    variant: Variant { qkv_bias: true, ..Variant::LLAMA },
    output_bias: false,
    windows: Windows::EvenFlagged,
    window: Some(4096),
    styles: NEOX,
    classifies: true,
    experts: Some(&QWEN2_EXPERTS),
    gguf_experts: Some(&QWEN2_EXPERTS),
    ..LLAMA
};

const QWEN2_EXPERTS: ExpertDefaults = ExpertDefaults {
    count: 60,
    used: 4,
    intermediate: Some(1408),
    shared: Some(5632),
    gguf_normalized: false,
    ..ExpertDefaults::QWEN3
};

const GRANITE_MOE: Dialect = Dialect {
    model_type: "granitemoe",
    classes: "GraniteMoe",
    fields: expert_keys![
        "attention_bias", "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling";
        "num_experts", "num_local_experts", "num_experts_per_tok"
    ],
    ignored: TRAINING,
    multiplier: Some(1.0),
    gguf: &[GgufFamily::generators("granitemoe")],
    gguf_keys: &["embedding_scale", "residual_scale", "logit_scale", "attention.scale"],
    gguf_switched: true,
    experts: Some(&ExpertDefaults::MIXTRAL),
    gguf_experts: Some(&ExpertDefaults::MIXTRAL),
    ..LLAMA
};

/// OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025.
const GPT_OSS: Dialect = Dialect {
    model_type: "gpt_oss",
    classes: "GptOss",
    fields: expert_keys![
        "attention_bias", "sliding_window", "layer_types", "swiglu_alpha", "swiglu_limit", "experts_per_token",
        "quantization_config";
        "num_local_experts", "num_experts_per_tok"
    ],
    // The second repeats a number of rotary positions.
    ignored: &["router_aux_loss_coef", "initial_context_length"],
    fixed: &[FixedKey { name: "hidden_act", value: "\"silu\"", required: false }],
    gguf: &[GgufFamily::generators("gpt-oss")],
    gguf_keys: &[
        "attention.sliding_window_pattern",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    ],
    gguf_mlp_norm: "post_attention_norm",
    unsaid_window: UnsaidWindow::Always,
    variant: Variant { sinks: true, ..Variant::LLAMA },
    attention_bias: true,
    windows: Windows::AllBut(2),
    window: Some(128),
    styles: NEOX,
    base: 150_000.0,
    scaling: ScalingRule::Untruncated,
    epsilon: 1e-5,
    head: 64,
    null_head: true,
    activation: CLAMPED,
    experts: Some(&GPT_OSS_EXPERTS),
    gguf_experts: Some(&GPT_OSS_EXPERTS),
    ..LLAMA
};

const GPT_OSS_EXPERTS: ExpertDefaults =
    ExpertDefaults { used: 4, intermediate: None, normalized: true, biased: true, ..ExpertDefaults::QWEN3 };

const MIXTURES: [Dialect; 6] = [QWEN3_MOE, MIXTRAL, OLMOE, QWEN2_MOE, GRANITE_MOE, GPT_OSS];

/// All families of this kind.
#[expect(
    clippy::large_const_arrays,
    reason = "the families of the architecture are made of it in a constant"
)]
pub(super) const DIALECTS: [Dialect; DENSE.len() + FORMS.len() + MIXTURES.len()] = {
    let mut all = [LLAMA; DENSE.len() + FORMS.len() + MIXTURES.len()];
    let (mut index, parts) = (0, [&DENSE as &[Dialect], &FORMS, &MIXTURES]);
    let (mut part, mut first) = (0, 0);
    while index < all.len() {
        if index - first == parts[part].len() {
            (part, first) = (part + 1, index);
        }
        all[index] = parts[part][index - first];
        index += 1;
    }
    all
};
