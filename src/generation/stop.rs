//! Text to tokens and back for generation: the prompt in, the answer out piece by piece.

use crate::models::tokenizers::Pipeline;
use crate::models::tokenizers::cut::Cuts;
use crate::models::tokenizers::long::{self, Bounds};
use crate::models::tokenizers::model::Inner;
use crate::models::tokenizers::tokenizer::{guarded, special_ids};
use crate::{Error, Result};

/// Bytes of a text above which it is tokenized part by part.
const LONG_TEXT: usize = 64 << 10;

/// How many tokens of text before an answer are decoded with it, so that its first word keeps its leading space.
const CONTEXT_TOKENS: usize = 8;

/// Tokens without a complete character after which fewer are decoded again with each further one. A character has four
/// bytes at most.
const MOST_HELD: usize = 64;

/// How many of them then go on being decoded.
const LOOK_BACK: usize = 16;

/// The tokenizer of a generator.
#[derive(Debug)]
pub struct TextTokens {
    tokenizer: Pipeline,
    cuts: Cuts,
    /// Special ids before and after a text, where a text's own tokens stay in one piece.
    around: Option<(Vec<u32>, Vec<u32>)>,
}

impl TextTokens {
    /// Takes over a tokenizer; truncation and padding stored in it are switched off.
    ///
    /// # Errors
    /// When what it puts around a text cannot be made.
    pub(crate) fn new(mut tokenizer: Inner) -> tokenizers::Result<Self> {
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        let tokenizer = Pipeline::from(tokenizer);
        let (cuts, around) = (Cuts::of(&tokenizer), special_ids(&tokenizer)?);
        Ok(Self { tokenizer, cuts, around })
    }

    /// The tokens of `text`. `special` adds what the tokenizer puts around a text (a beginning-of-text token); a chat
    /// template writes those itself.
    ///
    /// # Errors
    /// [`Error::Input`] when the tokenizer refuses the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encode = || match &self.around {
            Some((before, after)) if special => Ok([before, &*self.tokenizer.ids(text)?, after].concat()),
            None if special => Ok(self.tokenizer.inner().encode_fast(text, true)?.get_ids().to_vec()),
            _ => self.tokenizer.ids(text),
        };
        guarded(encode).map_err(|e| Error::Input(format!("the prompt cannot be tokenized: {e}")))
    }

    /// [`encode`](Self::encode) within `bounds`, a long text part by part.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); [`Error::Input`] for a text that is too long, and what the check of `bounds` returns.
    pub fn encode_within(&self, text: &str, special: bool, bounds: &mut Bounds<'_>) -> Result<Vec<u32>> {
        let around = self.around.as_ref().filter(|_| text.len() > LONG_TEXT);
        let Some((before, after)) = around else {
            long::refuse(text, bounds)?;
            return self.encode(text, special);
        };
        let mut ids = if special { before.clone() } else { Vec::new() };
        long::each_part(&self.tokenizer, &self.cuts, text, bounds, &mut |part| ids.extend_from_slice(part))?;
        if special {
            ids.extend_from_slice(after);
        }
        Ok(ids)
    }

    /// The text of `ids` without special tokens.
    ///
    /// # Errors
    /// [`Error::Internal`] when the decoder fails: the ids come from the tokenizer's own vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.tokenizer.inner().decode(ids, true)).map_err(|e| Error::internal("detokenizing", e))
    }

    /// The last tokens of `ids` that are text, as context of what follows: special tokens show nothing.
    fn context(&self, ids: &[u32]) -> Vec<u32> {
        let text = ids.iter().copied().rev().filter(|&id| self.is_text(id));
        let mut context: Vec<u32> = text.take(CONTEXT_TOKENS).collect();
        context.reverse();
        context
    }

    /// Whether a token is part of a decoded text: it is no special one, and no row of a table that is larger than the
    /// vocabulary.
    fn is_text(&self, id: u32) -> bool {
        match self.tokenizer.inner().get_added_vocabulary().get_added_tokens_decoder().get(&id) {
            Some(added) => !added.special,
            None => self.token(id).is_some(),
        }
    }

    /// Whether a token that is no text is spelt like one of `stops`. Such a stop text never shows in the text of an answer.
    pub(crate) fn is_stop_token(&self, id: u32, stops: &[String]) -> bool {
        let spelt = |token: String| stops.contains(&token);
        !stops.is_empty() && !self.is_text(id) && self.token(id).is_some_and(spelt)
    }

    /// The id of a token as it is spelt in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.id(token)
    }

    /// The spelling of an id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.inner().id_to_token(id)
    }
}

/// Turns tokens into text as they come. Pieces never split a character, and together are exactly what decoding all
/// tokens at once gives (bytes that are no UTF-8 become U+FFFD, and of their neighbors only those not yet shown).
///
/// Decoders are not additive: a word's leading space depends on whether a word stands before it, and a character may
/// be spread over several tokens. So each token is decoded together with those of the piece before it, and what that
/// piece gives alone is cut off.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    /// The tokens of the last piece, then those whose text is not complete.
    ids: Vec<u32>,
    /// How many of `ids` are already text.
    read: usize,
    /// Bytes of the text of the others that are out: whole characters before one that is not complete.
    shown: usize,
}

impl Detokenizer {
    /// Continues the text of `prompt`; an empty prompt starts a text of its own.
    pub fn new(tokens: &TextTokens, prompt: &[u32]) -> Self {
        let context = tokens.context(prompt);
        Self { read: context.len(), ids: context, shown: 0 }
    }

