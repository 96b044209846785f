//! Matrices of activations.

use std::ops::Range;

use half::bf16;

use super::linear::activations::PlainRows;
use super::memory::Buffer;
use super::parallel::{Parallelism, Target};
use crate::Result;
use crate::compute::isa::DType;

/// Row-major activations, whose rows may be padded: see [`spread`](super::linear::activations::spread).
#[derive(Debug)]
pub(crate) struct StateMatrix {
    data: Buffer,
    rows: usize,
    columns: usize,
    stride: usize,
    format: DType,
}

impl StateMatrix {
    /// A matrix in `data`, whose rows are `stride` bytes apart.
    ///
    /// # Panics
    ///
    /// If `data` is too short for the rows, or a row is not aligned for `format`.
    pub(crate) fn over(data: Buffer, rows: usize, columns: usize, stride: usize, format: DType) -> Self {
        // A buffer is aligned to a page.
        let aligned = stride.is_multiple_of(format.bytes());
        let fits = rows * stride <= data.len() && columns * format.bytes() <= stride;
        assert!(fits && aligned, "memory of a matrix");
        Self { data, rows, columns, stride, format }
    }

    /// The memory of the matrix.
    pub(crate) fn into_buffer(self) -> Buffer {
        self.data
    }

    /// The memory of the matrix, to write.
    pub(crate) fn data_mut(&mut self) -> &mut Buffer {
        &mut self.data
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn format(&self) -> DType {
        self.format
    }

    /// Bytes from a row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The first element of row `row`. It is aligned, and later rows follow, [`stride`](Self::stride) bytes apart. All values
    /// are initialized.
    ///
    /// # Panics
    ///
    /// If the matrix has no row `row`.
    pub(crate) fn row_ptr(&self, row: usize) -> *const u8 {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        self.data.as_slice::<u8>()[row * self.stride..].as_ptr()
    }

    /// Some rows, as the left operand of a product.
    pub(crate) fn plain(&self, rows: Range<usize>) -> PlainRows<'_> {
        let bytes = &self.data.as_slice::<u8>()[rows.start * self.stride..];
        PlainRows::new(bytes, self.stride, rows.len(), self.columns, self.format)
    }

    /// The values of some rows of an f32 matrix, [`Self::stride`] bytes apart.
    pub(crate) fn values(&self, rows: Range<usize>) -> &[f32] {
        assert_eq!(self.format, DType::F32, "format");
        &self.data.as_slice::<f32>()[rows.start * self.stride / 4..rows.end * self.stride / 4]
    }

    /// Some columns of row `row`, in f32.
    pub(crate) fn read(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        match self.format {
            DType::F32 => out.copy_from_slice(&self.values(row..row + 1)[columns]),
            DType::Bf16 => {
                let from = &self.row_bf16(row)[columns];
                out.iter_mut().zip(from).for_each(|(to, x)| *to = bf16::from_bits(*x).to_f32());
            }
        }
    }

    /// Row `row` of a bf16 matrix.
    pub(crate) fn row_bf16(&self, row: usize) -> &[u16] {
        assert_eq!(self.format, DType::Bf16, "format");
        &self.data.as_slice::<u16>()[row * self.stride / 2..][..self.columns]
    }

    /// Calls `task` with each row of an f32 matrix, on several threads if there are many values.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] if `task` panics.
    pub(crate) fn for_each_row(
        &mut self,
        parallelism: Parallelism<'_>,
        task: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<()> {
        let (rows, columns, target) = (self.rows, self.columns, self.target());
        parallelism.worth(rows * columns).split_rows(rows, |rows| {
            for row in rows {
                // SAFETY: `target` is the only borrow of the matrix, and `split_rows` gives each row to one task, which has
                // one row at a time.
                task(row, unsafe { target.row_f32(row) });
            }
        })
    }

    /// The same with the row of a bf16 matrix of as many rows, if there is one.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] if `task` panics.
    pub(crate) fn for_each_row_and_narrow(
        &mut self,
        narrow: Option<&mut Self>,
        parallelism: Parallelism<'_>,
        task: impl Fn(&mut [f32], Option<&mut [u16]>) + Sync,
    ) -> Result<()> {
        let (rows, columns, target) = (self.rows, self.columns, self.target());
        let narrow = narrow.map(Self::target);
        parallelism.worth(rows * columns).split_rows(rows, |rows| {
            for row in rows {
                // SAFETY: as in `for_each_row`, for each of two matrices.
                let (wide, narrow) =
                    unsafe { (target.row_f32(row), narrow.as_ref().map(|narrow| narrow.row_bf16(row))) };
                task(wide, narrow);
            }
        })
    }

    /// The matrix as a target, for tasks that write disjoint parts in parallel.
    pub(crate) fn target(&mut self) -> Target<'_> {
        let Self { rows, columns, stride, format, .. } = *self;
        Target::new(self.data.as_mut_slice::<u8>(), rows, columns, stride, format)
    }
}
