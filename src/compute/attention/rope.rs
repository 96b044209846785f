//! Rotary position embedding: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

use crate::Result;
use crate::compute::memory::zeroed;

/// How rotary position embedding pairs the values of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Pairs `i` with `i + width / 2`: transformers, and GGUF files of Qwen.
    Neox,
    /// Pairs `2 i` with `2 i + 1`: GGUF files of Llama, whose matrices are permuted accordingly.
    Interleaved,
}

/// Rotary positions: `θᵢ = frequencies[i] · position`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// The frequency of each pair.
    pub frequencies: Vec<f32>,
    /// Which values form a pair.
    pub style: RopeStyle,
    /// The factor of cosines and sines.
    pub factor: f32,
    /// Frequencies of long texts, if they have their own.
    pub long: Option<LongRope>,
    /// How queries grow with their position, if they do.
    pub query_growth: Option<QueryGrowth>,
}

/// Queries of later positions are multiplied by more, so that attention over longer texts stays as sharp: Ministral 3.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryGrowth {
    /// The growth of the logarithm.
    pub rate: f32,
    /// Positions that have the same factor.
    pub length: usize,
}

impl QueryGrowth {
    fn at(self, position: usize) -> f32 {
        1.0 + self.rate * (1.0 + (position / self.length.max(1)) as f32).ln()
    }
}

/// Frequencies of long texts.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// The longest text that has the usual frequencies, in tokens.
    pub from: usize,
    /// The frequency of each pair in longer texts.
    pub frequencies: Vec<f32>,
}

impl Rotary {
    /// The usual frequencies, `base^(-2i / width)`, for the first `width` values of a head.
    pub fn new(base: f32, width: usize, style: RopeStyle) -> Self {
        Self::of_pairs(base, width, width / 2, style)
    }

    /// The same for so many pairs.
    pub(crate) fn of_pairs(base: f32, width: usize, pairs: usize, style: RopeStyle) -> Self {
        let frequencies = (0..pairs).map(|i| 1.0 / base.powf((2 * i) as f32 / width as f32)).collect();
        Self { frequencies, style, factor: 1.0, long: None, query_growth: None }
    }

    /// Cosines, then sines, of one position in a text of `length` tokens.
    pub(crate) fn angles(&self, position: usize, length: usize, out: &mut [f32]) {
        let (cosines, sines) = out.split_at_mut(self.frequencies.len());
        let long = self.long.as_ref().filter(|long| length > long.from);
        let frequencies = long.map_or(&self.frequencies, |long| &long.frequencies);
        for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(frequencies) {
            (*sine, *cosine) = (frequency * position as f32).sin_cos();
            (*sine, *cosine) = (*sine * self.factor, *cosine * self.factor);
        }
    }
}

/// The cosines and sines of the rows of a pass, which all layers share.
#[derive(Debug)]
pub struct RopeTable<'a> {
    /// The rotary position embedding of the table.
    pub rotary: &'a Rotary,
    /// For each row, cosines, then sines, of every pair.
    angles: Vec<f32>,
    /// The factor of each row's queries, if they grow.
    query_factors: Vec<f32>,
}

impl<'a> RopeTable<'a> {
    /// A table for rows at these positions, each with the number of tokens of its text.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(rotary: &'a Rotary, rows: impl ExactSizeIterator<Item = (usize, usize)>) -> Result<Self> {
        let each = 2 * rotary.frequencies.len();
        let mut angles = zeroed(rows.len() * each)?;
        let mut query_factors = Vec::new();
        for ((position, length), angles) in rows.zip(angles.chunks_exact_mut(each.max(1))) {
            rotary.angles(position, length, angles);
            query_factors.extend(rotary.query_growth.map(|growth| growth.at(position)));
        }
        Ok(Self { rotary, angles, query_factors })
    }

    /// The same without angles, for a backend that has those of all positions.
    #[cfg(feature = "cuda")]
    pub(in crate::compute) fn without_angles(
        rotary: &'a Rotary,
        positions: impl Iterator<Item = usize>,
    ) -> Self {
        let growth = rotary.query_growth;
        let query_factors = positions.filter_map(|position| growth.map(|growth| growth.at(position)));
        Self { rotary, angles: Vec::new(), query_factors: query_factors.collect() }
    }

    /// The factor of the queries of row `row`.
    pub fn query_factor(&self, row: usize) -> f32 {
        self.query_factors.get(row).copied().unwrap_or(1.0)
    }

    /// Cosines, then sines, of row `row`.
    pub fn at(&self, row: usize) -> &[f32] {
        let each = 2 * self.rotary.frequencies.len();
        &self.angles[row * each..][..each]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::isa::{DType, Isa};
    use crate::compute::kernels::Kernels;
    use crate::compute::kernels::rowwise::RopeRow;

    #[test]
    fn long_texts_have_their_own_frequencies_and_all_the_factor() {
        let long = LongRope { from: 10, frequencies: vec![0.25] };
        let rotary = Rotary {
            frequencies: vec![0.5],
            style: RopeStyle::Neox,
            factor: 3.0,
            long: Some(long),
            query_growth: None,
        };
        let table = RopeTable::new(&rotary, [(4, 10), (4, 11)].into_iter()).unwrap();
        assert_eq!(table.at(0), [3.0 * 2f32.cos(), 3.0 * 2f32.sin()]);
        assert_eq!(table.at(1), [3.0 * 1f32.cos(), 3.0 * 1f32.sin()]);
    }

    #[test]
    fn rotations_add_up_and_are_neutral_at_zero() {
        for style in [RopeStyle::Neox, RopeStyle::Interleaved] {
            let rotary = Rotary::new(10_000.0, 8, style);
            let head: Vec<f32> = (0..8).map(|i| i as f32 - 3.0).collect();
            let rotated = |head: &[f32], position| {
                let (mut angles, mut head) = (vec![0.0; 8], head.to_vec());
                rotary.angles(position, 1, &mut angles);
                let rope = RopeRow {
                    row: head.as_mut_ptr().cast(),
                    format: DType::F32,
                    heads: 1,
                    queries: 1,
                    width: 8,
                    norms: None,
                    shifts: None,
                    angles: &angles,
                    query_factor: 1.0,
                    interleaved: style == RopeStyle::Interleaved,
                };
                // SAFETY: `head` has the eight values of one head, is aligned, and is not accessed elsewhere.
                unsafe { Kernels::of(Isa::best()).apply_rope(&rope) };
                head
            };
            assert_eq!(rotated(&head, 0), head);
            let (once, twice) = (rotated(&head, 12), rotated(&rotated(&head, 5), 7));
            assert!(once.iter().zip(&twice).all(|(a, b)| (a - b).abs() < 1e-5));
            let partner = if style == RopeStyle::Neox { 4 } else { 1 };
            let expected = head[0] * 12f32.cos() - head[partner] * 12f32.sin();
            assert!((once[0] - expected).abs() < 1e-5);
        }
    }
}
