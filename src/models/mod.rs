//! What a model is: id or path → files → tokenizer and weights → token states → vectors.
//!
//! ```text
//! source.rs   what the user wrote → hub id, folder, package
//! files.rs    which files make a model, and where they are      hub.rs, transfer.rs, blobs.rs   cache and download
//! config.rs, keys.rs   what a configuration says, and which keys are refused
//! architectures/       families: their configuration, their tensors, one forward pass for all
//! tokenizer.rs, tokenizers/, wordpiece.rs, cut.rs, long.rs   text → ids       weights.rs, pickle.rs           name → tensor
//! sentence.rs pooling, normalisation, length, prompts           pooling.rs, dense.rs            states → vector
//! encoder.rs  all of these together
//! ```

pub(crate) mod added_tokens;
pub mod architectures;
mod blobs;
pub mod config;
pub(crate) mod cut;
pub mod decoder;
pub mod dense;
mod digest;
pub mod encoder;
pub mod files;
pub mod gguf;
pub mod gguf_tokenizer;
mod hub;
mod json;
pub(crate) mod keys;
mod kind;
pub(crate) mod long;
mod pickle;
mod pickle_machine;
pub mod pooling;
pub mod sentence;
pub mod source;
pub mod tokenizer;
pub(crate) mod tokenizers;
mod transfer;
pub mod weights;
mod wordpiece;

pub use config::ModelConfig;
pub use encoder::{Build, Encoder, Overrides, normalize, on_cpu, on_device};
pub use files::{ModelFiles, ResolveOptions, resolve};
pub use hub::Progress;
pub use kind::{Kind, kind_of};
pub use long::Bounds;
pub use pooling::{Pooling, SentenceEncoder};
pub use sentence::{SentenceConfig, Similarity};
pub use source::Source;
pub use tokenizer::Tokenizer;
pub use weights::Weights;
