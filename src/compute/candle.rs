//! The same operations on candle's tensors: any device, no fusion, one sequence after another. On the CPU it is the
//! reference that tests compare our kernels with.

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{D, DType, Device, Tensor};

use super::decoder::RopeStyle;
use super::{
    Activation, Backend, Forward, Heads, Matrix, Packed, Pass, Positions, RopeTable, Row, Rows, Weight,
};
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

    fn tensor(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        self.bytes.fetch_add(4 * values.len() as u64, Ordering::Relaxed);
        Tensor::from_vec(values, shape, &self.device).map_err(failed)
    }

    fn vector(&self, weight: &Weight) -> Result<Tensor> {
        self.tensor(weight.to_f32()?, weight.shape())
    }

    fn matrix(&self, matrix: &Matrix) -> Result<Tensor> {
        self.tensor(matrix.to_f32()?, &[matrix.rows(), matrix.columns()])
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
    /// The first half of the outputs is a gate of the second.
    gated: bool,
}

/// An RMS normalisation.
#[derive(Debug)]
pub struct Rms {
    scale: Tensor,
    epsilon: f64,
}

impl Rms {
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let square = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(square + self.epsilon)?.sqrt()?)?.broadcast_mul(&self.scale)
    }
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

    fn activated(&self, x: &Tensor, activation: Activation) -> candle_core::Result<Tensor> {
        let y = self.apply(x)?;
        let half = y.dim(1)? / 2;
        let gate = if self.gated { y.narrow(1, 0, half)? } else { y.clone() };
        let gate = match activation {
            Activation::Identity => gate,
            Activation::Gelu => gate.gelu_erf()?,
            Activation::GeluTanh => gate.gelu()?,
            Activation::Relu => gate.relu()?,
            Activation::Silu => gate.silu()?,
        };
        if self.gated { gate * y.narrow(1, half, half)? } else { Ok(gate) }
    }
}

