//! The model of a `tokenizer.json`, read piece by piece into a form of ours.
//!
//! What is not understood to the last key is an error: the caller leaves the file to the tokenizers crate.

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::bpe::{Bpe, BpeOptions, MergeList};
use super::model::TokenModel;
use super::pieces::Pieces;
use super::text_table::{TextSeed, TextTable};
use super::unigram;
use super::wordpiece_model::WordPieces;
use crate::compute::pages;

/// See the module.
#[derive(Debug)]
pub(super) struct CompactModel(pub(super) TokenModel);

impl<'de> Deserialize<'de> for CompactModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = CompactModel;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a model with its type first")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<CompactModel, A::Error> {
        let unknown = || A::Error::custom("the model is none that is known, or its type does not come first");
        let (key, kind) = map.next_entry::<String, String>()?.ok_or_else(unknown)?;
        match (key.as_str(), kind.as_str()) {
            ("type", "Unigram") => unigram::read(map).map(TokenModel::Unigram),
            ("type", "BPE") => bpe(map).map(|model| TokenModel::Bpe(Box::new(model))),
            ("type", "WordPiece") => word_piece(map).map(TokenModel::WordPiece),
            _ => Err(unknown()),
        }
        .map(CompactModel)
    }
}

/// Refuses a key that is there twice, of which the crate takes the last.
fn once<E: serde::de::Error>(seen: &mut Vec<String>, key: &str) -> Result<(), E> {
    if seen.iter().any(|known| known == key) {
        return Err(E::custom("a key of the model is there twice"));
    }
    seen.push(key.to_owned());
    Ok(())
}

fn bpe<'de, A: MapAccess<'de>>(mut map: A) -> Result<Bpe, A::Error> {
    let (mut options, mut seen) = (BpeOptions::default(), Vec::new());
    let (mut pieces, mut merges) = (None, None);
    while let Some(key) = map.next_key::<String>()? {
        once(&mut seen, &key)?;
        match key.as_str() {
            "dropout" => map.next_value::<()>()?,
            "unk_token" => options.unknown = map.next_value()?,
            "continuing_subword_prefix" | "end_of_word_suffix" => {
                if map.next_value::<Option<String>>()?.is_some_and(|text| !text.is_empty()) {
                    return Err(A::Error::custom("pieces have a prefix or a suffix"));
                }
            }
            "fuse_unk" => options.fuse_unknown = map.next_value::<Option<bool>>()?.unwrap_or(false),
            "byte_fallback" => options.byte_fallback = map.next_value::<Option<bool>>()?.unwrap_or(false),
            "ignore_merges" => options.ignore_merges = map.next_value::<Option<bool>>()?.unwrap_or(false),
            "vocab" => pieces = Some(map.next_value_seed(VocabularySeed)?),
            "merges" => {
                let pieces = pieces.as_ref().ok_or_else(|| A::Error::custom("the merges come first"))?;
                merges = Some(map.next_value_seed(MergesSeed(pieces))?);
            }
            _ => return Err(A::Error::custom("a key of the model is unknown")),
        }
    }
    let pieces = pieces.ok_or_else(|| A::Error::missing_field("vocab"))?;
    let merges = merges.ok_or_else(|| A::Error::missing_field("merges"))?;
    Bpe::new(pieces, &merges, &options).ok_or_else(|| A::Error::custom("the vocabulary has no unknown piece"))
}

fn word_piece<'de, A: MapAccess<'de>>(mut map: A) -> Result<WordPieces, A::Error> {
    let (mut unknown, mut prefix, mut most, mut pieces, mut seen) = (None, None, None, None, Vec::new());
    while let Some(key) = map.next_key::<String>()? {
        once(&mut seen, &key)?;
        match key.as_str() {
            "unk_token" => unknown = Some(map.next_value::<String>()?),
            "continuing_subword_prefix" => prefix = Some(map.next_value::<String>()?),
            "max_input_chars_per_word" => most = Some(map.next_value::<usize>()?),
            "vocab" => pieces = Some(map.next_value_seed(VocabularySeed)?),
            _ => return Err(A::Error::custom("a key of the model is unknown")),
        }
    }
    let (Some(unknown), Some(prefix), Some(most), Some(pieces)) = (unknown, prefix, most, pieces) else {
        return Err(A::Error::custom("a key of the model is missing"));
    };
    WordPieces::new(pieces, prefix, &unknown, most)
        .ok_or_else(|| A::Error::custom("the vocabulary has no unknown piece"))
}

/// Byte-level BPE of GPT-2's two files; `None` for files that only the tokenizers crate reads.
pub(crate) fn of_two_files(vocabulary: &[u8], merges: &[u8]) -> Option<TokenModel> {
    let mut json = serde_json::Deserializer::from_slice(vocabulary);
    let pieces = VocabularySeed.deserialize(&mut json).ok()?;
    json.end().ok()?;
    let mut batch = MergeBatch::new(&pieces);
    for line in std::str::from_utf8(merges).ok()?.lines() {
        batch.text::<serde_json::Error>(line).ok()?;
    }
    let merges = batch.finish::<serde_json::Error>().ok()?;
    Bpe::new(pieces, &merges, &BpeOptions::default()).map(|model| TokenModel::Bpe(Box::new(model)))
}

