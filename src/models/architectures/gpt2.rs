//! GPT-2: learned positions, layer normalization, GELU, and matrices stored as `[inputs, outputs]`.
//!
//! Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.

use serde::Deserialize;

use super::architecture::{Architecture, Description, Factors};
use super::family::{ConfigFields, ConfigFile, Family, GgufFamily, LARGEST_SIZE, is_size, keys_of};
use super::gguf_keys::Metadata;
use super::tensors::{EmbeddingTensors, LayerTensors, MixerTensors, MlpTensors, NormTensors, Tensors};
use crate::compute::memory::zeroed;
use crate::compute::{
    Activation, Biased, Heads, LONGEST_HEAD, LayerAttention, Mask, Matrix, Positions, Weight,
};
use crate::models::formats::gguf::Gguf;
use crate::{Error, Result};

/// GPT-2.
pub(super) const FAMILIES: &[Family] = &[Family {
    embeds: false,
    bare_turns: true,
    gguf: &[GgufFamily::generators("gpt2")],
    read_gguf: Some(from_gguf),
    fields: &[ConfigFields::All(keys_of::<Gpt2Config>)],
    ..Family::new("gpt2", "GPT2", IGNORED, read)
}];

fn read(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    let config: Gpt2Config = file.parse()?;
    let activation = config.check(file.model)?;
    Ok(Box::new(Gpt2 { config, activation, transposed: true }))
}

fn from_gguf(gguf: &Gguf) -> Result<Box<dyn Architecture>> {
    let metadata = Metadata::of(gguf);
    metadata.refuse_unknown(&[&["attention.layer_norm_epsilon"]])?;
    let vocabulary = gguf.shape("token_embd.weight").and_then(<[usize]>::first).copied();
    let config = Gpt2Config {
        n_embd: metadata.required("embedding_length")?,
        n_layer: metadata.required("block_count")?,
        n_head: metadata.required("attention.head_count")?,
        n_positions: metadata.required("context_length")?,
        n_inner: metadata.number("feed_forward_length"),
        vocab_size: vocabulary.unwrap_or(0),
        layer_norm_epsilon: metadata.float("attention.layer_norm_epsilon").unwrap_or(epsilon()),
        activation_function: gelu(),
        tie_word_embeddings: !gguf.contains("output.weight"),
        scale_attn_weights: true,
        scale_attn_by_inverse_layer_idx: false,
        is_causal: true,
    };
    let activation = config.check(&metadata.model())?;
    Ok(Box::new(Gpt2 { config, activation, transposed: false }))
}

/// A GPT-2 whose configuration was checked.
#[derive(Debug)]
struct Gpt2 {
    config: Gpt2Config,
    activation: Activation,
    /// Whether matrices are stored as `[inputs, outputs]`.
    transposed: bool,
}

/// Keys that change nothing.
const IGNORED: &[&str] = &[
    // The size of a mask, which a longer `n_positions` cuts.
    "n_ctx",
    // Tokens that the first GPT added; its code has not used the number since.
    "n_special",
];

/// `config.json`.
#[derive(Debug, Clone, Deserialize)]
struct Gpt2Config {
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_positions: usize,
    n_inner: Option<usize>,
    vocab_size: usize,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f32,
    #[serde(default = "gelu")]
    activation_function: String,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default = "yes")]
    is_causal: bool,
}

fn epsilon() -> f32 {
    1e-5
}

fn gelu() -> String {
    "gelu_new".into()
}

fn yes() -> bool {
    true
}

impl Gpt2Config {
    fn check(&self, model: &str) -> Result<Activation> {
        let unsupported = |reason: String| Err(Error::Unsupported { model: model.into(), reason });
        if !self.scale_attn_weights || self.scale_attn_by_inverse_layer_idx {
            return unsupported("it scales attention in a way of its own (scale_attn_…)".into());
        }
        if !self.is_causal {
            return unsupported(
                "its config.json sets \"is_causal\" to false: such a model cannot write text".into(),
            );
        }
        let sizes = [
            ("n_embd", self.n_embd),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_positions", self.n_positions),
            ("vocab_size", self.vocab_size),
            ("n_inner", self.n_inner.unwrap_or(1)),
        ];
        if let Some((key, size)) = sizes.iter().find(|(_, size)| !is_size(*size)) {
            return unsupported(format!("its {key} is {size}; it must be 1 to {LARGEST_SIZE}"));
        }
        if !self.n_embd.is_multiple_of(self.n_head) {
            return unsupported(format!("{} heads do not divide states of {}", self.n_head, self.n_embd));
        }
        let width = self.n_embd / self.n_head;
        if width > LONGEST_HEAD {
            return unsupported(format!(
                "its attention heads are {width} wide; the widest that run here are {LONGEST_HEAD}"
            ));
        }
        match self.activation_function.as_str() {
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "gelu" => Ok(Activation::Gelu),
            "relu" => Ok(Activation::Relu),
            other => unsupported(format!(
                "its activation_function is {other:?}; supported are gelu_new, gelu_pytorch_tanh, gelu, relu"
            )),
        }
    }
}

impl Gpt2 {
    /// Names may have the prefix "transformer." or not.
    fn name(tensors: &dyn Tensors, name: &str) -> String {
        let prefix = if tensors.contains("transformer.wte.weight") { "transformer." } else { "" };
        format!("{prefix}{name}")
    }

