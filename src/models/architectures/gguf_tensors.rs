//! Tensors of GGUF files under transformers' names.

use super::tensors::Tensors;
use crate::compute::{Matrix, Stored, Weight};
use crate::models::formats::gguf::Gguf;
use crate::{Error, Result};

/// The tensors of a GGUF file under transformers' names.
#[derive(Debug)]
pub(crate) struct GgufTensors<'a>(pub &'a Gguf);

impl GgufTensors<'_> {
    /// The name that a GGUF file gives a tensor.
    pub(crate) fn renamed(name: &str) -> String {
        const PARTS: [(&str, &str); 78] = [
            ("model.layers.", "blk."),
            // Experts.
            ("mlp.gate.", "ffn_gate_inp."),
            ("mlp.experts.gate_proj", "ffn_gate_exps"),
            ("mlp.experts.up_proj", "ffn_up_exps"),
            ("mlp.experts.gate_up_proj", "ffn_gate_up_exps.weight"),
            ("mlp.experts.down_proj", "ffn_down_exps"),
            ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
            ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
            ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
            ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
            ("mlp.expert_bias", "exp_probs_b.bias"),
            ("feed_forward.gate.", "ffn_gate_inp."),
            ("feed_forward.experts.gate_proj", "ffn_gate_exps"),
            ("feed_forward.experts.up_proj", "ffn_up_exps"),
            ("feed_forward.experts.gate_up_proj", "ffn_gate_up_exps.weight"),
            ("feed_forward.experts.down_proj", "ffn_down_exps"),
            ("feed_forward.expert_bias", "exp_probs_b.bias"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.qkv_proj", "attn_qkv"),
            ("self_attn.o_proj", "attn_output"),
            ("self_attn.sinks", "attn_sinks.weight"),
            ("self_attn.q_norm", "attn_q_norm"),
            ("self_attn.k_norm", "attn_k_norm"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.gate_up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("model.embed_tokens", "token_embd"),
            ("lm_head", "output"),
            // LFM2.
            ("operator_norm", "attn_norm"),
            ("self_attn.out_proj", "attn_output"),
            ("self_attn.q_layernorm", "attn_q_norm"),
            ("self_attn.k_layernorm", "attn_k_norm"),
            ("conv.in_proj", "shortconv.in_proj"),
            ("conv.out_proj", "shortconv.out_proj"),
            ("conv.conv", "shortconv.conv"),
            ("feed_forward.w1", "ffn_gate"),
            ("feed_forward.w2", "ffn_down"),
            ("feed_forward.w3", "ffn_up"),
            ("model.embedding_norm", "token_embd_norm"),
            // BERT.
            ("encoder.layer.", "blk."),
            ("attention.self.query", "attn_q"),
            ("attention.self.key", "attn_k"),
            ("attention.self.value", "attn_v"),
            ("attention.output.dense", "attn_output"),
            ("attention.output.LayerNorm", "attn_output_norm"),
            ("intermediate.dense", "ffn_up"),
            ("output.dense", "ffn_down"),
            ("embeddings.word_embeddings", "token_embd"),
            ("embeddings.position_embeddings", "position_embd"),
            ("embeddings.token_type_embeddings", "token_types"),
            ("embeddings.LayerNorm", "token_embd_norm"),
            // ModernBERT.
            ("embeddings.tok_embeddings", "token_embd"),
            ("embeddings.norm", "token_embd_norm"),
            ("attn.Wqkv", "attn_qkv"),
            ("attn.Wo", "attn_output"),
            ("mlp_norm", "ffn_norm"),
            ("mlp.Wi", "ffn_up"),
            ("mlp.Wo", "ffn_down"),
            ("final_norm", "output_norm"),
            // JinaBERT.
            ("mlp.gated_layers_w", "ffn_gate"),
            ("mlp.gated_layers_v", "ffn_up"),
            ("mlp.gated_layers", "ffn_up"),
            ("mlp.wo", "ffn_down"),
            ("mlp.layernorm", "layer_output_norm"),
            // GPT-2.
            ("attn.c_attn", "attn_qkv"),
            ("attn.c_proj", "attn_output"),
            ("mlp.c_fc", "ffn_up"),
            ("mlp.c_proj", "ffn_down"),
            ("ln_1", "attn_norm"),
            ("ln_2", "ffn_norm"),
            ("ln_f", "output_norm"),
            ("wte.", "token_embd."),
            ("wpe.", "position_embd."),
        ];
        let layer = name.strip_prefix("h.").or_else(|| name.strip_prefix("layers."));
        let name = layer.map_or_else(|| name.to_owned(), |layer| format!("blk.{layer}"));
        let name = PARTS.iter().fold(name, |name, (theirs, ours)| name.replace(theirs, ours));
        name.replace("model.norm", "output_norm").replace("output.LayerNorm", "layer_output_norm")
    }
}

impl Tensors for GgufTensors<'_> {
    fn contains(&self, name: &str) -> bool {
        self.0.contains(&Self::renamed(name))
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        let name = Self::renamed(name);
        let matrix = self.0.matrix(&name)?;
        match (self.0.shape(&name), matrix) {
            (Some(found), matrix) if found == shape => Ok(matrix),
            // Some converters write one row as a vector.
            (Some(&[columns]), Matrix::Plain(row)) if shape == [1, columns] => {
                Ok(Matrix::Plain(row.reshaped(&shape)))
            }
            _ => Err(self.wrong(&name, &shape)),
        }
    }

    fn stacked(&self, name: &str, shape: [usize; 3]) -> Result<Matrix> {
        let name = Self::renamed(name);
        let matrix = self.0.matrix(&name)?;
        if self.0.shape(&name) != Some(&shape[..]) {
            return Err(self.wrong(&name, &shape));
        }
        Ok(match matrix {
            Matrix::Plain(weight) => Matrix::Plain(weight.reshaped(&[shape[0] * shape[1], shape[2]])),
            blocks @ Matrix::Blocks(_) => blocks,
        })
    }

    fn vector(&self, name: &str, length: usize) -> Result<Weight> {
        let name = Self::renamed(name);
        let matrix = self.0.matrix(&name)?;
        if self.0.shape(&name) != Some(&[length]) {
            return Err(self.wrong(&name, &[length]));
        }
        match matrix {
            Matrix::Plain(weight) if weight.stored() == Stored::F32 => Ok(weight),
            // What stands in other formats in a vector is as exact in this one.
            other => Weight::from_f32(&other.to_f32()?, &[length]),
        }
    }
}

impl GgufTensors<'_> {
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

#[cfg(test)]
#[path = "gguf_encoder_tests.rs"]
mod tests;
