//! What is known of a model after it has been loaded once.

use std::sync::Arc;

use super::options::EmbedOptions;
use crate::Result;
use crate::cache::{Content, EmbeddingCache, Vector};
use crate::models::SentenceConfig;

/// What outlives the loaded model: enough to answer from the cache while the model is absent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModelInfo {
    /// Files, dtype and overrides, or server and model: equal for equal vectors.
    pub(super) identity: Arc<str>,
    pub(super) width: usize,
    /// The source, as messages name it.
    pub(super) model: String,
    /// What the model's files say, with the slot's own prompts added.
    pub(super) config: SentenceConfig,
    /// Tokens after which an input is cut; `None` when only a server knows.
    pub(super) max_length: Option<usize>,
}

impl ModelInfo {
    /// The prompt that `options` ask for, or the model's default, or none.
    pub(super) fn prompt<'a>(&'a self, options: &'a EmbedOptions) -> Result<&'a str> {
        self.config.prompt(&self.model, options.prompt_name.as_deref(), options.prompt.as_deref())
    }

    /// The vector of `content` if the cache holds one that answers a call with `options`.
    pub(super) fn cached(
        &self,
        cache: &EmbeddingCache,
        options: &EmbedOptions,
        prompt: &str,
        content: Content<'_>,
    ) -> Option<Vector> {
        let vector = cache.get(&options.key(&self.identity, prompt, content))?;
        // One of as many tokens as the model reads may be that of a longer input, cut.
        let whole = self.max_length.is_some_and(|longest| (vector.tokens() as usize) < longest);
        (options.truncate || whole).then_some(vector)
    }
}
