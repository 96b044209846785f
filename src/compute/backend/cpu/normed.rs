//! Copies of rows, normalized or as they are, alone or side by side.

use std::ops::Range;

use half::bf16;

use super::device::Norm;
use super::pass::CpuPass;
use super::states::{GatheredRow, StateRows, States};
use crate::Result;
use crate::compute::isa::DType;
use crate::compute::kernels::rowwise::RmsRow;
use crate::compute::matrix::StateMatrix;
use crate::compute::narrow::to_bf16;

impl CpuPass<'_> {
    /// Some rows of `x` as the operand of a product.
    pub(super) fn copied(&mut self, x: &StateMatrix, rows: Range<usize>) -> Result<StateMatrix> {
        self.copied_as(x, rows, self.cpu.dtype)
    }

    /// Some rows of `x` in another format.
    pub(super) fn copied_as(
        &mut self,
        x: &StateMatrix,
        rows: Range<usize>,
        to: DType,
    ) -> Result<StateMatrix> {
        let columns = x.columns();
        let mut copy = self.workspace.matrix(rows.len(), columns, to)?;
        let target = copy.target();
        self.parallelism.worth(rows.len() * columns).split_rows(rows.len(), |task| {
            for row in task {
                let from = &x.values(rows.start + row..rows.start + row + 1)[..columns];
                // SAFETY: each row of `copy` belongs to one task.
                unsafe {
                    match to {
                        DType::F32 => target.row_f32(row).copy_from_slice(from),
                        DType::Bf16 => to_bf16(from, target.row_bf16(row)),
                    }
                }
            }
        })?;
        Ok(copy)
    }

    /// The states, with the operand of a product.
    pub(super) fn with_operand(&mut self, x: States) -> Result<States> {
        match x.rows {
            StateRows::F32(f32) if self.cpu.dtype == DType::Bf16 => {
                let bf16 = self.copied(&f32, 0..f32.rows())?;
                Ok(States { rows: StateRows::Both { f32, bf16 }, ..x })
            }
            _ => Ok(x),
        }
    }

    /// Some rows of `x`, normalized, as the operand of a product.
    pub(super) fn normed(&mut self, x: &StateMatrix, rows: Range<usize>, norm: &Norm) -> Result<StateMatrix> {
        self.normed_as(x, rows, norm, self.cpu.dtype)
    }

    /// Some rows of `x`, normalized if there is a norm, in a format.
    pub(super) fn maybe_normed_as(
        &mut self,
        x: &StateMatrix,
        rows: Range<usize>,
        norm: Option<&Norm>,
        to: DType,
    ) -> Result<StateMatrix> {
        match norm {
            Some(norm) => self.normed_as(x, rows, norm, to),
            None => self.copied_as(x, rows, to),
        }
    }

    /// Some rows of `x`, normalized, in a format.
    pub(super) fn normed_as(
        &mut self,
        x: &StateMatrix,
        rows: Range<usize>,
        norm: &Norm,
        to: DType,
    ) -> Result<StateMatrix> {
        assert!(x.columns() == norm.scale.len() && x.format() == DType::F32, "norm parameters");
        let (kernels, columns) = (self.cpu.kernel_set().kernels, x.columns());
        let mut normed = self.workspace.matrix(rows.len(), columns, to)?;
        // Layer normalization runs in place, in f32.
        let mut copy = match (&norm.shift, to) {
            (Some(_), DType::Bf16) => Some(self.workspace.matrix(rows.len(), columns, DType::F32)?),
            _ => None,
        };
        let target = normed.target();
        let wide = copy.as_mut().map(StateMatrix::target);
        self.parallelism.worth(rows.len() * columns).split_rows(rows.len(), |task| {
            for row in task {
                let from = x.row_ptr(rows.start + row).cast::<f32>();
                let Some(shift) = &norm.shift else {
                    let out = target.part(row..row + 1, 0..columns);
                    let row = RmsRow { x: from, scale: &norm.scale, epsilon: norm.epsilon, out, to };
                    // SAFETY: `x` is in f32 and has `norm.scale.len()` columns by the assertion above; the row of `normed`,
                    // another matrix, has as many in the format `to`. Both are aligned, and each row belongs to one task.
                    unsafe { kernels.rms(&row) };
                    continue;
                };
                // SAFETY: `from` points to a row of `columns` f32 by the assertion above, which nothing writes meanwhile. Each
                // row of `wide` and of `target`, which are other matrices, belongs to one task.
                let (from, values, narrow) = unsafe {
                    let from = std::slice::from_raw_parts(from, columns);
                    match &wide {
                        Some(wide) => (from, wide.row_f32(row), Some(target.row_bf16(row))),
                        None => (from, target.row_f32(row), None),
                    }
                };
                values.copy_from_slice(from);
                kernels.norm(values, &norm.scale, shift, norm.epsilon, narrow);
            }
        })?;
        if let Some(copy) = copy {
            self.workspace.give(copy);
        }
        Ok(normed)
    }
}

