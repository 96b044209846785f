//! One pass over the sequences of a batch.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{D, Tensor};

use super::attention::{apply_rope, attend, attend_packed, place_of, softmax, split_heads};
use super::delta_rule::{TensorDeltaRule, sigmoid};
use super::device::{Candle, failed};
use super::groups::AttentionGroups;
use super::tensors::{TensorCache, TensorLinear, TensorNorm, TensorRelative, TensorShortConvolution};
use crate::Result;
use crate::compute::attention::heads::{Heads, KeySource, LayerAttention};
use crate::compute::attention::rope::{RopeTable, Rotary};
use crate::compute::backend::rows::{PassRows, TableOf};
use crate::compute::backend::traits::{Pass, Positions, Row, Rows, TokenRows, lacking};
use crate::compute::experts::Experts;
use crate::compute::kernels::activation::Activation;

/// A pass of [`Candle`] over the sequences of a batch, or over the new tokens of one sequence with a cache.
#[derive(Debug)]
pub struct CandlePass<'a> {
    pub(super) backend: &'a Candle,
    pub(super) rows: PassRows<'a>,
    pub(super) groups: AttentionGroups,
    /// That of the only sequence, if it has one.
    pub(super) cache: Option<&'a mut TensorCache>,
    /// The keys and values of layers whose later layers use them, without a cache.
    kept: HashMap<usize, [Tensor; 2]>,
    /// The rows that were gathered last.
    gathered: Option<Vec<u32>>,
    /// Whether a sequence's results were read: then the pass cannot begin again.
    pub(super) delivered: bool,
}

impl<'a> CandlePass<'a> {
    pub(super) fn new(backend: &'a Candle, rows: PassRows<'a>, cache: Option<&'a mut TensorCache>) -> Self {
        let (groups, kept) = (AttentionGroups::default(), HashMap::new());
        Self { backend, rows, groups, cache, kept, gathered: None, delivered: false }
    }

    /// What `make` makes of the rows of each sequence that has some, below each other.
    fn joined(&self, make: &dyn Fn(&Range<usize>) -> candle_core::Result<Tensor>) -> Result<Option<Tensor>> {
        let sequences = self.rows.sequences.iter().filter(|rows| !rows.is_empty()).map(make);
        let joined = sequences.collect::<candle_core::Result<Vec<_>>>().and_then(|all| Tensor::cat(&all, 0));
        joined.map(Some).map_err(failed)
    }

    /// Attention of gathered rows to the keys and values of all rows.
    fn attend_gathered(
        &self,
        [queries, keys, values]: [&Tensor; 3],
        heads: Heads,
        attention: &LayerAttention,
    ) -> candle_core::Result<Tensor> {
        let places = self.gathered.iter().flatten().map(|&place| place as usize).enumerate();
        let attended = places.map(|(row, place)| {
            let holds = |(_, rows): &(usize, &Range<usize>)| rows.contains(&place);
            let Some((number, rows)) = self.rows.sequences.iter().enumerate().find(holds) else {
                candle_core::bail!("row {place} is in no sequence")
            };
            let seen = |x: &Tensor| x.narrow(0, rows.start, self.rows.seen(number));
            let own = [&queries.narrow(0, row, 1)?, &seen(keys)?, &seen(values)?];
            attend(own, place - rows.start, heads, attention)
        });
        Tensor::cat(&attended.collect::<candle_core::Result<Vec<_>>>()?, 0)
    }

    /// Copies `x` to memory, and calls `each` with the rows of each sequence.
    fn deliver(&mut self, x: Option<&Tensor>, each: &mut dyn FnMut(usize, Rows<'_>)) -> Result<()> {
        let Some(x) = x else {
            (0..self.rows.sequences.len()).for_each(|number| each(number, Rows::new(&[], 1, 1)));
            return Ok(());
        };
        let read = || Ok((x.flatten_all()?.to_vec1::<f32>()?, x.dim(0)?, x.dim(D::Minus1)?));
        let (values, rows, width) = read().map_err(failed)?;
        self.delivered = true;
        for (number, range) in self.rows.rows_in(rows).into_iter().enumerate() {
            each(number, Rows::new(&values[range.start * width..range.end * width], width, width));
        }
        Ok(())
    }
}

impl Pass<Candle> for CandlePass<'_> {
    /// `[tokens, width]`, or `None` for no tokens, which candle's operations do not support.
    type States = Option<Tensor>;

    fn sequence_indices(&self) -> Vec<usize> {
        self.rows.sequence_indices()
    }

