//! The model, whatever file describes it.

use crate::compute::memory::zeroed;
use crate::compute::{Activation, Biased, Heads, LayerAttention, Matrix, Positions, Weight};
use crate::models::architectures::architecture::{Architecture, Description, Factors};
use crate::models::architectures::tensors::{
    EmbeddingTensors, LayerTensors, MixerTensors, MlpTensors, NormTensors, Tensors,
};
use crate::{Error, Result};

/// The names of tensors, without `.weight` and `.bias`; those of a layer follow its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TensorNames {
    pub words: &'static str,
    pub layers: &'static str,
    pub attention_norm: &'static str,
    pub mlp_norm: &'static str,
    /// Queries, keys and values as three tensors.
    pub qkv: [&'static str; 3],
    /// As one.
    pub fused_qkv: &'static str,
    /// The norms of queries and of keys.
    pub head_norms: [&'static str; 2],
    pub output: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub final_norm: &'static str,
    /// The matrix of logits. Files have one of these.
    pub head: [&'static str; 2],
}

/// transformers' names of StableLM, of which the others have some.
pub(super) const STABLELM: TensorNames = TensorNames {
    words: "model.embed_tokens",
    layers: "model.layers",
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    fused_qkv: "",
    head_norms: ["self_attn.q_layernorm", "self_attn.k_layernorm"],
    output: "self_attn.o_proj",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    final_norm: "model.norm",
    head: ["lm_head", "lm_head"],
};

pub(super) const STARCODER2: TensorNames = TensorNames { up: "mlp.c_fc", down: "mlp.c_proj", ..STABLELM };

pub(super) const PHI: TensorNames = TensorNames {
    output: "self_attn.dense",
    up: "mlp.fc1",
    down: "mlp.fc2",
    final_norm: "model.final_layernorm",
    ..STABLELM
};

pub(super) const NEOX: TensorNames = TensorNames {
    words: "gpt_neox.embed_in",
    layers: "gpt_neox.layers",
    fused_qkv: "attention.query_key_value",
    output: "attention.dense",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    final_norm: "gpt_neox.final_layer_norm",
    // As it was published, and as transformers has it since version 5.
    head: ["embed_out", "lm_head"],
    ..STABLELM
};

pub(super) const GGUF: TensorNames = TensorNames {
    words: "token_embd",
    layers: "blk",
    attention_norm: "attn_norm",
    mlp_norm: "ffn_norm",
    qkv: ["attn_q", "attn_k", "attn_v"],
    fused_qkv: "attn_qkv",
    head_norms: ["attn_q_norm", "attn_k_norm"],
    output: "attn_output",
    gate: "ffn_gate",
    up: "ffn_up",
    down: "ffn_down",
    final_norm: "output_norm",
    head: ["output", "output"],
};

/// How queries, keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QkvForm {
    /// As three tensors.
    Separate,
    /// As one: all queries, all keys, all values.
    Fused,
    /// As one: the queries of one head of keys, its keys and its values, then those of the next.
    FusedByGroup,
}

/// The layer normalizations of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormsOfHeads {
    /// None.
    None,
    /// The same for all heads.
    Shared,
    /// One for each head, without a shift: as many tensors.
    Each,
    /// The same, as one tensor.
    EachStacked,
}

/// Where models of this kind differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RotaryGptVariant {
    pub names: TensorNames,
    pub qkv: QkvForm,
    pub qkv_bias: bool,
    /// Of the output of attention.
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// Of the logits.
    pub head_bias: bool,
    /// Whether the perceptron has a gate.
    pub gated: bool,
    /// Whether both blocks of a layer read its input.
    pub parallel: bool,
    /// Whether they have one norm.
    pub shared_norm: bool,
    pub head_norms: NormsOfHeads,
    /// Whether the matrix of logits is that of embeddings.
    pub tied: bool,
}

/// What a model is made of, whatever file describes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RotaryGpt {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: Heads,
    pub vocabulary: usize,
    pub context: usize,
    pub epsilon: f32,
    pub activation: Activation,
    pub attention: LayerAttention,
    pub variant: RotaryGptVariant,
}

