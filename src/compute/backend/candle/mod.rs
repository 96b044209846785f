//! The backend on candle's tensors: any device, no fusion, one sequence at a time. On the CPU it is the reference with
//! which tests compare the kernels.

mod attention;
mod device;
mod pass;
mod tensors;

use std::sync::atomic::Ordering;

use candle_core::{DType, Tensor};

pub use self::device::Candle;
use self::device::failed;
pub use self::pass::CandlePass;
use self::tensors::bytes_of;
pub use self::tensors::{TensorCache, TensorLinear, TensorNorm};
use crate::Result;
use crate::compute::attention::kv_cache::CacheShape;
use crate::compute::backend::traits::{Backend, CachedSequence, ForwardFn, Step, check_logits};
use crate::compute::linear::layer::{Biased, Matrix};
use crate::compute::weight::{Packed, Weight};

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
            let hidden = batch.hidden.get(number).map_or(0, |&hidden| hidden as usize);
            let mut pass = CandlePass { backend: self, ids, second_type, hidden, number, sequence: None };
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
            let mut pass =
                CandlePass { backend: self, ids, second_type: usize::MAX, hidden: 0, number: 0, sequence };
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
