//! Byte pair encoding in little memory: neighbors become one piece, those whose merge ranks first before others.
//!
//! The ids are those of the tokenizers crate, whose vocabulary of 262,144 pieces takes 200 MB: two hash maps of texts, and
//! a list of merges as texts while it is built.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use tokenizers::Token;

use super::pieces::Pieces;
use super::wanted::Wanted;
use crate::compute::pages::{self, PageVec, Pages};

/// No piece, and no merge.
const NONE: u32 = u32::MAX;
/// Symbols of a word up to which all of its pairs are looked at for each merge.
const SHORT: usize = 48;
/// Characters below this one have their pieces in a table.
const TABLE: usize = 0x3000;

/// What a pair of pieces becomes.
#[derive(Debug, Clone, Copy)]
struct Merge {
    rank: u32,
    piece: u32,
}

/// The merges of a vocabulary, in the order of their ranks, while they are read.
#[derive(Debug)]
pub(crate) struct MergeList {
    /// Pairs, and what they become.
    all: PageVec<(u64, u32)>,
    joined: Vec<u8>,
}

impl Default for MergeList {
    fn default() -> Self {
        Self { all: pages::list(), joined: Vec::new() }
    }
}

impl MergeList {
    /// Adds the merge of two pieces, the next in rank. False when their joint text is no piece.
    pub(crate) fn add(&mut self, pieces: &Pieces, left: u32, right: u32) -> bool {
        let (Some(first), Some(second)) = (pieces.bytes(left), pieces.bytes(right)) else { return false };
        // Merges mostly come in the order of their pieces.
        let last = self.all.last().map_or(0, |merge| merge.1);
        let joined = [last, last.wrapping_add(1)].into_iter().find(|&id| {
            pieces.bytes(id).and_then(|text| text.strip_prefix(first)).is_some_and(|rest| rest == second)
        });
        let joined = joined.or_else(|| {
            self.joined.clear();
            self.joined.extend_from_slice(first);
            self.joined.extend_from_slice(second);
            pieces.id_of(&self.joined)
        });
        joined.map(|piece| self.push(left, right, piece)).is_some()
    }

    /// Adds the merge of two pieces to the one of their joint text, the next in rank.
    pub(crate) fn push(&mut self, left: u32, right: u32, piece: u32) {
        self.all.push((pair(left, right), piece));
    }
}

/// The merges of a vocabulary by pair. Of a pair that is there twice the last one counts.
#[derive(Debug, Clone)]
struct Merges(HashMap<u64, Merge, RandomState, Pages>);

impl Merges {
    fn new(list: &MergeList) -> Self {
        let mut merges = HashMap::with_capacity_and_hasher_in(list.all.len(), RandomState::default(), Pages);
        merges.extend((0..).zip(&list.all).map(|(rank, &(pair, piece))| (pair, Merge { rank, piece })));
        Self(merges)
    }

