//! Left operands of the products of attention.

use crate::compute::isa::DType;
use crate::compute::matrix::StateMatrix;

/// Rows of a matrix in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct TileRows {
    /// The first element of the first row.
    pub start: *const u8,
    /// Bytes from a row to the next.
    pub stride: usize,
    pub rows: usize,
}

impl TileRows {
    /// The same rows, in whole units: those of a product. The last unit of a row of an odd width in bf16 ends with another
    /// head's element, which may be infinite. Such rows are copied to `padded`, with a zero after each.
    ///
    /// # Safety
    ///
    /// - Each row has `width` readable elements in `format`, and is aligned for it.
    /// - The result is used before `padded` changes.
    pub(super) unsafe fn in_whole_units(self, format: DType, width: usize, padded: &mut Vec<u16>) -> Self {
        if format == DType::F32 || width.is_multiple_of(2) {
            return self;
        }
        padded.clear();
        for row in 0..self.rows {
            // SAFETY: row `row < rows` begins `row * stride` bytes after `start`. By the first precondition, it has `width`
            // readable elements and is aligned for them: of two bytes, since the format is bf16 here.
            let row =
                unsafe { std::slice::from_raw_parts(self.start.add(row * self.stride).cast::<u16>(), width) };
            padded.extend(row.iter().chain(&[0]));
        }
        Self { start: padded.as_ptr().cast(), stride: 2 * (width + 1), ..self }
    }
}

/// The element of an attention input at `row` and `column`.
pub(super) fn input(matrix: &StateMatrix, row: usize, column: usize) -> *const u8 {
    assert!(column < matrix.columns(), "column of an attention input");
    // SAFETY: `row_ptr` checks that the row exists, and it has this column by the assertion above.
    unsafe { matrix.row_ptr(row).add(column * matrix.format().bytes()) }
}
