//! BERT and its kin (RoBERTa, XLM-R): a post-norm transformer encoder, described once for all backends.
//!
//! Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2018.

use serde::Deserialize;

use super::LARGEST_SIZE;
use super::pooling::{Pooling, SentenceEncoder};
use crate::compute::{
    Activation, Backend, Heads, LONGEST_HEAD, Packed, Pass, Positions, Row, Tensors, Weight,
};
use crate::{Error, Result};

/// The keys of `config.json` that [`BertConfig`] reads, and those whose only other value is refused by name.
pub(crate) const KEYS: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_act",
    "layer_norm_eps",
    "position_embedding_type",
    // Every token sees every other one anyway.
    "use_bidirectional_attention",
    // There is no head whose weights could be shared.
    "tie_word_embeddings",
];

/// What `config.json` says of a BERT.
#[derive(Debug, Clone, Deserialize)]
pub struct BertConfig {
    /// `bert`, `roberta`, `xlm-roberta` or `camembert`: all but the first number positions after the padding id.
    pub model_type: String,
    /// Rows of the word table.
    pub vocab_size: usize,
    /// Columns of every state.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads of each layer.
    pub num_attention_heads: usize,
    /// Columns between the two linear layers of a block.
    pub intermediate_size: usize,
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    /// Rows of the token type table, of which the first is used.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// The function between the two linear layers of a block.
    #[serde(default = "gelu")]
    pub hidden_act: String,
    /// Added to the variance in layer normalisation.
    #[serde(default = "epsilon")]
    pub layer_norm_eps: f32,
    /// The padding id, from which RoBERTa's positions count.
    pub pad_token_id: Option<u32>,
    /// Absent or `absolute`.
    pub position_embedding_type: Option<String>,
}

fn two() -> usize {
    2
}

fn gelu() -> String {
    "gelu".into()
}

fn epsilon() -> f32 {
    1e-12
}

impl BertConfig {
    fn positions(&self) -> Positions {
        match self.model_type.as_str() {
            "bert" => Positions::FromZero,
            _ => Positions::AfterPadding(self.pad_token_id.unwrap_or(1)),
        }
    }

    /// Tokens of the longest text.
    pub fn max_positions(&self) -> usize {
        match self.positions() {
            Positions::FromZero => self.max_position_embeddings,
            Positions::AfterPadding(padding) => {
                self.max_position_embeddings.saturating_sub(padding as usize + 1)
            }
        }
    }

    /// The activation, once everything else is known to be supported.
    pub(super) fn check(&self, model: &str) -> Result<Activation> {
        let refuse = |reason: String| Err(Error::Unsupported { model: model.into(), reason });
        if !["bert", "roberta", "xlm-roberta", "camembert"].contains(&self.model_type.as_str()) {
            return refuse(format!(
                "model_type {:?}; supported here are bert, roberta, xlm-roberta, camembert",
                self.model_type
            ));
        }
        let sizes = [
            self.vocab_size,
            self.hidden_size,
            self.num_hidden_layers.max(1),
            self.intermediate_size,
            self.max_position_embeddings,
            self.type_vocab_size.max(1),
        ];
        if !sizes.iter().all(|&n| n > 0 && n <= LARGEST_SIZE) {
            return refuse(format!("a size in its config.json is 0 or larger than {LARGEST_SIZE}"));
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return refuse(format!(
                "hidden_size {} does not divide into {} attention heads",
                self.hidden_size, self.num_attention_heads
            ));
        }
        let width = self.hidden_size / self.num_attention_heads;
        if width > LONGEST_HEAD {
            return refuse(format!(
                "its attention heads are {width} wide ({} of them); the widest that run here are {LONGEST_HEAD}",
                self.num_attention_heads
            ));
        }
        if let Some(kind) = self.position_embedding_type.as_deref().filter(|&kind| kind != "absolute") {
            return refuse(format!("position_embedding_type {kind:?}; supported is absolute"));
        }
        match self.hidden_act.as_str() {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => refuse(format!("hidden_act {other:?}; supported are gelu, gelu_new, relu")),
        }
    }
}

/// A BERT on a backend.
pub struct Bert<B: Backend> {
    backend: B,
    words: B::Table,
    positions: B::Table,
    kinds: Option<B::Table>,
    numbering: Positions,
    norm: B::Norm,
    layers: Vec<Layer<B>>,
    heads: Heads,
    activation: Activation,
    width: usize,
    max_positions: usize,
}

struct Layer<B: Backend> {
    /// Queries, keys and values side by side.
    qkv: B::Linear,
    attended: B::Linear,
    attended_norm: B::Norm,
    up: B::Linear,
    down: B::Linear,
    down_norm: B::Norm,
}

