//! Attention of queries over the keys and values of their own sequence, on the same tiles as the linear layers.
//!
//! Keys and values are worked on in blocks of panels. Those of rows beside the queries are packed block by block; those
//! of a cache lie in panels already. For each tile of queries, scores against a block are one product, softmax turns
//! them into probabilities, and those times the values are another. Each query keeps a running maximum and sum, so
//! scores never take more memory than a tile times a block. Blocks begin at the start of a sequence, and a query's
//! result depends neither on the tile that it is in nor on how many queries come with it.

use std::ops::Range;

use super::kv_cache::{BLOCK, PagedKvCache, Panels};
use crate::compute::attention::heads::Heads;
use crate::compute::isa::DType;
use crate::compute::kernels::activation::Activation;
use crate::compute::kernels::rowwise::{Running, Softmax, TileEpilogue};
use crate::compute::kernels::tile::Tile;
use crate::compute::kernels::{Kernels, TALLEST_TILE, units};
use crate::compute::matrix::StateMatrix;
use crate::compute::memory::Buffer;
use crate::compute::parallel::{Target, share};
use crate::{Error, Result};

/// Elements between rows of scores: not a power of two, for the sake of cache sets.
const STRIDE: usize = BLOCK + 32;

/// The memory that one thread needs for attention.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    keys: Option<Buffer>,
    values: Option<Buffer>,
    work: Work,
}

/// What becomes of scores.
#[derive(Debug, Default)]
struct Work {
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

/// What a buffer holds.
fn numbers(buffer: &Option<Buffer>) -> &[f32] {
    buffer.as_ref().map_or(&[], Buffer::as_slice)
}

/// Where keys and values are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum KeyValues<'a> {
    /// Rows that end with the keys, then the values, of all heads.
    Rows(&'a StateMatrix),
    /// A layer of the caches of several sequences.
    Cached { layer: usize, caches: &'a [&'a PagedKvCache] },
}

/// What all heads of a pass share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub kernels: &'static Kernels,
    /// Rows that begin with the queries of all heads.
    pub queries: &'a StateMatrix,
    pub keys: KeyValues<'a>,
    pub heads: Heads,
    /// A row for each row of queries.
    pub out: &'a Target<'a>,
}

/// The queries of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Where its keys are: the first row, or which cache.
    pub keys: usize,
    /// Its first row of queries.
    pub queries: usize,
    /// Keys before the first query's own: the sequence's earlier tokens.
    pub before: usize,
    /// Queries; there are keys up to the last one's own.
    pub rows: usize,
}

/// Some of the tiles of one span and one key and value head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub index: usize,
    pub of: usize,
}

/// A tile of queries, and where its sums are.
struct At {
    span: Span,
    /// Its query head, or the first of several.
    head: usize,
    /// Query heads: one for any number of tokens, or several for one token.
    heads: usize,
    /// Tokens of the span.
    tokens: Range<usize>,
    /// Its place among those that are under way.
    place: usize,
    /// The first element of its sums.
    sums: usize,
}

impl At {
    fn rows(&self) -> usize {
        self.heads * self.tokens.len()
    }
}

/// How the queries of a span and one key and value head divide into tiles.
struct Tiling {
    group: usize,
    tokens: usize,
    /// Tiles that one head's tokens make, or one token's heads.
    tiles: usize,
    by_heads: bool,
}

impl Tiling {
    fn new(group: usize, tokens: usize, height: usize) -> Self {
        // Where there are fewer tokens than heads, a tile of one token's heads reads keys and values once.
        let by_heads = tokens < group;
        let tiles = if by_heads { group } else { tokens }.div_ceil(height);
        Self { group, tokens, tiles, by_heads }
    }

    fn count(&self) -> usize {
        self.tiles * if self.by_heads { self.tokens } else { self.group }
    }

    /// Heads of the group and tokens of tile `index`.
    fn tile(&self, index: usize) -> (Range<usize>, Range<usize>) {
        let (major, minor) = (index / self.tiles, index % self.tiles);
        if self.by_heads {
            (share(self.group, self.tiles, minor), major..major + 1)
        } else {
            (major..major + 1, share(self.tokens, self.tiles, minor))
        }
    }
}

