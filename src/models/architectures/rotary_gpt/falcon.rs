//! Falcon in its three forms: attention and the perceptron of a layer read its input through one norm (7B) or one norm each
//! (40B), or follow one another.
//!
//! Almazrouei et al., "The Falcon Series of Open Language Models", 2023.

use serde::Deserialize;

use super::model::{GGUF, NormsOfHeads, QkvForm, RotaryGpt, RotaryGptVariant, STABLELM, TensorNames};
use crate::Result;
use crate::compute::{Heads, LayerAttention, Mask, RopeStyle};
use crate::models::architectures::architecture::Architecture;
use crate::models::architectures::family::{ConfigFields, ConfigFile, keys_of};
use crate::models::architectures::gguf_keys::Metadata;
use crate::models::architectures::rope_scaling::{RopeConfig, RopeDefaults};

/// The keys that are read.
pub(super) const FIELDS: &[ConfigFields] = &[ConfigFields::All(keys_of::<FalconConfig>), RopeConfig::WHOLE];

/// `ffn_hidden_size` counts.
pub(super) const IGNORED: &[&str] = &["ff_factor"];

/// transformers' names.
const NAMES: TensorNames = TensorNames {
    words: "transformer.word_embeddings",
    layers: "transformer.h",
    fused_qkv: "self_attention.query_key_value",
    output: "self_attention.dense",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    final_norm: "transformer.ln_f",
    ..STABLELM
};

/// The same where each block has a norm of its own.
const NAMES_OF_TWO_NORMS: TensorNames =
    TensorNames { attention_norm: "ln_attn", mlp_norm: "ln_mlp", ..NAMES };

/// GGUF files call the perceptron's norm as they call the shared one.
const GGUF_OF_TWO_NORMS: TensorNames =
    TensorNames { attention_norm: "attn_norm_2", mlp_norm: "attn_norm", ..GGUF };

/// What `config.json` says, with transformers' values for keys that are absent.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct FalconConfig {
    vocab_size: usize,
    hidden_size: usize,
    n_embed: Option<usize>,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_kv_heads: Option<usize>,
    num_ln_in_parallel_attn: Option<usize>,
    ffn_hidden_size: Option<usize>,
    layer_norm_epsilon: f32,
    alibi: bool,
    bias: bool,
    multi_query: bool,
    new_decoder_architecture: bool,
    parallel_attn: bool,
    activation: String,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
}

impl Default for FalconConfig {
    fn default() -> Self {
        Self {
            vocab_size: 65_024,
            hidden_size: 4544,
            n_embed: None,
            num_hidden_layers: 32,
            num_attention_heads: 71,
            num_kv_heads: None,
            num_ln_in_parallel_attn: None,
            ffn_hidden_size: None,
            layer_norm_epsilon: 1e-5,
            alibi: false,
            bias: false,
            multi_query: true,
            new_decoder_architecture: false,
            parallel_attn: true,
            activation: "gelu".into(),
            max_position_embeddings: 2048,
            tie_word_embeddings: true,
        }
    }
}

pub(super) fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let (config, rope): (FalconConfig, RopeConfig) = (file.parse()?, file.parse()?);
    let hidden = config.n_embed.unwrap_or(config.hidden_size);
    let wide = config.ffn_hidden_size.unwrap_or(hidden.saturating_mul(4));
    let context = config.max_position_embeddings;
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("hidden_size", hidden),
        ("ffn_hidden_size", wide),
        ("num_hidden_layers", config.num_hidden_layers),
        ("max_position_embeddings", context),
    ])?;
    if config.alibi {
        return Err(file.unsupported(
            "its alibi is true; transformers adds that bias once or twice, depending on its attention, so it is not supported",
        ));
    }
    let heads = config.heads(file, hidden)?;
    let defaults = RopeDefaults {
        head: heads.width,
        context,
        base: 10_000.0,
        part: None,
        style: RopeStyle::Neox,
        odd_parts: false,
    };
    let rotary = rope.rotary(&defaults, None, &[]).map_err(|reason| file.unsupported(reason))?;
    Ok(Box::new(RotaryGpt {
        hidden,
        intermediate: wide,
        layers: config.num_hidden_layers,
        heads,
        vocabulary: config.vocab_size,
        context,
        epsilon: config.layer_norm_epsilon,
        activation: file.activation("activation", &config.activation)?,
        attention: LayerAttention::new(Mask::CAUSAL).with_rotary(rotary),
        variant: config.variant(file, heads)?,
    }))
}

