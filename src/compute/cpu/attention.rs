//! Attention within each sequence, on the same tiles as the linear layers.
//!
//! For one head of one sequence, keys and values are packed into panels; then, for each tile of queries, scores
//! against a block of keys are one product, softmax turns them into probabilities, and those times the values are
//! another. Texts longer than a block keep a running maximum and sum for each query, so scores never take more
//! memory than a tile times a block; and a strip of tiles passes each block before the next is fetched.

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

/// Tiles of queries that pass a block of keys and values together, so that a long text's are read from far memory
/// once in so many tiles: enough that their sums still fit into the second-level cache beside the block.
const STRIP: usize = 16;

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
        let _held = self.kernels.hold();
        let value_units = self.value_units(length);
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
            let (to, padding) = to.split_at_mut(units(format, length) * panel);
            // SAFETY: `length` rows of the input, columns that it has.
            unsafe {
                let from = first.add(index * panel * format.bytes());
                self.kernels.pack_rows(format, from, self.keys.stride(), length, count, to);
            }
            padding.fill(0);
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
        let height = self.kernels.rows(self.keys.format());
        let tiles = span.rows.div_ceil(height);
        // Elements of the sums of one tile: columns in whole panels.
        let room = width.next_multiple_of(self.kernels.width) * height;
        grown(&mut scratch.sums, tiles.min(STRIP) * room * 4)?;
        scratch.scores.resize(height * STRIDE, 0.0);
        scratch.narrow.resize(height * STRIDE, 0);
        for first in (0..tiles).step_by(STRIP) {
            let strip = first..tiles.min(first + STRIP);
            let mut running = [[Running::default(); TALLEST_TILE]; STRIP];
            let last = self.visible(span, share(span.rows, tiles, strip.end - 1));
            for block in (0..last).step_by(BLOCK) {
                for (at, index) in strip.clone().enumerate() {
                    let tile = share(span.rows, tiles, index);
                    let visible = self.visible(span, tile.clone());
                    if block >= visible {
                        continue;
                    }
                    let keys = block..visible.min(block + BLOCK);
                    self.tile(scratch, at * room, span, tile.clone(), head, keys, &mut running[at]);
                    if block + BLOCK >= visible {
                        self.finish(scratch, at * room, span, tile, head, &running[at]);
                    }
                }
            }
        }
        Ok(())
    }

    /// Units of so many values and the zeros that follow them.
    fn value_units(&self, length: usize) -> usize {
        let format = self.keys.format();
        units(format, length).next_multiple_of(self.kernels.depth(format))
    }

    /// Keys that a tile of queries sees.
    fn visible(&self, span: Span, tile: Range<usize>) -> usize {
        span.before + if self.heads.causal { tile.end } else { span.rows }
    }

    /// One tile of queries against a block of keys: adds to the tile's unnormalised sums of values, `sums` elements
    /// from the start of those of its strip.
    #[expect(clippy::too_many_arguments, reason = "a place in each of four matrices")]
    fn tile(
        &self,
        scratch: &mut Scratch,
        sums: usize,
        span: Span,
        tile: Range<usize>,
        head: usize,
        keys: Range<usize>,
        running: &mut [Running; TALLEST_TILE],
    ) {
        let Heads { width, causal, .. } = self.heads;
        let (format, panel) = (self.keys.format(), self.kernels.width);
        let height = self.kernels.rows(format);
        let (key_units, value_units) = (units(format, width), self.value_units(span.before + span.rows));
        let queries = input(self.queries, span.queries + tile.start, head * width);
        let packed = scratch.keys.as_ref().map_or(&[][..], Buffer::as_slice::<f32>);
        for column in (0..keys.len()).step_by(panel) {
            let start = (keys.start + column) * key_units;
            let product = Tile {
                a: queries,
                a_stride: self.queries.stride(),
                panel: packed[start..start + key_units * panel].as_ptr(),
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
        let k = self.value_units(keys.len());
        self.kernels.softmax(&mut Softmax {
            scores: &mut scratch.scores,
            narrow: (format == DType::Bf16).then_some(&mut scratch.narrow[..]),
            stride: STRIDE,
            keys: keys.len(),
            padded: k * 4 / format.bytes(),
            visible: if causal {
                ((span.before + tile.start + 1) as isize - keys.start as isize, 1)
            } else {
                (keys.len() as isize, 0)
            },
            scale: 1.0 / (width as f32).sqrt(),
            running: &mut running[..tile.len()],
            factors: &mut factors[..tile.len()],
        });
        let all = scratch.sums.as_mut().map_or(&mut [][..], Buffer::as_mut_slice::<f32>);
        let sums = &mut all[sums..sums + width.next_multiple_of(panel) * height];
        if keys.start > 0 {
            // A tile of `height` rows for each panel of value columns. Maxima seldom rise after the first blocks.
            for of_panel in sums.chunks_exact_mut(height * panel) {
                for (row, factor) in
                    of_panel.chunks_exact_mut(panel).zip(factors).filter(|(_, factor)| *factor != 1.0)
                {
                    row.iter_mut().for_each(|sum| *sum *= factor);
                }
            }
        }
        let values = scratch.values.as_ref().map_or(&[][..], Buffer::as_slice::<f32>);
        let probabilities = match format {
            DType::F32 => scratch.scores.as_ptr().cast(),
            DType::Bf16 => scratch.narrow.as_ptr().cast(),
        };
        let from = units(format, keys.start);
        for (index, of_panel) in sums.chunks_exact_mut(height * panel).enumerate() {
            let start = index * panel * value_units + from * panel;
            let product = Tile {
                a: probabilities,
                a_stride: STRIDE * format.bytes(),
                panel: values[start..start + k * panel].as_ptr(),
                k,
                c: of_panel.as_mut_ptr(),
                c_stride: panel,
                rows: tile.len(),
                accumulate: keys.start > 0,
            };
            // SAFETY: probabilities are padded to so many units, as values are.
            unsafe { self.kernels.tile(format, &product) };
        }
    }

    /// A tile that has seen all its keys goes to the output.
    fn finish(
        &self,
        scratch: &Scratch,
        sums: usize,
        span: Span,
        tile: Range<usize>,
        head: usize,
        running: &[Running; TALLEST_TILE],
    ) {
        let (width, panel) = (self.heads.width, self.kernels.width);
        let height = self.kernels.rows(self.keys.format());
        let factors = running.map(|running| 1.0 / running.sum);
        let sums = &scratch.sums.as_ref().map_or(&[][..], Buffer::as_slice::<f32>)[sums..];
        for (first, of_panel) in (0..width).step_by(panel).zip(sums.chunks_exact(height * panel)) {
            let columns = head * width + first..head * width + width.min(first + panel);
            let finish = Finish {
                tile: of_panel.as_ptr(),
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
}

fn input(matrix: &Matrix, row: usize, column: usize) -> *const u8 {
    assert!(column < matrix.columns(), "column of an attention input");
    // SAFETY: the row was bounds-checked, and it has this column.
    unsafe { matrix.row_ptr(row).add(column * matrix.format().bytes()) }
}
