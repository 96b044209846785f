//! A device, how weights become tensors on it, and what happens when its memory is full.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Tensor};

use crate::compute::cards;
use crate::compute::linear::layer::Matrix;
use crate::compute::weight::Weight;
use crate::{Error, Result};

/// Frees memory of a device that other models hold. True when it freed some: then it is worth trying again.
#[derive(Clone)]
pub struct Relief(pub Arc<dyn Fn() -> bool + Send + Sync>);

/// A device of candle, and how models compute on it.
#[derive(Debug, Clone)]
pub struct CandleDevice {
    /// The device.
    pub device: Device,
    /// Its name in messages.
    pub name: Arc<str>,
    /// Whether the weights of linear layers and their inputs are bfloat16. All else is float32.
    pub bf16: bool,
    /// What frees memory of other models.
    pub relief: Option<Relief>,
}

/// The backend on a device of candle.
#[derive(Debug)]
pub struct Candle {
    pub(super) on: CandleDevice,
    pub(super) bytes: AtomicU64,
    /// In tests: passes that fail for lack of memory.
    #[cfg(test)]
    pub(crate) faults: super::faults::Faults,
}

impl fmt::Debug for Relief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Relief")
    }
}

impl From<Device> for CandleDevice {
    /// In float32, with nothing that frees memory.
    fn from(device: Device) -> Self {
        Self { name: cards::name(&device).into(), device, bf16: false, relief: None }
    }
}

impl CandleDevice {
    /// Whether memory was freed.
    pub(in crate::compute::backend) fn relieve(&self) -> bool {
        self.relief.as_ref().is_some_and(|relief| (relief.0)())
    }

    /// The error, with this device and its free memory if it is a lack of memory.
    pub fn described(&self, error: Error) -> Error {
        match error {
            Error::DeviceMemory { what, needed, .. } => {
                let free = cards::memory(&self.device).map(|memory| memory.free);
                Error::DeviceMemory { device: self.name.to_string(), what, needed, free }
            }
            other => other,
        }
    }
}

impl Candle {
    /// Runs on `device`.
    pub fn new(device: impl Into<CandleDevice>) -> Self {
        Self {
            on: device.into(),
            bytes: AtomicU64::new(0),
            #[cfg(test)]
            faults: super::faults::Faults::default(),
        }
    }

    pub(super) fn tensor(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        self.bytes.fetch_add(4 * values.len() as u64, Ordering::Relaxed);
        Tensor::from_vec(values, shape, &self.on.device).map_err(failed)
    }

    pub(super) fn vector(&self, weight: &Weight) -> Result<Tensor> {
        self.tensor(weight.to_f32()?, weight.shape())
    }

    pub(super) fn matrix(&self, matrix: &Matrix) -> Result<Tensor> {
        self.tensor(matrix.to_f32()?, &[matrix.rows(), matrix.columns()])
    }

    /// The matrix of a linear layer, rounded to bfloat16 if products are.
    pub(super) fn operand(&self, matrix: &Matrix) -> Result<Tensor> {
        let operand = self.matrix(matrix)?;
        if !self.on.bf16 {
            return Ok(operand);
        }
        self.bytes.fetch_sub(2 * operand.elem_count() as u64, Ordering::Relaxed);
        operand.to_dtype(DType::BF16).map_err(failed)
    }
}

/// An error of candle. A lack of memory gets its device by [`CandleDevice::described`].
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err asks for")]
pub(crate) fn failed(error: candle_core::Error) -> Error {
    let reason = error.to_string();
    if is_out_of_memory(&reason) {
        return Error::DeviceMemory {
            device: String::new(),
            what: "a batch".into(),
            needed: None,
            free: None,
        };
    }
    Error::internal("candle", reason)
}

/// Whether candle's words are those of a driver or a library whose device has no memory left. Candle boxes their errors.
fn is_out_of_memory(reason: &str) -> bool {
    [
        "CUDA_ERROR_OUT_OF_MEMORY",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "out of memory",
        "Failed to create metal resource",
    ]
    .iter()
    .any(|words| reason.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_memory_is_recognized() {
        let driver = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        let error = failed(candle_core::Error::Msg(driver.into()));
        let device = CandleDevice { name: "cuda:1".into(), ..Device::Cpu.into() };
        match device.described(error) {
            Error::DeviceMemory { device, needed: None, .. } => assert_eq!(device, "cuda:1"),
            other => panic!("{other}"),
        }
        let other = failed(candle_core::Error::Msg("DriverError(CUDA_ERROR_INVALID_VALUE)".into()));
        assert!(matches!(device.described(other), Error::Internal { .. }));
    }
}
