//! Where a long text can be cut for tokenizing, so that the tokens on both sides are those of the whole text.
//!
//! A cut must not change the normalized text (no combining mark, no grapheme across it), must be a place where the
//! pre-tokenizer always splits, or where no piece of the vocabulary can lie across, and must not divide an added token.
//! What is not understood has no cuts.

use std::collections::HashSet;

use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{NormalizedString, Normalizer as _};
use unicode_properties::{GeneralCategory as G, GeneralCategoryGroup as Group, UnicodeGeneralCategory as _};

use super::gguf::{LLAMA3, QWEN2};
use super::pipeline::{Pipeline, Words};

/// How far after the wanted place a cut is looked for, in bytes.
const SEARCH: usize = if cfg!(test) { 128 } else { 4 << 10 };
/// Places in unbroken text at which the vocabulary is asked for pieces that lie across.
const ASKED: usize = 128;
/// Longest piece, in characters, for which the vocabulary is asked.
const LONGEST_PIECE: usize = 256;

/// How the pre-tokenizer splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    /// At white space, which is dropped, and perhaps around punctuation and Chinese characters.
    Words { punctuation: bool, chinese: bool },
    /// As the regular expressions of byte-level tokenizers do: a run of letters ends where they end.
    Runs,
    /// Before a space.
    Spaces,
    /// Nowhere.
    Nowhere,
}

/// What is known of one tokenizer.
#[derive(Debug)]
pub(crate) struct Cuts {
    split: Split,
    /// Whether a part after a cut at the pre-tokenizer's own places has the tokens that it has in the whole text.
    continues: bool,
    /// The same of a cut elsewhere.
    continues_inside: bool,
    /// Neighbors inside added tokens and replaced texts: no cut there.
    joined: HashSet<(char, char)>,
    /// An added token depends on its neighbors: cuts are at white space only.
    at_space_only: bool,
    /// Characters of the longest piece, where pieces can be asked for.
    longest: Option<usize>,
    bytes: bool,
    /// Characters above which a word is one unknown token.
    longest_word: Option<usize>,
}

/// The beginning of a text that can be tokenized alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TextPart {
    /// Its end.
    pub(super) end: usize,
    /// Where the text goes on that still has tokens; `None` when the rest cannot be tokenized alone.
    pub(super) next: Option<usize>,
}

impl Cuts {
    pub(crate) fn of(inner: &Pipeline) -> Self {
        let mut cuts = Self {
            split: Split::Nowhere,
            continues: false,
            continues_inside: false,
            joined: HashSet::new(),
            at_space_only: false,
            longest: None,
            bytes: false,
            longest_word: None,
        };
        let mut normal = Normal::default();
        let known = inner.normalizer().is_none_or(|normalizer| normal.read(normalizer, &mut cuts.joined));
        let split = match inner.pre_tokenizer() {
            None => Some((Split::Nowhere, Prefix::None)),
            Some(pre) => split(pre, normal.chinese),
        };
        let Some((split, prefix)) = split.filter(|_| known) else { return cuts };
        if matches!(split, Split::Words { .. }) && !keeps_blanks(inner) {
            return cuts;
        }
        for token in inner.added().get_added_tokens_decoder().values() {
            let chars: Vec<char> = token.content.chars().map(folded).collect();
            cuts.joined.extend(chars.windows(2).map(|pair| (pair[0], pair[1])));
            cuts.at_space_only |= token.single_word;
            let letters = |c: Option<&char>| c.is_none_or(|c| c.is_alphanumeric());
            if (token.rstrip && letters(chars.last())) || (token.lstrip && letters(chars.first())) {
                // It takes white space with it, and looks like a word.
                if !matches!(split, Split::Words { .. }) {
                    return cuts;
                }
            }
        }
        cuts.split = split;
        cuts.continues = !normal.prepends
            && match split {
                Split::Words { .. } => true,
                Split::Runs => !normal.strips && prefix != Prefix::Always,
                Split::Spaces => !normal.strips || prefix == Prefix::Always,
                Split::Nowhere => false,
            };
        cuts.continues_inside = !normal.prepends && !normal.strips && prefix == Prefix::None;
        cuts.bytes = inner.pre_tokenizer().is_some_and(to_bytes);
        match inner.words() {
            Words::Limited(most) => cuts.longest_word = Some(most),
            Words::Pieces(longest) => cuts.longest = Some(longest),
            Words::Other => {}
        }
        cuts.longest = cuts.longest.filter(|&longest| longest <= LONGEST_PIECE);
        cuts
    }

