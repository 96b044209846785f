//! The short way of BPE tokenizers: byte-level ones, and those of SentencePiece's kind.

use std::borrow::Cow;
use std::sync::LazyLock;

use tokenizers::SplitDelimiterBehavior;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::utils::SysRegex;

use super::bpe::{Bpe, BpeScratch, Symbol};
use super::direct_unigram::compose;
use super::marks::{SPACE, each_marked, push_marked};
use super::model::Inner;
use super::wanted::Wanted;

/// How GPT-2 splits text, which the crate's `ByteLevel` does unless its settings say otherwise.
static GPT2: LazyLock<Option<SysRegex>> = LazyLock::new(|| {
    SysRegex::new(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+").ok()
});

/// How byte-level BPE goes from a text to words.
#[derive(Debug)]
pub(super) struct ByteWay {
    /// Whether the text is composed first.
    composes: bool,
    /// Whether a space is put in front of a text.
    prefix: bool,
    steps: Vec<SplitStep>,
    /// The piece of each byte. Some vocabularies lack pieces of bytes that few texts have.
    pieces: Box<[Option<u32>; 256]>,
    lacks: bool,
    /// How each byte is spelt.
    spelling: Box<[char; 256]>,
}

/// A way to split a text.
#[derive(Debug, Clone, Copy)]
enum SplitStep {
    /// Each digit stands alone.
    Digits,
    /// As GPT-2.
    Words,
    /// By the pattern of this part of the pre-tokenizer.
    Pattern(usize),
}

impl ByteWay {
    /// `None` for a tokenizer that has anything else.
    pub(super) fn of(inner: &Inner, model: &Bpe) -> Option<Self> {
        use PreTokenizerWrapper as P;
        let composes = match inner.get_normalizer() {
            None => false,
            Some(NormalizerWrapper::NFC(_)) => true,
            Some(NormalizerWrapper::Sequence(all)) if all.as_ref().is_empty() => false,
            _ => return None,
        };
        let (mut steps, mut prefix) = (Vec::new(), false);
        let all = parts(inner.get_pre_tokenizer()?);
        let (last, before) = all.split_last()?;
        for (number, part) in before.iter().enumerate() {
            steps.push(match part {
                P::Digits(digits) if digits.individual_digits => SplitStep::Digits,
                P::Split(split) if split.behavior == SplitDelimiterBehavior::Isolated && !split.invert => {
                    SplitStep::Pattern(number)
                }
                _ => return None,
            });
        }
        let P::ByteLevel(bytes) = last else { return None };
        if bytes.add_prefix_space {
            prefix = steps.is_empty().then_some(true)?;
        }
        if bytes.use_regex {
            GPT2.as_ref()?;
            steps.push(SplitStep::Words);
        }
        let spelling: Box<[char; 256]> = Box::new(spelling());
        let pieces = Box::new(spelling.map(|c| model.character(c)));
        // Without these it is no vocabulary of bytes.
        if (0x20..0x7f).any(|byte| pieces[byte].is_none()) {
            return None;
        }
        let lacks = pieces.contains(&None);
        Some(Self { composes, prefix, steps, pieces, lacks, spelling })
    }

    /// `text` as the normalizers leave it.
    pub(super) fn normal<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.composes { Cow::Owned(compose(text.to_owned())) } else { Cow::Borrowed(text) }
    }

    /// The ids of a normalized text; `None` for one with a byte that has no piece.
    pub(super) fn ids(
        &self,
        inner: &Inner,
        model: &Bpe,
        normal: &str,
        wanted: &mut Wanted<'_>,
    ) -> Option<Vec<u32>> {
        if self.lacks && normal.bytes().any(|byte| self.pieces[usize::from(byte)].is_none()) {
            return None;
        }
        let parts = parts(inner.get_pre_tokenizer()?);
        let spaced;
        let text = if self.prefix && !normal.starts_with(' ') {
            spaced = [" ", normal].concat();
            &spaced
        } else {
            normal
        };
        let (mut ids, mut scratch) = (Vec::with_capacity(text.len() / 3), BpeScratch::default());
        let mut spelt = String::new();
        split(&self.steps, parts, text, &mut |word| {
            if model.ignores_merges() {
                spelt.clear();
                spelt.extend(word.bytes().map(|byte| self.spelling[usize::from(byte)]));
                if let Some(id) = model.pieces().id(&spelt) {
                    ids.push(id);
                    return wanted.step();
                }
            }
            scratch.symbols.clear();
            let pieces = word.bytes().filter_map(|byte| self.pieces[usize::from(byte)]);
            scratch.symbols.extend(pieces.map(|piece| Symbol::new(piece, 1)));
            model.merge(&mut scratch, wanted);
            ids.extend(scratch.symbols.iter().map(Symbol::piece));
            wanted.step()
        });
        Some(ids)
    }
}

/// The parts of a pre-tokenizer.
fn parts(pre: &PreTokenizerWrapper) -> &[PreTokenizerWrapper] {
    match pre {
        PreTokenizerWrapper::Sequence(all) => all.as_ref(),
        one => std::slice::from_ref(one),
    }
}

