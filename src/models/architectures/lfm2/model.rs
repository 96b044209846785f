//! The model, whatever file describes it.

use crate::Result;
use crate::compute::{Activation, Biased, Heads, LayerAttention, Matrix, Positions, ShortConvolutionFactors};
use crate::models::architectures::architecture::{Architecture, Description, Factors};
use crate::models::architectures::experts::Mixture;
use crate::models::architectures::tensors::{
    EmbeddingTensors, LayerTensors, MixerTensors, MlpTensors, NormTensors, PrefixedTensors, Tensors,
};

/// What layers of attention call their parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models::architectures) struct AttentionNames {
    pub output: &'static str,
    /// The norms of queries and of keys.
    pub norms: [&'static str; 2],
}

impl AttentionNames {
    pub(super) const LFM2: Self = Self { output: "out_proj", norms: ["q_layernorm", "k_layernorm"] };
    pub(in crate::models::architectures) const LFM3: Self =
        Self { output: "o_proj", norms: ["q_norm", "k_norm"] };
}

/// The form of layers of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models::architectures) struct AttentionForm {
    pub names: AttentionNames,
    /// Whether its matrices have biases.
    pub bias: bool,
    /// Whether the outputs of each head have a gate.
    pub gates: bool,
}

impl AttentionForm {
    pub(in crate::models::architectures) const LFM2: Self =
        Self { names: AttentionNames::LFM2, bias: false, gates: false };
}

/// An LFM2 or LFM3 whose configuration was checked.
#[derive(Debug, Clone)]
pub(in crate::models::architectures) struct Lfm2 {
    /// Length of a state.
    pub hidden: usize,
    /// Columns between the matrices of the perceptron.
    pub intermediate: usize,
    pub heads: Heads,
    pub vocabulary: usize,
    pub context: usize,
    /// Of the normalizations.
    pub epsilon: f32,
    /// Rows that an output of a convolution sees.
    pub taps: usize,
    /// Whether convolutions and the layers around them have biases.
    pub conv_bias: bool,
    /// Whether the factors of convolutions have a dimension of 1 in their middle.
    pub conv_channels: bool,
    pub tied: bool,
    /// Whether convolutions see as many tokens after their own as before it.
    pub centered: bool,
    /// Of each layer, or one of all: the mask and the rotary positions.
    pub attention: Vec<LayerAttention>,
    /// Of each layer, whether it is attention.
    pub attends: Vec<bool>,
    pub form: AttentionForm,
    /// Whether what a block gives is normalized before it is added to the residual.
    pub sandwich: bool,
    /// The mixtures of experts in the place of perceptrons.
    pub experts: Option<Mixture>,
}

const WORDS: &str = "embed_tokens.weight";

impl Lfm2 {
    fn tensors<'a>(&self, tensors: &'a dyn Tensors) -> PrefixedTensors<'a> {
        PrefixedTensors::new(tensors, WORDS, &["model.", "lfm2.", ""])
    }

    fn norm(&self, tensors: &PrefixedTensors<'_>, name: &str, length: usize) -> Result<NormTensors> {
        let scale = tensors.vector(&format!("{name}.weight"), length)?;
        Ok(NormTensors { scale, shift: None, epsilon: self.epsilon })
    }

    /// What layer `index` mixes rows with, and the matrix after it.
    fn mixer(&self, tensors: &PrefixedTensors<'_>, index: usize) -> Result<(MixerTensors, Biased)> {
        let Self { hidden, conv_bias, heads: Heads { heads, kv_heads, width }, .. } = *self;
        let name = |part: &str| format!("layers.{index}.{part}");
        if !self.attends[index] {
            let linear = |part, shape| tensors.maybe_biased(&name(part), shape, conv_bias);
            let input = linear("conv.in_proj", [3 * hidden, hidden])?;
            let output = linear("conv.out_proj", [hidden, hidden])?;
            let factors = self.factors(tensors, &name("conv.conv"))?;
            return Ok((MixerTensors::ShortConvolution { input, factors }, output));
        }
        let AttentionForm { names, bias, .. } = self.form;
        let name = |part: &str| name(&format!("self_attn.{part}"));
        let linear = |part, shape| tensors.maybe_biased(&name(part), shape, bias);
        let [queries, keys] = names.norms.map(|part| self.norm(tensors, &name(part), width));
        let qkv = vec![
            linear("q_proj", [heads * width, hidden])?,
            linear("k_proj", [kv_heads * width, hidden])?,
            linear("v_proj", [kv_heads * width, hidden])?,
        ];
        let output = linear(names.output, [hidden, heads * width])?;
        Ok((MixerTensors::Attention { qkv, head_norms: Some([queries?, keys?]) }, output))
    }

    /// What the convolution `name` multiplies and adds.
    fn factors(&self, tensors: &PrefixedTensors<'_>, name: &str) -> Result<ShortConvolutionFactors> {
        let shape: &[usize] =
            if self.conv_channels { &[self.hidden, 1, self.taps] } else { &[self.hidden, self.taps] };
        let factors = tensors.tensor(&format!("{name}.weight"), shape)?;
        let shift =
            self.conv_bias.then(|| tensors.vector(&format!("{name}.bias"), self.hidden)).transpose()?;
        // Of an even number, one more lies before.
        let before = if self.centered { self.taps / 2 } else { self.taps - 1 };
        Ok(ShortConvolutionFactors { factors, shift, before })
    }
}

