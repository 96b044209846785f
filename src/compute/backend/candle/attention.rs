//! Attention and rotary positions by operations on tensors.

use candle_core::{D, Device, Tensor};

use super::groups::{AttentionGroups, hidden_keys};
use super::tensors::{TensorNorm, TensorRelative};
use crate::compute::attention::heads::{DistanceBias, Heads, LayerAttention, Mask};
use crate::compute::attention::rope::{RopeStyle, RopeTable};
use crate::compute::backend::rows::PassRows;

/// The place in the batch of row `row`, of all rows or of those at `places`.
pub(super) fn place_of(places: Option<&[u32]>, row: usize) -> usize {
    places.map_or(row, |places| places[row] as usize)
}

/// Normalizes and rotates the heads from `first` on, `count` of them. The rows are all of the batch, or those at `places`.
pub(super) fn apply_rope(
    qkv: &Tensor,
    (first, count): (usize, usize),
    width: usize,
    norm: Option<&TensorNorm>,
    (table, places): (&RopeTable<'_>, Option<&[u32]>),
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
    let angles: Vec<f32> = (0..length).flat_map(|row| table.at(place_of(places, row))).copied().collect();
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

/// Attention of the rows of one sequence from row `before` on over keys and values from its beginning.
pub(super) fn attend(
    [queries, keys, values]: [&Tensor; 3],
    before: usize,
    heads: Heads,
    layer: &LayerAttention,
) -> candle_core::Result<Tensor> {
    let Heads { heads: count, kv_heads, width } = heads;
    let (rows, length) = (queries.dim(0)?, keys.dim(0)?);
    let device = queries.device();
    let inputs = [
        queries.reshape((1, rows, count, width))?,
        keys.reshape((1, length, kv_heads, width))?,
        values.reshape((1, length, kv_heads, width))?,
    ];
    let mut additions = Vec::new();
    if let Some(bias) = &layer.bias {
        additions.push(distances(bias, count, (before, rows), length, device)?);
    }
    if layer.mask != Mask::FULL {
        additions.push(hidden_keys(before, rows, length, layer.mask, device)?);
    }
    weighted_sums(inputs, heads, layer, &additions)?.reshape((rows, count * width))
}

/// Attention within every sequence of a packed batch. Sequences of similar length are computed together.
pub(super) fn attend_packed(
    [queries, keys, values]: [&Tensor; 3],
    (rows, groups): (&PassRows<'_>, &mut AttentionGroups),
    heads: Heads,
    (layer, relative): (&LayerAttention, Option<&TensorRelative>),
) -> candle_core::Result<Tensor> {
    let Heads { heads: count, kv_heads, width } = heads;
    let device = queries.device().clone();
    let mut parts = Vec::new();
    for group in groups.of(rows, &device)? {
        let (members, length) = (group.members.len(), group.length);
        let padded = |x: &Tensor, count: usize| {
            x.contiguous()?.index_select(&group.gather, 0)?.reshape((members, length, count, width))
        };
        let (queries, keys, values) =
            (padded(queries, count)?, padded(keys, kv_heads)?, padded(values, kv_heads)?);
        let pattern = group.pattern(layer.mask, &device)?;
        let mut blocks = Vec::new();
        for first in (0..length).step_by(group.block()) {
            let rows = group.block().min(length - first);
            let mut additions = Vec::new();
            if let Some(bias) = &layer.bias {
                additions.push(distances(bias, count, (first, rows), length, &device)?);
            }
            if let Some(pattern) = &pattern {
                additions.push(pattern.narrow(0, first, rows)?);
            }
            additions.extend(group.padding.clone());
            let inputs = [queries.narrow(1, first, rows)?, keys.clone(), values.clone()];
            if let Some(relative) = relative {
                additions.extend(compared([&inputs[0], &keys], first, relative, layer.factor(width))?);
            }
            blocks.push(weighted_sums(inputs, heads, layer, &additions)?);
        }
        let sums = if blocks.len() == 1 { blocks.remove(0) } else { Tensor::cat(&blocks, 1)? };
        parts.push(sums.reshape((members * length, count * width))?);
    }
    let all = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 0)? };
    groups.unpad(&all)
}

/// The numbers that a bias adds for queries from row `before` on: `[heads, rows, length]`.
fn distances(
    bias: &DistanceBias,
    heads: usize,
    (before, rows): (usize, usize),
    length: usize,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let all: Vec<f32> = (0..heads)
        .flat_map(|head| (before..before + rows).flat_map(move |row| bias.row(head, row, 0, length)))
        .copied()
        .collect();
    Tensor::from_vec(all, (heads, rows, length), device)
}

/// The products of queries from row `before` on with relative positions, and of keys with them, times `scale`:
/// `[sequences, heads, rows, length]`. Queries are `[sequences, rows, heads, width]`, keys `[sequences, length, heads, width]`.
fn compared(
    [queries, keys]: [&Tensor; 2],
    before: usize,
    relative: &TensorRelative,
    scale: f32,
) -> candle_core::Result<Vec<Tensor>> {
    let (sequences, rows, heads, _) = queries.dims4()?;
    let length = keys.dim(1)?;
    let mut parts = Vec::new();
    let tables = [&relative.content_to_position, &relative.position_to_content];
    for (of_keys, table) in [false, true].into_iter().zip(tables) {
        let Some(table) = table else { continue };
        let (x, count, others) = if of_keys { (keys, length, rows) } else { (queries, rows, length) };
        let places: Vec<u32> = (0..count * others)
            .map(|at| {
                let (own, other) = (at / others, at % others);
                let (query, key) = if of_keys { (other, own) } else { (own, other) };
                relative.rows.of_query(before + query, key, 1)[0]
            })
            .collect();
        let places = Tensor::from_vec(places, (1, 1, count, others), x.device())?;
        let places = places.repeat((sequences, heads, 1, 1))?;
        let x = x.transpose(1, 2)?.contiguous()?;
        let products = x.broadcast_matmul(&table.t()?.unsqueeze(0)?.contiguous()?)?;
        let found = (products.gather(&places, 3)? * f64::from(scale))?;
        parts.push(if of_keys { found.transpose(2, 3)?.contiguous()? } else { found });
    }
    Ok(parts)
}

/// The softmax over the last dimension.
pub(super) fn softmax(scores: &Tensor) -> candle_core::Result<Tensor> {
    // The largest score of a query that sees a key is finite, and its sum at least 1. Others get zeros.
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.maximum(-1e30f32)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?.maximum(1e-30f32)?)
}

