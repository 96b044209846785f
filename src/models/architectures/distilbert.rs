//! DistilBERT: a BERT without token types, with names of its own.
//!
//! Sanh et al., "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", 2019.

use serde::Deserialize;

use super::architecture::{Architecture, Description, Factors};
use super::family::{ConfigFields, ConfigFile, Family, keys_of};
use super::tensors::{BERT_WORDS, EmbeddingTensors, LayerTensors, PostNormNames, PrefixedTensors, Tensors};
use crate::Result;
use crate::compute::{Activation, Heads, LayerAttention, Mask, Positions};
use crate::models::heads::layout;

/// DistilBERT.
pub(super) const FAMILIES: &[Family] = &[Family {
    generates: false,
    classifier: Some(&layout::DISTILBERT),
    masked_lm: Some(&layout::MASKED_DISTILBERT),
    fields: &[ConfigFields::All(keys_of::<DistilBertConfig>)],
    ..Family::new("distilbert", "DistilBert", IGNORED, read)
}];

/// Keys that change nothing.
const IGNORED: &[&str] = &[
    // How the table of positions was made, which the file has.
    "sinusoidal_pos_embds",
    // There is no head whose weights could be shared.
    "tie_weights_",
    "tie_word_embeddings",
];

/// What `config.json` says of a DistilBERT.
#[derive(Debug, Clone, Deserialize)]
struct DistilBertConfig {
    vocab_size: usize,
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    activation: String,
}

fn gelu() -> String {
    "gelu".into()
}

/// A DistilBERT whose configuration was checked.
#[derive(Debug)]
struct DistilBert {
    config: DistilBertConfig,
    heads: Heads,
    activation: Activation,
}

fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: DistilBertConfig = file.parse()?;
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("dim", config.dim),
        ("n_layers", config.n_layers),
        ("hidden_dim", config.hidden_dim),
        ("max_position_embeddings", config.max_position_embeddings),
    ])?;
    let heads = file.heads(config.dim, config.n_heads)?;
    let activation = file.activation("activation", &config.activation)?;
    Ok(Box::new(DistilBert { config, heads, activation }))
}

/// Of the layer normalizations; no key sets it.
const EPSILON: f32 = 1e-12;

/// What the names of tensors begin with in some files.
const PREFIXES: &[&str] = &["", "distilbert."];

/// The names of a layer's parts.
const LAYER: PostNormNames = PostNormNames {
    attention: ["q_lin", "k_lin", "v_lin", "out_lin"],
    mlp: ["ffn.lin1", "ffn.lin2"],
    norms: ["sa_layer_norm", "output_layer_norm"],
};

impl Architecture for DistilBert {
    fn describe(&self) -> Description {
        Description {
            hidden: self.config.dim,
            layers: self.config.n_layers,
            heads: self.heads,
            attention: vec![LayerAttention::new(Mask::FULL)],
            vocabulary: self.config.vocab_size,
            context: self.config.max_position_embeddings,
            activation: self.activation,
            norm_first: false,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let DistilBertConfig { vocab_size, dim, max_position_embeddings, .. } = self.config;
        let scope = PrefixedTensors::of_bert(tensors, PREFIXES);
        let words = scope.matrix(BERT_WORDS, [vocab_size, dim])?;
        let positions =
            scope.matrix("embeddings.position_embeddings.weight", [max_position_embeddings, dim])?;
        let norm = scope.layer_norm("embeddings.LayerNorm", dim, EPSILON)?;
        Ok(EmbeddingTensors { positions: Some(positions), norm: Some(norm), ..EmbeddingTensors::new(words) })
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let (layer, sizes) =
            (format!("transformer.layer.{index}"), [self.config.dim, self.config.hidden_dim]);
        PrefixedTensors::of_bert(tensors, PREFIXES).post_norm_layer(&layer, &LAYER, sizes, EPSILON)
    }
}
