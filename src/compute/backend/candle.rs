//! The backend on candle's tensors: any device, no fusion, one sequence at a time. On the CPU it is the reference with
//! which tests compare the kernels.

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{D, DType, Device, Tensor};

use crate::compute::attention::heads::{Heads, LayerAttention, Mask};
use crate::compute::attention::kv_cache::CacheShape;
use crate::compute::attention::rope::{RopeStyle, RopeTable, Rotary};
use crate::compute::backend::traits::{
    Backend, CachedSequence, ForwardFn, KvCache, Pass, Positions, Row, Rows, Step, check_logits,
};
use crate::compute::kernels::activation::Activation;
use crate::compute::linear::layer::{Biased, Matrix};
use crate::compute::weight::{Packed, Weight};
use crate::{Error, Result};

/// A device of candle, with f32 tensors.
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
pub struct TensorLinear {
    matrix: Tensor,
    bias: Tensor,
    /// Whether the first half of the outputs is the gate of the second.
    gated: bool,
}

/// A normalization of rows: layer normalization with a shift, RMS normalization without.
#[derive(Debug)]
pub struct TensorNorm {
    scale: Tensor,
    shift: Option<Tensor>,
    epsilon: f64,
}

impl TensorNorm {
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = match &self.shift {
            Some(_) => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            None => x.clone(),
        };
        let square = x.sqr()?.mean_keepdim(D::Minus1)?;
        let y = x.broadcast_div(&(square + self.epsilon)?.sqrt()?)?.broadcast_mul(&self.scale)?;
        match &self.shift {
            Some(shift) => y.broadcast_add(shift),
            None => Ok(y),
        }
    }
}

/// Keys and values of one sequence: for each layer, `[tokens, kv_heads * width]` of both.
#[derive(Debug, Clone)]
pub struct TensorCache {
    layers: Vec<Option<[Tensor; 2]>>,
    len: usize,
    shape: CacheShape,
}

impl TensorCache {
    /// Appends to layer `layer` after the first `cached` tokens, and returns the keys and values of all tokens.
    fn append(&mut self, layer: usize, cached: usize, new: [Tensor; 2]) -> candle_core::Result<[Tensor; 2]> {
        let all = match &self.layers[layer] {
            Some([keys, values]) if cached > 0 => {
                let join = |old: &Tensor, new: &Tensor| Tensor::cat(&[&old.narrow(0, 0, cached)?, new], 0);
                [join(keys, &new[0])?, join(values, &new[1])?]
            }
            _ => new,
        };
        self.layers[layer] = Some(all.clone());
        Ok(all)
    }
}

impl KvCache for TensorCache {
    fn len(&self) -> usize {
        self.len
    }
    fn truncate(&mut self, len: usize) {
        self.len = len.min(self.len);
        if self.len == 0 {
            self.layers.fill(None);
        }
    }
    fn reserve(&mut self, _capacity: usize) -> Result<()> {
        Ok(())
    }
    fn fork(&self, len: usize, _capacity: usize) -> Result<Self> {
        Ok(Self { len: len.min(self.len), ..self.clone() })
    }
    fn shrink(&mut self) -> Result<()> {
        Ok(())
    }
    fn bytes(&self) -> u64 {
        bytes_of(self.shape, self.len)
    }
}

fn bytes_of(shape: CacheShape, tokens: usize) -> u64 {
    [shape.layers, shape.kv_heads, shape.width, 8]
        .into_iter()
        .fold(tokens as u64, |bytes, factor| bytes.saturating_mul(factor as u64))
}