impl RotaryGpt {
    fn norm(&self, tensors: &dyn Tensors, name: &str, length: usize) -> Result<NormTensors> {
        Ok(NormTensors {
            scale: tensors.vector(&format!("{name}.weight"), length)?,
            shift: Some(tensors.vector(&format!("{name}.bias"), length)?),
            epsilon: self.epsilon,
        })
    }

    /// The norm of `heads` queries or keys.
    fn head_norm(&self, tensors: &dyn Tensors, name: &str, heads: usize) -> Result<Option<NormTensors>> {
        let (width, length) = (self.heads.width, heads * self.heads.width);
        let scales = match self.variant.head_norms {
            NormsOfHeads::None => return Ok(None),
            NormsOfHeads::Shared => return self.norm(tensors, name, width).map(Some),
            NormsOfHeads::EachStacked => {
                tensors.matrix(&format!("{name}.weight"), [heads, width])?.to_f32()?
            }
            NormsOfHeads::Each => {
                let mut scales = Vec::new();
                for head in 0..heads {
                    scales.extend(tensors.vector(&format!("{name}.norms.{head}.weight"), width)?.to_f32()?);
                }
                scales
            }
        };
        Ok(Some(NormTensors {
            scale: Weight::from_f32(&scales, &[length])?,
            shift: Some(Weight::from_f32(&zeroed(length)?, &[length])?),
            epsilon: self.epsilon,
        }))
    }

    fn head_name(&self, tensors: &dyn Tensors) -> &'static str {
        let [first, second] = self.variant.names.head;
        if tensors.contains(&format!("{first}.weight")) { first } else { second }
    }
}

