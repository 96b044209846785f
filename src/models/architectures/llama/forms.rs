//! The families of this kind whose layers have other forms of norms, perceptrons or blocks, or that differ in keys alone.

use super::dialect::{Dialect, FixedKey, LLAMA, NEOX, ScalingRule, UnrotatedFull, Windows};
use super::fields::{DialectConfig, LlamaConfig};
use super::model::{HeadNorms, NormNames, Variant};
use super::parts::{MlpNames, NormForm};
use crate::compute::RopeStyle;
use crate::models::architectures::family::{ConfigFields, GgufFamily, keys_of};
use crate::models::architectures::rope_scaling::RopeConfig;

/// Keys of Llama that transformers ignores in these families.
const UNREAD: &[&str] = &["use_bidirectional_attention"];

/// The same in those with layer normalizations, whose numbers have other names.
const LAYER_NORMED: &[&str] = &["use_bidirectional_attention", "rms_norm_eps"];

/// The keys of a family: those of Llama but for some, and the given ones of those that some families read.
macro_rules! form_keys {
    ($without:expr; $($own:literal),*) => {
        &[
            ConfigFields::But(keys_of::<LlamaConfig>, $without),
            RopeConfig::PARTIAL,
            ConfigFields::Only(keys_of::<DialectConfig>, &[$($own),*]),
        ]
    };
}

/// A key that a file may leave out.
const fn fixed(name: &'static str, value: &'static str) -> FixedKey {
    FixedKey { name, value, required: false }
}

const COHERE: Dialect = Dialect {
    model_type: "cohere",
    classes: "Cohere",
    fields: form_keys![LAYER_NORMED; "attention_bias", "layer_norm_eps", "logit_scale", "use_qk_norm"],
    gguf: &[GgufFamily::generators("command-r")],
    gguf_keys: &["logit_scale", "attention.layer_norm_epsilon"],
    variant: Variant {
        norms: NormNames { mlp: None, ..NormNames::FIRST },
        norm_form: NormForm::Unshifted,
        parallel: true,
        ..Variant::LLAMA
    },
    styles: [RopeStyle::Interleaved; 2],
    base: 500_000.0,
    epsilon: 1e-5,
    tied: true,
    logit_scale: Some(0.0625),
    ..LLAMA
};

/// Of Cohere 2 as it was published: transformers reads none of them.
const COHERE2_FORM: &[FixedKey] = &[
    fixed("order_of_interleaved_layers", "\"local_attn_first\""),
    fixed("position_embedding_type", "\"rope_gptj\""),
    fixed("rotary_pct", "1.0"),
    fixed("layer_switch", "4"),
    fixed("use_embedding_sharing", "true"),
    fixed("use_gated_activation", "true"),
    fixed("use_parallel_block", "true"),
];

/// Where OLMo 2 has its norms, with windows.
const OLMO3: Dialect = Dialect {
    model_type: "olmo3",
    classes: "Olmo3",
    fields: form_keys![UNREAD; "attention_bias", "sliding_window", "layer_types"],
    // Those of OLMo 2 with a window.
    gguf: &[],
    gguf_keys: &[
        "attention.sliding_window_pattern",
        "rope.freq_base_swa",
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    ],
    variant: Variant { head_norms: HeadNorms::All, norms: NormNames::AFTER, ..Variant::LLAMA },
    windows: Windows::AllBut(4),
    window: Some(4096),
    styles: NEOX,
    base: 500_000.0,
    local_base: Some(500_000.0),
    gguf_one_base: true,
    epsilon: 1e-5,
    ..LLAMA
};

