//! Causal attention of a decoder over candle's tensors.

use candle_core::Tensor;

use super::ops::{Ops, failed, map_rows, softmax_composed, softmax_row};
use super::state::CandleState;
use crate::Result;
use crate::compute::{Heads, RopeStyle, RopeTable, Rotary};

/// Rotates the heads of rows `[tokens, heads, width]`, the first of which is at position `first`.
pub(super) fn rotate(ops: &Ops, x: &Tensor, rotary: &Rotary, first: usize) -> Result<Tensor> {
    let (tokens, heads, width) = x.dims3().map_err(failed)?;
    let rows: Vec<_> = (first..first + tokens).map(|position| (position, first + tokens)).collect();
    let table = RopeTable::new(rotary, rows.into_iter())?;
    let pairs = rotary.frequencies.len();
    if !ops.computes_rows() {
        return composed_rotation(x, &table).map_err(failed);
    }
    let place = |pair: usize| match rotary.style {
        RopeStyle::Neox => (pair, pair + pairs),
        RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
    };
    debug_assert!(2 * pairs <= width, "a part of a head is rotated");
    map_rows(x, &|index, row| {
        let (cosines, sines) = table.at(index / heads).split_at(pairs);
        for pair in 0..pairs {
            let (one, other) = place(pair);
            let (a, b) = (row[one], row[other]);
            row[one] = a * cosines[pair] - b * sines[pair];
            row[other] = b * cosines[pair] + a * sines[pair];
        }
    })
}

fn composed_rotation(x: &Tensor, table: &RopeTable<'_>) -> candle_core::Result<Tensor> {
    let ((tokens, heads, width), pairs) = (x.dims3()?, table.rotary.frequencies.len());
    let angles: Vec<f32> = (0..tokens).flat_map(|row| table.at(row)).copied().collect();
    let angles = Tensor::from_vec(angles, (tokens, 1, 2 * pairs), x.device())?;
    let (cosines, sines) = (angles.narrow(2, 0, pairs)?, angles.narrow(2, pairs, pairs)?);
    let interleaved = table.rotary.style == RopeStyle::Interleaved;
    let rotated = x.narrow(2, 0, 2 * pairs)?.contiguous()?;
    let parts = match interleaved {
        true => rotated.reshape((tokens, heads, pairs, 2))?.transpose(2, 3)?,
        false => rotated.reshape((tokens, heads, 2, pairs))?,
    };
    let (a, b) = (parts.get_on_dim(2, 0)?, parts.get_on_dim(2, 1)?);
    let one = (a.broadcast_mul(&cosines)? - b.broadcast_mul(&sines)?)?;
    let other = (b.broadcast_mul(&cosines)? + a.broadcast_mul(&sines)?)?;
    let rotated = Tensor::stack(&[one, other], if interleaved { 3 } else { 2 })?;
    let rotated = rotated.reshape((tokens, heads, 2 * pairs))?;
    match width - 2 * pairs {
        0 => Ok(rotated),
        rest => Tensor::cat(&[rotated, x.narrow(2, 2 * pairs, rest)?], 2),
    }
}

/// Attention of new tokens over those of `state`, to which their keys and values, of layer `index`, are appended. Queries are
/// `[tokens, heads, width]`, keys and values `[tokens, kv_heads, width]`; the result is `[tokens, heads · width]`.
pub(super) fn attend(
    ops: &Ops,
    [queries, keys, values]: [&Tensor; 3],
    heads: Heads,
    state: &mut CandleState,
    index: usize,
) -> Result<Tensor> {
    let Heads { heads, kv_heads, width } = heads;
    let heads_first = |x: &Tensor| x.transpose(0, 1).and_then(|x| x.contiguous()).map_err(failed);
    let [keys, values] = state.append(index, [heads_first(keys)?, heads_first(values)?])?;
    let (tokens, all) = (queries.dim(0).map_err(failed)?, keys.dim(1).map_err(failed)?);
    // The heads of a group of queries follow each other, and share keys and values.
    let group = heads / kv_heads * tokens;
    let queries = heads_first(queries)?.reshape((kv_heads, group, width)).map_err(failed)?;
    let scores = keys.t().and_then(|keys| queries.matmul(&keys)).map_err(failed)?;
    let scale = 1.0 / (width as f32).sqrt();
    let before = all - tokens;
    let weights = match ops.computes_rows() {
        true => map_rows(&scores, &|row, scores| {
            let (seen, later) = scores.split_at_mut(before + row % tokens + 1);
            softmax_row(seen, scale);
            later.fill(0.0);
        })?,
        false => {
            let hidden = |i: usize| i % all > before + i / all;
            let mask: Vec<f32> =
                (0..tokens * all).map(|i| if hidden(i) { f32::NEG_INFINITY } else { 0.0 }).collect();
            let mask = Tensor::from_vec(mask, (1, 1, tokens, all), scores.device()).map_err(failed)?;
            let masked = || {
                let scores = scores.reshape((kv_heads, heads / kv_heads, tokens, all))?;
                let scores = scores.broadcast_add(&mask)?.reshape((kv_heads, group, all))?;
                softmax_composed(&scores, scale)
            };
            masked().map_err(failed)?
        }
    };
    let joined = weights.matmul(&values).and_then(|x| x.reshape((heads, tokens, width)));
    joined.and_then(|x| x.transpose(0, 1)?.contiguous()?.reshape((tokens, heads * width))).map_err(failed)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(shape: &[usize], seed: usize) -> Tensor {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i: usize| ((i * seed % 89) as f32 - 44.0) / 23.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn worst(a: &Tensor, b: &Tensor) -> f32 {
        let [a, b] = [a, b].map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        assert_eq!(a.len(), b.len());
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn both_ways_agree_on_rotation() {
        let (own, other) = (Ops::new(&Device::Cpu), Ops::composed());
        for style in [RopeStyle::Neox, RopeStyle::Interleaved] {
            for width in [8, 6] {
                let rotary = Rotary::new(100.0, width, style);
                let x = tensor(&[5, 3, 8], 31);
                let found = rotate(&own, &x, &rotary, 4).unwrap();
                assert!(worst(&found, &rotate(&other, &x, &rotary, 4).unwrap()) < 1e-6, "{style:?}");
            }
        }
    }

    /// In one step and in three, by rows and by candle's operations.
    #[test]
    fn tokens_see_those_before_them() {
        let heads = Heads { heads: 4, kv_heads: 2, width: 6 };
        let (q, k, v) = (tensor(&[7, 4, 6], 17), tensor(&[7, 2, 6], 29), tensor(&[7, 2, 6], 37));
        let empty = || CandleState::of_layers(1);
        let run = |ops: &Ops, parts: &[usize]| {
            let (mut state, mut from) = (empty(), 0);
            let mut found = Vec::new();
            for &count in parts {
                let part = |x: &Tensor| x.narrow(0, from, count).unwrap();
                found.push(attend(ops, [&part(&q), &part(&k), &part(&v)], heads, &mut state, 0).unwrap());
                from += count;
            }
            Tensor::cat(&found, 0).unwrap()
        };
        let own = Ops::new(&Device::Cpu);
        let whole = run(&own, &[7]);
        assert!(worst(&whole, &run(&own, &[3, 1, 3])) < 1e-6);
        assert!(worst(&whole, &run(&Ops::composed(), &[7])) < 1e-6);
        assert!(worst(&whole, &run(&Ops::composed(), &[2, 5])) < 1e-6);
    }
}
