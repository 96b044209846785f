//! A tokenizer in use: the tokenizers crate's way from a text to ids, and a shorter one where both are the same.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::{AddedVocabulary, Encoding, NormalizerWrapper, PreTokenizerWrapper};

use super::direct::Direct;
pub(crate) use super::model::{Inner, Words};
use super::wanted::Wanted;
use crate::error::panic_message;

/// The ids of a text, and the first byte and the end of each.
pub(crate) type Places = (Vec<u32>, Vec<(usize, usize)>);

/// See the module.
#[derive(Debug)]
pub(crate) struct Pipeline {
    inner: Inner,
    direct: Option<Direct>,
}

impl From<Inner> for Pipeline {
    fn from(inner: Inner) -> Self {
        Self { direct: Direct::of(&inner), inner }
    }
}

impl Pipeline {
    /// The crate's tokenizer.
    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// What changes a text first.
    pub(crate) fn normalizer(&self) -> Option<&NormalizerWrapper> {
        self.inner.get_normalizer()
    }

    /// What splits it.
    pub(crate) fn pre_tokenizer(&self) -> Option<&PreTokenizerWrapper> {
        self.inner.get_pre_tokenizer()
    }

    /// The tokens added to the vocabulary.
    pub(crate) fn added(&self) -> &AddedVocabulary {
        self.inner.get_added_vocabulary()
    }

    /// What its model makes of a word.
    pub(crate) fn words(&self) -> Words {
        let added = self.added().get_vocab().keys().map(|token| token.chars().count()).max();
        self.inner.get_model().words(added.unwrap_or(0))
    }

    /// The id of a token as the vocabulary spells it.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the largest id.
    pub(crate) fn id_limit(&self) -> usize {
        let added = self.added().get_vocab().values().max().map_or(0, |id| *id as usize + 1);
        self.inner.get_model().limit().max(added)
    }

    /// The ids of `text` without special tokens around it.
    ///
    /// # Errors
    /// Those of the library.
    pub(crate) fn ids(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        self.ids_while(text, &mut || true)
    }

    /// The same; `wanted` is asked now and then where BPE reads the text. From the first false on, the ids are of no use.
    ///
    /// # Errors
    /// Those of the library.
    pub(crate) fn ids_while(
        &self,
        text: &str,
        wanted: &mut dyn FnMut() -> bool,
    ) -> tokenizers::Result<Vec<u32>> {
        let wanted = &mut Wanted::new(wanted);
        match self.direct.as_ref().and_then(|direct| direct.ids_while(&self.inner, text, wanted)) {
            Some(ids) => Ok(ids),
            None => Ok(self.inner.encode_fast(text, false)?.get_ids().to_vec()),
        }
    }

    /// The same, and the bytes of `text` that each is made of.
    ///
    /// # Errors
    /// Those of the library.
    pub(crate) fn places(&self, text: &str) -> tokenizers::Result<Places> {
        let encoding = self.inner.encode(text, false)?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    /// Adds the special tokens around a text, or around the two texts of a pair.
    ///
    /// # Errors
    /// Those of the library.
    pub(crate) fn dress(&self, encoding: Encoding, pair: Option<Encoding>) -> tokenizers::Result<Encoding> {
        self.inner.post_process(encoding, pair, true)
    }
}

/// What the library makes of a file that may be damaged: its panics are errors like its others.
pub(crate) fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic_message(panic.as_ref());
        Err(format!("it is damaged: the tokenizers library ends with {said:?}").into())
    })
}
