//! The gated delta rule, one row after the other.

use candle_core::{D, Tensor};

use super::device::{Candle, failed};
use super::tensors::{TensorNorm, TensorShortConvolution};
use crate::Result;
use crate::compute::backend::traits::Backend;
use crate::compute::delta_rule::{DeltaHeads, DeltaRuleFactors, LENGTH_EPSILON};

/// A gated delta rule.
#[derive(Debug)]
pub struct TensorDeltaRule {
    heads: DeltaHeads,
    convolution: TensorShortConvolution,
    /// `[1, values]`.
    rates: Tensor,
    /// `[1, values]`.
    shift: Tensor,
    norm: TensorNorm,
    /// For each head of values, that of its keys.
    key_heads: Tensor,
}

pub(super) fn sigmoid(x: &Tensor) -> candle_core::Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// Each head with the length 1.
fn with_length_one(x: &Tensor) -> candle_core::Result<Tensor> {
    x.broadcast_div(&(x.sqr()?.sum_keepdim(D::Minus1)? + f64::from(LENGTH_EPSILON))?.sqrt()?)
}

impl TensorDeltaRule {
    pub(super) fn new(backend: &Candle, factors: &DeltaRuleFactors) -> Result<Self> {
        let heads = factors.heads;
        let convolution = backend.short_convolution(&factors.convolution()?)?;
        let row = |numbers: Vec<f32>| backend.tensor(numbers, &[1, heads.values]);
        let keys: Vec<u32> = (0..heads.values).map(|head| heads.key_of(head) as u32).collect();
        Ok(Self {
            heads,
            convolution,
            rates: row(factors.rates.to_f32()?)?,
            shift: row(factors.shift.to_f32()?)?,
            norm: backend.norm(&factors.norm, None, factors.epsilon)?,
            key_heads: Tensor::new(keys.as_slice(), &backend.on.device).map_err(failed)?,
        })
    }

    /// Columns of what it gives.
    pub(super) fn outputs(&self) -> usize {
        self.heads.all_values()
    }

    /// The outputs for the rows of a sequence, and the rows and states that later ones go on from. `earlier` are those before.
    pub(super) fn apply(
        &self,
        x: &Tensor,
        earlier: Option<(&Tensor, &Tensor)>,
    ) -> candle_core::Result<(Tensor, [Tensor; 2])> {
        let DeltaHeads { keys, values, key_width, value_width, .. } = self.heads;
        let (rows, columns, all) = (x.dim(0)?, self.heads.columns(), self.heads.all_values());
        let own = x.narrow(1, 0, columns)?;
        let seen = match earlier {
            Some((earlier, _)) => Tensor::cat(&[earlier, &own], 0)?,
            None => own.pad_with_zeros(0, self.convolution.before, 0)?,
        };
        let qkv = self.convolution.sum(&seen, rows)?.silu()?;
        let heads_of = |first: usize| {
            let part = qkv.narrow(1, first, keys * key_width)?.reshape((rows, keys, key_width))?;
            with_length_one(&part)?.index_select(&self.key_heads, 1)
        };
        let queries = (heads_of(0)? * (key_width as f64).sqrt().recip())?;
        let stored_keys = heads_of(keys * key_width)?;
        let value = qkv.narrow(1, 2 * keys * key_width, all)?.reshape((rows, values, value_width))?;
        let gates = x.narrow(1, columns, all)?;
        let stored = sigmoid(&x.narrow(1, columns + all, values)?)?;
        let a = x.narrow(1, columns + all + values, values)?.broadcast_add(&self.shift)?;
        // ln(1 + e^a), without an overflow.
        let softplus = (a.relu()? + (a.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
        let kept = softplus.broadcast_mul(&self.rates)?.exp()?;
        let mut state = match earlier {
            Some((_, state)) => state.clone(),
            None => Tensor::zeros((values, key_width, value_width), x.dtype(), x.device())?,
        };
        let mut outputs = Vec::with_capacity(rows);
        for row in 0..rows {
            let by_head = |of: &Tensor| of.narrow(0, row, 1)?.reshape((values, 1, 1));
            let key = stored_keys.narrow(0, row, 1)?.reshape((values, key_width, 1))?;
            let query = queries.narrow(0, row, 1)?.reshape((values, key_width, 1))?;
            state = state.broadcast_mul(&by_head(&kept)?)?;
            let known = state.broadcast_mul(&key)?.sum_keepdim(1)?;
            let value = value.narrow(0, row, 1)?.reshape((values, 1, value_width))?;
            let change = (value - known)?.broadcast_mul(&by_head(&stored)?)?;
            state = (state + key.broadcast_mul(&change)?)?;
            outputs.push(state.broadcast_mul(&query)?.sum(1)?);
        }
        let outputs = self.norm.apply(&Tensor::stack(&outputs, 0)?)?.reshape((rows, all))?;
        let later = seen.narrow(0, rows, self.convolution.before)?.force_contiguous()?;
        Ok(((outputs * gates.silu()?)?, [later, state]))
    }
}