    /// The beginning of `text`, at least `size` bytes, that has the tokens which it has in the whole text.
    pub(super) fn exact(&self, inner: &Pipeline, text: &str, size: usize) -> Option<TextPart> {
        if let Some(end) = places(text, size).find(|&at| self.splits(text, at)) {
            return Some(TextPart { end, next: self.continues.then(|| self.skip(text, end)) });
        }
        if let Some(most) = self.longest_word {
            return self.long_word(inner, text, size, most);
        }
        let end = places(text, size).take(ASKED).find(|&at| self.uncrossed(inner, text, at))?;
        Some(TextPart { end, next: self.continues_inside.then_some(end) })
    }

    /// A beginning of `text` whose last tokens alone may be others than in the whole text.
    pub(super) fn near(&self, text: &str, size: usize) -> Option<usize> {
        places(text, size).find(|&at| {
            let (before, after) = around(text, at);
            is_safe(before) && is_safe(after) && !self.joins(before, after)
        })
    }

    /// The end of the white space at `at` that has no tokens.
    fn skip(&self, text: &str, at: usize) -> usize {
        let blank = text[at..].bytes().take_while(|&byte| is_blank(byte.into())).count();
        if blank < SEARCH || !matches!(self.split, Split::Words { .. }) {
            return at;
        }
        // One stays: a mark that follows combines with it.
        at + blank - 1
    }

    fn joins(&self, before: char, after: char) -> bool {
        self.joined.contains(&(folded(before), folded(after)))
    }

    /// Whether the pre-tokenizer splits at `at`, whatever stands around.
    fn splits(&self, text: &str, at: usize) -> bool {
        let (before, after) = around(text, at);
        if !is_safe(before) || !is_safe(after) || self.joins(before, after) {
            return false;
        }
        let blank = is_blank(before) || is_blank(after);
        if self.at_space_only && !blank {
            return false;
        }
        match self.split {
            Split::Words { punctuation, chinese } => {
                let breaks = |c| (punctuation && is_punctuation(c)) || (chinese && is_chinese(c));
                blank || breaks(before) || breaks(after)
            }
            Split::Runs => {
                let letter = |c: char| c.general_category_group() == Group::Letter;
                let space = after == ' ' && is_punctuation(before);
                let ends = letter(before) && !letter(after) && (after.is_ascii() || is_punctuation(after));
                let whole = if self.continues { ends || space } else { after == ' ' && letter(before) };
                // The end of a text looks like the end of white space.
                whole && !is_blank(before)
            }
            Split::Spaces => {
                let next = text[at..].chars().nth(1).unwrap_or('\0');
                after == ' ' && before.is_alphabetic() && next.is_alphabetic() && is_safe(next)
            }
            Split::Nowhere => false,
        }
    }

