//! DeBERTa-v2 and -v3: a post-norm encoder whose attention compares contents with contents, contents with relative positions,
//! and relative positions with contents.
//!
//! He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", 2020; "DeBERTaV3", 2021.

mod model;
mod relative;

use serde::Deserialize;
use serde_json::Value;

use self::model::{Conv, DebertaLayer, DebertaModel, split};
use self::relative::Relative;
use super::describe::{CandleArchitecture, EncoderModel};
use super::loader::TensorLoader;
use super::ops::{CandleLinear, IDENTITY, Ops, failed};
use crate::Result;
use crate::compute::{Activation, Heads, LayerAttention, Mask, Positions};
use crate::models::architectures::architecture::{Architecture, Description, Factors};
use crate::models::architectures::family::{ComputeEngine, ConfigFile, Family, LARGEST_SIZE};
use crate::models::architectures::tensors::{EmbeddingTensors, PrefixedTensors, Tensors};
use crate::models::heads::layout::{self, HeadActivation};
use candle_core::Tensor;

/// DeBERTa-v2 and -v3, which have one `model_type`.
pub(super) const FAMILY: Family = Family {
    generates: false,
    classifier: Some(&layout::DEBERTA),
    engine: ComputeEngine::Candle,
    ..Family::new("deberta-v2", "DebertaV2", KEYS, read)
};

const KEYS: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "embedding_size",
    "num_hidden_layers",
    "num_attention_heads",
    "attention_head_size",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_act",
    "layer_norm_eps",
    "relative_attention",
    "max_relative_positions",
    "position_buckets",
    "position_biased_input",
    "pos_att_type",
    "share_att_key",
    "norm_rel_ebd",
    "conv_kernel_size",
    "conv_groups",
    "conv_act",
    // Of the head of classifiers.
    "pooler_hidden_act",
    "pooler_hidden_size",
    // Of the head of masked language models, which is not used.
    "legacy",
    "tie_word_embeddings",
];

/// What `config.json` says, with transformers' values for keys that are absent.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct DebertaConfig {
    vocab_size: usize,
    hidden_size: usize,
    embedding_size: Option<usize>,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    attention_head_size: Option<usize>,
    intermediate_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    hidden_act: String,
    layer_norm_eps: f32,
    relative_attention: bool,
    max_relative_positions: i64,
    position_buckets: i64,
    position_biased_input: bool,
    share_att_key: bool,
    norm_rel_ebd: String,
    conv_kernel_size: usize,
    conv_groups: usize,
    conv_act: String,
    pooler_hidden_size: Option<usize>,
}

impl Default for DebertaConfig {
    fn default() -> Self {
        Self {
            vocab_size: 128_100,
            hidden_size: 1536,
            embedding_size: None,
            num_hidden_layers: 24,
            num_attention_heads: 24,
            attention_head_size: None,
            intermediate_size: 6144,
            max_position_embeddings: 512,
            type_vocab_size: 0,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-7,
            relative_attention: false,
            max_relative_positions: -1,
            position_buckets: -1,
            position_biased_input: true,
            share_att_key: false,
            norm_rel_ebd: "none".into(),
            conv_kernel_size: 0,
            conv_groups: 1,
            conv_act: "tanh".into(),
            pooler_hidden_size: None,
        }
    }
}

/// A DeBERTa whose configuration was checked.
#[derive(Debug)]
struct Deberta {
    config: DebertaConfig,
    heads: Heads,
    activation: Activation,
    relative: Option<Relative>,
    /// Whether queries are compared with positions, and positions with keys.
    compared: [bool; 2],
    conv: Option<HeadActivation>,
}

fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: DebertaConfig = file.parse()?;
    file.check_sizes(&[
        config.vocab_size,
        config.hidden_size,
        config.embedding_size.unwrap_or(config.hidden_size),
        config.num_hidden_layers,
        config.intermediate_size,
        config.max_position_embeddings,
        config.type_vocab_size.saturating_add(1),
        config.conv_groups,
    ])?;
    let heads = file.heads(config.hidden_size, config.num_attention_heads)?;
    if config.attention_head_size.is_some_and(|width| width != heads.width) {
        return Err(file.refuse("attention_head_size", "hidden_size / num_attention_heads"));
    }
    if config.pooler_hidden_size.is_some_and(|width| width != config.hidden_size) {
        return Err(file.refuse("pooler_hidden_size", "hidden_size"));
    }
    let activation = file.activation("hidden_act", &config.hidden_act)?;
    let compared = compared(file)?;
    let relative = if config.relative_attention { Some(relative(file, &config)?) } else { None };
    let conv = match config.conv_kernel_size {
        0 => None,
        size if size.is_multiple_of(2) || size > config.max_position_embeddings => {
            return Err(file.refuse("conv_kernel_size", "an odd number up to max_position_embeddings"));
        }
        _ if !config.hidden_size.is_multiple_of(config.conv_groups) => {
            return Err(file.refuse("conv_groups", "a divisor of hidden_size"));
        }
        _ => Some(
            HeadActivation::from_name(&config.conv_act)
                .ok_or_else(|| file.refuse("conv_act", "tanh, gelu, relu, silu and linear"))?,
        ),
    };
    Ok(Box::new(Deberta { config, heads, activation, relative, compared, conv }))
}

