//! The graphics cards of this machine and their memory, as drivers report them.

use candle_core::Device;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result, sys};

/// A card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its number.
    pub ordinal: usize,
    /// Its memory; `None` where the driver does not report it.
    pub memory: Option<CardMemory>,
    /// Whether the kernels run on it: its compute capability is 8.0 or later, it has memory pools, and it can be opened.
    pub supported: bool,
}

/// The memory of a card, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CardMemory {
    /// Free bytes.
    pub free: u64,
    /// All bytes.
    pub total: u64,
}

/// How many cards of NVIDIA there are. Opens none of them.
///
/// # Errors
/// The driver's own words.
#[cfg(feature = "cuda")]
pub fn count() -> Result<usize, String> {
    let count = CudaContext::device_count().map_err(|error| error.to_string())?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// How many cards of NVIDIA there are: none, without the feature.
///
/// # Errors
/// None.
#[cfg(not(feature = "cuda"))]
pub fn count() -> Result<usize, String> {
    Ok(0)
}

/// NVIDIA's cards. Each is opened for a moment.
///
/// # Errors
/// The driver's own words.
#[cfg(feature = "cuda")]
pub fn cuda() -> Result<Vec<Card>, String> {
    let card = |ordinal| {
        // A card that another process holds alone, or that is broken, reports no memory.
        let context = CudaContext::new(ordinal);
        let supported = context.as_ref().is_ok_and(|context| {
            context.has_async_alloc() && context.compute_capability().is_ok_and(|(major, _)| major >= 8)
        });
        let memory = context.and_then(|context| context.mem_get_info());
        let memory = memory.ok().map(|(free, total)| CardMemory { free: free as u64, total: total as u64 });
        Card { ordinal, memory, supported }
    };
    Ok((0..count()?).map(card).collect())
}

/// NVIDIA's cards: none, without the feature.
///
/// # Errors
/// None.
#[cfg(not(feature = "cuda"))]
pub fn cuda() -> Result<Vec<Card>, String> {
    Ok(Vec::new())
}

/// The memory of a card that is open.
pub fn memory(device: &Device) -> Option<CardMemory> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        let stream = device.cuda_stream();
        let (free, total) = stream.context().mem_get_info().ok()?;
        return Some(CardMemory { free: free as u64, total: total as u64 });
    }
    let _ = device;
    None
}

/// What a device is called: cuda:0, mps:0 or, for candle on the CPU, candle-cpu.
pub fn name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "candle-cpu".into(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("mps:{gpu_id}"),
    }
}

/// Waits for the work of a device, after which its driver takes back what was freed.
pub fn settle(device: &Device) {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        if let Err(error) = release(cuda.cuda_stream().context()) {
            log::debug!("{}: {error}", name(device));
        }
        return;
    }
    if let Err(error) = device.synchronize() {
        log::debug!("{}: {error}", name(device));
    }
}

/// Lets the driver keep what passes free, so that later ones do not ask for it again. [`settle`] gives it back.
///
/// # Errors
/// Errors of the driver.
#[cfg(feature = "cuda")]
pub(in crate::compute) fn keep_freed_memory(context: &CudaContext) -> Result<(), DriverError> {
    let mut bytes = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the context is open; the attribute is a number of 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let value: *mut u64 = &raw mut bytes;
        sys::cuMemPoolSetAttribute(pool, attribute, value.cast()).result()
    }
}

/// Gives freed memory back to the driver.
#[cfg(feature = "cuda")]
fn release(context: &CudaContext) -> Result<(), DriverError> {
    context.bind_to_thread()?;
    context.synchronize()?;
    // SAFETY: the context is open, and no work is under way that uses what is freed: freed memory is unused.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        sys::cuMemPoolTrimTo(pool, 0).result()
    }
}
