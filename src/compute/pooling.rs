//! From the states of a text's tokens to the text's one vector.

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

/// Which row of a sequence is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// The first.
    First,
    /// The last.
    Last,
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

    /// The values, how many lie from a row to the next, and the values of a row.
    pub(in crate::compute) fn parts(&self) -> (&'a [f32], usize, usize) {
        (self.values, self.stride, self.width)
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
