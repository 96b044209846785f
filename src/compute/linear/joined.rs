//! Matrices of one layer, whose outputs lie side by side.

use super::layer::{Biased, Matrix};
use crate::{Error, Result};

/// What the matrices of one layer have together.
#[derive(Debug)]
pub(crate) struct JoinedLinear {
    /// One number for each output, if a matrix has a bias.
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

impl JoinedLinear {
    /// Checks the shapes, and joins the biases: a matrix without one has zeros.
    ///
    /// # Errors
    /// [`Error::Internal`] if the shapes do not match, and errors of reading a file.
    pub(crate) fn of(parts: &[Biased]) -> Result<Self> {
        let inputs = parts.first().map_or(0, |(matrix, _)| matrix.columns());
        let (mut bias, mut outputs) = (Vec::new(), 0);
        for (matrix, shift) in parts {
            let fits = matrix.columns() == inputs
                && shift.as_ref().is_none_or(|shift| shift.shape() == [matrix.rows()]);
            if !fits || inputs == 0 {
                return Err(misfit(matrix, inputs));
            }
            if let Some(shift) = shift {
                bias.resize(outputs, 0.0);
                bias.extend(shift.to_f32()?);
            }
            outputs += matrix.rows();
        }
        let bias = (!bias.is_empty()).then(|| {
            bias.resize(outputs, 0.0);
            bias
        });
        Ok(Self { bias, inputs, outputs })
    }
}

/// The error of a matrix that is not one of a layer.
pub(super) fn misfit(matrix: &Matrix, inputs: usize) -> Error {
    Error::internal(
        "linear",
        format!("a matrix of {} x {} does not fit {inputs} inputs", matrix.rows(), matrix.columns()),
    )
}
