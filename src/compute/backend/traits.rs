//! The traits that model descriptions use: the weights of a backend, and a pass over one packed batch.

use crate::compute::attention::heads::{Heads, LayerAttention};
use crate::compute::attention::kv_cache::CacheShape;
use crate::compute::attention::relative::{RelativeLayers, RelativeTable};
use crate::compute::attention::rope::{RopeTable, Rotary};
use crate::compute::batch::PackedBatch;
use crate::compute::delta_rule::DeltaRuleFactors;
use crate::compute::experts::Experts;
use crate::compute::kernels::activation::Activation;
use crate::compute::linear::layer::{Biased, Matrix};
use crate::compute::pooling::Pooling;
pub use crate::compute::pooling::{Row, Rows};
use crate::compute::short_convolution::ShortConvolutionFactors;
use crate::compute::weight::Weight;
use crate::{Error, Result};

/// How rows of the position table are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// 0, 1, 2, … in each sequence: BERT.
    FromZero,
    /// RoBERTa: tokens count from the padding id plus one, and a padding token has the padding id as its position.
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

/// The keys and values of a sequence's tokens in every layer, so that each is computed once.
pub trait KvCache: Send + Sized + 'static {
    /// The number of tokens in the cache.
    fn len(&self) -> usize;

    /// Whether the cache has no token.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens that [`truncate`](Self::truncate) to `len` would leave.
    fn cut(&self, len: usize) -> usize {
        len.min(self.len())
    }

    /// Drafts at the end of the next step that can be taken back after it, at most: see [`Step::logits`].
    fn most_drafted(&self) -> usize {
        usize::MAX
    }

    /// Shortens the cache to `len` tokens, or to fewer where it does not have what the layers need there; without effect if
    /// it has no more.
    fn truncate(&mut self, len: usize);

    /// Reserves memory for `capacity` tokens in total.
    ///
    /// # Errors
    /// If the memory cannot be allocated.
    fn reserve(&mut self, capacity: usize) -> Result<()>;

    /// A cache of the first `len` tokens, or of as many as [`truncate`](Self::truncate) would leave, with memory for
    /// `capacity`.
    ///
    /// # Errors
    /// If the memory cannot be allocated.
    fn fork(&self, len: usize, capacity: usize) -> Result<Self>;

    /// Frees unused memory, if that is worth a copy.
    ///
    /// # Errors
    /// If the memory for a copy cannot be allocated.
    fn shrink(&mut self) -> Result<()>;

    /// Bytes allocated.
    fn bytes(&self) -> u64;
}

/// The new tokens of one sequence, whose earlier tokens are in a cache.
#[derive(Debug)]
pub struct Step<'a, C> {
    /// The sequence so far; the pass appends `tokens` to it.
    pub cache: &'a mut C,
    /// Never empty.
    pub tokens: &'a [u32],
    /// The number of tokens of the text, from its beginning, that the model reads; it wrote those after them.
    pub prompt: usize,
    /// The number of tokens of the whole text, as far as it is known: those in the cache, `tokens`, and those of later
    /// steps.
    pub length: usize,
    /// So many of the last `tokens` need the logits after them. All but the first of these are drafts: until the next step, the
    /// cache can be cut before each, if they are no more than its [`most_drafted`](KvCache::most_drafted).
    pub logits: usize,
}

/// A sequence with a cache, during a pass.
#[derive(Debug)]
pub(super) struct CachedSequence<'a, C> {
    pub cache: &'a mut C,
    /// Tokens in the cache before this pass.
    pub cached: usize,
    /// Tokens from the beginning of the text that the model reads.
    pub prompt: usize,
    /// Tokens of the whole text.
    pub length: usize,
    /// So many of its last tokens need logits.
    pub logits: usize,
}

