//! Who carries out the operations of a pass: one thread, or the whole pool together.

use std::ops::Range;

use crate::Result;
use crate::compute::Threads;

/// Values that take about as long to be normalised or converted as threads take to meet: some microseconds.
const WORTH_MEETING: usize = 1 << 12;

/// The threads of one pass. One, when each thread has a part of the batch to itself; all, when there is too little
/// work for that.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Team<'a> {
    /// The calling thread.
    One,
    /// All threads of the pool, which divide each operation.
    All(&'a Threads),
}

impl Team<'_> {
    /// These threads where something is done to so many values, or one where it takes less time than a meeting.
    pub(crate) fn worth(self, values: usize) -> Self {
        if values < WORTH_MEETING { Self::One } else { self }
    }

    /// Threads.
    pub(crate) fn threads(self) -> usize {
        match self {
            Self::One => 1,
            Self::All(threads) => threads.count(),
        }
    }

    /// Runs `task(0)` to `task(tasks - 1)`.
    pub(crate) fn run(self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        match self {
            Self::One => (0..tasks).for_each(task),
            Self::All(threads) => return threads.run(tasks, task),
        }
        Ok(())
    }

    /// Tasks to divide an operation into: twice as many as threads, so that a late thread costs little.
    fn tasks(self) -> usize {
        match self {
            Self::One => 1,
            Self::All(threads) => 2 * threads.count(),
        }
    }

    /// Runs `task` on parts of a grid that cover it. Columns are divided first: a weight's panel is then read by
    /// one thread only.
    pub(crate) fn split(
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
    pub(crate) fn split_rows(self, items: usize, task: impl Fn(Range<usize>) + Sync) -> Result<()> {
        self.split(1, items, |_, range| task(range))
    }
}

/// Share `index` of `items` divided among `parts` as evenly as whole numbers go.
pub(crate) fn share(items: usize, parts: usize, index: usize) -> Range<usize> {
    let start = |index: usize| items * index / parts.max(1);
    start(index)..start(index + 1)
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

    #[test]
    fn shares_are_even_and_complete() {
        for (items, parts) in [(18, 2), (256, 19), (5, 5), (1, 1), (0, 0), (29, 3)] {
            let shares: Vec<_> = (0..parts).map(|i| share(items, parts, i)).collect();
            assert_eq!(shares.iter().map(ExactSizeIterator::len).sum::<usize>(), items);
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(shares.iter().all(|share| share.len() <= items.div_ceil(parts)));
        }
    }
}
