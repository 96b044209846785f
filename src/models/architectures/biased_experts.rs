//! Experts whose matrices have biases, as GPT-OSS stores them: rows of gates and of first matrices alternate, and their numbers
//! have four bits (MXFP4), or are plain and transposed. GGUF files have a tensor for each kind of matrix.

use super::gpt2::transposed;
use super::tensors::Tensors;
use crate::Result;
use crate::compute::{Biased, Matrix, Weight};

/// Gate, first and second matrix of `count` experts of `wide` columns for states of `hidden`; `name` completes the names of
/// tensors.
///
/// # Errors
/// When a tensor is missing or of another shape.
pub(super) fn experts(
    tensors: &dyn Tensors,
    name: &dyn Fn(&str) -> String,
    count: usize,
    [wide, hidden]: [usize; 2],
) -> Result<Vec<[Biased; 3]>> {
    let full = |part: &str| name(&format!("experts.{part}"));
    if tensors.contains(&full("gate_proj.weight")) {
        return separate(tensors, &full, count, [wide, hidden]);
    }
    let parts = [("gate_up_proj", [2 * wide, hidden]), ("down_proj", [hidden, wide])];
    let [both, down] = parts.map(|(part, shape)| -> Result<_> {
        let bias = tensors.matrix(&full(&format!("{part}_bias")), [count, shape[0]])?;
        Ok((Stacked::read(tensors, &full(part), count, shape)?, bias))
    });
    let ((both, both_bias), (down, down_bias)) = (both?, down?);
    let of = |index: usize| -> Result<[Biased; 3]> {
        let (shift, own) = (row(&both_bias, index)?, both.of(index)?);
        let half = |first: usize| -> Result<Biased> {
            let shift: Vec<f32> = shift.iter().skip(first).step_by(2).copied().collect();
            Ok((own.every_second_row(first)?, Some(Weight::from_f32(&shift, &[wide])?)))
        };
        let down_shift = Weight::from_f32(&row(&down_bias, index)?, &[hidden])?;
        Ok([half(0)?, half(1)?, (down.of(index)?, Some(down_shift))])
    };
    (0..count).map(of).collect()
}

/// Matrices of one kind, of all experts.
enum Stacked {
    /// Of so many rows each.
    Rows(Matrix, usize),
    /// Transposed.
    Transposed(Weight),
}

impl Stacked {
    fn read(tensors: &dyn Tensors, name: &str, count: usize, [rows, columns]: [usize; 2]) -> Result<Self> {
        if tensors.contains(name) {
            return tensors.tensor(name, &[count, columns, rows]).map(Self::Transposed);
        }
        Ok(Self::Rows(tensors.microscaled(name, [count, rows, columns])?, rows))
    }

    /// That of expert `index`.
    fn of(&self, index: usize) -> Result<Matrix> {
        match self {
            Self::Rows(all, rows) => Ok(all.slice_rows(index * rows..(index + 1) * rows)),
            Self::Transposed(all) => {
                let shape = all.shape()[1..].to_vec();
                let own = Matrix::Plain(all.slice_rows(index..index + 1).reshaped(&shape));
                Ok(Matrix::Plain(transposed(&own)?))
            }
        }
    }
}

/// The matrices of all experts in a tensor for each kind.
fn separate(
    tensors: &dyn Tensors,
    full: &dyn Fn(&str) -> String,
    count: usize,
    [wide, hidden]: [usize; 2],
) -> Result<Vec<[Biased; 3]>> {
    let kinds = [("gate_proj", [wide, hidden]), ("up_proj", [wide, hidden]), ("down_proj", [hidden, wide])];
    let [gate, up, down] = kinds.map(|(kind, [rows, columns])| -> Result<_> {
        let matrices = tensors.stacked(&full(&format!("{kind}.weight")), [count, rows, columns])?;
        Ok((matrices, tensors.matrix(&full(&format!("{kind}.bias")), [count, rows])?, rows))
    });
    let all = [gate?, up?, down?];
    let of = |index: usize| -> Result<[Biased; 3]> {
        let own = |kind: usize| -> Result<Biased> {
            let (matrices, biases, rows) = &all[kind];
            let bias = Weight::from_f32(&row(biases, index)?, &[*rows])?;
            Ok((matrices.slice_rows(index * rows..(index + 1) * rows), Some(bias)))
        };
        Ok([own(0)?, own(1)?, own(2)?])
    };
    (0..count).map(of).collect()
}

fn row(matrix: &Matrix, index: usize) -> Result<Vec<f32>> {
    let mut row = vec![0.0; matrix.columns()];
    matrix.row_f32(index, &mut row)?;
    Ok(row)
}
