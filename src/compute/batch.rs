//! The tokens of several texts as one input.

use std::ops::Range;

use crate::{Error, Result};

/// Concatenated token sequences without padding: sequence `i` is `ids[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Clone, Copy)]
pub struct PackedBatch<'a> {
    /// Token ids of all sequences.
    pub ids: &'a [u32],
    /// The start of each sequence, and the end of the last one: one more entry than sequences.
    pub offsets: &'a [u32],
    /// The token of each sequence from which on tokens have type 1; empty if all tokens have type 0.
    pub second_starts: &'a [u32],
    /// The number of tokens at the end of each sequence to which no token attends; empty if there are none.
    pub hidden: &'a [u32],
}

impl<'a> PackedBatch<'a> {
    /// Checks that the offsets start at 0, never decrease, and end at the number of ids.
    ///
    /// # Errors
    /// [`Error::Input`] if they do not.
    pub fn new(ids: &'a [u32], offsets: &'a [u32]) -> Result<Self> {
        let starts = offsets.first() == Some(&0);
        let ends = offsets.last().is_some_and(|&end| end as usize == ids.len());
        if !(starts && ends && offsets.is_sorted()) {
            return Err(Error::Input(format!(
                "offsets must rise from 0 to the number of ids ({}), with one more entry than sequences",
                ids.len()
            )));
        }
        Ok(Self { ids, offsets, second_starts: &[], hidden: &[] })
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Total number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The rows of sequence `index`.
    pub fn range(&self, index: usize) -> Range<usize> {
        self.offsets[index] as usize..self.offsets[index + 1] as usize
    }

    /// The row from which on the tokens of sequence `index` have type 1.
    pub fn second_type(&self, index: usize) -> usize {
        self.second_starts
            .get(index)
            .map_or(usize::MAX, |&second| self.offsets[index] as usize + second as usize)
    }

    /// The rows of every sequence.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_checked() {
        assert_eq!(PackedBatch::new(&[1, 2, 3], &[0, 2, 2, 3]).unwrap().range(2), 2..3);
        assert_eq!(PackedBatch::new(&[], &[0]).unwrap().sequences(), 0);
        for offsets in [&[][..], &[0], &[1, 3], &[0, 2], &[0, 3, 2, 3]] {
            assert!(PackedBatch::new(&[1, 2, 3], offsets).is_err(), "{offsets:?}");
        }
    }
}
