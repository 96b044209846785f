//! LFM2: a pre-norm decoder of which most layers are short convolutions with gates, and the others attention.
//!
//! Liquid AI, "LFM2 Technical Report", 2025.

use candle_core::Tensor;
use serde::Deserialize;

use super::attention::{attend, rotate};
use super::describe::CandleArchitecture;
use super::head::CandleHead;
use super::loader::TensorLoader;
use super::ops::{CandleLinear, CandleNorm, IDENTITY, Ops, failed, map_rows, with_values};
use super::state::{CandleState, DecoderModel, LayerShape};
use crate::Result;
use crate::compute::{Activation, Heads, LayerAttention, Mask, Matrix, Positions, RopeStyle, Rotary};
use crate::models::architectures::architecture::{Architecture, Description, Factors};
use crate::models::architectures::family::{ComputeEngine, ConfigFile, Family};
use crate::models::architectures::rope_scaling::{RopeConfig, RopeDefaults};
use crate::models::architectures::tensors::{EmbeddingTensors, Tensors, tied_head};

/// Generators.
pub(super) const FAMILY: Family =
    Family { embeds: false, engine: ComputeEngine::Candle, ..Family::new("lfm2", "Lfm2", KEYS, read) };

const KEYS: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "block_ff_dim",
    "block_auto_adjust_ff_dim",
    "block_ffn_dim_multiplier",
    "block_multiple_of",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "norm_eps",
    "conv_L_cache",
    "conv_bias",
    "layer_types",
    "full_attn_idxs",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "tie_embedding",
    // What the first files say a second time; transformers does not read it.
    "block_dim",
    "block_mlp_init_scale",
    "block_norm_eps",
    "block_out_init_scale",
    "block_use_swiglu",
    "block_use_xavier_init",
    "conv_dim",
    "conv_dim_out",
    "conv_use_xavier_init",
    "num_heads",
    "theta",
    "use_pos_enc",
];

/// What `config.json` says, with transformers' values for keys that are absent.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Lfm2Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    block_ff_dim: Option<usize>,
    block_auto_adjust_ff_dim: bool,
    block_ffn_dim_multiplier: f64,
    block_multiple_of: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    max_position_embeddings: usize,
    norm_eps: f32,
    #[serde(rename = "conv_L_cache")]
    conv_cache: usize,
    conv_bias: bool,
    layer_types: Option<Vec<String>>,
    full_attn_idxs: Option<Vec<usize>>,
    tie_word_embeddings: bool,
    tie_embedding: Option<bool>,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Default for Lfm2Config {
    fn default() -> Self {
        Self {
            vocab_size: 65_536,
            hidden_size: 2560,
            intermediate_size: 12_288,
            block_ff_dim: None,
            block_auto_adjust_ff_dim: true,
            block_ffn_dim_multiplier: 1.0,
            block_multiple_of: 256,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 8,
            max_position_embeddings: 128_000,
            norm_eps: 1e-5,
            conv_cache: 3,
            conv_bias: false,
            layer_types: None,
            full_attn_idxs: None,
            tie_word_embeddings: true,
            tie_embedding: None,
            rope: RopeConfig::default(),
        }
    }
}

impl Lfm2Config {
    /// Columns between the matrices of a perceptron.
    fn wide(&self) -> usize {
        let size = self.block_ff_dim.unwrap_or(self.intermediate_size);
        if !self.block_auto_adjust_ff_dim {
            return size;
        }
        let third = (2.0 * size as f64 / 3.0) as usize;
        ((self.block_ffn_dim_multiplier * third as f64) as usize).next_multiple_of(self.block_multiple_of)
    }
}

/// The longest convolution: longer ones are no short ones.
const LONGEST_CONVOLUTION: usize = 64;

/// An LFM2 whose configuration was checked.
#[derive(Debug)]
struct Lfm2 {
    config: Lfm2Config,
    heads: Heads,
    wide: usize,
    rotary: Rotary,
    /// Of each layer, whether it is attention.
    attends: Vec<bool>,
}

fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: Lfm2Config = file.parse()?;
    file.check_sizes(&[
        config.vocab_size,
        config.hidden_size,
        config.block_ff_dim.unwrap_or(config.intermediate_size),
        config.block_multiple_of,
        config.num_hidden_layers,
        config.num_key_value_heads,
        config.max_position_embeddings,
    ])?;
    if !(0.0..=64.0).contains(&config.block_ffn_dim_multiplier) {
        return Err(file.refuse("block_ffn_dim_multiplier", "0 to 64"));
    }
    let wide = config.wide();
    file.check_sizes(&[wide])?;
    if !(2..=LONGEST_CONVOLUTION).contains(&config.conv_cache) {
        return Err(file.refuse("conv_L_cache", &format!("2 to {LONGEST_CONVOLUTION}")));
    }
    let mut heads = file.heads(config.hidden_size, config.num_attention_heads)?;
    if !heads.heads.is_multiple_of(config.num_key_value_heads) {
        return Err(file.refuse("num_key_value_heads", "a divisor of num_attention_heads"));
    }
    heads.kv_heads = config.num_key_value_heads;
    let attends = attends(file, &config)?;
    let defaults = RopeDefaults {
        head: heads.width,
        context: config.max_position_embeddings,
        base: 1_000_000.0,
        part: 1.0,
        style: RopeStyle::Neox,
    };
    let rotary = config.rope.rotary(&defaults, None, &[]).map_err(|reason| file.unsupported(reason))?;
    if rotary.long.is_some() {
        return Err(file.unsupported("its rotary scaling is longrope, which candle does not compute"));
    }
    Ok(Box::new(Lfm2 { config, heads, wide, rotary, attends }))
}

/// Of each layer, whether it is attention.
fn attends(file: &ConfigFile<'_>, config: &Lfm2Config) -> Result<Vec<bool>> {
    let layers = config.num_hidden_layers;
    match (&config.layer_types, &config.full_attn_idxs) {
        (Some(types), _) if types.len() != layers => {
            Err(file.refuse("layer_types", "one for each of num_hidden_layers"))
        }
        (Some(types), _) => {
            let of = |kind: &String| match kind.as_str() {
                "full_attention" => Ok(true),
                "conv" => Ok(false),
                _ => Err(file.refuse("layer_types", "full_attention and conv")),
            };
            types.iter().map(of).collect()
        }
        // As many as the file lists are in memory already.
        (None, Some(indices)) if layers <= 1 << 12 => {
            Ok((0..layers).map(|index| indices.contains(&index)).collect())
        }
        (None, None) if layers <= 1 << 12 => Ok(vec![true; layers]),
        (None, _) => Err(file.refuse("num_hidden_layers", "up to 4096")),
    }
}

const WORDS: &str = "model.embed_tokens.weight";

