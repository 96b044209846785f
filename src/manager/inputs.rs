//! What one call embeds: texts, or token ids of the model's own vocabulary.

use std::sync::Arc;

use super::core::Core;
use super::entry::{Entry, ModelInfo};
use super::options::EmbedOptions;
use crate::cache::Content;
use crate::compute::memory::{push, reserve};
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

    /// By which inputs are put in order: the greater, the more tokens.
    pub(super) fn length(&self, input: usize) -> usize {
        match self.get(input) {
            Content::Text(text) => text.len(),
            Content::Tokens(ids) => ids.len() * BYTES_PER_TOKEN,
        }
    }

    /// Refuses what no model can answer under `options`, before anything is loaded.
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

    /// Input numbers by slot, in order of first appearance.
    pub(super) fn by_slot(&self, core: &Core, model: Option<&str>) -> Result<Vec<(Arc<Entry>, Vec<usize>)>> {
        let all = || -> Result<Vec<usize>> {
            let mut all = Vec::new();
            reserve(&mut all, self.len())?;
            all.extend(0..self.len());
            Ok(all)
        };
        if let Some(name) = model {
            return Ok(vec![(core.entry(name)?, all()?)]);
        }
        let texts = match self {
            Self::Texts(texts) if !texts.is_empty() => texts,
            Self::Tokens(ids) if !ids.is_empty() && core.settings().language_detection => {
                return Err(Error::Input(
                    "token ids belong to the vocabulary of one model and have no language to choose it by; name it: \
                     embed(ids, model=...)"
                        .into(),
                ));
            }
            _ => return Ok(vec![(core.entry(core.preferred())?, all()?)]),
        };
        let mut groups: Vec<(Arc<Entry>, Vec<usize>)> = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            let name = core.route(text);
            match groups.iter_mut().find(|(entry, _)| entry.name == name) {
                Some((_, order)) => push(order, number)?,
                None => groups.push((core.entry(name)?, vec![number])),
            }
        }
        Ok(groups)
    }

    /// What `known` puts before each of them.
    pub(super) fn prompt<'a>(&self, known: &'a ModelInfo, options: &'a EmbedOptions) -> Result<&'a str> {
        match self {
            Self::Texts(_) => known.prompt(options),
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
