//! A card: its kernels, memory on it, and the streams that work in order.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use candle_core::cuda_backend::cudarc::cublaslt::{result as cublaslt, sys as cublaslt_sys};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaStream, result, sys};

use super::failure::{blas_failed, failed};
use super::gemm_shape::Plans;
use super::memory::{DeviceMemory, HostMemory, Plain};
use crate::compute::cards;
use crate::sync::Mutex;
use crate::{Error, Result};

/// The kernels of `rowwise.cu`, then those of `attention.cu`, for the cards that `build.rs` names.
static MODULES: [&[u8]; 2] = [
    include_bytes!(concat!(env!("OUT_DIR"), "/rowwise.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/attention.fatbin")),
];

/// Bytes in which cuBLAS sums parts of a product. NVIDIA recommends 32 MB for Hopper, and less for older cards.
const WORKSPACE: usize = 32 << 20;

/// Dynamic shared memory that a kernel may use without asking for more: 48 KiB less what `block_sum` has in any case.
const USUAL_SHARED: u32 = (48 << 10) - 128;

/// The cards that models of this process use, by number.
static OPEN: Mutex<Vec<(usize, Weak<CudaCard>)>> = Mutex::new(Vec::new());

/// What the models on a card share.
pub(super) struct CudaCard {
    context: Arc<CudaContext>,
    /// The stream of what outlives a pass: weights, caches.
    pub(super) home: Arc<CudaStream>,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<&'static str, LoadedKernel>>,
    /// Shared memory of a block at most.
    most_shared: u32,
    pub(super) blas: cublaslt_sys::cublasLtHandle_t,
    pub(super) plans: Mutex<Plans>,
    /// Streams of passes that ended.
    idle: Mutex<Vec<StreamLane>>,
}

#[derive(Clone, Copy)]
struct LoadedKernel {
    handle: sys::CUfunction,
    /// Shared memory that was asked for.
    shared: u32,
}

// SAFETY: modules, functions and the handle of cuBLASLt may be used by any thread that has bound the context, which every
// use here does first; NVIDIA documents the handle as safe for concurrent use.
unsafe impl Send for CudaCard {}
// SAFETY: threads that share a card call the same functions of the driver and of cuBLASLt, which both document as safe for
// concurrent use. What changes lies in mutexes.
unsafe impl Sync for CudaCard {}

impl fmt::Debug for CudaCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaCard").field("ordinal", &self.context.ordinal()).finish_non_exhaustive()
    }
}

impl CudaCard {
    /// The card of `context`, which all models on it share.
    ///
    /// # Errors
    /// Errors of the driver: the card has no kernels in this build, or no memory.
    pub(super) fn of(context: &Arc<CudaContext>) -> Result<Arc<Self>> {
        let mut open = OPEN.lock();
        open.retain(|(_, card)| card.strong_count() > 0);
        let ordinal = context.ordinal();
        if let Some(card) = open.iter().find(|known| known.0 == ordinal).and_then(|known| known.1.upgrade()) {
            return Ok(card);
        }
        let card = Arc::new(Self::open(context)?);
        open.push((ordinal, Arc::downgrade(&card)));
        Ok(card)
    }

    fn open(context: &Arc<CudaContext>) -> Result<Self> {
        let (major, minor) = context.compute_capability().map_err(failed)?;
        if major < 8 {
            return Err(Error::Config {
                setting: "device".into(),
                value: format!("cuda:{}", context.ordinal()),
                reason: format!(
                    "its compute capability is {major}.{minor}, and 8.0 is the oldest that is supported; use \
                     device=\"cpu\""
                ),
            });
        }
        context.bind_to_thread().map_err(failed)?;
        // SAFETY: the context is bound; each image is a whole fatbin in static memory.
        let load = |image: &&[u8]| unsafe { result::module::load_data(image.as_ptr().cast()) };
        let modules = MODULES.iter().map(load).collect::<Result<_, _>>().map_err(failed)?;
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        cards::keep_freed_memory(context).map_err(failed)?;
        Ok(Self {
            most_shared: context.attribute(attribute).map_err(failed)?.unsigned_abs(),
            home: context.new_stream().map_err(failed)?,
            context: Arc::clone(context),
            modules,
            functions: Mutex::default(),
            blas: cublaslt::create_handle().map_err(blas_failed)?,
            plans: Mutex::default(),
            idle: Mutex::default(),
        })
    }

