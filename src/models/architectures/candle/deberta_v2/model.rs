//! The layers over the states of one sequence.

use candle_core::Tensor;

use super::relative::{Distances, Relative};
use crate::Result;
use crate::compute::{Activation, Heads};
use crate::models::architectures::candle::describe::EncoderModel;
use crate::models::architectures::candle::ops::{
    CandleLinear, CandleNorm, Function, IDENTITY, Ops, failed, map_rows, softmax_composed, softmax_row,
    with_values,
};
use crate::models::heads::layout::HeadActivation;

pub(super) struct DebertaModel {
    pub(super) words: Tensor,
    pub(super) positions: Option<Tensor>,
    pub(super) token_types: Option<Tensor>,
    pub(super) projection: Option<CandleLinear>,
    pub(super) norm: CandleNorm,
    pub(super) layers: Vec<DebertaLayer>,
    pub(super) conv: Option<Conv>,
    pub(super) heads: Heads,
    pub(super) activation: Activation,
    pub(super) relative: Option<Relative>,
    /// The factor of the scores.
    pub(super) scale: f32,
}

pub(super) struct DebertaLayer {
    pub(super) query: CandleLinear,
    pub(super) key: CandleLinear,
    pub(super) value: CandleLinear,
    /// Keys and queries of relative positions: `[heads, rows, width]`.
    pub(super) place_keys: Option<Tensor>,
    pub(super) place_queries: Option<Tensor>,
    pub(super) output: CandleLinear,
    pub(super) attention_norm: CandleNorm,
    pub(super) up: CandleLinear,
    pub(super) down: CandleLinear,
    pub(super) mlp_norm: CandleNorm,
}

pub(super) struct Conv {
    pub(super) groups: Vec<CandleLinear>,
    pub(super) size: usize,
    pub(super) function: HeadActivation,
    pub(super) norm: CandleNorm,
}

impl EncoderModel for DebertaModel {
    fn states(&self, ops: &Ops, ids: &[u32], second: usize) -> Result<Tensor> {
        let input = self.embed(ops, ids, second)?;
        let places = self.relative.map(|relative| Distances::new(relative, ids.len()));
        let mut x = input.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            let attended = layer.attend(ops, &x, self.heads, self.scale, places.as_ref())?;
            let attended = ops.linear(&attended, &layer.output, IDENTITY)?;
            x = ops.add_norm(&attended, &x, &layer.attention_norm)?;
            let up = ops.linear(&x, &layer.up, Function::Of(self.activation))?;
            x = ops.add_norm(&ops.linear(&up, &layer.down, IDENTITY)?, &x, &layer.mlp_norm)?;
            if let Some(conv) = self.conv.as_ref().filter(|_| index == 0) {
                x = ops.add_norm(&conv.apply(ops, &input)?, &x, &conv.norm)?;
            }
        }
        Ok(x)
    }
}

impl DebertaModel {
    fn embed(&self, ops: &Ops, ids: &[u32], second: usize) -> Result<Tensor> {
        let mut sum = ops.rows_of(&self.words, ids)?;
        if let Some(positions) = &self.positions {
            sum = ops.add(&sum, &positions.narrow(0, 0, ids.len()).map_err(failed)?)?;
        }
        if let Some(types) = &self.token_types {
            let last = types.dim(0).map_err(failed)? - 1;
            let of = |token: usize| usize::from(token >= second).min(last) as u32;
            let numbers: Vec<u32> = (0..ids.len()).map(of).collect();
            sum = ops.add(&sum, &ops.rows_of(types, &numbers)?)?;
        }
        if let Some(projection) = &self.projection {
            sum = ops.linear(&sum, projection, IDENTITY)?;
        }
        ops.norm(&sum, &self.norm)
    }
}

/// `[tokens, heads · width]` → `[heads, tokens, width]`.
pub(super) fn split(x: &Tensor, heads: Heads) -> candle_core::Result<Tensor> {
    x.reshape((x.dim(0)?, heads.heads, heads.width))?.transpose(0, 1)?.contiguous()
}

impl DebertaLayer {
    fn attend(
        &self,
        ops: &Ops,
        x: &Tensor,
        heads: Heads,
        scale: f32,
        places: Option<&Distances>,
    ) -> Result<Tensor> {
        let part = |linear| ops.linear(x, linear, IDENTITY).and_then(|x| split(&x, heads).map_err(failed));
        let (q, k, v) = (part(&self.query)?, part(&self.key)?, part(&self.value)?);
        let scores = k.t().and_then(|k| q.matmul(&k)).map_err(failed)?;
        // Of each query or key with the rows of relative positions that there are.
        let with = |x: &Tensor, table: &Option<Tensor>| match (places, table) {
            (Some(places), Some(table)) => {
                let rows = table.narrow(1, places.first, places.count).and_then(|rows| rows.t());
                rows.and_then(|rows| x.matmul(&rows)).map(Some).map_err(failed)
            }
            _ => Ok(None),
        };
        let by_place = [with(&q, &self.place_keys)?, with(&k, &self.place_queries)?];
        let rows = places.map_or(&[][..], |places| &places.rows);
        let weights = match ops.computes_rows() {
            true => weights(&scores, &by_place, rows, scale)?,
            false => composed_weights(&scores, &by_place, rows, scale).map_err(failed)?,
        };
        let joined = weights.matmul(&v).and_then(|x| x.transpose(0, 1)?.contiguous());
        joined.and_then(|x| x.reshape((x.dim(0)?, heads.heads * heads.width))).map_err(failed)
    }
}