/// The same of `[sequences, heads, rows, length]` with one more score for each head, whose share is left out.
fn softmax_with_sinks(scores: &Tensor, sinks: &[f32]) -> candle_core::Result<Tensor> {
    let sinks = Tensor::new(sinks, scores.device())?.reshape((1, sinks.len(), 1, 1))?;
    let most = scores.max_keepdim(D::Minus1)?.broadcast_maximum(&sinks)?;
    let e = scores.broadcast_sub(&most)?.exp()?;
    let sink = sinks.broadcast_sub(&most)?.exp()?;
    e.broadcast_div(&(e.sum_keepdim(D::Minus1)? + sink)?)
}

/// The values of each sequence, weighted by the softmax of its scores. Queries are `[sequences, rows, heads, width]`, keys
/// and values `[sequences, length, kv_heads, width]`; `additions` are broadcast to `[sequences, heads, rows, length]`.
fn weighted_sums(
    [queries, keys, values]: [Tensor; 3],
    heads: Heads,
    layer: &LayerAttention,
    additions: &[Tensor],
) -> candle_core::Result<Tensor> {
    let Heads { heads: count, kv_heads, width } = heads;
    let (sequences, rows, length) = (queries.dim(0)?, queries.dim(1)?, keys.dim(1)?);
    // The queries that share a key head are rows of one product.
    let (both, group) = (sequences * kv_heads, count / kv_heads);
    let queries = queries.reshape((sequences, rows, kv_heads, group, width))?.permute((0, 2, 3, 1, 4))?;
    let queries = queries.contiguous()?.reshape((both, group * rows, width))?;
    let keys = keys.permute((0, 2, 3, 1))?.contiguous()?.reshape((both, width, length))?;
    let values = values.permute((0, 2, 1, 3))?.contiguous()?.reshape((both, length, width))?;
    let scale = f64::from(layer.factor(width));
    let mut scores = (queries.matmul(&keys)? * scale)?;
    if let Some(cap) = layer.soft_cap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    scores = scores.reshape((sequences, count, rows, length))?;
    for addition in additions {
        scores = scores.broadcast_add(addition)?;
    }
    let p = match layer.sinks.as_deref() {
        Some(sinks) => softmax_with_sinks(&scores, sinks)?,
        None => softmax(&scores)?,
    };
    let p = p.reshape((both, group * rows, length))?;
    let sums = p.matmul(&values)?.reshape((sequences, kv_heads, group, rows, width))?;
    sums.permute((0, 3, 1, 2, 4))?.contiguous()?.reshape((sequences, rows, count * width))
}
