//! Attention within each sequence, on the same tiles as the linear layers.
//!
//! For one head of one sequence, a block of keys and values is packed into panels; then, for each tile of queries,
//! scores against them are one product, softmax turns them into probabilities, and those times the values are
//! another. Texts longer than a block keep a running maximum and sum for each query, so scores never take more
//! memory than a tile times a block, and all tiles pass a block, in the second-level cache, before the next is packed.

use std::ops::Range;

use super::matrix::{Matrix, Target};
use super::parallelism::share;
use crate::compute::kernels::rowwise::{Running, Softmax, TileEpilogue};
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
    running: Vec<[Running; TALLEST_TILE]>,
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

/// A tile of queries of one head, and where its sums are.
struct At {
    span: Span,
    head: usize,
    /// Rows of the span.
    tile: Range<usize>,
    /// Its place among those that are under way.
    place: usize,
    /// The first element of its sums.
    sums: usize,
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
        if span.rows == 0 || width == 0 {
            return Ok(());
        }
        let _held = self.kernels.hold();
        let (format, panel, length) = (self.keys.format(), self.kernels.width, span.before + span.rows);
        let height = self.kernels.rows(format);
        let (group, tiles) = (heads / kv_heads, span.rows.div_ceil(height));
        // Where there is one block, each tile is done with it before the next begins, in the same place.
        let places = if length <= BLOCK { 1 } else { group * tiles };
        // Elements of the sums of one tile: columns in whole panels.
        let room = width.next_multiple_of(panel) * height;
        let packed = BLOCK.min(length);
        grown(&mut scratch.keys, packed.next_multiple_of(panel) * units(format, width) * 4)?;
        grown(&mut scratch.values, width.next_multiple_of(panel) * self.value_units(packed) * 4)?;
        grown(&mut scratch.sums, places * room * 4)?;
        scratch.running.resize(places, [Running::default(); TALLEST_TILE]);
        scratch.scores.resize(height * STRIDE, 0.0);
        scratch.narrow.resize(height * STRIDE, 0);
        for block in (0..length).step_by(BLOCK) {
            self.pack(scratch, span, kv_head, block..length.min(block + BLOCK));
            for (head, index) in (0..group).flat_map(|head| (0..tiles).map(move |index| (head, index))) {
                let tile = share(span.rows, tiles, index);
                let visible = span.before + if self.heads.causal { tile.end } else { span.rows };
                if block >= visible {
                    continue;
                }
                let place = (head * tiles + index) % places;
                if block == 0 {
                    // Whatever was there before, in this place or in this scratch.
                    scratch.running[place] = Default::default();
                }
                let at = At { span, head: kv_head * group + head, tile, place, sums: place * room };
                self.tile(scratch, &at, block..visible.min(block + BLOCK));
                if block + BLOCK >= visible {
                    self.finish(scratch, &at);
                }
            }
        }
        Ok(())
    }

    /// Makes panels of a block's keys and values.
    fn pack(&self, scratch: &mut Scratch, span: Span, kv_head: usize, block: Range<usize>) {
        let Heads { kv_heads, width, .. } = self.heads;
        let (format, panel, stride) = (self.keys.format(), self.kernels.width, self.keys.stride());
        let columns = self.keys.columns() - 2 * kv_heads * width;
        let size = units(format, width) * panel;
        let first = input(self.keys, span.keys + block.start, columns + kv_head * width);
        let keys = scratch.keys.as_mut().map_or(&mut [][..], Buffer::as_mut_slice::<u32>);
        for (index, to) in keys.chunks_exact_mut(size).take(block.len().div_ceil(panel)).enumerate() {
            let count = panel.min(block.len() - index * panel);
            // SAFETY: `count` rows of the input, which has a value column after the last key column.
            unsafe {
                let from = first.add(index * panel * stride);
                self.kernels.pack_columns(format, from, stride, count, width, to);
            }
        }
        let size = self.value_units(block.len()) * panel;
        let first = input(self.keys, span.keys + block.start, columns + (kv_heads + kv_head) * width);
        let values = scratch.values.as_mut().map_or(&mut [][..], Buffer::as_mut_slice::<u32>);
        for (index, to) in values.chunks_exact_mut(size).take(width.div_ceil(panel)).enumerate() {
            let count = panel.min(width - index * panel);
            let (to, padding) = to.split_at_mut(units(format, block.len()) * panel);
            // SAFETY: the block's rows of the input, columns that it has.
            unsafe {
                let from = first.add(index * panel * format.bytes());
                self.kernels.pack_rows(format, from, stride, block.len(), count, to);
            }
            padding.fill(0);
        }
    }

    /// Units of so many values and the zeros that follow them.
    fn value_units(&self, length: usize) -> usize {
        let format = self.keys.format();
        units(format, length).next_multiple_of(self.kernels.depth(format))
    }

    /// One tile of queries against keys of the packed block: adds to the tile's unnormalised sums of values.
    fn tile(&self, scratch: &mut Scratch, at: &At, keys: Range<usize>) {
        let Heads { width, causal, .. } = self.heads;
        let At { span, tile, .. } = at;
        let (format, panel) = (self.keys.format(), self.kernels.width);
        let height = self.kernels.rows(format);
        let key_units = units(format, width);
        let value_units = self.value_units(BLOCK.min(span.before + span.rows - keys.start));
        let queries = input(self.queries, span.queries + tile.start, at.head * width);
        let packed = scratch.keys.as_ref().map_or(&[][..], Buffer::as_slice::<f32>);
        for column in (0..keys.len()).step_by(panel) {
            let product = Tile {
                a: queries,
                a_stride: self.queries.stride(),
                panel: packed[column * key_units..][..key_units * panel].as_ptr(),
                k: key_units,
                c: scratch.scores[column..].as_mut_ptr(),
                c_stride: STRIDE,
                rows: tile.len(),
                accumulate: false,
                ahead: None,
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
            running: &mut scratch.running[at.place][..tile.len()],
            factors: &mut factors[..tile.len()],
        });
        let all = scratch.sums.as_mut().map_or(&mut [][..], Buffer::as_mut_slice::<f32>);
        let sums = &mut all[at.sums..at.sums + width.next_multiple_of(panel) * height];
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
        for (index, of_panel) in sums.chunks_exact_mut(height * panel).enumerate() {
            let product = Tile {
                a: probabilities,
                a_stride: STRIDE * format.bytes(),
                panel: values[index * panel * value_units..][..k * panel].as_ptr(),
                k,
                c: of_panel.as_mut_ptr(),
                c_stride: panel,
                rows: tile.len(),
                accumulate: keys.start > 0,
                ahead: None,
            };
            // SAFETY: probabilities are padded to so many units, as values are.
            unsafe { self.kernels.tile(format, &product) };
        }
    }

    /// A tile that has seen all its keys goes to the output.
    fn finish(&self, scratch: &Scratch, at: &At) {
        let At { span, tile, .. } = at;
        let (width, panel) = (self.heads.width, self.kernels.width);
        let height = self.kernels.rows(self.keys.format());
        let factors = scratch.running[at.place].map(|running| 1.0 / running.sum);
        let sums = &scratch.sums.as_ref().map_or(&[][..], Buffer::as_slice::<f32>)[at.sums..];
        for (first, of_panel) in (0..width).step_by(panel).zip(sums.chunks_exact(height * panel)) {
            let columns = at.head * width + first..at.head * width + width.min(first + panel);
            let finish = TileEpilogue {
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
