//! Attention within each sequence, on the same tiles as the linear layers.
//!
//! For one head of one sequence, keys and values are packed into panels; then, for each tile of queries, scores
//! against a block of keys are one product, softmax turns them into probabilities, and those times the values are
//! another. Texts longer than a block keep a running maximum and sum for each query, so scores never take more
//! memory than a tile times a block.

use std::ops::Range;

use super::matrix::{Matrix, Target};
use super::team::share;
use crate::compute::kernels::rows::{Finish, Running, Softmax};
use crate::compute::kernels::tile::Tile;
use crate::compute::kernels::{Kernels, TALLEST_TILE, units};
use crate::compute::memory::Buffer;
use crate::compute::{Activation, DType, Heads};
use crate::{Error, Result};

/// Keys of a block: scores of a tile of queries against it fit into the first-level cache. A multiple of every
/// panel width.
const BLOCK: usize = 256;

/// Elements between rows of scores: not a power of two, for the sake of cache sets.
const STRIDE: usize = BLOCK + 32;

/// The memory that one thread needs for attention.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    keys: Option<Buffer>,
    values: Option<Buffer>,
    sums: Option<Buffer>,
    scores: Vec<f32>,
    narrow: Vec<u16>,
}

/// `bytes` bytes at least.
fn grown(buffer: &mut Option<Buffer>, bytes: usize) -> Result<&mut Buffer> {
    if buffer.as_ref().is_none_or(|buffer| buffer.len() < bytes) {
        *buffer = None;
        *buffer = Some(Buffer::zeroed(bytes.next_power_of_two().max(1 << 16))?);
    }
    buffer.as_mut().ok_or_else(|| Error::Internal { place: "attention".into(), reason: "no buffer".into() })
}

/// What all heads of a pass share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention<'a> {
    pub kernels: &'static Kernels,
    /// Rows that begin with the queries of all heads.
    pub queries: &'a Matrix,
    /// Rows that end with the keys, then the values, of all heads.
    pub keys: &'a Matrix,
    pub heads: Heads,
    /// A row for each row of queries.
    pub out: &'a Target<'a>,
}

/// The rows of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Its first row of keys.
    pub keys: usize,
    /// Its first row of queries.
    pub queries: usize,
    /// Keys before the first query's own: the sequence's rows of earlier windows.
    pub before: usize,
    /// Queries; there are keys up to the last one's own.
    pub rows: usize,
}

