//! Weights, states and caches on a card.

use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::sys;

use super::card::{CudaCard, LaneLease, failed};
use super::gemm::{GemmShape, Operands, multiply, padded};
use super::launch;
use super::memory::DeviceMemory;
use crate::Result;
use crate::compute::attention::kv_cache::CacheShape;
use crate::compute::backend::traits::KvCache;
use crate::compute::isa::DType;
use crate::compute::kernels::activation::Activation;

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
    /// In float32, and in the format of the matrix.
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

/// CudaStates on a card: rows of numbers. There is memory for [`padded`] rows, of which the last ones are undefined.
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
    fn shape(&self, rows: usize, factors: DType, result: DType, adds: bool) -> GemmShape {
        let Self { inputs, outputs, ref bias, .. } = *self;
        GemmShape { rows: padded(rows), inputs, outputs, factors, result, has_bias: bias.is_some(), adds }
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

/// Tokens by which the memory of a cache grows.
const PAGE: usize = 64;

/// Keys and values of one sequence on a card: `[layers, 2, capacity, kv_heads * width]`.
#[derive(Debug)]
pub struct CudaCache {
    pub(super) card: Arc<CudaCard>,
    pub(super) format: DType,
    pub(super) shape: CacheShape,
    pub(super) len: usize,
    pub(super) capacity: usize,
    pub(super) memory: Option<DeviceMemory>,
}

impl CudaCache {
    /// Bytes of `tokens` of one layer's keys.
    fn row_bytes(&self, tokens: usize) -> usize {
        tokens * self.shape.kv_heads * self.shape.width * size(self.format)
    }

    /// The address of the keys of the first layer; 0 without memory.
    pub(super) fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.at(0))
    }

    /// A cache of the first `len` tokens with memory for `capacity`.
    fn copied(&self, len: usize, capacity: usize) -> Result<Self> {
        let capacity = capacity.max(len).next_multiple_of(PAGE);
        let both = 2 * self.shape.layers;
        self.card.bind()?;
        let memory = DeviceMemory::new(&self.card.home, both * self.row_bytes(capacity))?;
        if let Some(old) = self.memory.as_ref().filter(|_| len > 0) {
            let (from, to) = (self.row_bytes(self.capacity), self.row_bytes(capacity));
            let copy = sys::CUDA_MEMCPY2D {
                srcXInBytes: 0,
                srcY: 0,
                srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                srcHost: std::ptr::null::<c_void>(),
                srcDevice: old.at(0),
                srcArray: std::ptr::null_mut(),
                srcPitch: from,
                dstXInBytes: 0,
                dstY: 0,
                dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                dstHost: std::ptr::null_mut(),
                dstDevice: memory.at(0),
                dstArray: std::ptr::null_mut(),
                dstPitch: to,
                WidthInBytes: self.row_bytes(len),
                Height: both,
            };
            // SAFETY: both memories have `both` rows of their pitch, each at least as long as the copy: `len` is at most
            // both capacities. Earlier work with `old` has ended, since every pass waits for its own.
            unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, self.card.home.cu_stream()) }
                .result()
                .map_err(failed)?;
        }
        self.card.home.synchronize().map_err(failed)?;
        let (card, format, shape) = (Arc::clone(&self.card), self.format, self.shape);
        Ok(Self { card, format, shape, len, capacity, memory: Some(memory) })
    }
}

/// Bytes of a cache with memory for `tokens`.
pub(super) fn cache_bytes(shape: CacheShape, format: DType, tokens: usize) -> u64 {
    let tokens = tokens.checked_next_multiple_of(PAGE).unwrap_or(usize::MAX);
    [2, shape.layers, shape.kv_heads, shape.width, size(format)]
        .into_iter()
        .fold(tokens as u64, |bytes, factor| bytes.saturating_mul(factor as u64))
}

impl KvCache for CudaCache {
    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        self.len = len.min(self.len);
    }

    fn reserve(&mut self, capacity: usize) -> Result<()> {
        if capacity > self.capacity {
            *self = self.copied(self.len, capacity)?;
        }
        Ok(())
    }

    fn fork(&self, len: usize, capacity: usize) -> Result<Self> {
        self.copied(len.min(self.len), capacity)
    }

    fn shrink(&mut self) -> Result<()> {
        if self.capacity >= 2 * self.len.next_multiple_of(PAGE) {
            *self = self.copied(self.len, self.len)?;
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        cache_bytes(self.shape, self.format, self.capacity)
    }
}
