//! A long text in chunks that a model reads whole.
//!
//! text-splitter finds the places: it prefers the ends of paragraphs, then of lines, sentences, words and characters, and takes
//! the largest chunk that fits. The tokenizer of the model says what fits.

use std::cell::RefCell;
use std::ops::Range;

use text_splitter::{ChunkCharIndex, ChunkConfig, ChunkSizer, TextSplitter};

use super::tokenizers::{Bounds, Tokenizer};
use crate::compute::memory::push;
use crate::{Error, Result};

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextChunk {
    /// Where its bytes are.
    pub bytes: Range<usize>,
    /// Where its characters are.
    pub characters: Range<usize>,
    /// The tokens that the model reads for it: with the prompt and the special tokens.
    pub tokens: usize,
}

/// How large chunks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSize {
    /// The most tokens of a chunk, with the prompt and the special tokens.
    pub max_tokens: usize,
    /// The most tokens at the end of a chunk that the next one begins with.
    pub overlap: usize,
}

/// A line of more bytes is split in stretches, unless a chunk may be as long.
const LONG_LINE: usize = 32 << 10;
/// A token has fewer bytes, but for rare ones. A line of so many bytes for each token of a chunk does not fit.
const BYTES_OF_TOKEN: usize = 64;
/// The end of a stretch is looked for in this part of its bytes, the last one.
const LOOK_BACK: usize = 4;
/// A beginning has at most so many tokens more than the whole: a word that is too long for WordPiece is one unknown token.
const LOST_TOKENS: usize = 256;

/// Counts the tokens that a model reads for a piece of text: prompt and piece together, since a prompt without a space at its end
/// may share one with the text, and the special tokens.
pub type CountTokens<'a> = &'a dyn Fn(&str, &mut Bounds<'_>) -> Result<usize>;

/// Cuts `text` into chunks. White space at their ends is left out, so that a blank text has none. A part of which the
/// tokenizer makes no token, such as a zero-width space, is blank too.
///
/// # Errors
/// [`Error::Argument`] when `max_tokens` has no place for text, when the overlap is not smaller than that place, and when a
/// single character does not fit; those of the tokenizer and of `bounds`.
pub fn chunks(
    tokenizer: &Tokenizer,
    text: &str,
    count: CountTokens<'_>,
    size: ChunkSize,
    bounds: &mut Bounds<'_>,
) -> Result<Vec<TextChunk>> {
    chunks_of_lines(tokenizer, text, count, size, LONG_LINE, bounds)
}

/// [`chunks`], where a line of more than `long_line` bytes may be split in stretches.
fn chunks_of_lines(
    tokenizer: &Tokenizer,
    text: &str,
    count: CountTokens<'_>,
    size: ChunkSize,
    long_line: usize,
    bounds: &mut Bounds<'_>,
) -> Result<Vec<TextChunk>> {
    let around = count("", bounds)?;
    let capacity = size.max_tokens.saturating_sub(around);
    if capacity == 0 {
        return Err(Error::argument(
            "max_tokens",
            format!("={} leaves no place for text: prompt and special tokens take {around}", size.max_tokens),
        ));
    }
    let sizer = Sizer { tokenizer, counted: count, around, capacity, state: RefCell::new((bounds, None)) };
    let config = ChunkConfig::new(capacity).with_sizer(&sizer).with_overlap(size.overlap).map_err(|_| {
        let reason =
            format!("={} must be smaller than the {capacity} tokens of a chunk's own text", size.overlap);
        Error::argument("overlap", reason)
    })?;
    let splitter = TextSplitter::new(config);
    let (mut found, mut passed) = (Vec::new(), 0);
    for stretch in stretches(text, long_line.max(capacity.saturating_mul(BYTES_OF_TOKEN))) {
        let within = &text[stretch.clone()];
        let parts = splitter.chunk_char_indices(within).flat_map(|chunk| sizer.parts(chunk, capacity));
        for part in parts {
            let tokens = around + sizer.size(part.chunk);
            if let Some(error) = sizer.state.borrow_mut().1.take() {
                return Err(error);
            }
            if tokens > size.max_tokens {
                return Err(Error::argument(
                    "max_tokens",
                    format!("={} is too small: {:?} alone has {tokens} tokens", size.max_tokens, part.chunk),
                ));
            }
            if tokens == around && sizer.is_blank(part.chunk)? {
                continue;
            }
            let (byte, character) = (stretch.start + part.byte_offset, passed + part.char_offset);
            let bytes = byte..byte + part.chunk.len();
            let characters = character..character + part.chunk.chars().count();
            push(&mut found, TextChunk { bytes, characters, tokens })?;
        }
        passed += within.chars().count();
    }
    Ok(found)
}

/// The stretches of a text that are split one after the other: the whole text, unless it has lines of more than `longest`
/// bytes. These are cut, at the end of a sentence if one is near, else of a word. The splitter looks at the rest of a
/// sentence and of a word for each of its chunks, so that its work would grow with the square of their lengths.
fn stretches(text: &str, longest: usize) -> impl Iterator<Item = Range<usize>> {
    let (mut start, mut done) = (0, false);
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let end = next_cut(text, start, longest).unwrap_or(text.len());
        done = end == text.len();
        Some(std::mem::replace(&mut start, end)..end)
    })
}

