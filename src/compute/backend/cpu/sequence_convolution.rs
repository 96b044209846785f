//! Convolutions of whole sequences: of each column with factors of its own, and with factors that each row makes.

use std::ops::Range;

use super::pass::CpuPass;
use super::states::{States, misuse};
use crate::Result;
use crate::compute::isa::DType;
use crate::compute::narrow::to_bf16;
use crate::compute::parallel::Target;
use crate::compute::short_convolution::{SequenceRows, ShortConvolution};

/// Writes `values` to row `row` of `out` from column `first` on.
///
/// # Safety
///
/// - No other code accesses row `row` of `out` during the call.
pub(super) unsafe fn store(out: &Target<'_>, row: usize, first: usize, values: &[f32]) {
    let columns = first..first + values.len();
    // SAFETY: no other code accesses the row during the call, by the precondition, and this is the only reference to it.
    unsafe {
        match out.format() {
            DType::F32 => out.row_f32(row)[columns].copy_from_slice(values),
            DType::Bf16 => to_bf16(values, &mut out.row_bf16(row)[columns]),
        }
    }
}

impl CpuPass<'_> {
    /// Calls `task` with each row of the batch, the rows of its sequence, and memory that the calls of a thread share.
    /// `values` is how many are computed.
    fn for_each_row_of_sequences(
        &self,
        values: usize,
        task: impl Fn(usize, &Range<usize>, &mut Vec<f32>) + Sync,
    ) -> Result<()> {
        let tokens = self.batch.tokens();
        if !self.caches.is_empty() || self.window.len() < tokens {
            return Err(misuse("such a convolution is for whole sequences"));
        }
        let sequences: Vec<_> = self.batch.ranges().filter(|range| !range.is_empty()).collect();
        self.parallelism.worth(values).split_rows(tokens, |rows| {
            let mut index = sequences.partition_point(|sequence| sequence.end <= rows.start);
            let mut scratch = Vec::new();
            for row in rows {
                while sequences[index].end <= row {
                    index += 1;
                }
                task(row, &sequences[index], &mut scratch);
            }
        })
    }

    pub(super) fn convolve_depthwise(
        &mut self,
        x: &States,
        convolution: &ShortConvolution,
    ) -> Result<States> {
        let x = x.operand(self.cpu.dtype)?;
        let (rows, columns, before) = (x.rows(), x.columns(), convolution.before());
        if columns != convolution.columns() || rows != self.batch.tokens() {
            return Err(misuse("a convolution of each column of all rows"));
        }
        let mut out = self.workspace.matrix(rows, columns, self.cpu.dtype)?;
        let target = out.target();
        self.for_each_row_of_sequences(rows * columns, |row, sequence, _| {
            let seen = SequenceRows { x, rows: sequence.clone(), before };
            // SAFETY: each row belongs to one task.
            unsafe { convolution.write(&seen, row - sequence.start, &target, row) };
        })?;
        Ok(self.operand(out))
    }

    pub(super) fn multiply_rows(&mut self, x: States, by: &States) -> Result<States> {
        let (from, by) = (x.operand(self.cpu.dtype)?, by.operand(self.cpu.dtype)?);
        let (rows, columns) = (from.rows(), from.columns());
        if rows != self.batch.tokens() || by.rows() != rows || by.columns() < columns {
            return Err(misuse("factors of all numbers of all rows"));
        }
        let mut out = self.workspace.matrix(rows, columns, self.cpu.dtype)?;
        let target = out.target();
        self.for_each_row_of_sequences(rows * columns, |row, _, numbers| {
            numbers.resize(2 * columns, 0.0);
            let (x, factors) = numbers.split_at_mut(columns);
            from.read(row, 0..columns, x);
            by.read(row, 0..columns, factors);
            x.iter_mut().zip(factors).for_each(|(x, factor)| *x *= *factor);
            // SAFETY: each row belongs to one task.
            unsafe { store(&target, row, 0, x) };
        })?;
        self.discard(x);
        Ok(self.operand(out))
    }

    pub(super) fn convolve_dynamically(
        &mut self,
        x: States,
        scores: States,
        values: States,
        heads: usize,
    ) -> Result<States> {
        let format = self.cpu.dtype;
        let (first, seen, of) = (x.operand(format)?, scores.operand(format)?, values.operand(format)?);
        let (kept, taps, columns) = (first.columns(), seen.columns(), of.columns());
        let rows = self.batch.tokens();
        let whole = heads > 0 && taps > 0 && taps.is_multiple_of(heads) && columns.is_multiple_of(heads);
        if !whole || columns == 0 || [first, seen, of].iter().any(|matrix| matrix.rows() != rows) {
            return Err(misuse("scores of each head of all rows"));
        }
        let (size, width) = (taps / heads, columns / heads);
        let mut out = self.workspace.matrix(rows, kept + columns, format)?;
        let target = out.target();
        self.for_each_row_of_sequences(rows * columns, |row, sequence, numbers| {
            numbers.resize(taps + 2 * columns + kept, 0.0);
            let (factors, rest) = numbers.split_at_mut(taps);
            let (sums, rest) = rest.split_at_mut(columns);
            let (value, copied) = rest.split_at_mut(columns);
            seen.read(row, 0..taps, factors);
            factors.chunks_exact_mut(size).for_each(softmax);
            sums.fill(0.0);
            for tap in 0..size {
                let Some(from) = (row + tap).checked_sub(size / 2).filter(|from| sequence.contains(from))
                else {
                    continue;
                };
                of.read(from, 0..columns, value);
                let heads = sums.chunks_exact_mut(width).zip(value.chunks_exact(width));
                for ((sums, value), factors) in heads.zip(factors.chunks_exact(size)) {
                    let factor = factors[tap];
                    sums.iter_mut().zip(value).for_each(|(sum, x)| *sum += factor * x);
                }
            }
            first.read(row, 0..kept, copied);
            // SAFETY: each row belongs to one task.
            unsafe {
                store(&target, row, 0, copied);
                store(&target, row, kept, sums);
            }
        })?;
        [x, scores, values].into_iter().for_each(|states| self.discard(states));
        Ok(self.operand(out))
    }
}

/// Numbers whose sum is one.
fn softmax(scores: &mut [f32]) {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - most).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}