/// The weights of attention: `[heads, tokens, tokens]`. The score of a query and a key gets that of the query with the key's
/// relative position, and that of the key with the query's.
fn weights(scores: &Tensor, by_place: &[Option<Tensor>; 2], rows: &[u32], scale: f32) -> Result<Tensor> {
    let tokens = scores.dim(1).map_err(failed)?;
    let none = Tensor::zeros(0, candle_core::DType::F32, scores.device()).map_err(failed)?;
    let [queries, keys] = by_place.each_ref().map(|part| part.as_ref().unwrap_or(&none));
    with_values(queries, |queries| {
        with_values(keys, |keys| {
            let count = queries.len().max(keys.len()) / (scores.elem_count() / tokens).max(1);
            map_rows(scores, &|index, row| {
                let query = index % tokens;
                // The distances from this query to the keys, the first one's first.
                let places = rows.iter().rev().skip(tokens - 1 - query);
                if !queries.is_empty() {
                    let own = &queries[index * count..(index + 1) * count];
                    row.iter_mut().zip(places.clone()).for_each(|(x, &place)| *x += own[place as usize]);
                }
                if !keys.is_empty() {
                    let head = &keys[(index - query) * count..(index - query + tokens) * count];
                    let each = head.chunks_exact(count).zip(places);
                    row.iter_mut().zip(each).for_each(|(x, (own, &place))| *x += own[place as usize]);
                }
                softmax_row(row, scale);
            })
        })
    })
}

/// The same by candle's operations.
fn composed_weights(
    scores: &Tensor,
    by_place: &[Option<Tensor>; 2],
    rows: &[u32],
    scale: f32,
) -> candle_core::Result<Tensor> {
    let (heads, tokens) = (scores.dim(0)?, scores.dim(1)?);
    let mut sum = scores.clone();
    for (part, of_keys) in by_place.iter().zip([false, true]) {
        let Some(part) = part else { continue };
        let place = |a: usize, b: usize| {
            let (query, key) = if of_keys { (b, a) } else { (a, b) };
            rows[tokens - 1 + query - key]
        };
        let places: Vec<u32> = (0..tokens * tokens).map(|i| place(i / tokens, i % tokens)).collect();
        let places = Tensor::from_vec(places, (1, tokens, tokens), scores.device())?;
        let found = part.gather(&places.repeat((heads, 1, 1))?, 2)?;
        sum = (sum + if of_keys { found.transpose(1, 2)? } else { found })?;
    }
    softmax_composed(&sum, scale)
}

impl Conv {
    /// The function of the convolution of `x` along its rows, with zeros around it.
    fn apply(&self, ops: &Ops, x: &Tensor) -> Result<Tensor> {
        let half = self.size / 2;
        let gather = || {
            let (tokens, hidden) = x.dims2()?;
            let edge = Tensor::zeros((half, hidden), x.dtype(), x.device())?;
            let padded = Tensor::cat(&[&edge, x, &edge], 0)?;
            let each = hidden / self.groups.len();
            (0..self.groups.len())
                .map(|group| {
                    let column = |tap| padded.narrow(0, tap, tokens)?.narrow(1, group * each, each);
                    let columns = (0..self.size).map(column).collect::<candle_core::Result<Vec<_>>>()?;
                    Tensor::cat(&columns, 1)
                })
                .collect::<candle_core::Result<Vec<_>>>()
        };
        let inputs = gather().map_err(failed)?;
        let parts = self.groups.iter().zip(&inputs);
        let parts = parts.map(|(linear, x)| ops.linear(x, linear, Function::Head(self.function)));
        Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// candle's own operations give the weights that rows by threads give.
    #[test]
    fn both_ways_agree() {
        let tensor = |shape: &[usize], seed: usize| {
            let values: Vec<f32> = (0..shape.iter().product::<usize>())
                .map(|i| ((i * seed % 97) as f32 - 48.0) / 19.0)
                .collect();
            Tensor::from_vec(values, shape, &candle_core::Device::Cpu).unwrap()
        };
        let relative = Relative { span: 6, buckets: Some(6), farthest: 12, normed: false };
        for tokens in [1, 2, 9, 40] {
            let places = Distances::new(relative, tokens);
            let scores = tensor(&[3, tokens, tokens], 31);
            let part = |seed| Some(tensor(&[3, tokens, places.count], seed));
            for by_place in [[None, None], [part(17), None], [None, part(23)], [part(17), part(23)]] {
                let found = weights(&scores, &by_place, &places.rows, 0.4).unwrap();
                let other = composed_weights(&scores, &by_place, &places.rows, 0.4).unwrap();
                let [found, other] =
                    [found, other].map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
                let worst = found.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-6, "{tokens}: {worst:e}");
            }
        }
    }
}
