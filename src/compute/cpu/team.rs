//! Who carries out the operations of a pass: one thread, or the whole pool together.

use std::ops::Range;

use super::linear::share;
use crate::Result;
use crate::compute::Threads;

/// The threads of one pass. One, when each thread has a part of the batch to itself; all, when there is too little
/// work for that.
#[derive(Debug, Clone, Copy)]
pub(super) enum Team<'a> {
    /// The calling thread.
    One,
    /// All threads of the pool, which divide each operation.
    All(&'a Threads),
}

impl Team<'_> {
    /// Tasks to divide an operation into: twice as many as threads, so that a late thread costs little.
    fn tasks(self) -> usize {
        match self {
            Self::One => 1,
            Self::All(threads) => 2 * threads.count(),
        }
    }

    /// Runs `task` on parts of a grid that cover it. Columns are divided first: a weight's panel is then read by
    /// one thread only.
    pub(super) fn split(
        self,
        rows: usize,
        columns: usize,
        task: impl Fn(Range<usize>, Range<usize>) + Sync,
    ) -> Result<()> {
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let wide = self.tasks().min(columns);
        let high = self.tasks().div_ceil(wide).min(rows);
        match self {
            Self::One => {
                task(0..rows, 0..columns);
                Ok(())
            }
            Self::All(threads) => threads.run(wide * high, &|index| {
                task(share(rows, high, index / wide), share(columns, wide, index % wide));
            }),
        }
    }

    /// Runs `task` on ranges that cover `items`.
    pub(super) fn split_rows(self, items: usize, task: impl Fn(Range<usize>) + Sync) -> Result<()> {
        self.split(1, items, |_, range| task(range))
    }
}

#[cfg(test)]
mod tests {
    use crate::sync::Mutex;

    use super::*;

    #[test]
    fn parts_cover_the_grid_once() {
        let threads = Threads::global();
        for team in [Team::One, Team::All(&threads)] {
            for (rows, columns) in [(0, 3), (1, 1), (2, 36), (19, 12), (40, 1)] {
                let counts = Mutex::new(vec![0; rows * columns]);
                team.split(rows, columns, |r, c| {
                    let mut counts = counts.lock();
                    for (row, column) in r.flat_map(|row| c.clone().map(move |column| (row, column))) {
                        counts[row * columns + column] += 1;
                    }
                })
                .unwrap();
                assert!(counts.into_inner().iter().all(|&count| count == 1), "{team:?} {rows}x{columns}");
            }
        }
    }
}
