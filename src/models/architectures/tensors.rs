//! The tensors that a transformer is made of.

use std::sync::Weak;

use crate::Result;
use crate::compute::file::WeightFile;
use crate::compute::{Biased, Matrix, Weight};

/// Named tensors of any file format, under the names that transformers gives them.
pub trait Tensors {
    /// Whether there is such a tensor.
    fn contains(&self, name: &str) -> bool;

    /// A matrix of `[outputs, inputs]`.
    ///
    /// # Errors
    /// When it is missing or has another shape; the error names the file, the tensor and both shapes.
    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix>;

    /// A vector.
    ///
    /// # Errors
    /// When it is missing or has another length; as for [`matrix`](Self::matrix).
    fn vector(&self, name: &str, length: usize) -> Result<Weight>;

    /// The files that the tensors come from. A model that still reads rows from one of them checks it after each pass.
    fn files(&self) -> Vec<Weak<WeightFile>> {
        Vec::new()
    }
}

/// The parameters of a normalization.
#[derive(Debug, Clone)]
pub struct NormTensors {
    /// Factor of each number.
    pub scale: Weight,
    /// Added to each number: a layer normalization. Without it, an RMS normalization.
    pub shift: Option<Weight>,
    /// Added to the variance, or to the mean square.
    pub epsilon: f32,
}

/// What tokens become first.
#[derive(Debug)]
pub struct EmbeddingTensors {
    /// A row for each token of the vocabulary.
    pub words: Matrix,
    /// A row for each position.
    pub positions: Option<Matrix>,
    /// A row for each token type.
    pub token_types: Option<Matrix>,
    /// After their sum.
    pub norm: Option<NormTensors>,
}

/// One layer.
#[derive(Debug)]
pub struct LayerTensors {
    /// Of the block of attention: before it, or after it and the residual.
    pub attention_norm: Option<NormTensors>,
    /// Queries, keys and values: matrices whose outputs lie side by side in this order.
    pub qkv: Vec<Biased>,
    /// RMS normalizations of queries and of keys: of each head, or as long as all heads.
    pub head_norms: Option<[NormTensors; 2]>,
    /// After attention.
    pub output: Biased,
    /// Of what `output` gives, before it is added to the residual.
    pub output_norm: Option<NormTensors>,
    /// Of the multilayer perceptron: before it, or after it and the residual.
    pub mlp_norm: Option<NormTensors>,
    /// The gate of `up`, if there is one.
    pub gate: Option<Biased>,
    /// The first matrix of the perceptron.
    pub up: Biased,
    /// The second.
    pub down: Biased,
    /// Of what `down` gives, before it is added to the residual.
    pub down_norm: Option<NormTensors>,
}
