//! What a family says of its model over tensors.

use super::loader::TensorLoader;
use super::state::DecoderModel;
use crate::Result;

/// A family's model over tensors.
pub trait CandleArchitecture {
    /// Its decoder, with the matrix that makes logits.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn decoder(&self, loader: &mut TensorLoader<'_>) -> Result<Box<dyn DecoderModel>>;
}
