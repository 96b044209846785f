//! Many texts in little memory.

use serde::de::{DeserializeSeed, Deserializer, Visitor};

use crate::compute::pages::{self, PageVec};

/// Texts, one after the other.
#[derive(Debug, Clone)]
pub(crate) struct TextTable {
    all: PageVec<u8>,
    ends: PageVec<u32>,
}

impl Default for TextTable {
    fn default() -> Self {
        Self { all: pages::list(), ends: pages::list() }
    }
}

impl TextTable {
    /// Adds a text; false when there is no room for its numbers.
    pub(crate) fn push(&mut self, text: &str) -> bool {
        pages::append(&mut self.all, text.as_bytes());
        let Ok(end) = u32::try_from(self.all.len()) else { return false };
        self.ends.push(end);
        true
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Removes all texts.
    pub(crate) fn clear(&mut self) {
        self.all.clear();
        self.ends.clear();
    }

    pub(crate) fn get(&self, id: usize) -> Option<&str> {
        str::from_utf8(self.get_bytes(id)?).ok()
    }

    #[inline]
    pub(super) fn get_bytes(&self, id: usize) -> Option<&[u8]> {
        let end = *self.ends.get(id)? as usize;
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        self.all.get(start..end)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|id| self.get(id))
    }

    /// All of them as bytes, which need no check.
    pub(super) fn iter_bytes(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|id| self.get_bytes(id))
    }

    /// Characters of the longest one.
    pub(super) fn longest(&self) -> usize {
        self.iter_bytes().map(characters).max().unwrap_or(0)
    }

    /// The text with this number, which must be there.
    #[inline]
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        &self.all[start..self.ends[id] as usize]
    }

    /// Gives back what growing left over.
    pub(crate) fn shrink(&mut self) {
        self.all.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}

/// Characters of UTF-8 text: bytes that continue one are no others.
fn characters(text: &[u8]) -> usize {
    text.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

/// A text that goes to the others without a string of its own.
pub(super) struct TextSeed<'a>(pub(super) &'a mut TextTable);

impl<'de> DeserializeSeed<'de> for TextSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for TextSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the text of a piece")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if self.0.push(text) { Ok(()) } else { Err(E::custom("the vocabulary has 4 GiB of text")) }
    }
}