impl Architecture for RotaryGpt {
    fn describe(&self) -> Description {
        Description {
            hidden: self.hidden,
            layers: self.layers,
            heads: self.heads,
            attention: vec![self.attention.clone()],
            vocabulary: self.vocabulary,
            context: self.context,
            activation: self.activation,
            norm_first: true,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }

    fn has_parallel_blocks(&self) -> bool {
        self.variant.parallel
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let name = format!("{}.weight", self.variant.names.words);
        tensors.matrix(&name, [self.vocabulary, self.hidden]).map(EmbeddingTensors::new)
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let Self { hidden, intermediate, variant, .. } = *self;
        let Heads { heads, kv_heads, width } = self.heads;
        let (names, queries, keys) = (variant.names, heads * width, kv_heads * width);
        let name = |rest: &str| format!("{}.{index}.{rest}", names.layers);
        let linear = |rest: &str, shape: [usize; 2], bias: bool| -> Result<Biased> {
            let name = name(rest);
            let shift = if bias { Some(tensors.vector(&format!("{name}.bias"), shape[0])?) } else { None };
            Ok((tensors.matrix(&format!("{name}.weight"), shape)?, shift))
        };
        let norm = |rest: &str| self.norm(tensors, &name(rest), hidden).map(Some);
        let fused = || linear(names.fused_qkv, [queries + 2 * keys, hidden], variant.qkv_bias);
        let qkv = match variant.qkv {
            QkvForm::Separate => {
                let [q, k, v] = names.qkv;
                [(q, queries), (k, keys), (v, keys)]
                    .map(|(name, outputs)| linear(name, [outputs, hidden], variant.qkv_bias))
                    .into_iter()
                    .collect::<Result<_>>()?
            }
            QkvForm::Fused => vec![fused()?],
            QkvForm::FusedByGroup => {
                let (matrix, shift) = fused()?;
                let Matrix::Plain(matrix) = matrix else {
                    return Err(Error::Internal {
                        place: "rotary_gpt".into(),
                        reason: "rows of a quantized matrix stay in their order".into(),
                    });
                };
                let shift = shift.map(|shift| by_part(&shift, self.heads)).transpose()?;
                vec![(by_part(&matrix, self.heads)?.into(), shift)]
            }
        };
        let [q, k] = names.head_norms;
        let [q, k] =
            [(q, heads), (k, kv_heads)].map(|(rest, heads)| self.head_norm(tensors, &name(rest), heads));
        let head_norms = q?.zip(k?).map(|(q, k)| [q, k]);
        let mlp_norm = if variant.shared_norm { names.attention_norm } else { names.mlp_norm };
        let wide = |rest: &str| linear(rest, [intermediate, hidden], variant.mlp_bias);
        Ok(LayerTensors {
            attention_norm: norm(names.attention_norm)?,
            mlp_norm: norm(mlp_norm)?,
            ..LayerTensors::new(
                MixerTensors::Attention { qkv, head_norms },
                linear(names.output, [hidden, queries], variant.output_bias)?,
                MlpTensors::Dense {
                    gate: variant.gated.then(|| wide(names.gate)).transpose()?,
                    up: wide(names.up)?,
                    down: linear(names.down, [hidden, intermediate], variant.mlp_bias)?,
                },
            )
        })
    }

    fn final_norm(&self, tensors: &dyn Tensors) -> Result<Option<NormTensors>> {
        self.norm(tensors, self.variant.names.final_norm, self.hidden).map(Some)
    }

    fn head(&self, tensors: &dyn Tensors) -> Result<Matrix> {
        let [words, head] =
            [self.variant.names.words, self.head_name(tensors)].map(|name| format!("{name}.weight"));
        let shape = [self.vocabulary, self.hidden];
        if self.variant.tied {
            tensors.tied_matrix(&words, &head, shape)
        } else {
            tensors.matrix(&head, shape)
        }
    }

    fn head_bias(&self, tensors: &dyn Tensors) -> Result<Option<Weight>> {
        let name = || format!("{}.bias", self.head_name(tensors));
        self.variant.head_bias.then(|| tensors.vector(&name(), self.vocabulary)).transpose()
    }
}

/// Rows that are stored by heads of keys, each with its queries, keys and values: all queries, all keys, all values.
fn by_part(stored: &Weight, heads: Heads) -> Result<Weight> {
    let Heads { heads, kv_heads, .. } = heads;
    let (rows, size) = (stored.rows(), stored.columns() * stored.stored().bytes());
    let bytes = rows / (heads + 2 * kv_heads) * size;
    let queries = heads / kv_heads;
    let mut scratch = Vec::new();
    let from = stored.bytes().read(0..rows * size, &mut scratch)?;
    let mut to = zeroed::<u8>(from.len())?;
    for (index, to) in to.chunks_exact_mut(bytes).enumerate() {
        let (group, member) = match index.checked_sub(heads) {
            None => (index / queries, index % queries),
            Some(index) => (index % kv_heads, queries + index / kv_heads),
        };
        to.copy_from_slice(&from[(group * (queries + 2) + member) * bytes..][..bytes]);
    }
    Weight::owned(to, stored.stored(), stored.shape().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_heads_become_queries_then_keys_then_values() {
        // Heads of two rows; a row of three columns begins with ten times its number.
        for (heads, kv_heads, expected) in [
            (2, 2, &[0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11][..]),
            (4, 2, &[0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]),
            (3, 1, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ] {
            let (rows, heads) = (expected.len(), Heads { heads, kv_heads, width: 2 });
            let row = |row: usize| (0..3).map(move |i| (10 * row + i) as f32);
            let values: Vec<f32> = (0..rows).flat_map(row).collect();
            let sorted = by_part(&Weight::from_f32(&values, &[rows, 3]).unwrap(), heads).unwrap();
            assert_eq!(sorted.shape(), [rows, 3]);
            let sorted_values: Vec<f32> = expected.iter().copied().flat_map(row).collect();
            assert_eq!(sorted.to_f32().unwrap(), sorted_values);
            let bias: Vec<f32> = (0..rows).map(|row| row as f32).collect();
            let sorted = by_part(&Weight::from_f32(&bias, &[rows]).unwrap(), heads).unwrap();
            assert_eq!(sorted.to_f32().unwrap(), expected.iter().map(|&row| row as f32).collect::<Vec<_>>());
        }
    }
}
