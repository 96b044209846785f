//! Tokenizers with a vocabulary in little memory.

use std::panic::catch_unwind;

use tokenizers::{AddedVocabulary, Encoding, Model as _, NormalizerWrapper, PreTokenizerWrapper};

use super::direct::Direct;
use super::pipeline::{Pipeline, Places, Vocabulary, With, Words};
use super::unigram::Unigram;

impl Vocabulary for Unigram {
    fn words(&self, added: usize) -> Words {
        Words::Pieces(self.longest().max(added))
    }

    fn limit(&self) -> usize {
        self.get_vocab_size()
    }

    fn ready(inner: With<Self>) -> Box<dyn Pipeline> {
        Box::new(Small { direct: Direct::of(&inner), inner })
    }
}

/// A tokenizer with a small model, and the short way through it, if it has one.
struct Small {
    inner: With<Unigram>,
    direct: Option<Direct>,
}

impl Pipeline for Small {
    fn normalizer(&self) -> Option<&NormalizerWrapper> {
        self.inner.normalizer()
    }

    fn pre_tokenizer(&self) -> Option<&PreTokenizerWrapper> {
        self.inner.pre_tokenizer()
    }

    fn added(&self) -> &AddedVocabulary {
        self.inner.added()
    }

    fn words(&self) -> Words {
        self.inner.words()
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.inner.id(token)
    }

    fn id_limit(&self) -> usize {
        self.inner.id_limit()
    }

    fn ids(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        match self.direct.as_ref().and_then(|direct| direct.ids(&self.inner, text)) {
            Some(ids) => Ok(ids),
            None => self.inner.ids(text),
        }
    }

    fn places(&self, text: &str) -> tokenizers::Result<Places> {
        self.inner.places(text)
    }

    fn dress(&self, encoding: Encoding, pair: Option<Encoding>) -> tokenizers::Result<Encoding> {
        self.inner.dress(encoding, pair)
    }
}

/// The tokenizer of a `tokenizer.json` whose model has a form here that takes less memory than the tokenizers crate's;
/// `None` leaves the file to the crate.
pub(crate) fn small(json: &[u8]) -> Option<With<Unigram>> {
    // What its parts do not survive is for the crate to report, too.
    catch_unwind(|| serde_json::from_slice(json)).ok()?.ok()
}
