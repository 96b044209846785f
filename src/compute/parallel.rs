//! The threads that run the operations of a pass, one or the whole pool, and the matrix that their tasks write to.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Result;
use crate::compute::isa::DType;
use crate::compute::threads::Threads;

/// The number of values whose normalization or conversion takes as long as a fork-join: some microseconds.
const WORTH_FORKING: usize = 1 << 12;

/// The threads of one pass: one if each thread runs its own part of the batch, or all if there are too few parts for that.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Parallelism<'a> {
    /// The calling thread.
    One,
    /// All threads of the pool, which divide each operation.
    All(&'a Threads),
}

impl Parallelism<'_> {
    /// One thread if an operation on so many values takes less time than a fork-join; otherwise the same threads.
    pub(crate) fn worth(self, values: usize) -> Self {
        if values < WORTH_FORKING { Self::One } else { self }
    }

    /// The number of threads.
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

    /// Runs `task` on disjoint parts of a grid that cover it. Columns are divided first, so that only one thread reads a
    /// panel of a weight. Each thread works through its own range, and then takes work from the ends of the ranges of other
    /// threads, so that a thread that starts late or runs on a slower core does not delay the others.
    pub(crate) fn split(
        self,
        rows: usize,
        columns: usize,
        task: impl Fn(Range<usize>, Range<usize>) + Sync,
    ) -> Result<()> {
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let Self::All(threads) = self else {
            task(0..rows, 0..columns);
            return Ok(());
        };
        let high = threads.count().div_ceil(columns).min(rows);
        assert!(u32::try_from(high * columns).is_ok(), "cells of a grid");
        let count = threads.count().min(high * columns);
        let lanes: Vec<_> =
            (0..count).map(|lane| CellRange::new(share(high * columns, count, lane))).collect();
        let work = |cells: Range<usize>| {
            for band in cells.start / columns..cells.end.div_ceil(columns) {
                let first = band * columns;
                let columns = cells.start.max(first) - first..cells.end.min(first + columns) - first;
                task(share(rows, high, band), columns);
            }
        };
        threads.run(count, &|own| {
            std::iter::from_fn(|| lanes[own].take_first()).for_each(work);
            for other in lanes[own + 1..].iter().chain(&lanes[..own]) {
                std::iter::from_fn(|| other.take_last()).for_each(work);
            }
        })
    }

    /// Runs `task` on disjoint ranges that cover `items`.
    pub(crate) fn split_rows(self, items: usize, task: impl Fn(Range<usize>) + Sync) -> Result<()> {
        self.split(1, items, |_, range| task(range))
    }
}

/// The rest of a range of cells, with both ends in one number. Each lane has its own cache line.
#[repr(align(128))]
struct CellRange(AtomicU64);

impl CellRange {
    fn new(cells: Range<usize>) -> Self {
        Self(AtomicU64::new(cells.start as u64 | (cells.end as u64) << 32))
    }

    /// Takes the first half of the rest. The owner of the lane calls this, and reads memory in one direction.
    fn take_first(&self) -> Option<Range<usize>> {
        self.take(|left| left.start..left.start + left.len().div_ceil(2), |left, taken| taken.end..left.end)
    }

    /// Takes the last half of the rest. Other threads call this.
    fn take_last(&self) -> Option<Range<usize>> {
        self.take(|left| left.end - left.len().div_ceil(2)..left.end, |left, taken| left.start..taken.start)
    }

    fn take(
        &self,
        part: impl Fn(&Range<usize>) -> Range<usize>,
        rest: impl Fn(Range<usize>, &Range<usize>) -> Range<usize>,
    ) -> Option<Range<usize>> {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let left = (seen & 0xffff_ffff) as usize..(seen >> 32) as usize;
            if left.is_empty() {
                return None;
            }
            let taken = part(&left);
            let new = Self::new(rest(left, &taken)).0.into_inner();
            // Relaxed ordering suffices: a cell publishes no data. The end of the job orders the writes of tasks.
            match self.0.compare_exchange_weak(seen, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(taken),
                Err(now) => seen = now,
            }
        }
    }
}

/// Share `index` of `of` equal shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub index: usize,
    pub of: usize,
}

/// Share `index` of `items`, divided into `parts` shares of nearly equal size.
pub(crate) fn share(items: usize, parts: usize, index: usize) -> Range<usize> {
    let start = |index: usize| items * index / parts.max(1);
    start(index)..start(index + 1)
}

/// A matrix that several tasks write to. Each task writes its own part.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    start: *mut u8,
    rows: usize,
    columns: usize,
    stride: usize,
    format: DType,
    owner: PhantomData<&'a mut [u8]>,
}

// SAFETY: a target is an exclusive borrow of plain numbers. Its safe methods only compute pointers; code that writes through
// them, or calls `row_f32` or `row_bf16`, must ensure that no other thread accesses the same part.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    /// Rows of `columns` values in `format`, `stride` bytes apart.
    ///
    /// # Panics
    ///
    /// If `bytes` is too short for the rows, or a row is not aligned for `format`.
    pub(crate) fn new(
        bytes: &'a mut [u8],
        rows: usize,
        columns: usize,
        stride: usize,
        format: DType,
    ) -> Self {
        let aligned = (bytes.as_ptr().addr() | stride).is_multiple_of(format.bytes());
        let fits = rows * stride <= bytes.len() && columns * format.bytes() <= stride;
        assert!(fits && aligned, "memory of a matrix");
        Self { start: bytes.as_mut_ptr(), rows, columns, stride, format, owner: PhantomData }
    }

    /// Consecutive rows of `columns` values.
    pub(crate) fn over(values: &'a mut [f32], columns: usize) -> Self {
        Self {
            start: values.as_mut_ptr().cast(),
            rows: values.len() / columns.max(1),
            columns,
            stride: columns * 4,
            format: DType::F32,
            owner: PhantomData,
        }
    }
}

