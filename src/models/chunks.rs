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
    let around = count("", bounds)?;
    let capacity = size.max_tokens.saturating_sub(around);
    if capacity == 0 {
        return Err(Error::argument(
            "max_tokens",
            format!("={} leaves no place for text: prompt and special tokens take {around}", size.max_tokens),
        ));
    }
    let sizer = Sizer { tokenizer, counted: count, around, state: RefCell::new((bounds, None)) };
    let config = ChunkConfig::new(capacity).with_sizer(&sizer).with_overlap(size.overlap).map_err(|_| {
        let reason =
            format!("={} must be smaller than the {capacity} tokens of a chunk's own text", size.overlap);
        Error::argument("overlap", reason)
    })?;
    let mut found = Vec::new();
    for chunk in TextSplitter::new(config).chunk_char_indices(text) {
        for part in sizer.parts(chunk, capacity) {
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
            let characters = part.char_offset..part.char_offset + part.chunk.chars().count();
            let bytes = part.byte_offset..part.byte_offset + part.chunk.len();
            push(&mut found, TextChunk { bytes, characters, tokens })?;
        }
    }
    Ok(found)
}

/// Counts the tokens that a piece of text adds to the prompt.
struct Sizer<'a, 'b> {
    tokenizer: &'a Tokenizer,
    counted: CountTokens<'a>,
    /// Tokens of the prompt alone, with the special ones.
    around: usize,
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

    fn count(&self, piece: &str, bounds: &mut Bounds<'_>) -> Result<usize> {
        Ok((self.counted)(piece, bounds)?.saturating_sub(self.around))
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
