//! A vocabulary in little memory: the texts of its pieces one after the other, and an index of their ids by hash.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::text_table::TextTable;
use crate::compute::pages::{Pages, filled};

/// Ids may leave so many out for each piece.
const MOST_HOLES: usize = 4;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Pieces {
    /// By id. Empty where no piece has it.
    texts: TextTable,
    index: HashTable<u32, Pages>,
    hasher: RandomState,
}

impl Pieces {
    /// The pieces `texts` with `ids`, or with their numbers as ids. `None` when two have the same text or id, when one is
    /// empty, or when most ids are left out: the crate has rules of its own for those.
    pub(crate) fn new(mut texts: TextTable, ids: Option<&[u32]>) -> Option<Self> {
        if texts.iter_bytes().any(<[u8]>::is_empty) {
            return None;
        }
        if let Some(ids) = ids {
            texts = by_id(&texts, ids)?;
        }
        texts.shrink();
        let hasher = RandomState::default();
        let mut index = HashTable::with_capacity_in(texts.len(), Pages);
        for id in 0..u32::try_from(texts.len()).ok()? {
            let text = texts.bytes(id);
            if text.is_empty() {
                continue;
            }
            let known = |other: &u32| texts.bytes(*other) == text;
            let entry = index.entry(hash(&hasher, text), known, |other| hash(&hasher, texts.bytes(*other)));
            match entry {
                hashbrown::hash_table::Entry::Occupied(_) => return None,
                hashbrown::hash_table::Entry::Vacant(place) => place.insert(id),
            };
        }
        Some(Self { texts, index, hasher })
    }

    /// The id of the piece that `text` is.
    #[inline]
    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        self.id_of(text.as_bytes())
    }

    /// The same for the bytes of a text.
    #[inline]
    pub(super) fn id_of(&self, text: &[u8]) -> Option<u32> {
        let same = |id: &u32| self.texts.bytes(*id) == text;
        self.index.find(hash(&self.hasher, text), same).copied()
    }

    /// The text of the piece with this id.
    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).filter(|text| !text.is_empty())
    }

    /// The same as bytes.
    #[inline]
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.texts.get_bytes(id as usize).filter(|text| !text.is_empty())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// One more than the largest id.
    pub(crate) fn limit(&self) -> usize {
        self.texts.len()
    }

    /// All of them with their ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        (0..).zip(self.texts.iter()).filter(|(_, text)| !text.is_empty())
    }

    /// The same as bytes.
    pub(super) fn iter_bytes(&self) -> impl Iterator<Item = (u32, &[u8])> {
        (0..).zip(self.texts.iter_bytes()).filter(|(_, text)| !text.is_empty())
    }

    /// Characters of the longest one.
    pub(crate) fn longest(&self) -> usize {
        self.texts.longest()
    }
}

fn hash(hasher: &RandomState, text: &[u8]) -> u64 {
    let mut state = hasher.build_hasher();
    state.write(text);
    state.finish()
}

/// `texts` in the order of their ids.
fn by_id(texts: &TextTable, ids: &[u32]) -> Option<TextTable> {
    let limit = ids.iter().max().map_or(0, |id| *id as usize + 1);
    if limit > MOST_HOLES * texts.len() {
        return None;
    }
    let mut numbers = filled(None, limit);
    for (number, &id) in ids.iter().enumerate() {
        if numbers[id as usize].replace(number).is_some() {
            return None;
        }
    }
    let mut sorted = TextTable::default();
    for number in numbers {
        let text = number.and_then(|number| texts.get(number)).unwrap_or_default();
        sorted.push(text).then_some(())?;
    }
    Some(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(texts: &[&str]) -> TextTable {
        let mut table = TextTable::default();
        assert!(texts.iter().all(|text| table.push(text)));
        table
    }

    #[test]
    fn pieces_are_found_by_text_and_by_id() {
        let pieces = Pieces::new(table(&["a", "ab", "ş", "▁"]), None).unwrap();
        assert_eq!((pieces.len(), pieces.limit(), pieces.longest()), (4, 4, 2));
        assert_eq!(
            ["a", "ab", "ş", "▁", "b", ""].map(|text| pieces.id(text)),
            [Some(0), Some(1), Some(2), Some(3), None, None]
        );
        assert_eq!([0, 2, 4].map(|id| pieces.text(id)), [Some("a"), Some("ş"), None]);
        let pieces = Pieces::new(table(&["c", "a", "b"]), Some(&[4, 0, 2])).unwrap();
        assert_eq!((pieces.len(), pieces.limit()), (3, 5));
        assert_eq!(pieces.iter().collect::<Vec<_>>(), [(0, "a"), (2, "b"), (4, "c")]);
        assert_eq!((pieces.id("c"), pieces.text(1), pieces.id("")), (Some(4), None, None));
    }

    #[test]
    fn many_pieces_are_found() {
        let texts: Vec<String> = (0..5000).map(|n| format!("{n:x}")).collect();
        let pieces = Pieces::new(table(&texts.iter().map(String::as_str).collect::<Vec<_>>()), None).unwrap();
        for (id, text) in (0..).zip(&texts) {
            assert_eq!((pieces.id(text), pieces.text(id)), (Some(id), Some(text.as_str())));
            assert_eq!(pieces.id(&format!("{text}g")), None);
        }
    }

    #[test]
    fn what_the_crate_has_rules_for_is_left_to_it() {
        assert!(Pieces::new(table(&["a", "b", "a"]), None).is_none(), "a text twice");
        assert!(Pieces::new(table(&["a", ""]), None).is_none(), "an empty piece");
        assert!(Pieces::new(table(&["a", "b"]), Some(&[1, 1])).is_none(), "an id twice");
        assert!(Pieces::new(table(&["a", "b"]), Some(&[0, u32::MAX])).is_none(), "ids far apart");
        assert_eq!(Pieces::new(table(&[]), Some(&[])).map(|pieces| pieces.len()), Some(0));
    }
}
