//! Copies of rows, normalized or as they are.

use std::ops::Range;

use half::bf16;

use super::device::Norm;
use super::pass::CpuPass;
use crate::Result;
use crate::compute::isa::DType;
use crate::compute::kernels::rowwise::RmsRow;
use crate::compute::matrix::StateMatrix;

impl CpuPass<'_> {
    /// Some rows of `x` as the operand of a product.
    pub(super) fn copied(&mut self, x: &StateMatrix, rows: Range<usize>) -> Result<StateMatrix> {
        let (to, columns) = (self.cpu.dtype, x.columns());
        let mut copy = self.workspace.matrix(rows.len(), columns, to)?;
        let target = copy.target();
        self.parallelism.worth(rows.len() * columns).split_rows(rows.len(), |task| {
            for row in task {
                let from = &x.values(rows.start + row..rows.start + row + 1)[..columns];
                // SAFETY: each row of `copy` belongs to one task.
                unsafe {
                    match to {
                        DType::F32 => target.row_f32(row).copy_from_slice(from),
                        DType::Bf16 => narrow(from, target.row_bf16(row)),
                    }
                }
            }
        })?;
        Ok(copy)
    }

    /// Some rows of `x`, normalized, as the operand of a product.
    pub(super) fn normed(&mut self, x: &StateMatrix, rows: Range<usize>, norm: &Norm) -> Result<StateMatrix> {
        assert!(x.columns() == norm.scale.len() && x.format() == DType::F32, "norm parameters");
        let (to, kernels, columns) = (self.cpu.dtype, self.cpu.kernel_set().kernels, x.columns());
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

fn narrow(from: &[f32], to: &mut [u16]) {
    to.iter_mut().zip(from).for_each(|(to, x)| *to = bf16::from_f32(*x).to_bits());
}