    fn norm(&self, tensors: &dyn Tensors, name: &str) -> Result<NormTensors> {
        let name = Self::name(tensors, name);
        let vector = |rest: &str| tensors.vector(&format!("{name}.{rest}"), self.config.n_embd);
        let epsilon = self.config.layer_norm_epsilon;
        Ok(NormTensors { scale: vector("weight")?, shift: Some(vector("bias")?), epsilon })
    }

    fn table(&self, tensors: &dyn Tensors, name: &str, rows: usize) -> Result<Matrix> {
        tensors.matrix(&Self::name(tensors, name), [rows, self.config.n_embd])
    }
}

impl Architecture for Gpt2 {
    fn describe(&self) -> Description {
        let Gpt2Config { n_embd, n_layer, n_head, .. } = self.config;
        Description {
            hidden: n_embd,
            layers: n_layer,
            heads: Heads { heads: n_head, kv_heads: n_head, width: n_embd / n_head },
            attention: vec![LayerAttention::new(Mask::CAUSAL)],
            vocabulary: self.config.vocab_size,
            context: self.config.n_positions,
            activation: self.activation,
            norm_first: true,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        Ok(EmbeddingTensors {
            words: self.table(tensors, "wte.weight", self.config.vocab_size)?,
            positions: Some(self.table(tensors, "wpe.weight", self.config.n_positions)?),
            token_types: None,
            norm: None,
            projection: None,
            projection_norm: None,
        })
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let hidden = self.config.n_embd;
        let inner = self.config.n_inner.unwrap_or(4 * hidden);
        let linear = |rest: &str, inputs: usize, outputs: usize| -> Result<Biased> {
            let name = Self::name(tensors, &format!("h.{index}.{rest}"));
            let matrix = |shape| tensors.matrix(&format!("{name}.weight"), shape);
            let matrix = if self.transposed {
                transposed(&matrix([inputs, outputs])?)?.into()
            } else {
                matrix([outputs, inputs])?
            };
            Ok((matrix, Some(tensors.vector(&format!("{name}.bias"), outputs)?)))
        };
        Ok(LayerTensors {
            attention_norm: Some(self.norm(tensors, &format!("h.{index}.ln_1"))?),
            mlp_norm: Some(self.norm(tensors, &format!("h.{index}.ln_2"))?),
            ..LayerTensors::new(
                MixerTensors::attention(vec![linear("attn.c_attn", hidden, 3 * hidden)?]),
                linear("attn.c_proj", hidden, hidden)?,
                MlpTensors::plain(linear("mlp.c_fc", hidden, inner)?, linear("mlp.c_proj", inner, hidden)?),
            )
        })
    }

    fn final_norm(&self, tensors: &dyn Tensors) -> Result<Option<NormTensors>> {
        self.norm(tensors, "ln_f").map(Some)
    }

    fn stores_transposed(&self, name: &str) -> bool {
        let turned = ["c_attn.weight", "c_proj.weight", "c_fc.weight"];
        self.transposed && turned.iter().any(|end| name.ends_with(end))
    }

    fn head(&self, tensors: &dyn Tensors) -> Result<Matrix> {
        let (head, shape) = ("lm_head.weight", [self.config.vocab_size, self.config.n_embd]);
        match self.config.tie_word_embeddings {
            true => tensors.tied_matrix(&Self::name(tensors, "wte.weight"), head, shape),
            false => tensors.matrix(head, shape),
        }
    }
}

/// `[inputs, outputs]` to `[outputs, inputs]`.
pub(super) fn transposed(stored: &Matrix) -> Result<Weight> {
    let Matrix::Plain(stored) = stored else {
        return Err(Error::Internal {
            place: "gpt2".into(),
            reason: "a quantized matrix cannot be turned".into(),
        });
    };
    let (inputs, outputs) = (stored.rows(), stored.columns());
    let size = stored.stored().bytes();
    let mut scratch = Vec::new();
    let from = stored.bytes().read(0..inputs * outputs * size, &mut scratch)?;
    let mut to = zeroed::<u8>(from.len())?;
    // Blocks of rows and columns, so that both sides stay in the cache.
    for first in (0..inputs).step_by(32) {
        for column in 0..outputs {
            for row in first..inputs.min(first + 32) {
                let (source, target) = ((row * outputs + column) * size, (column * inputs + row) * size);
                to[target..target + size].copy_from_slice(&from[source..source + size]);
            }
        }
    }
    Weight::owned(to, stored.stored(), vec![outputs, inputs])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_moves_every_number() {
        let values: Vec<f32> = (0..70 * 3).map(|i| i as f32).collect();
        let turned = transposed(&Weight::from_f32(&values, &[70, 3]).unwrap().into()).unwrap();
        assert_eq!(turned.shape(), [3, 70]);
        let turned = turned.to_f32().unwrap();
        assert!(
            (0..70).all(|row| (0..3).all(|column| turned[column * 70 + row] == values[row * 3 + column]))
        );
    }

    #[test]
    fn what_is_no_plain_gpt2_is_named() {
        let refusal = |extra: &str| {
            let base = r#"{"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 8, "vocab_size": 9"#;
            let config: Gpt2Config = serde_json::from_str(&format!("{base}{extra}}}")).unwrap();
            config.check("m").unwrap_err().to_string()
        };
        assert!(refusal(r#", "activation_function": "swish""#).contains("\"swish\""));
        let wide: Gpt2Config = serde_json::from_str(
            r#"{"n_embd": 1026, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 9}"#,
        )
        .unwrap();
        assert!(wide.check("m").unwrap_err().to_string().contains("513 wide"));
        assert!(refusal(r#", "scale_attn_by_inverse_layer_idx": true"#).contains("scale_attn"));
    }
}
