//! Text → token ids: the tokenizers of a model's files.
//!
//! ```text
//! tokenizer.rs   from files to a tokenizer             config.rs, added_tokens.rs   what they add to tokenizer.json
//! file.rs, compact.rs   from tokenizer.json, its patterns by oniguruma.rs            wordpiece.rs   from vocab.txt
//! gguf.rs, gguf_words.rs, gguf_merges.rs   from a GGUF file
//! pipeline.rs    a tokenizer in use                    direct*.rs     its short way from a text to ids
//! model.rs       what makes pieces of words: unigram.rs, bpe.rs, wordpiece_model.rs
//! pieces.rs, trie.rs, text_table.rs   their vocabularies         marks.rs   marks in place of spaces
//! cut.rs         where a text can be cut               long.rs    reading a long text in parts
//! pairs.rs, pair_template.rs   two texts as one sequence           pair_chat.rs   as one conversation
//! text_chat.rs   a text as a conversation                          chat_form.rs   the template of both
//! ```

pub(crate) mod added_tokens;
mod bpe;
mod charsmap;
pub(crate) mod chat_form;
pub(crate) mod compact;
pub(crate) mod config;
pub(crate) mod cut;
mod direct;
mod direct_bpe;
mod direct_unigram;
mod direct_wordpiece;
pub(crate) mod file;
pub(crate) mod gguf;
mod gguf_merges;
mod gguf_words;
pub(crate) mod long;
mod marks;
pub(crate) mod model;
mod oniguruma;
pub(crate) mod pair_chat;
mod pair_template;
pub(crate) mod pairs;
mod pieces;
mod pipeline;
pub(crate) mod text_chat;
mod text_table;
pub(crate) mod tokenizer;
mod trie;
mod unigram;
mod wanted;
mod wordpiece;
mod wordpiece_model;

pub use long::Bounds;
pub use pair_chat::PairChat;
pub(crate) use pairs::PairText;
pub(crate) use pipeline::Pipeline;
pub use text_chat::{ChatText, TextChat};
pub use tokenizer::Tokenizer;

#[cfg(test)]
mod tests;
