//! Operations on candle's tensors.
//!
//! On the CPU, candle computes products and copies, and this crate's threads compute the functions of rows, several at once
//! in one pass over memory. On a GPU all of it is candle's.

use candle_core::{D, Device, Storage, Tensor};

pub(super) use crate::compute::backend::candle::failed;
use crate::compute::{Activation, Threads};
use crate::sync::Mutex;
use crate::{Error, Result};

/// Numbers of one task.
const TASK: usize = 1 << 13;

/// The operations on one device.
#[derive(Debug, Clone)]
pub struct Ops {
    /// Whether rows are computed by this crate's threads.
    rows: bool,
}

/// A linear layer `x Wᵀ + b`.
#[derive(Debug)]
pub(super) struct CandleLinear {
    /// `[outputs, inputs]`.
    weight: Tensor,
    bias: Option<Parameter>,
}

/// A vector in memory, and on the device.
#[derive(Debug)]
struct Parameter {
    values: Vec<f32>,
    tensor: Tensor,
}

impl Parameter {
    fn new(values: Vec<f32>, device: &Device) -> Result<Self> {
        let tensor = Tensor::from_slice(&values, values.len(), device).map_err(failed)?;
        Ok(Self { values, tensor })
    }
}

/// An RMS normalization.
#[derive(Debug)]
pub(super) struct CandleNorm {
    scale: Parameter,
    epsilon: f32,
}

/// No function.
pub(super) const IDENTITY: Activation = Activation::Identity;

impl CandleLinear {
    /// The layer of `weight`, `[outputs, inputs]`.
    pub(super) fn new(weight: Tensor, bias: Option<Vec<f32>>) -> Result<Self> {
        let bias = bias.map(|bias| Parameter::new(bias, weight.device())).transpose()?;
        Ok(Self { weight, bias })
    }
}

impl CandleNorm {
    /// The norm of rows of `scale`'s length.
    pub(super) fn new(scale: Vec<f32>, epsilon: f32, device: &Device) -> Result<Self> {
        Ok(Self { scale: Parameter::new(scale, device)?, epsilon })
    }

    /// Normalizes one row.
    fn row(&self, row: &mut [f32]) {
        let count = row.len() as f64;
        let square = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / count;
        let factor = (1.0 / (square + f64::from(self.epsilon)).sqrt()) as f32;
        row.iter_mut().zip(&self.scale.values).for_each(|(x, scale)| *x *= factor * scale);
    }

    fn composed(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let square = x.sqr()?.mean_keepdim(D::Minus1)?;
        let y = x.broadcast_div(&(square + f64::from(self.epsilon))?.sqrt()?)?;
        y.broadcast_mul(&self.scale.tensor)
    }
}

/// `function` of every number, by candle's operations.
fn composed(x: &Tensor, function: Activation) -> candle_core::Result<Tensor> {
    match function {
        Activation::Identity => Ok(x.clone()),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
        Activation::Silu => x.silu(),
        Activation::Tanh => x.tanh(),
    }
}

impl Ops {
    /// Those of `device`.
    pub(super) fn new(device: &Device) -> Self {
        Self { rows: device.is_cpu() }
    }

    /// Those of a GPU, which run on a CPU too.
    #[cfg(test)]
    pub(super) fn composed() -> Self {
        Self { rows: false }
    }

    /// Whether this crate's threads compute rows.
    pub(super) fn computes_rows(&self) -> bool {
        self.rows
    }

    /// `function(x Wᵀ + b)` of the rows of `x`.
    pub(super) fn linear(&self, x: &Tensor, linear: &CandleLinear, function: Activation) -> Result<Tensor> {
        let y = linear.weight.t().and_then(|weight| x.matmul(&weight)).map_err(failed)?;
        if linear.bias.is_none() && function == IDENTITY {
            return Ok(y);
        }
        if !self.rows {
            let y = linear.bias.as_ref().map_or_else(|| Ok(y.clone()), |bias| y.broadcast_add(&bias.tensor));
            return y.and_then(|y| composed(&y, function)).map_err(failed);
        }
        let bias = linear.bias.as_ref().map(|bias| bias.values.as_slice());
        map_rows(&y, &|_, row| {
            if let Some(bias) = bias {
                row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            }
            if function != IDENTITY {
                row.iter_mut().for_each(|x| *x = function.of(*x));
            }
        })
    }

    /// Normalizes each row.
    pub(super) fn norm(&self, x: &Tensor, norm: &CandleNorm) -> Result<Tensor> {
        match self.rows {
            true => map_rows(x, &|_, row| norm.row(row)),
            false => norm.composed(x).map_err(failed),
        }
    }

