//! Where the families of this kind differ: a line of fields for each `model_type`.

use super::fields::{DialectConfig, LlamaConfig};
use super::model::{HeadNorms, NormNames, Variant};
use crate::compute::RopeStyle;
use crate::models::architectures::experts::ExpertDefaults;
use crate::models::architectures::family::{ConfigFields, GgufFamily, keys_of};
use crate::models::architectures::rope_scaling::RopeConfig;

/// Which layers have a sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    /// None.
    Never,
    /// All, if there is a `sliding_window`.
    Always,
    /// All but every n-th, unless `layer_types` says otherwise; all with 0.
    AllBut(usize),
    /// Those from `max_window_layers` on, with `use_sliding_window`, unless `layer_types` says otherwise.
    Flagged,
    /// All, with `use_sliding_window`.
    AllFlagged,
    /// Each second one from the first on, of those before `max_window_layers`, with `use_sliding_window`, unless `layer_types`
    /// says otherwise.
    EvenFlagged,
    /// Those without rotary positions, with `use_sliding_window`, unless there are `layer_types`.
    Unrotated,
    /// None, in layers that `layer_types` name: without it they have no attention.
    Listed,
}

/// Whether layers without a window have no rotary positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnrotatedFull {
    /// They have some.
    Never,
    /// They have none where others have a window.
    WithWindows,
    /// They have none.
    Always,
}

/// Which scaling of rotary positions the models know.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ScalingRule {
    /// Any.
    Any,
    /// LongRoPE alone, with `original_max_position_embeddings` where it is absent.
    LongRope(f32),
    /// That of `rope_parameters`, which the file must have: without them the family has a scaling of its own.
    Given,
    /// The same, with queries that grow with their position.
    Growing,
    /// As [`Given`](Self::Given); where YaRN of a GGUF file begins and ends is not rounded.
    Untruncated,
    /// Any, and a larger base by `alpha`, which files call "dynamic".
    Alpha,
}

/// Whether windows have the length that `config.json` would mean by leaving it out, where a GGUF file gives none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnsaidWindow {
    /// There are none.
    Never,
    /// In the model of this many layers.
    OfLayers(usize),
    /// In all.
    Always,
}

/// A key of which one value is computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct FixedKey {
    pub name: &'static str,
    /// As JSON.
    pub value: &'static str,
    /// Whether a file must have the key.
    pub required: bool,
}

