//! Gated short convolutions: a sum of each column over neighboring rows of a sequence, between two gates.
//!
//! A row has three parts of the same length, `b`, `c` and `x`. Its output is `c * (shift + Σ factors[i] * (b * x)[row + i -
//! before])`, with the factors of each column. Rows beyond the sequence are zero.
//!
//! Liquid AI, "LFM2 Technical Report", 2025.

mod rows;
mod state;

use std::ops::Range;

use self::rows::MOST_COLUMNS;
pub(crate) use self::rows::{GatedRows, SeenRows, SequenceRows};
pub use self::state::ShortConvolutionShape;
pub(crate) use self::state::{MOST_DRAFTED, SNAPSHOT, ShortConvolutionState};
use crate::compute::isa::DType;
use crate::compute::memory::zeroed;
use crate::compute::narrow::to_bf16;
use crate::compute::parallel::Target;
use crate::compute::weight::Weight;
use crate::{Error, Result};

/// The most rows that one output sees.
pub const LONGEST_SHORT_CONVOLUTION: usize = SNAPSHOT;

/// What a convolution multiplies and adds.
#[derive(Debug, Clone)]
pub struct ShortConvolutionFactors {
    /// `[columns, size]`: for each column, the factors of the rows that an output sees, the earliest row's first.
    pub factors: Weight,
    /// `[columns]`: added to the sum.
    pub shift: Option<Weight>,
    /// Of the rows that an output sees, those before its own.
    pub before: usize,
}

impl ShortConvolutionFactors {
    /// Rows that an output sees.
    pub fn size(&self) -> usize {
        self.factors.columns()
    }

    /// Whether no output sees a later row.
    pub fn is_causal(&self) -> bool {
        self.before + 1 == self.size()
    }

    /// The factors of all columns for one row after the other: `[size, columns]`.
    ///
    /// # Errors
    /// [`Error::Internal`] if the numbers do not fit together.
    pub(crate) fn by_row(&self) -> Result<Vec<f32>> {
        let (columns, size) = (self.factors.rows(), self.size());
        let fits = self.before < size && self.shift.as_ref().is_none_or(|shift| shift.rows() == columns);
        if !fits || size > LONGEST_SHORT_CONVOLUTION {
            let reason = format!("a convolution over {size} rows with {} before its own", self.before);
            return Err(Error::internal("model description", reason));
        }
        let mut by_row = zeroed(columns * size)?;
        for (column, factors) in self.factors.to_f32()?.chunks_exact(size).enumerate() {
            for (row, factor) in factors.iter().enumerate() {
                by_row[row * columns + column] = *factor;
            }
        }
        Ok(by_row)
    }
}

/// A convolution on the CPU.
#[derive(Debug)]
pub struct ShortConvolution {
    /// `[size, columns]`.
    factors: Vec<f32>,
    shift: Option<Vec<f32>>,
    columns: usize,
    before: usize,
    is_causal: bool,
}

impl ShortConvolution {
    pub(crate) fn new(factors: &ShortConvolutionFactors) -> Result<Self> {
        Ok(Self {
            factors: factors.by_row()?,
            shift: factors.shift.as_ref().map(Weight::to_f32).transpose()?,
            columns: factors.factors.rows(),
            before: factors.before,
            is_causal: factors.is_causal(),
        })
    }

    /// Bytes of its numbers.
    pub(crate) fn bytes(&self) -> u64 {
        4 * (self.factors.len() + self.shift.as_ref().map_or(0, Vec::len)) as u64
    }

    /// Numbers of an output.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Rows before its own that an output sees.
    pub(crate) fn before(&self) -> usize {
        self.before
    }

    pub(crate) fn is_causal(&self) -> bool {
        self.is_causal
    }

    /// Writes the output of row `index` of `rows` to row `to` of `out`.
    ///
    /// # Safety
    ///
    /// - No other code accesses row `to` of `out` during the call.
    pub(crate) unsafe fn write(&self, rows: &impl SeenRows, index: usize, out: &Target<'_>, to: usize) {
        let mut sums = [0.0; MOST_COLUMNS];
        for first in (0..self.columns).step_by(MOST_COLUMNS) {
            let columns = first..self.columns.min(first + MOST_COLUMNS);
            let sums = &mut sums[..columns.len()];
            self.sum(rows, index, columns.clone(), sums);
            // SAFETY: no other code accesses row `to` during the call, by the precondition, and this is the only reference to it.
            unsafe {
                match out.format() {
                    DType::F32 => out.row_f32(to)[columns].copy_from_slice(sums),
                    DType::Bf16 => to_bf16(sums, &mut out.row_bf16(to)[columns]),
                }
            }
        }
    }

    /// Some columns of the output of row `index`.
    fn sum(&self, rows: &impl SeenRows, index: usize, columns: Range<usize>, sums: &mut [f32]) {
        match &self.shift {
            Some(shift) => sums.copy_from_slice(&shift[columns.clone()]),
            None => sums.fill(0.0),
        }
        let mut other = [0.0; MOST_COLUMNS];
        let other = &mut other[..sums.len()];
        for (row, factors) in self.factors.chunks_exact(self.columns).enumerate() {
            rows.read(index + row, columns.clone(), other);
            let products = factors[columns.clone()].iter().zip(&*other);
            sums.iter_mut().zip(products).for_each(|(sum, (factor, x))| *sum += factor * x);
        }
        if rows.read_gate(index, columns, other) {
            sums.iter_mut().zip(other).for_each(|(sum, gate)| *sum *= *gate);
        }
    }
}

#[cfg(test)]
mod tests;