    /// Whether no piece of the vocabulary lies across `at`. Pieces are joined from pieces, so then none of them ever is.
    fn uncrossed(&self, inner: &Pipeline, text: &str, at: usize) -> bool {
        let Some(longest) = self.longest else { return false };
        let (before, after) = around(text, at);
        let plain = |c: char| is_safe(c) && !is_blank(c);
        if !plain(before) || !plain(after) || self.joins(before, after) || self.at_space_only {
            return false;
        }
        // A contraction such as 're is split by its own rule.
        let start = back(text, at, longest + 4);
        let end = at + text[at..].char_indices().nth(longest + 4).map_or(text.len() - at, |(to, _)| to);
        if text[back(text, at, 3)..at].contains(['\'', '’']) {
            return false;
        }
        // What the ends of the slice are normalized to can be wrong; they reach further than a piece.
        let (Some(left), Some(both)) =
            (self.normal(inner, &text[start..at]), self.normal(inner, &text[start..end]))
        else {
            return false;
        };
        let Some(right) = both.strip_prefix(&left) else { return false };
        let known = |c: Option<char>| c.is_some_and(|c| inner.id(c.encode_utf8(&mut [0; 4])).is_some());
        if !known(left.chars().next_back()) && !known(right.chars().next()) {
            return false; // two unknown characters may become one token
        }
        let starts: Vec<usize> = left.char_indices().map(|(from, _)| from).rev().take(longest).collect();
        let ends: Vec<usize> =
            right.char_indices().map(|(to, c)| left.len() + to + c.len_utf8()).take(longest).collect();
        !starts.iter().enumerate().any(|(taken, &from)| {
            ends.iter().take(longest - taken - 1).any(|&to| inner.id(&both[from..to]).is_some())
        })
    }

    /// `text` as the vocabulary spells it.
    fn normal(&self, inner: &Pipeline, text: &str) -> Option<String> {
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = inner.normalizer() {
            normalizer.normalize(&mut normalized).ok()?;
        }
        let normal = normalized.get();
        Some(match self.bytes {
            true => ByteLevel::default().use_regex(false).add_prefix_space(false).spell(normal)?,
            false => normal.replace(' ', "▁"),
        })
    }

    /// A word of more than `most` characters is one unknown token, however long it is: its beginning stands for it.
    fn long_word(&self, inner: &Pipeline, text: &str, size: usize, most: usize) -> Option<TextPart> {
        let plain = |c: char| {
            let letter = c.general_category_group() == Group::Letter;
            c.is_ascii_alphanumeric()
                || (letter || c.general_category() == G::DecimalNumber) && is_safe(c) && !is_chinese(c)
        };
        let end = places(text, size).find(|&at| {
            let (before, after) = around(text, at);
            plain(before) && plain(after)
        })?;
        let mut start = end;
        for (at, c) in text[..end].char_indices().rev().take(4 * most) {
            if !plain(c) {
                break;
            }
            start = at;
        }
        let mut word = NormalizedString::from(&text[start..end]);
        if let Some(normalizer) = inner.normalizer() {
            normalizer.normalize(&mut word).ok()?;
        }
        if word.get().chars().count() <= most || word.get().contains(char::is_whitespace) {
            return None;
        }
        let rest = &text[end..];
        let next = rest.char_indices().find(|(_, c)| !plain(*c)).map_or(rest.len(), |(at, _)| at) + end;
        if next < text.len() && !self.splits(text, next) {
            return None;
        }
        Some(TextPart { end, next: self.continues.then_some(next) })
    }
}

trait Spell {
    fn spell(&self, text: &str) -> Option<String>;
}

impl Spell for ByteLevel {
    fn spell(&self, text: &str) -> Option<String> {
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};
        let mut split = PreTokenizedString::from(text);
        self.pre_tokenize(&mut split).ok()?;
        let pieces = split.get_splits(OffsetReferential::Normalized, OffsetType::None);
        Some(pieces.into_iter().map(|(piece, ..)| piece).collect())
    }
}

/// What a normalizer does that matters at a cut.
#[derive(Default)]
struct Normal {
    chinese: bool,
    prepends: bool,
    strips: bool,
}

