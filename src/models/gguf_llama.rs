//! Llama, Qwen2 and Qwen3 from GGUF files: their metadata as a shape, their tensors under transformers' names.

use super::causal::Source;
use super::gguf::Gguf;
use super::llama::{Shape, Variant};
use crate::compute::decoder::{Matrix, Pairing, Rotary};
use crate::compute::{Stored, Weight};
use crate::{Error, Result};

/// The architectures that are read.
pub const SUPPORTED: [&str; 3] = ["llama", "qwen2", "qwen3"];

impl Shape {
    /// What the metadata of a GGUF file says; `prefix` is its architecture.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming what is missing, [`Error::Unsupported`].
    pub fn from_gguf(gguf: &Gguf, prefix: &str) -> Result<Self> {
        let key = |name: &str| format!("{prefix}.{name}");
        let (hidden, heads) =
            (gguf.required(&key("embedding_length"))?, gguf.required(&key("attention.head_count"))?);
        let model = gguf.path().display().to_string();
        let head = gguf.number(&key("attention.key_length")).unwrap_or(hidden / heads.max(1));
        let turned = gguf.number(&key("rope.dimension_count")).unwrap_or(head);
        let llama = prefix == "llama";
        let base = gguf.float(&key("rope.freq_base")).unwrap_or(10_000.0);
        let pairing = if llama { Pairing::Neighbours } else { Pairing::Halves };
        let mut rotary = Rotary::new(base, turned.min(head), pairing);
        match gguf.text(&key("rope.scaling.type")) {
            None | Some("none") => {}
            Some("linear") => {
                let factor = gguf.float(&key("rope.scaling.factor")).filter(|&x| x > 0.0).unwrap_or(1.0);
                rotary.frequencies.iter_mut().for_each(|frequency| *frequency /= factor);
            }
            Some(other) => {
                let reason = format!("its rotary scaling is {other:?}; supported are none and linear");
                return Err(Error::Unsupported { model, reason });
            }
        }
        if gguf.contains("rope_freqs.weight")
            && let Matrix::Plain(factors) = gguf.matrix("rope_freqs.weight")?
        {
            for (frequency, factor) in rotary.frequencies.iter_mut().zip(factors.to_f32()) {
                *frequency /= factor;
            }
        }
        let vocabulary = gguf.shape("token_embd.weight").and_then(<[usize]>::first).copied();
        let shape = Self {
            hidden,
            intermediate: gguf.required(&key("feed_forward_length"))?,
            layers: gguf.required(&key("block_count"))?,
            heads,
            kv_heads: gguf.number(&key("attention.head_count_kv")).unwrap_or(heads),
            head,
            vocabulary: vocabulary.unwrap_or(0),
            context: gguf.required(&key("context_length"))?,
            epsilon: gguf.float(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5),
            tied: !gguf.contains("output.weight"),
            rotary,
            variant: Variant {
                qkv_bias: gguf.contains("blk.0.attn_q.bias"),
                output_bias: gguf.contains("blk.0.attn_output.bias"),
                mlp_bias: gguf.contains("blk.0.ffn_up.bias"),
                head_norms: gguf.contains("blk.0.attn_q_norm.weight"),
            },
        };
        shape.check(&model)?;
        Ok(shape)
    }
}

/// The tensors of a GGUF file under transformers' names.
#[derive(Debug)]
pub struct GgufSource<'a>(pub &'a Gguf);

impl GgufSource<'_> {
    /// The name that a GGUF file gives a tensor.
    pub(crate) fn renamed(name: &str) -> String {
        const PARTS: [(&str, &str); 14] = [
            ("model.layers.", "blk."),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("self_attn.q_norm", "attn_q_norm"),
            ("self_attn.k_norm", "attn_k_norm"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("model.embed_tokens", "token_embd"),
            ("lm_head", "output"),
        ];
        let name = PARTS.iter().fold(name.to_owned(), |name, (theirs, ours)| name.replace(theirs, ours));
        name.replace("model.norm", "output_norm")
    }
}

impl Source for GgufSource<'_> {
    fn contains(&self, name: &str) -> bool {
        self.0.contains(&Self::renamed(name))
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        let name = Self::renamed(name);
        let matrix = self.0.matrix(&name)?;
        if self.0.shape(&name) == Some(&shape[..]) { Ok(matrix) } else { Err(self.wrong(&name, &shape)) }
    }

    fn vector(&self, name: &str, length: usize) -> Result<Weight> {
        let name = Self::renamed(name);
        match self.0.matrix(&name)? {
            Matrix::Plain(weight) if weight.shape() == [length] && weight.stored() == Stored::F32 => {
                Ok(weight)
            }
            _ => Err(self.wrong(&name, &[length])),
        }
    }
}

impl GgufSource<'_> {
    fn wrong(&self, name: &str, wanted: &[usize]) -> Error {
        Error::InvalidFile {
            path: self.0.path().to_path_buf(),
            reason: format!(
                "the tensor {name:?} has shape {:?}, but the model asks for {wanted:?}; the file is damaged or of another model",
                self.0.shape(name).unwrap_or_default()
            ),
        }
    }
}
