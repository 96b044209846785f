//! BERT and its kin (RoBERTa, XLM-R, ELECTRA): a post-norm transformer encoder.
//!
//! Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2018.

use serde::Deserialize;
use serde_json::Value;

use super::architecture::{Architecture, Description, Factors};
use super::family::{ConfigFields, ConfigFile, Family, GgufFamily, ReadConfig, keys_of};
use super::gguf_keys::Metadata;
use super::tensors::{BERT_WORDS, EmbeddingTensors, LayerTensors, PostNormNames, PrefixedTensors, Tensors};
use crate::Result;
use crate::compute::{Activation, Heads, LayerAttention, Mask, Positions};
use crate::models::formats::gguf::Gguf;
use crate::models::heads::layout::{self, ClassifierHead, MaskedHead};

/// BERT, and the families that number positions after the padding id.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        gguf: &[GgufFamily::encoders("bert")],
        read_gguf: Some(from_gguf),
        ..family("bert", "Bert", &layout::BERT, &layout::MASKED_BERT, read_bert)
    },
    family("xlm-roberta", "XLMRoberta", &layout::ROBERTA, &layout::MASKED_ROBERTA, read_roberta),
    family("roberta", "Roberta", &layout::ROBERTA, &layout::MASKED_ROBERTA, read_roberta),
    family("camembert", "Camembert", &layout::ROBERTA, &layout::MASKED_ROBERTA, read_roberta),
    Family {
        // Its embeddings may be narrower than its states.
        fields: &[ConfigFields::All(keys_of::<BertConfig>)],
        // Its masked language model has a generator's head of its own.
        masked_lm: None,
        ..family("electra", "Electra", &layout::ELECTRA, &layout::MASKED_BERT, read_electra)
    },
];

const fn family(
    model_type: &'static str,
    classes: &'static str,
    classifier: &'static ClassifierHead,
    masked_lm: &'static MaskedHead,
    read: ReadConfig,
) -> Family {
    let (classifier, masked_lm) = (Some(classifier), Some(masked_lm));
    let fields = &[ConfigFields::But(keys_of::<BertConfig>, &["embedding_size"])];
    Family {
        generates: false,
        classifier,
        masked_lm,
        fields,
        ..Family::new(model_type, classes, IGNORED, read)
    }
}

fn read_bert(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: BertConfig = file.parse()?;
    let context = config.max_position_embeddings;
    read(file, config, Positions::FromZero, context)
}

fn read_electra(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let mut config: BertConfig = file.parse()?;
    config.embedding_size.get_or_insert(128);
    let context = config.max_position_embeddings;
    read(file, config, Positions::FromZero, context)
}

fn read_roberta(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: BertConfig = file.parse()?;
    let padding = config.pad_token_id.unwrap_or(1);
    let context = config.max_position_embeddings.saturating_sub((padding as usize).saturating_add(1));
    read(file, config, Positions::AfterPadding(padding), context)
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
        embedding_size: None,
        position_embedding_type: None,
    };
    let context = metadata.required("context_length")?.min(config.max_position_embeddings);
    let file = ConfigFile { model: &metadata.model(), path: gguf.path(), json: &Value::Null };
    read(&file, config, Positions::FromZero, context)
}

/// A BERT whose configuration was checked.
#[derive(Debug)]
struct Bert {
    config: BertConfig,
    heads: Heads,
    activation: Activation,
    positions: Positions,
    /// Tokens of the longest text.
    context: usize,
}

/// Keys that change nothing.
const IGNORED: &[&str] = &[
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
    /// Columns of the embeddings, where they are narrower than states.
    embedding_size: Option<usize>,
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

fn read(
    file: &ConfigFile<'_>,
    config: BertConfig,
    positions: Positions,
    context: usize,
) -> Result<Box<dyn Architecture>> {
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("num_hidden_layers", config.num_hidden_layers.max(1)),
        ("intermediate_size", config.intermediate_size),
        ("max_position_embeddings", config.max_position_embeddings),
        ("type_vocab_size", config.type_vocab_size.max(1)),
        ("embedding_size", config.embedding_size.unwrap_or(1)),
    ])?;
    let heads = file.heads(config.hidden_size, config.num_attention_heads)?;
    if let Some(kind) = config.position_embedding_type.as_deref().filter(|&kind| kind != "absolute") {
        return Err(file.unsupported(format!("position_embedding_type {kind:?}; supported is absolute")));
    }
    let activation = file.activation("hidden_act", &config.hidden_act)?;
    Ok(Box::new(Bert { config, heads, activation, positions, context }))
}

/// What the names of tensors begin with in some files.
const PREFIXES: &[&str] = &["", "bert.", "roberta.", "electra.", "model."];

/// The names of a layer's parts.
const LAYER: PostNormNames = PostNormNames {
    attention: ["self.query", "self.key", "self.value", "output.dense"],
    mlp: ["intermediate.dense", "output.dense"],
    norms: ["attention.output.LayerNorm", "output.LayerNorm"],
};

impl Architecture for Bert {
    fn describe(&self) -> Description {
        Description {
            hidden: self.config.hidden_size,
            layers: self.config.num_hidden_layers,
            heads: self.heads,
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
        let (scope, config) = (PrefixedTensors::of_bert(tensors, PREFIXES), &self.config);
        let width = config.embedding_size.unwrap_or(config.hidden_size);
        let table = |name: &str, rows: usize| {
            let name = format!("embeddings.{name}_embeddings.weight");
            (rows > 0).then(|| scope.matrix(&name, [rows, width])).transpose()
        };
        let projection = || scope.linear("embeddings_project", [config.hidden_size, width]);
        Ok(EmbeddingTensors {
            words: scope.matrix(BERT_WORDS, [config.vocab_size, width])?,
            positions: table("position", config.max_position_embeddings)?,
            token_types: table("token_type", config.type_vocab_size)?,
            norm: Some(scope.layer_norm("embeddings.LayerNorm", width, config.layer_norm_eps)?),
            projection: (width != config.hidden_size).then(projection).transpose()?,
            projection_norm: None,
        })
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let BertConfig { hidden_size, intermediate_size, layer_norm_eps, .. } = self.config;
        let (layer, sizes) = (format!("encoder.layer.{index}"), [hidden_size, intermediate_size]);
        PrefixedTensors::of_bert(tensors, PREFIXES).post_norm_layer(&layer, &LAYER, sizes, layer_norm_eps)
    }
}

#[cfg(test)]
#[path = "bert_tests.rs"]
mod tests;
