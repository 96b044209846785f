//! Rotary position embedding: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

use crate::Result;
use crate::compute::memory::zeroed;

/// How a rotary embedding pairs the numbers of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `i` with `i + width / 2`: transformers, and GGUF files of Qwen.
    Neox,
    /// `2 i` with `2 i + 1`: GGUF files of Llama, whose matrices are permuted to suit.
    Interleaved,
}

/// Rotary positions: `θᵢ = frequencies[i] · position`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// One for each pair.
    pub frequencies: Vec<f32>,
    /// Which numbers form a pair.
    pub style: RopeStyle,
}

impl Rotary {
    /// The usual frequencies, `base^(-2i / width)`, for the first `width` numbers of a head.
    pub fn new(base: f32, width: usize, style: RopeStyle) -> Self {
        let frequencies = (0..width / 2).map(|i| 1.0 / base.powf((2 * i) as f32 / width as f32)).collect();
        Self { frequencies, style }
    }

    /// Cosines, then sines, of one position.
    pub(crate) fn angles(&self, position: usize, out: &mut [f32]) {
        let (cosines, sines) = out.split_at_mut(self.frequencies.len());
        for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&self.frequencies) {
            (*sine, *cosine) = (frequency * position as f32).sin_cos();
        }
    }
}

/// Rotary positions of the rows of a pass, with their cosines and sines: computed once for all layers.
#[derive(Debug)]
pub struct RopeTable<'a> {
    /// How numbers are paired.
    pub rotary: &'a Rotary,
    /// For each row, cosines, then sines, of every pair.
    angles: Vec<f32>,
}

impl<'a> RopeTable<'a> {
    /// For rows at these positions.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(rotary: &'a Rotary, positions: impl ExactSizeIterator<Item = usize>) -> Result<Self> {
        let each = 2 * rotary.frequencies.len();
        let mut angles = zeroed(positions.len() * each)?;
        for (position, angles) in positions.zip(angles.chunks_exact_mut(each.max(1))) {
            rotary.angles(position, angles);
        }
        Ok(Self { rotary, angles })
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
    fn turning_keeps_lengths_and_adds_up() {
        for style in [RopeStyle::Neox, RopeStyle::Interleaved] {
            let rotary = Rotary::new(10_000.0, 8, style);
            let head: Vec<f32> = (0..8).map(|i| i as f32 - 3.0).collect();
            let turned = |head: &[f32], position| {
                let (mut angles, mut head) = (vec![0.0; 8], head.to_vec());
                rotary.angles(position, &mut angles);
                let rope = RopeRow {
                    row: head.as_mut_ptr().cast(),
                    format: DType::F32,
                    heads: 1,
                    queries: 1,
                    width: 8,
                    norms: None,
                    angles: &angles,
                    interleaved: style == RopeStyle::Interleaved,
                };
                // SAFETY: one head of eight.
                unsafe { Kernels::of(Isa::best()).apply_rope(&rope) };
                head
            };
            assert_eq!(turned(&head, 0), head);
            let (once, twice) = (turned(&head, 12), turned(&turned(&head, 5), 7));
            assert!(once.iter().zip(&twice).all(|(a, b)| (a - b).abs() < 1e-5));
            let partner = if style == RopeStyle::Neox { 4 } else { 1 };
            let expected = head[0] * 12f32.cos() - head[partner] * 12f32.sin();
            assert!((once[0] - expected).abs() < 1e-5);
        }
    }
}