    /// The rows of the vocabulary `table` of these ids.
    ///
    /// # Errors
    /// [`Error::Input`] for an id that it does not have.
    pub(super) fn rows_of(&self, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
        let known = table.dim(0).map_err(failed)?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= known) {
            return Err(Error::Input(format!("token {id} lies outside the model's vocabulary ({known})")));
        }
        Tensor::new(ids, table.device()).and_then(|ids| table.index_select(&ids, 0)).map_err(failed)
    }

    /// `function(x Gᵀ + b) * (x Uᵀ + c)`.
    pub(super) fn gated(
        &self,
        x: &Tensor,
        gate: &CandleLinear,
        up: &CandleLinear,
        function: Activation,
    ) -> Result<Tensor> {
        let gate = self.linear(x, gate, function)?;
        self.multiply(&self.linear(x, up, IDENTITY)?, &gate)
    }

    /// `x * y`, number by number.
    pub(super) fn multiply(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        if !self.rows {
            return (x * y).map_err(failed);
        }
        let width = y.dim(D::Minus1).map_err(failed)?;
        with_values(y, |other| {
            map_rows(x, &|index, row| {
                row.iter_mut().zip(&other[index * width..]).for_each(|(x, y)| *x *= y);
            })
        })
    }

    /// `x + y`.
    pub(super) fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        if !self.rows {
            return (x + y).map_err(failed);
        }
        let width = y.dim(D::Minus1).map_err(failed)?;
        with_values(y, |other| {
            map_rows(x, &|index, row| {
                row.iter_mut().zip(&other[index * width..]).for_each(|(x, y)| *x += y);
            })
        })
    }
}

/// The weights of attention of one row of scores: `softmax(scale · row)`.
pub(super) fn softmax_row(row: &mut [f32], scale: f32) {
    let most = row.iter().fold(f32::NEG_INFINITY, |most, &x| if x > most || x.is_nan() { x } else { most });
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = ((*x - most) * scale).exp();
        sum += *x;
    }
    row.iter_mut().for_each(|x| *x /= sum);
}

/// The same of the rows of a tensor, by candle's operations.
pub(super) fn softmax_composed(scores: &Tensor, scale: f32) -> candle_core::Result<Tensor> {
    let scores = (scores * f64::from(scale))?;
    let powers = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
}

/// `each` of every row of `x`, with its number, on this crate's threads.
pub(super) fn map_rows(x: &Tensor, each: &(dyn Fn(usize, &mut [f32]) + Sync)) -> Result<Tensor> {
    let width = x.dim(D::Minus1).map_err(failed)?;
    let mut values = x.flatten_all().and_then(|x| x.to_vec1::<f32>()).map_err(failed)?;
    let rows = (TASK / width.max(1)).max(1);
    let parts: Vec<_> = values.chunks_mut((rows * width).max(1)).map(Mutex::new).collect();
    Threads::global().run(parts.len(), &|part| {
        for (index, row) in parts[part].lock().chunks_exact_mut(width).enumerate() {
            each(part * rows + index, row);
        }
    })?;
    drop(parts);
    Tensor::from_vec(values, x.dims(), x.device()).map_err(failed)
}

/// The numbers of a tensor on the CPU.
pub(super) fn with_values<T>(x: &Tensor, work: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let x = x.contiguous().map_err(failed)?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(values) = &*storage else {
        return Err(Error::Internal { place: "candle".into(), reason: "a tensor is not on the CPU".into() });
    };
    let (start, count) = (layout.start_offset(), layout.shape().elem_count());
    work(&values.as_slice::<f32>().map_err(failed)?[start..start + count])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(rows: usize, width: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
        Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
    }

    fn worst(a: &Tensor, b: &Tensor) -> f32 {
        let [a, b] = [a, b].map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        assert_eq!(a.len(), b.len());
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// Rows by threads give what candle's own operations give. 700 rows are several tasks.
    #[test]
    fn both_ways_agree() {
        let (own, other) = (Ops::new(&Device::Cpu), Ops::composed());
        let functions = [
            Activation::Identity,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Relu,
            Activation::Silu,
            Activation::Tanh,
        ];
        let vector = |width: usize| (0..width).map(|i| 0.5 + i as f32 / width as f32).collect::<Vec<_>>();
        for (rows, width) in [(1, 7), (5, 48), (700, 33)] {
            let x = tensor(rows, width);
            let linear = CandleLinear::new(tensor(19, width), Some(vector(19))).unwrap();
            for function in functions {
                let found = own.linear(&x, &linear, function).unwrap();
                assert!(worst(&found, &other.linear(&x, &linear, function).unwrap()) < 2e-5, "{function:?}");
            }
            let norm = CandleNorm::new(vector(width), 1e-5, &Device::Cpu).unwrap();
            assert!(worst(&own.norm(&x, &norm).unwrap(), &other.norm(&x, &norm).unwrap()) < 1e-5);
            let found = map_rows(&x, &|_, row| softmax_row(row, 0.7)).unwrap();
            assert!(worst(&found, &softmax_composed(&x, 0.7).unwrap()) < 1e-6);
        }
    }

    #[test]
    fn not_a_number_stays() {
        let mut row = [1.0, f32::NAN, 0.0];
        softmax_row(&mut row, 1.0);
        assert!(row.iter().all(|x| x.is_nan()));
    }
}