/// How the models of one `model_type` differ from Llama.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    pub model_type: &'static str,
    /// What the names of its classes in transformers begin with.
    pub classes: &'static str,
    pub fields: &'static [ConfigFields],
    /// Keys that change nothing.
    pub ignored: &'static [&'static str],
    /// Keys of which one value is computed: those that a struct has are among the fields, others among the ignored ones.
    pub fixed: &'static [FixedKey],
    pub gguf: &'static [GgufFamily],
    /// Metadata that GGUF files of these models have and others do not.
    pub gguf_keys: &'static [&'static str],
    /// Metadata by which GGUF files are those of another family, and its `model_type`.
    pub gguf_marked: Option<(&'static str, &'static str)>,
    /// The norm before the perceptron in GGUF files.
    pub gguf_mlp_norm: &'static str,
    /// Whether a GGUF file that does not give the length of windows has them nevertheless.
    pub unsaid_window: UnsaidWindow,
    /// Layers of the model that divides scores by the root of a head's share of the state, which its GGUF file does not say.
    pub unsaid_scale: Option<usize>,
    /// Form of tensors and norms, with all biases that `attention_bias` does not decide.
    pub variant: Variant,
    /// Where `attention_bias` is absent.
    pub attention_bias: bool,
    /// Whether `attention_bias` counts for the output of attention too.
    pub output_bias: bool,
    pub windows: Windows,
    pub unrotated_full: UnrotatedFull,
    /// Whether layers have rotary positions only where `position_embedding_type` is "rope".
    pub named_rotation: bool,
    /// Whether `rope.scaling.finetuned` of GGUF files says so.
    pub gguf_switched: bool,
    /// `sliding_window` where it is absent; null means none.
    pub window: Option<usize>,
    /// Pairs of rotary positions in transformers' files, and in GGUF files.
    pub styles: [RopeStyle; 2],
    /// `partial_rotary_factor` where it is absent; `None` if whole heads are rotated.
    pub part: Option<f32>,
    /// `rope_theta` where it is absent.
    pub base: f32,
    /// `rope_local_base_freq` where it is absent; `None` if layers with a window have the positions of all others.
    pub local_base: Option<f32>,
    /// Whether GGUF files that do not give this base have that of all layers there.
    pub gguf_one_base: bool,
    pub scaling: ScalingRule,
    /// `rms_norm_eps` where it is absent.
    pub epsilon: f32,
    /// `tie_word_embeddings` where it is absent.
    pub tied: bool,
    /// `num_key_value_heads` where it is absent; `None` for as many as those of queries.
    pub kv_heads: Option<usize>,
    /// `head_dim` where it is absent; with 0 the heads divide a state.
    pub head: usize,
    /// Whether they do so with null.
    pub null_head: bool,
    /// Whether they always do: transformers does not read `head_dim`.
    pub whole_heads: bool,
    /// `shared_intermediate_size` where it is absent, in families whose perceptron is the expert that all tokens use.
    pub shared_mlp: Option<usize>,
    /// `hidden_act` where it is absent.
    pub activation: &'static str,
    /// `logit_scale` where it is absent, of families that multiply logits by it.
    pub logit_scale: Option<f32>,
    /// `query_pre_attn_scalar` where it is absent.
    pub query_scalar: Option<f32>,
    /// `attention_multiplier` where it is absent; without both, the scale follows from the length of a head.
    pub multiplier: Option<f32>,
    /// Gemma: embeddings times the root of their length, GELU in its tanh form.
    pub gemma: bool,
    /// Whether files that say "gelu" mean its tanh form.
    pub gelu_is_tanh: bool,
    /// Gemma 2: `attn_logit_softcapping` and `final_logit_softcapping` where they are absent; null means none.
    pub caps: Option<[f32; 2]>,
    /// Whether a token sees only itself and those before it, where no key says so; else the models do not write text.
    pub causal: bool,
    /// Whether models with a head of classes are known.
    pub classifies: bool,
    /// What files mean by what they do not say of experts, if models have any.
    pub experts: Option<&'static ExpertDefaults>,
    /// The same of GGUF files. Those of some families have experts if they count them.
    pub gguf_experts: Option<&'static ExpertDefaults>,
}

/// The keys that all families read, and the given ones of those that some read; before a `;` those of rotary positions.
macro_rules! keys {
    ($($own:literal),*) => {
        keys!(RopeConfig::PARTIAL; $($own),*)
    };
    ($rope:expr; $($own:literal),*) => {
        &[
            ConfigFields::All(keys_of::<LlamaConfig>),
            $rope,
            ConfigFields::Only(keys_of::<DialectConfig>, &[$($own),*]),
        ]
    };
}

pub(super) const NEOX: [RopeStyle; 2] = [RopeStyle::Neox; 2];

pub(super) const LLAMA: Dialect = Dialect {
    model_type: "llama",
    classes: "Llama",
    fields: keys!["attention_bias", "mlp_bias", "layer_types"],
    ignored: &[],
    fixed: &[],
    gguf: &[GgufFamily::generators("llama")],
    gguf_keys: &[],
    gguf_marked: None,
    gguf_mlp_norm: "ffn_norm",
    unsaid_window: UnsaidWindow::Never,
    unsaid_scale: None,
    variant: Variant::LLAMA,
    attention_bias: false,
    output_bias: true,
    windows: Windows::Never,
    unrotated_full: UnrotatedFull::Never,
    named_rotation: false,
    gguf_switched: false,
    window: None,
    // Converters permute queries and keys so that pairs are neighbors.
    styles: [RopeStyle::Neox, RopeStyle::Interleaved],
    part: None,
    base: 10_000.0,
    local_base: None,
    gguf_one_base: false,
    scaling: ScalingRule::Any,
    epsilon: 1e-6,
    tied: false,
    kv_heads: None,
    head: 0,
    null_head: false,
    whole_heads: false,
    shared_mlp: None,
    activation: "silu",
    logit_scale: None,
    query_scalar: None,
    multiplier: None,
    gemma: false,
    gelu_is_tanh: false,
    caps: None,
    causal: true,
    classifies: false,
    experts: None,
    gguf_experts: None,
};

