//! From the states of a text's tokens to the text's one vector.

use crate::Result;
use crate::compute::{Packed, Row, Rows};

/// How token states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Pooling {
    /// The average of all tokens.
    Mean,
    /// The first token.
    Cls,
    /// The last token.
    Last,
    /// The largest value of each column.
    Max,
    /// The sum over the square root of the number of tokens.
    MeanSqrtLen,
    /// The average weighted by position: 1 for the first token, 2 for the second, …
    WeightedMean,
}

impl Pooling {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Mean, Self::Cls, Self::Last, Self::Max, Self::MeanSqrtLen, Self::WeightedMean];

    /// The name that sentence-transformers gives it: `pooling_mode_…` without that prefix, or `pooling_mode`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Last => "lasttoken",
            Self::Max => "max",
            Self::MeanSqrtLen => "mean_sqrt_len_tokens",
            Self::WeightedMean => "weightedmean",
        }
    }

    /// The kind of this [`Self::name`]; also the long names of the `pooling_mode_…` keys.
    pub fn from_name(name: &str) -> Option<Self> {
        let short = match name {
            "mean_tokens" => "mean",
            "cls_token" => "cls",
            "max_tokens" => "max",
            "weightedmean_tokens" => "weightedmean",
            short => short,
        };
        Self::ALL.into_iter().find(|kind| kind.name() == short)
    }

    /// The row of a text that its vector is made of, where it is one.
    pub(crate) fn row(self) -> Option<Row> {
        match self {
            Self::Cls => Some(Row::First),
            Self::Last => Some(Row::Last),
            Self::Mean | Self::Max | Self::MeanSqrtLen | Self::WeightedMean => None,
        }
    }

    /// Pools `rows`, the states of one text, into `out`. A text without tokens becomes zeros.
    pub fn pool(self, rows: Rows<'_>, out: &mut [f32]) {
        out.fill(0.0);
        let count = rows.len() as f32;
        match self {
            _ if rows.is_empty() => {}
            Self::Mean => sum(rows, out, |_| 1.0, count),
            Self::MeanSqrtLen => sum(rows, out, |_| 1.0, count.sqrt()),
            Self::WeightedMean => sum(rows, out, |row| (row + 1) as f32, count * (count + 1.0) / 2.0),
            Self::Cls => rows.iter().take(1).for_each(|row| out.copy_from_slice(row)),
            Self::Last => rows.iter().next_back().into_iter().for_each(|row| out.copy_from_slice(row)),
            Self::Max => {
                out.fill(f32::NEG_INFINITY);
                for row in rows.iter() {
                    for (x, &value) in out.iter_mut().zip(row) {
                        // A NaN must show, and not be passed over as `f32::max` would.
                        *x = if value > *x || value.is_nan() { value } else { *x };
                    }
                }
            }
        }
    }
}

/// `Σ weight(i) * row i / total`.
fn sum(rows: Rows<'_>, out: &mut [f32], weight: impl Fn(usize) -> f32, total: f32) {
    for (index, row) in rows.iter().enumerate() {
        let weight = weight(index);
        for (x, &value) in out.iter_mut().zip(row) {
            *x += weight * value;
        }
    }
    for x in out {
        *x /= total;
    }
}

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
    fn encode(&self, batch: &Packed<'_>, pooling: Pooling, out: &mut [f32]) -> Result<()>;

    /// The last state of each sequence that begins with `prefix` and goes on with one of `batch`, none of which is empty, as
    /// [`encode`](Self::encode) gives it with [`Pooling::Last`] to within rounding. A causal model computes the prefix once.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn encode_after(&self, prefix: &[u32], batch: &Packed<'_>, out: &mut [f32]) -> Result<()> {
        self.encode_whole(prefix, batch, out)
    }

    /// The same, with the prefix computed for each sequence.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn encode_whole(&self, prefix: &[u32], batch: &Packed<'_>, out: &mut [f32]) -> Result<()> {
        let (mut ids, mut offsets) = (Vec::new(), vec![0]);
        for range in batch.ranges() {
            ids.extend_from_slice(prefix);
            ids.extend_from_slice(&batch.ids[range]);
            offsets.push(u32::try_from(ids.len()).unwrap_or(u32::MAX));
        }
        self.encode(&Packed::new(&ids, &offsets)?, Pooling::Last, out)
    }

    /// Whether it gives the [`states`](Self::states) of tokens.
    fn has_states(&self) -> bool {
        true
    }

    /// Calls `each` with the states of all tokens of each sequence.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn states(&self, batch: &Packed<'_>, each: &ReadStates<'_>) -> Result<()> {
        let _ = (batch, each);
        Err(crate::Error::Internal { place: "encoder".into(), reason: "it gives no states of tokens".into() })
    }

    /// Calls `each` with the numbers of some entries of the vocabulary at all tokens of each sequence: for a sequence, in the
    /// order of the vocabulary.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); [`crate::Error::Internal`] for a model without such a head.
    fn logits(&self, batch: &Packed<'_>, each: &ReadStates<'_>) -> Result<()> {
        let _ = (batch, each);
        Err(crate::Error::Internal { place: "encoder".into(), reason: "it gives no logits".into() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_by_hand() {
        // Two columns, and a third that is padding.
        let values = [1.0, 8.0, 99.0, 3.0, -4.0, 99.0, 5.0, 2.0, 99.0];
        for (kind, expected) in [
            (Pooling::Mean, [3.0, 2.0]),
            (Pooling::Cls, [1.0, 8.0]),
            (Pooling::Last, [5.0, 2.0]),
            (Pooling::Max, [5.0, 8.0]),
            (Pooling::MeanSqrtLen, [9.0 / 3.0_f32.sqrt(), 6.0 / 3.0_f32.sqrt()]),
            (Pooling::WeightedMean, [22.0 / 6.0, 1.0]),
        ] {
            let mut out = [7.0; 2];
            kind.pool(Rows::new(&values, 3, 2), &mut out);
            assert_eq!(out, expected, "{kind:?}");
            kind.pool(Rows::new(&[], 3, 2), &mut out);
            assert_eq!(out, [0.0; 2], "{kind:?} of nothing");
            assert_eq!(Pooling::from_name(kind.name()), Some(kind));
        }
        assert_eq!(Pooling::from_name("median"), None);
    }

    #[test]
    fn not_a_number_is_not_hidden() {
        for kind in [Pooling::Mean, Pooling::Max, Pooling::WeightedMean] {
            let mut out = [0.0];
            kind.pool(Rows::new(&[1.0, f32::NAN, 2.0], 1, 1), &mut out);
            assert!(out[0].is_nan(), "{kind:?}");
        }
    }
}