/// Asserts that `out` has a row of `width` for each token that needs logits.
pub(super) fn check_logits<C>(steps: &[Step<'_, C>], width: usize, out: &[f32]) {
    assert!(steps.iter().all(|step| step.logits <= step.tokens.len()), "logits of tokens of the step");
    let needed: usize = steps.iter().map(|step| step.logits).sum();
    assert_eq!(out.len(), needed * width, "one row of output for each token that needs logits");
}

/// A backend: converts weights to its own form, and runs passes.
pub trait Backend: Send + Sync + Sized + 'static {
    /// An embedding table, from which rows are read.
    type Table: Send + Sync;
    /// A linear layer: matrix and bias.
    type Linear: Send + Sync;
    /// A normalization of rows.
    type Norm: Send + Sync;
    /// Relative positions that attention compares contents with.
    type Relative: Send + Sync;
    /// A convolution of gated rows.
    type ShortConvolution: Send + Sync;
    /// A gated delta rule.
    type DeltaRule: Send + Sync;
    /// Keys and values of one sequence.
    type Cache: KvCache;
    /// A pass over one part of a batch.
    type Pass<'a>: Pass<Self>;

    /// A table of shape `[rows, width]`.
    fn table(&self, matrix: Matrix) -> Result<Self::Table>;

    /// A linear layer `x Wᵀ + b`. Each part is a matrix `[outputs, inputs]` and its bias `[outputs]`; the outputs
    /// of several parts lie side by side.
    fn linear(&self, parts: &[Biased]) -> Result<Self::Linear>;

    /// A gated layer `activation(x Gᵀ + b) * (x Uᵀ + c)`: gate and up, of the same shape.
    fn gated(&self, gate: Biased, up: Biased) -> Result<Self::Linear>;

    /// A linear layer whose weights, bias and outputs are in float32, whatever the backend's number format: the router
    /// of a mixture of experts.
    ///
    /// # Errors
    /// [`Error::Internal`] where the backend has none.
    fn exact_linear(&self, _part: &Biased) -> Result<Self::Linear> {
        Err(lacking("exact_linear"))
    }

    /// A layer normalization over rows of `scale`'s length, or RMS normalization without `shift`.
    fn norm(&self, scale: &Weight, shift: Option<&Weight>, epsilon: f32) -> Result<Self::Norm>;

    /// What the attention of one layer with these heads compares contents with. There are as many heads of keys as of
    /// queries.
    ///
    /// # Errors
    /// [`Error::Internal`] where the backend has no such attention.
    fn relative(
        &self,
        table: &RelativeTable,
        layers: &RelativeLayers,
        heads: Heads,
    ) -> Result<Self::Relative>;

    /// A convolution of gated rows with those around them.
    ///
    /// # Errors
    /// [`Error::Internal`] where the backend has none.
    fn short_convolution(&self, factors: &ShortConvolutionFactors) -> Result<Self::ShortConvolution>;

    /// A gated delta rule.
    ///
    /// # Errors
    /// [`Error::Internal`] where the backend has none.
    fn delta_rule(&self, factors: &DeltaRuleFactors) -> Result<Self::DeltaRule>;

    /// An empty cache.
    fn cache(&self, shape: CacheShape) -> Self::Cache;

    /// Bytes of a cache of `tokens`. They never decrease with more tokens.
    fn cache_bytes(&self, shape: CacheShape, tokens: usize) -> u64;

    /// Runs `forward` on disjoint parts of `batch` that cover it, each with its own rows of `out` (`[sequences, width]`), on
    /// several threads if that is faster.
    fn run(
        &self,
        batch: &PackedBatch<'_>,
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()>;

    /// Runs `forward` on the new tokens of sequences, which attend to those in the caches, and appends them there.
    /// `out` has a row of `width` for each step that needs logits, in their order. `forward` may be called once, or
    /// for some of the steps at a time.
    ///
    /// # Errors
    /// Errors of `forward`; each cache may then have all, some or none of the new tokens.
    fn run_cached(
        &self,
        steps: &mut [Step<'_, Self::Cache>],
        width: usize,
        out: &mut [f32],
        forward: &ForwardFn<'_, Self>,
    ) -> Result<()>;

    /// Bytes of memory that the model's weights take; a table that stays in its file is not counted.
    fn memory_bytes(&self) -> u64;

    /// Of those, bytes on a device with a memory of its own.
    fn device_bytes(&self) -> u64 {
        0
    }

    /// The number format of the matrix products: `float32`, `bfloat16`.
    fn dtype(&self) -> &'static str;

    /// Whether the keys and values of a token depend on whether the model reads it or wrote it.
    fn phases_differ(&self) -> bool {
        false
    }
}

/// A row of a table for each token, times a factor: row `each * id + at`.
#[derive(Debug)]
pub struct TokenRows<'a, T> {
    /// The table.
    pub table: &'a T,
    /// Rows of a token.
    pub each: usize,
    /// Which of them.
    pub at: usize,
    /// What it is multiplied by.
    pub factor: f32,
}

impl<T> Clone for TokenRows<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for TokenRows<'_, T> {}

/// The error of a backend without an operation.
pub(super) fn lacking(operation: &str) -> Error {
    Error::internal("backend", format!("it has no operation {operation}"))
}

/// The states of a pass on a backend.
pub type StatesOf<'a, B> = <<B as Backend>::Pass<'a> as Pass<B>>::States;

/// A model's forward function: from a pass to one row of output for each of its sequences.
pub type ForwardFn<'f, B> =
    dyn for<'a> Fn(&mut <B as Backend>::Pass<'a>, &mut [f32]) -> Result<()> + Sync + 'f;

