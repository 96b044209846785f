//! What a family says of its model: numbers, switches, and where its tensors are.

use std::borrow::Cow;
use std::fmt::Debug;

use super::tensors::{
    ConvolutionTensors, DynamicConvolutionTensors, EmbeddingTensors, LayerInputTensors, LayerTensors,
    LayerTokenTensors, NormTensors, Tensors,
};

use crate::compute::{
    Activation, Biased, DistanceBias, Heads, LayerAttention, Matrix, Positions, RelativeLayers,
    RelativeTable, Weight,
};
use crate::{Error, Result};

/// The numbers and switches of a transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// Length of a state.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Attention's heads.
    pub heads: Heads,
    /// The attention of each layer. A list shorter than the layers repeats from its beginning.
    pub attention: Vec<LayerAttention>,
    /// Tokens.
    pub vocabulary: usize,
    /// Most tokens of a text.
    pub context: usize,
    /// Between the matrices of the perceptron; of its gate where it has one.
    pub activation: Activation,
    /// Whether each block ends with the sum of its residual; else it ends with the norm of that sum.
    pub norm_first: bool,
    /// How rows of learned positions are chosen.
    pub positions: Positions,
    /// What states and logits are multiplied by.
    pub factors: Factors,
}

/// What states and logits are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factors {
    /// Of the embeddings.
    pub embedding: f32,
    /// Of what a block adds to its residual, if its norm comes first.
    pub residual: f32,
    /// Of the logits.
    pub logits: f32,
    /// The soft cap of the logits: they become `cap * tanh(logits / cap)`.
    pub logits_cap: Option<f32>,
}

impl Default for Factors {
    fn default() -> Self {
        Self { embedding: 1.0, residual: 1.0, logits: 1.0, logits_cap: None }
    }
}

impl Factors {
    /// Applies the factor and the cap of logits.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        if self.logits != 1.0 {
            logits.iter_mut().for_each(|x| *x *= self.logits);
        }
        if let Some(cap) = self.logits_cap {
            logits.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
        }
    }
}

/// Tokens that stand for images and sound, which are not computed: a text that names one has another token's embedding there,
/// as in transformers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholders {
    /// These tokens.
    pub ids: Vec<u32>,
    /// The other token.
    pub token: u32,
}

impl Placeholders {
    /// `ids` as the model reads them.
    pub(super) fn replaced<'i>(&self, ids: &'i [u32]) -> Cow<'i, [u32]> {
        if !ids.iter().any(|id| self.ids.contains(id)) {
            return ids.into();
        }
        ids.iter().map(|id| if self.ids.contains(id) { self.token } else { *id }).collect()
    }
}

impl Description {
    /// Whether no token attends to a later one, so that the model can write text.
    pub fn is_causal(&self) -> bool {
        self.attention.iter().all(|layer| layer.mask.is_causal())
    }
}

/// A family's model as its files describe it: its numbers, and where its tensors are.
pub trait Architecture: Debug + Send + Sync {
    /// Its numbers.
    fn describe(&self) -> Description;

    /// What tokens become first.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors>;

    /// Layer `index`.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors>;

    /// Whether attention and the perceptron of a layer both read the layer's input, and both results are added to it. Each
    /// has its norm before it, which may be the same one.
    fn has_parallel_blocks(&self) -> bool {
        false
    }

    /// Whether queries and keys are rotated before their norms, and not after them.
    fn rotates_first(&self) -> bool {
        false
    }

    /// The activation of layer `index`, where it has numbers of its own; else it is the one that
    /// [`describe`](Self::describe) gives.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape, or has a number that is not computed.
    fn layer_activation(&self, _tensors: &dyn Tensors, _index: usize) -> Result<Option<Activation>> {
        Ok(None)
    }

    /// The first layer that has the weights and the attention of layer `index`: another one where layers share them.
    fn same_as(&self, index: usize) -> usize {
        index
    }

