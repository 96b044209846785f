//! Heads: from the states of a text's tokens to the text's result.

pub mod dense;
pub mod pooling;

pub use dense::DenseLayer;
pub use pooling::{Pooling, SentenceEncoder};
