//! What model descriptions are written over: weights of a backend, and a pass over one packed batch.

use crate::Result;
use crate::compute::attention::heads::Heads;
use crate::compute::attention::kv_cache::CacheShape;
use crate::compute::attention::rope::{RopeTable, Rotary};
use crate::compute::kernels::activation::Activation;
use crate::compute::linear::layer::Matrix;
use crate::compute::weight::{Packed, Weight};

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

/// A row that each sequence has one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// The first.
    First,
    /// The last.
    Last,
}

/// What a sequence's tokens left behind in every layer, keys and values, so that each is computed once.
pub trait KvCache: Send + Sized + 'static {
    /// Tokens held.
    fn len(&self) -> usize;

    /// Whether no token is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all tokens from `len` on; at most what is held.
    fn truncate(&mut self, len: usize);

    /// Makes sure that `capacity` tokens in all fit.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn reserve(&mut self, capacity: usize) -> Result<()>;

    /// A cache of the first `len` tokens into which `capacity` fit.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn fork(&self, len: usize, capacity: usize) -> Result<Self>;

    /// Gives back memory beyond what is held, where that is worth a copy.
    ///
    /// # Errors
    /// When the memory for the copy cannot be had.
    fn shrink(&mut self) -> Result<()>;

    /// Bytes allocated.
    fn bytes(&self) -> u64;
}

/// The new tokens of one sequence, whose earlier tokens a cache holds.
#[derive(Debug)]
pub struct Step<'a, C> {
    /// The sequence so far; the pass appends `tokens` to it.
    pub cache: &'a mut C,
    /// Never empty.
    pub tokens: &'a [u32],
    /// Whether the logits after the last of `tokens` are asked for.
    pub needs_logits: bool,
}

/// Where a model computes: makes its own form of each weight, and runs passes.
pub trait Backend: Send + Sync + Sized + 'static {
    /// An embedding table, from which rows are read.
    type Table: Send + Sync;
    /// A linear layer: matrix and bias.
    type Linear: Send + Sync;
    /// A normalisation of rows.
    type Norm: Send + Sync;
    /// Keys and values of one sequence.
    type Cache: KvCache;
    /// A pass over one part of a batch.
    type Pass<'a>: Pass<Self>;

    /// A table of shape `[rows, width]`.
    fn table(&self, matrix: Matrix) -> Result<Self::Table>;

    /// A linear layer `x Wᵀ + b`. Each part is a matrix `[outputs, inputs]` and its bias `[outputs]`; the outputs
    /// of several parts lie side by side.
    fn linear(&self, parts: &[(Matrix, Option<Weight>)]) -> Result<Self::Linear>;

    /// A gated layer `activation(x Gᵀ + b) * (x Uᵀ + c)`: gate and up, of the same shape.
    fn gated(&self, gate: (Matrix, Option<Weight>), up: (Matrix, Option<Weight>)) -> Result<Self::Linear>;

    /// A layer normalisation over rows of `scale`'s length, or without `shift` an RMS normalisation.
    fn norm(&self, scale: &Weight, shift: Option<&Weight>, epsilon: f32) -> Result<Self::Norm>;

    /// A cache that holds nothing.
    fn cache(&self, shape: CacheShape) -> Self::Cache;

    /// Bytes that a cache of `tokens` takes; not less for more tokens.
    fn cache_bytes(&self, shape: CacheShape, tokens: usize) -> u64;

    /// Runs `forward` on parts of `batch` that together make it up, each with its own rows of `out`
    /// (`[sequences, width]`), on as many threads as help.
    fn run(
        &self,
        batch: &Packed<'_>,
        width: usize,
        out: &mut [f32],
        forward: &Forward<'_, Self>,
    ) -> Result<()>;

    /// Runs `forward` on the new tokens of sequences, which attend to those that caches hold, and appends them there.
    /// `out` has a row of `width` for each step that needs logits, in their order. `forward` may be called once, or
    /// for some of the steps at a time.
    ///
    /// # Errors
    /// Those of `forward`; the caches may then hold any part of the tokens.
    fn run_cached(
        &self,
        steps: &mut [Step<'_, Self::Cache>],
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
/// over the states that are not needed afterwards, and reuse their memory.
///
/// A pass of [`Backend::run_cached`] has a cache for each sequence: its tokens stand after those of the cache.
pub trait Pass<B: Backend> {
    /// One row for each token.
    type States;

    /// The sum of the rows of `words` (by id) and, where given, of `positions` and row 0 of `token_types`.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for an id or a position outside its table.
    fn embed(
        &mut self,
        words: &B::Table,
        positions: Option<(&B::Table, Positions)>,
        token_types: Option<&B::Table>,
    ) -> Result<Self::States>;

    /// Normalises each row.
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

    /// Scaled dot-product attention of layer `layer` within each sequence, from states of queries, keys and values side
    /// by side. Where there are caches, keys and values go there first, and queries see all that they hold.
    fn attention(&mut self, layer: usize, qkv: Self::States, heads: Heads) -> Result<Self::States>;

    /// Windows that the rows of a causal model are to be taken through its layers in, one after another: a long
    /// text's activations never lie in memory all at once.
    fn windows(&self) -> usize;

    /// From here on the operations of a pre-norm block work on the rows of window `index`.
    fn enter(&mut self, index: usize);

    /// `activation(norm(x) Wᵀ + b)`: the beginning of a block of a pre-norm transformer.
    fn norm_linear(
        &mut self,
        x: &Self::States,
        norm: &B::Norm,
        linear: &B::Linear,
        activation: Activation,
    ) -> Result<Self::States>;

    /// The rotary positions of this pass's rows.
    fn rope<'r>(&self, rotary: &'r Rotary) -> Result<RopeTable<'r>>;

    /// Applies rotary position embedding to queries and keys. Where there are norms for them, it normalises them head by
    /// head first.
    fn rotate(
        &mut self,
        qkv: Self::States,
        heads: Heads,
        norms: Option<&(B::Norm, B::Norm)>,
        table: &RopeTable<'_>,
    ) -> Result<Self::States>;

    /// `residual += x Wᵀ + b`: the end of a block of a pre-norm transformer.
    fn linear_add(&mut self, x: Self::States, linear: &B::Linear, residual: &mut Self::States) -> Result<()>;

    /// One row of each sequence alone; where there are caches, of each that needs logits. Further operations work on
    /// these rows; there is no attention among them.
    fn pick(&mut self, x: Self::States, row: Row) -> Result<Self::States>;

    /// Hands the rows of each sequence to `each`, with the sequence's number in this pass, normalised where there is a
    /// norm.
    fn read(
        &mut self,
        x: Self::States,
        norm: Option<&B::Norm>,
        each: &mut dyn FnMut(usize, Rows<'_>),
    ) -> Result<()>;

    /// `norm(x) Wᵀ + b` of all rows into `out`, in f32: logits.
    fn project(
        &mut self,
        x: Self::States,
        norm: Option<&B::Norm>,
        linear: &B::Linear,
        out: &mut [f32],
    ) -> Result<()>;
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