/// A layer of a pre-norm model on some rows of its states, or on all of them.
pub type WindowFn<'f, P, S> = dyn FnMut(&mut P, S, bool) -> Result<S> + 'f;

/// The operations of a model on one packed batch. States have one row for each token of the batch. Operations consume
/// states that are not needed afterwards, and reuse their memory.
///
/// A pass of [`Backend::run_cached`] has a cache for each sequence. The new tokens follow those of the cache.
pub trait Pass<B: Backend> {
    /// One row for each token.
    type States;

    /// The indices in the batch of this pass's sequences.
    fn sequence_indices(&self) -> Vec<usize>;

    /// The sum of the rows of `words` (by id) and, if given, of `positions` and `token_types`. A table of one type is
    /// that of all tokens.
    ///
    /// # Errors
    /// [`Error::Input`] for an id or a position outside its table.
    fn embed(
        &mut self,
        words: &B::Table,
        positions: Option<(&B::Table, Positions)>,
        token_types: Option<&B::Table>,
    ) -> Result<Self::States>;

    /// A copy of the embeddings, for what layers make of them.
    ///
    /// # Errors
    /// [`Error::Internal`] where the backend has no such layers.
    fn copy(&mut self, _x: &Self::States) -> Result<Self::States> {
        Err(lacking("copy"))
    }

    /// Multiplies all values by `factor`: those of the rows that a layer works on.
    fn scale(&mut self, x: Self::States, factor: f32) -> Result<Self::States>;

    /// Normalizes each row.
    fn norm(&mut self, x: Self::States, norm: &B::Norm) -> Result<Self::States>;

    /// `activation(x Wᵀ + b)`.
    fn linear(
        &mut self,
        x: &Self::States,
        linear: &B::Linear,
        activation: Activation,
    ) -> Result<Self::States>;

    /// `x Wᵀ + b` as states to which blocks add: embeddings that are narrower than states.
    fn project_embeddings(&mut self, x: Self::States, linear: &B::Linear) -> Result<Self::States>;

    /// `norm(residual + x Wᵀ + b)`: the end of a block of a post-norm transformer.
    fn linear_add_norm(
        &mut self,
        x: Self::States,
        linear: &B::Linear,
        residual: Self::States,
        norm: &B::Norm,
    ) -> Result<Self::States>;

    /// Scaled dot-product attention of layer `layer`, which counts layers with attention, within each sequence. The rows of
    /// `qkv` have queries, keys and values, whose rotary positions are applied already. With caches, the keys and values are
    /// appended first, and queries attend to tokens of their cache. `relative` adds to the scores of whole sequences. Gathered
    /// rows attend to the keys of an earlier layer, with a causal mask.
    fn attention(
        &mut self,
        layer: usize,
        qkv: Self::States,
        heads: Heads,
        attention: &LayerAttention,
        relative: Option<&B::Relative>,
    ) -> Result<Self::States>;

    /// The convolution of rows of three parts, the gate of what it sees, the gate of its output, and the numbers, within each
    /// sequence: rows of one part. `layer` counts layers with a convolution. With caches, it sees the rows before the new
    /// ones, and keeps what later rows will see.
    ///
    /// # Errors
    /// [`Error::Internal`] where the backend has no such convolutions.
    fn short_convolution(
        &mut self,
        _layer: usize,
        _x: Self::States,
        _convolution: &B::ShortConvolution,
    ) -> Result<Self::States> {
        Err(lacking("short_convolution"))
    }