impl CpuPass<'_> {
    /// The rows at these places. Where there is none, the values are unspecified.
    pub(super) fn gather(&mut self, x: &StateMatrix, rows: &[GatheredRow]) -> Result<StateMatrix> {
        let (columns, format) = (x.columns(), x.format());
        let mut out = self.workspace.matrix(rows.len(), columns, format)?;
        let target = out.target();
        for (to, from) in rows.iter().enumerate().filter_map(|(to, row)| row.place.map(|from| (to, from))) {
            // SAFETY: `row_ptr` and `part` check the rows, which have `columns` values in `format` each. The matrices do not
            // overlap, and no other thread accesses `out`.
            unsafe {
                let to = target.part(to..to + 1, 0..columns);
                to.copy_from_nonoverlapping(x.row_ptr(from), columns * format.bytes());
            }
        }
        Ok(out)
    }

    /// Each row of the batch with those around it in its sequence: `size` rows, and zeros beyond the sequence.
    pub(super) fn im2col_rows(&mut self, x: &StateMatrix, size: usize) -> Result<StateMatrix> {
        let (batch, columns, bytes) = (self.batch, x.columns(), x.columns() * x.format().bytes());
        assert_eq!(x.rows(), batch.tokens(), "rows of a batch");
        let mut out = self.workspace.matrix(x.rows(), size * columns, x.format())?;
        let target = out.target();
        self.parallelism.worth(x.rows() * size * columns).split_rows(batch.sequences(), |sequences| {
            for range in sequences.map(|index| batch.range(index)) {
                for (row, place) in range.clone().flat_map(|row| (0..size).map(move |place| (row, place))) {
                    let to = target.part(row..row + 1, place * columns..(place + 1) * columns);
                    let from = (row + place).checked_sub(size / 2).filter(|from| range.contains(from));
                    // SAFETY: `part` and `row_ptr` checked the places, which have `bytes` bytes each. The matrices do not
                    // overlap, each row belongs to one sequence and each sequence to one task, and zeros are numbers.
                    unsafe {
                        match from {
                            Some(from) => to.copy_from_nonoverlapping(x.row_ptr(from), bytes),
                            None => to.write_bytes(0, bytes),
                        }
                    }
                }
            }
        })?;
        Ok(out)
    }

    /// Adds the rows of `x`, in f32 or bf16, to those of `sum`.
    pub(super) fn add(&self, x: &StateMatrix, sum: &mut StateMatrix) -> Result<()> {
        assert!(x.rows() == sum.rows() && x.columns() == sum.columns(), "rows of a sum");
        sum.for_each_row(self.parallelism, |row, to| match x.format() {
            DType::F32 => to.iter_mut().zip(x.values(row..row + 1)).for_each(|(to, x)| *to += x),
            DType::Bf16 => {
                let from = x.row_bf16(row).iter().map(|&x| bf16::from_bits(x).to_f32());
                to.iter_mut().zip(from).for_each(|(to, x)| *to += x);
            }
        })
    }
}
