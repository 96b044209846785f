//! What a family says of its model over tensors.

use candle_core::Tensor;

use super::loader::TensorLoader;
use super::ops::Ops;
use super::state::DecoderModel;
use crate::{Error, Result};

/// A family's model over tensors.
pub trait CandleArchitecture {
    /// Its encoder.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn encoder(&self, _loader: &mut TensorLoader<'_>) -> Result<Box<dyn EncoderModel>> {
        Err(absent("embeds"))
    }

    /// Its decoder, with the matrix that makes logits.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    fn decoder(&self, _loader: &mut TensorLoader<'_>) -> Result<Box<dyn DecoderModel>> {
        Err(absent("writes"))
    }
}

/// The layers of an encoder.
pub trait EncoderModel: Send + Sync {
    /// The states of the tokens of one sequence, which has some: `[tokens, width]`. Tokens from `second` on have type 1.
    ///
    /// # Errors
    /// [`Error::Input`] for a token outside the vocabulary; those of candle.
    fn states(&self, ops: &Ops, ids: &[u32], second: usize) -> Result<Tensor>;
}

fn absent(what: &str) -> Error {
    Error::Internal { place: "candle".into(), reason: format!("this family {what} no text") }
}
