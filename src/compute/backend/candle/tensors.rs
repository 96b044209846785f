//! Linear layers, normalizations and caches of keys and values as tensors.

use std::sync::Arc;

use candle_core::{D, DType, Tensor};

use crate::Result;
use crate::compute::attention::kv_cache::CacheShape;
use crate::compute::attention::relative::DistanceRows;
use crate::compute::backend::traits::KvCache;
use crate::compute::delta_rule::DeltaRuleShape;
use crate::compute::kernels::activation::Activation;

/// A linear layer's matrix, transposed, and its bias.
#[derive(Debug)]
pub struct TensorLinear {
    pub(super) matrix: Tensor,
    pub(super) bias: Tensor,
    /// Whether the first half of the outputs is the gate of the second.
    pub(super) gated: bool,
}

/// A normalization of rows: layer normalization with a shift, RMS normalization without.
#[derive(Debug)]
pub struct TensorNorm {
    pub(super) scale: Tensor,
    pub(super) shift: Option<Tensor>,
    pub(super) epsilon: f64,
}

impl TensorNorm {
    /// The same normalization of heads of `width` values, each with its own parameters where there are so many.
    pub(super) fn by_head(&self, width: usize) -> candle_core::Result<Self> {
        let split = |values: &Tensor| values.reshape((values.elem_count() / width, width));
        let shift = self.shift.as_ref().map(split).transpose()?;
        Ok(Self { scale: split(&self.scale)?, shift, epsilon: self.epsilon })
    }

    pub(super) fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
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

/// Relative positions of one layer: `[heads, rows, width]` of both kinds of rows.
#[derive(Debug)]
pub struct TensorRelative {
    pub(super) rows: Arc<DistanceRows>,
    pub(super) content_to_position: Option<Tensor>,
    pub(super) position_to_content: Option<Tensor>,
}

/// A convolution: for each row that an output sees, the factors of its columns, `[1, columns]`.
#[derive(Debug)]
pub struct TensorShortConvolution {
    pub(super) factors: Vec<Tensor>,
    pub(super) shift: Option<Tensor>,
    pub(super) before: usize,
}

impl TensorShortConvolution {
    /// The outputs for the rows of a sequence, and the gated rows that later rows see. `earlier` are those before, if there
    /// are any.
    pub(super) fn apply(
        &self,
        x: &Tensor,
        earlier: Option<&Tensor>,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        let (rows, columns) = (x.dim(0)?, x.dim(1)? / 3);
        let part = |number: usize| x.narrow(1, number * columns, columns);
        let gated = (part(0)? * part(2)?)?;
        let seen = match earlier {
            Some(earlier) => Tensor::cat(&[earlier, &gated], 0)?,
            None => gated.pad_with_zeros(0, self.before, 0)?,
        };
        let later = seen.narrow(0, rows, self.before)?.force_contiguous()?;
        Ok(((self.sum(&seen, rows)? * part(1)?)?, later))
    }

    /// The outputs for all rows of a sequence, without gates.
    pub(super) fn without_gates(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.sum(&x.pad_with_zeros(0, self.before, 0)?, x.dim(0)?)
    }