/// Which comparisons `pos_att_type` names: `c2p`, `p2c`.
fn compared(file: &ConfigFile<'_>) -> Result<[bool; 2]> {
    let names: Vec<String> = match &file.json["pos_att_type"] {
        Value::Null => Vec::new(),
        Value::String(names) => names.split('|').map(|name| name.trim().to_lowercase()).collect(),
        Value::Array(names) => {
            names.iter().map(|name| name.as_str().unwrap_or_default().to_owned()).collect()
        }
        _ => vec![String::new()],
    };
    let mut compared = [false; 2];
    for name in names {
        match name.as_str() {
            "c2p" => compared[0] = true,
            "p2c" => compared[1] = true,
            _ => return Err(file.refuse("pos_att_type", "c2p, p2c and both")),
        }
    }
    Ok(compared)
}

fn relative(file: &ConfigFile<'_>, config: &DebertaConfig) -> Result<Relative> {
    let size = |number: i64| usize::try_from(number).ok().filter(|&number| number > 0);
    let farthest = size(config.max_relative_positions).unwrap_or(config.max_position_embeddings);
    let buckets = size(config.position_buckets);
    let span = buckets.unwrap_or(farthest);
    if farthest > LARGEST_SIZE || span > LARGEST_SIZE {
        return Err(file.unsupported(format!("it has more than {LARGEST_SIZE} relative positions")));
    }
    if buckets.is_some_and(|buckets| buckets < 4 || farthest - 1 <= buckets / 2) {
        return Err(file.refuse("position_buckets", "4 to twice the relative positions"));
    }
    let normed =
        match config.norm_rel_ebd.split('|').map(|name| name.trim().to_lowercase()).collect::<Vec<_>>() {
            names if names.iter().any(|name| !["none", "layer_norm", ""].contains(&name.as_str())) => {
                return Err(file.refuse("norm_rel_ebd", "none and layer_norm"));
            }
            names => names.iter().any(|name| name == "layer_norm"),
        };
    Ok(Relative { span, buckets, farthest, normed })
}

const WORDS: &str = "embeddings.word_embeddings.weight";
const PREFIXES: &[&str] = &["", "deberta."];

impl Architecture for Deberta {
    fn describe(&self) -> Description {
        Description {
            hidden: self.config.hidden_size,
            layers: self.config.num_hidden_layers,
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
        let width = self.config.embedding_size.unwrap_or(self.config.hidden_size);
        let scope = PrefixedTensors::new(tensors, WORDS, PREFIXES);
        scope.matrix(WORDS, [self.config.vocab_size, width]).map(EmbeddingTensors::new)
    }

    fn candle(&self) -> Option<&dyn CandleArchitecture> {
        Some(self)
    }
}

impl CandleArchitecture for Deberta {
    fn encoder(&self, loader: &mut TensorLoader<'_>) -> Result<Box<dyn EncoderModel>> {
        let config = &self.config;
        let (hidden, epsilon) = (config.hidden_size, config.layer_norm_eps);
        let narrow = config.embedding_size.unwrap_or(hidden);
        loader.scoped(WORDS, PREFIXES);
        let loader = &*loader;
        let ops = Ops::new(loader.device());
        let table =
            |name: &str, rows: usize| loader.tensor(&format!("embeddings.{name}.weight"), &[rows, narrow]);
        let positions = match config.position_biased_input {
            true => Some(table("position_embeddings", config.max_position_embeddings)?),
            false => None,
        };
        let token_types = match config.type_vocab_size {
            0 => None,
            types => Some(table("token_type_embeddings", types)?),
        };
        let projection = match narrow == hidden {
            true => None,
            false => Some(loader.linear("embeddings.embed_proj", [hidden, narrow], false)?),
        };
        let places = self.relative.map(|relative| self.places(loader, &ops, relative)).transpose()?;
        let layers =
            (0..config.num_hidden_layers).map(|index| self.layer(loader, &ops, index, places.as_ref()));
        Ok(Box::new(DebertaModel {
            words: table("word_embeddings", config.vocab_size)?,
            positions,
            token_types,
            projection,
            norm: loader.layer_norm("embeddings.LayerNorm", hidden, epsilon)?,
            layers: layers.collect::<Result<_>>()?,
            conv: self.conv.map(|function| self.conv(loader, function)).transpose()?,
            heads: self.heads,
            activation: self.activation,
            relative: self.relative,
            scale: 1.0
                / ((self.heads.width * (1 + self.compared.iter().filter(|&&on| on).count())) as f32).sqrt(),
        }))
    }
}

impl Deberta {
    /// The table of relative positions, normalized if it is to be.
    fn places(&self, loader: &TensorLoader<'_>, ops: &Ops, relative: Relative) -> Result<Tensor> {
        let hidden = self.config.hidden_size;
        // It is not counted: each layer keeps what it makes of it.
        let table = loader.passing("encoder.rel_embeddings.weight", &[2 * relative.span, hidden])?;
        match relative.normed {
            true => {
                let norm = loader.layer_norm("encoder.LayerNorm", hidden, self.config.layer_norm_eps)?;
                ops.norm(&table, &norm)
            }
            false => Ok(table),
        }
    }