/// Splits `text` by all of `steps`, until `word` returns false; so does this then.
fn split(
    steps: &[SplitStep],
    parts: &[PreTokenizerWrapper],
    text: &str,
    word: &mut dyn FnMut(&str) -> bool,
) -> bool {
    let Some((step, rest)) = steps.split_first() else { return text.is_empty() || word(text) };
    let mut next = |piece: &str| split(rest, parts, piece, word);
    match step {
        SplitStep::Digits => {
            let mut start = 0;
            for (at, c) in text.char_indices().filter(|(_, c)| c.is_numeric()) {
                let end = at + c.len_utf8();
                if !(next(&text[start..at]) && next(&text[at..end])) {
                    return false;
                }
                start = end;
            }
            next(&text[start..])
        }
        SplitStep::Words => isolate(GPT2.as_ref(), text, &mut next),
        SplitStep::Pattern(number) => match parts.get(*number) {
            Some(PreTokenizerWrapper::Split(split)) => isolate(Some(&split.regex), text, &mut next),
            _ => next(text),
        },
    }
}

/// The matches of a pattern, and what lies between them, until `next` returns false; so does this then.
fn isolate(pattern: Option<&SysRegex>, text: &str, next: &mut dyn FnMut(&str) -> bool) -> bool {
    let mut end = 0;
    for (from, to) in pattern.into_iter().flat_map(|pattern| pattern.find_iter(text)) {
        if !(next(&text[end..from]) && next(&text[from..to])) {
            return false;
        }
        end = to;
    }
    next(&text[end..])
}

/// How byte-level tokenizers spell bytes: printable ones as themselves, others as characters from U+0100 on.
fn spelling() -> [char; 256] {
    let mut other = 0x100;
    std::array::from_fn(|byte| {
        if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            return char::from(byte as u8);
        }
        other += 1;
        char::from_u32(other - 1).unwrap_or_default()
    })
}

/// How BPE of SentencePiece's kind goes from a text to words: with marks in place of spaces.
#[derive(Debug)]
pub(super) struct SentenceWay {
    prefix: LeadingMark,
    /// Whether a word begins at each mark. Else the text is one word.
    splits: bool,
    /// Whether the marks are made after the text is normalized.
    late: bool,
}

/// Whether a mark is put in front of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeadingMark {
    None,
    /// Unless the text begins with one.
    Missing,
    Always,
}

impl SentenceWay {
    /// `None` for a tokenizer that has anything else.
    pub(super) fn of(inner: &Inner) -> Option<Self> {
        use PreTokenizerWrapper as P;
        let normalizers: &[NormalizerWrapper] = match inner.get_normalizer() {
            None => &[],
            Some(NormalizerWrapper::Sequence(all)) => all.as_ref(),
            Some(one) => std::slice::from_ref(one),
        };
        let prefix = match normalizers {
            [] => None,
            [replace] if marks(replace) => Some(LeadingMark::None),
            [NormalizerWrapper::Prepend(prepend), replace]
                if prepend.prepend == SPACE.to_string() && marks(replace) =>
            {
                Some(LeadingMark::Always)
            }
            _ => return None,
        };
        match (prefix, inner.get_pre_tokenizer()) {
            (Some(prefix), None) => Some(Self { prefix, splits: false, late: false }),
            // No space is left to split at.
            (Some(prefix), Some(P::Split(split)))
                if split.pattern == SplitPattern::String(" ".into()) && !split.invert =>
            {
                Some(Self { prefix, splits: false, late: false })
            }
            (None, Some(P::Metaspace(metaspace))) if metaspace.get_replacement() == SPACE => {
                let prefix = match metaspace.get_prepend_scheme() {
                    PrependScheme::Never => LeadingMark::None,
                    PrependScheme::First | PrependScheme::Always => LeadingMark::Missing,
                };
                Some(Self { prefix, splits: metaspace.get_split(), late: true })
            }
            _ => None,
        }
    }

    /// `text` as the normalizers leave it.
    pub(super) fn normal<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.late { Cow::Borrowed(text) } else { Cow::Owned(self.marked(text)) }
    }

    fn marked(&self, text: &str) -> String {
        let mut marked = String::with_capacity(text.len() + text.len() / 2);
        if self.prefix == LeadingMark::Always
            || (self.prefix == LeadingMark::Missing && !text.starts_with([SPACE, ' ']))
        {
            marked.push(SPACE);
        }
        push_marked(text, &mut marked);
        marked
    }

    /// The ids of a normalized text.
    pub(super) fn ids(&self, model: &Bpe, normal: &str, wanted: &mut Wanted<'_>) -> Vec<u32> {
        let (mut ids, mut scratch) = (Vec::with_capacity(normal.len() / 3), BpeScratch::default());
        let marked;
        let text = if self.late {
            marked = self.marked(normal);
            &marked
        } else {
            normal
        };
        let mut word = |word: &str| model.ids(word, &mut scratch, wanted, &mut ids);
        if self.splits {
            let first = text.find(SPACE).unwrap_or(text.len());
            if first > 0 {
                word(&text[..first]);
            }
            each_marked(&text[first..], &mut word);
        } else {
            word(text);
        }
        ids
    }
}

/// Whether a normalizer puts marks in place of spaces.
fn marks(normalizer: &NormalizerWrapper) -> bool {
    let NormalizerWrapper::Replace(replace) = normalizer else { return false };
    let pattern = serde_json::to_value(replace).map(|value| value["pattern"]["String"] == " ");
    replace.content == SPACE.to_string() && pattern.unwrap_or(false)
}