    /// The gated delta rule of rows with queries, keys, values, gates and two numbers for each head of values: the gated outputs
    /// of all heads. `layer` counts layers with such a rule. With caches, it goes on from their states.
    ///
    /// # Errors
    /// [`Error::Internal`] where the backend has no such rule.
    fn delta_rule(&mut self, _layer: usize, _x: Self::States, _rule: &B::DeltaRule) -> Result<Self::States> {
        Err(lacking("delta_rule"))
    }

    /// `x * sigmoid(gates)`. There is a gate for each number, or one for each of as many equal parts of a row.
    ///
    /// # Errors
    /// [`Error::Internal`] where the backend has no such gates.
    fn gate(&mut self, _x: Self::States, _gates: Self::States) -> Result<Self::States> {
        Err(lacking("gate"))
    }

    /// Takes back the memory of states that no further operation needs. Operations that consume states do so themselves.
    fn discard(&mut self, _x: Self::States) {}

    /// Multiplies each row by `norm(e Wᵀ + b)`, where `e` is its row of `embeddings`, a [`copy`](Self::copy) from which the same
    /// rows were gathered, and by what `tokens` adds to it.
    ///
    /// # Errors
    /// As [`copy`](Self::copy); [`Error::Input`] for an id outside the table of `tokens`.
    fn multiply_by_inputs(
        &mut self,
        _x: Self::States,
        _embeddings: &Self::States,
        (_linear, _norm): (&B::Linear, &B::Norm),
        _tokens: Option<TokenRows<'_, B::Table>>,
    ) -> Result<Self::States> {
        Err(lacking("multiply_by_inputs"))
    }

    /// The convolution of each column of whole sequences, without gates.
    ///
    /// # Errors
    /// As [`im2col`](Self::im2col).
    fn depthwise_convolution(
        &mut self,
        _x: &Self::States,
        _convolution: &B::ShortConvolution,
    ) -> Result<Self::States> {
        Err(lacking("depthwise_convolution"))
    }

    /// Multiplies each row by the first columns of that of `by`.
    ///
    /// # Errors
    /// As [`im2col`](Self::im2col).
    fn multiply(&mut self, _x: Self::States, _by: &Self::States) -> Result<Self::States> {
        Err(lacking("multiply"))
    }

    /// Each row of `x`, followed by a convolution of `values` whose factors that row has of its own: for each of `heads` equal
    /// parts of the columns, the softmax of as many `scores` as it sees rows, of which its own is the middle one. Rows beyond
    /// the ends of the sequence are zero.
    ///
    /// # Errors
    /// As [`im2col`](Self::im2col).
    fn dynamic_convolution(
        &mut self,
        _x: Self::States,
        _scores: Self::States,
        _values: Self::States,
        _heads: usize,
    ) -> Result<Self::States> {
        Err(lacking("dynamic_convolution"))
    }

    /// Each row with those around it in its sequence, side by side: `size` rows, of which it is the middle one. Beyond the
    /// ends of the sequence they are zero. The operand of a convolution.
    ///
    /// # Errors
    /// [`Error::Internal`] where the backend has no convolutions.
    fn im2col(&mut self, _x: &Self::States, _size: usize) -> Result<Self::States> {
        Err(lacking("im2col"))
    }

    /// `norm(residual + x)`.
    ///
    /// # Errors
    /// As [`im2col`](Self::im2col).
    fn add_norm(
        &mut self,
        _x: Self::States,
        _residual: Self::States,
        _norm: &B::Norm,
    ) -> Result<Self::States> {
        Err(lacking("add_norm"))
    }

    /// What `block`, a layer of a pre-norm model, makes of `x`. Where `causal` says that no row sees a later one, the pass may
    /// call it several times, each time for the next rows of all, so that memory does not hold all activations of a long text
    /// at once: [`norm_linear`](Self::norm_linear) then reads those rows, and [`linear_add`](Self::linear_add) adds to them.
    /// `block` gets whether its rows are all rows. Rows that were gathered are never parted.
    fn in_windows(
        &mut self,
        x: Self::States,
        _causal: bool,
        block: &mut WindowFn<'_, Self, Self::States>,
    ) -> Result<Self::States> {
        block(self, x, true)
    }

    /// `activation(norm(x) Wᵀ + b)`: the beginning of a block that does not end with the norm of its residual.
    fn norm_linear(
        &mut self,
        x: &Self::States,
        norm: Option<&B::Norm>,
        linear: &B::Linear,
        activation: Activation,
    ) -> Result<Self::States>;

