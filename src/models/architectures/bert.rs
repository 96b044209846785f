//! BERT and its kin (RoBERTa, XLM-R): a post-norm transformer encoder.
//!
//! Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2018.

use serde::Deserialize;

use super::family::{ConfigFile, Family, GgufFamily, LARGEST_SIZE, ReadConfig};
use super::gguf_keys::Metadata;
use super::tensors::{EmbeddingTensors, LayerTensors, NormTensors, Tensors};
use super::transformer::{Architecture, Description, Factors};
use crate::compute::{
    Activation, Biased, Heads, LONGEST_HEAD, LayerAttention, Mask, Matrix, Positions, Weight,
};
use crate::models::formats::gguf::Gguf;
use crate::models::heads::layout::{self, ClassifierHead};
use crate::{Error, Result};

/// BERT, and the families that number positions after the padding id.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        gguf: &[GgufFamily::encoders("bert")],
        read_gguf: Some(from_gguf),
        ..family("bert", "Bert", &layout::BERT, read_bert)
    },
    family("xlm-roberta", "XLMRoberta", &layout::ROBERTA, read_roberta),
    family("roberta", "Roberta", &layout::ROBERTA, read_roberta),
    family("camembert", "Camembert", &layout::ROBERTA, read_roberta),
];

const fn family(
    model_type: &'static str,
    classes: &'static str,
    classifier: &'static ClassifierHead,
    read: ReadConfig,
) -> Family {
    let classifier = Some(classifier);
    Family { generates: false, classifier, ..Family::new(model_type, classes, KEYS, read) }
}

fn read_bert(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: BertConfig = file.parse()?;
    let context = config.max_position_embeddings;
    read(file, config, Positions::FromZero, context)
}

fn read_roberta(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: BertConfig = file.parse()?;
    let padding = config.pad_token_id.unwrap_or(1);
    let context = config.max_position_embeddings.saturating_sub((padding as usize).saturating_add(1));
    read(file, config, Positions::AfterPadding(padding), context)
}

fn read(
    file: &ConfigFile<'_>,
    config: BertConfig,
    positions: Positions,
    context: usize,
) -> Result<Box<dyn Architecture>> {
    let activation = config.check(file.model)?;
    Ok(Box::new(Bert { config, activation, positions, context }))
}

/// Converters cut the rows of XLM-R's position table that no token has, so that its positions start at 0 too.
fn from_gguf(gguf: &Gguf) -> Result<Box<dyn Architecture>> {
    let metadata = Metadata::of(gguf);
    metadata.refuse_unknown(&[&["attention.layer_norm_epsilon"]])?;
    if metadata.flag("attention.causal") == Some(true) {
        return Err(metadata.unsupported("its attention is causal (bert.attention.causal)"));
    }
    let rows = |name: &str| gguf.shape(name).and_then(<[usize]>::first).copied().unwrap_or(0);
    let config = BertConfig {
        vocab_size: rows("token_embd.weight"),
        hidden_size: metadata.required("embedding_length")?,
        num_hidden_layers: metadata.required("block_count")?,
        num_attention_heads: metadata.required("attention.head_count")?,
        intermediate_size: metadata.required("feed_forward_length")?,
        max_position_embeddings: rows("position_embd.weight"),
        type_vocab_size: rows("token_types.weight"),
        hidden_act: gelu(),
        layer_norm_eps: metadata.float("attention.layer_norm_epsilon").unwrap_or(epsilon()),
        pad_token_id: None,
        position_embedding_type: None,
    };
    let activation = config.check(&metadata.model())?;
    let context = metadata.required("context_length")?.min(config.max_position_embeddings);
    Ok(Box::new(Bert { config, activation, positions: Positions::FromZero, context }))
}

/// A BERT whose configuration was checked.
#[derive(Debug)]
struct Bert {
    config: BertConfig,
    activation: Activation,
    positions: Positions,
    /// Tokens of the longest text.
    context: usize,
}

