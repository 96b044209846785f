//! Who carries out the operations of a pass, one thread or the whole pool together, and the matrix that its tasks
//! write to.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Result;
use crate::compute::isa::DType;
use crate::compute::threads::Threads;

/// Values that take about as long to be normalised or converted as threads take to meet: some microseconds.
const WORTH_MEETING: usize = 1 << 12;

/// The threads of one pass. One, when each thread has a part of the batch to itself; all, when there is too little
/// work for that.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Parallelism<'a> {
    /// The calling thread.
    One,
    /// All threads of the pool, which divide each operation.
    All(&'a Threads),
}

impl Parallelism<'_> {
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

    /// Runs `task` on parts of a grid that cover it. Columns are divided first: a weight's panel is then read by
    /// one thread only. Each thread goes through a range of its own, and when that is done helps the others from the
    /// ends of theirs: one that starts late, or on a slower core, keeps nobody waiting for long.
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
        let lanes: Vec<_> = (0..count).map(|lane| Lane::new(share(high * columns, count, lane))).collect();
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

    /// Runs `task` on ranges that cover `items`.
    pub(crate) fn split_rows(self, items: usize, task: impl Fn(Range<usize>) + Sync) -> Result<()> {
        self.split(1, items, |_, range| task(range))
    }
}

/// What is left of a range of cells, both ends in one number. Lanes lie in cache lines of their own.
#[repr(align(128))]
struct Lane(AtomicU64);

impl Lane {
    fn new(cells: Range<usize>) -> Self {
        Self(AtomicU64::new(cells.start as u64 | (cells.end as u64) << 32))
    }

    /// The first half of what is left, for the thread whose lane it is: it goes through memory in one direction.
    fn take_first(&self) -> Option<Range<usize>> {
        self.take(|left| left.start..left.start + left.len().div_ceil(2), |left, taken| taken.end..left.end)
    }

    /// The last half, for any other.
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
            // Cells name work, they publish nothing: what tasks write is seen by whoever waits for the job's end.
            match self.0.compare_exchange_weak(seen, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(taken),
                Err(now) => seen = now,
            }
        }
    }
}

/// Share `index` of `items` divided among `parts` as evenly as whole numbers go.
pub(crate) fn share(items: usize, parts: usize, index: usize) -> Range<usize> {
    let start = |index: usize| items * index / parts.max(1);
    start(index)..start(index + 1)
}

/// A matrix that several tasks write to, each a part of its own.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    start: *mut u8,
    rows: usize,
    columns: usize,
    stride: usize,
    format: DType,
    owner: PhantomData<&'a mut [u8]>,
}

// SAFETY: it is an exclusive borrow of plain memory, which tasks divide among themselves as `part` demands.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    /// Rows of `columns` values in `format`, `stride` bytes apart.
    pub(crate) fn new(
        bytes: &'a mut [u8],
        rows: usize,
        columns: usize,
        stride: usize,
        format: DType,
    ) -> Self {
        assert!(rows * stride <= bytes.len() && columns * format.bytes() <= stride, "memory of a matrix");
        Self { start: bytes.as_mut_ptr(), rows, columns, stride, format, owner: PhantomData }
    }

    /// Rows of `columns` values one after another.
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

    /// Where the part of these rows and columns starts. Writing through it is for one task at a time.
    pub(crate) fn part(&self, rows: Range<usize>, columns: Range<usize>) -> *mut u8 {
        assert!(rows.start < rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(columns.end <= self.columns, "columns {columns:?} of {}", self.columns);
        // SAFETY: the first element of a part that lies inside.
        unsafe { self.start.add(rows.start * self.stride + columns.start * self.format.bytes()) }
    }

    /// One whole row of an f32 matrix.
    ///
    /// # Safety
    /// No other task touches this row meanwhile.
    #[expect(clippy::mut_from_ref, reason = "tasks divide the rows among themselves")]
    pub(crate) unsafe fn row_f32(&self, row: usize) -> &mut [f32] {
        assert_eq!(self.format, DType::F32, "format");
        // SAFETY: the row lies inside, is aligned, and is the caller's alone.
        unsafe {
            std::slice::from_raw_parts_mut(self.part(row..row + 1, 0..self.columns).cast(), self.columns)
        }
    }

    /// One whole row of a bf16 matrix.
    ///
    /// # Safety
    /// No other task touches this row meanwhile.
    #[expect(clippy::mut_from_ref, reason = "tasks divide the rows among themselves")]
    pub(crate) unsafe fn row_bf16(&self, row: usize) -> &mut [u16] {
        assert_eq!(self.format, DType::Bf16, "format");
        // SAFETY: as in `row_f32`.
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
        for team in [Parallelism::One, Parallelism::All(&threads)] {
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
    fn a_slow_thread_keeps_only_what_it_has_begun() {
        let threads = Threads::global();
        if threads.count() == 1 {
            return; // nobody to help
        }
        let (cells, done) = (64 * threads.count(), AtomicU64::new(0));
        let patience = Instant::now() + Duration::from_secs(60);
        Parallelism::All(&threads)
            .split_rows(cells, |range| {
                // Whoever has the first cell ends after all cells that others can reach.
                let others = (cells - range.len()) as u64;
                while range.start == 0 && done.load(Ordering::Relaxed) < others {
                    assert!(Instant::now() < patience, "nobody took over");
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
            let lane = Lane::new(start..start + len);
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
