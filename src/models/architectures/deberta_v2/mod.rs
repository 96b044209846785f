//! DeBERTa-v2 and -v3: a post-norm encoder whose attention compares contents with contents, contents with relative positions,
//! and relative positions with contents. In v2 a convolution of the embeddings is added to the first layer's states.
//!
//! He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", 2020; "DeBERTaV3", 2021.

mod buckets;

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use self::buckets::Buckets;
use super::architecture::{Architecture, Description, Factors};
use super::family::{ConfigFields, ConfigFile, Family, LARGEST_SIZE, keys_of};
use super::tensors::{
    BERT_WORDS, ConvolutionTensors, EmbeddingTensors, LayerTensors, NormTensors, PostNormNames,
    PrefixedTensors, Tensors,
};
use crate::Result;
use crate::compute::memory::zeroed;
use crate::compute::{
    Activation, DistanceRows, Heads, LayerAttention, Mask, Positions, RelativeLayers, RelativeTable, Weight,
};
use crate::models::heads::layout;

/// DeBERTa-v2 and -v3, which have one `model_type`.
pub(super) const FAMILIES: &[Family] = &[Family {
    generates: false,
    classifier: Some(&layout::DEBERTA),
    fields: &[ConfigFields::All(keys_of::<DebertaConfig>)],
    ..Family::new("deberta-v2", "DebertaV2", OTHERS, read)
}];

/// Keys that change no state.
const OTHERS: &[&str] = &[
    // The head of classifiers reads it.
    "pooler_hidden_act",
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
    /// A list, or names with `|` between them.
    pos_att_type: Value,
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
            pos_att_type: Value::Null,
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
    relative: Option<Buckets>,
    /// Whether queries are compared with positions, and positions with keys.
    compared: [bool; 2],
    /// Of the convolution, if there is one.
    conv: Option<Activation>,
}

fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: DebertaConfig = file.parse()?;
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("embedding_size", config.embedding_size.unwrap_or(config.hidden_size)),
        ("num_hidden_layers", config.num_hidden_layers),
        ("intermediate_size", config.intermediate_size),
        ("max_position_embeddings", config.max_position_embeddings),
        ("type_vocab_size", config.type_vocab_size.max(1)),
        ("conv_groups", config.conv_groups),
    ])?;
    let heads = file.heads(config.hidden_size, config.num_attention_heads)?;
    if config.attention_head_size.is_some_and(|width| width != heads.width) {
        return Err(file.refuse("attention_head_size", "hidden_size / num_attention_heads"));
    }
    if config.pooler_hidden_size.is_some_and(|width| width != config.hidden_size) {
        return Err(file.refuse("pooler_hidden_size", "hidden_size"));
    }
    let activation = file.activation("hidden_act", &config.hidden_act)?;
    let compared = compared(file, &config.pos_att_type)?;
    let relative = if config.relative_attention { Some(relative(file, &config)?) } else { None };
    let conv = match config.conv_kernel_size {
        0 => None,
        size if size.is_multiple_of(2) || size > config.max_position_embeddings => {
            return Err(file.refuse("conv_kernel_size", "an odd number up to max_position_embeddings"));
        }
        _ if !config.hidden_size.is_multiple_of(config.conv_groups) => {
            return Err(file.refuse("conv_groups", "a divisor of hidden_size"));
        }
        _ => Some(match config.conv_act.as_str() {
            "tanh" => Activation::Tanh,
            "linear" => Activation::Identity,
            name => file.activation("conv_act", name)?,
        }),
    };
    Ok(Box::new(Deberta { config, heads, activation, relative, compared, conv }))
}