/// Pieces with their ids.
struct VocabularySeed;

impl<'de> DeserializeSeed<'de> for VocabularySeed {
    type Value = Pieces;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Pieces, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for VocabularySeed {
    type Value = Pieces;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("pieces with their ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pieces, A::Error> {
        let (mut texts, mut ids) = (TextTable::default(), pages::list());
        while map.next_key_seed(TextSeed(&mut texts))?.is_some() {
            ids.push(map.next_value::<u32>()?);
        }
        // Most files have them in the order of their ids.
        let sorted = (0..).zip(&ids).all(|(number, &id)| number == id);
        let pieces = Pieces::new(texts, (!sorted).then_some(&ids));
        pieces.ok_or_else(|| A::Error::custom("the vocabulary is none that is known"))
    }
}

/// Merges as they are read. Pieces are looked up for many of them at once: the processor then waits for the memory of
/// several at the same time.
struct MergeBatch<'a> {
    pieces: &'a Pieces,
    /// The two parts of each merge.
    parts: TextTable,
    ids: Vec<Option<u32>>,
    merges: MergeList,
    form: Option<MergeForm>,
}

/// How a merge is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MergeForm {
    /// A list of two pieces.
    Pair,
    /// One text with a space between the pieces.
    Text,
}

/// Parts in a batch.
const BATCH: usize = 2048;

impl<'a> MergeBatch<'a> {
    fn new(pieces: &'a Pieces) -> Self {
        Self {
            pieces,
            parts: TextTable::default(),
            ids: Vec::new(),
            merges: MergeList::default(),
            form: None,
        }
    }

    fn written<E: serde::de::Error>(&mut self, form: MergeForm) -> Result<(), E> {
        match self.form.replace(form) {
            Some(before) if before != form => Err(E::custom("merges are written in two ways")),
            _ => Ok(()),
        }
    }

    fn part<E: serde::de::Error>(&mut self, text: &str) -> Result<(), E> {
        if self.parts.push(text) { Ok(()) } else { Err(E::custom("the merges have 4 GiB of text")) }
    }

    /// A merge, or a comment.
    fn text<E: serde::de::Error>(&mut self, text: &str) -> Result<(), E> {
        self.written(MergeForm::Text)?;
        if text.starts_with("#version") {
            return Ok(());
        }
        let (left, right) = text.split_once(' ').ok_or_else(|| E::custom("a merge has one part"))?;
        if right.contains(' ') {
            return Err(E::custom("a merge has more than two parts"));
        }
        self.part(left)?;
        self.part(right)?;
        self.full()
    }

    fn full<E: serde::de::Error>(&mut self) -> Result<(), E> {
        if self.parts.len() >= BATCH { self.resolve() } else { Ok(()) }
    }

    fn resolve<E: serde::de::Error>(&mut self) -> Result<(), E> {
        self.ids.clear();
        self.ids.extend(self.parts.iter_bytes().map(|part| self.pieces.id_of(part)));
        self.parts.clear();
        for pair in self.ids.chunks_exact(2) {
            let (Some(left), Some(right)) = (pair[0], pair[1]) else {
                return Err(E::custom("a part of a merge is no piece"));
            };
            if !self.merges.add(self.pieces, left, right) {
                return Err(E::custom("a merge makes no piece"));
            }
        }
        Ok(())
    }

    fn finish<E: serde::de::Error>(mut self) -> Result<MergeList, E> {
        self.resolve()?;
        Ok(self.merges)
    }
}

/// Merges of these pieces.
struct MergesSeed<'a>(&'a Pieces);

impl<'de> DeserializeSeed<'de> for MergesSeed<'_> {
    type Value = MergeList;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<MergeList, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for MergesSeed<'_> {
    type Value = MergeList;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<MergeList, A::Error> {
        let mut batch = MergeBatch::new(self.0);
        while list.next_element_seed(MergeSeed(&mut batch))?.is_some() {
            batch.full()?;
        }
        batch.finish()
    }
}

struct MergeSeed<'a, 'b>(&'a mut MergeBatch<'b>);

impl<'de> DeserializeSeed<'de> for MergeSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MergeSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("two pieces")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.0.text(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.0.written(MergeForm::Pair)?;
        for _ in 0..2 {
            let part = list.next_element_seed(TextSeed(&mut self.0.parts))?;
            part.ok_or_else(|| A::Error::custom("a merge has fewer than two parts"))?;
        }
        match list.next_element::<IgnoredAny>()? {
            None => Ok(()),
            Some(_) => Err(A::Error::custom("a merge has more than two parts")),
        }
    }
}
