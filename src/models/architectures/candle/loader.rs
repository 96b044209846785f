//! The tensors of a model on a device.

use std::cell::Cell;

use candle_core::{Device, Tensor};

use super::ops::{CandleLinear, CandleNorm, failed};
use crate::Result;
use crate::models::architectures::tensors::Tensors;

/// Reads the tensors of one model. Their names may have a prefix: that of a model with a head.
pub struct TensorLoader<'a> {
    tensors: &'a dyn Tensors,
    prefix: &'static str,
    device: &'a Device,
    bytes: Cell<u64>,
}

impl<'a> TensorLoader<'a> {
    /// Those of `tensors`, without a prefix.
    pub(super) fn new(tensors: &'a dyn Tensors, device: &'a Device) -> Self {
        Self { tensors, prefix: "", device, bytes: Cell::new(0) }
    }

    /// Those of the first prefix under which there is a tensor `probe`.
    pub(super) fn scoped(&mut self, probe: &str, prefixes: &[&'static str]) {
        let known = |prefix: &&&str| self.tensors.contains(&format!("{prefix}{probe}"));
        self.prefix = prefixes.iter().find(known).copied().unwrap_or_default();
    }

    pub(super) fn device(&self) -> &Device {
        self.device
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
        self.tensors.tensor(&format!("{}{name}", self.prefix), shape)?.to_f32()
    }

    /// Whether there is a matrix of logits whose numbers are not those of `words`: transformers ties no such matrix.
    ///
    /// # Errors
    /// When it is of another shape.
    pub(super) fn has_own_head(&self, words: &Tensor) -> Result<bool> {
        let name = "lm_head.weight";
        if !self.tensors.contains(&format!("{}{name}", self.prefix)) {
            return Ok(false);
        }
        let own = self.values(name, words.dims())?;
        let words = words.flatten_all().and_then(|words| words.to_vec1::<f32>()).map_err(failed)?;
        Ok(own != words)
    }

    /// Counts a tensor that stays in memory.
    pub(super) fn count(&self, tensor: &Tensor) {
        self.bytes.set(self.bytes.get() + 4 * tensor.elem_count() as u64);
    }

    /// The tensor `name`, for what is computed from it: it does not stay in memory.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    pub(super) fn passing(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Tensor::from_vec(self.values(name, shape)?, shape, self.device).map_err(failed)
    }

    /// A layer for what is computed with it: it does not stay in memory.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    pub(super) fn passing_linear(&self, name: &str, shape: [usize; 2]) -> Result<CandleLinear> {
        let bias = self.values(&format!("{name}.bias"), &shape[..1])?;
        CandleLinear::new(self.passing(&format!("{name}.weight"), &shape)?, Some(bias))
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.passing(name, shape)?;
        self.count(&tensor);
        Ok(tensor)
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
        CandleNorm::new(self.values(&format!("{name}.weight"), &[width])?, None, epsilon, self.device)
    }

    /// A layer normalization. Old files call its parameters gamma and beta.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    pub(super) fn layer_norm(&self, name: &str, width: usize, epsilon: f32) -> Result<CandleNorm> {
        let old = self.tensors.contains(&format!("{}{name}.gamma", self.prefix));
        let (scale, shift) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let scale = self.values(&format!("{name}.{scale}"), &[width])?;
        let shift = self.values(&format!("{name}.{shift}"), &[width])?;
        CandleNorm::new(scale, Some(shift), epsilon, self.device)
    }
}
