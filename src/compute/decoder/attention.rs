//! Causal attention of new tokens over a cache, with groups of query heads sharing keys and values.
//!
//! A tile is some queries that see one head's keys: several tokens of a prompt with one query head, or one token with
//! all query heads of the group. Scores, softmax and sums of values are the encoder's kernels. A query's result does
//! not depend on the tile that it is in.

use crate::sync::Mutex;

use super::kv_cache::KvCache;
use super::linear::KernelSet;
use crate::compute::kernels::rowwise::{Running, Softmax};
use crate::compute::kernels::tile::Tile;
use crate::compute::kernels::{Kernels, LARGEST_TILE, TALLEST_TILE};
use crate::compute::memory::try_room;
use crate::compute::{DType, Threads};
use crate::{Error, Result};

/// The new tokens of one sequence: rows of queries, whose keys and values the cache holds already.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<'a> {
    pub cache: &'a KvCache,
    /// The first row of the batch.
    pub row: usize,
    /// Rows, which are tokens.
    pub rows: usize,
    /// The position of the first.
    pub position: usize,
}

/// Where queries are and results go: rows of heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queries<'a> {
    /// Rows that begin with the queries of all heads.
    pub values: &'a [f32],
    /// Values from a row to the next.
    pub stride: usize,
    /// Query heads.
    pub heads: usize,
}

/// One tile of work.
#[derive(Debug, Clone, Copy)]
struct Task {
    span: usize,
    kv_head: usize,
    /// The first query head, and how many belong to the tile: one for several tokens.
    head: usize,
    heads: usize,
    /// The first token of the span, and how many.
    token: usize,
    tokens: usize,
}

