//! MPNet: a BERT with learned positions and, in attention, a bias by distance that all layers share.
//!
//! Song et al., "MPNet: Masked and Permuted Pre-training for Language Understanding", 2020.

use serde::Deserialize;

use super::architecture::{Architecture, Description, Factors};
use super::family::{ConfigFields, ConfigFile, Family, keys_of};
use super::tensors::{BERT_WORDS, EmbeddingTensors, LayerTensors, PostNormNames, PrefixedTensors, Tensors};
use crate::Result;
use crate::compute::{Activation, DistanceBias, Heads, LayerAttention, Mask, Positions};
use crate::models::heads::layout;

/// MPNet.
pub(super) const FAMILIES: &[Family] = &[Family {
    generates: false,
    classifier: Some(&layout::ROBERTA),
    fields: &[ConfigFields::All(keys_of::<MpnetConfig>)],
    // There is no head whose weights could be shared.
    ..Family::new("mpnet", "MPNet", &["tie_word_embeddings"], read)
}];

/// What `config.json` says of an MPNet.
#[derive(Debug, Clone, Deserialize)]
struct MpnetConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    #[serde(default = "buckets")]
    relative_attention_num_buckets: usize,
}

fn gelu() -> String {
    "gelu".into()
}

fn epsilon() -> f32 {
    1e-12
}

fn buckets() -> usize {
    BUCKETS
}

/// Buckets of distances: half of them for keys before the query, half for those after it. transformers computes with so
/// many whatever the file says.
const BUCKETS: usize = 32;

/// The distance from which on all keys are in the last bucket.
const FARTHEST: f32 = 128.0;

/// The padding id, from which positions count.
const PADDING: u32 = 1;

/// An MPNet whose configuration was checked.
#[derive(Debug)]
struct Mpnet {
    config: MpnetConfig,
    heads: Heads,
    activation: Activation,
}

fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: MpnetConfig = file.parse()?;
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("intermediate_size", config.intermediate_size),
        ("max_position_embeddings", config.max_position_embeddings),
    ])?;
    if config.relative_attention_num_buckets != BUCKETS {
        return Err(file.refuse("relative_attention_num_buckets", "32"));
    }
    file.check_biased_length(config.max_position_embeddings)?;
    let heads = file.heads(config.hidden_size, config.num_attention_heads)?;
    let activation = file.activation("hidden_act", &config.hidden_act)?;
    Ok(Box::new(Mpnet { config, heads, activation }))
}

/// The bucket of a key at this distance from its query: one for each distance up to 7, then wider ones.
fn bucket(distance: isize) -> usize {
    const EACH: usize = BUCKETS / 2;
    const EXACT: usize = EACH / 2;
    let (side, distance) = (if distance > 0 { EACH } else { 0 }, distance.unsigned_abs());
    if distance < EXACT {
        return side + distance;
    }
    let octaves = (distance as f32 / EXACT as f32).ln() / (FARTHEST / EXACT as f32).ln();
    side + (EXACT + (octaves * (EACH - EXACT) as f32) as usize).min(EACH - 1)
}

impl Mpnet {
    fn context(&self) -> usize {
        self.config.max_position_embeddings.saturating_sub(PADDING as usize + 1)
    }
}

/// What the names of tensors begin with in some files.
const PREFIXES: &[&str] = &["", "mpnet."];

/// The names of a layer's parts.
const LAYER: PostNormNames = PostNormNames {
    attention: ["attn.q", "attn.k", "attn.v", "attn.o"],
    mlp: ["intermediate.dense", "output.dense"],
    norms: ["attention.LayerNorm", "output.LayerNorm"],
};

impl Architecture for Mpnet {
    fn describe(&self) -> Description {
        Description {
            hidden: self.config.hidden_size,
            layers: self.config.num_hidden_layers,
            heads: self.heads,
            attention: vec![LayerAttention::new(Mask::FULL)],
            vocabulary: self.config.vocab_size,
            context: self.context(),
            activation: self.activation,
            norm_first: false,
            positions: Positions::AfterPadding(PADDING),
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let MpnetConfig { vocab_size, hidden_size, max_position_embeddings, .. } = self.config;
        let scope = PrefixedTensors::of_bert(tensors, PREFIXES);
        let words = scope.matrix(BERT_WORDS, [vocab_size, hidden_size])?;
        let positions = [max_position_embeddings, hidden_size];
        let norm = scope.layer_norm("embeddings.LayerNorm", hidden_size, self.config.layer_norm_eps)?;
        Ok(EmbeddingTensors {
            positions: Some(scope.matrix("embeddings.position_embeddings.weight", positions)?),
            norm: Some(norm),
            ..EmbeddingTensors::new(words)
        })
    }

    fn distance_bias(&self, tensors: &dyn Tensors) -> Result<Option<DistanceBias>> {
        let (heads, name) = (self.heads.heads, "encoder.relative_attention_bias.weight");
        let table = PrefixedTensors::of_bert(tensors, PREFIXES).matrix(name, [BUCKETS, heads])?.to_f32()?;
        let bias = |head, distance| table[bucket(distance) * heads + head];
        DistanceBias::new(heads, self.context(), bias).map(Some)
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let MpnetConfig { hidden_size, intermediate_size, layer_norm_eps, .. } = self.config;
        let (layer, sizes) = (format!("encoder.layer.{index}"), [hidden_size, intermediate_size]);
        PrefixedTensors::of_bert(tensors, PREFIXES).post_norm_layer(&layer, &LAYER, sizes, layer_norm_eps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_transformers() {
        // MPNetEncoder.relative_position_bucket: the first distance of each bucket.
        let first = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
        for distance in 0..600_usize {
            let expected = first.iter().rposition(|&first| first <= distance).unwrap();
            assert_eq!(bucket(-(distance as isize)), expected, "{distance}");
            assert_eq!(bucket(distance as isize), expected + if distance > 0 { 16 } else { 0 }, "{distance}");
        }
    }
}