/// Those without experts.
pub(super) const FORMS: [Dialect; 12] = [
    Dialect {
        model_type: "helium",
        classes: "Helium",
        fields: form_keys![&[]; "attention_bias", "mlp_bias"],
        gguf: &[],
        output_bias: false,
        styles: [RopeStyle::Interleaved; 2],
        base: 100_000.0,
        epsilon: 1e-8,
        head: 128,
        ..LLAMA
    },
    COHERE,
    Dialect {
        model_type: "cohere2",
        classes: "Cohere2",
        fields: form_keys![
            LAYER_NORMED;
            "attention_bias", "layer_norm_eps", "logit_scale", "sliding_window", "sliding_window_pattern", "layer_types",
            "position_embedding_type"
        ],
        ignored: &[
            "order_of_interleaved_layers",
            "rotary_pct",
            "layer_switch",
            "use_embedding_sharing",
            "use_gated_activation",
            "use_parallel_block",
            // How a table is spread over cards.
            "use_parallel_embedding",
            // What transformers 4 made of `sliding_window_pattern`, next to `layer_types`.
            "_sliding_window_pattern",
        ],
        fixed: COHERE2_FORM,
        gguf: &[GgufFamily::generators("cohere2")],
        gguf_keys: &["logit_scale", "attention.layer_norm_epsilon", "attention.sliding_window_pattern"],
        windows: Windows::AllBut(4),
        unrotated_full: UnrotatedFull::Always,
        window: Some(4096),
        base: 10_000.0,
        whole_heads: true,
        ..COHERE
    },
    OLMO3,
    // Granite 4 without layers of Mamba and without experts.
    Dialect {
        model_type: "granitemoehybrid",
        classes: "GraniteMoeHybrid",
        fields: form_keys![
            UNREAD;
            "attention_bias", "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling",
            "layer_types", "shared_intermediate_size", "position_embedding_type"
        ],
        ignored: &[
            "num_local_experts",
            "normalization_function",
            // Of experts and of layers of Mamba, and how weights were made at first.
            "num_experts_per_tok",
            "router_aux_loss_coef",
            "mamba_chunk_size",
            "mamba_conv_bias",
            "mamba_d_conv",
            "mamba_d_head",
            "mamba_d_state",
            "mamba_expand",
            "mamba_n_groups",
            "mamba_n_heads",
            "mamba_proj_bias",
            "time_step_limit",
            "init_method",
        ],
        fixed: &[
            FixedKey { name: "num_local_experts", value: "0", required: true },
            fixed("normalization_function", "\"rmsnorm\""),
        ],
        // Converters call them Granite.
        gguf: &[],
        variant: Variant {
            fused_mlp: true,
            mlp_names: MlpNames {
                both: "shared_mlp.input_linear",
                down: "shared_mlp.output_linear",
                ..MlpNames::LLAMA
            },
            ..Variant::LLAMA
        },
        windows: Windows::Listed,
        named_rotation: true,
        styles: NEOX,
        multiplier: Some(1.0),
        shared_mlp: Some(1024),
        ..LLAMA
    },
    Dialect {
        model_type: "hunyuan_v1_dense",
        classes: "HunYuanDenseV1",
        fields: form_keys![UNREAD; "attention_bias", "use_qk_norm"],
        ignored: &[
            "eod_token_id",
            "use_rotary_pos_emb",
            "norm_type",
            // In published files. Keys of a layer are not those of another, and there is no head of classes.
            "use_cla",
            "cla_share_factor",
            "add_classification_head",
            "class_num",
            "attention_head_dim",
            "dense_list",
            "im_end_id",
            "im_newline_id",
            "im_start_id",
            "mask_init_id",
            "org_vocab_size",
            "pad_id",
            "pool_type",
            "text_end_id",
            "text_start_id",
        ],
        fixed: &[
            fixed("use_cla", "false"),
            fixed("add_classification_head", "false"),
            fixed("use_qk_norm", "true"),
            fixed("use_rotary_pos_emb", "true"),
            fixed("norm_type", "\"rms\""),
        ],
        gguf: &[GgufFamily::generators("hunyuan-dense")],
        variant: Variant {
            head_norms: HeadNorms::Each,
            head_norm_names: ["self_attn.query_layernorm", "self_attn.key_layernorm"],
            rotates_first: true,
            ..Variant::LLAMA
        },
        styles: NEOX,
        scaling: ScalingRule::Alpha,
        epsilon: 1e-5,
        ..LLAMA
    },
    Dialect {
        model_type: "ernie4_5",
        classes: "Ernie4_5",
        fields: form_keys![UNREAD; "use_bias"],
        kv_heads: Some(2),
        gguf: &[GgufFamily::generators("ernie4_5")],
        styles: [RopeStyle::Interleaved; 2],
        base: 500_000.0,
        epsilon: 1e-5,
        tied: true,
        head: 128,
        null_head: true,
        ..LLAMA
    },
    Dialect {
        model_type: "seed_oss",
        classes: "SeedOss",
        fields: form_keys![UNREAD; "attention_bias", "attention_out_bias", "mlp_bias"],
        kv_heads: Some(8),
        gguf: &[GgufFamily::generators("seed_oss")],
        gguf_mlp_norm: "post_attention_norm",
        attention_bias: true,
        output_bias: false,
        styles: NEOX,
        head: 128,
        null_head: true,
        ..LLAMA
    },
    Dialect {
        model_type: "apertus",
        classes: "Apertus",
        fields: form_keys![UNREAD; "attention_bias"],
        ignored: &["qk_norm"],
        fixed: &[fixed("qk_norm", "true")],
        gguf: &[GgufFamily::generators("apertus")],
        variant: Variant {
            head_norms: HeadNorms::Each,
            norms: NormNames {
                attention: Some("attention_layernorm"),
                mlp: Some("feedforward_layernorm"),
                ..NormNames::FIRST
            },
            gated: false,
            ..Variant::LLAMA
        },
        styles: NEOX,
        base: 12_000_000.0,
        scaling: ScalingRule::Given,
        epsilon: 1e-5,
        activation: "xielu",
        ..LLAMA
    },
    Dialect {
        model_type: "glm",
        classes: "Glm",
        kv_heads: Some(2),
        fields: form_keys![UNREAD; "attention_bias"],
        // Converters write another epsilon and another length than the model has.
        gguf: &[],
        variant: Variant { fused_mlp: true, ..Variant::LLAMA },
        attention_bias: true,
        output_bias: false,
        styles: [RopeStyle::Interleaved; 2],
        part: Some(0.5),
        epsilon: 1.5625e-7,
        head: 128,
        ..LLAMA
    },
    Dialect {
        model_type: "arcee",
        classes: "Arcee",
        fields: form_keys![UNREAD; "attention_bias", "mlp_bias"],
        gguf: &[GgufFamily::generators("arcee")],
        variant: Variant { gated: false, ..Variant::LLAMA },
        epsilon: 1e-5,
        activation: "relu2",
        ..LLAMA
    },
    Dialect {
        model_type: "nemotron",
        classes: "Nemotron",
        fields: form_keys![LAYER_NORMED; "attention_bias", "mlp_bias", "norm_eps"],
        gguf: &[GgufFamily::generators("nemotron")],
        gguf_keys: &["attention.layer_norm_epsilon"],
        variant: Variant { norm_form: NormForm::Layer, norm_offset: 1.0, gated: false, ..Variant::LLAMA },
        styles: NEOX,
        part: Some(0.5),
        epsilon: 1e-5,
        activation: "relu2",
        ..LLAMA
    },
];