/// `softmax(q kᵀ / √width) v` for every new token and head; `out` is row-major `[rows, heads * width]`.
pub(crate) fn attention(
    machine: &KernelSet,
    threads: &Threads,
    layer: usize,
    spans: &[Span<'_>],
    queries: Queries<'_>,
    out: &mut [f32],
) -> Result<()> {
    let kernels = machine.kernels;
    let tasks: Vec<Task> =
        spans.iter().enumerate().flat_map(|(index, span)| tiles(kernels, index, span, queries)).collect();
    let target = Target(out.as_mut_ptr(), out.len());
    let scratch = Mutex::new(Vec::<Vec<f32>>::new());
    let failed = Mutex::new(None::<Error>);
    threads.run(tasks.len(), &|index| {
        let mut scores = scratch.lock().pop().unwrap_or_default();
        let task = tasks[index];
        match tile(kernels, layer, &spans[task.span], task, queries, &target, &mut scores) {
            Ok(()) => scratch.lock().push(scores),
            Err(error) => *failed.lock() = Some(error),
        }
    })?;
    failed.into_inner().map_or(Ok(()), Err)
}

fn tiles(kernels: &Kernels, index: usize, span: &Span<'_>, queries: Queries<'_>) -> Vec<Task> {
    assert!(span.cache.fits(kernels), "a cache made for other kernels");
    let kv_heads = span.cache.shape().kv_heads;
    let group = queries.heads / kv_heads;
    let tallest = kernels.rows(DType::F32);
    let mut tasks = Vec::new();
    // Late tokens see most: their tiles go first, so that no thread starts a long one last.
    for kv_head in 0..kv_heads {
        if span.rows >= group {
            for token in (0..span.rows).step_by(tallest).rev() {
                let tokens = tallest.min(span.rows - token);
                for head in kv_head * group..(kv_head + 1) * group {
                    tasks.push(Task { span: index, kv_head, head, heads: 1, token, tokens });
                }
            }
        } else {
            for token in 0..span.rows {
                for head in (0..group).step_by(tallest) {
                    let heads = tallest.min(group - head);
                    tasks.push(Task {
                        span: index,
                        kv_head,
                        head: kv_head * group + head,
                        heads,
                        token,
                        tokens: 1,
                    });
                }
            }
        }
    }
    tasks
}

fn tile(
    kernels: &Kernels,
    layer: usize,
    span: &Span<'_>,
    task: Task,
    queries: Queries<'_>,
    target: &Target,
    scores: &mut Vec<f32>,
) -> Result<()> {
    let (width, panel) = (span.cache.shape().width, kernels.width);
    let visible = span.position + task.token + task.tokens;
    // Not a power of two apart, for the sake of cache sets.
    let stride = visible.next_multiple_of(panel) + 32;
    let rows = task.heads * task.tokens;
    let scores = try_room(scores, rows * stride)?;
    let first = (span.row + task.token) * queries.stride + task.head * width;
    let a_stride = if task.heads > 1 { width } else { queries.stride };
    assert!(first + (rows - 1) * a_stride + width <= queries.values.len(), "queries of a tile");
    for position in (0..visible).step_by(panel) {
        let product = Tile {
            a: queries.values[first..].as_ptr().cast(),
            a_stride: a_stride * 4,
            panel: span.cache.keys(layer, task.kv_head, position).as_ptr(),
            k: width,
            c: scores[position..].as_mut_ptr(),
            c_stride: stride,
            rows,
            accumulate: false,
            ahead: None,
        };
        // SAFETY: queries were bounds-checked above, the panel is whole, and each row of scores has room for it.
        unsafe { kernels.tile(DType::F32, &product) };
    }
    let scale = 1.0 / (width as f32).sqrt();
    let (mut running, mut factors) = ([Running::default(); TALLEST_TILE], [0.0f32; TALLEST_TILE]);
    // Rows are heads of one token, which all see the same keys, or tokens, each of which sees one key more.
    let own = if task.heads > 1 { visible } else { span.position + task.token + 1 } as isize;
    kernels.softmax(&mut Softmax {
        scores: &mut scores[..rows * stride],
        narrow: None,
        stride,
        keys: visible,
        padded: visible,
        visible: (own, isize::from(task.heads == 1)),
        scale,
        running: &mut running[..rows],
        factors: &mut factors[..rows],
    });
    let sums = running.map(|row| row.sum);
    let mut product = [0.0f32; LARGEST_TILE];
    for (index, column) in (0..width).step_by(panel).enumerate() {
        let tile = Tile {
            a: scores.as_ptr().cast(),
            a_stride: stride * 4,
            panel: span.cache.values(layer, task.kv_head, index, visible).as_ptr(),
            k: visible,
            c: product.as_mut_ptr(),
            c_stride: panel,
            rows,
            accumulate: false,
            ahead: None,
        };
        // SAFETY: each row of scores has `visible` values, the panel as many rows, the product room for a tile.
        unsafe { kernels.tile(DType::F32, &tile) };
        let columns = panel.min(width - column);
        for (row, values) in product.chunks_exact(panel).take(rows).enumerate() {
            let (token, head) = if task.heads > 1 { (0, row) } else { (row, 0) };
            let start = ((span.row + task.token + token) * queries.heads + task.head + head) * width + column;
            // SAFETY: token and head are this task's alone, and `part` checks the bounds.
            let out = unsafe { target.part(start, columns) };
            for (out, value) in out.iter_mut().zip(values) {
                *out = value / sums[row];
            }
        }
    }
    Ok(())
}

/// The output that tasks divide by tokens and heads.
struct Target(*mut f32, usize);

// SAFETY: tasks write disjoint parts of an exclusively borrowed slice.
unsafe impl Sync for Target {}

impl Target {
    /// # Safety
    /// No other task touches this part meanwhile.
    #[expect(clippy::mut_from_ref, reason = "tasks divide the output among themselves")]
    unsafe fn part(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start + len <= self.1, "part of an output");
        // SAFETY: the part lies inside, and is the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Isa;
    use crate::compute::decoder::kv_cache::CacheShape;

    fn value(seed: usize, i: usize) -> f32 {
        ((seed * 131 + i * 17) as f32 * 0.13).sin()
    }

    #[test]
    fn equal_to_the_formula_for_every_tile() {
        for (heads, kv_heads, width) in [(1, 1, 8), (4, 2, 12), (9, 3, 64), (32, 2, 40)] {
            for (before, tokens) in [(0, 1), (0, 20), (37, 1), (100, 3), (63, 33)] {
                for isa in Isa::available() {
                    compare(isa, heads, kv_heads, width, before, tokens);
                }
            }
        }
    }

    fn compare(isa: Isa, heads: usize, kv_heads: usize, width: usize, before: usize, tokens: usize) {
        let machine = KernelSet::new(isa);
        let shape = CacheShape { layers: 1, kv_heads, width };
        let mut cache = KvCache::new(&machine, shape, before + tokens).unwrap();
        let all: Vec<(Vec<f32>, Vec<f32>)> = (0..before + tokens)
            .map(|p| {
                let keys = (0..kv_heads * width).map(|i| value(p, i)).collect();
                let values = (0..kv_heads * width).map(|i| value(p + 999, i)).collect();
                (keys, values)
            })
            .collect();
        for (position, (keys, values)) in all.iter().enumerate() {
            cache.put(0, position, keys, values);
        }
        let stride = heads * width + 5;
        let rows = tokens + 1;
        let queries: Vec<f32> = (0..rows * stride).map(|i| value(5, i) * 3.0).collect();
        let mut out = vec![f32::NAN; rows * heads * width];
        let span = Span { cache: &cache, row: 1, rows: tokens, position: before };
        let given = Queries { values: &queries, stride, heads };
        attention(&machine, &Threads::global(), 0, &[span], given, &mut out).unwrap();
        assert!(out[..heads * width].iter().all(|x| x.is_nan()), "a row of another sequence was written");
        for token in 0..tokens {
            for head in 0..heads {
                let query = &queries[(1 + token) * stride + head * width..][..width];
                let kv = head / (heads / kv_heads) * width;
                let weights: Vec<f64> = all[..=before + token]
                    .iter()
                    .map(|(keys, _)| {
                        let dot: f32 = query.iter().zip(&keys[kv..]).map(|(q, k)| q * k).sum();
                        f64::from(dot / (width as f32).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for i in 0..width {
                    let exact: f64 =
                        weights.iter().zip(&all).map(|(w, (_, v))| w * f64::from(v[kv + i])).sum();
                    let ours = out[((1 + token) * heads + head) * width + i];
                    assert!((f64::from(ours) - exact / total).abs() < 2e-5, "{isa} {token} {head} {i}");
                }
            }
        }
    }
}
