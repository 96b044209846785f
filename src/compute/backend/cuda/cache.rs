//! Keys and values on a card.

use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::sys;

use super::card::CudaCard;
use super::failure::failed;
use super::memory::DeviceMemory;
use super::tensors::size;
use crate::Result;
use crate::compute::attention::kv_cache::CacheShape;
use crate::compute::backend::traits::KvCache;
use crate::compute::isa::DType;

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
    ///
    /// # Panics
    /// If the memory is shorter than the capacity of all layers.
    pub(super) fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| {
            assert!(memory.bytes() >= 2 * self.shape.layers * self.row_bytes(self.capacity), "all layers");
            memory.at(0)
        })
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
