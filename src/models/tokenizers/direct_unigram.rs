//! The short way of Unigram tokenizers: the normalizers and pre-tokenizers of XLM-RoBERTa's kind.

use tokenizers::NormalizedString;
use tokenizers::normalizers::{NormalizerWrapper, Precompiled};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};

use super::marks::{SPACE, each_marked, push_marked};
use super::model::Inner;
use super::unigram::{Unigram, UnigramScratch};

/// Characters below this one whose normal form is kept in a table: Latin.
const TABLE: usize = 0x250;

/// How a tokenizer of XLM-RoBERTa's kind goes from a text to words.
#[derive(Debug)]
pub(super) struct UnigramWay {
    /// Characters that the character map leaves alone, and that are graphemes of their own between others of the table.
    plain: Box<[bool; TABLE]>,
    composes: bool,
    splits: bool,
}

impl UnigramWay {
    /// `None` for a tokenizer that has anything else.
    pub(super) fn of(inner: &Inner) -> Option<Self> {
        let composes = composes(inner.get_normalizer())?;
        let splits = splits(inner.get_pre_tokenizer()?)?;
        let map = character_map(inner.get_normalizer());
        let mut plain = Box::new([false; TABLE]);
        for (code, plain) in (0..).zip(plain.iter_mut()) {
            let alone = matches!(code, 0x20..=0x7e | 0xc0..=0x24f);
            let text = char::from_u32(code)?.to_string();
            *plain = alone && map.is_none_or(|map| map.transform(&text).is_none_or(|to| to == text));
        }
        Some(Self { plain, composes, splits })
    }

    /// `text` as the normalizers leave it.
    pub(super) fn normal(&self, inner: &Inner, text: &str) -> String {
        let mut normal = String::with_capacity(text.len() + text.len() / 8);
        match character_map(inner.get_normalizer()) {
            Some(map) => self.normalize(map, text, &mut normal),
            None => normal.push_str(text),
        }
        if self.composes {
            normal = compose(normal);
        }
        normal
    }

    /// The ids of a normalized text.
    pub(super) fn ids(&self, model: &Unigram, normal: &str) -> Vec<u32> {
        let mut words = String::with_capacity(normal.len() + normal.len() / 2);
        let (mut ids, mut scratch) = (Vec::with_capacity(normal.len() / 3), UnigramScratch::default());
        let mut read = |chunk: &str| {
            words.clear();
            if !chunk.starts_with([SPACE, ' ']) {
                words.push(SPACE);
            }
            push_marked(chunk, &mut words);
            each_marked(&words, &mut |word| model.ids(word, &mut scratch, &mut ids));
        };
        if self.splits {
            normal.split(char::is_whitespace).filter(|chunk| !chunk.is_empty()).for_each(&mut read);
        } else if !normal.is_empty() {
            read(normal);
        }
        ids
    }

    fn is_plain(&self, c: char) -> bool {
        self.plain.get(c as usize).is_some_and(|plain| *plain)
    }

    /// What the character map makes of `text`. It reads graphemes, and between two plain characters one always ends: so
    /// runs of those are copied, except for their ends, which can belong to a grapheme with their neighbors.
    fn normalize(&self, map: &Precompiled, text: &str, to: &mut String) {
        let mut rest = text;
        while !rest.is_empty() {
            let mut last = 0;
            let mut odd = rest.len();
            for (at, c) in rest.char_indices() {
                if !self.is_plain(c) {
                    odd = at;
                    break;
                }
                last = at;
            }
            if odd == rest.len() {
                return to.push_str(rest);
            }
            to.push_str(&rest[..last]);
            let mut before_is_plain = false;
            let end = rest[odd..].char_indices().find_map(|(at, c)| {
                let plain = self.is_plain(c);
                let ends = plain && before_is_plain;
                before_is_plain = plain;
                ends.then_some(odd + at)
            });
            let end = end.unwrap_or(rest.len());
            to.push_str(&map.normalize_string(&rest[last..end]));
            rest = &rest[end..];
        }
    }
}

