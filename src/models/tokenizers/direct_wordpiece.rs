//! The short way of WordPiece tokenizers: BERT's normalizer and pre-tokenizer, for texts in Latin letters.
//!
//! What both make of each character is asked of the tokenizers crate once. None of these characters combines with a
//! neighbor, so a text is normalized character by character.

use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{
    NormalizedString, Normalizer as _, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _,
};

use super::model::Inner;
use super::wordpiece_model::WordPieces;

/// Characters below this one are Latin.
const LATIN: usize = 0x250;
/// And below this one are marks, which normalization may leave.
const MARKS: usize = 0x370;
/// Dashes, quotation marks and an ellipsis.
const DASHES: std::ops::RangeInclusive<usize> = 0x2010..=0x2027;
const SIZE: usize = MARKS + (*DASHES.end() - *DASHES.start() + 1);

/// What splits a normalized text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// A part of a word.
    Word,
    /// Between words.
    Blank,
    /// A word of its own.
    Alone,
    /// Something else: the crate reads the text.
    Other,
}

/// See the module.
#[derive(Debug)]
pub(super) struct WordWay {
    /// What a character of a text becomes.
    normal: Box<[Option<Box<str>>]>,
    classes: Box<[Class]>,
}

impl WordWay {
    /// `None` for a tokenizer that has anything else.
    pub(super) fn of(inner: &Inner) -> Option<Self> {
        let Some(normalizer @ NormalizerWrapper::BertNormalizer(_)) = inner.get_normalizer() else {
            return None;
        };
        let Some(pre @ PreTokenizerWrapper::BertPreTokenizer(_)) = inner.get_pre_tokenizer() else {
            return None;
        };
        let classes: Box<[Class]> =
            (0..SIZE).map(|place| class(pre, character(place)?)).collect::<Option<_>>()?;
        let normal = |place: usize| {
            let c = character(place).filter(|_| !(LATIN..MARKS).contains(&place))?;
            let mut text = NormalizedString::from(c.to_string());
            normalizer.normalize(&mut text).ok()?;
            let known = text.get().chars().all(|c| place_of(c).is_some_and(|at| classes[at] != Class::Other));
            known.then(|| text.get().into())
        };
        Some(Self { normal: (0..SIZE).map(normal).collect(), classes })
    }

    /// `text` as the normalizer leaves it; `None` with a character that the crate has to read.
    pub(super) fn normal(&self, text: &str) -> Option<String> {
        let mut normal = String::with_capacity(text.len());
        for c in text.chars() {
            normal.push_str(self.normal[place_of(c)?].as_deref()?);
        }
        Some(normal)
    }

    /// The ids of a normalized text.
    pub(super) fn ids(&self, model: &WordPieces, normal: &str) -> Vec<u32> {
        let (mut ids, mut rest, mut parts) =
            (Vec::with_capacity(normal.len() / 2 + 2), String::with_capacity(64), Vec::with_capacity(16));
        let mut word = |word: &str| {
            if !word.is_empty() {
                model.split(word, &mut rest, &mut parts);
                ids.extend(parts.iter().map(|part| part.0));
            }
        };
        let mut start = 0;
        for (at, c) in normal.char_indices() {
            let class = place_of(c).map_or(Class::Word, |place| self.classes[place]);
            if class != Class::Word {
                word(&normal[start..at]);
                start = at + c.len_utf8();
                word(if class == Class::Alone { &normal[at..start] } else { "" });
            }
        }
        word(&normal[start..]);
        ids
    }
}

/// Where the tables have a character.
#[inline]
fn place_of(c: char) -> Option<usize> {
    let code = c as usize;
    if code < MARKS {
        return Some(code);
    }
    DASHES.contains(&code).then(|| MARKS + code - DASHES.start())
}

/// The character at a place of the tables.
fn character(place: usize) -> Option<char> {
    let code = if place < MARKS { place } else { place - MARKS + DASHES.start() };
    char::from_u32(u32::try_from(code).ok()?)
}

/// How the pre-tokenizer treats a character between letters.
fn class(pre: &PreTokenizerWrapper, c: char) -> Option<Class> {
    let mut split = PreTokenizedString::from(format!("x{c}x"));
    pre.pre_tokenize(&mut split).ok()?;
    let parts = split.get_splits(OffsetReferential::Normalized, OffsetType::None);
    let parts: Vec<&str> = parts.iter().map(|(part, ..)| *part).collect();
    let alone = c.to_string();
    Some(match parts[..] {
        [_] => Class::Word,
        ["x", "x"] => Class::Blank,
        ["x", part, "x"] if part == alone => Class::Alone,
        _ => Class::Other,
    })
}
