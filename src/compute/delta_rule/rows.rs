//! The rows of a delta rule, and the states of the sequences that they belong to.

use std::ops::Range;

use super::heads::DeltaHeads;
use crate::compute::kernels::delta::{BLOCK, stride_of};
use crate::compute::matrix::StateMatrix;
use crate::compute::parallel::Target;
use crate::compute::short_convolution::SeenRows;

/// The rows of a part of one sequence, and those before it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeltaRows<'a> {
    /// The first columns of the rows before the part: `[before, columns]`.
    pub earlier: &'a [f32],
    pub x: &'a StateMatrix,
    /// The first row of the sequence's part among them.
    pub first: usize,
    /// The number of its rows that are not hidden.
    pub count: usize,
    /// The numbers of a row that are convolved.
    pub columns: usize,
}

impl SeenRows for DeltaRows<'_> {
    fn read(&self, index: usize, columns: Range<usize>, out: &mut [f32]) {
        match index.checked_sub(self.before()) {
            None => out.copy_from_slice(&self.earlier[index * self.columns..][columns]),
            Some(own) if own < self.count => self.x.read(self.first + own, columns, out),
            Some(_) => out.fill(0.0),
        }
    }

    fn read_gate(&self, _index: usize, _columns: Range<usize>, _out: &mut [f32]) -> bool {
        false
    }
}

impl DeltaRows<'_> {
    /// Writes the first columns of the rows before row `index` of the part to `out`, as many as an output sees.
    pub(crate) fn read_before(&self, index: usize, out: &mut [f32]) {
        for (row, out) in out.chunks_exact_mut(self.columns.max(1)).enumerate() {
            self.read(index + row, 0..self.columns, out);
        }
    }

    fn before(&self) -> usize {
        self.earlier.len() / self.columns.max(1)
    }
}

/// The states of all heads of one sequence: `[heads, numbers of a head]`.
#[derive(Debug)]
pub(crate) struct SpanState<'a> {
    /// Those before the rows, if they are not in `states`.
    pub before: Option<&'a [f32]>,
    /// Where those after the rows are kept, if they are.
    pub states: Option<Target<'a>>,
    /// Those after some rows of the sequence, each with the position that follows.
    pub points: Vec<(usize, Target<'a>)>,
    /// Drafts of an earlier pass, which `states` do not have yet, and those of this one.
    pub drafts: StateDrafts<'a>,
}

/// What steps read of drafts. The states after them are not kept: those that stay are computed again in the next pass.
#[derive(Debug, Default)]
pub(crate) struct StateDrafts<'a> {
    /// Of each draft, its queries, keys and values, and of each head of values the part of the state that is kept, and that of
    /// the value that is stored.
    pub steps: &'a mut [f32],
    /// So many are of an earlier pass, and stay.
    pub stayed: usize,
    /// So many of the last rows of this pass are drafts.
    pub drafted: usize,
}

/// A block of columns of the state of a head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StateBlock {
    /// The columns of the head's values.
    pub first: usize,
    pub columns: usize,
    /// Where it is among the numbers of the head.
    pub start: usize,
    pub len: usize,
}

impl StateBlock {
    pub(crate) fn new(heads: &DeltaHeads, index: usize) -> Self {
        let first = index * BLOCK;
        let columns = BLOCK.min(heads.value_width - first);
        // Blocks before are whole.
        let len = stride_of(columns) * heads.key_width;
        Self { first, columns, start: first * heads.key_width, len }
    }

    /// The numbers of the block of head `head` in `of`.
    ///
    /// # Safety
    ///
    /// - No other code accesses the block while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "tasks divide the blocks among themselves")]
    pub(crate) unsafe fn of<'t>(&self, of: &'t Target<'_>, head: usize) -> &'t mut [f32] {
        let start = of.part(head..head + 1, self.start..self.start + self.len);
        // SAFETY: `part` checks that the block lies inside of the target, whose numbers are f32 and initialized; no other code
        // accesses it, by the precondition.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), self.len) }
    }
}