impl Architecture for Lfm2 {
    fn describe(&self) -> Description {
        Description {
            hidden: self.hidden,
            layers: self.attends.len(),
            heads: self.heads,
            attention: self.attention.clone(),
            vocabulary: self.vocabulary,
            context: self.context,
            activation: Activation::Silu,
            norm_first: true,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let shape = [self.vocabulary, self.hidden];
        self.tensors(tensors).matrix(WORDS, shape).map(EmbeddingTensors::new)
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let tensors = self.tensors(tensors);
        let (mixer, output) = self.mixer(&tensors, index)?;
        let name = |part: &str| format!("layers.{index}.{part}");
        let mlp = if let Some(experts) = self.experts.as_ref().filter(|experts| experts.is_in(index)) {
            MlpTensors::Experts(experts.tensors(&tensors, &format!("layers.{index}"), self.hidden)?)
        } else {
            let wide = [self.intermediate, self.hidden];
            let linear = |part, shape| tensors.maybe_biased(&name(part), shape, false);
            MlpTensors::gated(
                linear("feed_forward.w1", wide)?,
                linear("feed_forward.w3", wide)?,
                linear("feed_forward.w2", [self.hidden, self.intermediate])?,
            )
        };
        let norm = |part: &str| self.norm(&tensors, &name(part), self.hidden);
        let added = |part: &str| self.sandwich.then(|| norm(part)).transpose();
        Ok(LayerTensors {
            attention_norm: Some(norm("operator_norm")?),
            output_norm: added("post_operator_norm")?,
            mlp_norm: Some(norm("ffn_norm")?),
            down_norm: added("post_ffn_norm")?,
            ..LayerTensors::new(mixer, output, mlp)
        })
    }

    fn attention_gate(&self, tensors: &dyn Tensors, index: usize) -> Result<Option<Vec<Biased>>> {
        if !self.attends[index] || !self.form.gates {
            return Ok(None);
        }
        let tensors = self.tensors(tensors);
        // The first is the name in published files, the second that in transformers.
        let layer = format!("layers.{index}.self_attn");
        let name = tensors.spelled(&layer, &["gate_proj", "g_proj"]);
        let gates = tensors.maybe_biased(&name, [self.heads.heads, self.hidden], false)?;
        Ok(Some(vec![gates]))
    }

    /// What a hidden token gives to the convolution is that of a row of zeros: nothing, unless there are biases.
    fn hides_tokens(&self) -> bool {
        !self.conv_bias
    }

    fn has_kernels_on_cards(&self) -> bool {
        false
    }

    fn final_norm(&self, tensors: &dyn Tensors) -> Result<Option<NormTensors>> {
        let tensors = self.tensors(tensors);
        // So some GGUF files name it.
        let other = tensors.contains("norm.weight");
        self.norm(&tensors, if other { "norm" } else { "embedding_norm" }, self.hidden).map(Some)
    }

    fn head(&self, tensors: &dyn Tensors) -> Result<Matrix> {
        let (shape, head) = ([self.vocabulary, self.hidden], "lm_head.weight");
        let words = format!("model.{WORDS}");
        if self.tied { tensors.tied_matrix(&words, head, shape) } else { tensors.matrix(head, shape) }
    }
}
