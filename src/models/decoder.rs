//! What the engine asks of a language model.

use crate::Result;

pub use crate::compute::{KvCache, Step};

/// A causal language model. One thread calls [`forward`](Self::forward) at a time.
pub trait Decoder: Send + Sync + 'static {
    /// Keys and values of one sequence.
    type Cache: KvCache;

    /// Length of a row of logits.
    fn vocabulary(&self) -> usize;

    /// Most tokens of a sequence, answer included.
    fn context(&self) -> usize;

    /// The number of tokens above which all positions of a text change ([`LongRope`](crate::compute::LongRope)), if there
    /// is one. The cache of a text that becomes longer must be emptied.
    fn longest_short_text(&self) -> Option<usize> {
        None
    }

    /// An empty cache into which `capacity` tokens fit.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn new_cache(&self, capacity: usize) -> Result<Self::Cache>;

    /// Bytes that a cache of `tokens` takes; not less for more tokens.
    fn cache_bytes(&self, tokens: usize) -> u64;

    /// Whether the keys and values of a token depend on whether it is read or was written. A prompt then reuses those of tokens
    /// that were read alone.
    fn phases_differ(&self) -> bool {
        false
    }

    /// Runs all layers over the new tokens of all sequences, appends them to the caches, and writes the logits of the
    /// sequences that need them, in their order, to `logits`: row-major [sequences that need them, vocabulary].
    ///
    /// # Errors
    /// When a token is outside the vocabulary or the computation fails. Caches may then hold any part of the tokens;
    /// the caller truncates them.
    fn forward(&self, steps: &mut [Step<'_, Self::Cache>], logits: &mut [f32]) -> Result<()>;
}