/// Which comparisons `pos_att_type` names: `c2p`, `p2c`.
fn compared(file: &ConfigFile<'_>, pos_att_type: &Value) -> Result<[bool; 2]> {
    let names: Vec<String> = match pos_att_type {
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

fn relative(file: &ConfigFile<'_>, config: &DebertaConfig) -> Result<Buckets> {
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
    file.check_biased_length(config.max_position_embeddings)?;
    Ok(Buckets { span, buckets, farthest, normed })
}

/// What the names of tensors begin with in some files.
const PREFIXES: &[&str] = &["", "deberta."];

impl Deberta {
    /// Numbers of an embedding.
    fn narrow(&self) -> usize {
        self.config.embedding_size.unwrap_or(self.config.hidden_size)
    }

    fn norm(&self, scope: &PrefixedTensors<'_>, name: &str) -> Result<NormTensors> {
        scope.layer_norm(name, self.config.hidden_size, self.config.layer_norm_eps)
    }
}

/// The names of a layer's parts.
const LAYER: PostNormNames = PostNormNames {
    attention: ["self.query_proj", "self.key_proj", "self.value_proj", "output.dense"],
    mlp: ["intermediate.dense", "output.dense"],
    norms: ["attention.output.LayerNorm", "output.LayerNorm"],
};

impl Architecture for Deberta {
    fn describe(&self) -> Description {
        let products = 1 + self.compared.iter().filter(|&&on| on).count();
        let scale = 1.0 / ((self.heads.width * products) as f32).sqrt();
        Description {
            hidden: self.config.hidden_size,
            layers: self.config.num_hidden_layers,
            heads: self.heads,
            attention: vec![LayerAttention { scale: Some(scale), ..LayerAttention::new(Mask::FULL) }],
            vocabulary: self.config.vocab_size,
            context: self.config.max_position_embeddings,
            activation: self.activation,
            norm_first: false,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let (scope, config, narrow) =
            (PrefixedTensors::of_bert(tensors, PREFIXES), &self.config, self.narrow());
        let table = |name: &str, rows| scope.matrix(&format!("embeddings.{name}.weight"), [rows, narrow]);
        let positions = config
            .position_biased_input
            .then(|| table("position_embeddings", config.max_position_embeddings));
        let types = config.type_vocab_size;
        let token_types = (types > 0).then(|| table("token_type_embeddings", types));
        let projection = (narrow != config.hidden_size)
            .then(|| scope.maybe_biased("embeddings.embed_proj", [config.hidden_size, narrow], false));
        Ok(EmbeddingTensors {
            positions: positions.transpose()?,
            token_types: token_types.transpose()?,
            projection: projection.transpose()?,
            projection_norm: Some(self.norm(&scope, "embeddings.LayerNorm")?),
            ..EmbeddingTensors::new(scope.matrix(BERT_WORDS, [config.vocab_size, narrow])?)
        })
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let DebertaConfig { hidden_size, intermediate_size, layer_norm_eps, .. } = self.config;
        let (layer, sizes) = (format!("encoder.layer.{index}"), [hidden_size, intermediate_size]);
        PrefixedTensors::of_bert(tensors, PREFIXES).post_norm_layer(&layer, &LAYER, sizes, layer_norm_eps)
    }

    fn relative_table(&self, tensors: &dyn Tensors) -> Result<Option<RelativeTable>> {
        let Some(buckets) = self.relative.filter(|_| self.compared.contains(&true)) else { return Ok(None) };
        let (scope, shape) =
            (PrefixedTensors::of_bert(tensors, PREFIXES), [2 * buckets.span, self.config.hidden_size]);
        let mut values = scope.matrix("encoder.rel_embeddings.weight", shape)?.to_f32()?;
        if buckets.normed {
            normalize(&mut values, &self.norm(&scope, "encoder.LayerNorm")?)?;
        }
        let longest = self.config.max_position_embeddings;
        let rows = DistanceRows::new(longest, shape[0], |distance| buckets.row(distance))?;
        Ok(Some(RelativeTable { rows: Arc::new(rows), values }))
    }

    fn relative_layers(&self, tensors: &dyn Tensors, index: usize) -> Result<RelativeLayers> {
        let (scope, hidden) = (PrefixedTensors::of_bert(tensors, PREFIXES), self.config.hidden_size);
        let layer = |on: bool, own: &str, shared: &str| {
            let name = if self.config.share_att_key { shared } else { own };
            on.then(|| {
                scope.linear(&format!("encoder.layer.{index}.attention.self.{name}"), [hidden, hidden])
            })
            .transpose()
        };
        Ok(RelativeLayers {
            content_to_position: layer(self.compared[0], "pos_key_proj", "key_proj")?,
            position_to_content: layer(self.compared[1], "pos_query_proj", "query_proj")?,
        })
    }

    fn convolution(&self, tensors: &dyn Tensors) -> Result<Option<ConvolutionTensors>> {
        let Some(activation) = self.conv else { return Ok(None) };
        let DebertaConfig { hidden_size: hidden, conv_kernel_size: size, conv_groups: groups, .. } =
            self.config;
        let (scope, each) = (PrefixedTensors::of_bert(tensors, PREFIXES), hidden / groups);
        let kernel = scope.tensor("encoder.conv.conv.weight", &[hidden, each, size])?.to_f32()?;
        // An output sees the inputs of its group alone; all other factors are zero.
        let mut matrix: Vec<f32> = zeroed(hidden * size * hidden)?;
        for (output, (row, kernel)) in
            matrix.chunks_exact_mut(size * hidden).zip(kernel.chunks_exact(each * size)).enumerate()
        {
            let first = output / each * each;
            for (input, taps) in kernel.chunks_exact(size).enumerate() {
                taps.iter().enumerate().for_each(|(tap, &x)| row[tap * hidden + first + input] = x);
            }
        }
        let matrix = Weight::from_f32(&matrix, &[hidden, size * hidden])?;
        let bias = scope.vector("encoder.conv.conv.bias", hidden)?;
        let norm = self.norm(&scope, "encoder.conv.LayerNorm")?;
        Ok(Some(ConvolutionTensors { size, linear: (matrix.into(), Some(bias)), activation, norm }))
    }

    /// transformers lets hidden tokens see all tokens alike, and sets their part of the convolution to zero.
    fn hides_tokens(&self) -> bool {
        false
    }

    fn has_kernels_on_cards(&self) -> bool {
        self.relative.is_none() && self.conv.is_none()
    }
}

/// Normalizes each row of a table.
fn normalize(table: &mut [f32], norm: &NormTensors) -> Result<()> {
    let scale = norm.scale.to_f32()?;
    let shift = norm.shift.as_ref().map(Weight::to_f32).transpose()?.unwrap_or(vec![0.0; scale.len()]);
    for row in table.chunks_exact_mut(scale.len()) {
        let count = row.len() as f64;
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
        let factor = 1.0 / (variance + f64::from(norm.epsilon)).sqrt();
        for (x, (scale, shift)) in row.iter_mut().zip(scale.iter().zip(&shift)) {
            *x = (((f64::from(*x) - mean) * factor) as f32).mul_add(*scale, *shift);
        }
    }
    Ok(())
}
