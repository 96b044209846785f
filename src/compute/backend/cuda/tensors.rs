//! Weights and states on a card.

use std::sync::Arc;

use super::card::LaneLease;
use super::gemm_shape::padded;
use super::memory::DeviceMemory;
use crate::Result;
use crate::compute::isa::DType;

/// Bytes of a number.
pub(super) fn size(format: DType) -> usize {
    match format {
        DType::F32 => 4,
        DType::Bf16 => 2,
    }
}

/// An embedding table on a card.
#[derive(Debug)]
pub struct CudaTable {
    pub(super) memory: Arc<DeviceMemory>,
    pub(super) rows: usize,
    pub(super) width: usize,
}

/// A linear layer on a card.
#[derive(Debug)]
pub struct CudaLinear {
    /// `[outputs, inputs]`
    pub(super) matrix: Arc<DeviceMemory>,
    /// In float32, and in bfloat16.
    pub(super) bias: Option<[DeviceMemory; 2]>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Whether the first half of the outputs is the gate of the second.
    pub(super) gated: bool,
}

/// A normalization of rows: layer normalization with a shift, RMS normalization without.
#[derive(Debug)]
pub struct CudaNorm {
    pub(super) scale: DeviceMemory,
    pub(super) shift: Option<DeviceMemory>,
    pub(super) epsilon: f32,
    pub(super) length: usize,
}

/// States on a card: rows of numbers. There is memory for [`padded`] rows, of which the last ones are undefined.
#[derive(Debug)]
pub struct CudaStates {
    pub(super) memory: DeviceMemory,
    pub(super) format: DType,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl CudaStates {
    /// Undefined values.
    pub(super) fn new(lane: &LaneLease, format: DType, rows: usize, width: usize) -> Result<Self> {
        let memory = lane.memory(padded(rows) * width * size(format))?;
        Ok(Self { memory, format, rows, width })
    }
}
