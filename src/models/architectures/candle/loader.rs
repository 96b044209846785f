//! The tensors of a model on a device.

use std::cell::Cell;

use candle_core::{Device, Tensor};

use super::ops::{CandleLinear, CandleNorm, failed};
use crate::Result;
use crate::models::architectures::tensors::Tensors;

/// Reads the tensors of one model.
pub struct TensorLoader<'a> {
    tensors: &'a dyn Tensors,
    device: &'a Device,
    bytes: Cell<u64>,
}

impl<'a> TensorLoader<'a> {
    /// Those of `tensors`.
    pub(super) fn new(tensors: &'a dyn Tensors, device: &'a Device) -> Self {
        Self { tensors, device, bytes: Cell::new(0) }
    }

    /// Bytes of the tensors read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// The numbers of the tensor `name`.
    ///
    /// # Errors
    /// When it is missing or has another shape; the error names the file, the tensor and both shapes.
    pub(super) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.tensors.tensor(name, shape)?.to_f32()
    }

    /// Whether there is a matrix of logits whose numbers are not those of `words`: transformers ties no such matrix.
    ///
    /// # Errors
    /// When it is of another shape.
    pub(super) fn has_own_head(&self, words: &Tensor) -> Result<bool> {
        let name = "lm_head.weight";
        if !self.tensors.contains(name) {
            return Ok(false);
        }
        let own = self.values(name, words.dims())?;
        let words = words.flatten_all().and_then(|words| words.to_vec1::<f32>()).map_err(failed)?;
        Ok(own != words)
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let values = self.values(name, shape)?;
        self.bytes.set(self.bytes.get() + 4 * values.len() as u64);
        Tensor::from_vec(values, shape, self.device).map_err(failed)
    }

    /// `name.weight` of `[outputs, inputs]` and, if there is one, `name.bias`.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    pub(super) fn linear(&self, name: &str, shape: [usize; 2], bias: bool) -> Result<CandleLinear> {
        let weight = self.tensor(&format!("{name}.weight"), &shape)?;
        let bias = bias.then(|| self.values(&format!("{name}.bias"), &shape[..1])).transpose()?;
        CandleLinear::new(weight, bias)
    }

    /// An RMS normalization.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    pub(super) fn rms_norm(&self, name: &str, width: usize, epsilon: f32) -> Result<CandleNorm> {
        CandleNorm::new(self.values(&format!("{name}.weight"), &[width])?, epsilon, self.device)
    }
}
