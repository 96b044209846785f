//! A convolution whose outputs are added to the first layer's states: DeBERTa-v2's.

use super::architecture::{Architecture, misuse};
use super::tensors::Tensors;
use crate::Result;
use crate::compute::{Activation, Backend, Pass, StatesOf};

/// A convolution of the embeddings along the text on a backend.
pub(super) struct Convolution<B: Backend> {
    size: usize,
    linear: B::Linear,
    activation: Activation,
    /// Of the sum of the first layer's states and what [`apply`](Self::apply) gives.
    pub(super) norm: B::Norm,
}

impl<B: Backend> Convolution<B> {
    /// That of `architecture`, if it has one.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape; those of the backend.
    pub(super) fn load(
        backend: &B,
        architecture: &dyn Architecture,
        tensors: &dyn Tensors,
    ) -> Result<Option<Self>> {
        let Some(part) = architecture.convolution(tensors)? else { return Ok(None) };
        if architecture.describe().norm_first {
            return Err(misuse("a convolution ends with a norm"));
        }
        let (size, activation) = (part.size, part.activation);
        let norm = backend.norm(&part.norm.scale, part.norm.shift.as_ref(), part.norm.epsilon)?;
        Ok(Some(Self { size, linear: backend.linear(&[part.linear])?, activation, norm }))
    }

    /// The outputs for the rows of `x`.
    pub(super) fn apply<'a>(&self, pass: &mut B::Pass<'a>, x: &StatesOf<'a, B>) -> Result<StatesOf<'a, B>> {
        let rows = pass.im2col(x, self.size)?;
        pass.linear(&rows, &self.linear, self.activation)
    }
}
