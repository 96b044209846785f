//! WordPiece in little memory: the longest piece that a word begins with, then the longest that the rest begins with.

use super::pieces::Pieces;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct WordPieces {
    pieces: Pieces,
    /// What pieces inside a word begin with.
    prefix: String,
    unknown: u32,
    /// A word of more characters is one unknown token.
    most_characters: usize,
    /// Bytes of the longest piece.
    longest: usize,
}

/// A piece of a word: its id, and the bytes of the word that it is made of.
pub(crate) type WordPart = (u32, (usize, usize));

impl WordPieces {
    /// `None` when the vocabulary lacks the unknown piece.
    pub(crate) fn new(pieces: Pieces, prefix: String, unknown: &str, most_characters: usize) -> Option<Self> {
        let unknown = pieces.id(unknown)?;
        let longest = pieces.iter().map(|(_, text)| text.len()).max().unwrap_or(0);
        Some(Self { pieces, prefix, unknown, most_characters, longest })
    }

    pub(crate) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// The id of the unknown piece.
    pub(crate) fn unknown(&self) -> u32 {
        self.unknown
    }

    pub(crate) fn most_characters(&self) -> usize {
        self.most_characters
    }

    /// Fills `parts` with the pieces of `word`. `rest` is memory that words share.
    pub(crate) fn split(&self, word: &str, rest: &mut String, parts: &mut Vec<WordPart>) {
        parts.clear();
        if word.len() > self.most_characters && word.chars().count() > self.most_characters {
            return parts.push((self.unknown, (0, word.len())));
        }
        let mut start = 0;
        while start < word.len() {
            // Pieces after the first begin with the prefix.
            let lead = if start == 0 { 0 } else { self.prefix.len() };
            rest.clear();
            rest.push_str(&self.prefix[..lead]);
            rest.push_str(&word[start..]);
            let mut end = rest.len();
            let found = loop {
                if end <= lead {
                    break None;
                }
                if end <= self.longest
                    && let Some(id) = self.pieces.id(&rest[..end])
                {
                    break Some(id);
                }
                end -= rest[..end].chars().next_back().map_or(1, char::len_utf8);
            };
            let Some(id) = found else {
                parts.clear();
                return parts.push((self.unknown, (0, word.len())));
            };
            parts.push((id, (start, start + end - lead)));
            start += end - lead;
        }
    }
}
