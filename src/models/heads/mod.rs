//! Heads: from the states of a text's tokens to the text's result.

pub mod classifier;
pub mod dense;
pub mod pooling;

pub use classifier::{Classifier, ClassifierHead, ScoreActivation, ScoreConfig};
pub use dense::{DenseLayer, HeadActivation};
pub use pooling::{Pooling, SentenceEncoder};