    fn layer(
        &self,
        loader: &TensorLoader<'_>,
        ops: &Ops,
        index: usize,
        places: Option<&Tensor>,
    ) -> Result<DebertaLayer> {
        let DebertaConfig { hidden_size: hidden, intermediate_size: wide, layer_norm_eps, .. } = self.config;
        let name = |name: &str| format!("encoder.layer.{index}.{name}");
        let linear = |part: &str, shape| loader.linear(&name(part), shape, true);
        let attention = |part: &str| linear(&format!("attention.self.{part}"), [hidden, hidden]);
        let norm = |part: &str| loader.layer_norm(&name(part), hidden, layer_norm_eps);
        let (query, key) = (attention("query_proj")?, attention("key_proj")?);
        // What a layer makes of the table is always the same.
        let of_places = |on: bool, own: &str, shared: &CandleLinear| -> Result<Option<Tensor>> {
            let Some(places) = places.filter(|_| on) else { return Ok(None) };
            let made = match self.config.share_att_key {
                true => ops.linear(places, shared, IDENTITY)?,
                false => {
                    let name = name(&format!("attention.self.{own}"));
                    ops.linear(places, &loader.passing_linear(&name, [hidden, hidden])?, IDENTITY)?
                }
            };
            let made = split(&made, self.heads).map_err(failed)?;
            loader.count(&made);
            Ok(Some(made))
        };
        Ok(DebertaLayer {
            place_keys: of_places(self.compared[0], "pos_key_proj", &key)?,
            place_queries: of_places(self.compared[1], "pos_query_proj", &query)?,
            query,
            key,
            value: attention("value_proj")?,
            output: linear("attention.output.dense", [hidden, hidden])?,
            attention_norm: norm("attention.output.LayerNorm")?,
            up: linear("intermediate.dense", [wide, hidden])?,
            down: linear("output.dense", [hidden, wide])?,
            mlp_norm: norm("output.LayerNorm")?,
        })
    }

    /// The convolution of the first layer's input, as a product with the rows of neighbors side by side.
    fn conv(&self, loader: &TensorLoader<'_>, function: HeadActivation) -> Result<Conv> {
        let (hidden, size, groups) =
            (self.config.hidden_size, self.config.conv_kernel_size, self.config.conv_groups);
        let (each, name) = (hidden / groups, "encoder.conv.conv");
        let weight = loader.passing(&format!("{name}.weight"), &[hidden, each, size])?;
        let bias = loader.values(&format!("{name}.bias"), &[hidden])?;
        let group = |index: usize| {
            let rows = weight.narrow(0, index * each, each).map_err(failed)?;
            let rows = rows.transpose(1, 2).and_then(|rows| rows.contiguous());
            let rows = rows.and_then(|rows| rows.reshape((each, size * each))).map_err(failed)?;
            loader.count(&rows);
            CandleLinear::new(rows, Some(bias[index * each..(index + 1) * each].to_vec()))
        };
        Ok(Conv {
            groups: (0..groups).map(group).collect::<Result<_>>()?,
            size,
            function,
            norm: loader.layer_norm("encoder.conv.LayerNorm", hidden, self.config.layer_norm_eps)?,
        })
    }
}
