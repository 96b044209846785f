//! Queries and documents of late interaction as token ids: markers before them, and a query filled up to its length.

use std::collections::HashSet;

use super::late::LateInteraction;
use super::manifest::ModelFiles;
use super::tokenizers::config::TokenizerConfig;
use super::tokenizers::{Bounds, Tokenizer};
use crate::batching::Encoded;
use crate::{Error, Result};

/// [`Encoded::second`] of a document. That of a query is the number of its own tokens.
const DOCUMENT: u32 = u32::MAX;

/// The settings of a model, with ids in place of tokens.
#[derive(Debug)]
pub(super) struct LateTexts {
    /// Texts that are one token, though the tokenizer would divide them.
    markers: Vec<(String, u32)>,
    query_length: usize,
    pub(super) document_length: usize,
    /// What fills queries, and up to how many tokens.
    expansion: Option<(u32, usize)>,
    /// Whether tokens attend to those that were filled in.
    attend: bool,
    /// Tokens without a vector, in queries and in documents.
    skipped: [HashSet<u32>; 2],
}

impl LateTexts {
    /// Finds the tokens of `late` in the vocabulary. `longest` is the longest text of the model.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an expansion that the model cannot have.
    pub(super) fn new(
        files: &ModelFiles,
        late: &LateInteraction,
        tokenizer: &Tokenizer,
        longest: usize,
        positions: usize,
    ) -> Result<Self> {
        let settings = TokenizerConfig::read(files)?;
        let unsupported = |reason: String| Error::Unsupported { model: files.model.clone(), reason };
        let mut markers = Vec::new();
        for value in &late.markers {
            let word = value.split_whitespace().next().unwrap_or_default();
            let known = [value.as_str(), word].into_iter().find_map(|text| Some((text, tokenizer.id(text)?)));
            let Some((text, id)) = known.filter(|(text, _)| !text.is_empty()) else { continue };
            if tokenizer.ids_of(text)? != [id] {
                markers.push((text.to_owned(), id));
            }
        }
        let unknown = settings.word("unk_token");
        let ids = |words: &[String]| -> HashSet<u32> {
            let unknown = unknown.as_deref().and_then(|token| Some((token, tokenizer.id(token)?)));
            let id = |word: &String| {
                tokenizer
                    .id(word)
                    .filter(|id| unknown.is_none_or(|(token, other)| *id != other || word == token))
            };
            words.iter().filter_map(id).collect()
        };
        let skipped = late.skips.map(|skips| if skips { ids(&late.skipped) } else { HashSet::new() });
        let most = |length: Option<usize>| length.unwrap_or(longest).min(positions);
        let mut query_length = most(late.query_length);
        let mut expansion = None;
        if let Some(wanted) = &late.expansion {
            if settings.word("padding_side").as_deref() == Some("left") {
                let reason = "its tokenizer pads on the left, where no query is expanded here".into();
                return Err(unsupported(reason));
            }
            if wanted.length > positions {
                let length = wanted.length;
                let reason = format!("its queries have {length} tokens, and the model reads {positions}");
                return Err(unsupported(reason));
            }
            let named = wanted.token.clone();
            let names = [named, settings.word("mask_token"), settings.word("eos_token")];
            let token = names.into_iter().flatten().next().unwrap_or_default();
            let Some(id) = tokenizer.id(&token) else {
                let reason =
                    format!("its queries are filled with the token {token:?}, which its vocabulary has not");
                return Err(unsupported(reason));
            };
            query_length = if wanted.cuts { wanted.length } else { query_length.max(wanted.length) };
            expansion = Some((id, wanted.length));
        }
        Ok(Self {
            markers,
            query_length,
            document_length: most(late.document_length),
            expansion,
            attend: late.expansion.as_ref().is_some_and(|wanted| wanted.attend),
            skipped,
        })
    }

    /// Whether no token attends to those that fill a query.
    pub(super) fn hides(&self) -> bool {
        self.expansion.is_some() && !self.attend
    }

    /// Tokens at the end of a sequence to which none attends. `second` is that of [`Encoded`].
    pub(super) fn hidden(&self, tokens: usize, second: u32) -> u32 {
        let hidden = if self.attend { 0 } else { tokens.saturating_sub(second as usize) };
        u32::try_from(hidden).unwrap_or(u32::MAX)
    }

    /// The tokens of a sequence that get no vector.
    pub(super) fn skipped(&self, second: u32) -> &HashSet<u32> {
        &self.skipped[usize::from(second == DOCUMENT)]
    }

    /// The most tokens of a query or of a document.
    pub(super) fn longest(&self, query: bool) -> usize {
        if query { self.query_length } else { self.document_length }
    }

    /// The ids of a text, at most `most`, and whether some were cut.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub(super) fn read(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        most: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<(Vec<u32>, bool)> {
        tokenizer.encode_marked(&self.markers, text, most, bounds)
    }

    /// A query or a document of the ids `read`, of which some may have been cut. `model` is what messages call the model.
    ///
    /// # Errors
    /// [`Error::Input`] for a text that is too long.
    pub(super) fn encoded(&self, model: &str, read: (Vec<u32>, bool), query: bool) -> Result<Encoded> {
        let (longest, (mut ids, truncated)) = (self.longest(query), read);
        if ids.len() > longest {
            let (tokens, kind) = (ids.len(), if query { "query" } else { "document" });
            return Err(Error::Input(format!(
                "a {kind} has {tokens} tokens, and {model:?} reads at most {longest} of one: split it (chunk), or let it be \
                 cut (truncate=True)"
            )));
        }
        let own = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        if let Some((id, length)) = self.expansion.filter(|_| query) {
            ids.resize(ids.len().max(length), id);
        }
        Ok(Encoded { ids, second: if query { own } else { DOCUMENT }, truncated })
    }
}
