//! The parts of scores that depend on relative positions.

use std::ops::Range;

use super::rows::{TileRows, input};
use super::scratch::{PositionScores, STRIDE, TileState};
use crate::compute::attention::relative::RelativePanels;
use crate::compute::isa::DType;
use crate::compute::kernels::tile::Tile;
use crate::compute::kernels::{Kernels, units};
use crate::compute::matrix::StateMatrix;

/// What compares queries and keys of one format with relative positions.
#[derive(Clone, Copy, Debug)]
pub(super) struct PositionComparison<'a> {
    pub kernels: &'static Kernels,
    pub format: DType,
    /// Of one head.
    pub width: usize,
    pub relative: &'a RelativePanels,
}

impl PositionComparison<'_> {
    /// The products of a block's keys with the rows of relative positions that some queries have to them. `place` is the row of
    /// the sequence's first key, and the column of the head's keys.
    pub(super) fn compare_keys(
        &self,
        state: &mut TileState,
        rows: &StateMatrix,
        place: (usize, usize),
        head: usize,
        queries: Range<usize>,
        block: Range<usize>,
    ) {
        let Some(panels) = &self.relative.position_to_content else { return };
        let (panel, height) = (self.kernels.width, self.kernels.rows(self.format));
        let TileState { key_scores, padded, .. } = state;
        self.begin(key_scores, seen(self.relative, queries, block.clone()), block.len());
        let PositionScores { values, stride, first } = key_scores;
        let panels = panels.panels(head, *first / panel, *stride / panel);
        let (row, column) = (place.0 + block.start, place.1);
        let readable = row + block.len() <= rows.rows() && column + self.width <= rows.columns();
        assert!(readable && rows.format() == self.format, "rows of keys");
        for first in (0..block.len()).step_by(height) {
            let count = height.min(block.len() - first);
            let start = input(rows, row + first, column);
            let keys = TileRows { start, stride: rows.stride(), rows: count };
            // SAFETY: `count` rows of `width` columns from `column` on are readable by the assertion above, and nothing
            // changes `padded` before the product.
            let keys = unsafe { keys.in_whole_units(self.format, self.width, padded) };
            // SAFETY: the operand has whole units, and `count <= height`.
            unsafe { self.multiply(keys, panels, &mut values[first * *stride..], *stride) };
        }
    }

    /// Adds to the scores of a tile what depends on relative positions. `queries` are those of the tile, in whole units.
    ///
    /// # Safety
    ///
    /// - `queries` points to as many readable rows of whole units as the tile has rows, at most the height of a tile.
    pub(super) unsafe fn add(
        &self,
        state: &mut TileState,
        head: usize,
        queries: TileRows,
        positions: Range<usize>,
        block: usize,
        keys: Range<usize>,
    ) {
        let relative = self.relative;
        let TileState { scores, query_scores, key_scores, .. } = state;
        if let Some(panels) = &relative.content_to_position {
            self.begin(query_scores, seen(relative, positions.clone(), keys.clone()), queries.rows);
            let PositionScores { values, stride, first } = query_scores;
            let width = self.kernels.width;
            let panels = panels.panels(head, *first / width, *stride / width);
            // SAFETY: `queries` has rows of whole units to read, at most the height of a tile, by the precondition.
            unsafe { self.multiply(queries, panels, values, *stride) };
            let each = values.chunks_exact(*stride).zip(scores.chunks_mut(STRIDE)).zip(positions.clone());
            for ((own, scores), query) in each {
                let places = relative.rows.of_query(query, keys.start, keys.len());
                scores
                    .iter_mut()
                    .zip(places)
                    .for_each(|(score, &place)| *score += own[place as usize - *first]);
            }
        }
        if relative.position_to_content.is_some() {
            let PositionScores { values, stride, first } = key_scores;
            let each = values[(keys.start - block) * *stride..].chunks_exact(*stride).zip(keys).enumerate();
            for (column, (own, key)) in each {
                let places = relative.rows.of_key(key, positions.start, positions.len());
                let scores = scores[column..].iter_mut().step_by(STRIDE);
                scores
                    .zip(places.iter().rev())
                    .for_each(|(score, &place)| *score += own[place as usize - *first]);
            }
        }
    }

    /// Makes room for the products of `count` queries or keys with the panels that have the rows `seen`.
    fn begin(&self, scores: &mut PositionScores, seen: Range<usize>, count: usize) {
        let width = self.kernels.width;
        scores.first = seen.start - seen.start % width;
        scores.stride = seen.end.next_multiple_of(width) - scores.first;
        let needed = count * scores.stride;
        if scores.values.len() < needed {
            scores.values.resize(needed, 0.0);
        }
    }

    /// The products of `rows` with whole panels, into rows of `out`.
    ///
    /// # Safety
    ///
    /// - `rows` points to so many readable rows of whole units, at most the height of a tile.
    unsafe fn multiply(&self, rows: TileRows, panels: &[f32], out: &mut [f32], stride: usize) {
        let (format, width) = (self.format, self.kernels.width);
        let key_units = units(format, self.width);
        let count = stride / width;
        assert!(
            panels.len() == count * key_units * width && out.len() >= rows.rows * stride,
            "panels of relative positions"
        );
        let product = Tile {
            a: rows.start,
            a_stride: rows.stride,
            panel: panels.as_ptr(),
            k: key_units,
            c: out.as_mut_ptr(),
            c_stride: stride,
            rows: rows.rows,
            accumulate: false,
            ahead: None,
            overlap: None,
        };
        // SAFETY: `a` has `rows.rows` readable rows of `key_units` units, at most the height of a tile, by the precondition. The
        // panels have `key_units` rows each, and `out`, borrowed exclusively, has `rows.rows` rows of `count` panels' columns,
        // by the assertion above.
        unsafe { self.kernels.tiles(format, &product, count) };
    }
}

/// The rows that some queries and keys have.
fn seen(relative: &RelativePanels, queries: Range<usize>, keys: Range<usize>) -> Range<usize> {
    let (Some(last_query), Some(last_key)) = (queries.clone().next_back(), keys.clone().next_back()) else {
        return 0..0;
    };
    let row = |query, key| relative.rows.of_query(query, key, 1)[0] as usize;
    row(queries.start, last_key)..row(last_query, keys.start) + 1
}
