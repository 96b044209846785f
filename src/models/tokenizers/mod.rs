//! The tokenizers of one model file.
//!
//! ```text
//! pipeline.rs   what the rest asks of a tokenizer      small.rs   a tokenizer with a small vocabulary
//! unigram.rs, trie.rs   that vocabulary                direct.rs  its short way from a text to ids
//! ```

mod direct;
mod pipeline;
mod small;
mod trie;
mod unigram;

pub(crate) use pipeline::{Pipeline, Vocabulary, With, Words};
pub(crate) use small::small;

#[cfg(test)]
mod tests;
