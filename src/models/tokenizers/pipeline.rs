//! What the rest asks of a tokenizer, whatever holds its vocabulary.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::models::ModelWrapper;
use tokenizers::{
    AddedVocabulary, DecoderWrapper, Encoding, Model, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper, TokenizerImpl,
};

use crate::error::panic_message;

/// A tokenizer with the model `M`, all else as the tokenizers crate has it.
pub(crate) type With<M> =
    TokenizerImpl<M, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// What a word becomes where it is cut, as far as [`Cuts`](super::cut::Cuts) has to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Words {
    /// A word of more characters than this is one unknown token.
    Limited(usize),
    /// It is made of pieces of at most so many characters, which stand in the vocabulary.
    Pieces(usize),
    /// Something else.
    Other,
}

/// The ids of a text, and the first byte and the end of each.
pub(crate) type Places = (Vec<u32>, Vec<(usize, usize)>);

/// A tokenizer in use.
pub(crate) trait Pipeline: Send + Sync {
    /// What changes a text first.
    fn normalizer(&self) -> Option<&NormalizerWrapper>;
    /// What splits it.
    fn pre_tokenizer(&self) -> Option<&PreTokenizerWrapper>;
    /// The tokens added to the vocabulary.
    fn added(&self) -> &AddedVocabulary;
    /// What its model makes of a word.
    fn words(&self) -> Words;
    /// The id of a token as the vocabulary spells it.
    fn id(&self, token: &str) -> Option<u32>;
    /// One more than the largest id.
    fn id_limit(&self) -> usize;
    /// The ids of `text` without special tokens around it.
    ///
    /// # Errors
    /// Those of the library.
    fn ids(&self, text: &str) -> tokenizers::Result<Vec<u32>>;
    /// The same, and the bytes of `text` that each is made of.
    ///
    /// # Errors
    /// Those of the library.
    fn places(&self, text: &str) -> tokenizers::Result<Places>;
    /// Adds the special tokens around a text, or around the two texts of a pair.
    ///
    /// # Errors
    /// Those of the library.
    fn dress(&self, encoding: Encoding, pair: Option<Encoding>) -> tokenizers::Result<Encoding>;
}

/// What a model knows of its vocabulary.
pub(crate) trait Vocabulary: Model + Send + Sync + Sized {
    /// As [`Pipeline::words`]; `added`: the characters of the longest added token.
    fn words(&self, added: usize) -> Words;
    /// One more than the largest id.
    fn limit(&self) -> usize;
    /// A tokenizer with this model, ready for texts.
    fn ready(inner: With<Self>) -> Box<dyn Pipeline>;
}

impl Vocabulary for ModelWrapper {
    fn words(&self, added: usize) -> Words {
        let longest =
            || self.get_vocab().keys().map(|piece| piece.chars().count()).max().unwrap_or(0).max(added);
        match self {
            Self::WordPiece(model) => Words::Limited(model.max_input_chars_per_word),
            Self::BPE(model)
                if model.dropout.is_none()
                    && !model.ignore_merges
                    && model.continuing_subword_prefix.is_none()
                    && model.end_of_word_suffix.is_none() =>
            {
                Words::Pieces(longest())
            }
            Self::Unigram(_) => Words::Pieces(longest()),
            _ => Words::Other,
        }
    }

    fn limit(&self) -> usize {
        self.get_vocab().into_values().max().map_or(0, |id| id as usize + 1)
    }

    fn ready(inner: With<Self>) -> Box<dyn Pipeline> {
        Box::new(inner)
    }
}

impl<M: Vocabulary> Pipeline for With<M> {
    fn normalizer(&self) -> Option<&NormalizerWrapper> {
        self.get_normalizer()
    }

    fn pre_tokenizer(&self) -> Option<&PreTokenizerWrapper> {
        self.get_pre_tokenizer()
    }

    fn added(&self) -> &AddedVocabulary {
        self.get_added_vocabulary()
    }

    fn words(&self) -> Words {
        let added = self.added().get_vocab().keys().map(|token| token.chars().count()).max();
        self.get_model().words(added.unwrap_or(0))
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.token_to_id(token)
    }

    fn id_limit(&self) -> usize {
        let added = self.added().get_vocab().values().max().map_or(0, |id| *id as usize + 1);
        self.get_model().limit().max(added)
    }

    fn ids(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        Ok(self.encode_fast(text, false)?.get_ids().to_vec())
    }

    fn places(&self, text: &str) -> tokenizers::Result<Places> {
        let encoding = self.encode(text, false)?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    fn dress(&self, encoding: Encoding, pair: Option<Encoding>) -> tokenizers::Result<Encoding> {
        self.post_process(encoding, pair, true)
    }
}

/// What the library makes of a file that may be damaged: its panics are errors like its others.
pub(crate) fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic_message(panic.as_ref());
        Err(format!("it is damaged: the tokenizers library ends with {said:?}").into())
    })
}
