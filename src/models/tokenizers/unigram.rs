//! SentencePiece's Unigram model in little memory: the pieces whose scores have the largest sum.
//!
//! The ids are those of the tokenizers crate, whose model of 250,000 pieces takes 280 MB and 0.8 s to build: a hash map
//! for every node of its trie. Scores stay f64 and are added in the same order, so equal sums are equal here too.

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tokenizers::Token;

use super::text_table::{TextSeed, TextTable};
use super::trie::Trie;
use crate::compute::pages::{self, PageVec};

/// An unknown character scores so much less than the piece with the smallest score.
const UNKNOWN_PENALTY: f64 = 10.0;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Unigram {
    texts: TextTable,
    scores: PageVec<f64>,
    trie: Trie,
    unknown: u32,
    unknown_score: f64,
    /// The pieces of single bytes, where unknown text is spelt in them.
    bytes: Option<Box<[u32; 256]>>,
    /// Characters of the longest piece.
    longest: usize,
}

/// The best way to a place in a text.
#[derive(Debug, Clone, Copy, Default)]
struct Best {
    score: f64,
    /// Where its last piece starts, one more than that; 0 without a way.
    start: u32,
    piece: u32,
}

/// Memory that the words of a text share.
#[derive(Debug, Default)]
pub(crate) struct UnigramScratch {
    best: Vec<Best>,
    /// Where each piece starts and ends, and its id, if its text has one.
    pieces: Vec<(usize, usize, Option<u32>)>,
}

impl Unigram {
    /// Pieces whose score is minus infinity are not found in a text. `None` for a vocabulary that this does not hold: one
    /// without its unknown piece, or with an empty one.
    pub(super) fn new(
        mut texts: TextTable,
        mut scores: PageVec<f64>,
        unknown: usize,
        byte_fallback: bool,
    ) -> Option<Self> {
        if unknown >= texts.len() || texts.len() != scores.len() || texts.iter_bytes().any(<[u8]>::is_empty) {
            return None;
        }
        texts.shrink();
        scores.shrink_to_fit();
        let trie = Trie::new(&texts);
        let byte = |byte| trie.get(&byte_piece(byte));
        let bytes: Option<Vec<u32>> = if byte_fallback { (0..=255).map(byte).collect() } else { None };
        if byte_fallback && bytes.is_none() {
            return None;
        }
        let smallest = scores.iter().copied().filter(|score| score.is_finite()).fold(f64::INFINITY, f64::min);
        Some(Self {
            unknown: u32::try_from(unknown).ok()?,
            unknown_score: smallest - UNKNOWN_PENALTY,
            bytes: bytes.and_then(|bytes| bytes.try_into().ok()),
            longest: texts.longest(),
            scores,
            texts,
            trie,
        })
    }

    /// The id of the unknown piece.
    pub(crate) fn unknown(&self) -> u32 {
        self.unknown
    }

    /// Characters of the longest piece.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// Fills `scratch` with the pieces of `text`, the last one first. Neighboring unknown characters are one piece;
    /// its id is that of its text where the vocabulary has it.
    fn split(&self, text: &str, scratch: &mut UnigramScratch) {
        let UnigramScratch { best, pieces } = scratch;
        best.clear();
        best.resize(text.len() + 1, Best::default());
        for (start, c) in text.char_indices() {
            let before = best[start].score;
            let mut alone = false;
            let mut offer = |length: usize, score: f64, piece: u32| {
                let target = &mut best[start + length];
                if target.start == 0 || score > target.score {
                    *target = Best { score, start: start as u32 + 1, piece };
                }
            };
            for (length, piece) in self.trie.prefixes(&text.as_bytes()[start..]) {
                let score = self.scores[piece as usize];
                if score > f64::NEG_INFINITY {
                    offer(length, score + before, piece);
                    alone |= length == c.len_utf8();
                }
            }
            if !alone {
                offer(c.len_utf8(), self.unknown_score + before, self.unknown);
            }
        }
        pieces.clear();
        let (mut end, mut unknown) = (text.len(), false);
        while end > 0 {
            let Best { start, piece, .. } = best[end];
            let start = start as usize - 1;
            match pieces.last_mut() {
                Some(last) if unknown && piece == self.unknown => last.0 = start,
                _ => pieces.push((start, end, Some(piece))),
            }
            unknown = piece == self.unknown;
            end = start;
        }
        for piece in pieces.iter_mut().filter(|piece| piece.2 == Some(self.unknown)) {
            let found = self.trie.get(&text[piece.0..piece.1]);
            piece.2 = found.filter(|&id| self.scores[id as usize] > f64::NEG_INFINITY);
        }
    }