impl Target<'_> {
    pub(crate) fn format(&self) -> DType {
        self.format
    }

    /// Values of a row.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes from a row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The first element of the part with these rows and columns. It is aligned, and rows are [`stride`](Self::stride) bytes
    /// apart. All values of a target are initialized.
    ///
    /// # Panics
    ///
    /// If `rows` is empty, or the part does not lie inside the matrix.
    pub(crate) fn part(&self, rows: Range<usize>, columns: Range<usize>) -> *mut u8 {
        assert!(rows.start < rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(
            columns.start <= columns.end && columns.end <= self.columns,
            "columns {columns:?} of {}",
            self.columns
        );
        // SAFETY: `rows.start < self.rows` and `columns.start <= self.columns` by the assertions above (an empty range may
        // start at `columns`), so the offset is at most the size of the matrix, which a constructor checked.
        unsafe { self.start.add(rows.start * self.stride + columns.start * self.format.bytes()) }
    }

    /// One whole row of an f32 matrix.
    ///
    /// # Safety
    ///
    /// - No other code accesses this row while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "tasks divide the rows among themselves")]
    pub(crate) unsafe fn row_f32(&self, row: usize) -> &mut [f32] {
        assert_eq!(self.format, DType::F32, "format");
        // SAFETY: `part` checks that the row lies inside; it has `columns` initialized f32, is aligned as a constructor
        // checked, and is not accessed elsewhere while the slice lives. `self` borrows the memory for at least as long.
        unsafe {
            std::slice::from_raw_parts_mut(self.part(row..row + 1, 0..self.columns).cast(), self.columns)
        }
    }

    /// One whole row of a bf16 matrix.
    ///
    /// # Safety
    ///
    /// - No other code accesses this row while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "tasks divide the rows among themselves")]
    pub(crate) unsafe fn row_bf16(&self, row: usize) -> &mut [u16] {
        assert_eq!(self.format, DType::Bf16, "format");
        // SAFETY: `part` checks that the row lies inside; it has `columns` initialized bf16, is aligned as a constructor
        // checked, and is not accessed elsewhere while the slice lives. `self` borrows the memory for at least as long.
        unsafe {
            std::slice::from_raw_parts_mut(self.part(row..row + 1, 0..self.columns).cast(), self.columns)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sync::Mutex;

    #[test]
    fn parts_cover_the_grid_once() {
        let threads = Threads::global();
        for parallelism in [Parallelism::One, Parallelism::All(&threads)] {
            for (rows, columns) in [(0, 3), (1, 1), (2, 36), (19, 12), (40, 1)] {
                let counts = Mutex::new(vec![0; rows * columns]);
                parallelism
                    .split(rows, columns, |r, c| {
                        let mut counts = counts.lock();
                        for (row, column) in r.flat_map(|row| c.clone().map(move |column| (row, column))) {
                            counts[row * columns + column] += 1;
                        }
                    })
                    .unwrap();
                assert!(
                    counts.into_inner().iter().all(|&count| count == 1),
                    "{parallelism:?} {rows}x{columns}"
                );
            }
        }
    }

    #[test]
    fn a_slow_thread_keeps_only_what_it_has_begun() {
        let threads = Threads::of(2);
        let (cells, done) = (64 * threads.count(), AtomicU64::new(0));
        let patience = Instant::now() + Duration::from_secs(60);
        Parallelism::All(&threads)
            .split_rows(cells, |range| {
                // The thread with the first cell waits until the others have done all cells that they can take.
                let others = (cells - range.len()) as u64;
                while range.start == 0 && done.load(Ordering::Relaxed) < others {
                    assert!(Instant::now() < patience, "no thread took over");
                    std::thread::yield_now();
                }
                done.fetch_add(range.len() as u64, Ordering::Relaxed);
            })
            .unwrap();
        assert_eq!(done.into_inner(), cells as u64);
    }

    proptest::proptest! {
        #[test]
        fn takers_at_both_ends_divide_a_lane(start in 0_usize..50, len in 0_usize..300, ends: Vec<bool>) {
            let lane = CellRange::new(start..start + len);
            let mut ends = ends.into_iter().chain(std::iter::repeat(true));
            let (mut front, mut back) = (start, start + len);
            while front < back {
                if ends.next() == Some(true) {
                    let taken = lane.take_first().unwrap();
                    proptest::prop_assert!(taken.start == front && !taken.is_empty());
                    front = taken.end;
                } else {
                    let taken = lane.take_last().unwrap();
                    proptest::prop_assert!(taken.end == back && !taken.is_empty());
                    back = taken.start;
                }
            }
            proptest::prop_assert!(front == back && lane.take_first().is_none() && lane.take_last().is_none());
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
