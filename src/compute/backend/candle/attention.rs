//! Attention and rotary positions by operations on tensors.

use candle_core::{D, Tensor};

use super::tensors::TensorNorm;
use crate::compute::attention::heads::{Heads, LayerAttention, Mask};
use crate::compute::attention::rope::{RopeStyle, RopeTable};

/// Normalizes and rotates the heads from `first` on, `count` of them.
pub(super) fn apply_rope(
    qkv: &Tensor,
    (first, count): (usize, usize),
    width: usize,
    norm: Option<&TensorNorm>,
    table: &RopeTable<'_>,
) -> candle_core::Result<Tensor> {
    let (length, pairs) = (qkv.dim(0)?, table.rotary.frequencies.len());
    let mut x = qkv.narrow(1, first * width, count * width)?;
    let together = |norm: &&TensorNorm| norm.shift.is_none() && norm.scale.elem_count() == count * width;
    if let Some(norm) = norm.filter(together) {
        x = norm.apply(&x)?;
    }
    x = x.reshape((length, count, width))?;
    if let Some(norm) = norm.filter(|norm| !together(norm)) {
        x = norm.by_head(width)?.apply(&x)?;
    }
    if pairs == 0 {
        return x.reshape((length, count * width));
    }
    let angles: Vec<f32> = (0..length).flat_map(|row| table.at(row)).copied().collect();
    let angles = Tensor::from_vec(angles, (length, 1, 2 * pairs), qkv.device())?;
    let (cosines, sines) = (angles.narrow(2, 0, pairs)?, angles.narrow(2, pairs, pairs)?);
    let interleaved = table.rotary.style == RopeStyle::Interleaved;
    let rotated = x.narrow(2, 0, 2 * pairs)?;
    let parts = if interleaved {
        rotated.reshape((length, count, pairs, 2))?.transpose(2, 3)?
    } else {
        rotated.reshape((length, count, 2, pairs))?
    };
    let (a, b) = (parts.get_on_dim(2, 0)?, parts.get_on_dim(2, 1)?);
    let first = (a.broadcast_mul(&cosines)? - b.broadcast_mul(&sines)?)?;
    let second = (b.broadcast_mul(&cosines)? + a.broadcast_mul(&sines)?)?;
    let rotated = Tensor::stack(&[first, second], if interleaved { 3 } else { 2 })?;
    let rotated = rotated.reshape((length, count, 2 * pairs))?;
    let rest = x.narrow(2, 2 * pairs, width - 2 * pairs)?;
    Tensor::cat(&[rotated, rest], 2)?.reshape((length, count * width))
}

/// Splits rows into queries, keys and values.
pub(super) fn split_heads(qkv: &Tensor, heads: Heads) -> candle_core::Result<[Tensor; 3]> {
    let Heads { heads, kv_heads, width } = heads;
    let part = |first: usize, count: usize| qkv.narrow(1, first * width, count * width);
    Ok([part(0, heads)?, part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?])
}

/// Attention of the rows of a sequence from row `before` on over keys and values from its beginning.
pub(super) fn attend(
    [queries, keys, values]: [&Tensor; 3],
    before: usize,
    heads: Heads,
    layer: &LayerAttention,
) -> candle_core::Result<Tensor> {
    let Heads { heads, kv_heads, width } = heads;
    let (rows, length) = (queries.dim(0)?, keys.dim(0)?);
    let by_head =
        |x: &Tensor, count: usize| x.reshape((x.dim(0)?, count, width))?.transpose(0, 1)?.contiguous();
    let every = |x: Tensor| {
        let group = heads / kv_heads;
        x.unsqueeze(1)?.broadcast_as((kv_heads, group, length, width))?.reshape((heads, length, width))
    };
    let (query, key) = (by_head(queries, heads)?, every(by_head(keys, kv_heads)?)?);
    let value = every(by_head(values, kv_heads)?)?;
    let scale = f64::from(layer.factor(width));
    let mut scores = (query.matmul(&key.transpose(1, 2)?.contiguous()?)? * scale)?;
    if let Some(cap) = layer.soft_cap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    let mask = layer.mask;
    if let Some(bias) = &layer.bias {
        let all: Vec<f32> = (0..heads)
            .flat_map(|head| (before..before + rows).flat_map(move |row| bias.row(head, row, 0, length)))
            .copied()
            .collect();
        scores = (scores + Tensor::from_vec(all, (heads, rows, length), queries.device())?)?;
    }
    if mask != Mask::FULL {
        let hidden = |i: usize| {
            let (query, key) = (before + i / length, i % length);
            let all = before + rows + length;
            let seen = key + mask.before.min(all) >= query && key <= query + mask.after.min(all);
            if seen { 0.0 } else { f32::NEG_INFINITY }
        };
        let mask = Tensor::from_iter((0..rows * length).map(hidden), queries.device())?;
        scores = scores.broadcast_add(&mask.reshape((rows, length))?)?;
    }
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
    p.matmul(&value)?.transpose(0, 1)?.reshape((rows, heads * width))
}
