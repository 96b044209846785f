//! The model, whatever file describes it.

use crate::compute::{Activation, Biased, Heads, LayerAttention, Positions, Weight};
use crate::models::architectures::architecture::{Architecture, Description, Factors, Placeholders, misuse};
use crate::models::architectures::tensors::{
    EmbeddingTensors, LayerInputTensors, LayerTensors, MixerTensors, MlpTensors, NormTensors,
    PrefixedTensors, Tensors,
};
use crate::{Error, Result};

/// A model whose configuration was checked.
#[derive(Debug, Clone)]
pub(in crate::models::architectures) struct Gemma4 {
    /// Length of a state.
    pub hidden: usize,
    /// Columns between the matrices of the perceptron.
    pub intermediate: usize,
    pub vocabulary: usize,
    pub context: usize,
    /// Of the normalizations.
    pub epsilon: f32,
    pub activation: Activation,
    /// Whether attention's layers have biases.
    pub bias: bool,
    /// The attention of each layer, with its heads.
    pub attention: Vec<LayerAttention>,
    /// Length of a layer's own input.
    pub input_width: usize,
    /// Length of an output row.
    pub embedding: usize,
    pub placeholders: Option<Placeholders>,
}

const WORDS: &str = "embed_tokens.weight";

impl Gemma4 {
    fn tensors<'a>(&self, tensors: &'a dyn Tensors) -> PrefixedTensors<'a> {
        PrefixedTensors::new(tensors, WORDS, &["model.", ""])
    }

    fn norm(&self, tensors: &PrefixedTensors<'_>, name: &str, length: usize) -> Result<NormTensors> {
        let scale = tensors.vector(&format!("{name}.weight"), length)?;
        Ok(NormTensors { scale, shift: None, epsilon: self.epsilon })
    }

    fn heads(&self, index: usize) -> Result<Heads> {
        self.attention[index].heads.ok_or_else(|| misuse("every layer has heads"))
    }
}

impl Architecture for Gemma4 {
    fn describe(&self) -> Description {
        Description {
            hidden: self.hidden,
            layers: self.attention.len(),
            heads: self.attention[0].heads.unwrap_or(Heads { heads: 0, kv_heads: 0, width: 0 }),
            attention: self.attention.clone(),
            vocabulary: self.vocabulary,
            context: self.context,
            activation: self.activation,
            norm_first: true,
            positions: Positions::FromZero,
            factors: Factors { embedding: (self.hidden as f32).sqrt(), ..Factors::default() },
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let shape = [self.vocabulary, self.hidden];
        self.tensors(tensors).matrix(WORDS, shape).map(EmbeddingTensors::new)
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let tensors = self.tensors(tensors);
        let (hidden, Heads { heads, kv_heads, width }) = (self.hidden, self.heads(index)?);
        let name = |part: &str| format!("layers.{index}.{part}");
        let attention = |part, shape| tensors.maybe_biased(&name(part), shape, self.bias);
        let linear = |part, shape| tensors.maybe_biased(&name(part), shape, false);
        let norm = |part, length| self.norm(&tensors, &name(part), length);
        let qkv = vec![
            attention("self_attn.q_proj", [heads * width, hidden])?,
            attention("self_attn.k_proj", [kv_heads * width, hidden])?,
            attention("self_attn.v_proj", [kv_heads * width, hidden])?,
        ];
        let head_norms = Some([norm("self_attn.q_norm", width)?, norm("self_attn.k_norm", width)?]);
        let wide = [self.intermediate, hidden];
        let mlp = MlpTensors::gated(
            linear("mlp.gate_proj", wide)?,
            linear("mlp.up_proj", wide)?,
            linear("mlp.down_proj", [hidden, self.intermediate])?,
        );
        let output = attention("self_attn.o_proj", [hidden, heads * width])?;
        Ok(LayerTensors {
            attention_norm: Some(norm("input_layernorm", hidden)?),
            output_norm: Some(norm("post_attention_layernorm", hidden)?),
            mlp_norm: Some(norm("pre_feedforward_layernorm", hidden)?),
            down_norm: Some(norm("post_feedforward_layernorm", hidden)?),
            ..LayerTensors::new(MixerTensors::Attention { qkv, head_norms }, output, mlp)
        })
    }

    fn value_norm(&self, _tensors: &dyn Tensors, index: usize) -> Result<Option<NormTensors>> {
        let width = self.heads(index)?.width;
        let scale = Weight::from_f32(&vec![1.0; width], &[width])?;
        Ok(Some(NormTensors { scale, shift: None, epsilon: self.epsilon }))
    }

    fn layer_input(&self, tensors: &dyn Tensors, index: usize) -> Result<Option<LayerInputTensors>> {
        let tensors = self.tensors(tensors);
        let (hidden, width, layers) = (self.hidden, self.input_width, self.attention.len());
        let name = |part: &str| format!("layers.{index}.ple_block.{part}");
        let linear = |part, shape| tensors.maybe_biased(&name(part), shape, false);
        let all = tensors.matrix("ple.per_layer_model_projection.weight", [layers * width, hidden])?;
        // The outputs are divided by the root of a state's length before their norm: what it adds to their mean square counts
        // for as many times more.
        let norm = self.norm(&tensors, "ple.per_layer_projection_norm", width)?;
        Ok(Some(LayerInputTensors {
            projection: (all.slice_rows(index * width..(index + 1) * width), None),
            norm: NormTensors { epsilon: self.epsilon * hidden as f32, ..norm },
            gate: linear("per_layer_input_gate", [width, hidden])?,
            output: linear("per_layer_projection", [hidden, width])?,
            output_norm: self.norm(&tensors, &name("post_per_layer_input_norm"), hidden)?,
        }))
    }

    fn layer_factor(&self, tensors: &dyn Tensors, index: usize) -> Result<f32> {
        let name = format!("layers.{index}.layer_scalar");
        let factor = self.tensors(tensors).vector(&name, 1)?.to_f32()?[0];
        if factor.is_finite() {
            return Ok(factor);
        }
        Err(Error::Unsupported {
            model: name,
            reason: format!("it is {factor}, by which no state is multiplied"),
        })
    }

    fn final_norm(&self, tensors: &dyn Tensors) -> Result<Option<NormTensors>> {
        self.norm(&self.tensors(tensors), "norm", self.hidden).map(Some)
    }

    fn output_projection(&self, tensors: &dyn Tensors) -> Result<Option<Biased>> {
        let shape = [self.embedding, self.hidden];
        self.tensors(tensors).maybe_biased("embedding_projection", shape, false).map(Some)
    }

    fn output_width(&self) -> usize {
        self.embedding
    }

    fn placeholders(&self) -> Option<&Placeholders> {
        self.placeholders.as_ref()
    }

    fn has_kernels_on_cards(&self) -> bool {
        false
    }
}