    /// Makes this thread one that may use the card.
    ///
    /// # Errors
    /// Errors of the driver.
    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(failed)
    }

    /// A stream that no other pass uses.
    ///
    /// # Errors
    /// Errors of the driver.
    pub(super) fn lane(self: &Arc<Self>) -> Result<LaneLease> {
        self.bind()?;
        let idle = self.idle.lock().pop();
        let lane = match idle {
            Some(lane) => lane,
            None => {
                let stream = self.context.new_stream().map_err(failed)?;
                let workspace = DeviceMemory::new(&stream, WORKSPACE)?;
                StreamLane {
                    workspace,
                    staging: HostMemory::default(),
                    results: HostMemory::default(),
                    stream,
                }
            }
        };
        Ok(LaneLease { card: Arc::clone(self), lane: ManuallyDrop::new(lane) })
    }

    /// A kernel that may use `shared` bytes of shared memory.
    fn function(&self, name: &'static str, shared: u32) -> Result<sys::CUfunction> {
        let mut functions = self.functions.lock();
        let known = functions.get(name).copied();
        let mut function = match known {
            Some(function) => function,
            None => LoadedKernel { handle: self.find(name)?, shared: USUAL_SHARED },
        };
        if shared > function.shared {
            if shared > self.most_shared {
                let reason = format!(
                    "{name} needs {shared} bytes of shared memory, the card has {}",
                    self.most_shared
                );
                return Err(Error::internal("cuda", reason));
            }
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the handle is of a function of a module that lives as long as `self`, whose context is bound.
            unsafe { result::function::set_function_attribute(function.handle, attribute, shared as i32) }
                .map_err(failed)?;
            function.shared = shared;
        }
        functions.insert(name, function);
        Ok(function.handle)
    }

    fn find(&self, name: &'static str) -> Result<sys::CUfunction> {
        let is_attention = name.starts_with("attend") || name.starts_with("append");
        let module = self.modules[usize::from(is_attention)];
        let internal = |reason: String| Error::internal("cuda", reason);
        let terminated = CString::new(name).map_err(|error| internal(error.to_string()))?;
        // SAFETY: the module is loaded and lives as long as `self`.
        unsafe { result::module::get_function(module, terminated) }
            .map_err(|error| internal(format!("no kernel {name}: {error}")))
    }
}

impl Drop for CudaCard {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        self.idle.lock().clear();
        // SAFETY: nothing uses the handle or the functions of the modules any more: `self` is the last owner, and each
        // pass waited for its work.
        unsafe {
            let _ = cublaslt::destroy_handle(self.blas);
            for &module in &self.modules {
                let _ = result::module::unload(module);
            }
        }
    }
}

/// A stream, and the memory that its passes use one after the other.
pub(super) struct StreamLane {
    pub(super) workspace: DeviceMemory,
    /// What is copied to the card.
    staging: HostMemory,
    /// What was copied from it.
    results: HostMemory,
    pub(super) stream: Arc<CudaStream>,
}

/// A lane of one pass; it goes back when its work is done.
pub(super) struct LaneLease {
    card: Arc<CudaCard>,
    /// Taken by `drop` alone.
    lane: ManuallyDrop<StreamLane>,
}

impl Deref for LaneLease {
    type Target = StreamLane;

    fn deref(&self) -> &StreamLane {
        &self.lane
    }
}

impl Drop for LaneLease {
    fn drop(&mut self) {
        // SAFETY: it is taken once, here, and `self` is not used again.
        let mut lane = unsafe { ManuallyDrop::take(&mut self.lane) };
        // Copies may still read `staging`: of a pass that failed.
        if lane.stream.synchronize().is_ok() {
            lane.staging.clear();
            self.card.idle.lock().push(lane);
        }
    }
}

