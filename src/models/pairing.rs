//! Two texts as one sequence of a model: with special tokens between them, or as a conversation.

use super::encoder::Encoder;
use super::heads::Pooling;
use super::tokenizers::pair_chat::ChatQuery;
use super::tokenizers::{Bounds, PairText};
use crate::Result;
use crate::batching::Encoded;
use crate::compute::memory::joined;

/// The first text of pairs, which can be paired several times.
#[derive(Debug)]
pub struct PairStart<'a> {
    first: &'a str,
    form: Form<'a>,
}

#[derive(Debug)]
enum Form<'a> {
    Tokens(PairText<'a>),
    Chat(ChatQuery<'a>),
}

impl PairStart<'_> {
    /// Whether it is this text.
    pub fn is_of(&self, first: &str) -> bool {
        self.first == first
    }
}

impl Encoder {
    /// The first text of pairs of at most `max_length` tokens. `prompt` stands before it, or is the system's message of a
    /// conversation.
    ///
    /// # Errors
    /// Those of the tokenizer, and of the model's template.
    pub fn pair_start<'a>(
        &self,
        prompt: &'a str,
        first: &'a str,
        max_length: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<PairStart<'a>> {
        let form = match &self.pair_chat {
            Some(chat) => Form::Chat(chat.query(&self.tokenizer, prompt, first, max_length, bounds)?),
            None if prompt.is_empty() => Form::Tokens(self.tokenizer.pair_text(first, max_length, bounds)?),
            None => Form::Tokens(self.tokenizer.pair_text(joined(&[prompt, first])?, max_length, bounds)?),
        };
        Ok(PairStart { first, form })
    }

    /// The sequence of a pair, at most `max_length` tokens.
    ///
    /// # Errors
    /// As [`Encoder::pair_start`].
    pub fn pair(
        &self,
        start: &PairStart<'_>,
        second: &str,
        max_length: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<Encoded> {
        match (&start.form, &self.pair_chat) {
            (Form::Chat(query), Some(chat)) => {
                let pair = chat.pair(&self.tokenizer, query, second, max_length, bounds)?;
                // A model whose score is not that of the last token may have token types, which are all 0 here.
                let shares = self.config.pooling == Pooling::Last;
                Ok(if shares { pair } else { Encoded { truncated: pair.truncated, ..pair.ids.into() } })
            }
            (Form::Tokens(first), _) => {
                let second = self.tokenizer.pair_text(second, max_length, bounds)?;
                self.tokenizer.pair(first, &second, max_length, bounds)
            }
            (Form::Chat(_), None) => Err(super::encoder::misuse("the pair is of another model")),
        }
    }
}
