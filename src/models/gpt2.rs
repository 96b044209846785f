//! GPT-2: learned positions, layer normalisation, GELU, and matrices stored as `[inputs, outputs]`.

use serde::Deserialize;

use super::LARGEST_SIZE;
use super::causal::{Block, Causal, Norm};
use crate::compute::decoder::{CacheShape, Linear, Matrix, Packer};
use crate::compute::memory::zeroed;
use crate::compute::{Activation, LONGEST_HEAD, Tensors, Weight};
use crate::{Error, Result};

/// The keys of `config.json` that are read.
pub(crate) const KEYS: &[&str] = &[
    "n_embd",
    "n_layer",
    "n_head",
    "n_positions",
    // The size of a mask, which a longer `n_positions` cuts.
    "n_ctx",
    "n_inner",
    "vocab_size",
    "layer_norm_epsilon",
    "activation_function",
    "tie_word_embeddings",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "is_causal",
    // Tokens that the first GPT added; its code has not used the number since.
    "n_special",
];

/// `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
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

impl Config {
    /// Packs the weights of `tensors`. Names may have the prefix "transformer." or not.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a configuration that is no plain GPT-2; when a tensor is missing or of another shape.
    pub fn load(&self, model: &str, tensors: &dyn Tensors, packer: &Packer) -> Result<Causal> {
        let activation = self.check(model)?;
        let hidden = self.n_embd;
        let inner = self.n_inner.unwrap_or(4 * hidden);
        let prefix = if tensors.contains("transformer.wte.weight") { "transformer." } else { "" };
        let vector = |name: &str, n: usize| tensors.get_shaped(&format!("{prefix}{name}"), &[n]);
        let norm = |name: &str| -> Result<Norm> {
            Ok(Norm::Layer {
                scale: vector(&format!("{name}.weight"), hidden)?.to_f32()?,
                shift: vector(&format!("{name}.bias"), hidden)?.to_f32()?,
                epsilon: self.layer_norm_epsilon,
            })
        };
        let linear = |name: &str, inputs: usize, outputs: usize| -> Result<Linear> {
            let stored = tensors.get_shaped(&format!("{prefix}{name}.weight"), &[inputs, outputs])?;
            let matrix = Matrix::Plain(transposed(&stored)?);
            packer.linear(&[(matrix, Some(vector(&format!("{name}.bias"), outputs)?))])
        };
        let mut blocks = Vec::new();
        for layer in 0..self.n_layer {
            let name = |rest: &str| format!("h.{layer}.{rest}");
            blocks.push(Block {
                attention_norm: norm(&name("ln_1"))?,
                qkv: linear(&name("attn.c_attn"), hidden, 3 * hidden)?,
                head_norms: None,
                output: linear(&name("attn.c_proj"), hidden, hidden)?,
                mlp_norm: norm(&name("ln_2"))?,
                up: linear(&name("mlp.c_fc"), hidden, inner)?,
                activation,
                down: linear(&name("mlp.c_proj"), inner, hidden)?,
            });
        }
        let table = |name: &str, rows: usize| tensors.get_shaped(name, &[rows, hidden]);
        let words = table(&format!("{prefix}wte.weight"), self.vocab_size)?;
        let words = packer.linear(&[(Matrix::Plain(words), None)])?;
        let (embedding, head) = if self.tie_word_embeddings {
            (None, words)
        } else {
            let own = Matrix::Plain(table("lm_head.weight", self.vocab_size)?);
            (Some(words), packer.linear(&[(own, None)])?)
        };
        let positions = table(&format!("{prefix}wpe.weight"), self.n_positions)?;
        Ok(Causal {
            machine: packer.machine,
            hold: packer.hold,
            hidden,
            heads: self.n_head,
            cache: CacheShape { layers: self.n_layer, kv_heads: self.n_head, width: hidden / self.n_head },
            context: self.n_positions,
            embedding,
            positions: Some(positions.load()?),
            rotary: None,
            blocks,
            final_norm: norm("ln_f")?,
            head,
        })
    }

    pub(super) fn check(&self, model: &str) -> Result<Activation> {
        let unsupported = |reason: String| Err(Error::Unsupported { model: model.into(), reason });
        if !self.scale_attn_weights || self.scale_attn_by_inverse_layer_idx {
            return unsupported("it scales attention in a way of its own (scale_attn_…)".into());
        }
        if !self.is_causal {
            return unsupported(
                "its config.json sets \"is_causal\" to false: such a model cannot write text".into(),
            );
        }
        let sizes = [self.n_embd, self.n_layer, self.n_head, self.n_positions, self.vocab_size];
        let inner = self.n_inner.unwrap_or(1);
        let bounded = sizes.iter().chain([&inner]).all(|&n| n > 0 && n <= LARGEST_SIZE);
        if !bounded {
            return unsupported(format!("a size in its config.json is 0 or larger than {LARGEST_SIZE}"));
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

/// `[inputs, outputs]` to `[outputs, inputs]`.
fn transposed(stored: &Weight) -> Result<Weight> {
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
        let turned = transposed(&Weight::from_f32(&values, &[70, 3]).unwrap()).unwrap();
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
            let config: Config = serde_json::from_str(&format!("{base}{extra}}}")).unwrap();
            config.check("m").unwrap_err().to_string()
        };
        assert!(refusal(r#", "activation_function": "swish""#).contains("\"swish\""));
        let wide: Config = serde_json::from_str(
            r#"{"n_embd": 1026, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 9}"#,
        )
        .unwrap();
        assert!(wide.check("m").unwrap_err().to_string().contains("513 wide"));
        assert!(refusal(r#", "scale_attn_by_inverse_layer_idx": true"#).contains("scale_attn"));
    }
}
