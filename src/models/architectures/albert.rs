//! ALBERT: a BERT whose layers share their weights and whose embeddings are narrower than its states.
//!
//! Lan et al., "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations", 2019.

use serde::Deserialize;

use super::architecture::{Architecture, Description, Factors};
use super::family::{ConfigFields, ConfigFile, Family, keys_of};
use super::tensors::{EmbeddingTensors, LayerTensors, PostNormNames, PrefixedTensors, Tensors};
use crate::Result;
use crate::compute::{Activation, Heads, LayerAttention, Mask, Positions};
use crate::models::heads::layout;

/// ALBERT.
pub(super) const FAMILIES: &[Family] = &[Family {
    generates: false,
    classifier: Some(&layout::ALBERT),
    fields: &[ConfigFields::All(keys_of::<AlbertConfig>)],
    ..Family::new("albert", "Albert", IGNORED, read)
}];

/// Keys that change nothing.
const IGNORED: &[&str] = &[
    // There is no head whose weights could be shared.
    "tie_word_embeddings",
    // Keys of the first release, which transformers reads nowhere.
    "down_scale_factor",
    "gap_size",
    "net_structure_type",
    "num_memory_blocks",
];

/// What `config.json` says of an ALBERT.
#[derive(Debug, Clone, Deserialize)]
struct AlbertConfig {
    vocab_size: usize,
    embedding_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    #[serde(default = "one")]
    num_hidden_groups: usize,
    #[serde(default = "one")]
    inner_group_num: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "gelu_new")]
    hidden_act: String,
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    position_embedding_type: Option<String>,
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn gelu_new() -> String {
    "gelu_new".into()
}

fn epsilon() -> f32 {
    1e-12
}

/// An ALBERT whose configuration was checked.
#[derive(Debug)]
struct Albert {
    config: AlbertConfig,
    heads: Heads,
    activation: Activation,
}

fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: AlbertConfig = file.parse()?;
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("embedding_size", config.embedding_size),
        ("hidden_size", config.hidden_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("num_hidden_groups", config.num_hidden_groups),
        ("inner_group_num", config.inner_group_num),
        ("intermediate_size", config.intermediate_size),
        ("max_position_embeddings", config.max_position_embeddings),
        ("type_vocab_size", config.type_vocab_size),
    ])?;
    file.check_sizes(&[(
        "inner_group_num",
        config.num_hidden_layers.saturating_mul(config.inner_group_num),
    )])?;
    if config.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute") {
        return Err(file.refuse("position_embedding_type", "absolute"));
    }
    let heads = file.heads(config.hidden_size, config.num_attention_heads)?;
    let activation = file.activation("hidden_act", &config.hidden_act)?;
    Ok(Box::new(Albert { config, heads, activation }))
}

impl Albert {
    /// The group of layer `index`, and its number in the group.
    fn place(&self, index: usize) -> (usize, usize) {
        let AlbertConfig { inner_group_num, num_hidden_groups, num_hidden_layers, .. } = self.config;
        (index / inner_group_num * num_hidden_groups / num_hidden_layers, index % inner_group_num)
    }
}

/// What the names of tensors begin with in some files.
const PREFIXES: &[&str] = &["", "albert."];

/// The names of a layer's parts.
const LAYER: PostNormNames = PostNormNames {
    attention: ["query", "key", "value", "dense"],
    mlp: ["ffn", "ffn_output"],
    norms: ["attention.LayerNorm", "full_layer_layer_norm"],
};

impl Architecture for Albert {
    fn describe(&self) -> Description {
        Description {
            hidden: self.config.hidden_size,
            // Each of the layers is a group of inner ones.
            layers: self.config.num_hidden_layers * self.config.inner_group_num,
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
        let (config, scope) = (&self.config, PrefixedTensors::of_bert(tensors, PREFIXES));
        let width = config.embedding_size;
        let table = |name: &str, rows| scope.matrix(&format!("embeddings.{name}.weight"), [rows, width]);
        let projection = [config.hidden_size, width];
        Ok(EmbeddingTensors {
            words: table("word_embeddings", config.vocab_size)?,
            positions: Some(table("position_embeddings", config.max_position_embeddings)?),
            token_types: Some(table("token_type_embeddings", config.type_vocab_size)?),
            norm: Some(scope.layer_norm("embeddings.LayerNorm", width, config.layer_norm_eps)?),
            projection: Some(scope.linear("encoder.embedding_hidden_mapping_in", projection)?),
            projection_norm: None,
        })
    }

    fn same_as(&self, index: usize) -> usize {
        (0..index).find(|&earlier| self.place(earlier) == self.place(index)).unwrap_or(index)
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let AlbertConfig { hidden_size, intermediate_size, layer_norm_eps, .. } = self.config;
        let (group, inner) = self.place(index);
        let layer = format!("encoder.albert_layer_groups.{group}.albert_layers.{inner}");
        let sizes = [hidden_size, intermediate_size];
        PrefixedTensors::of_bert(tensors, PREFIXES).post_norm_layer(&layer, &LAYER, sizes, layer_norm_eps)
    }
}
