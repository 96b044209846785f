//! A convolution whose factors depend on the rows that it sees, next to attention: ConvBERT's.

use super::tensors::DynamicConvolutionTensors;
use crate::Result;
use crate::compute::{Activation, Backend, Pass, StatesOf};

/// A span-based dynamic convolution on a backend.
pub(super) struct DynamicConvolution<B: Backend> {
    depthwise: B::ShortConvolution,
    keys: B::Linear,
    scores: B::Linear,
    values: B::Linear,
}

impl<B: Backend> DynamicConvolution<B> {
    /// Takes its weights.
    ///
    /// # Errors
    /// Those of the backend.
    pub(super) fn load(backend: &B, tensors: DynamicConvolutionTensors) -> Result<Self> {
        let DynamicConvolutionTensors { depthwise, keys, scores, values } = tensors;
        Ok(Self {
            depthwise: backend.short_convolution(&depthwise)?,
            keys: backend.linear(&[keys])?,
            scores: backend.linear(&[scores])?,
            values: backend.linear(&[values])?,
        })
    }

    /// The scores of the rows that each row of `x` sees; `queries` begins with the queries of the same rows.
    pub(super) fn scores<'a>(
        &self,
        pass: &mut B::Pass<'a>,
        x: &StatesOf<'a, B>,
        queries: &StatesOf<'a, B>,
    ) -> Result<StatesOf<'a, B>> {
        let seen = pass.depthwise_convolution(x, &self.depthwise)?;
        let keys = pass.linear(&seen, &self.keys, Activation::Identity)?;
        pass.discard(seen);
        let products = pass.multiply(keys, queries)?;
        let scores = pass.linear(&products, &self.scores, Activation::Identity)?;
        pass.discard(products);
        Ok(scores)
    }

    /// Each row of `attended`, followed by the convolution's.
    pub(super) fn append<'a>(
        &self,
        pass: &mut B::Pass<'a>,
        x: &StatesOf<'a, B>,
        attended: StatesOf<'a, B>,
        scores: StatesOf<'a, B>,
        heads: usize,
    ) -> Result<StatesOf<'a, B>> {
        let values = pass.linear(x, &self.values, Activation::Identity)?;
        pass.dynamic_convolution(attended, scores, values, heads)
    }
}
