//! What is known of a model after it has been loaded once.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::loaded_files::LoadedFiles;
use super::options::{Check, EmbedOptions};
use crate::Result;
use crate::cache::tiers::ModelContent;
use crate::cache::{CachedItem, Content, EmbeddingCache};
use crate::models::heads::ScoreConfig;
use crate::models::{ContentId, SentenceConfig};
use crate::output::{OutputKind, Shape, Shapes};

/// What a model is, as far as its results depend on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ModelFacts {
    /// Files, dtype and overrides, or server and model: equal for equal results.
    pub(super) identity: Arc<str>,
    pub(super) shapes: Shapes,
    /// The source, as messages name it.
    pub(super) model: String,
    /// What the model's files say; of a slot, with its own prompts added.
    pub(super) config: SentenceConfig,
    /// Tokens after which an input is cut; `None` when only a server knows.
    pub(super) max_length: Option<usize>,
    /// Whether a text may be cut after some characters, before its tokens are counted.
    pub(super) cuts_characters: bool,
}

/// Enough to answer from the cache while the model is absent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModelInfo {
    /// The source that the slot named when the model was loaded.
    pub(super) asked: String,
    pub(super) facts: ModelFacts,
    /// Labels and activations of a model that scores.
    pub(super) scores: Option<Arc<ScoreConfig>>,
    /// What it computes, for tiers that outlive this process; `None` without such tiers, or when only a server knows.
    pub(super) content: Option<ModelContent>,
    /// Its files; `None` when a server has them.
    pub(super) files: Option<LoadedFiles>,
}

impl ModelInfo {
    /// The shape of what the model computes for a call with `options` to the slot `name`, and that of its results.
    pub(super) fn shapes(&self, options: &EmbedOptions, name: &str) -> Result<(Shape, Shape)> {
        let computed = self.facts.shapes.expect(options.kind, name)?;
        Ok((computed, options.shape(computed, &self.facts.config)?))
    }

    /// The prompt that `options` ask for, or the model's default, or none.
    pub(super) fn prompt<'a>(&'a self, options: &'a EmbedOptions) -> Result<&'a str> {
        options.one_prompt()?;
        // Queries and documents of late interaction have prompts of their own.
        let side = match options.kind {
            OutputKind::Queries => Some("query"),
            OutputKind::Multi if self.facts.shapes.dense.is_none() => Some("document"),
            _ => None,
        };
        let own = side.filter(|name| self.facts.config.prompts.contains_key(*name));
        self.facts.config.prompt(
            &self.facts.model,
            options.prompt_name.as_deref().or(own),
            options.prompt.as_deref(),
        )
    }

    /// What the model computes, as far as its files say. `check` is called while they are read.
    ///
    /// # Errors
    /// That of `check`.
    pub(super) fn identified(&self, check: Check<'_>) -> Result<Option<ContentId>> {
        match (self.content.as_ref().and_then(ModelContent::get), &self.files) {
            (Some(content), _) => Ok(Some(ContentId(*content))),
            (None, Some(files)) => files.content(check),
            (None, None) => Ok(None),
        }
    }

    /// The result of `content` if the cache has one that answers a call with `options`.
    pub(super) fn cached(
        &self,
        cache: &EmbeddingCache,
        options: &EmbedOptions,
        prompt: &str,
        content: Content<'_>,
    ) -> Option<CachedItem> {
        let item = cache.get(&options.key(&self.facts.identity, prompt, content))?;
        self.answers(options, &item).then_some(item)
    }

    /// Whether a result of the same key answers a call with `options`.
    pub(super) fn answers(&self, options: &EmbedOptions, item: &CachedItem) -> bool {
        // A result of as many tokens as the model reads may be that of a longer input, which was cut. One that was cut after
        // some characters may have fewer.
        let shorter = self.facts.max_length.is_some_and(|longest| (item.tokens() as usize) < longest);
        let whole = shorter && !self.facts.cuts_characters;
        // Queries of late interaction have a length of their own, and may be filled up to it.
        options.truncate || (whole && options.kind != OutputKind::Queries)
    }
}
