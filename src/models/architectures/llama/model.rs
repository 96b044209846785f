//! The model, whatever file describes it.

use super::parts::{MlpNames, NormForm, XieluNumbers};
use crate::compute::memory::zeroed;
use crate::compute::{Activation, Biased, Heads, LONGEST_HEAD, LayerAttention, Matrix, Positions, Weight};
use crate::models::architectures::architecture::{Architecture, Description, Factors};
use crate::models::architectures::experts::Mixture;
use crate::models::architectures::family::LARGEST_SIZE;
use crate::models::architectures::tensors::{
    EmbeddingTensors, LayerTensors, MixerTensors, MlpTensors, NormTensors, Tensors,
};
use crate::{Error, Result};

/// More layers than any model has.
const MOST_LAYERS: usize = 4096;

/// The names of a layer's norms in its files; it has those with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models::architectures) struct NormNames {
    /// Before attention.
    pub attention: Option<&'static str>,
    /// After attention, before the sum.
    pub output: Option<&'static str>,
    /// Before the perceptron.
    pub mlp: Option<&'static str>,
    /// After the perceptron, before the sum.
    pub down: Option<&'static str>,
}

impl NormNames {
    /// Llama's.
    pub(in crate::models::architectures) const FIRST: Self = Self {
        attention: Some("input_layernorm"),
        output: None,
        mlp: Some("post_attention_layernorm"),
        down: None,
    };
    /// Those of OLMo 2 and EXAONE 4: what is added is normalized alone.
    pub(in crate::models::architectures) const AFTER: Self = Self {
        attention: None,
        output: Some("post_attention_layernorm"),
        mlp: None,
        down: Some("post_feedforward_layernorm"),
    };
}

/// The norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models::architectures) enum HeadNorms {
    /// None.
    None,
    /// Of each head.
    Each,
    /// Of all heads together.
    All,
    /// Layer normalizations of each head, with numbers for each.
    Own,
}

/// Where models of this kind differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::models::architectures) struct Variant {
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// So has the output of attention.
    pub output_bias: bool,
    /// And the perceptron.
    pub mlp_bias: bool,
    /// Each head has a sink.
    pub sinks: bool,
    /// Norms of queries and keys.
    pub head_norms: HeadNorms,
    /// Their names.
    pub head_norm_names: [&'static str; 2],
    /// Whether queries and keys are rotated before them.
    pub rotates_first: bool,
    /// The other norms.
    pub norms: NormNames,
    /// Their form.
    pub norm_form: NormForm,
    /// Added to the scale of every norm.
    pub norm_offset: f32,
    /// Queries, keys and values are one tensor.
    pub fused_qkv: bool,
    /// The perceptron has a gate.
    pub gated: bool,
    /// Its gate and its first matrix are one tensor.
    pub fused_mlp: bool,
    /// The names of its matrices.
    pub mlp_names: MlpNames,
    /// Both blocks of a layer read its input, through one norm.
    pub parallel: bool,
}

impl Variant {
    /// Llama.
    pub(in crate::models::architectures) const LLAMA: Self = Self {
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        sinks: false,
        head_norms: HeadNorms::None,
        head_norm_names: ["self_attn.q_norm", "self_attn.k_norm"],
        rotates_first: false,
        norms: NormNames::FIRST,
        norm_form: NormForm::Rms,
        norm_offset: 0.0,
        fused_qkv: false,
        gated: true,
        fused_mlp: false,
        mlp_names: MlpNames::LLAMA,
        parallel: false,
    };
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
    /// Of the perceptron's gate, or without one of its first matrix.
    pub activation: Activation,
    /// Where the numbers of an activation that differ by layer are.
    pub xielu: Option<XieluNumbers>,
    /// What states and logits are multiplied by.
    pub factors: Factors,
    /// The attention of each layer. A shorter list repeats.
    pub attention: Vec<LayerAttention>,
    /// Biases, norms and the form of tensors.
    pub variant: Variant,
    /// The mixtures of experts in the place of perceptrons.
    pub experts: Option<Mixture>,
}

impl Llama {
    pub(super) fn check(&self, model: &str) -> Result<()> {
        let sizes =
            [self.hidden, self.intermediate, self.layers, self.heads, self.kv_heads, self.head, self.context];
        let sound = sizes.iter().all(|&n| n > 0 && n <= LARGEST_SIZE)
            && self.layers <= MOST_LAYERS
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
        let mut scale = tensors.vector(&format!("{name}.weight"), length)?;
        if self.variant.norm_offset != 0.0 {
            let values: Vec<f32> =
                scale.to_f32()?.into_iter().map(|x| x + self.variant.norm_offset).collect();
            scale = Weight::from_f32(&values, &[length])?;
        }
        let shift = match self.variant.norm_form {
            NormForm::Rms => None,
            NormForm::Layer => Some(tensors.vector(&format!("{name}.bias"), length)?),
            NormForm::Unshifted => Some(Weight::from_f32(&zeroed(length)?, &[length])?),
        };
        Ok(NormTensors { scale, shift, epsilon: self.epsilon })
    }

