//! What makes pieces of the words of a text: a model in a form of ours, which takes little memory, or the tokenizers
//! crate's own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::{DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use tokenizers::{Token, TokenizerImpl};

use super::bpe::Bpe;
use super::pieces::Pieces;
use super::unigram::Unigram;
use super::wordpiece_model::WordPieces;

/// A tokenizer of the tokenizers crate with a model of ours.
pub(crate) type Inner =
    TokenizerImpl<TokenModel, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) enum TokenModel {
    Unigram(Unigram),
    Bpe(Box<Bpe>),
    WordPiece(WordPieces),
    /// Whatever the others do not do.
    Crate(Box<ModelWrapper>),
}

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

impl TokenModel {
    /// The crate's own model.
    pub(crate) fn of_crate(model: impl Into<ModelWrapper>) -> Self {
        Self::Crate(Box::new(model.into()))
    }

    /// What it makes of a word; `added`: the characters of the longest added token.
    pub(crate) fn words(&self, added: usize) -> Words {
        let of_crate = |model: &ModelWrapper| {
            model.get_vocab().keys().map(|piece| piece.chars().count()).max().unwrap_or(0)
        };
        match self {
            Self::Unigram(model) => Words::Pieces(model.longest().max(added)),
            Self::Bpe(model) => {
                model.longest().map_or(Words::Other, |longest| Words::Pieces(longest.max(added)))
            }
            Self::WordPiece(model) => Words::Limited(model.most_characters()),
            Self::Crate(wrapper) => match &**wrapper {
                ModelWrapper::WordPiece(model) => Words::Limited(model.max_input_chars_per_word),
                ModelWrapper::BPE(model)
                    if model.dropout.is_none()
                        && !model.ignore_merges
                        && model.continuing_subword_prefix.is_none()
                        && model.end_of_word_suffix.is_none() =>
                {
                    Words::Pieces(of_crate(wrapper).max(added))
                }
                ModelWrapper::Unigram(_) => Words::Pieces(of_crate(wrapper).max(added)),
                _ => Words::Other,
            },
        }
    }

    /// The characters of each piece.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        let of_pieces = |pieces: &Pieces| pieces.iter().map(|(_, text)| text.chars().count()).collect();
        match self {
            // Of pieces with the same text, one counts.
            Self::Unigram(model) => {
                let texts = (0..).zip(model.texts().iter()).filter(|(id, text)| model.id(text) == Some(*id));
                texts.map(|(_, text)| text.chars().count()).collect()
            }
            Self::Bpe(model) => of_pieces(model.pieces()),
            Self::WordPiece(model) => of_pieces(model.pieces()),
            Self::Crate(model) => model.get_vocab().keys().map(|piece| piece.chars().count()).collect(),
        }
    }

    /// The id of the unknown token, if it has one; `None` where only its file says so.
    pub(crate) fn unknown(&self) -> Option<Option<u32>> {
        match self {
            Self::Unigram(model) => Some(Some(model.unknown())),
            Self::Bpe(model) => Some(model.unknown()),
            Self::WordPiece(model) => Some(Some(model.unknown())),
            Self::Crate(_) => None,
        }
    }

    /// One more than the largest id.
    pub(crate) fn limit(&self) -> usize {
        match self {
            Self::Unigram(model) => model.texts().len(),
            Self::Bpe(model) => model.pieces().limit(),
            Self::WordPiece(model) => model.pieces().limit(),
            Self::Crate(model) => model.get_vocab().into_values().max().map_or(0, |id| id as usize + 1),
        }
    }
}

impl Model for TokenModel {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        match self {
            Self::Unigram(model) => model.tokens(word),
            Self::Bpe(model) => model.tokens(word),
            Self::WordPiece(model) => {
                let mut parts = Vec::new();
                model.split(word, &mut String::new(), &mut parts);
                let text = |id| model.pieces().text(id).unwrap_or_default().to_owned();
                Ok(parts.into_iter().map(|(id, place)| Token::new(id, text(id), place)).collect())
            }
            Self::Crate(model) => model.tokenize(word),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Unigram(model) => model.id(token),
            Self::Bpe(model) => model.pieces().id(token),
            Self::WordPiece(model) => model.pieces().id(token),
            Self::Crate(model) => model.token_to_id(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Self::Unigram(model) => model.texts().get(id as usize).map(ToOwned::to_owned),
            Self::Bpe(model) => model.pieces().text(id).map(ToOwned::to_owned),
            Self::WordPiece(model) => model.pieces().text(id).map(ToOwned::to_owned),
            Self::Crate(model) => model.id_to_token(id),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            Self::Unigram(model) => model.texts().iter().map(ToOwned::to_owned).zip(0..).collect(),
            Self::Bpe(model) => model.pieces().iter().map(|(id, text)| (text.to_owned(), id)).collect(),
            Self::WordPiece(model) => model.pieces().iter().map(|(id, text)| (text.to_owned(), id)).collect(),
            Self::Crate(model) => model.get_vocab(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            Self::Unigram(model) => model.texts().len(),
            Self::Bpe(model) => model.pieces().len(),
            Self::WordPiece(model) => model.pieces().len(),
            Self::Crate(model) => model.get_vocab_size(),
        }
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("a tokenizer is read here, not written".into())
    }

    fn get_trainer(&self) -> Self::Trainer {
        match self {
            Self::Crate(model) => model.get_trainer(),
            _ => TrainerWrapper::UnigramTrainer(Default::default()),
        }
    }
}

impl<'de> Deserialize<'de> for TokenModel {
    /// As the crate reads it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ModelWrapper::deserialize(deserializer).map(Self::of_crate)
    }
}
