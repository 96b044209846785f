//! What a model is: from its files to token states and vectors.

pub mod bert;
pub mod pooling;

pub use pooling::{Pooling, SentenceEncoder};