    /// The norm after the last layer, if there is one.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn final_norm(&self, _tensors: &dyn Tensors) -> Result<Option<NormTensors>> {
        Ok(None)
    }

    /// A bias by distance that all layers add to the scores of attention, where it comes from a tensor.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn distance_bias(&self, _tensors: &dyn Tensors) -> Result<Option<DistanceBias>> {
        Ok(None)
    }

    /// The score of each head of layer `index` that competes with those of its keys, if there is one: an attention sink.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn sinks(&self, _tensors: &dyn Tensors, _index: usize) -> Result<Option<Weight>> {
        Ok(None)
    }

    /// The relative positions that attention compares contents with, if it does.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn relative_table(&self, _tensors: &dyn Tensors) -> Result<Option<RelativeTable>> {
        Ok(None)
    }

    /// What layer `index` makes of them.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn relative_layers(&self, _tensors: &dyn Tensors, _index: usize) -> Result<RelativeLayers> {
        Ok(RelativeLayers::default())
    }

    /// A convolution whose outputs are added to the first layer's states, if there is one.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn convolution(&self, _tensors: &dyn Tensors) -> Result<Option<ConvolutionTensors>> {
        Ok(None)
    }

    /// The convolution whose outputs stand next to those of layer `index`'s attention, if it has one.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn dynamic_convolution(
        &self,
        _tensors: &dyn Tensors,
        _index: usize,
    ) -> Result<Option<DynamicConvolutionTensors>> {
        Ok(None)
    }

    /// The norm of each head of the values of layer `index`, without a shift, if there is one.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn value_norm(&self, _tensors: &dyn Tensors, _index: usize) -> Result<Option<NormTensors>> {
        Ok(None)
    }

    /// The input that layer `index` makes of the embeddings, if it has one of its own.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn layer_input(&self, _tensors: &dyn Tensors, _index: usize) -> Result<Option<LayerInputTensors>> {
        Ok(None)
    }

    /// A table of tokens whose rows are added to the inputs of layers: for each token of the vocabulary, one row after the other
    /// for each layer.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn layer_tokens(&self, _tensors: &dyn Tensors) -> Result<Option<LayerTokenTensors>> {
        Ok(None)
    }

    /// What the states after layer `index` are multiplied by.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape, or is no number.
    fn layer_factor(&self, _tensors: &dyn Tensors, _index: usize) -> Result<f32> {
        Ok(1.0)
    }

    /// What makes output rows of normalized states, where these are not the output rows themselves.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn output_projection(&self, _tensors: &dyn Tensors) -> Result<Option<Biased>> {
        Ok(None)
    }

    /// Length of an output row of the encoder.
    fn output_width(&self) -> usize {
        self.describe().hidden
    }

    /// Tokens that stand for what is not text, and the token whose embedding they have in a text.
    fn placeholders(&self) -> Option<&Placeholders> {
        None
    }

    /// The matrices that make a number for each output of layer `index`'s attention, or for each head, whose sigmoid multiplies
    /// the output, or those of the head, if there are such gates. They read what queries are made of, and their outputs lie side
    /// by side.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn attention_gate(&self, _tensors: &dyn Tensors, _index: usize) -> Result<Option<Vec<Biased>>> {
        Ok(None)
    }

    /// Whether its files store the matrix `name` as `[inputs, outputs]`.
    fn stores_transposed(&self, _name: &str) -> bool {
        false
    }

    /// Whether it computes texts with tokens that the others do not see, as transformers does.
    fn hides_tokens(&self) -> bool {
        true
    }

    /// Whether the kernels for NVIDIA's cards have all its operations; else candle's operations compute it there.
    fn has_kernels_on_cards(&self) -> bool {
        true
    }

    /// The matrix that makes logits of states, `[vocabulary, hidden]`.
    ///
    /// # Errors
    /// When the tensor is missing or of another shape; [`Error::Internal`] for an architecture that writes no text.
    fn head(&self, _tensors: &dyn Tensors) -> Result<Matrix> {
        Err(misuse("an encoder has no head that writes text"))
    }

    /// What is added to the logits, if anything is.
    ///
    /// # Errors
    /// When the tensor is missing or of another shape.
    fn head_bias(&self, _tensors: &dyn Tensors) -> Result<Option<Weight>> {
        Ok(None)
    }
}

/// Checks that the tensors of a network are there and have its shapes. Those that are used as their file stores them are not
/// read. `writes` asks for those that make logits too.
///
/// # Errors
/// When a tensor is missing or of another shape.
pub fn check_tensors(architecture: &dyn Architecture, tensors: &dyn Tensors, writes: bool) -> Result<()> {
    architecture.embeddings(tensors)?;
    architecture.convolution(tensors)?;
    architecture.distance_bias(tensors)?;
    architecture.relative_table(tensors)?;
    architecture.layer_tokens(tensors)?;
    let layers = 0..architecture.describe().layers;
    for index in layers.filter(|&index| architecture.same_as(index) == index) {
        architecture.layer(tensors, index)?;
        architecture.layer_activation(tensors, index)?;
        architecture.sinks(tensors, index)?;
        architecture.relative_layers(tensors, index)?;
        architecture.dynamic_convolution(tensors, index)?;
        architecture.value_norm(tensors, index)?;
        architecture.layer_input(tensors, index)?;
        architecture.layer_factor(tensors, index)?;
        architecture.attention_gate(tensors, index)?;
    }
    architecture.final_norm(tensors)?;
    architecture.output_projection(tensors)?;
    if writes {
        architecture.head(tensors)?;
        architecture.head_bias(tensors)?;
    }
    Ok(())
}

/// A description that its code should not have made.
pub(super) fn misuse(reason: &str) -> Error {
    Error::Internal { place: "transformer".into(), reason: reason.into() }
}