    /// The norms of queries and keys of the layer whose names `name` makes.
    fn head_norms(
        &self,
        tensors: &dyn Tensors,
        name: &dyn Fn(&str) -> String,
    ) -> Result<Option<[NormTensors; 2]>> {
        let heads = [self.heads, self.kv_heads];
        let norm = |index: usize| -> Result<NormTensors> {
            let (name, length) = (name(self.variant.head_norm_names[index]), heads[index] * self.head);
            if self.variant.head_norms != HeadNorms::Own {
                let each = self.variant.head_norms == HeadNorms::Each;
                return self.norm(tensors, &name, if each { self.head } else { length });
            }
            let scales = tensors.matrix(&format!("{name}.weight"), [heads[index], self.head])?.to_f32()?;
            let scale = Weight::from_f32(&scales, &[length])?;
            let shift = Some(Weight::from_f32(&zeroed(length)?, &[length])?);
            Ok(NormTensors { scale, shift, epsilon: self.epsilon })
        };
        match self.variant.head_norms {
            HeadNorms::None => Ok(None),
            _ => Ok(Some([norm(0)?, norm(1)?])),
        }
    }

    fn words(&self, tensors: &dyn Tensors, name: &str) -> Result<Matrix> {
        tensors.matrix(name, [self.vocabulary, self.hidden])
    }
}

impl Architecture for Llama {
    fn describe(&self) -> Description {
        Description {
            hidden: self.hidden,
            layers: self.layers,
            heads: Heads { heads: self.heads, kv_heads: self.kv_heads, width: self.head },
            attention: self.attention.clone(),
            vocabulary: self.vocabulary,
            context: self.context,
            activation: self.activation,
            norm_first: true,
            positions: Positions::FromZero,
            factors: self.factors,
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let words = self.words(tensors, "model.embed_tokens.weight")?;
        Ok(EmbeddingTensors::new(words))
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
        let block_norm = |rest: Option<&str>| rest.map(|rest| norm(rest, hidden)).transpose();
        let qkv = if variant.fused_qkv {
            vec![part("self_attn.qkv_proj", [queries + 2 * keys, hidden], variant.qkv_bias)?]
        } else {
            vec![
                part("self_attn.q_proj", [queries, hidden], variant.qkv_bias)?,
                part("self_attn.k_proj", [keys, hidden], variant.qkv_bias)?,
                part("self_attn.v_proj", [keys, hidden], variant.qkv_bias)?,
            ]
        };
        let mlp = if let Some(experts) = self.experts.as_ref().filter(|experts| experts.is_in(index)) {
            MlpTensors::Experts(experts.tensors(tensors, &format!("model.layers.{index}"), hidden)?)
        } else {
            let names = variant.mlp_names;
            let linear = |rest| part(rest, [intermediate, hidden], variant.mlp_bias);
            let (gate, up) = if variant.fused_mlp {
                let (both, _) = part(names.both, [2 * intermediate, hidden], false)?;
                let rows = |rows| (both.slice_rows(rows), None);
                (Some(rows(0..intermediate)), rows(intermediate..2 * intermediate))
            } else {
                let gate = variant.gated.then(|| linear(names.gate)).transpose()?;
                (gate, linear(names.up)?)
            };
            let down = part(names.down, [hidden, intermediate], variant.mlp_bias)?;
            MlpTensors::Dense { gate, up, down }
        };
        let second = if variant.parallel { variant.norms.attention } else { variant.norms.mlp };
        Ok(LayerTensors {
            attention_norm: block_norm(variant.norms.attention)?,
            mixer: MixerTensors::Attention { qkv, head_norms: self.head_norms(tensors, &name)? },
            output: part("self_attn.o_proj", [hidden, queries], variant.output_bias)?,
            output_norm: block_norm(variant.norms.output)?,
            mlp_norm: block_norm(second)?,
            mlp,
            down_norm: block_norm(variant.norms.down)?,
        })
    }

    fn sinks(&self, tensors: &dyn Tensors, index: usize) -> Result<Option<Weight>> {
        let sinks = || tensors.vector(&format!("model.layers.{index}.self_attn.sinks"), self.heads);
        self.variant.sinks.then(sinks).transpose()
    }

    fn layer_activation(&self, tensors: &dyn Tensors, index: usize) -> Result<Option<Activation>> {
        let numbers = self.xielu.as_ref().map(|numbers| numbers.of_layer(tensors, index));
        Ok(numbers.transpose()?.map(Activation::Xielu))
    }

    fn has_parallel_blocks(&self) -> bool {
        self.variant.parallel
    }

    fn rotates_first(&self) -> bool {
        self.variant.rotates_first
    }

    fn has_kernels_on_cards(&self) -> bool {
        self.experts.is_none() && self.xielu.is_none() && self.activation != Activation::ReluSquared
    }

    fn final_norm(&self, tensors: &dyn Tensors) -> Result<Option<NormTensors>> {
        self.norm(tensors, "model.norm", self.hidden).map(Some)
    }

    fn head(&self, tensors: &dyn Tensors) -> Result<Matrix> {
        let (words, head) = ("model.embed_tokens.weight", "lm_head.weight");
        match self.tied {
            true => tensors.tied_matrix(words, head, [self.vocabulary, self.hidden]),
            false => self.words(tensors, head),
        }
    }
}