    #[inline]
    fn get(&self, left: u32, right: u32) -> Option<Merge> {
        self.0.get(&pair(left, right)).copied()
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// How a vocabulary is used.
#[derive(Debug, Clone, Default)]
pub(crate) struct BpeOptions {
    /// The piece of unknown characters.
    pub(crate) unknown: Option<String>,
    /// Whether neighboring unknown characters are one token.
    pub(crate) fuse_unknown: bool,
    /// Whether unknown characters are spelt in the pieces of their bytes.
    pub(crate) byte_fallback: bool,
    /// Whether a word that is a piece is one token.
    pub(crate) ignore_merges: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Bpe {
    pieces: Pieces,
    merges: Merges,
    /// The pieces of the first characters of Unicode.
    characters: Box<[u32]>,
    /// The pieces of single bytes, where unknown text is spelt in them.
    bytes: Option<Box<[u32; 256]>>,
    unknown: Option<u32>,
    fuse_unknown: bool,
    ignore_merges: bool,
    longest: usize,
}

/// A piece of a word, and the merge with the next one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    piece: u32,
    /// Bytes of the word; 0 when it has become a part of one before it.
    bytes: u32,
    rank: u32,
    joined: u32,
}

impl Symbol {
    pub(super) fn new(piece: u32, bytes: usize) -> Self {
        Self { piece, bytes: bytes as u32, rank: NONE, joined: NONE }
    }

    pub(super) fn piece(&self) -> u32 {
        self.piece
    }
}

/// Memory that the words of a text share.
#[derive(Debug, Default)]
pub(crate) struct BpeScratch {
    pub(super) symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
    /// The symbols before and after each one.
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Bpe {
    /// `None` for what this does not do: an unknown piece that the vocabulary lacks.
    pub(crate) fn new(pieces: Pieces, merges: &MergeList, options: &BpeOptions) -> Option<Self> {
        let unknown = match &options.unknown {
            Some(text) => Some(pieces.id(text)?),
            None => None,
        };
        let single = |text: &[u8]| {
            let mut chars = str::from_utf8(text).ok()?.chars();
            chars.next().filter(|_| chars.next().is_none()).map(|c| c as usize).filter(|&c| c < TABLE)
        };
        let mut characters = Vec::new();
        for (id, text) in pieces.iter_bytes().filter(|(_, text)| text.len() <= 4) {
            if let Some(c) = single(text) {
                if characters.len() <= c {
                    characters.resize(c + 1, NONE);
                }
                characters[c] = id;
            }
        }
        let byte = |byte: usize| pieces.id(&format!("<0x{byte:02X}>")).unwrap_or(NONE);
        let bytes = options.byte_fallback.then(|| Box::new(std::array::from_fn(byte)));
        Some(Self {
            longest: pieces.longest(),
            characters: characters.into(),
            bytes,
            unknown,
            fuse_unknown: options.fuse_unknown,
            ignore_merges: options.ignore_merges,
            pieces,
            merges: Merges::new(merges),
        })
    }

    pub(crate) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// The id of the unknown piece.
    pub(crate) fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// Characters of the longest piece; `None` if a word can be a token that no merges make.
    pub(crate) fn longest(&self) -> Option<usize> {
        (!self.ignore_merges).then_some(self.longest)
    }

    pub(super) fn ignores_merges(&self) -> bool {
        self.ignore_merges
    }

    /// The piece of a character.
    #[inline]
    pub(super) fn character(&self, c: char) -> Option<u32> {
        match self.characters.get(c as usize) {
            Some(&piece) => Some(piece).filter(|&piece| piece != NONE),
            None if (c as usize) < TABLE => None,
            None => self.pieces.id(c.encode_utf8(&mut [0; 4])),
        }
    }

    /// Adds the ids of a word, which has less than 4 GB.
    pub(super) fn ids(
        &self,
        word: &str,
        scratch: &mut BpeScratch,
        wanted: &mut Wanted<'_>,
        ids: &mut Vec<u32>,
    ) {
        self.split(word, scratch, wanted);
        ids.extend(scratch.symbols.iter().map(|symbol| symbol.piece));
    }

    /// The tokens of a word.
    ///
    /// # Errors
    /// For a word of 4 GB.
    pub(crate) fn tokens(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        if u32::try_from(word.len()).is_err() {
            return Err("a word of 4 GiB is too long".into());
        }
        let mut scratch = BpeScratch::default();
        self.split(word, &mut scratch, &mut Wanted::new(&mut || true));
        let mut end = 0;
        let token = |symbol: &Symbol| {
            let start = end;
            end += symbol.bytes as usize;
            let text = self.pieces.text(symbol.piece).unwrap_or_default().to_owned();
            Token::new(symbol.piece, text, (start, end))
        };
        Ok(scratch.symbols.iter().map(token).collect())
    }

    /// Fills `scratch` with the pieces of `word`.
    fn split(&self, word: &str, scratch: &mut BpeScratch, wanted: &mut Wanted<'_>) {
        scratch.symbols.clear();
        if self.ignore_merges
            && let Some(piece) = self.pieces.id(word)
        {
            return scratch.symbols.push(Symbol::new(piece, word.len()));
        }
        self.spell(word, &mut scratch.symbols);
        self.merge(scratch, wanted);
    }

    /// The characters of `word`, as the crate spells them: unknown ones that wait to be fused come after bytes.
    fn spell(&self, word: &str, symbols: &mut Vec<Symbol>) {
        let mut waiting: Option<Symbol> = None;
        for c in word.chars() {
            let bytes = c.len_utf8();
            if let Some(piece) = self.character(c) {
                symbols.extend(waiting.take());
                symbols.push(Symbol::new(piece, bytes));
                continue;
            }
            if let Some(pieces) = &self.bytes {
                let mut spelt = [0; 4];
                let spelt = c.encode_utf8(&mut spelt).bytes().map(|byte| pieces[usize::from(byte)]);
                if spelt.clone().all(|piece| piece != NONE) {
                    symbols.extend(spelt.map(|piece| Symbol::new(piece, 1)));
                    continue;
                }
            }
            let Some(unknown) = self.unknown else { continue };
            match &mut waiting {
                Some(waiting) if self.fuse_unknown => waiting.bytes += bytes as u32,
                _ => symbols.extend(waiting.replace(Symbol::new(unknown, bytes))),
            }
        }
        symbols.extend(waiting);
    }

    /// Merges the symbols of a word, as long as they are wanted.
    pub(super) fn merge(&self, scratch: &mut BpeScratch, wanted: &mut Wanted<'_>) {
        let symbols = &mut scratch.symbols;
        for at in 1..symbols.len() {
            self.pair(symbols, at - 1, at);
        }
        if symbols.len() > SHORT {
            return self.merge_long(scratch, wanted);
        }
        loop {
            // Of equal ranks the first.
            let best = symbols.iter().enumerate().min_by_key(|(_, symbol)| symbol.rank);
            let Some((at, &Symbol { joined, .. })) = best.filter(|(_, symbol)| symbol.rank != NONE) else {
                return;
            };
            symbols[at].piece = joined;
            symbols[at].bytes += symbols[at + 1].bytes;
            symbols.remove(at + 1);
            if at > 0 {
                self.pair(symbols, at - 1, at);
            }
            self.pair(symbols, at, at + 1);
        }
    }

    /// Notes the merge of two neighbors in the first of them.
    #[inline]
    fn pair(&self, symbols: &mut [Symbol], left: usize, right: usize) {
        let merge = symbols.get(right).and_then(|right| self.merges.get(symbols[left].piece, right.piece));
        let Merge { rank, piece } = merge.unwrap_or(Merge { rank: NONE, piece: NONE });
        (symbols[left].rank, symbols[left].joined) = (rank, piece);
    }

    /// The same for a word of many symbols, in time that grows little faster than their number.
    fn merge_long(&self, scratch: &mut BpeScratch, wanted: &mut Wanted<'_>) {
        let BpeScratch { symbols, heap, before, after } = scratch;
        let count = symbols.len();
        before.clear();
        before.extend((0..count as u32).map(|at| at.wrapping_sub(1)));
        after.clear();
        after.extend(1..=count as u32);
        heap.clear();
        let entry = |at: usize, symbol: &Symbol| Reverse((symbol.rank, at as u32));
        let known = symbols.iter().enumerate().filter(|(_, symbol)| symbol.rank != NONE);
        heap.extend(known.map(|(at, symbol)| entry(at, symbol)));
        while let Some(Reverse((rank, at))) = heap.pop() {
            if !wanted.step() {
                break;
            }
            let at = at as usize;
            // Each pair has a rank of its own, so this one is still there if its rank is.
            if symbols[at].bytes == 0 || symbols[at].rank != rank {
                continue;
            }
            let next = after[at] as usize;
            symbols[at].piece = symbols[at].joined;
            symbols[at].bytes += symbols[next].bytes;
            symbols[next].bytes = 0;
            after[at] = after[next];
            if let Some(before) = before.get_mut(after[at] as usize) {
                *before = at as u32;
            }
            for left in [before[at] as usize, at].into_iter().filter(|&left| left < count) {
                self.pair(symbols, left, after[left] as usize);
                if symbols[left].rank != NONE {
                    heap.push(entry(left, &symbols[left]));
                }
            }
        }
        symbols.retain(|symbol| symbol.bytes > 0);
    }
}

#[cfg(test)]
#[path = "bpe_tests.rs"]
mod tests;