/// Where the first line of `text` from `start` on that is longer than `longest` bytes is cut.
fn next_cut(text: &str, start: usize, longest: usize) -> Option<usize> {
    let mut line = &text[start..];
    while line.len() > longest {
        let cut = boundary(line, longest);
        if let Some(end) = line[..cut].find(['\n', '\r']) {
            line = &line[end + 1..];
            continue;
        }
        let first = boundary(line, cut - cut / LOOK_BACK);
        let near = &line[first..cut];
        let sentence =
            near.char_indices().rev().find(|&(at, end)| ends_sentence(end, &near[at + end.len_utf8()..]));
        let place = sentence.or_else(|| near.char_indices().rev().find(|(_, blank)| blank.is_whitespace()));
        let kept = place.map_or(cut, |(at, end)| first + at + end.len_utf8());
        return Some(text.len() - line.len() + kept);
    }
    None
}

/// The last boundary of characters in the first `at` bytes of `text`.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

/// Whether a sentence ends with this character, which `rest` follows.
fn ends_sentence(end: char, rest: &str) -> bool {
    match end {
        '.' | '!' | '?' | '…' => rest.starts_with(char::is_whitespace),
        '。' | '！' | '？' => true,
        _ => false,
    }
}

/// Counts the tokens that a piece of text adds to the prompt.
struct Sizer<'a, 'b> {
    tokenizer: &'a Tokenizer,
    counted: CountTokens<'a>,
    /// Tokens of the prompt alone, with the special ones.
    around: usize,
    /// The most tokens that a piece may add.
    capacity: usize,
    /// What the tokenizer needs, and the first error: the splitter knows none.
    state: RefCell<(&'a mut Bounds<'b>, Option<Error>)>,
}

impl Sizer<'_, '_> {
    /// `chunk`, or smaller ones of it. The splitter takes a word of few bytes for one of few tokens, but a word can have more
    /// tokens than bytes: its beginning is one too. Then it gets a smaller capacity, until the parts fit.
    fn parts<'t>(&self, chunk: ChunkCharIndex<'t>, capacity: usize) -> Vec<ChunkCharIndex<'t>> {
        let fits = |part: &ChunkCharIndex<'_>| self.size(part.chunk) <= capacity;
        if fits(&chunk) {
            return vec![chunk];
        }
        let smaller = (1..=capacity).rev().map(|capacity| {
            let splitter = TextSplitter::new(ChunkConfig::new(capacity).with_sizer(self));
            let parts = splitter.chunk_char_indices(chunk.chunk).map(|part| ChunkCharIndex {
                byte_offset: chunk.byte_offset + part.byte_offset,
                char_offset: chunk.char_offset + part.char_offset,
                ..part
            });
            parts.collect::<Vec<_>>()
        });
        smaller.into_iter().find(|parts| parts.iter().all(fits)).unwrap_or_else(|| vec![chunk])
    }

    /// Whether the tokenizer makes no token of a piece.
    fn is_blank(&self, piece: &str) -> Result<bool> {
        let (bounds, _) = &mut *self.state.borrow_mut();
        Ok(self.tokenizer.count_within(piece, bounds)? <= self.tokenizer.special_tokens())
    }

    /// The tokens of `piece`; of a long one perhaps only those of its beginning, which does not fit alone.
    fn count(&self, piece: &str, bounds: &mut Bounds<'_>) -> Result<usize> {
        let mut count = |piece: &str| Ok((self.counted)(piece, bounds)?.saturating_sub(self.around));
        let too_many = self.capacity.saturating_mul(2).saturating_add(LOST_TOKENS);
        let beginning = boundary(piece, too_many.saturating_mul(BYTES_OF_TOKEN / 8));
        if beginning < piece.len() {
            let tokens = count(&piece[..beginning])?;
            if tokens > too_many {
                return Ok(tokens);
            }
        }
        count(piece)
    }
}

impl ChunkSizer for Sizer<'_, '_> {
    fn size(&self, piece: &str) -> usize {
        let (bounds, error) = &mut *self.state.borrow_mut();
        if error.is_some() {
            return 0; // everything fits: the splitter ends soon
        }
        self.count(piece, bounds).unwrap_or_else(|failure| {
            *error = Some(failure);
            0
        })
    }
}

#[cfg(test)]
#[path = "chunks_tests.rs"]
mod tests;
