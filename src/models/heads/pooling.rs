//! Models that turn the tokens of texts into vectors.

use crate::Result;
pub use crate::compute::Pooling;
use crate::compute::{PackedBatch, Rows};

/// Divides by the Euclidean length; a zero vector stays zero (PyTorch's `normalize`, whose floor is 1e-12).
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
}

/// Gets the number of a sequence in its batch, the first column, and the rows of its tokens. Called from several threads.
pub type ReadStates<'a> = dyn Fn(usize, usize, Rows<'_>) + Sync + 'a;

/// A model that turns texts into vectors.
pub trait SentenceEncoder: Send + Sync {
    /// Values of one vector.
    fn width(&self) -> usize;

    /// One vector for each sequence of `batch` into `out`, row-major `[sequences, width]`, not normalized. Divides
    /// the work over the process's threads; may be called from several threads at once. A text's vector does not
    /// depend on the other texts of the batch.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a token outside the vocabulary, a text that is too long, or `out` of the wrong
    /// length; [`crate::Error::Internal`] when a worker panics.
    fn encode(&self, batch: &PackedBatch<'_>, pooling: Pooling, out: &mut [f32]) -> Result<()>;

    /// The last state of each sequence that begins with `prefix` and goes on with one of `batch`, none of which is empty, as
    /// [`encode`](Self::encode) gives it with [`Pooling::Last`] to within rounding. A causal model computes the prefix once.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn encode_after(&self, prefix: &[u32], batch: &PackedBatch<'_>, out: &mut [f32]) -> Result<()> {
        self.encode_whole(prefix, batch, out)
    }

    /// The same, with the prefix computed for each sequence.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn encode_whole(&self, prefix: &[u32], batch: &PackedBatch<'_>, out: &mut [f32]) -> Result<()> {
        let (mut ids, mut offsets) = (Vec::new(), vec![0]);
        for range in batch.ranges() {
            ids.extend_from_slice(prefix);
            ids.extend_from_slice(&batch.ids[range]);
            offsets.push(u32::try_from(ids.len()).unwrap_or(u32::MAX));
        }
        self.encode(&PackedBatch::new(&ids, &offsets)?, Pooling::Last, out)
    }

    /// Whether it gives the [`states`](Self::states) of tokens.
    fn has_states(&self) -> bool {
        true
    }

    /// Calls `each` with the states of all tokens of each sequence.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn states(&self, batch: &PackedBatch<'_>, each: &ReadStates<'_>) -> Result<()> {
        let _ = (batch, each);
        Err(crate::Error::internal("encoder", "it gives no states of tokens"))
    }

    /// Calls `each` with the numbers of some entries of the vocabulary at all tokens of each sequence: for a sequence, in the
    /// order of the vocabulary.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); [`crate::Error::Internal`] for a model without such a head.
    fn logits(&self, batch: &PackedBatch<'_>, each: &ReadStates<'_>) -> Result<()> {
        let _ = (batch, each);
        Err(crate::Error::internal("encoder", "it gives no logits"))
    }

    /// Checks that no file that is still read from was changed since the model was loaded.
    ///
    /// # Errors
    /// [`crate::Error::InvalidFile`] naming the one that was.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Bytes of memory that the weights take; a table that stays in its file is not counted.
    fn memory_bytes(&self) -> u64;

    /// Of those, bytes on a device with a memory of its own.
    fn device_bytes(&self) -> u64 {
        0
    }

    /// The number format of the matrix products: `float32`, `bfloat16`.
    fn dtype(&self) -> &'static str;
}
