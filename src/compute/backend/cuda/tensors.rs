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

impl CudaTable {
    /// The address of its first row, for a kernel that reads all rows in `format`.
    ///
    /// # Panics
    /// If its memory is shorter.
    pub(super) fn address(&self, format: DType) -> u64 {
        assert!(self.memory.bytes() >= self.rows * self.width * size(format), "a whole table");
        self.memory.at(0)
    }
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

impl CudaNorm {
    /// The addresses of its scale and of its shift, which is 0 if there is none.
    ///
    /// # Panics
    /// If one has fewer than `length` numbers.
    pub(super) fn addresses(&self) -> (u64, u64) {
        let address = |memory: &DeviceMemory| {
            assert!(memory.bytes() >= 4 * self.length, "a parameter for each column");
            memory.at(0)
        };
        (address(&self.scale), self.shift.as_ref().map_or(0, address))
    }
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
    /// The address of its first row, for a kernel that reads or writes all rows.
    ///
    /// # Panics
    /// If its memory is shorter.
    pub(super) fn address(&self) -> u64 {
        assert!(self.memory.bytes() >= self.rows * self.width * size(self.format), "all rows");
        self.memory.at(0)
    }
}

/// Indices of rows on a card. No kernel writes them, so that the largest one stays known.
pub(super) struct RowIndices {
    memory: DeviceMemory,
    count: usize,
    /// The largest index, plus one; 0 without indices.
    end: usize,
}

impl RowIndices {
    /// A copy of `indices` on the card.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`], and errors of the driver.
    pub(super) fn new(lane: &mut LaneLease, indices: &[u32]) -> Result<Self> {
        let end = indices.iter().max().map_or(0, |&largest| largest as usize + 1);
        Ok(Self { memory: lane.upload(indices)?, count: indices.len(), end })
    }

    /// The address of the first one, for a kernel that reads `count` of them as indices below `rows`.
    ///
    /// # Panics
    /// If there are fewer, or one is not below `rows`.
    pub(super) fn address(&self, count: usize, rows: usize) -> u64 {
        assert!(self.count >= count && self.end <= rows, "{count} indices below {rows}");
        self.memory.at(0)
    }
}
