//! Attention of queries over the keys and values of their own sequence, on the tiles of the linear layers.
//!
//! Keys and values are processed in blocks of panels. If they are rows of the attention input, they are packed block by
//! block; in a KV cache they are panels already. For each tile of queries, one product computes the scores against a
//! block, softmax turns them into probabilities, and a second product multiplies these by the values. Softmax is online:
//! each query keeps a running maximum and sum, so scores take the memory of one tile times one block. Blocks start at the
//! beginning of a sequence, and the result of a query depends neither on its tile nor on the number of queries.

mod operands;
mod query_tile;
mod relative;
mod rows;
mod scratch;

use std::ops::Range;

pub(crate) use self::operands::{Attention, KeyValues, Span};
use self::query_tile::QueryTile;
use self::rows::input;
pub(crate) use self::scratch::AttentionScratch;
use self::scratch::{GrowingBuffer, STRIDE, TileState};
use super::kv_cache::{BLOCK, Panels};
use crate::Result;
use crate::compute::attention::heads::Heads;
use crate::compute::kernels::softmax::Running;
use crate::compute::kernels::{TALLEST_TILE, units};
use crate::compute::matrix::StateMatrix;
use crate::compute::parallel::{Share, share};

/// The division of the queries of a span and one key and value head into tiles.
struct Tiling {
    group: usize,
    tokens: usize,
    /// Tiles of one head's tokens, or of one token's heads.
    tiles: usize,
    by_heads: bool,
}

