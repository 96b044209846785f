//! The heads of a delta rule.

use crate::compute::kernels::delta::{BLOCK, stride_of};

/// The heads of a delta rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaHeads {
    /// Heads of queries, and of keys.
    pub keys: usize,
    /// Heads of values, and of gates: a multiple of those of keys.
    pub values: usize,
    /// Length of a head's query and of its key.
    pub key_width: usize,
    /// Length of a head's value.
    pub value_width: usize,
    /// Whether the heads of values go through those of keys in turn; else those of the same key follow one another.
    pub in_turn: bool,
}

impl DeltaHeads {
    /// No heads.
    pub(crate) const NONE: Self = Self { keys: 0, values: 0, key_width: 0, value_width: 0, in_turn: false };

    /// Numbers of all queries, keys and values of a row.
    pub fn columns(&self) -> usize {
        2 * self.keys * self.key_width + self.all_values()
    }

    /// Numbers of all values of a row.
    pub fn all_values(&self) -> usize {
        self.values * self.value_width
    }

    /// Numbers of a whole row: queries, keys, values, gates, `b` and `a`.
    pub fn inputs(&self) -> usize {
        self.columns() + self.all_values() + 2 * self.values
    }

    /// Numbers that a step reads: queries, keys and values, and two numbers for each head of values.
    pub(crate) fn step(&self) -> usize {
        self.columns() + 2 * self.values
    }

    /// The head of keys of head `value` of values.
    pub fn key_of(&self, value: usize) -> usize {
        if self.in_turn { value % self.keys } else { value / (self.values / self.keys) }
    }

    /// Numbers of the state of a head of values, in blocks of columns. Those of the last block are padded.
    pub(crate) fn padded_head(&self) -> usize {
        let (whole, rest) = (self.value_width / BLOCK, self.value_width % BLOCK);
        self.key_width * (whole * BLOCK + stride_of(rest))
    }

    /// Whether there are heads, and they fit together.
    pub(super) fn are_sound(&self) -> bool {
        let sizes = [self.keys, self.values, self.key_width, self.value_width];
        sizes.iter().all(|&size| size > 0) && self.values.is_multiple_of(self.keys)
    }
}