impl Attention<'_> {
    /// Whether the columns of the input divide as `heads` says.
    pub(crate) fn check(qkv: &StateMatrix, heads: Heads) {
        let Heads { heads, kv_heads, width, .. } = heads;
        let groups = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        assert!(groups && qkv.columns() == (heads + 2 * kv_heads) * width, "columns of an attention input");
    }

    /// Some of the tiles of one key and value head's queries, for one sequence.
    pub(crate) fn group(&self, scratch: &mut Scratch, span: Span, kv_head: usize, part: Share) -> Result<()> {
        let Heads { heads, kv_heads, width, .. } = self.heads;
        if span.rows == 0 || width == 0 {
            return Ok(());
        }
        let _tiles = self.kernels.keep_tiles();
        let (format, panel, length) = (self.queries.format(), self.kernels.width, span.before + span.rows);
        let height = self.kernels.rows(format);
        let group = heads / kv_heads;
        let tiling = Tiling::new(group, span.rows, height);
        let tiles = share(tiling.count(), part.of, part.index);
        // Where there is one block, each tile is done with it before the next begins, in the same place.
        let places = if length <= BLOCK { 1 } else { tiles.len().max(1) };
        // Elements of the sums of one tile: columns in whole panels.
        let room = width.next_multiple_of(panel) * height;
        let packed = BLOCK.min(length);
        let Scratch { keys, values, work } = scratch;
        if matches!(self.keys, KeyValues::Rows(_)) {
            grown(keys, packed.next_multiple_of(panel) * units(format, width) * 4)?;
            grown(values, width.next_multiple_of(panel) * self.value_units(packed) * 4)?;
        }
        grown(&mut work.sums, places * room * 4)?;
        work.running.resize(places, [Running::default(); TALLEST_TILE]);
        work.scores.resize(height * STRIDE, 0.0);
        work.narrow.resize(height * STRIDE, 0);
        for block in (0..length).step_by(BLOCK) {
            let panels = match self.keys {
                KeyValues::Rows(rows) => {
                    let all = block..length.min(block + BLOCK);
                    self.pack(rows, keys, values, span, kv_head, all.clone());
                    Panels {
                        keys: numbers(keys),
                        values: numbers(values),
                        value_units: self.value_units(all.len()),
                    }
                }
                KeyValues::Cached { layer, caches } => {
                    caches[span.keys].panels(layer, kv_head, block / BLOCK)
                }
            };
            for index in tiles.clone() {
                let (heads, tokens) = tiling.tile(index);
                let visible = span.before + if self.heads.causal { tokens.end } else { span.rows };
                if block >= visible {
                    continue;
                }
                let place = index % places;
                if block == 0 {
                    // Whatever was there before, in this place or in this scratch.
                    work.running[place] = Default::default();
                }
                let head = kv_head * group + heads.start;
                let at = At { span, head, heads: heads.len(), tokens, place, sums: place * room };
                self.tile(work, &panels, &at, block..visible.min(block + BLOCK));
                if block + BLOCK >= visible {
                    self.finish(work, &at);
                }
            }
        }
        Ok(())
    }

    /// Makes panels of a block's keys and values.
    fn pack(
        &self,
        rows: &StateMatrix,
        keys: &mut Option<Buffer>,
        values: &mut Option<Buffer>,
        span: Span,
        kv_head: usize,
        block: Range<usize>,
    ) {
        let Heads { kv_heads, width, .. } = self.heads;
        let (format, panel, stride) = (rows.format(), self.kernels.width, rows.stride());
        let columns = rows.columns() - 2 * kv_heads * width;
        let size = units(format, width) * panel;
        let first = input(rows, span.keys + block.start, columns + kv_head * width);
        let keys = keys.as_mut().map_or(&mut [][..], Buffer::as_mut_slice::<u32>);
        for (index, to) in keys.chunks_exact_mut(size).take(block.len().div_ceil(panel)).enumerate() {
            let count = panel.min(block.len() - index * panel);
            // SAFETY: `count` rows of the input, which has a value column after the last key column.
            unsafe {
                let from = first.add(index * panel * stride);
                self.kernels.pack_columns(format, from, stride, count, width, to);
            }
        }
        let size = self.value_units(block.len()) * panel;
        let first = input(rows, span.keys + block.start, columns + (kv_heads + kv_head) * width);
        let values = values.as_mut().map_or(&mut [][..], Buffer::as_mut_slice::<u32>);
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
        let format = self.queries.format();
        units(format, length).next_multiple_of(self.kernels.depth(format))
    }

    /// One tile of queries against keys of a block: adds to the tile's unnormalised sums of values.
    fn tile(&self, work: &mut Work, panels: &Panels<'_>, at: &At, keys: Range<usize>) {
        let Heads { width, causal, .. } = self.heads;
        let At { span, tokens, .. } = at;
        let (format, panel, rows) = (self.queries.format(), self.kernels.width, at.rows());
        let height = self.kernels.rows(format);
        let key_units = units(format, width);
        let queries = input(self.queries, span.queries + tokens.start, at.head * width);
        assert!(
            rows <= height && (at.head + at.heads) * width <= self.queries.columns(),
            "a tile of queries"
        );
        for column in (0..keys.len()).step_by(panel) {
            let product = Tile {
                a: queries,
                a_stride: self.stride(at, self.queries.stride()),
                panel: panels.keys[column * key_units..][..key_units * panel].as_ptr(),
                k: key_units,
                c: work.scores[column..].as_mut_ptr(),
                c_stride: STRIDE,
                rows,
                accumulate: false,
                ahead: None,
            };
            // SAFETY: queries lie inside the input; scores have whole panels for a block in every row.
            unsafe { self.kernels.tile(format, &product) };
        }
        let mut factors = [0.0; TALLEST_TILE];
        let k = self.value_units(keys.len());
        self.kernels.softmax(&mut Softmax {
            scores: &mut work.scores,
            narrow: (format == DType::Bf16).then_some(&mut work.narrow[..]),
            stride: STRIDE,
            keys: keys.len(),
            padded: k * 4 / format.bytes(),
            visible: if causal {
                // Heads of one token see the same keys; each further token sees one more.
                let first = (span.before + tokens.start + 1) as isize - keys.start as isize;
                (first, isize::from(at.heads == 1))
            } else {
                (keys.len() as isize, 0)
            },
            scale: 1.0 / (width as f32).sqrt(),
            running: &mut work.running[at.place][..rows],
            factors: &mut factors[..rows],
        });
        let all = work.sums.as_mut().map_or(&mut [][..], Buffer::as_mut_slice::<f32>);
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
        let probabilities = match format {
            DType::F32 => work.scores.as_ptr().cast(),
            DType::Bf16 => work.narrow.as_ptr().cast(),
        };
        for (index, of_panel) in sums.chunks_exact_mut(height * panel).enumerate() {
            let product = Tile {
                a: probabilities,
                a_stride: STRIDE * format.bytes(),
                panel: panels.values[index * panel * panels.value_units..][..k * panel].as_ptr(),
                k,
                c: of_panel.as_mut_ptr(),
                c_stride: panel,
                rows,
                accumulate: keys.start > 0,
                ahead: None,
            };
            // SAFETY: probabilities are padded to so many units, as values are.
            unsafe { self.kernels.tile(format, &product) };
        }
    }

    /// Bytes from a row of a tile to the next: of one token to the next, or of one head to the next.
    fn stride(&self, at: &At, of_rows: usize) -> usize {
        if at.heads > 1 { self.heads.width * self.queries.format().bytes() } else { of_rows }
    }

    /// A tile that has seen all its keys goes to the output.
    fn finish(&self, work: &Work, at: &At) {
        let At { span, tokens, .. } = at;
        let (width, panel) = (self.heads.width, self.kernels.width);
        let height = self.kernels.rows(self.queries.format());
        let factors = work.running[at.place].map(|running| 1.0 / running.sum);
        let sums = &work.sums.as_ref().map_or(&[][..], Buffer::as_slice::<f32>)[at.sums..];
        assert!((at.head + at.heads) * width <= self.out.columns(), "columns of a tile");
        for (first, of_panel) in (0..width).step_by(panel).zip(sums.chunks_exact(height * panel)) {
            let columns = at.head * width + first..at.head * width + width.min(first + panel);
            let finish = TileEpilogue {
                tile: of_panel.as_ptr(),
                tile_stride: panel,
                rows: at.rows(),
                columns: columns.len(),
                bias: std::ptr::null(),
                activation: Activation::Identity,
                gated: std::ptr::null(),
                gated_bias: std::ptr::null(),
                factors: factors.as_ptr(),
                out: self.out.part(span.queries + tokens.start..span.queries + tokens.end, columns),
                out_stride: self.stride(at, self.out.stride()),
                to: self.out.format(),
                accumulate: false,
            };
            // SAFETY: rows and columns of the output that belong to this sequence and these heads alone; those of
            // several heads lie in the one row, which has so many columns.
            unsafe { self.kernels.finish(&finish) };
        }
    }
}

fn input(matrix: &StateMatrix, row: usize, column: usize) -> *const u8 {
    assert!(column < matrix.columns(), "column of an attention input");
    // SAFETY: the row was bounds-checked, and it has this column.
    unsafe { matrix.row_ptr(row).add(column * matrix.format().bytes()) }
}