impl TensorLinear {
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

/// Normalizes and rotates the heads from `first` on, `count` of them.
fn apply_rope(
    qkv: &Tensor,
    (first, count): (usize, usize),
    width: usize,
    norm: Option<&TensorNorm>,
    table: &RopeTable<'_>,
) -> candle_core::Result<Tensor> {
    let (length, pairs) = (qkv.dim(0)?, table.rotary.frequencies.len());
    let mut x = qkv.narrow(1, first * width, count * width)?;
    if let Some(norm) = norm.filter(|norm| norm.scale.elem_count() == count * width) {
        x = norm.apply(&x)?;
    }
    x = x.reshape((length, count, width))?;
    if let Some(norm) = norm.filter(|norm| norm.scale.elem_count() != count * width) {
        x = norm.apply(&x)?;
    }
    if pairs == 0 {
        return x.reshape((length, count * width));
    }
    let angles: Vec<f32> = (0..length).flat_map(|row| table.at(row)).copied().collect();
    let angles = Tensor::from_vec(angles, (length, 1, 2 * pairs), qkv.device())?;
    let (cosines, sines) = (angles.narrow(2, 0, pairs)?, angles.narrow(2, pairs, pairs)?);
    let interleaved = table.rotary.style == RopeStyle::Interleaved;
    let rotated = x.narrow(2, 0, 2 * pairs)?;
    let parts = if interleaved {
        rotated.reshape((length, count, pairs, 2))?.transpose(2, 3)?
    } else {
        rotated.reshape((length, count, 2, pairs))?
    };
    let (a, b) = (parts.get_on_dim(2, 0)?, parts.get_on_dim(2, 1)?);
    let first = (a.broadcast_mul(&cosines)? - b.broadcast_mul(&sines)?)?;
    let second = (b.broadcast_mul(&cosines)? + a.broadcast_mul(&sines)?)?;
    let rotated = Tensor::stack(&[first, second], if interleaved { 3 } else { 2 })?;
    let rotated = rotated.reshape((length, count, 2 * pairs))?;
    let rest = x.narrow(2, 2 * pairs, width - 2 * pairs)?;
    Tensor::cat(&[rotated, rest], 2)?.reshape((length, count * width))
}

/// Splits rows into queries, keys and values.
fn split_heads(qkv: &Tensor, heads: Heads) -> candle_core::Result<[Tensor; 3]> {
    let Heads { heads, kv_heads, width } = heads;
    let part = |first: usize, count: usize| qkv.narrow(1, first * width, count * width);
    Ok([part(0, heads)?, part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?])
}

/// Attention of the last rows of a sequence over all its keys and values.
fn attend(
    [queries, keys, values]: [&Tensor; 3],
    heads: Heads,
    layer: &LayerAttention,
) -> candle_core::Result<Tensor> {
    let Heads { heads, kv_heads, width } = heads;
    let (rows, length) = (queries.dim(0)?, keys.dim(0)?);
    let by_head =
        |x: &Tensor, count: usize| x.reshape((x.dim(0)?, count, width))?.transpose(0, 1)?.contiguous();
    let every = |x: Tensor| {
        let group = heads / kv_heads;
        x.unsqueeze(1)?.broadcast_as((kv_heads, group, length, width))?.reshape((heads, length, width))
    };
    let (query, key) = (by_head(queries, heads)?, every(by_head(keys, kv_heads)?)?);
    let value = every(by_head(values, kv_heads)?)?;
    let scale = f64::from(layer.factor(width));
    let mut scores = (query.matmul(&key.transpose(1, 2)?.contiguous()?)? * scale)?;
    if let Some(cap) = layer.soft_cap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    let (before, mask) = (length - rows, layer.mask);
    if let Some(bias) = &layer.bias {
        let all: Vec<f32> = (0..heads)
            .flat_map(|head| (before..length).flat_map(move |row| bias.row(head, row, 0, length)))
            .copied()
            .collect();
        scores = (scores + Tensor::from_vec(all, (heads, rows, length), queries.device())?)?;
    }
    if mask != Mask::FULL {
        let hidden = |i: usize| {
            let (query, key) = (before + i / length, i % length);
            let seen = key + mask.before.min(length) >= query && key <= query + mask.after.min(length);
            if seen { 0.0 } else { f32::NEG_INFINITY }
        };
        let mask = Tensor::from_iter((0..rows * length).map(hidden), queries.device())?;
        scores = scores.broadcast_add(&mask.reshape((rows, length))?)?;
    }
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
    p.matmul(&value)?.transpose(0, 1)?.reshape((rows, heads * width))
}

impl Backend for Candle {
    type Table = Tensor;
    type Linear = TensorLinear;
    type Norm = TensorNorm;
    type Cache = TensorCache;
    type Pass<'a> = CandlePass<'a>;