/// The keys of `config.json` that [`BertConfig`] reads, and those whose only other value is refused by name.
const KEYS: &[&str] = &[
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
struct BertConfig {
    /// Rows of the word table.
    vocab_size: usize,
    /// Columns of every state.
    hidden_size: usize,
    /// Layers.
    num_hidden_layers: usize,
    /// Attention heads of each layer.
    num_attention_heads: usize,
    /// Columns between the two linear layers of a block.
    intermediate_size: usize,
    /// Rows of the position table.
    max_position_embeddings: usize,
    /// Rows of the token type table.
    #[serde(default = "two")]
    type_vocab_size: usize,
    /// The function between the two linear layers of a block.
    #[serde(default = "gelu")]
    hidden_act: String,
    /// Added to the variance in layer normalization.
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    /// The padding id, from which RoBERTa's positions count.
    pad_token_id: Option<u32>,
    /// Absent or `absolute`.
    position_embedding_type: Option<String>,
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
    /// The activation, once everything else is known to be supported.
    fn check(&self, model: &str) -> Result<Activation> {
        let refuse = |reason: String| Err(Error::Unsupported { model: model.into(), reason });
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

impl Architecture for Bert {
    fn describe(&self) -> Description {
        let (hidden, heads) = (self.config.hidden_size, self.config.num_attention_heads);
        Description {
            hidden,
            layers: self.config.num_hidden_layers,
            heads: Heads { heads, kv_heads: heads, width: hidden / heads },
            attention: vec![LayerAttention::new(Mask::FULL)],
            vocabulary: self.config.vocab_size,
            context: self.context,
            activation: self.activation,
            norm_first: false,
            positions: self.positions,
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let (names, config) = (BertNames::new(tensors), &self.config);
        let table = |name: &str, rows| {
            names.matrix(&format!("embeddings.{name}_embeddings.weight"), [rows, config.hidden_size])
        };
        Ok(EmbeddingTensors {
            words: table("word", config.vocab_size)?,
            positions: Some(table("position", config.max_position_embeddings)?),
            token_types: match config.type_vocab_size {
                0 => None,
                rows => Some(table("token_type", rows)?),
            },
            norm: Some(names.norm("embeddings.LayerNorm", config)?),
        })
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let (names, config) = (BertNames::new(tensors), &self.config);
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let part = |name: &str, outputs, inputs| -> Result<Biased> {
            let name = format!("encoder.layer.{index}.{name}");
            let matrix = names.matrix(&format!("{name}.weight"), [outputs, inputs])?;
            Ok((matrix, Some(names.vector(&format!("{name}.bias"), outputs)?)))
        };
        let own = |name: &str| part(&format!("attention.self.{name}"), hidden, hidden);
        let norm = |name: &str| names.norm(&format!("encoder.layer.{index}.{name}"), config);
        Ok(LayerTensors {
            attention_norm: Some(norm("attention.output.LayerNorm")?),
            qkv: vec![own("query")?, own("key")?, own("value")?],
            head_norms: None,
            output: part("attention.output.dense", hidden, hidden)?,
            output_norm: None,
            mlp_norm: Some(norm("output.LayerNorm")?),
            gate: None,
            up: part("intermediate.dense", wide, hidden)?,
            down: part("output.dense", hidden, wide)?,
            down_norm: None,
        })
    }

    fn final_norm(&self, _tensors: &dyn Tensors) -> Result<Option<NormTensors>> {
        Ok(None)
    }

    fn head(&self, _tensors: &dyn Tensors) -> Result<Matrix> {
        Err(Error::Internal { place: "bert".into(), reason: "it has no head that writes text".into() })
    }
}

/// Tensor names as the file has them: some carry the name of the model that the encoder was part of, old ones
/// call the parameters of a norm gamma and beta.
struct BertNames<'a> {
    tensors: &'a dyn Tensors,
    prefix: &'static str,
}

impl<'a> BertNames<'a> {
    fn new(tensors: &'a dyn Tensors) -> Self {
        let word = "embeddings.word_embeddings.weight";
        let prefixes = ["", "bert.", "roberta.", "model."];
        let prefix = prefixes.into_iter().find(|prefix| tensors.contains(&format!("{prefix}{word}")));
        Self { tensors, prefix: prefix.unwrap_or("") }
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        self.tensors.matrix(&format!("{}{name}", self.prefix), shape)
    }

    fn vector(&self, name: &str, length: usize) -> Result<Weight> {
        self.tensors.vector(&format!("{}{name}", self.prefix), length)
    }

    fn norm(&self, name: &str, config: &BertConfig) -> Result<NormTensors> {
        let old = self.tensors.contains(&format!("{}{name}.gamma", self.prefix));
        let (scale, shift) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        Ok(NormTensors {
            scale: self.vector(&format!("{name}.{scale}"), config.hidden_size)?,
            shift: Some(self.vector(&format!("{name}.{shift}"), config.hidden_size)?),
            epsilon: config.layer_norm_eps,
        })
    }
}

#[cfg(test)]
#[path = "bert_tests.rs"]
mod tests;