impl LaneLease {
    /// The card.
    pub(super) fn card(&self) -> &Arc<CudaCard> {
        &self.card
    }

    /// Memory for this pass.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`].
    pub(super) fn memory(&self, bytes: usize) -> Result<DeviceMemory> {
        DeviceMemory::new(&self.stream, bytes)
    }

    /// A copy of `values` on the card, for this pass.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`], and errors of the driver.
    pub(super) fn upload<T: Plain>(&mut self, values: &[T]) -> Result<DeviceMemory> {
        let memory = self.memory(size_of_val(values))?;
        self.upload_to(&memory, 0, values)?;
        Ok(memory)
    }

    /// Copies `values` to `memory` from byte `offset` on.
    ///
    /// # Errors
    /// Errors of the driver.
    ///
    /// # Panics
    /// If they do not fit.
    pub(super) fn upload_to<T: Plain>(
        &mut self,
        memory: &DeviceMemory,
        offset: usize,
        values: &[T],
    ) -> Result<()> {
        let bytes = size_of_val(values);
        assert!(offset + bytes <= memory.bytes(), "a copy fits");
        if bytes == 0 {
            return Ok(());
        }
        let lane = &mut *self.lane;
        if !lane.staging.has_room(bytes) {
            lane.stream.synchronize().map_err(failed)?;
            lane.staging.grow(bytes)?;
        }
        let staged = lane.staging.put(values);
        // SAFETY: `staged` stays where it is until the stream was waited for, which `clear` and `grow` need; the target
        // was checked above, and its memory is used by this stream alone or was made before it began.
        unsafe { result::memcpy_htod_async(memory.at(offset), staged, lane.stream.cu_stream()) }
            .map_err(failed)
    }

    /// Waits, and copies the first `out.len()` numbers of `memory`.
    ///
    /// # Errors
    /// Errors of the driver, also those of kernels before.
    ///
    /// # Panics
    /// If `memory` has fewer.
    pub(super) fn download(&mut self, memory: &DeviceMemory, out: &mut [f32]) -> Result<()> {
        assert!(size_of_val(out) <= memory.bytes(), "a copy fits");
        if out.is_empty() {
            return self.wait();
        }
        let lane = &mut *self.lane;
        let values = lane.results.of_size(out.len())?;
        // SAFETY: both sides have the length, and `values` is not touched before the stream was waited for.
        unsafe { result::memcpy_dtoh_async(values, memory.at(0), lane.stream.cu_stream()) }
            .map_err(failed)?;
        lane.stream.synchronize().map_err(failed)?;
        out.copy_from_slice(values);
        Ok(())
    }

    /// Waits for all work of this lane.
    ///
    /// # Errors
    /// Errors of the driver, also those of kernels before.
    pub(super) fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(failed)
    }

    /// Starts a kernel. Nothing happens if the grid is empty.
    ///
    /// # Safety
    /// `arguments` point to values of the types of the kernel's parameters, in their order. What they point to on the
    /// card has the sizes that the kernel accesses for this grid, and is not freed before work that is queued on this
    /// stream.
    ///
    /// # Errors
    /// Errors of the driver.
    pub(super) unsafe fn launch(
        &self,
        name: &'static str,
        (grid, block): ([usize; 2], usize),
        shared: usize,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let function = self.card.function(name, shared as u32)?;
        let grid = (grid[0] as u32, grid[1] as u32, 1);
        let stream = self.stream.cu_stream();
        // SAFETY: `function` is of a module that lives as long as the card. By the preconditions, `arguments` has a pointer for
        // each parameter, and the memory behind them has the sizes for this grid and outlives the work.
        unsafe {
            result::launch_kernel(function, grid, (block as u32, 1, 1), shared as u32, stream, arguments)
        }
        .map_err(failed)
    }
}
