//! One pass over the sequences of a batch.

use std::ops::Range;

use candle_core::{D, Tensor};

use super::attention::{apply_rope, attend, attend_packed, split_heads};
use super::device::{Candle, failed};
use super::sequences::SequenceRows;
use super::tensors::{TensorCache, TensorLinear, TensorNorm, TensorRelative, TensorShortConvolution};
use crate::compute::attention::heads::{Heads, LayerAttention};
use crate::compute::attention::rope::{RopeTable, Rotary};
use crate::compute::backend::traits::{CachedSequence, Pass, Positions, Row, Rows, lacking};
use crate::compute::kernels::activation::Activation;
use crate::{Error, Result};

/// A pass of [`Candle`] over the sequences of a batch, or over the new tokens of one sequence with a cache.
#[derive(Debug)]
pub struct CandlePass<'a> {
    pub(super) backend: &'a Candle,
    /// The tokens of all its sequences.
    pub(super) ids: &'a [u32],
    /// For each sequence, the token in it from which on tokens have type 1.
    pub(super) second_types: Vec<usize>,
    /// The number in the batch of its first sequence.
    pub(super) first: usize,
    pub(super) sequences: SequenceRows,
    pub(super) cached: Option<CachedSequence<'a, TensorCache>>,
    /// Whether a sequence's results were read: then the pass cannot begin again.
    pub(super) delivered: bool,
}

impl CandlePass<'_> {
    /// Tokens in the cache before this pass.
    fn before(&self) -> usize {
        self.cached.as_ref().map_or(0, |sequence| sequence.cached)
    }

    /// Copies `x` to memory, and calls `each` with the rows of each sequence.
    fn deliver(&mut self, x: Option<&Tensor>, each: &mut dyn FnMut(usize, Rows<'_>)) -> Result<()> {
        let Some(x) = x else {
            (0..self.sequences.rows.len()).for_each(|number| each(number, Rows::new(&[], 1, 1)));
            return Ok(());
        };
        let read = || Ok((x.flatten_all()?.to_vec1::<f32>()?, x.dim(0)?, x.dim(D::Minus1)?));
        let (values, rows, width) = read().map_err(failed)?;
        self.delivered = true;
        for (number, range) in self.sequences.rows_in(rows).into_iter().enumerate() {
            each(number, Rows::new(&values[range.start * width..range.end * width], width, width));
        }
        Ok(())
    }

    /// A number for each token, from the ids of its sequence.
    fn of_tokens<I: Iterator<Item = u32>>(&self, of: impl Fn(usize, &[u32]) -> I) -> Vec<u32> {
        let rows = self.sequences.rows.iter().enumerate();
        rows.flat_map(|(number, rows)| of(number, &self.ids[rows.clone()]).collect::<Vec<_>>()).collect()
    }
}