impl Normal {
    /// False when it is not known to change a text piece by piece.
    fn read(&mut self, normalizer: &NormalizerWrapper, joined: &mut HashSet<(char, char)>) -> bool {
        use NormalizerWrapper as N;
        match normalizer {
            N::BertNormalizer(bert) => self.chinese |= bert.handle_chinese_chars,
            N::Lowercase(_) | N::StripAccents(_) | N::Nmt(_) | N::Precompiled(_) => {}
            N::NFC(_) | N::NFD(_) | N::NFKC(_) | N::NFKD(_) => {}
            N::StripNormalizer(_) => self.strips = true,
            N::Prepend(_) => self.prepends = true,
            N::Replace(_) => {
                let Ok(value) = serde_json::to_value(normalizer) else { return false };
                if let Some(text) = value["pattern"]["String"].as_str() {
                    // What takes the place of one character may join those around it.
                    if text.chars().count() == 1 && !(text == " " && value["content"] == "▁") {
                        return false;
                    }
                    let chars: Vec<char> = text.chars().map(folded).collect();
                    joined.extend(chars.windows(2).map(|pair| (pair[0], pair[1])));
                    return true;
                }
                // `" {2,}" → " "` and its like, which one space between letters never meets.
                let blank = |c: char| c.is_whitespace() || c.is_ascii_digit() || "{},+▁".contains(c);
                return value["pattern"]["Regex"].as_str().is_some_and(|p| p.chars().all(blank));
            }
            N::Sequence(all) => {
                return AsRef::<[N]>::as_ref(all).iter().all(|one| self.read(one, joined));
            }
            _ => return false,
        }
        true
    }
}

/// Whether a pre-tokenizer puts a space in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Prefix {
    None,
    First,
    Always,
}

fn split(pre: &PreTokenizerWrapper, chinese: bool) -> Option<(Split, Prefix)> {
    use PreTokenizerWrapper as P;
    Some(match pre {
        P::BertPreTokenizer(_) => (Split::Words { punctuation: true, chinese }, Prefix::None),
        P::Whitespace(_) | P::WhitespaceSplit(_) => {
            (Split::Words { punctuation: false, chinese }, Prefix::None)
        }
        P::ByteLevel(bytes) if bytes.use_regex => {
            (Split::Runs, if bytes.add_prefix_space { Prefix::Always } else { Prefix::None })
        }
        P::Split(_) => {
            let value = serde_json::to_value(pre).ok()?;
            let regex = value["pattern"]["Regex"].as_str()?;
            let plain = value["behavior"] == "Isolated" && value["invert"] == false;
            (plain && [LLAMA3, QWEN2].contains(&regex)).then_some((Split::Runs, Prefix::None))?
        }
        P::Metaspace(metaspace) => {
            let prefix = match metaspace.get_prepend_scheme() {
                PrependScheme::Always => Prefix::Always,
                PrependScheme::First => Prefix::First,
                PrependScheme::Never => Prefix::None,
            };
            (if metaspace.get_split() { Split::Spaces } else { Split::Nowhere }, prefix)
        }
        P::Sequence(sequence) => {
            let all: &[P] = sequence.as_ref();
            // Digits split at characters of their own, which are no cuts here.
            let mut all = all.iter().filter(|one| !matches!(one, P::Digits(_)));
            let (mut first, mut prefix) = split(all.next()?, chinese)?;
            for one in all {
                // The first sees the text; those after it see its pieces.
                match one {
                    P::Punctuation(_) => {}
                    P::ByteLevel(bytes) if !bytes.add_prefix_space => {}
                    P::Metaspace(_) => {
                        let (_, own) = split(one, chinese)?;
                        prefix = prefix.max(own);
                        if let Split::Words { .. } = first {
                            first = Split::Spaces;
                        }
                    }
                    P::WhitespaceSplit(_) | P::Whitespace(_) | P::BertPreTokenizer(_) => {}
                    _ => return None,
                }
            }
            (first, prefix)
        }
        _ => return None,
    })
}

/// Whether what the normalizer makes of white space between letters is white space still.
fn keeps_blanks(inner: &Pipeline) -> bool {
    let Some(normalizer) = inner.normalizer() else { return true };
    ["a b", "a  b", "a\nb", "a\tb"].into_iter().all(|text| {
        let mut normalized = NormalizedString::from(text);
        let inside = |normal: &str| normal.trim().contains(char::is_whitespace);
        normalizer.normalize(&mut normalized).is_ok() && inside(normalized.get())
    })
}