impl<B: Backend> Bert<B> {
    /// Takes the weights that `config` asks for from `tensors`. `model` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what `config` asks and this description lacks; the errors of `tensors`.
    pub fn load(backend: B, config: &BertConfig, tensors: &dyn Tensors, model: &str) -> Result<Self> {
        let activation = config.check(model)?;
        let names = Names::new(tensors);
        let (h, wide) = (config.hidden_size, config.intermediate_size);
        let table = |name: &str, rows| {
            backend.table(names.get(&format!("embeddings.{name}_embeddings.weight"), &[rows, h])?.into())
        };
        let norm = |name: &str| {
            let (scale, shift) = names.norm(name, h)?;
            backend.norm(&scale, &shift, config.layer_norm_eps)
        };
        let layer = |index: usize| {
            let part = |name: &str, outputs, inputs| {
                let name = format!("encoder.layer.{index}.{name}");
                let matrix = names.get(&format!("{name}.weight"), &[outputs, inputs])?;
                Ok((matrix.into(), Some(names.get(&format!("{name}.bias"), &[outputs])?)))
            };
            let own = |name: &str| part(&format!("attention.self.{name}"), h, h);
            Ok(Layer {
                qkv: backend.linear(&[own("query")?, own("key")?, own("value")?])?,
                attended: backend.linear(&[part("attention.output.dense", h, h)?])?,
                attended_norm: norm(&format!("encoder.layer.{index}.attention.output.LayerNorm"))?,
                up: backend.linear(&[part("intermediate.dense", wide, h)?])?,
                down: backend.linear(&[part("output.dense", h, wide)?])?,
                down_norm: norm(&format!("encoder.layer.{index}.output.LayerNorm"))?,
            })
        };
        let (heads, width) = (config.num_attention_heads, h / config.num_attention_heads);
        Ok(Self {
            words: table("word", config.vocab_size)?,
            positions: table("position", config.max_position_embeddings)?,
            kinds: match config.type_vocab_size {
                0 => None,
                rows => Some(table("token_type", rows)?),
            },
            numbering: config.positions(),
            norm: norm("embeddings.LayerNorm")?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            heads: Heads { heads, kv_heads: heads, width, causal: false },
            activation,
            width: h,
            max_positions: config.max_positions(),
            backend,
        })
    }

    /// The last layer's states: one row for each token of the pass, or `row` of each sequence alone.
    fn forward<'a>(
        &self,
        pass: &mut B::Pass<'a>,
        row: Option<Row>,
    ) -> Result<<B::Pass<'a> as Pass<B>>::States> {
        let positions = Some((&self.positions, self.numbering));
        let x = pass.embed(&self.words, positions, self.kinds.as_ref())?;
        let mut x = pass.norm(x, &self.norm)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let qkv = pass.linear(&x, &layer.qkv, Activation::Identity)?;
            let mut attended = pass.attention(qkv, self.heads)?;
            if let Some(row) = row.filter(|_| index + 1 == self.layers.len()) {
                // From here on no row looks at another.
                (attended, x) = (pass.pick(attended, row)?, pass.pick(x, row)?);
            }
            x = pass.linear_add_norm(attended, &layer.attended, x, &layer.attended_norm)?;
            let up = pass.linear(&x, &layer.up, self.activation)?;
            x = pass.linear_add_norm(up, &layer.down, x, &layer.down_norm)?;
        }
        Ok(x)
    }
}

impl<B: Backend> SentenceEncoder for Bert<B> {
    fn width(&self) -> usize {
        self.width
    }

    fn max_positions(&self) -> usize {
        self.max_positions
    }

    fn encode(&self, batch: &Packed<'_>, pooling: Pooling, out: &mut [f32]) -> Result<()> {
        if out.len() != batch.sequences() * self.width {
            return Err(Error::Input(format!(
                "{} sequences of width {} do not fit into {} values",
                batch.sequences(),
                self.width,
                out.len()
            )));
        }
        self.backend.run(batch, self.width, out, &|pass, out| {
            let x = self.forward(pass, pooling.row())?;
            pass.read(x, &mut |index, rows| {
                pooling.pool(rows, &mut out[index * self.width..(index + 1) * self.width]);
            })
        })
    }

    fn memory_bytes(&self) -> u64 {
        self.backend.memory_bytes()
    }

    fn dtype(&self) -> &'static str {
        self.backend.dtype()
    }
}

/// Tensor names as the file has them: some carry the name of the model that the encoder was part of, old ones
/// call the parameters of a norm gamma and beta.
struct Names<'a> {
    tensors: &'a dyn Tensors,
    prefix: &'static str,
}

impl<'a> Names<'a> {
    fn new(tensors: &'a dyn Tensors) -> Self {
        let word = "embeddings.word_embeddings.weight";
        let prefixes = ["", "bert.", "roberta.", "model."];
        let prefix = prefixes.into_iter().find(|prefix| tensors.contains(&format!("{prefix}{word}")));
        Self { tensors, prefix: prefix.unwrap_or("") }
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        self.tensors.get_shaped(&format!("{}{name}", self.prefix), shape)
    }

    fn norm(&self, name: &str, width: usize) -> Result<(Weight, Weight)> {
        let old = self.tensors.contains(&format!("{}{name}.gamma", self.prefix));
        let (scale, shift) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        Ok((self.get(&format!("{name}.{scale}"), &[width])?, self.get(&format!("{name}.{shift}"), &[width])?))
    }
}

#[cfg(test)]
#[path = "bert_tests.rs"]
mod tests;