impl Pass<Candle> for CandlePass<'_> {
    /// `[tokens, width]`, or `None` for no tokens, which candle's operations do not support.
    type States = Option<Tensor>;

    fn numbers(&self) -> Vec<usize> {
        (self.first..self.first + self.sequences.rows.len()).collect()
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
        #[cfg(test)]
        self.backend.faults.check(self.ids.len()).map_err(failed)?;
        let device = &self.backend.on.device;
        let rows = |table: &Tensor, ids: &[u32]| -> Result<Tensor> {
            // Here, since a card reads whatever lies past the end of a table.
            let last = table.dim(0).map_err(failed)? as u32;
            if let Some(id) = ids.iter().find(|&&id| id >= last) {
                return Err(Error::Input(format!("{id} is not a row of a table of {last}")));
            }
            Tensor::new(ids, device).and_then(|ids| table.index_select(&ids, 0)).map_err(failed)
        };
        let mut sum = rows(words, self.ids)?;
        if let Some((positions, scheme)) = positions {
            let before = self.before();
            let numbers = self.of_tokens(|_, ids| {
                scheme.of(ids).map(move |position| (before + position) as u32).collect::<Vec<_>>().into_iter()
            });
            sum = (sum + rows(positions, &numbers)?).map_err(failed)?;
        }
        if let Some(types) = token_types {
            let last = types.dim(0).map_err(failed)? - 1;
            let numbers = self.of_tokens(|number, ids| {
                let second = self.second_types.get(number).copied().unwrap_or(usize::MAX);
                (0..ids.len()).map(move |token| usize::from(token >= second).min(last) as u32)
            });
            sum = (sum + rows(types, &numbers)?).map_err(failed)?;
        }
        Ok(Some(sum))
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
        relative: Option<&TensorRelative>,
    ) -> Result<Option<Tensor>> {
        let Some(qkv) = qkv else { return Ok(None) };
        if relative.is_some() && self.cached.is_some() {
            return Err(lacking("attention with relative positions and a cache"));
        }
        let attended = split_heads(&qkv, heads).and_then(|[queries, keys, values]| match &mut self.cached {
            Some(sequence) => {
                let [keys, values] = sequence.cache.append(layer, sequence.cached, [keys, values])?;
                let before = keys.dim(0)? - queries.dim(0)?;
                attend([&queries, &keys, &values], before, heads, attention)
            }
            None => {
                attend_packed([&queries, &keys, &values], &mut self.sequences, heads, (attention, relative))
            }
        });
        attended.map(Some).map_err(failed)
    }

    fn short_convolution(
        &mut self,
        layer: usize,
        x: Option<Tensor>,
        convolution: &TensorShortConvolution,
    ) -> Result<Option<Tensor>> {
        let Some(x) = x else { return Ok(None) };
        if let Some(sequence) = &mut self.cached {
            let (cached, end) = (sequence.cached, sequence.cached + self.ids.len());
            let earlier = sequence.cache.rows_before(layer, cached).filter(|_| cached > 0);
            if earlier.is_none() && cached > 0 {
                return Err(lacking("a convolution after rows that are not known"));
            }
            let (y, later) = convolution.apply(&x, earlier).map_err(failed)?;
            sequence.cache.keep_rows(layer, cached, end, later);
            return Ok(Some(y));
        }
        let of = |(number, rows): (usize, &Range<usize>)| {
            let hidden = self.sequences.hidden.get(number).map_or(0, |&hidden| hidden.min(rows.len()));
            let seen = x.narrow(0, rows.start, rows.len() - hidden)?;
            if seen.dim(0)? == 0 {
                return x.narrow(0, rows.start, rows.len())?.narrow(1, 0, x.dim(1)? / 3)?.zeros_like();
            }
            convolution.apply(&seen, None)?.0.pad_with_zeros(0, 0, hidden)
        };
        let sequences = self.sequences.rows.iter().enumerate().filter(|(_, rows)| !rows.is_empty()).map(of);
        let joined = sequences.collect::<candle_core::Result<Vec<_>>>().and_then(|all| Tensor::cat(&all, 0));
        joined.map(Some).map_err(failed)
    }

    fn neighbors(&mut self, x: &Option<Tensor>, size: usize) -> Result<Option<Tensor>> {
        let Some(x) = x else { return Ok(None) };
        let side_by_side = |rows: &Range<usize>| {
            let (length, width) = (rows.len(), x.dim(1)?);
            let own = x.narrow(0, rows.start, length)?.pad_with_zeros(0, size / 2, size - 1 - size / 2)?;
            let places = (0..size).map(|place| own.narrow(0, place, length));
            Tensor::cat(&places.collect::<candle_core::Result<Vec<_>>>()?, 1)?.reshape((length, size * width))
        };
        let sequences = self.sequences.rows.iter().filter(|rows| !rows.is_empty()).map(side_by_side);
        let joined = sequences.collect::<candle_core::Result<Vec<_>>>().and_then(|all| Tensor::cat(&all, 0));
        joined.map(Some).map_err(failed)
    }

    fn add_norm(
        &mut self,
        x: Option<Tensor>,
        residual: Option<Tensor>,
        norm: &TensorNorm,
    ) -> Result<Option<Tensor>> {
        x.zip(residual).map(|(x, residual)| norm.apply(&(x + residual)?)).transpose().map_err(failed)
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
        let rows: Vec<_> = match &self.cached {
            Some(sequence) => {
                let first = sequence.cached;
                (first..first + self.ids.len()).map(|position| (position, sequence.length)).collect()
            }
            None => {
                let rows = self.sequences.rows.iter().map(std::ops::Range::len);
                rows.flat_map(|length| (0..length).map(move |position| (position, length))).collect()
            }
        };
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
        if self.cached.as_ref().is_some_and(|sequence| !sequence.needs_logits) {
            return Ok(None);
        }
        let some = self.sequences.rows.iter().filter(|rows| !rows.is_empty());
        let picked: Vec<u32> = some
            .map(|rows| match row {
                Row::First => rows.start as u32,
                Row::Last => rows.end as u32 - 1,
            })
            .collect();
        let pick = |x: Tensor| x.contiguous()?.index_select(&Tensor::new(picked.as_slice(), x.device())?, 0);
        x.map(pick).transpose().map_err(failed)
    }

    fn read(
        &mut self,
        x: Option<Tensor>,
        norm: Option<&TensorNorm>,
        each: &mut dyn FnMut(usize, Rows<'_>),
    ) -> Result<()> {
        let x = normed(x, norm)?;
        self.deliver(x.as_ref(), each)
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
        self.deliver(product.as_ref(), each)
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
