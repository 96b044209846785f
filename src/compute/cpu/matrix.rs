//! Matrices of activations, and the memory they are made of.

use std::marker::PhantomData;
use std::ops::Range;

use super::attention::Scratch;
use crate::Result;
use crate::compute::DType;
use crate::compute::decoder::activations::{Activations, Plain, spread};
use crate::compute::memory::Buffer;
use crate::sync::Mutex;

/// Row-major activations, [`spread`] in memory.
#[derive(Debug)]
pub(super) struct Matrix {
    data: Buffer,
    rows: usize,
    columns: usize,
    stride: usize,
    format: DType,
}

impl Matrix {
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn format(&self) -> DType {
        self.format
    }

    /// Bytes from a row to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// The first element of row `row`, which is followed by those of all later rows.
    pub(super) fn row_ptr(&self, row: usize) -> *const u8 {
        self.data.as_slice::<u8>()[row * self.stride..].as_ptr()
    }

    /// Some rows, as a product reads them.
    pub(super) fn plain(&self, rows: Range<usize>) -> Plain<'_> {
        let bytes = &self.data.as_slice::<u8>()[rows.start * self.stride..];
        Plain::new(bytes, self.stride, rows.len(), self.columns, self.format)
    }

    /// The values of some rows of an f32 matrix, [`Self::stride`] bytes apart.
    pub(super) fn values(&self, rows: Range<usize>) -> &[f32] {
        assert_eq!(self.format, DType::F32, "format");
        &self.data.as_slice::<f32>()[rows.start * self.stride / 4..rows.end * self.stride / 4]
    }

    /// For tasks that write disjoint parts at the same time.
    pub(super) fn target(&mut self) -> Target<'_> {
        let Self { rows, columns, stride, format, .. } = *self;
        Target {
            start: self.data.as_mut_slice::<u8>().as_mut_ptr(),
            rows,
            columns,
            stride,
            format,
            owner: PhantomData,
        }
    }
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
    pub(super) unsafe fn row_f32(&self, row: usize) -> &mut [f32] {
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
    pub(super) unsafe fn row_bf16(&self, row: usize) -> &mut [u16] {
        assert_eq!(self.format, DType::Bf16, "format");
        // SAFETY: as in `row_f32`.
        unsafe {
            std::slice::from_raw_parts_mut(self.part(row..row + 1, 0..self.columns).cast(), self.columns)
        }
    }
}

/// The memory of one pass, kept from one to the next: in steady state nothing is allocated.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    spare: Vec<Buffer>,
    /// One for each thread that works on attention at the same time.
    pub scratch: Mutex<Vec<Scratch>>,
    /// Rows rounded to eight bits, where weights are coded.
    pub codes: Activations,
    /// The part that the pass works on: its sequences one after another, and where each begins.
    pub ids: Vec<u32>,
    pub offsets: Vec<u32>,
    /// A row for each of them.
    pub out: Vec<f32>,
}

impl Workspace {
    /// A matrix whose elements have any value.
    pub(super) fn matrix(&mut self, rows: usize, columns: usize, format: DType) -> Result<Matrix> {
        let stride = spread(format, columns);
        let bytes = rows * stride;
        let fitting = (0..self.spare.len())
            .filter(|&i| self.spare[i].len() >= bytes)
            .min_by_key(|&i| self.spare[i].len());
        let data = match fitting {
            Some(index) => self.spare.swap_remove(index),
            // Batches differ in size: whole steps of rows keep the number of growths small, and memory that is
            // never written costs nothing.
            None => Buffer::zeroed(rows.next_multiple_of(256) * stride)?,
        };
        let mut matrix = Matrix { data, rows, columns, stride, format };
        if format == DType::Bf16 && columns % 2 == 1 {
            // The last unit of a row reaches one element further, and is multiplied by zero: let it be a number.
            for row in matrix.data.as_mut_slice::<u16>()[..bytes / 2].chunks_exact_mut(stride / 2) {
                row[columns] = 0;
            }
        }
        Ok(matrix)
    }

    /// Takes a matrix back.
    pub(super) fn give(&mut self, matrix: Matrix) {
        self.spare.push(matrix.data);
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.spare.iter().map(Buffer::len).sum()
    }
}
