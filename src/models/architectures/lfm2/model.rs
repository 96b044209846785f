//! The model, whatever file describes it.

use crate::Result;
use crate::compute::{
    Activation, Biased, Heads, LayerAttention, Mask, Matrix, Positions, Rotary, ShortConvolutionFactors,
};
use crate::models::architectures::architecture::{Architecture, Description, Factors};
use crate::models::architectures::experts::Mixture;
use crate::models::architectures::tensors::{
    EmbeddingTensors, LayerTensors, MixerTensors, MlpTensors, NormTensors, PrefixedTensors, Tensors,
};

/// An LFM2 whose configuration was checked.
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
    /// Whether attention sees no later token.
    pub causal: bool,
    /// Whether convolutions see as many tokens after their own as before it.
    pub centered: bool,
    pub rotary: Rotary,
    /// Of each layer, whether it is attention.
    pub attends: Vec<bool>,
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
        let linear = |part, shape| tensors.maybe_biased(&name(part), shape, false);
        let norm = |part| self.norm(tensors, &name(part), width);
        let qkv = vec![
            linear("self_attn.q_proj", [heads * width, hidden])?,
            linear("self_attn.k_proj", [kv_heads * width, hidden])?,
            linear("self_attn.v_proj", [kv_heads * width, hidden])?,
        ];
        let head_norms = Some([norm("self_attn.q_layernorm")?, norm("self_attn.k_layernorm")?]);
        let output = linear("self_attn.out_proj", [hidden, heads * width])?;
        Ok((MixerTensors::Attention { qkv, head_norms }, output))
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
        let mask = if self.causal { Mask::CAUSAL } else { Mask::FULL };
        Description {
            hidden: self.hidden,
            layers: self.attends.len(),
            heads: self.heads,
            attention: vec![LayerAttention {
                rotary: Some(self.rotary.clone()),
                ..LayerAttention::new(mask)
            }],
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
        Ok(LayerTensors {
            attention_norm: Some(self.norm(&tensors, &name("operator_norm"), self.hidden)?),
            mlp_norm: Some(self.norm(&tensors, &name("ffn_norm"), self.hidden)?),
            ..LayerTensors::new(mixer, output, mlp)
        })
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
