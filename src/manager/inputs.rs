//! What one call embeds: texts, or token ids of the model's own vocabulary.

use super::info::ModelInfo;
use super::options::EmbedOptions;
use crate::cache::Content;
use crate::models::{Bounds, Encoder};
use crate::{Error, Result};

/// Bytes of a usual text for one token, to compare the lengths of both.
const BYTES_PER_TOKEN: usize = 4;

/// What one call embeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inputs {
    /// Texts, which get the call's prompt and the model's special tokens.
    Texts(Vec<String>),
    /// Token ids, which the model reads as they are: nothing is put before, between or after them.
    Tokens(Vec<Vec<u32>>),
}

impl From<Vec<String>> for Inputs {
    fn from(texts: Vec<String>) -> Self {
        Self::Texts(texts)
    }
}

impl From<Vec<Vec<u32>>> for Inputs {
    fn from(ids: Vec<Vec<u32>>) -> Self {
        Self::Tokens(ids)
    }
}

impl Inputs {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Tokens(ids) => ids.len(),
        }
    }

    pub(super) fn get(&self, input: usize) -> Content<'_> {
        match self {
            Self::Texts(texts) => Content::Text(&texts[input]),
            Self::Tokens(ids) => Content::Tokens(&ids[input]),
        }
    }

    /// A measure to sort inputs by: the greater, the more tokens.
    pub(super) fn length(&self, input: usize) -> usize {
        match self.get(input) {
            Content::Text(text) => text.len(),
            Content::Tokens(ids) => ids.len() * BYTES_PER_TOKEN,
        }
    }

    /// Refuses inputs that no model can answer under `options`, before anything is loaded.
    pub(super) fn check(&self, options: &EmbedOptions) -> Result<()> {
        let Self::Tokens(ids) = self else { return Ok(()) };
        if options.prompt_name.is_some() || options.prompt.as_ref().is_some_and(|prompt| !prompt.is_empty()) {
            return Err(Error::Input(
                "token ids are read as they are and take no prompt: put the prompt's ids in front of them, or embed \
                 the text"
                    .into(),
            ));
        }
        match ids.iter().position(Vec::is_empty) {
            Some(input) => Err(Error::Input(format!("input {input} holds no token ids"))),
            None => Ok(()),
        }
    }

    /// The prompt that is put before each of them.
    pub(super) fn prompt<'a>(&self, info: &'a ModelInfo, options: &'a EmbedOptions) -> Result<&'a str> {
        match self {
            Self::Texts(_) => info.prompt(options),
            Self::Tokens(_) => Ok(""),
        }
    }

    /// The ids that `encoder` reads for one of them, at most as many as it takes.
    pub(super) fn sequence(
        &self,
        input: usize,
        encoder: &Encoder,
        prompt: &str,
        truncate: bool,
        bounds: &mut Bounds<'_>,
    ) -> Result<Vec<u32>> {
        let longest = encoder.config.max_length;
        let ids = match self.get(input) {
            Content::Text(text) if truncate => encoder.tokenize(prompt, text, bounds)?,
            Content::Text(text) => encoder.tokenize_whole(prompt, text, bounds)?,
            Content::Tokens(ids) => {
                if let Some(wrong) = ids.iter().find(|id| **id as usize >= encoder.vocabulary) {
                    return Err(Error::Input(format!(
                        "input {input} holds the token id {wrong}, which is not in the vocabulary of {:?}: its ids are \
                         0 to {}",
                        encoder.name,
                        encoder.vocabulary.saturating_sub(1)
                    )));
                }
                if truncate { encoder.tokenizer.cut(ids, longest).to_vec() } else { ids.to_vec() }
            }
        };
        if ids.len() > longest {
            return Err(Error::Input(format!(
                "input {input} has {} tokens, and {:?} reads at most {longest}: shorten it, or let it be cut \
                 (truncate=True)",
                ids.len(),
                encoder.name
            )));
        }
        Ok(ids)
    }
}
