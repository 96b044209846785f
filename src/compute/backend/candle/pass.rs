//! One pass over one sequence.

use candle_core::{D, Tensor};

use super::attention::{apply_rope, attend, split_heads};
use super::device::{Candle, failed};
use super::tensors::{TensorCache, TensorLinear, TensorNorm};
use crate::compute::attention::heads::{Heads, LayerAttention};
use crate::compute::attention::rope::{RopeTable, Rotary};
use crate::compute::backend::traits::{CachedSequence, Pass, Positions, Row, Rows};
use crate::compute::kernels::activation::Activation;
use crate::{Error, Result};

/// A pass of [`Candle`] over one sequence.
#[derive(Debug)]
pub struct CandlePass<'a> {
    pub(super) backend: &'a Candle,
    pub(super) ids: &'a [u32],
    /// The token from which on tokens have type 1.
    pub(super) second_type: usize,
    /// Tokens at the end to which no token attends.
    pub(super) hidden: usize,
    /// The sequence's number in the batch.
    pub(super) number: usize,
    pub(super) sequence: Option<CachedSequence<'a, TensorCache>>,
}

impl CandlePass<'_> {
    fn first_position(&self) -> usize {
        self.sequence.as_ref().map_or(0, |sequence| sequence.cached)
    }
}

