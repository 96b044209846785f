//! The keys of `config.json` as fields.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// What the files of all families say.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct LlamaConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: Option<usize>,
    #[serde(default, deserialize_with = "given")]
    pub head_dim: Given<usize>,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: Option<f32>,
    pub tie_word_embeddings: Option<bool>,
    pub hidden_act: Option<String>,
    pub is_causal: Option<bool>,
    pub use_bidirectional_attention: Option<bool>,
}

/// What those of some families say.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct DialectConfig {
    pub attention_bias: Option<bool>,
    pub qkv_bias: Option<bool>,
    pub attention_out_bias: Option<bool>,
    /// Of all linear layers.
    pub use_bias: Option<bool>,
    /// The largest number of queries, keys and values.
    pub clip_qkv: Option<f32>,
    #[serde(default)]
    pub mlp_bias: bool,
    #[serde(default)]
    pub use_qk_norm: bool,
    pub shared_intermediate_size: Option<usize>,
    // Of an activation that limits its operands.
    pub swiglu_alpha: Option<f32>,
    pub swiglu_limit: Option<f32>,
    /// What another key says too.
    pub experts_per_token: Option<usize>,
    /// How the weights of experts are stored.
    pub quantization_config: Option<Value>,
    // What layer normalizations add to a variance.
    pub layer_norm_eps: Option<f32>,
    pub norm_eps: Option<f32>,
    pub hidden_activation: Option<String>,
    // Windows.
    #[serde(default)]
    pub use_sliding_window: bool,
    #[serde(default, deserialize_with = "given")]
    pub sliding_window: Given<usize>,
    #[serde(default = "twenty_eight")]
    pub max_window_layers: usize,
    pub sliding_window_pattern: Option<Pattern>,
    #[serde(default)]
    pub layer_types: Vec<String>,
    // Rotary positions by layer.
    pub no_rope_layers: Option<Vec<u8>>,
    pub no_rope_layer_interval: Option<usize>,
    pub rope_local_base_freq: Option<f32>,
    pub position_embedding_type: Option<String>,
    // Factors.
    pub embedding_multiplier: Option<f32>,
    pub residual_multiplier: Option<f32>,
    pub attention_multiplier: Option<f32>,
    pub logits_scaling: Option<f32>,
    pub logit_scale: Option<f32>,
    pub query_pre_attn_scalar: Option<f32>,
    #[serde(default, deserialize_with = "given")]
    pub attn_logit_softcapping: Given<f32>,
    #[serde(default, deserialize_with = "given")]
    pub final_logit_softcapping: Given<f32>,
}

fn twenty_eight() -> usize {
    28
}

/// Which layers have a sliding window, where `layer_types` does not say.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Pattern {
    /// All but every n-th.
    AllBut(usize),
    /// A letter for each layer of a period. transformers does not read it.
    Letters(String),
}

/// A key that may be absent, null, or have a value.
pub(super) type Given<T> = Option<Option<T>>;

fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(value: D) -> Result<Given<T>, D::Error> {
    Option::deserialize(value).map(Some)
}
