//! The end of a decoder: its last norm, and the layer that makes logits.

use candle_core::Tensor;

use super::loader::TensorLoader;
use super::ops::{CandleLinear, CandleNorm, IDENTITY, Ops, failed};
use crate::Result;

/// What makes logits of states.
pub(super) struct CandleHead {
    norm: CandleNorm,
    weight: CandleLinear,
}

impl CandleHead {
    /// The head over the states that `norm` gives: `words` if it is tied to them and the file has no other
    /// one, else the tensor `lm_head.weight`.
    ///
    /// # Errors
    /// When that tensor is missing or of another shape.
    pub(super) fn load(
        loader: &TensorLoader<'_>,
        norm: CandleNorm,
        words: &Tensor,
        tied: bool,
    ) -> Result<Self> {
        let (vocabulary, hidden) = words.dims2().map_err(failed)?;
        let weight = match tied && !loader.has_own_head(words)? {
            true => CandleLinear::new(words.clone(), None)?,
            false => loader.linear("lm_head", [vocabulary, hidden], false)?,
        };
        Ok(Self { norm, weight })
    }

    /// The logits after the last of the states `[tokens, hidden]`: one row.
    pub(super) fn logits(&self, ops: &Ops, states: &Tensor) -> Result<Tensor> {
        let last = states.dim(0).and_then(|tokens| states.narrow(0, tokens - 1, 1)).map_err(failed)?;
        ops.linear(&ops.norm(&last, &self.norm)?, &self.weight, IDENTITY)
    }
}
