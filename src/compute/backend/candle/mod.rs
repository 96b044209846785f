//! The backend on candle's tensors: any device, no fusion. The tokens of a batch go through its layers together; in their
//! attention, sequences of similar length are padded to the longest. On the CPU it is the reference with which tests
//! compare the kernels.

mod attention;
mod delta_rule;
pub(super) mod device;
mod experts;
#[cfg(test)]
mod faults;
mod groups;
mod pass;
mod tensors;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use candle_core::{DType, Tensor};

pub use self::delta_rule::TensorDeltaRule;
pub(crate) use self::device::failed;
pub use self::device::{Candle, CandleDevice, Relief};
pub use self::pass::CandlePass;
use self::tensors::bytes_of;
pub use self::tensors::{TensorCache, TensorLinear, TensorNorm, TensorRelative, TensorShortConvolution};
use crate::Result;
use crate::compute::attention::heads::Heads;
use crate::compute::attention::kv_cache::CacheShape;
use crate::compute::attention::relative::{RelativeLayers, RelativeTable};
use crate::compute::backend::parts::{BatchParts, retried};
use crate::compute::backend::rows::PassRows;
use crate::compute::backend::traits::{Backend, ForwardFn, Step, check_logits};
use crate::compute::batch::PackedBatch;
use crate::compute::delta_rule::DeltaRuleFactors;
use crate::compute::isa::Isa;
use crate::compute::linear::joined::JoinedLinear;
use crate::compute::linear::layer::{Biased, Matrix};
use crate::compute::short_convolution::ShortConvolutionFactors;
use crate::compute::weight::Weight;

/// Tokens that go through the layers together at most; a longer sequence goes alone.
const PART_TOKENS: usize = 16 << 10;

impl Backend for Candle {
    type Table = Tensor;
    type Linear = TensorLinear;
    type Norm = TensorNorm;
    type Relative = TensorRelative;
    type ShortConvolution = TensorShortConvolution;
    type DeltaRule = TensorDeltaRule;
    type Cache = TensorCache;
    type Pass<'a> = CandlePass<'a>;

    fn table(&self, matrix: Matrix) -> Result<Tensor> {
        self.matrix(&matrix)
    }

    fn gated(&self, gate: Biased, up: Biased) -> Result<TensorLinear> {
        Ok(TensorLinear { gated: true, ..self.linear(&[gate, up])? })
    }

    fn linear(&self, parts: &[Biased]) -> Result<TensorLinear> {
        let JoinedLinear { bias, outputs, .. } = JoinedLinear::of(parts)?;
        let matrices: Vec<_> = parts.iter().map(|(matrix, _)| self.operand(matrix)).collect::<Result<_>>()?;
        let matrix = Tensor::cat(&matrices, 0).and_then(|matrix| matrix.t()?.contiguous());
        let bias = match bias {
            Some(bias) => self.tensor(bias, &[outputs])?,
            None => Tensor::zeros(outputs, DType::F32, &self.on.device).map_err(failed)?,
        };
        Ok(TensorLinear { matrix: matrix.map_err(failed)?, bias, gated: false })
    }

    fn exact_linear(&self, (matrix, bias): &Biased) -> Result<TensorLinear> {
        let bias = match bias {
            Some(bias) => self.vector(bias)?,
            None => Tensor::zeros(matrix.rows(), DType::F32, &self.on.device).map_err(failed)?,
        };
        let matrix = self.matrix(matrix)?.t().and_then(|matrix| matrix.contiguous()).map_err(failed)?;
        Ok(TensorLinear { matrix, bias, gated: false })
    }

    fn norm(&self, scale: &Weight, shift: Option<&Weight>, epsilon: f32) -> Result<TensorNorm> {
        let shift = shift.map(|shift| self.vector(shift)).transpose()?;
        Ok(TensorNorm { scale: self.vector(scale)?, shift, epsilon: f64::from(epsilon) })
    }

    fn relative(
        &self,
        table: &RelativeTable,
        layers: &RelativeLayers,
        heads: Heads,
    ) -> Result<TensorRelative> {
        let Heads { heads, width, .. } = heads;
        let made = |layer: &Option<Biased>| {
            let Some(layer) = layer else { return Ok(None) };
            let rows = self.tensor(table.made(Isa::best(), layer)?, &[table.rows.count(), heads, width])?;
            rows.transpose(0, 1).and_then(|rows| rows.contiguous()).map(Some).map_err(failed)
        };
        Ok(TensorRelative {
            content_to_position: made(&layers.content_to_position)?,
            position_to_content: made(&layers.position_to_content)?,
            rows: Arc::clone(&table.rows),
        })
    }

    fn short_convolution(&self, factors: &ShortConvolutionFactors) -> Result<TensorShortConvolution> {
        let columns = factors.factors.rows();
        let row = |row: &[f32]| self.tensor(row.to_vec(), &[1, columns]);
        let shift = factors.shift.as_ref().map(Weight::to_f32).transpose()?;
        Ok(TensorShortConvolution {
            factors: factors.by_row()?.chunks_exact(columns).map(row).collect::<Result<_>>()?,
            shift: shift.map(|shift| row(&shift)).transpose()?,
            before: factors.before,
        })
    }

    fn delta_rule(&self, factors: &DeltaRuleFactors) -> Result<TensorDeltaRule> {
        TensorDeltaRule::new(self, factors)
    }

    fn cache(&self, shape: CacheShape) -> TensorCache {
        // Of each layer with a delta rule, rows and states.
        let earlier = vec![Vec::new(); shape.short_convolutions.layers + 2 * shape.delta_rules.layers];
        TensorCache { layers: vec![None; shape.layers + shape.others.layers], earlier, len: 0, shape }
    }

    fn cache_bytes(&self, shape: CacheShape, tokens: usize) -> u64 {
        bytes_of(shape, tokens)
    }

    fn run(
        &self,
        batch: &PackedBatch<'_>,
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        let parts = BatchParts { on: &self.on, batch, width, most_tokens: PART_TOKENS };
        parts.run(out, &mut |part, out| {
            let mut pass = CandlePass::new(self, part, None);
            let done = forward(&mut pass, out);
            (done, !pass.delivered)
        })
    }

    fn run_cached(
        &self,
        steps: &mut [Step<'_, TensorCache>],
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()> {
        check_logits(steps, width, out);
        let mut rest = out;
        for step in steps {
            let (own, others) = std::mem::take(&mut rest).split_at_mut(step.logits * width);
            rest = others;
            // A cache's tokens count once a pass has ended, so that one which failed can begin again.
            retried(&self.on, || {
                let rows = PassRows::of_steps(std::slice::from_ref(step), |cache| cache.len);
                let mut pass = CandlePass::new(self, rows, Some(step.cache));
                let done = forward(&mut pass, own);
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