impl Architecture for Lfm2 {
    fn describe(&self) -> Description {
        Description {
            hidden: self.config.hidden_size,
            layers: self.config.num_hidden_layers,
            heads: self.heads,
            attention: vec![LayerAttention::new(Mask::CAUSAL)],
            vocabulary: self.config.vocab_size,
            context: self.config.max_position_embeddings,
            activation: Activation::Silu,
            norm_first: true,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let shape = [self.config.vocab_size, self.config.hidden_size];
        tensors.matrix(WORDS, shape).map(EmbeddingTensors::new)
    }

    fn head(&self, tensors: &dyn Tensors) -> Result<Matrix> {
        let tied = self.config.tie_embedding.unwrap_or(self.config.tie_word_embeddings);
        let shape = [self.config.vocab_size, self.config.hidden_size];
        let head = "lm_head.weight";
        if tied { tied_head(tensors, WORDS, head, shape) } else { tensors.matrix(head, shape) }
    }

    fn candle(&self) -> Option<&dyn CandleArchitecture> {
        Some(self)
    }
}

impl CandleArchitecture for Lfm2 {
    fn decoder(&self, loader: &mut TensorLoader<'_>) -> Result<Box<dyn DecoderModel>> {
        let Lfm2Config { vocab_size, hidden_size: hidden, norm_eps, .. } = self.config;
        let words = loader.tensor(WORDS, &[vocab_size, hidden])?;
        let norm = loader.rms_norm("model.embedding_norm", hidden, norm_eps)?;
        let tied = self.config.tie_embedding.unwrap_or(self.config.tie_word_embeddings);
        let head = CandleHead::load(loader, norm, &words, tied)?;
        let layers =
            self.attends.iter().enumerate().map(|(index, &attends)| self.layer(loader, index, attends));
        Ok(Box::new(Lfm2Model {
            layers: layers.collect::<Result<_>>()?,
            words,
            head,
            heads: self.heads,
            rotary: self.rotary.clone(),
        }))
    }
}

impl Lfm2 {
    fn layer(&self, loader: &TensorLoader<'_>, index: usize, attends: bool) -> Result<Lfm2Layer> {
        let Lfm2Config { hidden_size: hidden, norm_eps, conv_cache: taps, conv_bias, .. } = self.config;
        let Heads { heads, kv_heads, width } = self.heads;
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let linear = |part: &str, shape| loader.linear(&name(part), shape, false);
        let norm = |part: &str, width| loader.rms_norm(&name(part), width, norm_eps);
        let mixer = match attends {
            true => Mixer::Attention(Lfm2Attention {
                query: linear("self_attn.q_proj", [heads * width, hidden])?,
                key: linear("self_attn.k_proj", [kv_heads * width, hidden])?,
                value: linear("self_attn.v_proj", [kv_heads * width, hidden])?,
                output: linear("self_attn.out_proj", [hidden, heads * width])?,
                query_norm: norm("self_attn.q_layernorm", width)?,
                key_norm: norm("self_attn.k_layernorm", width)?,
            }),
            false => {
                let weight = loader.values(&name("conv.conv.weight"), &[hidden, 1, taps])?;
                let bias = match conv_bias {
                    true => Some(loader.values(&name("conv.conv.bias"), &[hidden])?),
                    false => None,
                };
                Mixer::Conv(ShortConv {
                    input: loader.linear(&name("conv.in_proj"), [3 * hidden, hidden], conv_bias)?,
                    output: loader.linear(&name("conv.out_proj"), [hidden, hidden], conv_bias)?,
                    taps: (0..taps)
                        .map(|tap| weight.iter().skip(tap).step_by(taps).copied().collect())
                        .collect(),
                    bias,
                })
            }
        };
        Ok(Lfm2Layer {
            mixer,
            mixer_norm: norm("operator_norm", hidden)?,
            mlp_norm: norm("ffn_norm", hidden)?,
            gate: linear("feed_forward.w1", [self.wide, hidden])?,
            up: linear("feed_forward.w3", [self.wide, hidden])?,
            down: linear("feed_forward.w2", [hidden, self.wide])?,
        })
    }
}

struct Lfm2Model {
    words: Tensor,
    layers: Vec<Lfm2Layer>,
    head: CandleHead,
    heads: Heads,
    rotary: Rotary,
}

struct Lfm2Layer {
    mixer: Mixer,
    mixer_norm: CandleNorm,
    mlp_norm: CandleNorm,
    gate: CandleLinear,
    up: CandleLinear,
    down: CandleLinear,
}

/// What lets a token take something from those before it.
enum Mixer {
    Attention(Lfm2Attention),
    Conv(ShortConv),
}

struct Lfm2Attention {
    query: CandleLinear,
    key: CandleLinear,
    value: CandleLinear,
    output: CandleLinear,
    query_norm: CandleNorm,
    key_norm: CandleNorm,
}

/// A convolution of each column with the rows before, between two gates.
struct ShortConv {
    input: CandleLinear,
    output: CandleLinear,
    /// A factor for each column, the oldest row's first.
    taps: Vec<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

impl DecoderModel for Lfm2Model {
    fn layers(&self) -> Vec<LayerShape> {
        let of = |layer: &Lfm2Layer| match &layer.mixer {
            Mixer::Attention(_) => LayerShape::Attention(self.heads.kv_heads * self.heads.width),
            Mixer::Conv(conv) => LayerShape::Recurrent((conv.taps.len() - 1) * conv.taps[0].len()),
        };
        self.layers.iter().map(of).collect()
    }

