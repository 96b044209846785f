//! What model descriptions are written over: weights of a backend, and a pass over one packed batch.

use super::decoder::{Matrix, Rotary};
use super::weight::{Packed, Weight};
use crate::Result;

/// An elementwise function after a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// None.
    Identity,
    /// Exact GELU: `x Φ(x)`, with the error function.
    Gelu,
    /// GELU in its tanh approximation ("gelu_new").
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + e^-x)`, also called swish.
    Silu,
}

/// How rows of the position table are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// 0, 1, 2, … in each sequence: BERT.
    FromZero,
    /// RoBERTa: tokens other than the padding id count from its successor; a padding id has its own number.
    AfterPadding(u32),
}

impl Positions {
    /// The position of each token of one sequence.
    pub fn of(self, ids: &[u32]) -> impl Iterator<Item = usize> + '_ {
        let mut next = 0;
        ids.iter().map(move |&id| match self {
            Self::AfterPadding(padding) if id == padding => padding as usize,
            Self::AfterPadding(padding) => {
                next += 1;
                padding as usize + next
            }
            Self::FromZero => {
                next += 1;
                next - 1
            }
        })
    }
}

/// How the columns of an attention input divide: `heads` queries, then `kv_heads` keys, then as many values, each
/// `width` wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads: a divisor of `heads`, equal to it without grouping.
    pub kv_heads: usize,
    /// Columns of one head.
    pub width: usize,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
}

/// A row that each sequence has one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// The first.
    First,
    /// The last.
    Last,
}

/// Where a model computes: makes its own form of each weight, and runs passes.
pub trait Backend: Send + Sync + Sized + 'static {
    /// An embedding table, from which rows are read.
    type Table: Send + Sync;
    /// A linear layer: matrix and bias.
    type Linear: Send + Sync;
    /// A layer normalisation.
    type Norm: Send + Sync;
    /// An RMS normalisation.
    type Rms: Send + Sync;
    /// A pass over one part of a batch.
    type Pass<'a>: Pass<Self>;

    /// A table of shape `[rows, width]`.
    fn table(&self, matrix: Matrix) -> Result<Self::Table>;

    /// A linear layer `x Wᵀ + b`. Each part is a matrix `[outputs, inputs]` and its bias `[outputs]`; the outputs
    /// of several parts lie side by side.
    fn linear(&self, parts: &[(Matrix, Option<Weight>)]) -> Result<Self::Linear>;

    /// A gated layer `activation(x Gᵀ + b) * (x Uᵀ + c)`: gate and up, of the same shape.
    fn gated(&self, gate: (Matrix, Option<Weight>), up: (Matrix, Option<Weight>)) -> Result<Self::Linear>;

    /// A layer normalisation over rows of `scale`'s length.
    fn norm(&self, scale: &Weight, shift: &Weight, epsilon: f32) -> Result<Self::Norm>;

    /// An RMS normalisation over rows of `scale`'s length.
    fn rms(&self, scale: &Weight, epsilon: f32) -> Result<Self::Rms>;

    /// Runs `forward` on parts of `batch` that together make it up, each with its own rows of `out`
    /// (`[sequences, width]`), on as many threads as help.
    fn run(
        &self,
        batch: &Packed<'_>,
        width: usize,
        out: &mut [f32],
        forward: &Forward<'_, Self>,
    ) -> Result<()>;

    /// Bytes of memory that the model's weights take; a table that stays in its file is not counted.
    fn memory_bytes(&self) -> u64;

    /// The number format of the matrix products: `float32`, `bfloat16`.
    fn dtype(&self) -> &'static str;
}

/// A model's forward function: from a pass to one row of output for each of its sequences.
pub type Forward<'f, B> = dyn for<'a> Fn(&mut <B as Backend>::Pass<'a>, &mut [f32]) -> Result<()> + Sync + 'f;

/// The operations of a model on one packed batch. States are one row for each token of the batch. Operations take
/// over the states that nobody needs afterwards, and reuse their memory.
pub trait Pass<B: Backend> {
    /// One row for each token.
    type States;

    /// The sum of the rows of `words` (by id) and, where given, of `positions` and row 0 of `kinds`.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for an id or a position outside its table.
    fn embed(
        &mut self,
        words: &B::Table,
        positions: Option<(&B::Table, Positions)>,
        kinds: Option<&B::Table>,
    ) -> Result<Self::States>;

    /// Layer normalisation of each row.
    fn norm(&mut self, x: Self::States, norm: &B::Norm) -> Result<Self::States>;

    /// `activation(x Wᵀ + b)`.
    fn linear(
        &mut self,
        x: &Self::States,
        linear: &B::Linear,
        activation: Activation,
    ) -> Result<Self::States>;

    /// `norm(residual + x Wᵀ + b)`: the end of a block of a post-norm transformer.
    fn linear_add_norm(
        &mut self,
        x: Self::States,
        linear: &B::Linear,
        residual: Self::States,
        norm: &B::Norm,
    ) -> Result<Self::States>;

    /// Scaled dot-product attention within each sequence, from states of queries, keys and values side by side.
    fn attention(&mut self, qkv: Self::States, heads: Heads) -> Result<Self::States>;

    /// Windows that the rows of a causal model are to be taken through its layers in, one after another: a long
    /// text's activations never lie in memory all at once.
    fn windows(&self) -> usize;

    /// From here on the operations of a pre-norm block work on the rows of window `index`.
    fn enter(&mut self, index: usize);

    /// `activation(norm(x) Wᵀ + b)`: the beginning of a block of a pre-norm transformer.
    fn norm_linear(
        &mut self,
        x: &Self::States,
        norm: &B::Rms,
        linear: &B::Linear,
        activation: Activation,
    ) -> Result<Self::States>;

    /// Applies rotary position embedding to queries and keys, normalised head by head before if there are norms for them.
    fn rotate(
        &mut self,
        qkv: Self::States,
        heads: Heads,
        norms: Option<&(B::Rms, B::Rms)>,
        turns: &RopeTable<'_>,
    ) -> Result<Self::States>;

    /// `residual += x Wᵀ + b`: the end of a block of a pre-norm transformer.
    fn linear_add(&mut self, x: Self::States, linear: &B::Linear, residual: &mut Self::States) -> Result<()>;

    /// One row of each sequence alone. Further operations work on these rows; there is no attention among them.
    fn pick(&mut self, x: Self::States, row: Row) -> Result<Self::States>;

    /// RMS normalisation of each row.
    fn rms(&mut self, x: Self::States, norm: &B::Rms) -> Result<Self::States>;

    /// The tokens of the longest sequence.
    fn longest(&self) -> usize;

    /// Hands the rows of each sequence to `each`, with the sequence's number in this pass.
    fn read(&mut self, x: Self::States, each: &mut dyn FnMut(usize, Rows<'_>)) -> Result<()>;
}

/// Rotary positions with their cosines and sines, computed once for all layers of a pass.
#[derive(Debug)]
pub struct RopeTable<'a> {
    /// How numbers are paired.
    pub rotary: &'a Rotary,
    /// For each position, cosines, then sines, of every pair.
    angles: Vec<f32>,
}

impl<'a> RopeTable<'a> {
    /// Those of the first `positions` positions.
    pub fn new(rotary: &'a Rotary, positions: usize) -> Self {
        let each = 2 * rotary.frequencies.len();
        let mut angles = vec![0.0; positions * each];
        for (position, angles) in angles.chunks_exact_mut(each.max(1)).enumerate() {
            rotary.angles(position, angles);
        }
        Self { rotary, angles }
    }

    /// Cosines, then sines, of `position`.
    pub fn at(&self, position: usize) -> &[f32] {
        let each = 2 * self.rotary.frequencies.len();
        &self.angles[position * each..][..each]
    }
}

/// The states of one sequence, in f32.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    values: &'a [f32],
    stride: usize,
    width: usize,
}

impl<'a> Rows<'a> {
    /// Rows of `width` values, `stride` apart. Values beyond the last whole row are ignored.
    pub fn new(values: &'a [f32], stride: usize, width: usize) -> Self {
        Self { values, stride, width }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        if self.width == 0 { 0 } else { (self.values.len() + self.stride - self.width) / self.stride }
    }

    /// Whether the sequence has no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The row of each token.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &'a [f32]> + ExactSizeIterator {
        let Self { values, stride, width } = *self;
        (0..self.len()).map(move |row| &values[row * stride..][..width])
    }
}
