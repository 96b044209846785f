//! What the engine asks of a language model.

use crate::Result;

/// What a sequence's tokens left behind in every layer (keys and values), so that each is computed once.
pub trait Cache: Send + Sized + 'static {
    /// Tokens held.
    fn len(&self) -> usize;

    /// Whether no token is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all tokens from `len` on; at most what is held.
    fn truncate(&mut self, len: usize);

    /// Makes room for `capacity` tokens in all.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn reserve(&mut self, capacity: usize) -> Result<()>;

    /// A copy of the first `len` tokens with room for `capacity`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn fork(&self, len: usize, capacity: usize) -> Result<Self>;

    /// Gives back room beyond what is held, where that is worth a copy.
    ///
    /// # Errors
    /// When the memory for the copy cannot be had.
    fn shrink(&mut self) -> Result<()>;

    /// Bytes allocated.
    fn bytes(&self) -> u64;
}

/// The new tokens of one sequence in a forward pass.
#[derive(Debug)]
pub struct Step<'a, C> {
    /// What came before; the pass appends `tokens` to it.
    pub cache: &'a mut C,
    /// Never empty.
    pub tokens: &'a [u32],
    /// Whether the logits after the last of `tokens` are asked for.
    pub wanted: bool,
}

/// A causal language model. One thread calls [`forward`](Self::forward) at a time.
pub trait Decoder: Send + Sync + 'static {
    /// The memory of one sequence.
    type Cache: Cache;

    /// Length of a row of logits.
    fn vocabulary(&self) -> usize;

    /// Most tokens of a sequence, answer included.
    fn context(&self) -> usize;

    /// An empty cache with room for `capacity` tokens.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn new_cache(&self, capacity: usize) -> Result<Self::Cache>;

    /// Bytes that a cache with room for `capacity` tokens takes; not less for more tokens.
    fn cache_bytes(&self, capacity: usize) -> u64;

    /// Runs all layers over the new tokens of all sequences, appends them to the caches, and writes the logits of the
    /// sequences that want them, in their order, to `logits`: row-major [wanting sequences, vocabulary].
    ///
    /// # Errors
    /// When a token is outside the vocabulary or the computation fails. Caches may then hold any part of the tokens;
    /// the caller truncates them.
    fn forward(&self, steps: &mut [Step<'_, Self::Cache>], logits: &mut [f32]) -> Result<()>;
}
