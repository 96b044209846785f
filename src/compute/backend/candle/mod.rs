//! The backend on candle's tensors: any device, no fusion. The tokens of a batch go through its layers together; in their
//! attention, sequences of similar length are padded to the longest. On the CPU it is the reference with which tests
//! compare the kernels.

mod attention;
mod device;
#[cfg(test)]
mod faults;
mod pass;
mod sequences;
mod tensors;

use std::ops::Range;
use std::sync::atomic::Ordering;

use candle_core::{DType, Tensor};

pub(crate) use self::device::failed;
pub use self::device::{Candle, CandleDevice, Relief};
pub use self::pass::CandlePass;
use self::sequences::SequenceRows;
use self::tensors::bytes_of;
pub use self::tensors::{TensorCache, TensorLinear, TensorNorm};
use crate::compute::attention::kv_cache::CacheShape;
use crate::compute::backend::traits::{Backend, CachedSequence, ForwardFn, Step, check_logits};
use crate::compute::linear::layer::{Biased, Matrix};
use crate::compute::weight::{Packed, Weight};
use crate::{Error, Result};

/// Tokens that go through the layers together at most; a longer sequence goes alone.
const PART_TOKENS: usize = 16 << 10;

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
            matrices.push(self.factor(matrix)?);
            biases.push(match bias {
                Some(bias) => self.vector(bias)?,
                None => Tensor::zeros(matrix.rows(), DType::F32, &self.on.device).map_err(failed)?,
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
        let mut first = 0;
        while first < batch.sequences() {
            let start = batch.offsets[first] as usize;
            let fits = |&end: &usize| batch.offsets[end] as usize - start <= PART_TOKENS;
            let end = (first + 1..=batch.sequences()).take_while(fits).last().unwrap_or(first + 1);
            self.run_part(batch, first..end, width, &mut out[first * width..end * width], forward)?;
            first = end;
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
            let row = row.unwrap_or_default();
            // A cache's tokens count once a pass has ended, so that one which failed can begin again.
            self.retried(|| {
                let cached = CachedSequence {
                    cached: step.cache.len,
                    length: step.length,
                    needs_logits: step.needs_logits,
                    cache: step.cache,
                };
                let sequences = SequenceRows::of_one(step.tokens.len());
                let mut pass = CandlePass {
                    backend: self,
                    ids: step.tokens,
                    second_types: Vec::new(),
                    first: 0,
                    sequences,
                    cached: Some(cached),
                    delivered: false,
                };
                let done = forward(&mut pass, row);
                (done, !pass.delivered)
            })?;
            step.cache.len += step.tokens.len();
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn device_bytes(&self) -> u64 {
        self.memory_bytes()
    }

    fn dtype(&self) -> &'static str {
        if self.on.bf16 { "bfloat16" } else { "float32" }
    }
}

impl Candle {
    /// Runs `forward` on the sequences `part` of `batch`. Where the device's memory does not suffice, their halves are tried.
    fn run_part(
        &self,
        batch: &Packed<'_>,
        part: Range<usize>,
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        let start = batch.offsets[part.start] as usize;
        let ranges = || part.clone().map(|number| batch.range(number));
        let mut can_begin_again = true;
        let done = self.retried(|| {
            let hidden = |number| batch.hidden.get(number).map_or(0, |&hidden| hidden as usize);
            let rows = ranges().map(|range| range.start - start..range.end - start).collect();
            let mut pass = CandlePass {
                backend: self,
                ids: &batch.ids[start..batch.offsets[part.end] as usize],
                second_types: part
                    .clone()
                    .map(|number| batch.second_type(number).saturating_sub(batch.offsets[number] as usize))
                    .collect(),
                first: part.start,
                sequences: SequenceRows::new(rows, part.clone().map(hidden).collect()),
                cached: None,
                delivered: false,
            };
            let done = forward(&mut pass, out);
            can_begin_again = !pass.delivered;
            (done, can_begin_again)
        });
        match done {
            Err(Error::DeviceMemory { .. }) if can_begin_again && part.len() > 1 => {
                let middle = part.start + part.len() / 2;
                log::debug!("{}: half of {} sequences at a time", self.on.name, part.len());
                let (first, second) = out.split_at_mut((middle - part.start) * width);
                self.run_part(batch, part.start..middle, width, first, forward)?;
                self.run_part(batch, middle..part.end, width, second, forward)
            }
            done => done,
        }
    }

    /// Calls `pass`, and again as long as it may begin again, lacks memory, and memory was freed for it.
    fn retried(&self, mut pass: impl FnMut() -> (Result<()>, bool)) -> Result<()> {
        loop {
            let (done, can_begin_again) = pass();
            match done {
                Err(Error::DeviceMemory { .. }) if can_begin_again && self.on.relieve() => {}
                Err(error) => return Err(self.on.described(error)),
                Ok(()) => return Ok(()),
            }
        }
    }
}