    fn embed(
        &mut self,
        words: &Tensor,
        positions: Option<(&Tensor, Positions)>,
        token_types: Option<&Tensor>,
    ) -> Result<Option<Tensor>> {
        if self.rows.ids.is_empty() {
            return Ok(None);
        }
        #[cfg(test)]
        self.backend.faults.check(self.rows.ids.len()).map_err(failed)?;
        let device = &self.backend.on.device;
        let rows_of = |table: &Tensor| table.dim(0).map_err(failed);
        let looked_up = |of: TableOf, table: &Tensor, numbers: &[u32]| -> Result<Tensor> {
            of.check(numbers, rows_of(table)?)?;
            Tensor::new(numbers, device).and_then(|numbers| table.index_select(&numbers, 0)).map_err(failed)
        };
        let mut sum = looked_up(TableOf::Tokens, words, &self.rows.ids)?;
        if let Some((table, scheme)) = positions {
            let numbers = self.rows.positions(scheme)?;
            sum = (sum + looked_up(TableOf::Positions, table, &numbers)?).map_err(failed)?;
        }
        if let Some(table) = token_types {
            let numbers = self.rows.token_types(rows_of(table)?);
            sum = (sum + looked_up(TableOf::TokenTypes, table, &numbers)?).map_err(failed)?;
        }
        Ok(Some(sum))
    }

