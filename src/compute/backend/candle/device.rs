//! A device, and how weights become tensors on it.

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{Device, Tensor};

use crate::compute::linear::layer::Matrix;
use crate::compute::weight::Weight;
use crate::{Error, Result};

/// A device of candle, with f32 tensors.
#[derive(Debug)]
pub struct Candle {
    pub(super) device: Device,
    pub(super) bytes: AtomicU64,
}

impl Candle {
    /// Runs on `device`.
    pub fn new(device: Device) -> Self {
        Self { device, bytes: AtomicU64::new(0) }
    }

    pub(super) fn tensor(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        self.bytes.fetch_add(4 * values.len() as u64, Ordering::Relaxed);
        Tensor::from_vec(values, shape, &self.device).map_err(failed)
    }

    pub(super) fn vector(&self, weight: &Weight) -> Result<Tensor> {
        self.tensor(weight.to_f32()?, weight.shape())
    }

    pub(super) fn matrix(&self, matrix: &Matrix) -> Result<Tensor> {
        self.tensor(matrix.to_f32()?, &[matrix.rows(), matrix.columns()])
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err asks for")]
pub(super) fn failed(error: candle_core::Error) -> Error {
    Error::Internal { place: "candle".into(), reason: error.to_string() }
}