    /// The cosines and sines of this pass's rows.
    fn rope<'r>(&self, rotary: &'r Rotary) -> Result<RopeTable<'r>>;

    /// Applies rotary position embedding to queries and keys. With `norms`, it normalizes them first. RMS normalizations are
    /// of each head, if a norm is as long as a head, or else of all heads together. Layer normalizations are of each head;
    /// those as long as all heads have parameters for each.
    fn rotate(
        &mut self,
        qkv: Self::States,
        heads: Heads,
        norms: Option<&(B::Norm, B::Norm)>,
        table: &RopeTable<'_>,
    ) -> Result<Self::States>;

    /// Normalizes each head of the values by its root mean square. The scale of `norm` is as long as a head.
    ///
    /// # Errors
    /// [`Error::Internal`] where the backend has no such norms.
    fn norm_values(&mut self, _qkv: Self::States, _heads: Heads, _norm: &B::Norm) -> Result<Self::States> {
        Err(lacking("norm_values"))
    }

    /// `residual += factor * norm(x Wᵀ + b)`: the end of a block that began with [`norm_linear`](Self::norm_linear).
    fn linear_add(
        &mut self,
        x: Self::States,
        linear: &B::Linear,
        norm: Option<&B::Norm>,
        factor: f32,
        residual: &mut Self::States,
    ) -> Result<()>;

    /// `residual += factor * down_norm(y)`, where `y` is what a mixture of experts makes of `norm(residual)`: the sum of its
    /// bias, of what the experts of each row make of it, times their weights, in the order of the experts, and of what a shared
    /// one makes. With [`ExpertNorms`](crate::compute::ExpertNorms), the router and the chosen experts normalize the residual by
    /// their own norms, and each of the two sums is normalized before it is added. The result of a row does not depend on other
    /// rows.
    ///
    /// # Errors
    /// [`Error::Internal`] where the backend has no experts.
    fn add_experts(
        &mut self,
        _norm: Option<&B::Norm>,
        _experts: &Experts<B::Linear, B::Norm>,
        _activation: Activation,
        _down: (Option<&B::Norm>, f32),
        _residual: &mut Self::States,
    ) -> Result<()> {
        Err(lacking("add_experts"))
    }

    /// Gathers one row of each sequence, or with caches, the rows of the last tokens that need logits. The following operations
    /// work on these rows; of their mixers, only attention to the keys of an earlier layer.
    fn gather_rows(&mut self, x: Self::States, row: Row) -> Result<Self::States>;

    /// Calls `each` with the index in this pass and the rows of each sequence, normalized if there is a norm.
    fn for_each_sequence(
        &mut self,
        x: Self::States,
        norm: Option<&B::Norm>,
        each: &mut dyn FnMut(usize, Rows<'_>),
    ) -> Result<()>;

    /// One vector for each sequence into `out`, `[sequences, width]`: its rows, normalized if there is a norm, pooled. Of
    /// [`Pooling::row`], `x` has the rows that were gathered.
    fn pool(
        &mut self,
        x: Self::States,
        norm: Option<&B::Norm>,
        pooling: Pooling,
        out: &mut [f32],
    ) -> Result<()> {
        let sequences = self.sequence_indices().len();
        let width = out.len() / sequences.max(1);
        self.for_each_sequence(x, norm, &mut |index, rows| {
            pooling.pool(rows, &mut out[index * width..(index + 1) * width]);
        })
    }

    /// `norm(activation(x Wᵀ + b))`.
    fn linear_norm(
        &mut self,
        x: Self::States,
        linear: &B::Linear,
        activation: Activation,
        norm: &B::Norm,
    ) -> Result<Self::States>;

    /// Calls `each` with the index in this pass and the rows of `x Wᵀ + b` of each sequence, in f32. `x` comes from
    /// [`linear_norm`](Self::linear_norm).
    fn for_each_logits(
        &mut self,
        x: &Self::States,
        linear: &B::Linear,
        each: &mut dyn FnMut(usize, Rows<'_>),
    ) -> Result<()>;

    /// `norm(x) Wᵀ + b` of all rows into `out`, in f32: logits.
    fn logits(
        &mut self,
        x: Self::States,
        norm: Option<&B::Norm>,
        linear: &B::Linear,
        out: &mut [f32],
    ) -> Result<()>;
}
