//! The model, and `config.json` as transformers writes it.

use serde::Deserialize;

use crate::compute::{
    Activation, Biased, Heads, LONGEST_HEAD, LayerAttention, Mask, Matrix, Positions, RopeStyle, Rotary,
};
use crate::models::architectures::family::{ConfigFile, LARGEST_SIZE};
use crate::models::architectures::rope_scaling::{RopeConfig, RopeDefaults};
use crate::models::architectures::tensors::{EmbeddingTensors, LayerTensors, NormTensors, Tensors};
use crate::models::architectures::transformer::{Architecture, Description, Factors};
use crate::{Error, Result};

/// `qwen` is the number in "qwen2", "qwen3"; `None` for Llama.
pub(super) fn read(file: &ConfigFile<'_>, qwen: Option<u8>) -> Result<Box<dyn Architecture>> {
    Ok(Box::new(file.parse::<LlamaConfig>()?.llama(&file.parse()?, file.model, qwen)?))
}

/// The keys of `config.json` that [`LlamaConfig`] reads.
pub(super) const KEYS: &[&str] = &[
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "use_sliding_window",
    // These two matter with `use_sliding_window` alone.
    "sliding_window",
    "max_window_layers",
    "layer_types",
    "hidden_act",
    "is_causal",
    "use_bidirectional_attention",
];

/// Where models of this kind differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::models::architectures) struct Variant {
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// So has the output of attention.
    pub output_bias: bool,
    /// And the perceptron.
    pub mlp_bias: bool,
    /// Each head's query and key is normalized.
    pub head_norms: bool,
}

/// What a model of this family is made of, whatever file describes it.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models::architectures) struct Llama {
    /// Length of a state.
    pub hidden: usize,
    /// Length of the perceptron's gate.
    pub intermediate: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Length of a head.
    pub head: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Positions.
    pub context: usize,
    /// Of the normalizations.
    pub epsilon: f32,
    /// Whether the matrix of logits is that of embeddings.
    pub tied: bool,
    /// Positions.
    pub rotary: Rotary,
    /// Biases and norms.
    pub variant: Variant,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
}

/// `config.json` as transformers writes it, before and since version 5.
#[derive(Debug, Clone, Deserialize)]
struct LlamaConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "epsilon")]
    rms_norm_eps: f32,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    layer_types: Vec<String>,
    is_causal: Option<bool>,
    use_bidirectional_attention: Option<bool>,
}

fn epsilon() -> f32 {
    1e-6
}

fn silu() -> String {
    "silu".into()
}

impl LlamaConfig {
    /// Checks the configuration of `model` and brings it into the common form.
    fn llama(&self, rope: &RopeConfig, model: &str, qwen: Option<u8>) -> Result<Llama> {
        let unsupported = |reason: String| Err(Error::Unsupported { model: model.into(), reason });
        if self.hidden_act != "silu" {
            return unsupported(format!("its hidden_act is {:?}; supported is silu", self.hidden_act));
        }
        if self.use_sliding_window {
            return unsupported("it attends through a sliding window (use_sliding_window)".into());
        }
        if let Some(kind) = self.layer_types.iter().find(|kind| *kind != "full_attention") {
            return unsupported(format!("its layer_types name {kind:?}; supported is full_attention"));
        }
        let causal = match (self.is_causal, self.use_bidirectional_attention) {
            (Some(true), Some(true)) | (Some(false), Some(false)) => {
                return unsupported(
                    "its config.json contradicts itself: is_causal and use_bidirectional_attention have the same \
                     value; remove the wrong one"
                        .into(),
                );
            }
            (is_causal, bidirectional) => is_causal.unwrap_or(true) && !bidirectional.unwrap_or(false),
        };
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        let head = self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1));
        // `check` refuses longer heads; none takes memory before.
        let defaults = RopeDefaults {
            head: head.min(LONGEST_HEAD),
            context: self.max_position_embeddings,
            base: 10_000.0,
            part: 1.0,
            style: RopeStyle::Neox,
        };
        let rotary = match rope.rotary(&defaults, None, &[]) {
            Ok(rotary) => rotary,
            Err(reason) => return unsupported(reason),
        };
        let llama = Llama {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads,
            head,
            vocabulary: self.vocab_size,
            context: self.max_position_embeddings,
            epsilon: self.rms_norm_eps,
            tied: self.tie_word_embeddings,
            rotary,
            variant: Variant {
                qkv_bias: qwen == Some(2) || self.attention_bias,
                output_bias: qwen != Some(2) && self.attention_bias,
                mlp_bias: self.mlp_bias,
                head_norms: qwen == Some(3),
            },
            causal,
        };
        llama.check(model)?;
        Ok(llama)
    }
}