impl FalconConfig {
    fn heads(&self, file: &ConfigFile<'_>, hidden: usize) -> Result<Heads> {
        let mut heads = file.heads(hidden, self.num_attention_heads)?;
        let kv_heads = self.num_kv_heads.unwrap_or(heads.heads);
        if kv_heads == 0 || !heads.heads.is_multiple_of(kv_heads) {
            return Err(file.refuse("num_kv_heads", "a divisor of num_attention_heads"));
        }
        heads.kv_heads = match (self.new_decoder_architecture, self.multi_query) {
            (true, _) => kv_heads,
            (false, true) => 1,
            (false, false) => heads.heads,
        };
        Ok(heads)
    }

    fn variant(&self, file: &ConfigFile<'_>, heads: Heads) -> Result<RotaryGptVariant> {
        let norms = self.num_ln_in_parallel_attn;
        let (names, shared_norm) = match (self.new_decoder_architecture, self.parallel_attn, norms) {
            (true, true, None | Some(2)) => (NAMES_OF_TWO_NORMS, false),
            (true, true, Some(1)) | (false, true, None | Some(1)) => (NAMES, true),
            (false, false, _) => (NAMES, false),
            (true, false, _) => {
                return Err(file.refuse("parallel_attn", "true in the new decoder architecture"));
            }
            (_, true, Some(_)) => {
                return Err(
                    file.refuse("num_ln_in_parallel_attn", "1, and 2 in the new decoder architecture")
                );
            }
        };
        Ok(RotaryGptVariant {
            names,
            // All queries of one head of keys are in order as they are.
            qkv: if heads.kv_heads == 1 { QkvForm::Fused } else { QkvForm::FusedByGroup },
            qkv_bias: self.bias,
            output_bias: self.bias,
            mlp_bias: self.bias,
            head_bias: false,
            gated: false,
            parallel: self.parallel_attn,
            shared_norm,
            head_norms: NormsOfHeads::None,
            tied: self.tie_word_embeddings,
        })
    }
}

/// The names of tensors in a GGUF file.
///
/// # Errors
/// [`Error::Unsupported`](crate::Error::Unsupported) for a Falcon that such files do not describe whole.
pub(super) fn gguf_names(metadata: &Metadata<'_>, heads: Heads) -> Result<TensorNames> {
    let has = |name: &str| metadata.gguf.contains(&format!("blk.0.{name}"));
    // Converters sort the rows of queries, keys and values by part, and note who did so first.
    if let Some(layout) = metadata.text("tensor_data_layout").filter(|layout| *layout != "jploski") {
        return Err(metadata.unsupported(format!(
            "its tensor_data_layout is {layout:?}; supported is \"jploski\": choose another file of the model"
        )));
    }
    if has("ffn_norm.weight") || has("attn_qkv.bias") {
        return Err(metadata.unsupported(
            "its blocks follow one another, as in Falcon RW, whose alibi is not supported; choose another model",
        ));
    }
    if has("attn_norm_2.weight") {
        return Ok(GGUF_OF_TWO_NORMS);
    }
    if heads.kv_heads > 1 && metadata.float("rope.freq_base").is_none() {
        return Err(metadata.unsupported(
            "it has no falcon.rope.freq_base: converters do not write that of Falcon 2, which is not the default; use the \
             model's folder with config.json",
        ));
    }
    Ok(GGUF)
}

#[cfg(test)]
#[path = "falcon_tests.rs"]
mod tests;
