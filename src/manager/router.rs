//! Which slot a text goes to: by its language.

use std::sync::Arc;

use super::inputs::Inputs;
use super::registry::{NamedSlot, Registry};
use super::spec::{ENGLISH, RERANKER, TURKISH};
use crate::compute::memory::{push, reserve};
use crate::config::LanguageDetector;
use crate::{Error, Result, language};

/// Characters of a text that decide its language, as the chatbot cuts texts.
const ROUTED_CHARACTERS: usize = 800;

/// Chooses the slots of texts that name none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Router {
    pub(super) language_detection: bool,
    pub(super) prefer_turkish: bool,
    pub(super) detector: LanguageDetector,
}

impl Router {
    /// The slot of texts without a language.
    fn preferred(&self) -> &'static str {
        if self.prefer_turkish { TURKISH } else { ENGLISH }
    }

    /// The slot for `text`: by the language of its first 800 characters, lower-cased.
    pub(super) fn route(&self, text: &str) -> &'static str {
        if !self.language_detection {
            return self.preferred();
        }
        // A character is lower-cased to one or more; the next word decides on a sigma.
        let text = text.trim();
        let read = text.char_indices().nth(2 * ROUTED_CHARACTERS).map_or(text.len(), |(end, _)| end);
        let lowered = text[..read].to_lowercase();
        let end = lowered.char_indices().nth(ROUTED_CHARACTERS).map_or(lowered.len(), |(end, _)| end);
        let is_turkish = match self.detector {
            LanguageDetector::Compatible => language::is_turkish(&lowered[..end]),
            LanguageDetector::Improved => language::improved::is_turkish(&lowered[..end]),
        };
        if is_turkish { TURKISH } else { ENGLISH }
    }

    /// Numbers of `inputs` by slot, in order of first appearance; all in one slot when `model` names it.
    pub(super) fn group(
        &self,
        registry: &Registry,
        inputs: &Inputs,
        model: Option<&str>,
    ) -> Result<Vec<(Arc<NamedSlot>, Vec<usize>)>> {
        let all = || -> Result<Vec<usize>> {
            let mut all = Vec::new();
            reserve(&mut all, inputs.len())?;
            all.extend(0..inputs.len());
            Ok(all)
        };
        if let Some(name) = model {
            return Ok(vec![(registry.entry(name)?, all()?)]);
        }
        let texts = match inputs {
            Inputs::Texts(texts) if !texts.is_empty() => texts,
            Inputs::Tokens(ids) if !ids.is_empty() && self.language_detection => {
                return Err(Error::Input(
                    "token ids belong to the vocabulary of one model and have no language to choose it by; name it: \
                     embed(ids, model=...)"
                        .into(),
                ));
            }
            Inputs::Pairs(_) => return Ok(vec![(registry.entry(RERANKER)?, all()?)]),
            _ => return Ok(vec![(registry.entry(self.preferred())?, all()?)]),
        };
        let mut groups: Vec<(Arc<NamedSlot>, Vec<usize>)> = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            let name = self.route(text);
            match groups.iter_mut().find(|(entry, _)| entry.name == name) {
                Some((_, order)) => push(order, number)?,
                None => groups.push((registry.entry(name)?, vec![number])),
            }
        }
        Ok(groups)
    }
}