const GEMMA: Dialect = Dialect {
    model_type: "gemma",
    classes: "Gemma",
    fields: keys!["attention_bias", "hidden_activation"],
    gguf: &[GgufFamily::generators("gemma")],
    variant: Variant { norm_offset: 1.0, ..Variant::LLAMA },
    styles: NEOX,
    tied: true,
    head: 256,
    gemma: true,
    // The first files do.
    gelu_is_tanh: true,
    ..LLAMA
};

const GEMMA2: Dialect = Dialect {
    model_type: "gemma2",
    classes: "Gemma2",
    fields: keys![
        "attention_bias",
        "hidden_activation",
        "query_pre_attn_scalar",
        "sliding_window",
        "layer_types",
        "attn_logit_softcapping",
        "final_logit_softcapping"
    ],
    gguf: &[GgufFamily::generators("gemma2")],
    gguf_keys: &["attention.sliding_window_pattern", "attn_logit_softcapping", "final_logit_softcapping"],
    // The first converted files lack it; llama.cpp has this length for them.
    unsaid_window: UnsaidWindow::Always,
    unsaid_scale: Some(46),
    variant: Variant {
        norms: NormNames {
            attention: Some("input_layernorm"),
            output: Some("post_attention_layernorm"),
            mlp: Some("pre_feedforward_layernorm"),
            down: Some("post_feedforward_layernorm"),
        },
        ..GEMMA.variant
    },
    windows: Windows::AllBut(2),
    window: Some(4096),
    query_scalar: Some(256.0),
    caps: Some([50.0, 30.0]),
    gelu_is_tanh: false,
    ..GEMMA
};

const SLIDING: &[ConfigFields] =
    keys!["attention_bias", "layer_types", "use_sliding_window", "sliding_window", "max_window_layers"];

