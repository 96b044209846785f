//! The backend on NVIDIA's cards: cuBLASLt multiplies, and the kernels of this folder do the rest.
//!
//! The tokens of a batch lie one after the other without padding. Each operation of a pass is one or two kernels, queued on
//! the pass's own stream. Two passes at a time keep the card at work while one of them copies.
//!
//! With bfloat16, the operands of products and the states between layers are bfloat16; sums, norms, scores, and what blocks
//! of norm-first models add to are float32.

mod attention;
mod cache;
mod card;
mod device;
mod failure;
mod gemm;
mod gemm_shape;
mod launch;
mod layers;
mod memory;
mod pass;
mod tensors;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use half::bf16;

pub use self::cache::CudaCache;
use self::cache::cache_bytes;
pub use self::device::Cuda;
pub use self::pass::CudaPass;
pub use self::tensors::{CudaLinear, CudaNorm, CudaStates, CudaTable};
use super::parts::{BatchParts, retried};
use super::rows::PassRows;
use super::traits::{Backend, ForwardFn, Step, check_logits, lacking};
use crate::compute::attention::heads::Heads;
use crate::compute::attention::kv_cache::CacheShape;
use crate::compute::attention::relative::{RelativeLayers, RelativeTable};
use crate::compute::batch::PackedBatch;
use crate::compute::delta_rule::DeltaRuleFactors;
use crate::compute::isa::DType;
use crate::compute::linear::joined::JoinedLinear;
use crate::compute::linear::layer::{Biased, Matrix};
use crate::compute::short_convolution::ShortConvolutionFactors;
use crate::compute::weight::Weight;
use crate::{Error, Result};

/// Layers with more outputs for each input make logits: of few rows.
const WIDEST: usize = 16;

