//! Falcon: a pre-norm decoder whose attention and perceptron read the same state, in its first form and its second one.
//!
//! Almazrouei et al., "The Falcon Series of Open Language Models", 2023.

use candle_core::Tensor;
use serde::Deserialize;

use super::attention::{attend, rotate};
use super::describe::CandleArchitecture;
use super::head::CandleHead;
use super::loader::TensorLoader;
use super::ops::{CandleLinear, CandleNorm, Function, IDENTITY, Ops, failed};
use super::state::{CandleState, DecoderModel, LayerShape};
use crate::Result;
use crate::compute::{Activation, Heads, LayerAttention, Mask, Matrix, Positions, RopeStyle, Rotary};
use crate::models::architectures::architecture::{Architecture, Description, Factors};
use crate::models::architectures::family::{ComputeEngine, ConfigFile, Family};
use crate::models::architectures::rope_scaling::{RopeConfig, RopeDefaults};
use crate::models::architectures::tensors::{EmbeddingTensors, Tensors};

/// Generators.
pub(super) const FAMILY: Family =
    Family { embeds: false, engine: ComputeEngine::Candle, ..Family::new("falcon", "Falcon", KEYS, read) };

const KEYS: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "n_embed",
    "num_hidden_layers",
    "num_attention_heads",
    "num_kv_heads",
    "num_ln_in_parallel_attn",
    "ffn_hidden_size",
    "layer_norm_epsilon",
    "alibi",
    "bias",
    "multi_query",
    "new_decoder_architecture",
    "parallel_attn",
    "activation",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    // `ffn_hidden_size` counts.
    "ff_factor",
];

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
    #[serde(flatten)]
    rope: RopeConfig,
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
            rope: RopeConfig::default(),
        }
    }
}

/// What the perceptron of a layer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// The normalized state that attention reads.
    Shared,
    /// The same state with a norm of its own.
    Own,
    /// The state after attention.
    After,
}

/// A Falcon whose configuration was checked.
#[derive(Debug)]
struct Falcon {
    config: FalconConfig,
    hidden: usize,
    wide: usize,
    heads: Heads,
    order: Order,
    activation: Activation,
    rotary: Rotary,
}

fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: FalconConfig = file.parse()?;
    let hidden = config.n_embed.unwrap_or(config.hidden_size);
    let wide = config.ffn_hidden_size.unwrap_or(hidden.saturating_mul(4));
    let sizes = [config.vocab_size, hidden, wide, config.num_hidden_layers, config.max_position_embeddings];
    file.check_sizes(&sizes)?;
    if config.alibi {
        return Err(file.unsupported(
            "its alibi is true; transformers adds that bias once or twice, depending on its attention, so it is not supported",
        ));
    }
    let mut heads = file.heads(hidden, config.num_attention_heads)?;
    let kv_heads = config.num_kv_heads.unwrap_or(heads.heads);
    if kv_heads == 0 || !heads.heads.is_multiple_of(kv_heads) {
        return Err(file.refuse("num_kv_heads", "a divisor of num_attention_heads"));
    }
    heads.kv_heads = match (config.new_decoder_architecture, config.multi_query) {
        (true, _) => kv_heads,
        (false, true) => 1,
        (false, false) => heads.heads,
    };
    let norms = config.num_ln_in_parallel_attn;
    let order = match (config.new_decoder_architecture, config.parallel_attn, norms) {
        (true, true, None | Some(2)) => Order::Own,
        (true, true, Some(1)) | (false, true, None | Some(1)) => Order::Shared,
        (false, false, _) => Order::After,
        (true, false, _) => return Err(file.refuse("parallel_attn", "true in the new decoder architecture")),
        (_, true, Some(_)) => {
            return Err(file.refuse("num_ln_in_parallel_attn", "1, and 2 in the new decoder architecture"));
        }
    };
    let activation = file.activation("activation", &config.activation)?;
    let (head, context) = (heads.width, config.max_position_embeddings);
    let defaults = RopeDefaults { head, context, base: 10_000.0, part: 1.0, style: RopeStyle::Neox };
    let rotary = config.rope.rotary(&defaults, None, &[]).map_err(|reason| file.unsupported(reason))?;
    if rotary.long.is_some() {
        return Err(file.unsupported("its rotary scaling is longrope, which candle does not compute"));
    }
    Ok(Box::new(Falcon { config, hidden, wide, heads, order, activation, rotary }))
}

const WORDS: &str = "transformer.word_embeddings.weight";