impl Tiling {
    fn new(group: usize, tokens: usize, height: usize) -> Self {
        // With fewer tokens than heads, a tile has the heads of one token, and reads keys and values once.
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
    /// Some of the tiles of one key and value head's queries, for one sequence.
    pub(crate) fn group(
        &self,
        scratch: &mut AttentionScratch,
        span: Span,
        kv_head: usize,
        part: Share,
    ) -> Result<()> {
        let Heads { heads, kv_heads, width } = self.heads;
        if span.rows == 0 || width == 0 {
            return Ok(());
        }
        let _tiles = self.kernels.keep_tiles();
        let (length, height) = (span.before + span.rows, self.kernels.rows(self.queries.format()));
        let group = heads / kv_heads;
        let tiling = Tiling::new(group, span.rows, height);
        let tiles = share(tiling.count(), part.of, part.index);
        // With one block, each tile is finished before the next one starts, so they share one place.
        let places = if length <= BLOCK { 1 } else { tiles.len().max(1) };
        // Elements of the sums of one tile, whose columns are whole panels.
        let size = width.next_multiple_of(self.kernels.width) * height;
        self.prepare(scratch, places, size, BLOCK.min(length))?;
        let AttentionScratch { keys, values, state } = scratch;
        let tile_at = |index: usize| {
            let ((heads, tokens), place) = (tiling.tile(index), index % places);
            let (head, sums) = (kv_head * group + heads.start, place * size);
            QueryTile { span, head, heads: heads.len(), tokens, place, sums, begins: true }
        };
        for tile in tiles.clone().map(tile_at).filter(|tile| self.keys_of(span, &tile.tokens).is_empty()) {
            // No block comes to such a tile: its queries see hidden keys alone.
            state.running[tile.place] = Default::default();
            state.sums.numbers_mut::<f32>()[tile.sums..][..size].fill(0.0);
            self.finish(state, &tile);
        }
        let first = tiles.clone().map(|index| self.keys_of(span, &tiling.tile(index).1).start).min();
        for block in (first.unwrap_or(0) / BLOCK * BLOCK..length).step_by(BLOCK) {
            let panels = match self.keys {
                KeyValues::Rows(rows) => {
                    let all = block..length.min(block + BLOCK);
                    self.pack(rows, keys, values, span, kv_head, all.clone());
                    self.compare_keys(state, rows, span, kv_head, all.clone());
                    let value_units = self.value_units(all.len());
                    Panels { keys: keys.numbers(), values: values.numbers(), value_units }
                }
                KeyValues::Cached { layer, caches } => {
                    caches[span.keys].panels(layer, kv_head, block / BLOCK)
                }
            };
            for mut tile in tiles.clone().map(tile_at) {
                let visible = self.keys_of(span, &tile.tokens);
                if visible.is_empty() || block >= visible.end || block + BLOCK <= visible.start {
                    continue;
                }
                tile.begins = block <= visible.start;
                if tile.begins {
                    // The place may have the state of an earlier tile.
                    state.running[tile.place] = self.beginning(&tile);
                }
                let keys = block.max(visible.start)..visible.end.min(block + BLOCK);
                self.tile(state, &panels, &tile, block, keys);
                if block + BLOCK >= visible.end {
                    self.finish(state, &tile);
                }
            }
        }
        Ok(())
    }

    /// Makes room for tiles at so many places, each with sums of `size` elements, and for `packed` keys and values of a block.
    fn prepare(
        &self,
        AttentionScratch { keys, values, state }: &mut AttentionScratch,
        places: usize,
        size: usize,
        packed: usize,
    ) -> Result<()> {
        let (format, panel, width) = (self.queries.format(), self.kernels.width, self.heads.width);
        if matches!(self.keys, KeyValues::Rows(_)) {
            keys.grow(packed.next_multiple_of(panel) * units(format, width) * 4)?;
            values.grow(width.next_multiple_of(panel) * self.value_units(packed) * 4)?;
        }
        let height = self.kernels.rows(format);
        state.sums.grow(places * size * 4)?;
        state.running.resize(places, [Running::default(); TALLEST_TILE]);
        state.scores.resize(height * STRIDE, 0.0);
        state.narrow.resize(height * STRIDE, 0);
        Ok(())
    }

    /// Compares a block's keys with relative positions, where the layer does.
    fn compare_keys(
        &self,
        state: &mut TileState,
        rows: &StateMatrix,
        span: Span,
        kv_head: usize,
        block: Range<usize>,
    ) {
        let Heads { kv_heads, width, .. } = self.heads;
        if let Some(comparison) = self.comparison() {
            let column = rows.columns() - 2 * kv_heads * width + kv_head * width;
            let queries = 0..span.before + span.rows;
            comparison.compare_keys(state, rows, (span.keys, column), kv_head, queries, block);
        }
    }

    /// The keys that some of these tokens of a span attend to, from the start of a panel on.
    fn keys_of(&self, span: Span, tokens: &Range<usize>) -> Range<usize> {
        let mask = self.layer.mask;
        let start = (span.before + tokens.start).saturating_sub(mask.before);
        let end = (span.before + tokens.end)
            .saturating_add(mask.after)
            .min((span.before + span.rows).saturating_sub(span.hidden));
        start - start % self.kernels.width..end
    }

    /// Packs a block's keys and values into panels.
    fn pack(
        &self,
        rows: &StateMatrix,
        keys: &mut GrowingBuffer,
        values: &mut GrowingBuffer,
        span: Span,
        kv_head: usize,
        block: Range<usize>,
    ) {
        let Heads { kv_heads, width, .. } = self.heads;
        let (format, panel, stride) = (rows.format(), self.kernels.width, rows.stride());
        let columns = rows.columns() - 2 * kv_heads * width;
        let size = units(format, width) * panel;
        assert!(kv_head < kv_heads && span.keys + block.end <= rows.rows(), "rows of keys and values");
        let first = input(rows, span.keys + block.start, columns + kv_head * width);
        let panels = keys.numbers_mut::<u32>().chunks_exact_mut(size);
        for (index, to) in panels.take(block.len().div_ceil(panel)).enumerate() {
            let count = panel.min(block.len() - index * panel);
            // SAFETY: the rows of the block exist by the assertion above, and `index * panel + count <= block.len()`. Each
            // has `width` key columns from `first` on, and value columns after them, so one more element is readable.
            unsafe {
                let from = first.add(index * panel * stride);
                self.kernels.pack_columns(format, from, stride, count, width, to);
            }
        }
        let size = self.value_units(block.len()) * panel;
        let first = input(rows, span.keys + block.start, columns + (kv_heads + kv_head) * width);
        let panels = values.numbers_mut::<u32>().chunks_exact_mut(size);
        for (index, to) in panels.take(width.div_ceil(panel)).enumerate() {
            let count = panel.min(width - index * panel);
            let (to, padding) = to.split_at_mut(units(format, block.len()) * panel);
            // SAFETY: the rows of the block exist by the assertion above. Each has `width` value columns from `first` on, and
            // `index * panel + count <= width`.
            unsafe {
                let from = first.add(index * panel * format.bytes());
                self.kernels.pack_rows(format, from, stride, block.len(), count, to);
            }
            padding.fill(0);
        }
    }
}
