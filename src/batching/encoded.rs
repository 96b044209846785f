//! What tokenizers make of an input, and batches are made of.

/// What a model reads: token ids, and where the second text begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Ids, special ones included.
    pub ids: Vec<u32>,
    /// The token from which on tokens have type 1; the number of ids where all have type 0.
    pub second: u32,
    /// Whether tokens of the text were cut, because the model reads no more.
    pub truncated: bool,
}

impl From<Vec<u32>> for Encoded {
    /// One text: all tokens have type 0.
    fn from(ids: Vec<u32>) -> Self {
        Self { second: u32::try_from(ids.len()).unwrap_or(u32::MAX), ids, truncated: false }
    }
}