    /// The text that `id` completes; empty while a character is incomplete.
    ///
    /// # Errors
    /// As [`TextTokens::decode`].
    pub fn push(&mut self, tokens: &TextTokens, id: u32) -> Result<String> {
        if !tokens.is_text(id) {
            return Ok(String::new());
        }
        self.ids.push(id);
        self.advance(tokens, false)
    }

    /// What is left at the end: an incomplete character becomes U+FFFD.
    ///
    /// # Errors
    /// As [`TextTokens::decode`].
    pub fn finish(&mut self, tokens: &TextTokens) -> Result<String> {
        self.advance(tokens, true)
    }

    fn advance(&mut self, tokens: &TextTokens, last: bool) -> Result<String> {
        let before = tokens.decode(&self.ids[..self.read])?;
        let all = tokens.decode(&self.ids)?;
        let piece = match all.strip_prefix(&before) {
            Some(piece) => piece.to_owned(),
            // Byte fallback turns a whole run of bytes into U+FFFD when one of them is wrong, also those already shown.
            None => tokens.decode(&self.ids[self.read..])?,
        };
        let many = self.ids.len() - self.read > MOST_HELD;
        let mut whole = if last { piece.len() } else { piece.trim_end_matches('\u{fffd}').len() };
        if many && whole < piece.len() {
            // So many are no characters: only the last bytes may still become one, of which a decoder shows up to three.
            let incomplete = (piece.len() - whole).min(3 * '\u{fffd}'.len_utf8());
            whole = piece.len() - incomplete;
        }
        let mut new = piece.get(self.shown..whole).unwrap_or_default().to_owned();
        if whole < piece.len() {
            self.shown = self.shown.max(whole);
            if many {
                new.push_str(self.shorten(tokens, &piece)?);
            }
        } else if !piece.is_empty() {
            self.begin_anew();
        } else if many {
            self.ids.truncate(self.read);
        }
        Ok(new)
    }

    /// Everything so far is text.
    fn begin_anew(&mut self) {
        self.ids.drain(..self.read);
        (self.read, self.shown) = (self.ids.len(), 0);
    }

    /// From now on decodes the last tokens alone, if they give the end of `piece`. If the decoder looks further back, all
    /// of `piece` is text, and what was not shown of it is returned.
    fn shorten<'p>(&mut self, tokens: &TextTokens, piece: &'p str) -> Result<&'p str> {
        let unseen = piece.get(self.shown..).unwrap_or_default();
        let last = &self.ids[self.ids.len() - LOOK_BACK..];
        let text = tokens.decode(last)?;
        // The first token may end a character that began before it.
        let half = text.char_indices().map(|(at, _)| at).find(|&at| at >= text.len() / 2);
        let end = &text[half.unwrap_or(0)..];
        if end.len() >= unseen.len() && piece.ends_with(end) {
            let last = last.to_vec();
            (self.ids, self.read, self.shown) = (last, 0, text.len() - unseen.len());
            return Ok("");
        }
        self.begin_anew();
        Ok(unseen)
    }
}

/// Watches the answer for stop texts and holds back what may become one. A byte costs a step for each stop text,
/// however long that is.
#[derive(Debug, Clone)]
pub struct StopTexts {
    stops: Vec<StopText>,
    held: String,
}

/// One stop text, and how much of it the end of the answer is (Knuth, Morris and Pratt).
#[derive(Debug, Clone)]
struct StopText {
    text: Vec<u8>,
    /// For each beginning of the text, the length of the longest shorter beginning that it ends with.
    borders: Vec<usize>,
    matched: usize,
}

impl StopText {
    fn new(text: String) -> Self {
        let mut stop = Self { borders: vec![0; text.len()], text: text.into_bytes(), matched: 0 };
        for end in 1..stop.text.len() {
            stop.borders[end] = stop.longest(stop.borders[end - 1], stop.text[end]);
        }
        stop
    }

    /// How much of the text ends in `byte`, when `matched` of it ended before.
    fn longest(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.text[matched] != byte {
            matched = self.borders[matched - 1];
        }
        matched + usize::from(self.text[matched] == byte)
    }

    /// Takes the next byte of the answer. True when the text is complete.
    fn push(&mut self, byte: u8) -> bool {
        self.matched = self.longest(self.matched, byte);
        self.matched == self.text.len()
    }
}

/// What may be shown after a piece.
#[derive(Debug, PartialEq, Eq)]
pub struct Released {
    /// Text that belongs to no stop text.
    pub text: String,
    /// A stop text is complete: the answer is over.
    pub stopped: bool,
}

impl StopTexts {
    /// Watches for `stops`; empty ones are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).map(StopText::new).collect();
        Self { stops, held: String::new() }
    }

    /// Takes the next piece of the answer. Of stop texts that end at the same place the longest counts. Nothing may
    /// follow a piece that stopped.
    pub fn push(&mut self, piece: &str) -> Released {
        let before = self.held.len();
        self.held.push_str(piece);
        for (index, byte) in piece.bytes().enumerate() {
            // Every stop text takes every byte.
            let complete =
                self.stops.iter_mut().filter_map(|stop| stop.push(byte).then_some(stop.text.len()));
            if let Some(longest) = complete.max() {
                self.held.truncate(before + index + 1 - longest);
                return Released { text: std::mem::take(&mut self.held), stopped: true };
            }
        }
        let kept = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        Released { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What was held back when the answer ends otherwise.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
#[path = "stop_tests.rs"]
pub(crate) mod tests;
