//! Matrices of activations.

use std::ops::Range;

use super::linear::activations::Plain;
use super::memory::Buffer;
use super::parallel::Target;
use crate::compute::isa::DType;

/// Row-major activations, [`spread`] in memory.
#[derive(Debug)]
pub(crate) struct StateMatrix {
    data: Buffer,
    rows: usize,
    columns: usize,
    stride: usize,
    format: DType,
}

impl StateMatrix {
    /// Over the first rows of `data`, whose rows are `stride` bytes apart.
    pub(crate) fn over(data: Buffer, rows: usize, columns: usize, stride: usize, format: DType) -> Self {
        assert!(rows * stride <= data.len() && columns * format.bytes() <= stride, "memory of a matrix");
        Self { data, rows, columns, stride, format }
    }

    /// The memory that it is made of.
    pub(crate) fn into_buffer(self) -> Buffer {
        self.data
    }

    /// The memory as numbers.
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

    /// The first element of row `row`, which is followed by those of all later rows.
    pub(crate) fn row_ptr(&self, row: usize) -> *const u8 {
        self.data.as_slice::<u8>()[row * self.stride..].as_ptr()
    }

    /// Some rows, as a product reads them.
    pub(crate) fn plain(&self, rows: Range<usize>) -> Plain<'_> {
        let bytes = &self.data.as_slice::<u8>()[rows.start * self.stride..];
        Plain::new(bytes, self.stride, rows.len(), self.columns, self.format)
    }

    /// The values of some rows of an f32 matrix, [`Self::stride`] bytes apart.
    pub(crate) fn values(&self, rows: Range<usize>) -> &[f32] {
        assert_eq!(self.format, DType::F32, "format");
        &self.data.as_slice::<f32>()[rows.start * self.stride / 4..rows.end * self.stride / 4]
    }

    /// For tasks that write disjoint parts at the same time.
    pub(crate) fn target(&mut self) -> Target<'_> {
        let Self { rows, columns, stride, format, .. } = *self;
        Target::new(self.data.as_mut_slice::<u8>(), rows, columns, stride, format)
    }
}
