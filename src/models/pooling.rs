//! From token states to one vector per text.

use crate::Result;
use crate::compute::Packed;

/// How the token states of a text become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// Mean over the tokens.
    Mean,
    /// The first token.
    Cls,
    /// The last token.
    Last,
    /// Maximum over the tokens, per dimension.
    Max,
    /// Sum over the tokens divided by the square root of their number.
    MeanSqrtLen,
    /// Mean weighted by position, counted from 1.
    WeightedMean,
}

impl Pooling {
    /// sentence-transformers' name of a mode.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "mean" => Self::Mean,
            "cls" => Self::Cls,
            "lasttoken" => Self::Last,
            "max" => Self::Max,
            "mean_sqrt_len_tokens" => Self::MeanSqrtLen,
            "weightedmean" => Self::WeightedMean,
            _ => return None,
        })
    }
}

/// A model that turns token ids into vectors.
pub trait SentenceEncoder: Send + Sync {
    /// Length of the vectors.
    fn width(&self) -> usize;
    /// The longest sequence.
    fn max_positions(&self) -> usize;
    /// Row-major `[sequences, width]`, not normalised.
    ///
    /// # Errors
    /// When the model fails.
    fn encode(&self, batch: &Packed<'_>, pooling: Pooling, out: &mut [f32]) -> Result<()>;
    /// Bytes held.
    fn memory_bytes(&self) -> u64;
    /// The format it computes in.
    fn dtype(&self) -> &'static str;
}