/// Whether NFC comes after the character map, which comes first or is not there.
fn composes(normalizer: Option<&NormalizerWrapper>) -> Option<bool> {
    match normalizer {
        None | Some(NormalizerWrapper::Precompiled(_)) => Some(false),
        Some(NormalizerWrapper::NFC(_)) => Some(true),
        Some(NormalizerWrapper::Sequence(all)) => match all.as_ref() {
            [] | [NormalizerWrapper::Precompiled(_)] => Some(false),
            [NormalizerWrapper::NFC(_)] | [NormalizerWrapper::Precompiled(_), NormalizerWrapper::NFC(_)] => {
                Some(true)
            }
            _ => None,
        },
        _ => None,
    }
}

/// The character map of a normalizer that [`composes`] knows.
fn character_map(normalizer: Option<&NormalizerWrapper>) -> Option<&Precompiled> {
    match normalizer? {
        NormalizerWrapper::Precompiled(map) => Some(map),
        NormalizerWrapper::Sequence(all) => character_map(all.as_ref().first()),
        _ => None,
    }
}

/// Whether a text is split at white space before words get their mark.
fn splits(pre: &PreTokenizerWrapper) -> Option<bool> {
    let marks = |metaspace: &Metaspace| {
        metaspace.get_replacement() == SPACE
            && metaspace.get_split()
            && metaspace.get_prepend_scheme() == PrependScheme::Always
    };
    match pre {
        PreTokenizerWrapper::Metaspace(metaspace) => marks(metaspace).then_some(false),
        PreTokenizerWrapper::Sequence(all) => match all.as_ref() {
            [PreTokenizerWrapper::WhitespaceSplit(_), PreTokenizerWrapper::Metaspace(metaspace)] => {
                marks(metaspace).then_some(true)
            }
            _ => None,
        },
        _ => None,
    }
}

/// NFC of `text`. A character of [`is_composed`] ends what those before it can change, so others are composed with the
/// one before them.
pub(super) fn compose(text: String) -> String {
    if text.chars().all(is_composed) {
        return text;
    }
    let mut to = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((odd, _)) = rest.char_indices().find(|(_, c)| !is_composed(*c)) {
        let start = rest[..odd].char_indices().next_back().map_or(odd, |(at, _)| at);
        let end = rest[odd..].find(is_composed).map_or(rest.len(), |at| odd + at);
        to.push_str(&rest[..start]);
        let mut part = NormalizedString::from(&rest[start..end]);
        to.push_str(part.nfc().get());
        rest = &rest[end..];
    }
    to.push_str(rest);
    to
}

/// Whether NFC leaves `c` alone between others of this kind: letters and signs that neither fall apart nor join with
/// what stands before them. Others are not listed, though many are.
fn is_composed(c: char) -> bool {
    matches!(c,
        '\0'..='\u{2ff}'
        | '\u{386}' | '\u{388}'..='\u{3ff}'
        | '\u{400}'..='\u{482}' | '\u{48a}'..='\u{52f}'
        | '\u{620}'..='\u{64a}' | '\u{660}'..='\u{66f}' | '\u{671}'..='\u{6d3}'
        | '\u{1e00}'..='\u{1eff}'
        | '\u{200b}'..='\u{200d}' | '\u{2010}'..='\u{2027}' | '\u{20a0}'..='\u{20bf}'
        | '\u{2581}'
        | '\u{3001}'..='\u{3029}' | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30ff}'
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}'
        | '\u{fe0f}'
        | '\u{1f300}'..='\u{1faff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nfc_leaves_composed_text_alone() {
        let all: String = ('\0'..=char::MAX).filter(|c| is_composed(*c)).collect();
        assert!(all.chars().count() > 40_000);
        let reversed: String = all.chars().rev().collect();
        for text in [all, reversed] {
            let mut normal = NormalizedString::from(text.as_str());
            normal.nfc();
            assert!(normal.get() == text);
        }
        for text in [
            "e\u{301}",
            "a\u{212b}e\u{323}\u{302}x\u{1112}\u{1161}\u{11ab}",
            "\u{301}",
            "→a\u{301}→→e\u{302}",
        ] {
            let mut normal = NormalizedString::from(text);
            assert_eq!(compose(text.to_owned()), normal.nfc().get());
        }
    }
}
