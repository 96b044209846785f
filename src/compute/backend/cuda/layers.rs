//! Norms and linear layers of states.

use super::card::LaneLease;
use super::gemm::{Operands, multiply};
use super::gemm_shape::{GemmShape, padded};
use super::launch;
use super::memory::DeviceMemory;
use super::tensors::{CudaLinear, CudaNorm, CudaStates};
use crate::Result;
use crate::compute::isa::DType;
use crate::compute::kernels::activation::Activation;

impl CudaStates {
    /// A copy in `format`, times `factor`.
    pub(super) fn converted(&self, lane: &LaneLease, format: DType, factor: f32) -> Result<Self> {
        let out = Self::new(lane, format, self.rows, self.width)?;
        launch::convert(lane, self, factor, &out)?;
        Ok(out)
    }

    /// Its rows, normalized, in `format`.
    pub(super) fn normalized(&self, lane: &LaneLease, norm: &CudaNorm, format: DType) -> Result<Self> {
        let out = Self::new(lane, format, self.rows, self.width)?;
        launch::norm(lane, self, norm, &out, None)?;
        Ok(out)
    }
}

impl CudaLinear {
    fn shape(&self, rows: usize, operand_type: DType, result: DType, adds: bool) -> GemmShape {
        let Self { inputs, outputs, ref bias, .. } = *self;
        GemmShape {
            rows: padded(rows),
            inputs,
            outputs,
            operand_type,
            result,
            has_bias: bias.is_some(),
            adds,
        }
    }

    fn bias(&self, format: DType) -> Option<&DeviceMemory> {
        self.bias.as_ref().map(|bias| &bias[usize::from(format == DType::Bf16)])
    }

    /// `x Wᵀ + b` in `format`. `x` has the format of the matrix.
    pub(super) fn apply(&self, lane: &LaneLease, x: &CudaStates, format: DType) -> Result<CudaStates> {
        let out = CudaStates::new(lane, format, x.rows, self.outputs)?;
        let shape = self.shape(x.rows, x.format, format, false);
        let bias = self.bias(format);
        let operands = Operands { x: &x.memory, matrix: &self.matrix, bias, out: &out.memory, factor: 1.0 };
        multiply(lane, shape, &operands)?;
        Ok(out)
    }

    /// `residual += factor * x Wᵀ + b`.
    pub(super) fn add_to(
        &self,
        lane: &LaneLease,
        x: &CudaStates,
        factor: f32,
        residual: &CudaStates,
    ) -> Result<()> {
        let shape = self.shape(x.rows, x.format, residual.format, true);
        let (bias, out) = (self.bias(residual.format), &residual.memory);
        multiply(lane, shape, &Operands { x: &x.memory, matrix: &self.matrix, bias, out, factor })
    }

    /// `activation(x Wᵀ + b)` in the format of `x`.
    pub(super) fn activated(
        &self,
        lane: &LaneLease,
        x: &CudaStates,
        activation: Activation,
    ) -> Result<CudaStates> {
        let y = self.apply(lane, x, x.format)?;
        if self.gated {
            let out = CudaStates::new(lane, y.format, y.rows, self.outputs / 2)?;
            launch::activation(lane, &y, &out, activation, true)?;
            return Ok(out);
        }
        if activation != Activation::Identity {
            launch::activation(lane, &y, &y, activation, false)?;
        }
        Ok(y)
    }
}
