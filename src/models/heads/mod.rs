//! Heads: from the states of a text's tokens to the text's result.

pub mod classifier;
pub mod dense;
pub mod layout;
pub mod pooling;
pub mod sparse;
pub mod tokens;

pub use classifier::{Classifier, ScoreActivation, ScoreConfig};
pub use dense::DenseLayer;
pub use layout::{ClassifierHead, HeadActivation};
pub use pooling::{Pooling, SentenceEncoder};
pub use sparse::{SparseBatch, SpladePooling};
pub use tokens::{LexicalHead, TokenHead};
