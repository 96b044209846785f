//! Attention of queries over the keys and values of their own sequence, on the tiles of the linear layers.
//!
//! Keys and values are processed in blocks of panels. If they are rows of the attention input, they are packed block by
//! block; in a KV cache they are panels already. For each tile of queries, one product computes the scores against a
//! block, softmax turns them into probabilities, and a second product multiplies these by the values. Softmax is online:
//! each query keeps a running maximum and sum, so scores take the memory of one tile times one block. Blocks start at the
//! beginning of a sequence, and the result of a query depends neither on its tile nor on the number of queries.

mod relative;
mod rows;
mod scratch;

use std::ops::Range;

use self::relative::PositionComparison;
use self::rows::{TileRows, input};
pub(crate) use self::scratch::AttentionScratch;
use self::scratch::{GrowingBuffer, STRIDE, TileState};
use super::kv_cache::{BLOCK, PagedKvCache, Panels};
use super::relative::RelativePanels;
use crate::Result;
use crate::compute::attention::heads::{Heads, LayerAttention};
use crate::compute::isa::DType;
use crate::compute::kernels::activation::Activation;
use crate::compute::kernels::rowwise::TileEpilogue;
use crate::compute::kernels::softmax::{Running, Softmax};
use crate::compute::kernels::tile::Tile;
use crate::compute::kernels::{Kernels, TALLEST_TILE, units};
use crate::compute::matrix::StateMatrix;
use crate::compute::parallel::{Share, Target, share};

/// The location of keys and values.
#[derive(Debug, Clone, Copy)]
pub(crate) enum KeyValues<'a> {
    /// Rows that end with the keys of all heads, and then their values.
    Rows(&'a StateMatrix),
    /// A layer of the caches of several sequences.
    Cached { layer: usize, caches: &'a [&'a PagedKvCache] },
}

/// The operands of attention that all heads share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention<'a> {
    kernels: &'static Kernels,
    /// Rows of queries, keys and values of all heads.
    queries: &'a StateMatrix,
    keys: KeyValues<'a>,
    heads: Heads,
    layer: &'a LayerAttention,
    relative: Option<&'a RelativePanels>,
    /// A row for each row of queries.
    out: &'a Target<'a>,
}

/// The queries of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The first row of its keys, or the index of its cache.
    pub keys: usize,
    /// Its first row of queries.
    pub queries: usize,
    /// Keys before the first query's own: the sequence's earlier tokens.
    pub before: usize,
    /// The number of queries. The keys end with that of the last query.
    pub rows: usize,
    /// Keys at the end to which no query attends.
    pub hidden: usize,
}

/// A tile of queries, and the location of its sums.
struct QueryTile {
    span: Span,
    /// Its query head, or the first of several.
    head: usize,
    /// Query heads: one for any number of tokens, or several for one token.
    heads: usize,
    /// Tokens of the span.
    tokens: Range<usize>,
    /// Its index among the tiles in progress.
    place: usize,
    /// The first element of its sums.
    sums: usize,
    /// Whether it has no sums of earlier blocks yet.
    begins: bool,
}

impl QueryTile {
    fn rows(&self) -> usize {
        self.heads * self.tokens.len()
    }
}

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

impl<'a> Attention<'a> {
    /// Attention of `queries`, rows of queries, keys and values, whose output is a row of `out` for each row.
    ///
    /// # Panics
    ///
    /// If the columns of a matrix are not those of `heads`, or the formats of keys and queries differ.
    pub(crate) fn new(
        kernels: &'static Kernels,
        queries: &'a StateMatrix,
        keys: KeyValues<'a>,
        heads: Heads,
        layer: &'a LayerAttention,
        out: &'a Target<'a>,
    ) -> Self {
        Self::check(queries, heads);
        let bias = layer.bias.as_ref();
        assert!(bias.is_none_or(|bias| bias.heads() == heads.heads), "heads of a bias by distance");
        if let KeyValues::Rows(rows) = keys {
            let fits =
                rows.columns() >= 2 * heads.kv_heads * heads.width && rows.format() == queries.format();
            assert!(fits, "keys and values of an attention input");
        }
        assert_eq!(out.columns(), heads.heads * heads.width, "columns of an attention output");
        Self { kernels, queries, keys, heads, layer, relative: None, out }
    }