/// The heads from `first` on, `count` of them, normalised and turned.
fn apply_rope(
    qkv: &Tensor,
    (first, count): (usize, usize),
    width: usize,
    norm: Option<&Rms>,
    turns: &RopeTable<'_>,
) -> candle_core::Result<Tensor> {
    let (length, pairs) = (qkv.dim(0)?, turns.rotary.frequencies.len());
    let mut x = qkv.narrow(1, first * width, count * width)?.reshape((length, count, width))?;
    if let Some(norm) = norm {
        x = norm.apply(&x)?;
    }
    let angles: Vec<f32> = (0..length).flat_map(|position| turns.at(position)).copied().collect();
    let angles = Tensor::from_vec(angles, (length, 1, 2 * pairs), qkv.device())?;
    let (cosines, sines) = (angles.narrow(2, 0, pairs)?, angles.narrow(2, pairs, pairs)?);
    let interleaved = turns.rotary.pairing == RopeStyle::Interleaved;
    let turned = x.narrow(2, 0, 2 * pairs)?;
    let parts = if interleaved {
        turned.reshape((length, count, pairs, 2))?.transpose(2, 3)?
    } else {
        turned.reshape((length, count, 2, pairs))?
    };
    let (a, b) = (parts.get_on_dim(2, 0)?, parts.get_on_dim(2, 1)?);
    let first = (a.broadcast_mul(&cosines)? - b.broadcast_mul(&sines)?)?;
    let second = (b.broadcast_mul(&cosines)? + a.broadcast_mul(&sines)?)?;
    let turned = Tensor::stack(&[first, second], if interleaved { 3 } else { 2 })?;
    let turned = turned.reshape((length, count, 2 * pairs))?;
    let rest = x.narrow(2, 2 * pairs, width - 2 * pairs)?;
    Tensor::cat(&[turned, rest], 2)?.reshape((length, count * width))
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
    type Rms = Rms;
    type Pass<'a> = CandlePass<'a>;

    fn table(&self, matrix: Matrix) -> Result<Tensor> {
        self.matrix(&matrix)
    }

    fn gated(&self, gate: (Matrix, Option<Weight>), up: (Matrix, Option<Weight>)) -> Result<Linear> {
        Ok(Linear { gated: true, ..self.linear(&[gate, up])? })
    }

    fn linear(&self, parts: &[(Matrix, Option<Weight>)]) -> Result<Linear> {
        let mut matrices = Vec::new();
        let mut biases = Vec::new();
        for (matrix, bias) in parts {
            matrices.push(self.matrix(matrix)?);
            biases.push(match bias {
                Some(bias) => self.vector(bias)?,
                None => Tensor::zeros(matrix.rows(), DType::F32, &self.device).map_err(failed)?,
            });
        }
        let join = || {
            let matrix = Tensor::cat(&matrices, 0)?.t()?.contiguous()?;
            Ok(Linear { matrix, bias: Tensor::cat(&biases, 0)?, gated: false })
        };
        join().map_err(failed)
    }

    fn norm(&self, scale: &Weight, shift: &Weight, epsilon: f32) -> Result<Norm> {
        Ok(Norm { scale: self.vector(scale)?, shift: self.vector(shift)?, epsilon: f64::from(epsilon) })
    }

    fn rms(&self, scale: &Weight, epsilon: f32) -> Result<Rms> {
        Ok(Rms { scale: self.vector(scale)?, epsilon: f64::from(epsilon) })
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
        positions: Option<(&Tensor, Positions)>,
        kinds: Option<&Tensor>,
    ) -> Result<Option<Tensor>> {
        if self.ids.is_empty() {
            return Ok(None);
        }
        let look_up = || {
            let device = &self.backend.device;
            let rows = |table: &Tensor, ids: &[u32]| table.index_select(&Tensor::new(ids, device)?, 0);
            let mut sum = rows(words, self.ids)?;
            if let Some((positions, numbering)) = positions {
                let numbers: Vec<u32> = numbering.of(self.ids).map(|position| position as u32).collect();
                sum = (sum + rows(positions, &numbers)?)?;
            }
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
        x.as_ref().map(|x| linear.activated(x, activation)).transpose().map_err(failed)
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

    fn windows(&self) -> usize {
        1
    }

    fn enter(&mut self, _index: usize) {}

    fn norm_linear(
        &mut self,
        x: &Option<Tensor>,
        norm: &Rms,
        linear: &Linear,
        activation: Activation,
    ) -> Result<Option<Tensor>> {
        let apply = |x: &Tensor| linear.activated(&norm.apply(x)?, activation);
        x.as_ref().map(apply).transpose().map_err(failed)
    }

    fn rotate(
        &mut self,
        qkv: Option<Tensor>,
        heads: Heads,
        norms: Option<&(Rms, Rms)>,
        turns: &RopeTable<'_>,
    ) -> Result<Option<Tensor>> {
        let Heads { heads, kv_heads, width, .. } = heads;
        let apply = |qkv: Tensor| {
            let queries = apply_rope(&qkv, (0, heads), width, norms.map(|norms| &norms.0), turns)?;
            let keys = apply_rope(&qkv, (heads, kv_heads), width, norms.map(|norms| &norms.1), turns)?;
            let values = qkv.narrow(1, (heads + kv_heads) * width, kv_heads * width)?;
            Tensor::cat(&[queries, keys, values], 1)
        };
        qkv.map(apply).transpose().map_err(failed)
    }

    fn linear_add(
        &mut self,
        x: Option<Tensor>,
        linear: &Linear,
        residual: &mut Option<Tensor>,
    ) -> Result<()> {
        if let (Some(x), Some(residual)) = (x, residual) {
            *residual = linear.apply(&x).and_then(|x| x + &*residual).map_err(failed)?;
        }
        Ok(())
    }

    fn pick(&mut self, x: Option<Tensor>, row: Row) -> Result<Option<Tensor>> {
        let pick = |x: Tensor| match row {
            Row::First => x.narrow(0, 0, 1),
            Row::Last => x.narrow(0, x.dim(0)? - 1, 1),
        };
        x.map(pick).transpose().map_err(failed)
    }

    fn rms(&mut self, x: Option<Tensor>, norm: &Rms) -> Result<Option<Tensor>> {
        x.map(|x| norm.apply(&x)).transpose().map_err(failed)
    }

    fn longest(&self) -> usize {
        self.ids.len()
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