impl Architecture for Falcon {
    fn describe(&self) -> Description {
        Description {
            hidden: self.hidden,
            layers: self.config.num_hidden_layers,
            heads: self.heads,
            attention: vec![LayerAttention::new(Mask::CAUSAL)],
            vocabulary: self.config.vocab_size,
            context: self.config.max_position_embeddings,
            activation: self.activation,
            norm_first: true,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        tensors.matrix(WORDS, [self.config.vocab_size, self.hidden]).map(EmbeddingTensors::new)
    }

    fn head(&self, tensors: &dyn Tensors) -> Result<Matrix> {
        let name = if self.config.tie_word_embeddings { WORDS } else { "lm_head.weight" };
        tensors.matrix(name, [self.config.vocab_size, self.hidden])
    }

    fn candle(&self) -> Option<&dyn CandleArchitecture> {
        Some(self)
    }
}

impl CandleArchitecture for Falcon {
    fn decoder(&self, loader: &mut TensorLoader<'_>) -> Result<Box<dyn DecoderModel>> {
        let shape = [self.config.vocab_size, self.hidden];
        let words = loader.tensor(WORDS, &shape)?;
        let norm = loader.layer_norm("transformer.ln_f", self.hidden, self.config.layer_norm_epsilon)?;
        let head = CandleHead::load(loader, norm, &words, self.config.tie_word_embeddings)?;
        let layers = (0..self.config.num_hidden_layers).map(|index| self.layer(loader, index));
        Ok(Box::new(FalconModel {
            words,
            layers: layers.collect::<Result<_>>()?,
            head,
            heads: self.heads,
            activation: self.activation,
            order: self.order,
            rotary: self.rotary.clone(),
        }))
    }
}

impl Falcon {
    fn layer(&self, loader: &TensorLoader<'_>, index: usize) -> Result<FalconLayer> {
        let (hidden, bias) = (self.hidden, self.config.bias);
        let Heads { heads, kv_heads, width } = self.heads;
        let name = |part: &str| format!("transformer.h.{index}.{part}");
        let linear = |part: &str, shape| loader.linear(&name(part), shape, bias);
        let norm = |part: &str| loader.layer_norm(&name(part), hidden, self.config.layer_norm_epsilon);
        let (attention_norm, mlp_norm) = match self.order {
            Order::Shared => (norm("input_layernorm")?, None),
            Order::Own => (norm("ln_attn")?, Some(norm("ln_mlp")?)),
            Order::After => (norm("input_layernorm")?, Some(norm("post_attention_layernorm")?)),
        };
        Ok(FalconLayer {
            attention_norm,
            mlp_norm,
            qkv: linear("self_attention.query_key_value", [(heads + 2 * kv_heads) * width, hidden])?,
            output: linear("self_attention.dense", [hidden, hidden])?,
            up: linear("mlp.dense_h_to_4h", [self.wide, hidden])?,
            down: linear("mlp.dense_4h_to_h", [hidden, self.wide])?,
        })
    }
}

struct FalconModel {
    words: Tensor,
    layers: Vec<FalconLayer>,
    head: CandleHead,
    heads: Heads,
    activation: Activation,
    order: Order,
    rotary: Rotary,
}

struct FalconLayer {
    attention_norm: CandleNorm,
    mlp_norm: Option<CandleNorm>,
    qkv: CandleLinear,
    output: CandleLinear,
    up: CandleLinear,
    down: CandleLinear,
}

impl FalconModel {
    /// Queries, keys and values of rows: `[tokens, heads of each, width]`.
    fn split(&self, qkv: &Tensor) -> candle_core::Result<[Tensor; 3]> {
        let (tokens, Heads { heads, kv_heads, width }) = (qkv.dim(0)?, self.heads);
        let group = heads / kv_heads;
        // The queries of a key head, that key and its value lie side by side.
        let qkv = qkv.reshape((tokens, kv_heads, group + 2, width))?;
        let part = |first, count| {
            let part = qkv.narrow(2, first, count)?.contiguous()?;
            part.reshape((tokens, kv_heads * count, width))
        };
        Ok([part(0, group)?, part(group, 1)?, part(group + 1, 1)?])
    }
}

impl DecoderModel for FalconModel {
    fn layers(&self) -> Vec<LayerShape> {
        vec![LayerShape::Attention(self.heads.kv_heads * self.heads.width); self.layers.len()]
    }

    fn forward(
        &self,
        ops: &Ops,
        tokens: &[u32],
        state: &mut CandleState,
        needs_logits: bool,
    ) -> Result<Option<Tensor>> {
        let (mut x, first) = (ops.rows_of(&self.words, tokens)?, state.tokens());
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = ops.norm(&x, &layer.attention_norm)?;
            let qkv = ops.linear(&normed, &layer.qkv, IDENTITY)?;
            let [queries, keys, values] = self.split(&qkv).map_err(failed)?;
            let queries = rotate(ops, &queries, &self.rotary, first)?;
            let keys = rotate(ops, &keys, &self.rotary, first)?;
            let attended = attend(ops, [&queries, &keys, &values], self.heads, state, index)?;
            let attended = ops.linear(&attended, &layer.output, IDENTITY)?;
            let input = match (self.order, &layer.mlp_norm) {
                (Order::Own, Some(norm)) => ops.norm(&x, norm)?,
                (Order::After, Some(norm)) => ops.norm(&ops.add(&attended, &x)?, norm)?,
                _ => normed,
            };
            let up = ops.linear(&input, &layer.up, Function::Of(self.activation))?;
            let down = ops.linear(&up, &layer.down, IDENTITY)?;
            x = ops.add(&ops.add(&down, &attended)?, &x)?;
        }
        needs_logits.then(|| self.head.logits(ops, &x)).transpose()
    }
}