/// Those without experts.
pub(super) const DENSE: [Dialect; 16] = [
    Dialect { classifies: true, gguf_experts: Some(&ExpertDefaults::MIXTRAL), ..LLAMA },
    Dialect {
        model_type: "qwen2",
        classes: "Qwen2",
        fields: SLIDING,
        gguf: &[GgufFamily::generators("qwen2")],
        variant: Variant { qkv_bias: true, ..Variant::LLAMA },
        output_bias: false,
        windows: Windows::Flagged,
        window: Some(4096),
        classifies: true,
        styles: NEOX,
        ..LLAMA
    },
    Dialect {
        model_type: "qwen3",
        classes: "Qwen3",
        head: 128,
        fields: SLIDING,
        gguf: &[GgufFamily { embeds: true, ..GgufFamily::generators("qwen3") }],
        variant: Variant { head_norms: HeadNorms::Each, ..Variant::LLAMA },
        windows: Windows::Flagged,
        window: Some(4096),
        classifies: true,
        styles: NEOX,
        ..LLAMA
    },
    // EuroBERT, an encoder.
    Dialect {
        model_type: "eurobert",
        classes: "EuroBert",
        fields: keys!["attention_bias", "mlp_bias"],
        // Of a head that is not used.
        ignored: &["clf_pooling", "classifier_pooling"],
        gguf: &[],
        epsilon: 1e-5,
        causal: false,
        styles: NEOX,
        ..LLAMA
    },
    Dialect {
        model_type: "mistral",
        classes: "Mistral",
        fields: keys!["sliding_window"],
        gguf: &[],
        windows: Windows::Always,
        window: Some(4096),
        ..LLAMA
    },
    Dialect {
        model_type: "ministral",
        classes: "Ministral",
        fields: keys!["sliding_window", "layer_types"],
        gguf: &[],
        windows: Windows::AllBut(0),
        window: Some(4096),
        ..LLAMA
    },
    Dialect {
        model_type: "ministral3",
        classes: "Ministral3",
        fields: keys!["sliding_window"],
        gguf: &[GgufFamily::generators("mistral3")],
        gguf_keys: &[
            "attention.temperature_scale",
            "rope.scaling.yarn_beta_fast",
            "rope.scaling.yarn_beta_slow",
        ],
        windows: Windows::Always,
        scaling: ScalingRule::Growing,
        epsilon: 1e-5,
        head: 128,
        ..LLAMA
    },
    Dialect {
        model_type: "smollm3",
        classes: "SmolLM3",
        fields: keys![
            "attention_bias",
            "mlp_bias",
            "layer_types",
            "use_sliding_window",
            "sliding_window",
            "max_window_layers",
            "no_rope_layers",
            "no_rope_layer_interval"
        ],
        gguf: &[GgufFamily::generators("smollm3")],
        windows: Windows::Unrotated,
        base: 2_000_000.0,
        tied: true,
        ..LLAMA
    },
    Dialect {
        model_type: "granite",
        classes: "Granite",
        fields: keys![
            "attention_bias",
            "mlp_bias",
            "embedding_multiplier",
            "residual_multiplier",
            "attention_multiplier",
            "logits_scaling"
        ],
        multiplier: Some(1.0),
        gguf: &[GgufFamily::generators("granite")],
        // The others are those of Granite 4 without layers of Mamba.
        gguf_keys: &[
            "embedding_scale",
            "residual_scale",
            "logit_scale",
            "attention.scale",
            "expert_shared_feed_forward_length",
            "ssm.conv_kernel",
            "ssm.state_size",
            "ssm.group_count",
            "ssm.inner_size",
            "ssm.time_step_rank",
        ],
        gguf_switched: true,
        ..LLAMA
    },
    Dialect {
        model_type: "phi3",
        classes: "Phi3",
        fields: keys![ConfigFields::All(keys_of::<RopeConfig>); "sliding_window"],
        gguf: &[GgufFamily::generators("phi3")],
        gguf_keys: &["rope.scaling.attn_factor"],
        variant: Variant { fused_qkv: true, fused_mlp: true, ..Variant::LLAMA },
        windows: Windows::Always,
        styles: NEOX,
        part: Some(1.0),
        scaling: ScalingRule::LongRope(4096.0),
        epsilon: 1e-5,
        ..LLAMA
    },
    GEMMA,
    GEMMA2,
    Dialect {
        model_type: "gemma3_text",
        classes: "Gemma3",
        fields: keys![
            "attention_bias",
            "hidden_activation",
            "query_pre_attn_scalar",
            "sliding_window",
            "sliding_window_pattern",
            "layer_types",
            "rope_local_base_freq",
            "attn_logit_softcapping",
            "final_logit_softcapping"
        ],
        // transformers writes it, and reads `sliding_window_pattern`.
        ignored: &["_sliding_window_pattern"],
        gguf: &[GgufFamily::generators("gemma3"), GgufFamily::encoders("gemma-embedding")],
        gguf_keys: &["attention.sliding_window_pattern", "rope.freq_base_swa", "final_logit_softcapping"],
        unsaid_window: UnsaidWindow::Never,
        unsaid_scale: Some(62),
        variant: Variant { head_norms: HeadNorms::Each, ..GEMMA2.variant },
        windows: Windows::AllBut(6),
        base: 1_000_000.0,
        local_base: Some(10_000.0),
        caps: None,
        ..GEMMA2
    },
    Dialect {
        model_type: "glm4",
        classes: "Glm4",
        fields: keys!["attention_bias"],
        gguf: &[GgufFamily::generators("glm4")],
        variant: Variant {
            norms: NormNames {
                output: Some("post_self_attn_layernorm"),
                down: Some("post_mlp_layernorm"),
                ..NormNames::FIRST
            },
            fused_mlp: true,
            ..Variant::LLAMA
        },
        attention_bias: true,
        output_bias: false,
        styles: [RopeStyle::Interleaved; 2],
        part: Some(0.5),
        epsilon: 1.5625e-7,
        head: 128,
        ..LLAMA
    },
    Dialect {
        model_type: "olmo2",
        classes: "Olmo2",
        fields: keys!["attention_bias"],
        gguf: &[GgufFamily::generators("olmo2")],
        gguf_marked: Some(("attention.sliding_window", "olmo3")),
        variant: Variant { head_norms: HeadNorms::All, norms: NormNames::AFTER, ..Variant::LLAMA },
        styles: NEOX,
        epsilon: 1e-5,
        ..LLAMA
    },
    Dialect {
        model_type: "exaone4",
        classes: "Exaone4",
        fields: keys!["sliding_window", "sliding_window_pattern", "layer_types"],
        gguf: &[GgufFamily::generators("exaone4")],
        gguf_keys: &["attention.sliding_window_pattern"],
        unsaid_window: UnsaidWindow::OfLayers(64),
        variant: Variant { head_norms: HeadNorms::Each, norms: NormNames::AFTER, ..Variant::LLAMA },
        windows: Windows::AllBut(4),
        unrotated_full: UnrotatedFull::WithWindows,
        window: Some(4096),
        styles: NEOX,
        epsilon: 1e-5,
        ..LLAMA
    },
];
