//! The phases of text generation, to which the rows of a product belong.

use std::borrow::Cow;
use std::ops::Range;

/// What is done with the token of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenPhase {
    /// It is read: the tokens of a prompt, and of every text that becomes a vector.
    Prefill,
    /// It was written by the model, one in each step.
    Decode,
}

/// The phases of the rows of a product, in runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowPhases(Cow<'static, [(Range<usize>, TokenPhase)]>);

impl RowPhases {
    /// All rows are read.
    pub(crate) const PREFILL: Self = Self(Cow::Borrowed(&[(0..usize::MAX, TokenPhase::Prefill)]));
    /// All rows were written.
    pub(crate) const DECODE: Self = Self(Cow::Borrowed(&[(0..usize::MAX, TokenPhase::Decode)]));

    /// Runs of so many rows, one after another. Neighbors of one phase become one run.
    pub(crate) fn of(runs: impl IntoIterator<Item = (usize, TokenPhase)>) -> Self {
        let mut all: Vec<(Range<usize>, TokenPhase)> = Vec::new();
        for (rows, phase) in runs.into_iter().filter(|(rows, _)| *rows > 0) {
            match all.last_mut() {
                Some((run, last)) if *last == phase => run.end += rows,
                last => {
                    let start = last.map_or(0, |(run, _)| run.end);
                    all.push((start..start + rows, phase));
                }
            }
        }
        Self(all.into())
    }

    /// The phases of some rows, counted from the first of them.
    pub(crate) fn part(&self, rows: Range<usize>) -> Self {
        Self::of(self.runs(rows).map(|(run, phase)| (run.len(), phase)))
    }

    /// Rows that have a phase: those from the first on.
    pub(crate) fn rows(&self) -> usize {
        self.0.last().map_or(0, |(run, _)| run.end)
    }

    /// The phases of these rows, one after another. A row that has none is read.
    pub(crate) fn gathered(&self, rows: impl Iterator<Item = usize>) -> Self {
        Self::of(rows.map(|row| {
            let written = self.any(row..row + 1, TokenPhase::Decode);
            (1, if written { TokenPhase::Decode } else { TokenPhase::Prefill })
        }))
    }

    /// The runs of some rows.
    pub(crate) fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = (Range<usize>, TokenPhase)> {
        let clipped = move |run: &Range<usize>| run.start.max(rows.start)..run.end.min(rows.end);
        self.0.iter().map(move |(run, phase)| (clipped(run), *phase)).filter(|(run, _)| !run.is_empty())
    }

    /// Whether one of some rows has this phase.
    pub(crate) fn any(&self, rows: Range<usize>, phase: TokenPhase) -> bool {
        self.runs(rows).any(|(_, of_run)| of_run == phase)
    }
}

#[cfg(test)]
mod tests {
    use super::TokenPhase::{Decode, Prefill};
    use super::*;

    #[test]
    fn neighbors_of_one_phase_are_one_run() {
        let phases = RowPhases::of([(1, Decode), (2, Decode), (0, Prefill), (3, Prefill), (1, Decode)]);
        let runs = |rows| phases.runs(rows).collect::<Vec<_>>();
        assert_eq!(runs(0..7), [(0..3, Decode), (3..6, Prefill), (6..7, Decode)]);
        assert_eq!(runs(2..5), [(2..3, Decode), (3..5, Prefill)]);
        assert_eq!(runs(4..4), []);
        assert!(phases.any(2..4, Prefill) && !phases.any(0..3, Prefill) && !phases.any(7..9, Decode));
        assert_eq!(phases.part(2..5), RowPhases::of([(1, Decode), (2, Prefill)]));
        assert_eq!(phases.gathered([6, 2, 4].into_iter()), RowPhases::of([(2, Decode), (1, Prefill)]));
        assert_eq!((phases.rows(), RowPhases::of([]).rows()), (7, 0));
        assert_eq!(RowPhases::PREFILL.runs(5..9).collect::<Vec<_>>(), [(5..9, Prefill)]);
        assert_eq!(RowPhases::of([]).runs(0..9).count(), 0);
    }
}