impl Attention<'_> {
    /// Whether the columns of the input divide as `heads` says.
    pub(super) fn check(qkv: &Matrix, heads: Heads) {
        let Heads { heads, kv_heads, width, .. } = heads;
        let groups = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        assert!(groups && qkv.columns() == (heads + 2 * kv_heads) * width, "columns of an attention input");
    }

    /// All query heads of one key and value head, for one sequence.
    pub(super) fn group(&self, scratch: &mut Scratch, span: Span, kv_head: usize) -> Result<()> {
        let Heads { heads, kv_heads, width, .. } = self.heads;
        let (format, length, panel) = (self.keys.format(), span.before + span.rows, self.kernels.width);
        if span.rows == 0 || width == 0 {
            return Ok(());
        }
        let key_units = units(format, width);
        let value_units = units(format, length);
        let keys = grown(&mut scratch.keys, length.next_multiple_of(panel) * key_units * 4)?;
        let values = grown(&mut scratch.values, width.next_multiple_of(panel) * value_units * 4)?;
        let columns = self.keys.columns() - 2 * kv_heads * width;
        let first = input(self.keys, span.keys, columns + kv_head * width);
        for (index, to) in keys
            .as_mut_slice::<u32>()
            .chunks_exact_mut(key_units * panel)
            .take(length.div_ceil(panel))
            .enumerate()
        {
            let count = panel.min(length - index * panel);
            // SAFETY: `count` rows of the input, which has a value column after the last key column.
            unsafe {
                let from = first.add(index * panel * self.keys.stride());
                self.kernels.pack_columns(format, from, self.keys.stride(), count, width, to);
            }
        }
        let first = input(self.keys, span.keys, columns + (kv_heads + kv_head) * width);
        for (index, to) in values
            .as_mut_slice::<u32>()
            .chunks_exact_mut(value_units * panel)
            .take(width.div_ceil(panel))
            .enumerate()
        {
            let count = panel.min(width - index * panel);
            // SAFETY: `length` rows of the input, columns that it has.
            unsafe {
                let from = first.add(index * panel * format.bytes());
                self.kernels.pack_rows(format, from, self.keys.stride(), length, count, to);
            }
        }
        let group = heads / kv_heads;
        for head in kv_head * group..(kv_head + 1) * group {
            self.head(scratch, span, head)?;
        }
        Ok(())
    }

    /// One query head, with keys and values packed in `scratch`.
    fn head(&self, scratch: &mut Scratch, span: Span, head: usize) -> Result<()> {
        let Heads { width, .. } = self.heads;
        let (panel, height) = (self.kernels.width, self.kernels.rows(self.keys.format()));
        let sums = grown(&mut scratch.sums, width.next_multiple_of(panel) * height * 4)?;
        let sums = sums.as_mut_slice::<f32>().as_mut_ptr();
        scratch.scores.resize(height * STRIDE, 0.0);
        scratch.narrow.resize(height * STRIDE, 0);
        let tiles = span.rows.div_ceil(height);
        for index in 0..tiles {
            let tile = share(span.rows, tiles, index);
            let running = self.tile(scratch, sums, span, tile.clone(), head);
            let mut factors = [0.0; TALLEST_TILE];
            for (factor, running) in factors.iter_mut().zip(running) {
                *factor = 1.0 / running.sum;
            }
            for first in (0..width).step_by(panel) {
                let columns = head * width + first..head * width + width.min(first + panel);
                let finish = Finish {
                    // SAFETY: `sums` has a tile for each panel of value columns.
                    tile: unsafe { sums.add(first * height) },
                    tile_stride: panel,
                    rows: tile.len(),
                    columns: columns.len(),
                    bias: std::ptr::null(),
                    activation: Activation::Identity,
                    gated: std::ptr::null(),
                    gated_bias: std::ptr::null(),
                    factors: factors.as_ptr(),
                    out: self.out.part(span.queries + tile.start..span.queries + tile.end, columns),
                    out_stride: self.out.stride(),
                    to: self.out.format(),
                    accumulate: false,
                };
                // SAFETY: rows and columns of the output that belong to this sequence and head alone.
                unsafe { self.kernels.finish(&finish) };
            }
        }
        Ok(())
    }

    /// One tile of queries against all keys: leaves unnormalised sums of values in `sums`.
    fn tile(
        &self,
        scratch: &mut Scratch,
        sums: *mut f32,
        span: Span,
        tile: Range<usize>,
        head: usize,
    ) -> [Running; TALLEST_TILE] {
        let Heads { width, causal, .. } = self.heads;
        let (format, panel) = (self.keys.format(), self.kernels.width);
        let height = self.kernels.rows(format);
        let length = span.before + span.rows;
        let (key_units, value_units) = (units(format, width), units(format, length));
        let queries = input(self.queries, span.queries + tile.start, head * width);
        let keys = scratch.keys.as_ref().map_or(&[][..], Buffer::as_slice::<f32>);
        let values = scratch.values.as_ref().map_or(&[][..], Buffer::as_slice::<f32>);
        let scale = 1.0 / (width as f32).sqrt();
        let mut running = [Running::default(); TALLEST_TILE];
        let visible = if causal { span.before + tile.end } else { length };
        for block in (0..visible).step_by(BLOCK) {
            let count = BLOCK.min(visible - block);
            for column in (0..count).step_by(panel) {
                let start = (block + column) * key_units;
                let product = Tile {
                    a: queries,
                    a_stride: self.queries.stride(),
                    panel: keys[start..start + key_units * panel].as_ptr(),
                    k: key_units,
                    c: scratch.scores[column..].as_mut_ptr(),
                    c_stride: STRIDE,
                    rows: tile.len(),
                    accumulate: false,
                };
                // SAFETY: queries lie inside the input; scores have whole panels for a block in every row.
                unsafe { self.kernels.tile(format, &product) };
            }
            let mut factors = [0.0; TALLEST_TILE];
            self.kernels.softmax(&mut Softmax {
                scores: &mut scratch.scores,
                narrow: (format == DType::Bf16).then_some(&mut scratch.narrow[..]),
                stride: STRIDE,
                keys: count,
                visible: if causal {
                    ((span.before + tile.start + 1) as isize - block as isize, 1)
                } else {
                    (count as isize, 0)
                },
                scale,
                running: &mut running[..tile.len()],
                factors: &mut factors[..tile.len()],
            });
            if block > 0 {
                for (row, &factor) in
                    factors.iter().enumerate().take(tile.len()).filter(|(_, factor)| **factor != 1.0)
                {
                    for first in (0..width).step_by(panel) {
                        for column in 0..panel {
                            // SAFETY: `sums` has a tile of `height` rows for each panel of value columns.
                            unsafe { *sums.add(first * height + row * panel + column) *= factor };
                        }
                    }
                }
            }
            let probabilities = match format {
                DType::F32 => scratch.scores.as_ptr().cast(),
                DType::Bf16 => scratch.narrow.as_ptr().cast(),
            };
            for first in (0..width).step_by(panel) {
                let (from, k) = (units(format, block), units(format, count));
                let start = first * value_units + from * panel;
                let product = Tile {
                    a: probabilities,
                    a_stride: STRIDE * format.bytes(),
                    panel: values[start..start + k * panel].as_ptr(),
                    k,
                    // SAFETY: as above.
                    c: unsafe { sums.add(first * height) },
                    c_stride: panel,
                    rows: tile.len(),
                    accumulate: block > 0,
                };
                // SAFETY: probabilities have a zero behind an odd number of keys.
                unsafe { self.kernels.tile(format, &product) };
            }
        }
        running
    }
}

fn input(matrix: &Matrix, row: usize, column: usize) -> *const u8 {
    assert!(column < matrix.columns(), "column of an attention input");
    // SAFETY: the row was bounds-checked, and it has this column.
    unsafe { matrix.row_ptr(row).add(column * matrix.format().bytes()) }
}
