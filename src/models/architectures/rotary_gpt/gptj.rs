//! GPT-J: both blocks of a layer read its input through one norm, neighbors of the first values of each head are rotated
//! together, and the perceptron and the logits alone have biases.
//!
//! Wang and Komatsuzaki, "GPT-J-6B: A 6 Billion Parameter Autoregressive Language Model", 2021.

use serde::Deserialize;

use super::model::{NormsOfHeads, QkvForm, RotaryGpt, RotaryGptVariant, STABLELM, TensorNames};
use crate::Result;
use crate::compute::{LayerAttention, Mask, RopeStyle, Rotary};
use crate::models::architectures::architecture::Architecture;
use crate::models::architectures::family::{ConfigFields, ConfigFile, keys_of};

/// The keys that are read.
pub(super) const FIELDS: &[ConfigFields] = &[ConfigFields::All(keys_of::<GptJConfig>)];

/// transformers' names.
const NAMES: TensorNames = TensorNames {
    words: "transformer.wte",
    layers: "transformer.h",
    attention_norm: "ln_1",
    qkv: ["attn.q_proj", "attn.k_proj", "attn.v_proj"],
    output: "attn.out_proj",
    up: "mlp.fc_in",
    down: "mlp.fc_out",
    final_norm: "transformer.ln_f",
    ..STABLELM
};

/// What `config.json` says, with transformers' values for keys that are absent.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct GptJConfig {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    /// Values of a head that are rotated; transformers refuses null.
    rotary_dim: Option<usize>,
    activation_function: String,
    layer_norm_epsilon: f32,
    tie_word_embeddings: bool,
    // What the published files say of the code that trained them.
    rotary: bool,
    scale_attn_weights: bool,
    is_causal: bool,
}

impl Default for GptJConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50_400,
            n_positions: 2048,
            n_embd: 4096,
            n_layer: 28,
            n_head: 16,
            n_inner: None,
            rotary_dim: Some(64),
            activation_function: "gelu_new".into(),
            layer_norm_epsilon: 1e-5,
            tie_word_embeddings: false,
            rotary: true,
            scale_attn_weights: true,
            is_causal: true,
        }
    }
}

pub(super) fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: GptJConfig = file.parse()?;
    let (hidden, context) = (config.n_embd, config.n_positions);
    let wide = config.n_inner.unwrap_or(hidden.saturating_mul(4));
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("n_positions", context),
        ("n_embd", hidden),
        ("n_layer", config.n_layer),
        ("n_inner", wide),
    ])?;
    for (key, set) in [
        ("rotary", config.rotary),
        ("scale_attn_weights", config.scale_attn_weights),
        ("is_causal", config.is_causal),
    ] {
        if !set {
            return Err(file.refuse(key, "true"));
        }
    }
    let heads = file.heads(hidden, config.n_head)?;
    let fits = |rotated: &usize| *rotated > 0 && *rotated <= heads.width && rotated.is_multiple_of(2);
    let Some(rotated) = config.rotary_dim.filter(fits) else {
        let most = format!("an even number from 2 to {}, the width of a head", heads.width);
        return Err(match file.json.get("rotary_dim") {
            Some(_) => file.refuse("rotary_dim", &most),
            None => file.unsupported(format!("it has no rotary_dim, and the default, 64, is not {most}")),
        });
    };
    let rotary = Rotary::new(10_000.0, rotated, RopeStyle::Interleaved);
    Ok(Box::new(RotaryGpt {
        hidden,
        intermediate: wide,
        layers: config.n_layer,
        heads,
        vocabulary: config.vocab_size,
        context,
        epsilon: config.layer_norm_epsilon,
        activation: file.activation("activation_function", &config.activation_function)?,
        attention: LayerAttention::new(Mask::CAUSAL).with_rotary(rotary),
        variant: RotaryGptVariant {
            names: NAMES,
            qkv: QkvForm::Separate,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: true,
            head_bias: true,
            gated: false,
            parallel: true,
            shared_norm: true,
            head_norms: NormsOfHeads::None,
            tied: config.tie_word_embeddings,
        },
    }))
}

#[cfg(test)]
#[path = "gptj_tests.rs"]
mod tests;