impl Pass<Candle> for CandlePass<'_> {
    /// `[tokens, width]`, or `None` for an empty sequence, which candle's operations do not support.
    type States = Option<Tensor>;

    fn numbers(&self) -> Vec<usize> {
        vec![self.number]
    }

    fn embed(
        &mut self,
        words: &Tensor,
        positions: Option<(&Tensor, Positions)>,
        token_types: Option<&Tensor>,
    ) -> Result<Option<Tensor>> {
        if self.ids.is_empty() {
            return Ok(None);
        }
        let look_up = || {
            let device = &self.backend.device;
            let rows = |table: &Tensor, ids: &[u32]| table.index_select(&Tensor::new(ids, device)?, 0);
            let mut sum = rows(words, self.ids)?;
            if let Some((positions, scheme)) = positions {
                let first = self.first_position();
                let numbers: Vec<u32> =
                    scheme.of(self.ids).map(|position| (first + position) as u32).collect();
                sum = (sum + rows(positions, &numbers)?)?;
            }
            match token_types {
                Some(types) => {
                    let last = types.dim(0)? - 1;
                    let of = |token: usize| usize::from(token >= self.second_type).min(last) as u32;
                    let numbers: Vec<u32> = (0..self.ids.len()).map(of).collect();
                    sum + rows(types, &numbers)?
                }
                None => Ok(sum),
            }
        };
        look_up().map(Some).map_err(|error| Error::Input(error.to_string()))
    }

    fn scale(&mut self, x: Option<Tensor>, factor: f32) -> Result<Option<Tensor>> {
        x.map(|x| x * f64::from(factor)).transpose().map_err(failed)
    }

    fn norm(&mut self, x: Option<Tensor>, norm: &TensorNorm) -> Result<Option<Tensor>> {
        x.map(|x| norm.apply(&x)).transpose().map_err(failed)
    }

    fn linear(
        &mut self,
        x: &Option<Tensor>,
        linear: &TensorLinear,
        activation: Activation,
    ) -> Result<Option<Tensor>> {
        x.as_ref().map(|x| linear.activated(x, activation)).transpose().map_err(failed)
    }

    fn widen(&mut self, x: Option<Tensor>, linear: &TensorLinear) -> Result<Option<Tensor>> {
        x.map(|x| linear.apply(&x)).transpose().map_err(failed)
    }

    fn linear_add_norm(
        &mut self,
        x: Option<Tensor>,
        linear: &TensorLinear,
        residual: Option<Tensor>,
        norm: &TensorNorm,
    ) -> Result<Option<Tensor>> {
        let both = x.zip(residual);
        both.map(|(x, residual)| norm.apply(&(linear.apply(&x)? + residual)?)).transpose().map_err(failed)
    }

    fn attention(
        &mut self,
        layer: usize,
        qkv: Option<Tensor>,
        heads: Heads,
        attention: &LayerAttention,
    ) -> Result<Option<Tensor>> {
        let Some(qkv) = qkv else { return Ok(None) };
        let attended = split_heads(&qkv, heads).and_then(|[queries, keys, values]| {
            let [keys, values] = match &mut self.sequence {
                Some(sequence) => sequence.cache.append(layer, sequence.cached, [keys, values])?,
                None => [keys, values],
            };
            let seen = keys.dim(0)?.saturating_sub(self.hidden);
            let before = keys.dim(0)? - queries.dim(0)?;
            let (keys, values) = (keys.narrow(0, 0, seen)?, values.narrow(0, 0, seen)?);
            attend([&queries, &keys, &values], before, heads, attention)
        });
        attended.map(Some).map_err(failed)
    }

    fn windows(&self) -> usize {
        1
    }

    fn enter(&mut self, _index: usize) {}

    fn norm_linear(
        &mut self,
        x: &Option<Tensor>,
        norm: Option<&TensorNorm>,
        linear: &TensorLinear,
        activation: Activation,
    ) -> Result<Option<Tensor>> {
        let apply = |x: &Tensor| match norm {
            Some(norm) => linear.activated(&norm.apply(x)?, activation),
            None => linear.activated(x, activation),
        };
        x.as_ref().map(apply).transpose().map_err(failed)
    }

    fn rope<'r>(&self, rotary: &'r Rotary) -> Result<RopeTable<'r>> {
        let first = self.first_position();
        let length = self.sequence.as_ref().map_or(self.ids.len(), |sequence| sequence.length);
        let rows: Vec<_> = (first..first + self.ids.len()).map(|position| (position, length)).collect();
        RopeTable::new(rotary, rows.into_iter())
    }

    fn rotate(
        &mut self,
        qkv: Option<Tensor>,
        heads: Heads,
        norms: Option<&(TensorNorm, TensorNorm)>,
        table: &RopeTable<'_>,
    ) -> Result<Option<Tensor>> {
        let Heads { heads, kv_heads, width } = heads;
        let apply = |qkv: Tensor| {
            let mut queries = apply_rope(&qkv, (0, heads), width, norms.map(|norms| &norms.0), table)?;
            if table.rotary.query_growth.is_some() {
                let rows = qkv.dim(0)?;
                let factors: Vec<f32> = (0..rows).map(|row| table.query_factor(row)).collect();
                queries = queries.broadcast_mul(&Tensor::from_vec(factors, (rows, 1), qkv.device())?)?;
            }
            let keys = apply_rope(&qkv, (heads, kv_heads), width, norms.map(|norms| &norms.1), table)?;
            let values = qkv.narrow(1, (heads + kv_heads) * width, kv_heads * width)?;
            Tensor::cat(&[queries, keys, values], 1)
        };
        qkv.map(apply).transpose().map_err(failed)
    }

    fn linear_add(
        &mut self,
        x: Option<Tensor>,
        linear: &TensorLinear,
        norm: Option<&TensorNorm>,
        factor: f32,
        residual: &mut Option<Tensor>,
    ) -> Result<()> {
        let apply = |x: Tensor| match norm {
            Some(norm) => norm.apply(&linear.apply(&x)?),
            None => linear.apply(&x),
        };
        if let (Some(x), Some(residual)) = (x, residual) {
            let sum = apply(x).and_then(|x| (x * f64::from(factor))? + &*residual);
            *residual = sum.map_err(failed)?;
        }
        Ok(())
    }

    fn pick(&mut self, x: Option<Tensor>, row: Row) -> Result<Option<Tensor>> {
        let needed = self.sequence.as_ref().is_none_or(|sequence| sequence.needs_logits);
        let pick = |x: Tensor| match row {
            Row::First => x.narrow(0, 0, 1),
            Row::Last => x.narrow(0, x.dim(0)? - 1, 1),
        };
        x.filter(|_| needed).map(pick).transpose().map_err(failed)
    }

    fn read(
        &mut self,
        x: Option<Tensor>,
        norm: Option<&TensorNorm>,
        each: &mut dyn FnMut(usize, Rows<'_>),
    ) -> Result<()> {
        let Some(x) = normed(x, norm)? else {
            each(0, Rows::new(&[], 1, 1));
            return Ok(());
        };
        let read = || x.flatten_all()?.to_vec1::<f32>();
        let width = x.dim(D::Minus1).map_err(failed)?;
        each(0, Rows::new(&read().map_err(failed)?, width, width));
        Ok(())
    }

    fn linear_norm(
        &mut self,
        x: Option<Tensor>,
        linear: &TensorLinear,
        activation: Activation,
        norm: &TensorNorm,
    ) -> Result<Option<Tensor>> {
        let apply = |x: Tensor| norm.apply(&linear.activated(&x, activation)?);
        x.map(apply).transpose().map_err(failed)
    }

    fn read_linear(
        &mut self,
        x: &Option<Tensor>,
        linear: &TensorLinear,
        each: &mut dyn FnMut(usize, Rows<'_>),
    ) -> Result<()> {
        let product = x.as_ref().map(|x| linear.apply(x)).transpose().map_err(failed)?;
        self.read(product, None, each)
    }

    fn project(
        &mut self,
        x: Option<Tensor>,
        norm: Option<&TensorNorm>,
        linear: &TensorLinear,
        out: &mut [f32],
    ) -> Result<()> {
        if let Some(x) = normed(x, norm)? {
            let read = || linear.apply(&x)?.flatten_all()?.to_vec1::<f32>();
            out.copy_from_slice(&read().map_err(failed)?);
        }
        Ok(())
    }
}

fn normed(x: Option<Tensor>, norm: Option<&TensorNorm>) -> Result<Option<Tensor>> {
    match norm {
        Some(norm) => x.map(|x| norm.apply(&x)).transpose().map_err(failed),
        None => Ok(x),
    }
}
