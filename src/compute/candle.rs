//! The same operations on candle's tensors: any device, no fusion, one sequence after another. On the CPU it is the
//! reference that tests compare our kernels with.

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{D, DType, Device, Tensor};

use super::{Activation, Backend, Forward, Heads, Packed, Pass, Positions, Rows, Weight};
use crate::{Error, Result};

/// A device of candle's, in f32.
#[derive(Debug)]
pub struct Candle {
    device: Device,
    bytes: AtomicU64,
}

impl Candle {
    /// Runs on `device`.
    pub fn new(device: Device) -> Self {
        Self { device, bytes: AtomicU64::new(0) }
    }

    fn tensor(&self, weight: &Weight) -> Result<Tensor> {
        let values = weight.to_f32();
        self.bytes.fetch_add(4 * values.len() as u64, Ordering::Relaxed);
        Tensor::from_vec(values, weight.shape(), &self.device).map_err(failed)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err asks for")]
fn failed(error: candle_core::Error) -> Error {
    Error::Internal { place: "candle".into(), reason: error.to_string() }
}

/// A linear layer's matrix, transposed, and its bias.
#[derive(Debug)]
pub struct Linear {
    matrix: Tensor,
    bias: Tensor,
}

/// A layer normalisation.
#[derive(Debug)]
pub struct Norm {
    scale: Tensor,
    shift: Tensor,
    epsilon: f64,
}

impl Norm {
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(variance + self.epsilon)?.sqrt()?)?
            .broadcast_mul(&self.scale)?
            .broadcast_add(&self.shift)
    }
}

impl Linear {
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.matmul(&self.matrix)?.broadcast_add(&self.bias)
    }
}

fn attend(qkv: &Tensor, heads: Heads) -> candle_core::Result<Tensor> {
    let Heads { heads, kv_heads, width, causal } = heads;
    let length = qkv.dim(0)?;
    let part = |first: usize, count: usize| {
        qkv.narrow(1, first * width, count * width)?
            .reshape((length, count, width))?
            .transpose(0, 1)?
            .contiguous()
    };
    let every = |x: Tensor| {
        let group = heads / kv_heads;
        x.unsqueeze(1)?.broadcast_as((kv_heads, group, length, width))?.reshape((heads, length, width))
    };
    let (query, key) = (part(0, heads)?, every(part(heads, kv_heads)?)?);
    let value = every(part(heads + kv_heads, kv_heads)?)?;
    let mut scores = (query.matmul(&key.transpose(1, 2)?.contiguous()?)? / (width as f64).sqrt())?;
    if causal {
        let hidden = |i: usize| if i % length > i / length { f32::NEG_INFINITY } else { 0.0 };
        let mask = Tensor::from_iter((0..length * length).map(hidden), qkv.device())?;
        scores = scores.broadcast_add(&mask.reshape((length, length))?)?;
    }
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
    p.matmul(&value)?.transpose(0, 1)?.reshape((length, heads * width))
}

impl Backend for Candle {
    type Table = Tensor;
    type Linear = Linear;
    type Norm = Norm;
    type Pass<'a> = CandlePass<'a>;

    fn table(&self, weight: Weight) -> Result<Tensor> {
        self.tensor(&weight)
    }

    fn linear(&self, parts: &[(Weight, Option<Weight>)]) -> Result<Linear> {
        let mut matrices = Vec::new();
        let mut biases = Vec::new();
        for (matrix, bias) in parts {
            matrices.push(self.tensor(matrix)?);
            biases.push(match bias {
                Some(bias) => self.tensor(bias)?,
                None => Tensor::zeros(matrix.rows(), DType::F32, &self.device).map_err(failed)?,
            });
        }
        let join = || {
            let matrix = Tensor::cat(&matrices, 0)?.t()?.contiguous()?;
            Ok(Linear { matrix, bias: Tensor::cat(&biases, 0)? })
        };
        join().map_err(failed)
    }