    fn table(&self, matrix: Matrix) -> Result<Tensor> {
        self.matrix(&matrix)
    }

    fn gated(&self, gate: Biased, up: Biased) -> Result<TensorLinear> {
        Ok(TensorLinear { gated: true, ..self.linear(&[gate, up])? })
    }

    fn linear(&self, parts: &[Biased]) -> Result<TensorLinear> {
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
            Ok(TensorLinear { matrix, bias: Tensor::cat(&biases, 0)?, gated: false })
        };
        join().map_err(failed)
    }

    fn norm(&self, scale: &Weight, shift: Option<&Weight>, epsilon: f32) -> Result<TensorNorm> {
        let shift = shift.map(|shift| self.vector(shift)).transpose()?;
        Ok(TensorNorm { scale: self.vector(scale)?, shift, epsilon: f64::from(epsilon) })
    }

    fn cache(&self, shape: CacheShape) -> TensorCache {
        TensorCache { layers: vec![None; shape.layers], len: 0, shape }
    }

    fn cache_bytes(&self, shape: CacheShape, tokens: usize) -> u64 {
        bytes_of(shape, tokens)
    }

    fn run(
        &self,
        batch: &Packed<'_>,
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        assert_eq!(out.len(), batch.sequences() * width, "one row of output for each sequence");
        let mut rows = out.chunks_mut(width.max(1));
        for (number, range) in batch.ranges().enumerate() {
            let second_type = batch.second_type(number).saturating_sub(range.start);
            let ids = &batch.ids[range];
            let mut pass = CandlePass { backend: self, ids, second_type, number, sequence: None };
            forward(&mut pass, rows.next().unwrap_or_default())?;
        }
        Ok(())
    }