    /// Adds the ids of a word, which has less than 4 GB.
    pub(crate) fn ids(&self, word: &str, scratch: &mut UnigramScratch, ids: &mut Vec<u32>) {
        self.split(word, scratch);
        for &(start, end, id) in scratch.pieces.iter().rev() {
            match (id, &self.bytes) {
                (None, Some(bytes)) => {
                    ids.extend(word[start..end].bytes().map(|byte| bytes[usize::from(byte)]));
                }
                (id, _) => ids.push(id.unwrap_or(self.unknown)),
            }
        }
    }

    /// The tokens of a word.
    ///
    /// # Errors
    /// For a word of 4 GB.
    pub(crate) fn tokens(&self, text: &str) -> tokenizers::Result<Vec<Token>> {
        if u32::try_from(text.len() + 1).is_err() {
            return Err("a word of 4 GiB is too long".into());
        }
        let mut scratch = UnigramScratch::default();
        self.split(text, &mut scratch);
        let mut tokens = Vec::with_capacity(scratch.pieces.len());
        for (start, end, id) in scratch.pieces.into_iter().rev() {
            let piece = &text[start..end];
            if let (None, Some(ids)) = (id, &self.bytes) {
                let token = |byte| Token::new(ids[usize::from(byte)], byte_piece(byte), (start, end));
                tokens.extend(piece.bytes().map(token));
            } else {
                tokens.push(Token::new(id.unwrap_or(self.unknown), piece.to_owned(), (start, end)));
            }
        }
        Ok(tokens)
    }

    /// The id of the piece that `text` is.
    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        self.trie.get(text)
    }

    /// The pieces by id.
    pub(crate) fn texts(&self) -> &TextTable {
        &self.texts
    }
}

/// How a byte is spelt in a vocabulary.
fn byte_piece(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// Reads the form in which the tokenizers crate writes a Unigram model, piece by piece, after its type. Any other is an
/// error: the caller leaves it to the crate.
pub(super) fn read<'de, A: MapAccess<'de>>(mut map: A) -> Result<Unigram, A::Error> {
    let (mut texts, mut scores) = (TextTable::default(), pages::list());
    let (mut unknown, mut byte_fallback, mut vocabulary) = (None, None, false);
    while let Some(key) = map.next_key::<String>()? {
        match key.as_str() {
            "unk_id" if unknown.is_none() => unknown = Some(map.next_value::<usize>()?),
            "byte_fallback" if byte_fallback.is_none() => byte_fallback = Some(map.next_value::<bool>()?),
            "vocab" if !vocabulary => {
                map.next_value_seed(ScoredSeed { texts: &mut texts, scores: &mut scores })?;
                vocabulary = true;
            }
            _ => return Err(A::Error::custom("a key of the model is unknown, or there twice")),
        }
    }
    let unknown = unknown.ok_or_else(|| A::Error::missing_field("unk_id"))?;
    Unigram::new(texts, scores, unknown, byte_fallback.unwrap_or(false))
        .ok_or_else(|| A::Error::custom("the vocabulary is none that is known"))
}

/// The pieces of a vocabulary with their scores.
struct ScoredSeed<'a> {
    texts: &'a mut TextTable,
    scores: &'a mut PageVec<f64>,
}

impl<'de> DeserializeSeed<'de> for ScoredSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ScoredSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of pieces with scores")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(score) = list.next_element_seed(PieceSeed(self.texts))? {
            self.scores.push(score);
        }
        Ok(())
    }
}

/// One piece, whose text is kept, with its score.
struct PieceSeed<'a>(&'a mut TextTable);

impl<'de> DeserializeSeed<'de> for PieceSeed<'_> {
    type Value = f64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<f64, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for PieceSeed<'_> {
    type Value = f64;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a piece and its score")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<f64, A::Error> {
        pair.next_element_seed(TextSeed(self.0))?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        let score = pair.next_element()?.ok_or_else(|| A::Error::missing_field("score"))?;
        if pair.next_element::<IgnoredAny>()?.is_some() {
            return Err(A::Error::custom("a piece has more than a text and a score"));
        }
        Ok(score)
    }
}