impl Llama {
    pub(super) fn check(&self, model: &str) -> Result<()> {
        let sizes =
            [self.hidden, self.intermediate, self.layers, self.heads, self.kv_heads, self.head, self.context];
        let sound = sizes.iter().all(|&n| n > 0 && n <= LARGEST_SIZE)
            && self.heads.is_multiple_of(self.kv_heads)
            && self.head.is_multiple_of(2)
            && self.head <= LONGEST_HEAD;
        if sound {
            return Ok(());
        }
        let reason = format!(
            "its sizes do not fit together: {} query heads, {} key heads of {}, states of {}, {} layers",
            self.heads, self.kv_heads, self.head, self.hidden, self.layers
        );
        Err(Error::Unsupported { model: model.into(), reason })
    }

    fn norm(&self, tensors: &dyn Tensors, name: &str, length: usize) -> Result<NormTensors> {
        let scale = tensors.vector(&format!("{name}.weight"), length)?;
        Ok(NormTensors { scale, shift: None, epsilon: self.epsilon })
    }

    fn words(&self, tensors: &dyn Tensors, name: &str) -> Result<Matrix> {
        tensors.matrix(name, [self.vocabulary, self.hidden])
    }
}

impl Architecture for Llama {
    fn describe(&self) -> Description {
        let mask = if self.causal { Mask::CAUSAL } else { Mask::FULL };
        Description {
            hidden: self.hidden,
            layers: self.layers,
            heads: Heads { heads: self.heads, kv_heads: self.kv_heads, width: self.head },
            attention: vec![LayerAttention::new(mask).with_rotary(self.rotary.clone())],
            vocabulary: self.vocabulary,
            context: self.context,
            activation: Activation::Silu,
            norm_first: true,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let words = self.words(tensors, "model.embed_tokens.weight")?;
        Ok(EmbeddingTensors { words, positions: None, token_types: None, norm: None })
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let Self { hidden, heads, kv_heads, head, intermediate, variant, .. } = *self;
        let (queries, keys) = (heads * head, kv_heads * head);
        let name = |rest: &str| format!("model.layers.{index}.{rest}");
        let part = |rest: &str, shape: [usize; 2], bias: bool| -> Result<Biased> {
            let name = name(rest);
            let shift = if bias { Some(tensors.vector(&format!("{name}.bias"), shape[0])?) } else { None };
            Ok((tensors.matrix(&format!("{name}.weight"), shape)?, shift))
        };
        let norm = |rest: &str, length: usize| self.norm(tensors, &name(rest), length);
        let head_norms = if variant.head_norms {
            Some([norm("self_attn.q_norm", head)?, norm("self_attn.k_norm", head)?])
        } else {
            None
        };
        Ok(LayerTensors {
            attention_norm: Some(norm("input_layernorm", hidden)?),
            qkv: vec![
                part("self_attn.q_proj", [queries, hidden], variant.qkv_bias)?,
                part("self_attn.k_proj", [keys, hidden], variant.qkv_bias)?,
                part("self_attn.v_proj", [keys, hidden], variant.qkv_bias)?,
            ],
            head_norms,
            output: part("self_attn.o_proj", [hidden, queries], variant.output_bias)?,
            output_norm: None,
            mlp_norm: Some(norm("post_attention_layernorm", hidden)?),
            gate: Some(part("mlp.gate_proj", [intermediate, hidden], variant.mlp_bias)?),
            up: part("mlp.up_proj", [intermediate, hidden], variant.mlp_bias)?,
            down: part("mlp.down_proj", [hidden, intermediate], variant.mlp_bias)?,
            down_norm: None,
        })
    }

    fn final_norm(&self, tensors: &dyn Tensors) -> Result<Option<NormTensors>> {
        self.norm(tensors, "model.norm", self.hidden).map(Some)
    }

    fn head(&self, tensors: &dyn Tensors) -> Result<Matrix> {
        self.words(tensors, if self.tied { "model.embed_tokens.weight" } else { "lm_head.weight" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(extra: &str, qwen: Option<u8>) -> Result<Llama> {
        let base = r#"{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 131072"#;
        let json = format!("{base}{extra}}}");
        let config: LlamaConfig = serde_json::from_str(&json).unwrap();
        config.llama(&serde_json::from_str(&json).unwrap(), "m", qwen)
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let refusal = |extra| read(extra, None).unwrap_err().to_string();
        assert!(refusal(r#", "hidden_act": "gelu""#).contains("hidden_act is \"gelu\""));
        assert!(refusal(r#", "use_sliding_window": true"#).contains("sliding window"));
        assert!(refusal(r#", "rope_scaling": {"type": "klingon"}"#).contains("\"klingon\""));
        assert!(refusal(r#", "rope_scaling": {"type": "linear"}"#).contains("no positive factor"));
        assert!(refusal(r#", "head_dim": 7"#).contains("do not fit together"));
    }

    #[test]
    fn variants_follow_the_family() {
        let variant = |qwen| read("", qwen).unwrap().variant;
        assert_eq!(variant(None), Variant::default());
        assert_eq!(variant(Some(2)), Variant { qkv_bias: true, ..Variant::default() });
        assert_eq!(variant(Some(3)), Variant { head_norms: true, ..Variant::default() });
    }
}