fn to_bytes(pre: &PreTokenizerWrapper) -> bool {
    match pre {
        PreTokenizerWrapper::ByteLevel(_) => true,
        PreTokenizerWrapper::Sequence(all) => {
            AsRef::<[PreTokenizerWrapper]>::as_ref(all).iter().any(to_bytes)
        }
        _ => false,
    }
}

/// Character boundaries of `text` from `size` on.
fn places(text: &str, size: usize) -> impl Iterator<Item = usize> {
    (size.max(1)..text.len().min(size.saturating_add(SEARCH))).filter(|&at| text.is_char_boundary(at))
}

/// The characters before and after a place that has both.
fn around(text: &str, at: usize) -> (char, char) {
    let before = text[..at].chars().next_back().unwrap_or('\0');
    (before, text[at..].chars().next().unwrap_or('\0'))
}

/// The place `characters` before `at`, or the beginning.
fn back(text: &str, at: usize, characters: usize) -> usize {
    text[..at].char_indices().rev().take(characters).last().map_or(at, |(from, _)| from)
}

/// As normalization may fold a character before added tokens are looked for.
fn folded(c: char) -> char {
    let c = match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(c as u32 - 0xfee0).unwrap_or(c),
        c => c,
    };
    c.to_lowercase().next().unwrap_or(c)
}

fn is_blank(c: char) -> bool {
    " \n\t".contains(c)
}

/// Whether normalization treats what is before and after such a character apart: it is no combining mark, begins no
/// decomposition with one, composes with no character before it, and makes no grapheme with its neighbors.
fn is_safe(c: char) -> bool {
    if c.is_ascii() {
        return is_blank(c) || c.is_ascii_graphic();
    }
    // Parts of Hangul syllables and their compatibility forms, vowels that are letters, regional indicators, and blocks
    // with letters that join the next.
    let joining = matches!(u32::from(c),
        0x1100..=0x11ff | 0x3130..=0x318f | 0xa960..=0xa97f | 0xd7b0..=0xd7ff | 0xff9e..=0xffdf
        | 0x0e33 | 0x0eb3 | 0x0d4e | 0x11000..=0x11fff | 0x16d00..=0x16d7f | 0x1f1e6..=0x1f1ff);
    let kind = c.general_category();
    !joining
        && matches!(
            kind,
            G::UppercaseLetter
                | G::LowercaseLetter
                | G::TitlecaseLetter
                | G::OtherLetter
                | G::DecimalNumber
                | G::LetterNumber
                | G::OtherNumber
                | G::DashPunctuation
                | G::OpenPunctuation
                | G::ClosePunctuation
                | G::InitialPunctuation
                | G::FinalPunctuation
                | G::OtherPunctuation
                | G::MathSymbol
                | G::CurrencySymbol
                | G::OtherSymbol
        )
}

/// Punctuation that is one in every version of Unicode and stays it in every normal form.
fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
        || matches!(u32::from(c),
            0xa1 | 0xab | 0xb7 | 0xbb | 0xbf | 0x60c | 0x61b | 0x61f | 0x6d4 | 0x964 | 0x965
            | 0x2010..=0x2016 | 0x2018..=0x2027 | 0x2030..=0x203d | 0x3001..=0x3003 | 0x3008..=0x3011
            | 0x3014..=0x301b | 0xff01..=0xff03 | 0xff05..=0xff0a | 0xff0c..=0xff0f | 0xff1a | 0xff1b | 0xff1f
            | 0xff20)
}

/// The characters that a BERT normalizer puts spaces around.
fn is_chinese(c: char) -> bool {
    matches!(u32::from(c),
        0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x20000..=0x2a6df | 0x2a700..=0x2b73f | 0x2b740..=0x2b81f
        | 0x2b920..=0x2ceaf | 0xf900..=0xfaff | 0x2f800..=0x2fa1f)
}
