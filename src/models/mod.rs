//! What a model is: id or path → files → tokenizer and weights → token states → vectors.
//!
//! ```text
//! source.rs      what the user wrote → hub id, folder, package
//! resolve.rs     source → files                                  hub/        cache and download
//! manifest.rs    which files make a model                        kind.rs     embeds text, or writes it
//! config.rs, keys.rs   what a configuration says, and which keys are refused
//! architectures/ families: their configuration, their tensors, one forward pass for all
//! tokenizers/    text → ids
//! weights.rs     name → tensor                                   formats/    safetensors, pickle, GGUF
//! sentence.rs, stages.rs   pooling, normalization, length, prompts
//! heads/         states → result                                  head.rs     that of one model
//! settings.rs    what files and caller say of a model            encoder.rs     all of these together
//! computing.rs   from a batch to its results
//! pairing.rs     two texts as one sequence                       late.rs, late_texts.rs   queries and documents of ColBERT
//! chunks.rs      a long text in parts
//! text_part.rs          the text model of one that reads images too
//! adapters/, adapted.rs, adapter_files.rs   changes of a model's weights, and where they lie
//! static_embedding.rs   a table and a mean, without a transformer
//! content.rs     what its results are named by outside this process
//! ```

pub(crate) mod adapted;
pub(crate) mod adapter_files;
mod adapters;
pub mod architectures;
pub mod chunks;
mod computing;
pub mod config;
mod content;
pub mod decoder;
pub mod encoder;
pub mod formats;
mod head;
pub mod heads;
mod hub;
mod inspect;
pub(crate) mod json;
pub(crate) mod keys;
mod kind;
pub mod late;
mod late_texts;
pub mod manifest;
pub mod pairing;
pub mod resolve;
pub mod sentence;
mod settings;
pub mod source;
mod stages;
mod static_embedding;
mod text_part;
pub mod tokenizers;
mod unread;
pub mod weights;

pub use architectures::ModelKind;
pub use chunks::{ChunkSize, TextChunk};
pub use config::ModelConfig;
pub use content::ContentId;
pub use encoder::{Build, Encoder, on_cpu, on_device};
pub use formats::gguf;
pub use heads::pooling::normalize;
pub use heads::{Pooling, SentenceEncoder};
pub use hub::{Progress, ResolveOptions};
pub use inspect::{Inspected, Inspection, StaticInspection, StaticTable};
pub use kind::{installed_kind, kind_of_files};
pub use manifest::{ModelAdapter, ModelFiles};
pub use pairing::PairStart;
pub use resolve::resolve;
pub use sentence::{SentenceConfig, Similarity};
pub use settings::Overrides;
pub use source::Source;
pub use tokenizers::{Bounds, Tokenizer};
pub use weights::Weights;