    fn forward(
        &self,
        ops: &Ops,
        tokens: &[u32],
        state: &mut CandleState,
        needs_logits: bool,
    ) -> Result<Option<Tensor>> {
        let mut x = ops.rows_of(&self.words, tokens)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = ops.norm(&x, &layer.mixer_norm)?;
            let mixed = match &layer.mixer {
                Mixer::Attention(attention) => attention.mix(ops, &normed, self, state, index)?,
                Mixer::Conv(conv) => conv.mix(ops, &normed, state, index)?,
            };
            x = ops.add(&mixed, &x)?;
            let normed = ops.norm(&x, &layer.mlp_norm)?;
            let gated = ops.gated(&normed, &layer.gate, &layer.up, Activation::Silu)?;
            x = ops.add(&ops.linear(&gated, &layer.down, IDENTITY)?, &x)?;
        }
        needs_logits.then(|| self.head.logits(ops, &x)).transpose()
    }
}

impl Lfm2Attention {
    fn mix(
        &self,
        ops: &Ops,
        x: &Tensor,
        model: &Lfm2Model,
        state: &mut CandleState,
        index: usize,
    ) -> Result<Tensor> {
        let (heads, first) = (model.heads, state.tokens());
        let part =
            |linear, count| ops.linear(x, linear, IDENTITY).and_then(|x| split_heads(&x, count, heads.width));
        let rotated =
            |linear, count, norm| rotate(ops, &ops.norm(&part(linear, count)?, norm)?, &model.rotary, first);
        let queries = rotated(&self.query, heads.heads, &self.query_norm)?;
        let keys = rotated(&self.key, heads.kv_heads, &self.key_norm)?;
        let values = part(&self.value, heads.kv_heads)?;
        let attended = attend(ops, [&queries, &keys, &values], heads, state, index)?;
        ops.linear(&attended, &self.output, IDENTITY)
    }
}

impl ShortConv {
    fn mix(&self, ops: &Ops, x: &Tensor, state: &mut CandleState, index: usize) -> Result<Tensor> {
        let Self { input, output, taps, bias } = self;
        let (hidden, before) = (taps[0].len(), taps.len() - 1);
        let parts = ops.linear(x, input, IDENTITY)?;
        let part = |number: usize| {
            parts.narrow(1, number * hidden, hidden).and_then(|x| x.contiguous()).map_err(failed)
        };
        let gated = ops.multiply(&part(0)?, &part(2)?)?;
        let earlier = match state.recurrent(index) {
            Some(earlier) => earlier.clone(),
            None => Tensor::zeros((before, hidden), x.dtype(), x.device()).map_err(failed)?,
        };
        let rows = Tensor::cat(&[&earlier, &gated], 0).map_err(failed)?;
        let last = rows.narrow(0, gated.dim(0).map_err(failed)?, before);
        state.set_recurrent(index, last.and_then(|last| last.force_contiguous()).map_err(failed)?);
        let gate = part(1)?;
        let mixed = match ops.computes_rows() {
            true => with_values(&rows, |rows| {
                map_rows(&gate, &|row, gate| {
                    for (column, gate) in gate.iter_mut().enumerate() {
                        let mut sum = bias.as_ref().map_or(0.0, |bias| bias[column]);
                        for (tap, factors) in taps.iter().enumerate() {
                            sum += factors[column] * rows[(row + tap) * hidden + column];
                        }
                        *gate *= sum;
                    }
                })
            })?,
            false => composed(&rows, &gate, taps, bias.as_deref()).map_err(failed)?,
        };
        ops.linear(&mixed, output, IDENTITY)
    }
}

/// `[tokens, heads · width]` → `[tokens, heads, width]`.
fn split_heads(x: &Tensor, heads: usize, width: usize) -> Result<Tensor> {
    x.dim(0).and_then(|tokens| x.reshape((tokens, heads, width))).map_err(failed)
}

fn composed(
    rows: &Tensor,
    gate: &Tensor,
    taps: &[Vec<f32>],
    bias: Option<&[f32]>,
) -> candle_core::Result<Tensor> {
    let (tokens, hidden) = gate.dims2()?;
    let vector = |values: &[f32]| Tensor::from_slice(values, (1, hidden), gate.device());
    let mut sum = match bias {
        Some(bias) => vector(bias)?.broadcast_as((tokens, hidden))?.contiguous()?,
        None => gate.zeros_like()?,
    };
    for (tap, factors) in taps.iter().enumerate() {
        sum = (sum + rows.narrow(0, tap, tokens)?.broadcast_mul(&vector(factors)?)?)?;
    }
    sum * gate
}
