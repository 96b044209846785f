//! The ids of common texts without the tokenizers crate's record of where every character came from, which costs most
//! of its time.
//!
//! Only what is known to the last character goes this way: a text without added tokens, and normalizers and
//! pre-tokenizers of a few kinds. The crate has all else, so the ids are always its own.

use std::borrow::Cow;

use super::direct_bpe::{ByteWay, SentenceWay};
use super::direct_unigram::UnigramWay;
use super::direct_wordpiece::WordWay;
use super::model::{Inner, TokenModel};
use super::text_table::TextTable;
use super::trie::Trie;
use super::wanted::Wanted;

/// See the module.
#[derive(Debug)]
pub(super) struct Direct {
    way: Way,
    /// Added tokens, as they stand in a text before and after it is normalized.
    added: Needles,
    added_after: Needles,
}

/// The kinds that are known.
#[derive(Debug)]
enum Way {
    Unigram(UnigramWay),
    /// Byte-level BPE.
    Bytes(ByteWay),
    /// BPE of SentencePiece's kind.
    Sentence(SentenceWay),
    WordPiece(WordWay),
}

impl Direct {
    /// `None` for a tokenizer of another kind.
    pub(super) fn of(inner: &Inner) -> Option<Self> {
        if inner.get_encode_special_tokens()
            || inner.get_truncation().is_some()
            || inner.get_padding().is_some()
        {
            return None;
        }
        let way = match inner.get_model() {
            TokenModel::Unigram(_) => Way::Unigram(UnigramWay::of(inner)?),
            TokenModel::Bpe(model) => match ByteWay::of(inner, model) {
                Some(way) => Way::Bytes(way),
                None => Way::Sentence(SentenceWay::of(inner)?),
            },
            TokenModel::WordPiece(_) => Way::WordPiece(WordWay::of(inner)?),
            TokenModel::Crate(_) => return None,
        };
        let (mut added, mut added_after) = (TextTable::default(), TextTable::default());
        let vocabulary = inner.get_added_vocabulary();
        for (id, token) in vocabulary.get_added_tokens_decoder() {
            let (table, text) = match token.normalized {
                true => (&mut added_after, vocabulary.simple_id_to_token(*id)?),
                false => (&mut added, token.content.clone()),
            };
            (!text.is_empty() && table.push(&text)).then_some(())?;
        }
        Some(Self { way, added: Needles::new(&added), added_after: Needles::new(&added_after) })
    }

    /// The ids of `text`; `None` for one that the crate has to read.
    #[cfg(test)]
    pub(super) fn ids(&self, inner: &Inner, text: &str) -> Option<Vec<u32>> {
        self.ids_while(inner, text, &mut Wanted::new(&mut || true))
    }

    /// The ids of `text`, of no use if they are not wanted any more; `None` for one that the crate has to read.
    pub(super) fn ids_while(&self, inner: &Inner, text: &str, wanted: &mut Wanted<'_>) -> Option<Vec<u32>> {
        if text.is_empty() || self.added.are_in(text) || u32::try_from(text.len().checked_mul(64)?).is_err() {
            return None;
        }
        let normal = match &self.way {
            Way::Unigram(way) => Cow::Owned(way.normal(inner, text)),
            Way::Bytes(way) => way.normal(text),
            Way::Sentence(way) => way.normal(text),
            Way::WordPiece(way) => Cow::Owned(way.normal(text)?),
        };
        if self.added_after.are_in(&normal) {
            return None;
        }
        match (&self.way, inner.get_model()) {
            (Way::Unigram(way), TokenModel::Unigram(model)) => Some(way.ids(model, &normal)),
            (Way::Bytes(way), TokenModel::Bpe(model)) => way.ids(inner, model, &normal, wanted),
            (Way::Sentence(way), TokenModel::Bpe(model)) => Some(way.ids(model, &normal, wanted)),
            (Way::WordPiece(way), TokenModel::WordPiece(model)) => Some(way.ids(model, &normal)),
            _ => None,
        }
    }
}

/// Texts that are looked for in others.
#[derive(Debug)]
struct Needles {
    all: Trie,
    /// Their first bytes.
    starts: Box<[bool; 256]>,
}

impl Needles {
    fn new(texts: &TextTable) -> Self {
        let mut starts = Box::new([false; 256]);
        for first in texts.iter().filter_map(|text| text.bytes().next()) {
            starts[usize::from(first)] = true;
        }
        Self { all: Trie::new(texts), starts }
    }

    fn are_in(&self, text: &str) -> bool {
        let bytes = text.as_bytes();
        let mut places = (0..bytes.len()).filter(|&at| self.starts[usize::from(bytes[at])]);
        places.any(|at| self.all.prefixes(&bytes[at..]).next().is_some())
    }
}
