//! Text → token ids: the tokenizers of a model's files.
//!
//! ```text
//! tokenizer.rs   from files to a tokenizer             config.rs, added_tokens.rs   what they add to tokenizer.json
//! wordpiece.rs   from vocab.txt                        gguf.rs, gguf_words.rs   from a GGUF file
//! pipeline.rs    the interface of all tokenizers       small.rs   a tokenizer with a small vocabulary
//! unigram.rs, trie.rs   that vocabulary                direct.rs  its short way from a text to ids
//! cut.rs         where a text can be cut               long.rs    reading a long text in parts
//! pairs.rs, pair_template.rs   two texts as one sequence           pair_chat.rs   as one conversation
//! ```

pub(crate) mod added_tokens;
pub(crate) mod config;
pub(crate) mod cut;
mod direct;
pub mod gguf;
mod gguf_words;
pub(crate) mod long;
pub(crate) mod pair_chat;
mod pair_template;
pub(crate) mod pairs;
mod pipeline;
mod small;
pub(crate) mod tokenizer;
mod trie;
mod unigram;
mod wordpiece;

pub use long::Bounds;
pub use pair_chat::PairChat;
pub use pairs::Encoded;
pub(crate) use pairs::PairText;
pub use tokenizer::Tokenizer;
#[cfg(test)]
use {pipeline::Pipeline, pipeline::Vocabulary, small::small};

#[cfg(test)]
mod tests;
