//! JinaBERT: a BERT whose attention subtracts from each score a multiple of the distance (ALiBi), with gated perceptrons.
//!
//! Günther et al., "Jina Embeddings 2: 8192-Token General-Purpose Text Embeddings for Long Documents", 2023;
//! Press et al., "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation", 2021.

use std::sync::Arc;

use serde::Deserialize;

use super::architecture::{Architecture, Description, Factors};
use super::family::{ConfigFields, ConfigFile, Family, GgufFamily, keys_of};
use super::gguf_keys::Metadata;
use super::tensors::{
    BERT_WORDS, EmbeddingTensors, LayerTensors, MixerTensors, MlpTensors, PrefixedTensors, Tensors,
};
use crate::Result;
use crate::compute::{Activation, DistanceBias, Heads, LayerAttention, Mask, Positions};
use crate::models::formats::gguf::Gguf;

/// JinaBERT, whose files call it a "bert": `auto_map` names its classes.
pub(super) const FAMILIES: &[Family] = &[Family {
    generates: false,
    gguf: &[GgufFamily::encoders("jina-bert-v2")],
    read_gguf: Some(from_gguf),
    fields: &[ConfigFields::All(keys_of::<JinaBertConfig>)],
    ..Family::new("jina_bert", "JinaBert", IGNORED, read)
}];

/// Keys that change nothing.
const IGNORED: &[&str] = &[
    // `feed_forward_type` counts.
    "hidden_act",
    // How the model's own code pools; the files of sentence-transformers say it.
    "emb_pooler",
    // There is no head whose weights could be shared.
    "tie_word_embeddings",
];

/// What `config.json` says of a JinaBERT.
#[derive(Debug, Clone, Deserialize)]
struct JinaBertConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    position_embedding_type: String,
    feed_forward_type: String,
}

/// A JinaBERT whose configuration was checked.
#[derive(Debug)]
struct JinaBert {
    config: JinaBertConfig,
    heads: Heads,
    activation: Activation,
    bias: Arc<DistanceBias>,
}

fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: JinaBertConfig = file.parse()?;
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("intermediate_size", config.intermediate_size),
        ("max_position_embeddings", config.max_position_embeddings),
        ("type_vocab_size", config.type_vocab_size),
    ])?;
    if config.position_embedding_type != "alibi" {
        return Err(file.refuse("position_embedding_type", "alibi"));
    }
    file.check_biased_length(config.max_position_embeddings)?;
    let activation = match config.feed_forward_type.as_str() {
        "geglu" => Activation::Gelu,
        "reglu" => Activation::Relu,
        _ => return Err(file.refuse("feed_forward_type", "geglu and reglu")),
    };
    let heads = file.heads(config.hidden_size, config.num_attention_heads)?;
    let slopes = slopes(heads.heads);
    let bias = |head: usize, distance: isize| -(slopes[head] * distance.unsigned_abs() as f32);
    let bias = DistanceBias::new(heads.heads, config.max_position_embeddings, bias)?;
    Ok(Box::new(JinaBert { config, heads, activation, bias: bias.into() }))
}

/// JinaBERT has no other perceptron than that with GELU in GGUF files.
fn from_gguf(gguf: &Gguf) -> Result<Box<dyn Architecture>> {
    let metadata = Metadata::of(gguf);
    let mut json = metadata.encoder_config("jina_bert", &[])?;
    if let Some(name) = ["attn_q_norm", "attn_k_norm", "attn_norm_2"]
        .map(|name| format!("blk.0.{name}.weight"))
        .iter()
        .find(|name| gguf.contains(name))
    {
        let reason =
            format!("it has {name}: the model of code, whose blocks have more norms, is not supported");
        return Err(metadata.unsupported(reason));
    }
    json["position_embedding_type"] = "alibi".into();
    json["feed_forward_type"] = "geglu".into();
    read(&ConfigFile { model: &metadata.model(), path: gguf.path(), json: &json })
}

/// The slope of each head: powers of two, and for another number of heads those between of twice as many.
fn slopes(heads: usize) -> Vec<f32> {
    let powers =
        |heads: usize| (1..=heads).map(move |head| (-8.0 * head as f64 / heads as f64).exp2() as f32);
    if heads.is_power_of_two() {
        return powers(heads).collect();
    }
    let whole = heads.next_power_of_two() / 2;
    powers(whole).chain(slopes(2 * whole).into_iter().step_by(2)).take(heads).collect()
}

/// What the names of tensors begin with in some files.
const PREFIXES: &[&str] = &["", "bert."];

impl Architecture for JinaBert {
    fn describe(&self) -> Description {
        Description {
            hidden: self.config.hidden_size,
            layers: self.config.num_hidden_layers,
            heads: self.heads,
            attention: vec![LayerAttention {
                bias: Some(Arc::clone(&self.bias)),
                ..LayerAttention::new(Mask::FULL)
            }],
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
        let hidden = config.hidden_size;
        let types = [config.type_vocab_size, hidden];
        Ok(EmbeddingTensors {
            token_types: Some(scope.matrix("embeddings.token_type_embeddings.weight", types)?),
            norm: Some(scope.layer_norm("embeddings.LayerNorm", hidden, config.layer_norm_eps)?),
            ..EmbeddingTensors::new(scope.matrix(BERT_WORDS, [config.vocab_size, hidden])?)
        })
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let (config, scope) = (&self.config, PrefixedTensors::of_bert(tensors, PREFIXES));
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let name = |rest: &str| format!("encoder.layer.{index}.{rest}");
        let attention = |rest: &str| scope.linear(&name(&format!("attention.{rest}")), [hidden, hidden]);
        let norm = |rest: &str| scope.layer_norm(&name(rest), hidden, config.layer_norm_eps);
        let qkv = vec![attention("self.query")?, attention("self.key")?, attention("self.value")?];
        // Old GGUF files store the two halves apart.
        let [gate, up] = if scope.contains(&name("mlp.gated_layers_w.weight")) {
            let half = |rest: &str| scope.maybe_biased(&name(rest), [wide, hidden], false);
            [half("mlp.gated_layers_w")?, half("mlp.gated_layers_v")?]
        } else {
            scope.halves(&name("mlp.gated_layers"), [wide, hidden], false)?
        };
        let down = scope.linear(&name("mlp.wo"), [hidden, wide])?;
        Ok(LayerTensors {
            attention_norm: Some(norm("attention.output.LayerNorm")?),
            mlp_norm: Some(norm("mlp.layernorm")?),
            ..LayerTensors::new(
                MixerTensors::attention(qkv),
                attention("output.dense")?,
                MlpTensors::gated(gate, up, down),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015_625, 0.007_812_5, 0.003_906_25]);
        let twelve = slopes(12);
        assert_eq!((&twelve[..8], twelve.len()), (&slopes(8)[..], 12));
        let between = [-0.5_f32, -1.5, -2.5, -3.5].map(f32::exp2);
        assert!(twelve[8..].iter().zip(between).all(|(ours, theirs)| (ours - theirs).abs() < 1e-7));
    }
}