    fn copy(&mut self, x: &Option<Tensor>) -> Result<Option<Tensor>> {
        Ok(x.clone())
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

    fn project_embeddings(&mut self, x: Option<Tensor>, linear: &TensorLinear) -> Result<Option<Tensor>> {
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
        if relative.is_some() && self.cache.is_some() {
            return Err(lacking("attention with relative positions and a cache"));
        }
        let reused = match (attention.reuses_keys(), &self.cache) {
            (false, _) => None,
            (true, Some(cache)) => Some(cache.layers[layer].clone()),
            (true, None) => Some(self.kept.get(&layer).cloned()),
        };
        let parts = match reused {
            Some(Some([keys, values])) => Ok([qkv, keys, values]),
            Some(None) => return Err(lacking("keys of a layer that has none")),
            None => split_heads(&qkv, heads),
        };
        if self.gathered.is_some() && !(attention.reuses_keys() && attention.mask.is_causal()) {
            return Err(lacking("attention of gathered rows to keys of their own layer"));
        }
        let attended = parts.and_then(|[queries, keys, values]| match &mut self.cache {
            Some(cache) => {
                let [keys, values] = match attention.reuses_keys() {
                    true => [keys, values],
                    false => cache.append(layer, self.rows.cached_len(0), [keys, values])?,
                };
                let before = keys.dim(0)? - queries.dim(0)?;
                attend([&queries, &keys, &values], before, heads, attention)
            }
            None if self.gathered.is_some() => {
                self.attend_gathered([&queries, &keys, &values], heads, attention)
            }
            None => {
                if attention.keys == KeySource::Kept {
                    self.kept.insert(layer, [keys.clone(), values.clone()]);
                }
                let rows = (&self.rows, &mut self.groups);
                attend_packed([&queries, &keys, &values], rows, heads, (attention, relative))
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
        if let Some(cache) = &mut self.cache {
            let (cached, end) = (self.rows.cached_len(0), self.rows.cached_len(0) + self.rows.ids.len());
            let earlier = cache.rows_before(layer, cached).filter(|_| cached > 0);
            if earlier.is_none() && cached > 0 {
                return Err(lacking("a convolution after rows that are not known"));
            }
            let (y, later) = convolution.apply(&x, earlier).map_err(failed)?;
            cache.keep_rows(layer, cached, end, later);
            return Ok(Some(y));
        }
        let of = |(number, rows): (usize, &Range<usize>)| {
            let hidden = rows.len() - self.rows.seen(number);
            let seen = x.narrow(0, rows.start, self.rows.seen(number))?;
            if seen.dim(0)? == 0 {
                return x.narrow(0, rows.start, rows.len())?.narrow(1, 0, x.dim(1)? / 3)?.zeros_like();
            }
            convolution.apply(&seen, None)?.0.pad_with_zeros(0, 0, hidden)
        };
        let sequences = self.rows.sequences.iter().enumerate().filter(|(_, rows)| !rows.is_empty()).map(of);
        let joined = sequences.collect::<candle_core::Result<Vec<_>>>().and_then(|all| Tensor::cat(&all, 0));
        joined.map(Some).map_err(failed)
    }

    fn delta_rule(
        &mut self,
        layer: usize,
        x: Option<Tensor>,
        rule: &TensorDeltaRule,
    ) -> Result<Option<Tensor>> {
        let Some(x) = x else { return Ok(None) };
        if let Some(cache) = &mut self.cache {
            let (cached, end) = (self.rows.cached_len(0), self.rows.cached_len(0) + self.rows.ids.len());
            let known = |part: usize| cache.rows_before(2 * layer + part, cached).filter(|_| cached > 0);
            let earlier = known(0).zip(known(1));
            if earlier.is_none() && cached > 0 {
                return Err(lacking("a delta rule after rows that are not known"));
            }
            let (y, [rows, states]) = rule.apply(&x, earlier).map_err(failed)?;
            cache.keep_rows(2 * layer, cached, end, rows);
            cache.keep_rows(2 * layer + 1, cached, end, states);
            return Ok(Some(y));
        }
        let of = |(number, rows): (usize, &Range<usize>)| {
            let seen = self.rows.seen(number);
            if seen == 0 {
                return Tensor::zeros((rows.len(), rule.outputs()), x.dtype(), x.device());
            }
            rule.apply(&x.narrow(0, rows.start, seen)?, None)?.0.pad_with_zeros(0, 0, rows.len() - seen)
        };
        let sequences = self.rows.sequences.iter().enumerate().filter(|(_, rows)| !rows.is_empty()).map(of);
        let joined = sequences.collect::<candle_core::Result<Vec<_>>>().and_then(|all| Tensor::cat(&all, 0));
        joined.map(Some).map_err(failed)
    }

    fn gate(&mut self, x: Option<Tensor>, gates: Option<Tensor>) -> Result<Option<Tensor>> {
        let gated = |x: Tensor, gates: Tensor| {
            let (rows, columns) = x.dims2()?;
            let (count, gates) = (gates.dim(1)?, sigmoid(&gates)?);
            if count == columns {
                return x * gates;
            }
            let parts = x.reshape((rows, count, columns / count))?;
            parts.broadcast_mul(&gates.unsqueeze(2)?)?.reshape((rows, columns))
        };
        x.zip(gates).map(|(x, gates)| gated(x, gates)).transpose().map_err(failed)
    }

    fn depthwise_convolution(
        &mut self,
        x: &Option<Tensor>,
        convolution: &TensorShortConvolution,
    ) -> Result<Option<Tensor>> {
        let Some(x) = x else { return Ok(None) };
        self.joined(&|rows| convolution.without_gates(&x.narrow(0, rows.start, rows.len())?))
    }

    fn multiply(&mut self, x: Option<Tensor>, by: &Option<Tensor>) -> Result<Option<Tensor>> {
        x.zip(by.as_ref()).map(|(x, by)| x.mul(&by.narrow(1, 0, x.dim(1)?)?)).transpose().map_err(failed)
    }

    fn multiply_by_inputs(
        &mut self,
        x: Option<Tensor>,
        embeddings: &Option<Tensor>,
        (linear, norm): (&TensorLinear, &TensorNorm),
        tokens: Option<TokenRows<'_, Tensor>>,
    ) -> Result<Option<Tensor>> {
        let Some((x, e)) = x.zip(embeddings.as_ref()) else { return Ok(None) };
        let mut input = linear.apply(e).and_then(|input| norm.apply(&input)).map_err(failed)?;
        if let Some(TokenRows { table, each, at, factor }) = tokens {
            let ids: Vec<u32> = match &self.gathered {
                Some(rows) => rows.iter().map(|&row| self.rows.ids[row as usize]).collect(),
                None => self.rows.ids.to_vec(),
            };
            TableOf::Tokens.check(&ids, table.dim(0).map_err(failed)? / each)?;
            let numbers: Vec<u32> = ids.iter().map(|id| id * each as u32 + at as u32).collect();
            let rows = Tensor::new(numbers, x.device()).and_then(|numbers| table.index_select(&numbers, 0));
            let sum = rows.and_then(|rows| (rows * f64::from(factor))? + input);
            input = sum.map_err(failed)?;
        }
        x.mul(&input).map(Some).map_err(failed)
    }

    fn norm_values(
        &mut self,
        qkv: Option<Tensor>,
        heads: Heads,
        norm: &TensorNorm,
    ) -> Result<Option<Tensor>> {
        let Heads { heads, kv_heads, width } = heads;
        let apply = |qkv: Tensor| {
            let (rows, first) = (qkv.dim(0)?, (heads + kv_heads) * width);
            let values = qkv.narrow(1, first, kv_heads * width)?.reshape((rows, kv_heads, width))?;
            let values = norm.apply(&values)?.reshape((rows, kv_heads * width))?;
            Tensor::cat(&[qkv.narrow(1, 0, first)?, values], 1)
        };
        qkv.map(apply).transpose().map_err(failed)
    }

    fn dynamic_convolution(
        &mut self,
        x: Option<Tensor>,
        scores: Option<Tensor>,
        values: Option<Tensor>,
        heads: usize,
    ) -> Result<Option<Tensor>> {
        let (Some(x), Some(scores), Some(values)) = (x, scores, values) else { return Ok(None) };
        let convolved = self.joined(&|rows| {
            let own = |all: &Tensor| all.narrow(0, rows.start, rows.len());
            convolved_dynamically(&own(&scores)?, &own(&values)?, heads)
        })?;
        convolved.map(|convolved| Tensor::cat(&[x, convolved], 1)).transpose().map_err(failed)
    }

    fn im2col(&mut self, x: &Option<Tensor>, size: usize) -> Result<Option<Tensor>> {
        let Some(x) = x else { return Ok(None) };
        let side_by_side = |rows: &Range<usize>| {
            let (length, width) = (rows.len(), x.dim(1)?);
            let own = x.narrow(0, rows.start, length)?.pad_with_zeros(0, size / 2, size - 1 - size / 2)?;
            let places = (0..size).map(|place| own.narrow(0, place, length));
            Tensor::cat(&places.collect::<candle_core::Result<Vec<_>>>()?, 1)?.reshape((length, size * width))
        };
        self.joined(&side_by_side)
    }

    fn add_norm(
        &mut self,
        x: Option<Tensor>,
        residual: Option<Tensor>,
        norm: &TensorNorm,
    ) -> Result<Option<Tensor>> {
        x.zip(residual).map(|(x, residual)| norm.apply(&(x + residual)?)).transpose().map_err(failed)
    }

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
        RopeTable::new(rotary, self.rows.rotary_positions().into_iter())
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
            let places = self.gathered.as_deref();
            let of_queries = norms.map(|norms| &norms.0);
            let mut queries = apply_rope(&qkv, (0, heads), width, of_queries, (table, places))?;
            if kv_heads == 0 {
                return Ok(queries);
            }
            if table.rotary.query_growth.is_some() {
                let rows = qkv.dim(0)?;
                let factors: Vec<f32> =
                    (0..rows).map(|row| table.query_factor(place_of(places, row))).collect();
                queries = queries.broadcast_mul(&Tensor::from_vec(factors, (rows, 1), qkv.device())?)?;
            }
            let of_keys = norms.map(|norms| &norms.1);
            let keys = apply_rope(&qkv, (heads, kv_heads), width, of_keys, (table, places))?;
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

    fn add_experts(
        &mut self,
        norm: Option<&TensorNorm>,
        experts: &Experts<TensorLinear, TensorNorm>,
        activation: Activation,
        (down_norm, factor): (Option<&TensorNorm>, f32),
        residual: &mut Option<Tensor>,
    ) -> Result<()> {
        if let Some(residual) = residual {
            let y = normed(Some(experts.apply(residual, norm, activation).map_err(failed)?), down_norm)?;
            let sum = y.map(|y| (y * f64::from(factor))? + &*residual).transpose().map_err(failed)?;
            *residual = sum.unwrap_or_else(|| residual.clone());
        }
        Ok(())
    }

    fn gather_rows(&mut self, x: Option<Tensor>, row: Row) -> Result<Option<Tensor>> {
        let gathered = self.rows.gathered(row);
        self.gathered = Some(gathered.clone());
        if gathered.is_empty() {
            return Ok(None);
        }
        let gather =
            |x: Tensor| x.contiguous()?.index_select(&Tensor::new(gathered.as_slice(), x.device())?, 0);
        x.map(gather).transpose().map_err(failed)
    }

    fn for_each_sequence(
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

    fn for_each_logits(
        &mut self,
        x: &Option<Tensor>,
        linear: &TensorLinear,
        each: &mut dyn FnMut(usize, Rows<'_>),
    ) -> Result<()> {
        let product = x.as_ref().map(|x| linear.apply(x)).transpose().map_err(failed)?;
        self.deliver(product.as_ref(), each)
    }

    fn logits(
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

/// The sums of the rows of one sequence around each, `[rows, columns]`, with the softmax of its `scores` as factors.
fn convolved_dynamically(scores: &Tensor, values: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let ((rows, taps), columns) = (scores.dims2()?, values.dim(1)?);
    let (size, width) = (taps / heads, columns / heads);
    let factors = softmax(&scores.reshape((rows, heads, size))?)?;
    let seen = values.pad_with_zeros(0, size / 2, size - 1 - size / 2)?;
    let mut sum = Tensor::zeros((rows, heads, width), values.dtype(), values.device())?;
    for tap in 0..size {
        let value = seen.narrow(0, tap, rows)?.reshape((rows, heads, width))?;
        sum = (sum + value.broadcast_mul(&factors.narrow(2, tap, 1)?)?)?;
    }
    sum.reshape((rows, columns))
}

fn normed(x: Option<Tensor>, norm: Option<&TensorNorm>) -> Result<Option<Tensor>> {
    match norm {
        Some(norm) => x.map(|x| norm.apply(&x)).transpose().map_err(failed),
        None => Ok(x),
    }
}
