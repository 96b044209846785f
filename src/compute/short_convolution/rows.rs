//! The rows that a convolution sees.

use std::ops::Range;

use crate::compute::matrix::StateMatrix;

/// Columns that are read at a time at most.
pub(super) const MOST_COLUMNS: usize = 256;

/// The rows that a convolution sees: those of a part of one sequence, and those before it.
pub(crate) trait SeenRows {
    /// Some columns, 256 at most, of row `index`, which counts from the first row that the first row of the part sees. Rows
    /// beyond the sequence are zero.
    fn read(&self, index: usize, columns: Range<usize>, out: &mut [f32]);

    /// The same columns of what the output of row `index` of the part is multiplied by; false if that is by nothing.
    fn read_gate(&self, index: usize, columns: Range<usize>, out: &mut [f32]) -> bool;
}

/// All rows of one sequence, without gates.
#[derive(Debug, Clone)]
pub(crate) struct SequenceRows<'a> {
    pub x: &'a StateMatrix,
    /// Those of the sequence.
    pub rows: Range<usize>,
    /// Rows before its own that an output sees.
    pub before: usize,
}

impl SeenRows for SequenceRows<'_> {
    fn read(&self, index: usize, columns: Range<usize>, out: &mut [f32]) {
        let row = (self.rows.start + index).checked_sub(self.before);
        match row.filter(|row| self.rows.contains(row)) {
            Some(row) => self.x.read(row, columns, out),
            None => out.fill(0.0),
        }
    }

    fn read_gate(&self, _index: usize, _columns: Range<usize>, _out: &mut [f32]) -> bool {
        false
    }
}

/// The rows of a part of one sequence, and the gated rows before it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GatedRows<'a> {
    /// `b * x` of the rows before the part: `[before, columns]`.
    pub earlier: &'a [f32],
    /// Rows of three parts: `b`, `c` and `x`, of `columns` numbers each.
    pub x: &'a StateMatrix,
    /// The first row of the sequence's part among them.
    pub first: usize,
    /// The number of its rows that are not hidden; the hidden ones, after them, are zero.
    pub count: usize,
    /// Numbers of a row's part.
    pub columns: usize,
}

impl SeenRows for GatedRows<'_> {
    /// Some columns of `b * x`, 256 at most, of row `index`, which counts from the first earlier row. Rows that are hidden or
    /// after the part are zero.
    fn read(&self, index: usize, columns: Range<usize>, out: &mut [f32]) {
        let Some(own) = index.checked_sub(self.before()) else {
            return out.copy_from_slice(&self.earlier[index * self.columns..][columns]);
        };
        if own >= self.count {
            return out.fill(0.0);
        }
        let mut x = [0.0; MOST_COLUMNS];
        let x = &mut x[..columns.len()];
        self.x.read(self.first + own, self.part(0, &columns), out);
        self.x.read(self.first + own, self.part(2, &columns), x);
        out.iter_mut().zip(x).for_each(|(b, x)| *b *= *x);
    }

    /// The same columns of `c` of row `index` of the part; zeros if it is hidden.
    fn read_gate(&self, index: usize, columns: Range<usize>, out: &mut [f32]) -> bool {
        if index < self.count {
            self.x.read(self.first + index, self.part(1, &columns), out);
        } else {
            out.fill(0.0);
        }
        true
    }
}

impl GatedRows<'_> {
    /// Writes `b * x` of `before` rows, those before row `index` of the part, to `out`.
    pub(crate) fn read_before(&self, index: usize, out: &mut [f32]) {
        for (row, out) in out.chunks_exact_mut(self.columns.max(1)).enumerate() {
            for first in (0..self.columns).step_by(MOST_COLUMNS) {
                let columns = first..self.columns.min(first + MOST_COLUMNS);
                self.read(index + row, columns.clone(), &mut out[columns]);
            }
        }
    }

    /// Rows before the part.
    fn before(&self) -> usize {
        self.earlier.len() / self.columns.max(1)
    }

    fn part(&self, number: usize, columns: &Range<usize>) -> Range<usize> {
        let first = number * self.columns;
        first + columns.start..first + columns.end
    }
}
