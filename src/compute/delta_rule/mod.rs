//! The gated delta rule: attention that is linear in the tokens, with a matrix of fixed size in the place of keys and values.
//!
//! A row has queries and keys of some heads, values and gates of as many heads or more, and two numbers for each of these.
//! Each column of queries, keys and values is convolved over the rows before it, and each head of queries and keys gets the
//! length 1. Then each head of values has a state `S`, `[key width, value width]`, which forgets by `α`, and stores the value
//! under the key to the part `β`:
//!
//! ```text
//! α = exp(rate * softplus(a + shift))    β = sigmoid(b)
//! S = α S + β k (v - α Sᵀk)ᵀ             output = norm(Sᵀq / √width) * silu(gate)
//! ```
//! One row is computed after the other, in the same order whatever rows a pass has, so that a text's result depends on its
//! tokens alone. A form in chunks of rows has fewer steps and more products; where a part of the state lies in the first-level
//! cache, it takes no less time.
//!
//! Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024.

mod heads;
mod rows;
mod state;

pub use self::heads::DeltaHeads;
pub(crate) use self::rows::{DeltaRows, SpanState, StateBlock, StateDrafts};
pub use self::state::DeltaRuleShape;
pub(crate) use self::state::{DeltaLayer, DeltaRuleState};
use super::kernels::Kernels;
use super::kernels::delta::BLOCK;
use super::short_convolution::{ShortConvolution, ShortConvolutionFactors};
use super::weight::Weight;
use crate::{Error, Result};

/// What is added to the square of the length of a query or key.
pub(crate) const LENGTH_EPSILON: f32 = 1e-6;

/// What a delta rule multiplies and adds.
#[derive(Debug, Clone)]
pub struct DeltaRuleFactors {
    /// Its heads.
    pub heads: DeltaHeads,
    /// `[columns, taps]`: for each column of queries, keys and values, the factors of the rows that an output sees, the
    /// earliest row's first, its own last.
    pub convolution: Weight,
    /// `[values]`: how fast each head forgets, a negative number.
    pub rates: Weight,
    /// `[values]`: added to `a`.
    pub shift: Weight,
    /// `[value width]`: the scale of the norm of each head's output.
    pub norm: Weight,
    /// Added to the mean square of an output.
    pub epsilon: f32,
}

impl DeltaRuleFactors {
    /// The convolution of each column.
    pub(crate) fn convolution(&self) -> Result<ShortConvolutionFactors> {
        let (heads, taps) = (&self.heads, self.convolution.columns());
        let fits = heads.are_sound()
            && self.convolution.rows() == heads.columns()
            && taps > 0
            && [&self.rates, &self.shift].iter().all(|numbers| numbers.rows() == heads.values)
            && self.norm.rows() == heads.value_width;
        if !fits {
            return Err(Error::internal("model description", format!("a delta rule of {heads:?}")));
        }
        Ok(ShortConvolutionFactors { factors: self.convolution.clone(), shift: None, before: taps - 1 })
    }
}

/// A delta rule on the CPU.
#[derive(Debug)]
pub struct DeltaRule {
    pub(crate) heads: DeltaHeads,
    pub(crate) convolution: ShortConvolution,
    rates: Vec<f32>,
    shift: Vec<f32>,
    norm: Vec<f32>,
    epsilon: f32,
    /// What the numbers of a query, and those of a key, are multiplied by when they are normalized as their mean square says.
    scales: [Vec<f32>; 2],
}

impl DeltaRule {
    pub(crate) fn new(factors: &DeltaRuleFactors) -> Result<Self> {
        let convolution = ShortConvolution::new(&factors.convolution()?)?;
        let width = factors.heads.key_width;
        let root = (width as f32).sqrt();
        Ok(Self {
            heads: factors.heads,
            convolution,
            rates: factors.rates.to_f32()?,
            shift: factors.shift.to_f32()?,
            norm: factors.norm.to_f32()?,
            epsilon: factors.epsilon,
            scales: [vec![1.0 / width as f32; width], vec![1.0 / root; width]],
        })
    }

    /// Bytes of its numbers.
    pub(crate) fn bytes(&self) -> u64 {
        let own = self.rates.len() + self.shift.len() + self.norm.len() + 2 * self.heads.key_width;
        self.convolution.bytes() + 4 * own as u64
    }

    /// Makes queries, keys and values of the convolved numbers of a row.
    pub(crate) fn prepare(&self, kernels: &Kernels, row: &mut [f32]) {
        const PART: usize = 256;
        let mut copy = [0.0; PART];
        for part in row.chunks_mut(PART) {
            let copy = &mut copy[..part.len()];
            copy.copy_from_slice(part);
            kernels.multiply_sigmoid(part, copy);
        }
        let DeltaHeads { keys, key_width, .. } = self.heads;
        // The length of a head is the root of its mean square, times the root of its width.
        let epsilon = LENGTH_EPSILON / key_width as f32;
        for (head, numbers) in row.chunks_exact_mut(key_width).take(2 * keys).enumerate() {
            kernels.rms_in_place(numbers, &self.scales[head / keys], epsilon);
        }
    }

    /// Of head `head`, the part of its state that it keeps, and the part of a value that it stores.
    pub(crate) fn parts(&self, head: usize, b: f32, a: f32) -> [f32; 2] {
        let x = a + self.shift[head];
        // As in PyTorch, from 20 on the result is the number itself.
        let softplus = if x > 20.0 { x } else { x.exp().ln_1p() };
        [(self.rates[head] * softplus).exp(), 1.0 / (1.0 + (-b).exp())]
    }

    /// Normalizes the outputs of the heads of a row, and multiplies them by their gates.
    pub(crate) fn finish(&self, kernels: &Kernels, row: &mut [f32], gates: &[f32]) {
        for head in row.chunks_exact_mut(self.heads.value_width) {
            kernels.rms_in_place(head, &self.norm, self.epsilon);
        }
        row.iter_mut().zip(gates).for_each(|(x, gate)| *x *= gate);
        kernels.multiply_sigmoid(row, gates);
    }

    /// Blocks of columns that a head's state is divided into.
    pub(crate) fn blocks(&self) -> usize {
        self.heads.value_width.div_ceil(BLOCK)
    }
}

#[cfg(test)]
mod tests;