    fn norm(&self, scale: &Weight, shift: &Weight, epsilon: f32) -> Result<Norm> {
        Ok(Norm { scale: self.tensor(scale)?, shift: self.tensor(shift)?, epsilon: f64::from(epsilon) })
    }

    fn run(
        &self,
        batch: &Packed<'_>,
        width: usize,
        out: &mut [f32],
        forward: &Forward<'_, Self>,
    ) -> Result<()> {
        assert_eq!(out.len(), batch.sequences() * width, "one row of output for each sequence");
        for (range, out) in batch.ranges().zip(out.chunks_mut(width.max(1))) {
            let mut pass = CandlePass { backend: self, ids: &batch.ids[range] };
            forward(&mut pass, out)?;
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn dtype(&self) -> &'static str {
        "float32"
    }
}

/// A pass of [`Candle`] over one sequence.
#[derive(Debug)]
pub struct CandlePass<'a> {
    backend: &'a Candle,
    ids: &'a [u32],
}

impl Pass<Candle> for CandlePass<'_> {
    /// `[tokens, width]`, or nothing for an empty sequence, which candle's operations do not take.
    type States = Option<Tensor>;

    fn embed(
        &mut self,
        words: &Tensor,
        positions: (&Tensor, Positions),
        kinds: Option<&Tensor>,
    ) -> Result<Option<Tensor>> {
        if self.ids.is_empty() {
            return Ok(None);
        }
        let (positions, numbering) = positions;
        let numbers: Vec<u32> = numbering.of(self.ids).map(|position| position as u32).collect();
        let look_up = || {
            let device = &self.backend.device;
            let rows = |table: &Tensor, ids: &[u32]| table.index_select(&Tensor::new(ids, device)?, 0);
            let sum = (rows(words, self.ids)? + rows(positions, &numbers)?)?;
            match kinds {
                Some(kinds) => sum.broadcast_add(&kinds.get(0)?),
                None => Ok(sum),
            }
        };
        look_up().map(Some).map_err(|error| Error::Input(error.to_string()))
    }

    fn norm(&mut self, x: Option<Tensor>, norm: &Norm) -> Result<Option<Tensor>> {
        x.map(|x| norm.apply(&x)).transpose().map_err(failed)
    }

    fn linear(
        &mut self,
        x: &Option<Tensor>,
        linear: &Linear,
        activation: Activation,
    ) -> Result<Option<Tensor>> {
        let apply = |x: &Tensor| {
            let y = linear.apply(x)?;
            match activation {
                Activation::Identity => Ok(y),
                Activation::Gelu => y.gelu_erf(),
                Activation::GeluTanh => y.gelu(),
                Activation::Relu => y.relu(),
            }
        };
        x.as_ref().map(apply).transpose().map_err(failed)
    }

    fn linear_add_norm(
        &mut self,
        x: Option<Tensor>,
        linear: &Linear,
        residual: Option<Tensor>,
        norm: &Norm,
    ) -> Result<Option<Tensor>> {
        let both = x.zip(residual);
        both.map(|(x, residual)| norm.apply(&(linear.apply(&x)? + residual)?)).transpose().map_err(failed)
    }

    fn attention(&mut self, qkv: Option<Tensor>, heads: Heads) -> Result<Option<Tensor>> {
        qkv.map(|qkv| attend(&qkv, heads)).transpose().map_err(failed)
    }

    fn read(&mut self, x: Option<Tensor>, each: &mut dyn FnMut(usize, Rows<'_>)) -> Result<()> {
        let Some(x) = x else {
            each(0, Rows::new(&[], 1, 1));
            return Ok(());
        };
        let read = || x.flatten_all()?.to_vec1::<f32>();
        let width = x.dim(D::Minus1).map_err(failed)?;
        each(0, Rows::new(&read().map_err(failed)?, width, width));
        Ok(())
    }
}