    fn run_cached(
        &self,
        steps: &mut [Step<'_, TensorCache>],
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        check_logits(steps, width, out);
        let mut rows = out.chunks_mut(width.max(1));
        for step in steps {
            let row = if step.needs_logits { rows.next() } else { None };
            let sequence = CachedSequence {
                cached: step.cache.len,
                length: step.length,
                needs_logits: step.needs_logits,
                cache: step.cache,
            };
            let (ids, sequence) = (step.tokens, Some(sequence));
            let mut pass = CandlePass { backend: self, ids, second_type: usize::MAX, number: 0, sequence };
            forward(&mut pass, row.unwrap_or_default())?;
            step.cache.len += step.tokens.len();
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
    /// The token from which on tokens have type 1.
    second_type: usize,
    /// The sequence's number in the batch.
    number: usize,
    sequence: Option<CachedSequence<'a, TensorCache>>,
}

impl CandlePass<'_> {
    fn first_position(&self) -> usize {
        self.sequence.as_ref().map_or(0, |sequence| sequence.cached)
    }
}

impl Pass<Candle> for CandlePass<'_> {
    /// `[tokens, width]`, or `None` for an empty sequence, which candle's operations do not support.
    type States = Option<Tensor>;

    fn numbers(&self) -> Vec<usize> {
        vec![self.number]
    }

    fn embed(
        &mut self,
        words: &Tensor,
        positions: Option<(&Tensor, Positions)>,
        token_types: Option<&Tensor>,
    ) -> Result<Option<Tensor>> {
        if self.ids.is_empty() {
            return Ok(None);
        }
        let look_up = || {
            let device = &self.backend.device;
            let rows = |table: &Tensor, ids: &[u32]| table.index_select(&Tensor::new(ids, device)?, 0);
            let mut sum = rows(words, self.ids)?;
            if let Some((positions, scheme)) = positions {
                let first = self.first_position();
                let numbers: Vec<u32> =
                    scheme.of(self.ids).map(|position| (first + position) as u32).collect();
                sum = (sum + rows(positions, &numbers)?)?;
            }
            match token_types {
                Some(types) => {
                    let last = types.dim(0)? - 1;
                    let of = |token: usize| usize::from(token >= self.second_type).min(last) as u32;
                    let numbers: Vec<u32> = (0..self.ids.len()).map(of).collect();
                    sum + rows(types, &numbers)?
                }
                None => Ok(sum),
            }
        };
        look_up().map(Some).map_err(|error| Error::Input(error.to_string()))
    }

    fn scale(&mut self, x: Option<Tensor>, factor: f32) -> Result<Option<Tensor>> {
        x.map(|x| x * f64::from(factor)).transpose().map_err(failed)
    }

    fn norm(&mut self, x: Option<Tensor>, norm: &TensorNorm) -> Result<Option<Tensor>> {
        x.map(|x| norm.apply(&x)).transpose().map_err(failed)
    }

    fn linear(
        &mut self,
        x: &Option<Tensor>,
        linear: &TensorLinear,
        activation: Activation,
    ) -> Result<Option<Tensor>> {
        x.as_ref().map(|x| linear.activated(x, activation)).transpose().map_err(failed)
    }

    fn widen(&mut self, x: Option<Tensor>, linear: &TensorLinear) -> Result<Option<Tensor>> {
        x.map(|x| linear.apply(&x)).transpose().map_err(failed)
    }

    fn linear_add_norm(
        &mut self,
        x: Option<Tensor>,
        linear: &TensorLinear,
        residual: Option<Tensor>,
        norm: &TensorNorm,
    ) -> Result<Option<Tensor>> {
        let both = x.zip(residual);
        both.map(|(x, residual)| norm.apply(&(linear.apply(&x)? + residual)?)).transpose().map_err(failed)
    }

    fn attention(
        &mut self,
        layer: usize,
        qkv: Option<Tensor>,
        heads: Heads,
        attention: &LayerAttention,
    ) -> Result<Option<Tensor>> {
        let Some(qkv) = qkv else { return Ok(None) };
        let attended = split_heads(&qkv, heads).and_then(|[queries, keys, values]| {
            let [keys, values] = match &mut self.sequence {
                Some(sequence) => sequence.cache.append(layer, sequence.cached, [keys, values])?,
                None => [keys, values],
            };
            attend([&queries, &keys, &values], heads, attention)
        });
        attended.map(Some).map_err(failed)
    }

    fn windows(&self) -> usize {
        1
    }

    fn enter(&mut self, _index: usize) {}

    fn norm_linear(
        &mut self,
        x: &Option<Tensor>,
        norm: Option<&TensorNorm>,
        linear: &TensorLinear,
        activation: Activation,
    ) -> Result<Option<Tensor>> {
        let apply = |x: &Tensor| match norm {
            Some(norm) => linear.activated(&norm.apply(x)?, activation),
            None => linear.activated(x, activation),
        };
        x.as_ref().map(apply).transpose().map_err(failed)
    }

    fn rope<'r>(&self, rotary: &'r Rotary) -> Result<RopeTable<'r>> {
        let first = self.first_position();
        let length = self.sequence.as_ref().map_or(self.ids.len(), |sequence| sequence.length);
        let rows: Vec<_> = (first..first + self.ids.len()).map(|position| (position, length)).collect();
        RopeTable::new(rotary, rows.into_iter())
    }

    fn rotate(
        &mut self,
        qkv: Option<Tensor>,
        heads: Heads,
        norms: Option<&(TensorNorm, TensorNorm)>,
        table: &RopeTable<'_>,
    ) -> Result<Option<Tensor>> {
        let Heads { heads, kv_heads, width } = heads;
        let apply = |qkv: Tensor| {
            let mut queries = apply_rope(&qkv, (0, heads), width, norms.map(|norms| &norms.0), table)?;
            if table.rotary.query_growth.is_some() {
                let rows = qkv.dim(0)?;
                let factors: Vec<f32> = (0..rows).map(|row| table.query_factor(row)).collect();
                queries = queries.broadcast_mul(&Tensor::from_vec(factors, (rows, 1), qkv.device())?)?;
            }
            let keys = apply_rope(&qkv, (heads, kv_heads), width, norms.map(|norms| &norms.1), table)?;
            let values = qkv.narrow(1, (heads + kv_heads) * width, kv_heads * width)?;
            Tensor::cat(&[queries, keys, values], 1)
        };
        qkv.map(apply).transpose().map_err(failed)
    }

    fn linear_add(
        &mut self,
        x: Option<Tensor>,
        linear: &TensorLinear,
        norm: Option<&TensorNorm>,
        factor: f32,
        residual: &mut Option<Tensor>,
    ) -> Result<()> {
        let apply = |x: Tensor| match norm {
            Some(norm) => norm.apply(&linear.apply(&x)?),
            None => linear.apply(&x),
        };
        if let (Some(x), Some(residual)) = (x, residual) {
            let sum = apply(x).and_then(|x| (x * f64::from(factor))? + &*residual);
            *residual = sum.map_err(failed)?;
        }
        Ok(())
    }

    fn pick(&mut self, x: Option<Tensor>, row: Row) -> Result<Option<Tensor>> {
        let needed = self.sequence.as_ref().is_none_or(|sequence| sequence.needs_logits);
        let pick = |x: Tensor| match row {
            Row::First => x.narrow(0, 0, 1),
            Row::Last => x.narrow(0, x.dim(0)? - 1, 1),
        };
        x.filter(|_| needed).map(pick).transpose().map_err(failed)
    }

    fn read(
        &mut self,
        x: Option<Tensor>,
        norm: Option<&TensorNorm>,
        each: &mut dyn FnMut(usize, Rows<'_>),
    ) -> Result<()> {
        let Some(x) = normed(x, norm)? else {
            each(0, Rows::new(&[], 1, 1));
            return Ok(());
        };
        let read = || x.flatten_all()?.to_vec1::<f32>();
        let width = x.dim(D::Minus1).map_err(failed)?;
        each(0, Rows::new(&read().map_err(failed)?, width, width));
        Ok(())
    }

    fn linear_norm(
        &mut self,
        x: Option<Tensor>,
        linear: &TensorLinear,
        activation: Activation,
        norm: &TensorNorm,
    ) -> Result<Option<Tensor>> {
        let apply = |x: Tensor| norm.apply(&linear.activated(&x, activation)?);
        x.map(apply).transpose().map_err(failed)
    }

    fn read_linear(
        &mut self,
        x: &Option<Tensor>,
        linear: &TensorLinear,
        each: &mut dyn FnMut(usize, Rows<'_>),
    ) -> Result<()> {
        let product = x.as_ref().map(|x| linear.apply(x)).transpose().map_err(failed)?;
        self.read(product, None, each)
    }

    fn project(
        &mut self,
        x: Option<Tensor>,
        norm: Option<&TensorNorm>,
        linear: &TensorLinear,
        out: &mut [f32],
    ) -> Result<()> {
        if let Some(x) = normed(x, norm)? {
            let read = || linear.apply(&x)?.flatten_all()?.to_vec1::<f32>();
            out.copy_from_slice(&read().map_err(failed)?);
        }
        Ok(())
    }
}

fn normed(x: Option<Tensor>, norm: Option<&TensorNorm>) -> Result<Option<Tensor>> {
    match norm {
        Some(norm) => x.map(|x| norm.apply(&x)).transpose().map_err(failed),
        None => Ok(x),
    }
}
