//! Memory on a card, and memory of the host from which a card copies.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaStream, result, sys};

use super::failure::failed;
use crate::Result;

/// Bytes on a card. They are freed after the work of their stream.
pub(super) struct DeviceMemory {
    pointer: sys::CUdeviceptr,
    bytes: usize,
    stream: Arc<CudaStream>,
}

impl DeviceMemory {
    /// `bytes` for work on `stream`; for work on other streams once `stream` was waited for. Their values are undefined.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`].
    pub(super) fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self> {
        // SAFETY: the stream is open. No reference to the memory exists, and its numbers are valid whatever their bits are.
        let pointer = unsafe { result::malloc_async(stream.cu_stream(), bytes.max(1)) }.map_err(failed)?;
        Ok(Self { pointer, bytes, stream: Arc::clone(stream) })
    }

    /// Its length.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of byte `offset`.
    ///
    /// # Panics
    /// If it lies past the end.
    pub(super) fn at(&self, offset: usize) -> sys::CUdeviceptr {
        assert!(offset <= self.bytes, "an address inside of the memory");
        self.pointer + offset as u64
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceMemory({} bytes)", self.bytes)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.stream.context().bind_to_thread().is_err() {
            return;
        }
        // SAFETY: the memory is of this stream, and `self` was its only owner. Work of other streams with it has ended:
        // every pass waits for its own.
        if let Err(error) = unsafe { result::free_async(self.pointer, self.stream.cu_stream()) } {
            log::debug!("memory of a card was not freed: {error}");
        }
    }
}

/// Memory of the host that a card reads and writes by itself: page-locked.
#[derive(Default)]
pub(super) struct HostMemory {
    /// Its first byte; `None` without memory.
    start: Option<NonNull<u8>>,
    bytes: usize,
    used: usize,
}

// SAFETY: page-locked memory belongs to no thread, and this is its only owner.
unsafe impl Send for HostMemory {}

/// Where a copy begins, so that every number is aligned.
const ALIGNMENT: usize = 256;

impl HostMemory {
    /// Whether [`put`](Self::put) of so many bytes fits.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.used + bytes <= self.bytes
    }

    /// Frees what was put. The card has read it.
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// Frees what was put, and makes room for `bytes`. The card has read it.
    ///
    /// # Errors
    /// Errors of the driver.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<()> {
        self.used = 0;
        if bytes <= self.bytes {
            return Ok(());
        }
        let bytes = bytes.max(2 * self.bytes).max(1 << 20).next_multiple_of(ALIGNMENT);
        self.free();
        // SAFETY: a context is bound to this thread: this memory is of a lane, and `CudaCard::lane` binds before it gives one.
        let start = unsafe { result::malloc_host(bytes, 0) }.map_err(failed)?.cast::<u8>();
        // SAFETY: the driver has returned so many bytes. They are initialized here, so that they may be read as numbers.
        unsafe { start.write_bytes(0, bytes) };
        (self.start, self.bytes) = (NonNull::new(start), bytes);
        Ok(())
    }

    /// A copy of `values`.
    ///
    /// # Panics
    /// If there is no room.
    pub(super) fn put<T: Plain>(&mut self, values: &[T]) -> &[T] {
        let bytes = size_of_val(values);
        assert!(self.has_room(bytes), "room was made");
        let Some(start) = self.start else { return &[] };
        let offset = self.used;
        self.used = (offset + bytes).next_multiple_of(ALIGNMENT);
        // SAFETY: the memory has room for all values from `offset` on, which is aligned to 256 bytes; nothing else is there.
        unsafe {
            let to = start.as_ptr().add(offset).cast::<T>();
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len());
            std::slice::from_raw_parts(to, values.len())
        }
    }

    /// So many numbers. What was there is gone.
    ///
    /// # Errors
    /// Errors of the driver.
    pub(super) fn of_size(&mut self, numbers: usize) -> Result<&mut [f32]> {
        self.grow(4 * numbers)?;
        let Some(start) = self.start else { return Ok(&mut []) };
        // SAFETY: the memory has room for them, is aligned and initialized, and is borrowed from `self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast::<f32>(), numbers) })
    }

    fn free(&mut self) {
        if let Some(start) = self.start.take() {
            // SAFETY: the memory is of `malloc_host`, and no copy uses it: the lane was waited for.
            if let Err(error) = unsafe { result::free_host(start.as_ptr().cast()) } {
                log::debug!("page-locked memory was not freed: {error}");
            }
        }
        self.bytes = 0;
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        self.free();
    }
}

/// Numbers, and structs of them without gaps, of which every byte may be copied to a card.
///
/// # Safety
/// The type has no padding and no pointer of the host.
pub(super) unsafe trait Plain: Copy {}
// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: numbers.
unsafe impl Plain for u32 {}
// SAFETY: numbers.
unsafe impl Plain for i32 {}
// SAFETY: numbers.
unsafe impl Plain for u8 {}
// SAFETY: a number of two bytes.
unsafe impl Plain for half::bf16 {}
