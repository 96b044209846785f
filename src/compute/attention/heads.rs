//! What the attention of a layer computes: its heads, the keys of each query, and how scores become weights.

use std::sync::Arc;

use super::rope::Rotary;
use crate::Result;
use crate::compute::memory::zeroed;

/// The columns of an attention input: `heads` queries, then `kv_heads` keys, then `kv_heads` values, each of `width`
/// columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads. They divide `heads`, and are fewer in grouped-query attention.
    pub kv_heads: usize,
    /// Columns of one head.
    pub width: usize,
}

/// The attention mask: a query attends to its own key, to so many before it, and to so many after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    /// Keys before the query's own.
    pub before: usize,
    /// Keys after the query's own. None in causal attention.
    pub after: usize,
}

impl Mask {
    /// A token attends to itself and to all earlier tokens.
    pub const CAUSAL: Self = Self { before: usize::MAX, after: 0 };
    /// A token attends to all tokens.
    pub const FULL: Self = Self { before: usize::MAX, after: usize::MAX };

    /// A causal sliding window: a token attends to itself and to the `tokens - 1` before it, as in Mistral and Gemma.
    pub const fn sliding(tokens: usize) -> Self {
        Self { before: tokens.saturating_sub(1), after: 0 }
    }

    /// A symmetric local window: a token attends to those at most `distance` before or after it.
    pub const fn local(distance: usize) -> Self {
        Self { before: distance, after: distance }
    }

    /// Whether no token attends to a later one.
    pub fn is_causal(self) -> bool {
        self.after == 0
    }
}

/// A number for each head and each distance of a key from its query, which is added to their score.
#[derive(Debug, PartialEq)]
pub struct DistanceBias {
    /// For each head, the numbers of distances from `1 - longest` to `longest - 1`.
    values: Vec<f32>,
    longest: usize,
}

impl DistanceBias {
    /// The numbers `bias(head, key - query)` for texts of up to `longest` tokens.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(heads: usize, longest: usize, bias: impl Fn(usize, isize) -> f32) -> Result<Self> {
        let (longest, each) = (longest.max(1), 2 * longest.max(1) - 1);
        let mut values = zeroed(heads * each)?;
        for (head, values) in values.chunks_exact_mut(each).enumerate() {
            for (value, distance) in values.iter_mut().zip(1 - longest as isize..) {
                *value = bias(head, distance);
            }
        }
        Ok(Self { values, longest })
    }

    /// The numbers of `count` keys from `key` on for a query at `query`.
    ///
    /// # Panics
    /// If a position is not one of a text of `longest` tokens.
    pub(crate) fn row(&self, head: usize, query: usize, key: usize, count: usize) -> &[f32] {
        assert!(query < self.longest && key + count <= self.longest, "positions of a bias by distance");
        &self.values[head * (2 * self.longest - 1)..][key + self.longest - 1 - query..][..count]
    }

    /// For each head, the numbers of distances from `1 - longest` to `longest - 1`.
    #[cfg(feature = "cuda")]
    pub(in crate::compute) fn values(&self) -> &[f32] {
        &self.values
    }

    /// Tokens of a text at most.
    #[cfg(feature = "cuda")]
    pub(in crate::compute) fn longest(&self) -> usize {
        self.longest
    }

    /// The number of heads.
    pub(crate) fn heads(&self) -> usize {
        self.values.len() / (2 * self.longest - 1)
    }
}

/// Which layer makes the keys and values of a layer, and which layers use them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KeySource {
    /// The layer itself, and no other uses them.
    #[default]
    Own,
    /// The layer itself, and later layers use them too.
    Kept,
    /// This earlier layer. Its own input has queries alone.
    Layer(usize),
}

/// The attention of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerAttention {
    /// Its heads, where they differ from those that the model describes.
    pub heads: Option<Heads>,
    /// The keys of each query.
    pub mask: Mask,
    /// The factor of a query's products with keys; by default `1 / √width`.
    pub scale: Option<f32>,
    /// Scores are limited smoothly to `cap`: `cap · tanh(score / cap)`, as in Gemma 2.
    pub soft_cap: Option<f32>,
    /// Added to the scores: ALiBi, and the relative positions of MPNet and T5.
    pub bias: Option<Arc<DistanceBias>>,
    /// A score for each head that competes with those of keys, and has no value: an attention sink.
    pub sinks: Option<Arc<[f32]>>,
    /// Rotary positions of queries and keys.
    pub rotary: Option<Rotary>,
    /// Where keys and values come from.
    pub keys: KeySource,
}

impl LayerAttention {
    /// Scaled dot-product attention over the keys of `mask`, without positions.
    pub const fn new(mask: Mask) -> Self {
        Self {
            heads: None,
            mask,
            scale: None,
            soft_cap: None,
            bias: None,
            sinks: None,
            rotary: None,
            keys: KeySource::Own,
        }
    }

    /// The same with rotary positions.
    #[must_use]
    pub fn with_rotary(self, rotary: Rotary) -> Self {
        Self { rotary: Some(rotary), ..self }
    }

    /// Whether the keys and values are those of an earlier layer.
    pub(crate) fn reuses_keys(&self) -> bool {
        matches!(self.keys, KeySource::Layer(_))
    }

    /// The heads of its input, of all its `heads`: without those of keys and values that an earlier layer made.
    pub(crate) fn input_heads(&self, heads: Heads) -> Heads {
        if self.reuses_keys() { Heads { kv_heads: 0, ..heads } } else { heads }
    }

    /// The factor of the products for heads of `width` columns.
    pub(crate) fn factor(&self, width: usize) -> f32 {
        self.scale.unwrap_or_else(|| 1.0 / (width as f32).sqrt())
    }
}