    /// The same with these relative positions, which belong to the same kernels, heads and format.
    ///
    /// # Panics
    ///
    /// If several heads of queries share one of keys, or keys are in a cache.
    pub(crate) fn with_relative(self, relative: Option<&'a RelativePanels>) -> Self {
        let rows = self.heads.kv_heads == self.heads.heads && matches!(self.keys, KeyValues::Rows(_));
        assert!(relative.is_none() || rows, "keys of relative positions");
        Self { relative, ..self }
    }

    fn comparison(&self) -> Option<PositionComparison<'a>> {
        let (kernels, format, width) = (self.kernels, self.queries.format(), self.heads.width);
        self.relative.map(|relative| PositionComparison { kernels, format, width, relative })
    }

    /// Checks that the columns of the input are those of `heads`.
    ///
    /// # Panics
    ///
    /// If they are not.
    pub(crate) fn check(qkv: &StateMatrix, heads: Heads) {
        let Heads { heads, kv_heads, width } = heads;
        let groups = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        assert!(groups && qkv.columns() == (heads + 2 * kv_heads) * width, "columns of an attention input");
    }

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
        let (format, panel, length) = (self.queries.format(), self.kernels.width, span.before + span.rows);
        let height = self.kernels.rows(format);
        let group = heads / kv_heads;
        let tiling = Tiling::new(group, span.rows, height);
        let tiles = share(tiling.count(), part.of, part.index);
        // With one block, each tile is finished before the next one starts, so they share one place.
        let places = if length <= BLOCK { 1 } else { tiles.len().max(1) };
        // Elements of the sums of one tile, whose columns are whole panels.
        let size = width.next_multiple_of(panel) * height;
        let packed = BLOCK.min(length);
        let AttentionScratch { keys, values, state } = scratch;
        if matches!(self.keys, KeyValues::Rows(_)) {
            keys.grow(packed.next_multiple_of(panel) * units(format, width) * 4)?;
            values.grow(width.next_multiple_of(panel) * self.value_units(packed) * 4)?;
        }
        state.sums.grow(places * size * 4)?;
        state.running.resize(places, [Running::default(); TALLEST_TILE]);
        state.scores.resize(height * STRIDE, 0.0);
        state.narrow.resize(height * STRIDE, 0);
        for index in tiles.clone() {
            let (heads, tokens) = tiling.tile(index);
            if self.keys_of(span, &tokens).is_empty() {
                // No block comes to such a tile: its queries see hidden keys alone.
                let (head, sums) = (kv_head * group + heads.start, 0);
                let tile = QueryTile { span, head, heads: heads.len(), tokens, place: 0, sums, begins: true };
                state.running[0] = Default::default();
                state.sums.numbers_mut::<f32>()[..size].fill(0.0);
                self.finish(state, &tile);
            }
        }
        let first = tiles.clone().map(|index| self.keys_of(span, &tiling.tile(index).1).start).min();
        for block in (first.unwrap_or(0) / BLOCK * BLOCK..length).step_by(BLOCK) {
            let panels = match self.keys {
                KeyValues::Rows(rows) => {
                    let all = block..length.min(block + BLOCK);
                    self.pack(rows, keys, values, span, kv_head, all.clone());
                    if let Some(comparison) = self.comparison() {
                        let column = rows.columns() - 2 * kv_heads * width + kv_head * width;
                        comparison.compare_keys(
                            state,
                            rows,
                            (span.keys, column),
                            kv_head,
                            0..length,
                            all.clone(),
                        );
                    }
                    Panels {
                        keys: keys.numbers(),
                        values: values.numbers(),
                        value_units: self.value_units(all.len()),
                    }
                }
                KeyValues::Cached { layer, caches } => {
                    caches[span.keys].panels(layer, kv_head, block / BLOCK)
                }
            };
            for index in tiles.clone() {
                let (heads, tokens) = tiling.tile(index);
                let visible = self.keys_of(span, &tokens);
                if visible.is_empty() || block >= visible.end || block + BLOCK <= visible.start {
                    continue;
                }
                let place = index % places;
                let begins = block <= visible.start;
                if begins {
                    // The place may have the state of an earlier tile.
                    state.running[place] = Default::default();
                }
                let head = kv_head * group + heads.start;
                let sums = place * size;
                let tile = QueryTile { span, head, heads: heads.len(), tokens, place, sums, begins };
                self.tile(
                    state,
                    &panels,
                    &tile,
                    block,
                    block.max(visible.start)..visible.end.min(block + BLOCK),
                );
                if block + BLOCK >= visible.end {
                    self.finish(state, &tile);
                }
            }
        }
        Ok(())
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

    /// Units of a panel column of `length` values, padded with zeros to a whole step of a sum.
    fn value_units(&self, length: usize) -> usize {
        let format = self.queries.format();
        units(format, length).next_multiple_of(self.kernels.depth(format))
    }

    /// Processes one tile of queries against some keys of a block: adds to the tile's unnormalized sums of values. The
    /// keys begin with a panel of the block.
    fn tile(
        &self,
        state: &mut TileState,
        panels: &Panels<'_>,
        tile: &QueryTile,
        block: usize,
        keys: Range<usize>,
    ) {
        let Heads { width, .. } = self.heads;
        let (QueryTile { span, tokens, .. }, skipped) = (tile, keys.start - block);
        let (format, panel, rows) = (self.queries.format(), self.kernels.width, tile.rows());
        let height = self.kernels.rows(format);
        let key_units = units(format, width);
        let start = input(self.queries, span.queries + tokens.start, tile.head * width);
        assert!(
            rows <= height
                && (tile.head + tile.heads) * width <= self.out.columns()
                && span.queries + tokens.end <= self.queries.rows(),
            "a tile of queries"
        );
        let queries = TileRows { start, stride: self.stride(tile, self.queries.stride()), rows };
        // SAFETY: the rows have `width` readable elements in `format` by the assertion above. Nothing changes `padded` before
        // the next tile.
        let queries = unsafe { queries.in_whole_units(format, width, &mut state.padded) };
        let count = keys.len().div_ceil(panel);
        let product = Tile {
            a: queries.start,
            a_stride: queries.stride,
            panel: panels.keys[skipped * key_units..][..count * key_units * panel].as_ptr(),
            k: key_units,
            c: state.scores.as_mut_ptr(),
            c_stride: STRIDE,
            rows,
            accumulate: false,
            ahead: None,
            overlap: None,
        };
        // SAFETY: `rows <= height`. The heads and tokens of the tile are columns and rows of `queries` by the assertion
        // above. Each has `key_units` readable units: an even width is whole units, and `padded` has whole units. The slice of
        // panels has `key_units` rows for each. `count * panel <= BLOCK <= STRIDE`, because `keys.len() <= BLOCK`, a multiple of
        // `panel`; so the scores, `height * STRIDE` values that belong to this thread, have `rows` rows of `count * panel` values.
        unsafe { self.kernels.tiles(format, &product, count) };
        if let Some(comparison) = self.comparison() {
            let positions = span.before + tokens.start..span.before + tokens.end;
            // SAFETY: as for the product with the keys. With relative positions, a tile has one head.
            unsafe { comparison.add(state, tile.head, queries, positions, block, keys.clone()) };
        }
        let mut factors = [0.0; TALLEST_TILE];
        let k = self.value_units(keys.len());
        // Heads of one token attend to the same keys; each further token attends to those one further on.
        let (first, step) = (span.before + tokens.start, isize::from(tile.heads == 1));
        let scale = self.adjust(state, tile, keys.clone());
        let mask = self.layer.mask;
        let [before, after] =
            [mask.before, mask.after].map(|keys| isize::try_from(keys).unwrap_or(isize::MAX));
        let own = first as isize - keys.start as isize;
        self.kernels.softmax(&mut Softmax {
            scores: &mut state.scores,
            narrow: (format == DType::Bf16).then_some(&mut state.narrow[..]),
            stride: STRIDE,
            keys: keys.len(),
            padded: k * 4 / format.bytes(),
            visible: own.saturating_sub(before)..(own + 1).saturating_add(after),
            step,
            scale,
            running: &mut state.running[tile.place][..rows],
            factors: &mut factors[..rows],
        });
        let sums = &mut state.sums.numbers_mut::<f32>()
            [tile.sums..tile.sums + width.next_multiple_of(panel) * height];
        if !tile.begins {
            // The sums of each panel of value columns have `height` rows. Maxima seldom rise after the first blocks.
            for panel_sums in sums.chunks_exact_mut(height * panel) {
                for (row, factor) in
                    panel_sums.chunks_exact_mut(panel).zip(factors).filter(|(_, factor)| *factor != 1.0)
                {
                    row.iter_mut().for_each(|sum| *sum *= factor);
                }
            }
        }
        let probabilities = match format {
            DType::F32 => state.scores.as_ptr().cast(),
            DType::Bf16 => state.narrow.as_ptr().cast(),
        };
        for (index, panel_sums) in sums.chunks_exact_mut(height * panel).enumerate() {
            let product = Tile {
                a: probabilities,
                a_stride: STRIDE * format.bytes(),
                panel: panels.values[(index * panels.value_units + units(format, skipped)) * panel..]
                    [..k * panel]
                    .as_ptr(),
                k,
                c: panel_sums.as_mut_ptr(),
                c_stride: panel,
                rows,
                accumulate: !tile.begins,
                ahead: None,
                overlap: None,
            };
            // SAFETY: `rows <= height`. Softmax wrote `k` units of each row of probabilities, whose stride is at least `k`
            // units because `k <= BLOCK` in units of the format. The panel's slice has `k` rows. `panel_sums` has `height`
            // initialized rows of `panel` values, and belongs to this thread.
            unsafe { self.kernels.tile(format, &product) };
        }
    }

    /// Limits the scores of a tile and adds their bias, where the layer does; returns the factor that is left for softmax.
    fn adjust(&self, state: &mut TileState, tile: &QueryTile, keys: Range<usize>) -> f32 {
        let (scale, cap) = (self.layer.factor(self.heads.width), self.layer.soft_cap);
        let bias = self.layer.bias.as_deref();
        if cap.is_none() && bias.is_none() {
            return scale;
        }
        for (row, scores) in state.scores.chunks_mut(STRIDE).enumerate().take(tile.rows()) {
            let (head, token) = if tile.heads > 1 { (row, 0) } else { (0, row) };
            let query = tile.span.before + tile.tokens.start + token;
            let bias = bias.map_or(&[][..], |bias| bias.row(tile.head + head, query, keys.start, keys.len()));
            self.kernels.adjust_scores(&mut scores[..keys.len()], scale, cap, bias);
        }
        1.0
    }

    /// Bytes from a row of a tile to the next: from one token to the next, or from one head to the next.
    fn stride(&self, tile: &QueryTile, of_rows: usize) -> usize {
        if tile.heads > 1 { self.heads.width * self.queries.format().bytes() } else { of_rows }
    }

    /// Normalizes a tile that has processed all its keys, and stores it in the output. A query that sees no key has zeros, as in
    /// PyTorch's `scaled_dot_product_attention`.
    fn finish(&self, state: &TileState, tile: &QueryTile) {
        let QueryTile { span, tokens, .. } = tile;
        let (width, panel) = (self.heads.width, self.kernels.width);
        let height = self.kernels.rows(self.queries.format());
        let factors =
            state.running[tile.place].map(|running| if running.sum == 0.0 { 0.0 } else { 1.0 / running.sum });
        let sums = &state.sums.numbers::<f32>()[tile.sums..];
        assert!((tile.head + tile.heads) * width <= self.out.columns(), "columns of a tile");
        for (first, panel_sums) in (0..width).step_by(panel).zip(sums.chunks_exact(height * panel)) {
            let columns = tile.head * width + first..tile.head * width + width.min(first + panel);
            let finish = TileEpilogue {
                tile: panel_sums.as_ptr(),
                tile_stride: panel,
                rows: tile.rows(),
                columns: columns.len(),
                bias: std::ptr::null(),
                activation: Activation::Identity,
                gated: std::ptr::null(),
                gated_bias: std::ptr::null(),
                factors: factors.as_ptr(),
                out: self.out.part(span.queries + tokens.start..span.queries + tokens.end, columns),
                out_stride: self.stride(tile, self.out.stride()),
                store: self.out.format().into(),
            };
            // SAFETY: `panel_sums` has `height >= rows` rows of `panel` values, which is whole registers, and `factors` has
            // `TALLEST_TILE >= rows`; the other pointers are null. `Target::part` checked the first head's columns and the
            // tokens' rows. With several heads, there is one token, and the columns of all heads are in its row by the
            // assertion above. `group` is called once for each tile, so no other thread accesses these values.
            unsafe { self.kernels.finish(&finish) };
        }
    }
}