impl Cuda {
    /// Runs `forward` on some steps. Where the card's memory does not suffice, their halves are tried.
    fn run_steps(
        &self,
        steps: &mut [Step<'_, CudaCache>],
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        let mut can_begin_again = true;
        // A cache's tokens count once a pass has ended, so that one which failed can begin again.
        let done = retried(&self.on, || {
            let rows = PassRows::of_steps(steps, |cache| cache.len);
            let caches = steps.iter_mut().map(|step| &mut *step.cache).collect();
            let done = CudaPass::new(self, rows, Some(caches)).and_then(|mut pass| {
                let done = forward(&mut pass, out).and_then(|()| pass.lane.wait());
                can_begin_again = !pass.delivered;
                done
            });
            (done, can_begin_again)
        });
        match done {
            Err(Error::DeviceMemory { .. }) if can_begin_again && steps.len() > 1 => {
                let half = steps.len() / 2;
                let [(first, first_out), (second, second_out)] = split_steps(steps, out, width, half);
                self.run_steps(first, width, first_out, forward)?;
                self.run_steps(second, width, second_out, forward)
            }
            Ok(()) => {
                steps.iter_mut().for_each(|step| step.cache.len += step.tokens.len());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Steps, and their rows of output.
type StepsAndRows<'s, 'c, 'o> = (&'s mut [Step<'c, CudaCache>], &'o mut [f32]);

/// The first `count` steps and the others, each with the rows of the tokens that need logits.
fn split_steps<'s, 'c, 'o>(
    steps: &'s mut [Step<'c, CudaCache>],
    out: &'o mut [f32],
    width: usize,
    count: usize,
) -> [StepsAndRows<'s, 'c, 'o>; 2] {
    let (first, second) = steps.split_at_mut(count);
    let logits: usize = first.iter().map(|step| step.logits).sum();
    let (first_out, second_out) = out.split_at_mut(logits * width);
    [(first, first_out), (second, second_out)]
}

impl Backend for Cuda {
    type Table = CudaTable;
    type Linear = CudaLinear;
    type Norm = CudaNorm;
    /// There are no kernels for it: models with such attention run on the operations of candle.
    type Relative = Infallible;
    type ShortConvolution = Infallible;
    type DeltaRule = Infallible;
    type Cache = CudaCache;
    type Pass<'a> = CudaPass<'a>;

    fn table(&self, matrix: Matrix) -> Result<CudaTable> {
        let memory = Arc::new(self.matrices(&[&matrix])?);
        if let Some(place) = matrix.place() {
            self.tables.lock().push((place, Arc::clone(&memory)));
        }
        Ok(CudaTable { memory, rows: matrix.rows(), width: matrix.columns() })
    }

    fn linear(&self, parts: &[Biased]) -> Result<CudaLinear> {
        let JoinedLinear { bias, inputs, outputs } = JoinedLinear::of(parts)?;
        let bias = match bias {
            Some(bias) => {
                let halves: Vec<bf16> = bias.iter().map(|&value| bf16::from_f32(value)).collect();
                Some([self.kept(&bias)?, self.kept(&halves)?])
            }
            None => None,
        };
        if outputs <= WIDEST * inputs {
            self.widest.fetch_max(outputs.max(inputs), Ordering::Relaxed);
        }
        let matrices: Vec<&Matrix> = parts.iter().map(|(matrix, _)| matrix).collect();
        let known = match matrices[..] {
            [matrix] => self.table_of(matrix),
            _ => None,
        };
        let matrix = match known {
            Some(known) => known,
            None => Arc::new(self.matrices(&matrices)?),
        };
        Ok(CudaLinear { matrix, bias, inputs, outputs, gated: false })
    }

    fn gated(&self, gate: Biased, up: Biased) -> Result<CudaLinear> {
        Ok(CudaLinear { gated: true, ..self.linear(&[gate, up])? })
    }

    fn norm(&self, scale: &Weight, shift: Option<&Weight>, epsilon: f32) -> Result<CudaNorm> {
        let length = scale.shape().iter().product();
        let shift = shift.map(|shift| self.vector(shift)).transpose()?;
        Ok(CudaNorm { scale: self.vector(scale)?, shift, epsilon, length })
    }

    fn relative(
        &self,
        _table: &RelativeTable,
        _layers: &RelativeLayers,
        _heads: Heads,
    ) -> Result<Infallible> {
        Err(lacking("attention with relative positions"))
    }

    fn short_convolution(&self, _factors: &ShortConvolutionFactors) -> Result<Infallible> {
        Err(lacking("a convolution of gated rows"))
    }

    fn delta_rule(&self, _factors: &DeltaRuleFactors) -> Result<Infallible> {
        Err(lacking("a gated delta rule"))
    }

    fn cache(&self, shape: CacheShape) -> CudaCache {
        let card = Arc::clone(&self.card);
        CudaCache { card, format: self.format, shape, len: 0, capacity: 0, memory: None }
    }

    fn cache_bytes(&self, shape: CacheShape, tokens: usize) -> u64 {
        cache_bytes(shape, self.format, tokens)
    }

    fn run(
        &self,
        batch: &PackedBatch<'_>,
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        let parts = BatchParts { on: &self.on, batch, width, most_tokens: self.part_tokens() };
        parts.run(out, &mut |part, out| {
            let mut pass = match CudaPass::new(self, part, None) {
                Ok(pass) => pass,
                Err(error) => return (Err(error), true),
            };
            let done = forward(&mut pass, out);
            (done, !pass.delivered)
        })
    }

    fn run_cached(
        &self,
        steps: &mut [Step<'_, CudaCache>],
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        check_logits(steps, width, out);
        let (mut steps, mut out) = (steps, out);
        while !steps.is_empty() {
            let mut tokens = 0;
            let fits = |step: &&Step<'_, CudaCache>| {
                tokens += step.tokens.len();
                tokens <= self.part_tokens()
            };
            let count = steps.iter().take_while(fits).count().max(1);
            let [(now, rows), later] = split_steps(steps, out, width, count);
            self.run_steps(now, width, rows, forward)?;
            (steps, out) = later;
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
        match self.format {
            DType::F32 => "float32",
            DType::Bf16 => "bfloat16",
        }
    }
}

#[cfg(test)]
mod tests;