    /// The sums of `rows` rows; `seen` begins with the first row that the first of them sees.
    pub(super) fn sum(&self, seen: &Tensor, rows: usize) -> candle_core::Result<Tensor> {
        let seen = seen.pad_with_zeros(0, 0, self.factors.len() - 1 - self.before)?;
        let shape = (rows, seen.dim(1)?);
        let mut sum = match &self.shift {
            Some(shift) => shift.broadcast_as(shape)?.contiguous()?,
            None => Tensor::zeros(shape, seen.dtype(), seen.device())?,
        };
        for (row, factors) in self.factors.iter().enumerate() {
            sum = (sum + seen.narrow(0, row, rows)?.broadcast_mul(factors)?)?;
        }
        Ok(sum)
    }
}

/// Keys and values of one sequence: for each layer, `[tokens, kv_heads * width]` of both.
#[derive(Debug, Clone)]
pub struct TensorCache {
    pub(super) layers: Vec<Option<[Tensor; 2]>>,
    /// For each layer with a convolution, the gated rows before some positions: those where the sequence ends, and those that
    /// a pass has reached. For each with a delta rule, the rows before its convolution, and the states.
    pub(super) earlier: Vec<Vec<(usize, Tensor)>>,
    pub(super) len: usize,
    pub(super) shape: CacheShape,
}

impl TensorCache {
    /// Appends to layer `layer` after the first `cached` tokens, and returns the keys and values of all tokens.
    pub(super) fn append(
        &mut self,
        layer: usize,
        cached: usize,
        new: [Tensor; 2],
    ) -> candle_core::Result<[Tensor; 2]> {
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

    /// The gated rows of convolution `layer` before `position`.
    pub(super) fn rows_before(&self, layer: usize, position: usize) -> Option<&Tensor> {
        self.earlier[layer].iter().find(|(end, _)| *end == position).map(|(_, rows)| rows)
    }

    /// Keeps those before `end`, and of others those before `cached`, which a pass that fails begins at again.
    pub(super) fn keep_rows(&mut self, layer: usize, cached: usize, end: usize, rows: Tensor) {
        self.earlier[layer].retain(|(end, _)| *end == cached);
        self.earlier[layer].push((end, rows));
    }
}

impl KvCache for TensorCache {
    fn len(&self) -> usize {
        self.len
    }
    fn cut(&self, len: usize) -> usize {
        let known = || (0..self.earlier.len()).all(|layer| self.rows_before(layer, len).is_some());
        if len >= self.len {
            self.len
        } else if known() {
            len
        } else {
            0
        }
    }
    fn most_drafted(&self) -> usize {
        if self.earlier.is_empty() { usize::MAX } else { 0 }
    }
    fn truncate(&mut self, len: usize) {
        self.len = self.cut(len);
        if self.len == 0 {
            self.layers.fill(None);
            self.earlier.iter_mut().for_each(Vec::clear);
        }
    }
    fn reserve(&mut self, _capacity: usize) -> Result<()> {
        Ok(())
    }
    fn fork(&self, len: usize, _capacity: usize) -> Result<Self> {
        let mut fork = self.clone();
        fork.truncate(len);
        Ok(fork)
    }
    fn shrink(&mut self) -> Result<()> {
        Ok(())
    }
    fn bytes(&self) -> u64 {
        bytes_of(self.shape, self.len)
    }
}

pub(super) fn bytes_of(shape: CacheShape, tokens: usize) -> u64 {
    let product = |numbers: [usize; 4]| {
        numbers.into_iter().fold(1, |bytes: u64, factor| bytes.saturating_mul(factor as u64))
    };
    let short_convolutions = shape.short_convolutions;
    let rows = product([short_convolutions.layers, short_convolutions.before, short_convolutions.columns, 8]);
    let numbers = shape.numbers().map(product).into_iter().fold(0, u64::saturating_add);
    let DeltaRuleShape { layers, before, heads } = shape.delta_rules;
    let columns = product([layers, before, heads.columns(), 8]);
    let states = product([layers, heads.values, heads.key_width, heads.value_width]).saturating_mul(8);
    let others = rows.saturating_add(columns).saturating_add(states);
    (numbers.saturating_mul(4)).saturating_mul(tokens as u64).saturating_add(if tokens == 0 {
        0
    } else {
        others
    })
}

impl TensorLinear {
    pub(super) fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let product = match self.matrix.dtype() {
            DType::BF16 => bf16_product(x, &self.matrix)?,
            _ => x.matmul(&self.matrix)?,
        };
        product.broadcast_add(&self.bias)
    }

    pub(super) fn activated(&self, x: &Tensor, activation: Activation) -> candle_core::Result<Tensor> {
        let y = self.apply(x)?;
        let half = y.dim(1)? / 2;
        let gate = if self.gated { y.narrow(1, 0, half)? } else { y.clone() };
        let gate = match activation {
            Activation::Identity => gate,
            Activation::Gelu => gate.gelu_erf()?,
            Activation::GeluTanh => gate.gelu()?,
            Activation::Relu => gate.relu()?,
            Activation::Silu => gate.silu()?,
            Activation::Tanh => gate.tanh()?,
            Activation::ReluSquared => gate.relu()?.sqr()?,
            Activation::ClampedSwish(own) => {
                let gate = gate.minimum(own.limit)?;
                let divisor = ((&gate * -f64::from(own.steepness))?.exp()? + 1.0)?;
                (gate / divisor)?
            }
            Activation::Xielu(own) => {
                let (slope, above) = (f64::from(own.slope), gate.relu()?.sqr()?);
                let below = (&gate - gate.relu()?)?;
                let bent = ((below.minimum(own.cut)?.exp()? - 1.0)? - &below)?;
                let bent = (bent * gate.le(0.0)?.to_dtype(gate.dtype())?)?;
                (((above * f64::from(own.positive))? + (bent * f64::from(own.negative))?)? + (gate * slope)?)?
            }
        };
        if !self.gated {
            return Ok(gate);
        }
        let up = y.narrow(1, half, half)?;
        match activation.gated_limit() {
            Some(limit) => gate * (up.clamp(-limit, limit)? + 1.0)?,
            None => gate * up,
        }
    }
}

/// The product with `x` rounded to bfloat16, in f32. Candle's CPU multiplies no bfloat16: there, the sums are exact.
fn bf16_product(x: &Tensor, matrix: &Tensor) -> candle_core::Result<Tensor> {
    let x = x.to_dtype(DType::BF16)?;
    if x.device().is_cpu() {
        return x.to_dtype(DType::F32)?.matmul(&matrix.to_dtype(DType::F32)?);
    }
    x.matmul(matrix)?.to_dtype(DType::F32)
}
