//! One tile of queries: its scores, their probabilities, and the sums of values.

use std::ops::Range;

use super::operands::{Attention, Span};
use super::rows::{TileRows, input};
use super::scratch::{STRIDE, TileState};
use crate::compute::attention::heads::Heads;
use crate::compute::attention::kv_cache::Panels;
use crate::compute::isa::DType;
use crate::compute::kernels::activation::Activation;
use crate::compute::kernels::math::LOG2_E;
use crate::compute::kernels::rowwise::TileEpilogue;
use crate::compute::kernels::softmax::{Running, Softmax};
use crate::compute::kernels::tile::Tile;
use crate::compute::kernels::{TALLEST_TILE, units};

/// A tile of queries, and the location of its sums.
pub(super) struct QueryTile {
    pub span: Span,
    /// Its query head, or the first of several.
    pub head: usize,
    /// Query heads: one for any number of tokens, or several for one token.
    pub heads: usize,
    /// Tokens of the span.
    pub tokens: Range<usize>,
    /// Its index among the tiles in progress.
    pub place: usize,
    /// The first element of its sums.
    pub sums: usize,
    /// Whether it has no sums of earlier blocks yet.
    pub begins: bool,
}

impl QueryTile {
    fn rows(&self) -> usize {
        self.heads * self.tokens.len()
    }
}

impl Attention<'_> {
    /// Processes one tile of queries against some keys of a block: adds to the tile's unnormalized sums of values. The
    /// keys begin with a panel of the block.
    pub(super) fn tile(
        &self,
        state: &mut TileState,
        panels: &Panels<'_>,
        tile: &QueryTile,
        block: usize,
        keys: Range<usize>,
    ) {
        self.scores(state, panels, tile, block, keys.clone());
        let factors = self.probabilities(state, tile, keys.clone());
        self.add_values(state, panels, tile, keys.start - block, keys.len(), &factors);
    }

    /// The scores of a tile against some keys of a block, before they are scaled.
    #[inline]
    fn scores(
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
        let key_units = units(format, width);
        let start = input(self.queries, span.queries + tokens.start, tile.head * width);
        assert!(
            rows <= self.kernels.rows(format)
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
        // SAFETY: `rows` is at most the height of a tile. The heads and tokens of the tile are columns and rows of `queries` by
        // the assertion above. Each has `key_units` readable units: an even width is whole units, and `padded` has whole units.
        // The slice of panels has `key_units` rows for each. `count * panel <= BLOCK <= STRIDE`, because `keys.len() <= BLOCK`,
        // a multiple of `panel`; so the scores, a tile's height of rows of `STRIDE` values that belong to this thread, have
        // `rows` rows of `count * panel` values.
        unsafe { self.kernels.tiles(format, &product, count) };
        if let Some(comparison) = self.comparison() {
            let positions = span.before + tokens.start..span.before + tokens.end;
            // SAFETY: `queries` has `rows` rows of `key_units` readable units, and `rows` is at most the height of a tile, by the
            // assertion above. With relative positions, a tile has one head, whose rows these are.
            unsafe { comparison.add(state, tile.head, queries, positions, block, keys) };
        }
    }

    /// Turns the scores of a tile into probabilities, of which sums of values are made; returns what the sums of earlier blocks
    /// are multiplied by.
    #[inline]
    fn probabilities(
        &self,
        state: &mut TileState,
        tile: &QueryTile,
        keys: Range<usize>,
    ) -> [f32; TALLEST_TILE] {
        let (format, rows) = (self.queries.format(), tile.rows());
        let mut factors = [0.0; TALLEST_TILE];
        // Heads of one token attend to the same keys; each further token attends to those one further on.
        let (first, step) = (tile.span.before + tile.tokens.start, isize::from(tile.heads == 1));
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
            padded: self.value_units(keys.len()) * 4 / format.bytes(),
            visible: own.saturating_sub(before)..(own + 1).saturating_add(after),
            step,
            scale,
            running: &mut state.running[tile.place][..rows],
            factors: &mut factors[..rows],
        });
        factors
    }

    /// Multiplies the sums of a tile by `factors`, and adds the products of its probabilities and of the values of `count` keys
    /// after the first `skipped` ones of a block.
    #[inline]
    fn add_values(
        &self,
        state: &mut TileState,
        panels: &Panels<'_>,
        tile: &QueryTile,
        skipped: usize,
        count: usize,
        factors: &[f32; TALLEST_TILE],
    ) {
        let (format, panel, rows) = (self.queries.format(), self.kernels.width, tile.rows());
        let (height, k) = (self.kernels.rows(format), self.value_units(count));
        let probabilities: (*const u8, usize) = match format {
            DType::F32 => (state.scores.as_ptr().cast(), state.scores.len()),
            DType::Bf16 => (state.narrow.as_ptr().cast(), state.narrow.len()),
        };
        assert!(
            rows <= height && k * 4 <= STRIDE * format.bytes() && rows * STRIDE <= probabilities.1,
            "probabilities of a tile"
        );
        let size = self.heads.width.next_multiple_of(panel) * height;
        let sums = &mut state.sums.numbers_mut::<f32>()[tile.sums..][..size];
        if !tile.begins {
            // The sums of each panel of value columns have `height` rows. Maxima seldom rise after the first blocks.
            for panel_sums in sums.chunks_exact_mut(height * panel) {
                for (row, factor) in
                    panel_sums.chunks_exact_mut(panel).zip(factors).filter(|(_, factor)| **factor != 1.0)
                {
                    row.iter_mut().for_each(|sum| *sum *= factor);
                }
            }
        }
        for (index, panel_sums) in sums.chunks_exact_mut(height * panel).enumerate() {
            let product = Tile {
                a: probabilities.0,
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
            // SAFETY: by the assertion above, `rows` is at most the height of a tile, and there are as many rows of probabilities
            // with `k` initialized units each. The panel's slice has `k` rows. `panel_sums` has `height` initialized rows of
            // `panel` values, and belongs to this thread.
            unsafe { self.kernels.tile(format, &product) };
        }
    }

    /// The maxima and sums of a tile's rows before its first key: those of its sinks, where the layer has some.
    pub(super) fn beginning(&self, tile: &QueryTile) -> [Running; TALLEST_TILE] {
        let Some(sinks) = self.layer.sinks.as_deref() else { return Default::default() };
        std::array::from_fn(|row| {
            let head = tile.head + if tile.heads > 1 { row.min(tile.heads - 1) } else { 0 };
            Running { largest: sinks[head] * LOG2_E.0, sum: 1.0 }
        })
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
    pub(super) fn finish(&self, state: &TileState, tile: &QueryTile) {
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
