//! Text → token ids, as transformers does it for the same model.
//!
//! The truncation and padding stored in `tokenizer.json` are ignored: length is the caller's, and nothing is padded.
//! No thread pool is used, so a tokenizer works after `fork`, and from many threads at once.

use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::normalizers::{BertNormalizer, Lowercase, NormalizerWrapper, Sequence as Normalizers};
use tokenizers::{Encoding, Model as _, Token, TruncationDirection};

use super::config::TokenizerConfig;
use super::cut::Cuts;
use super::long::{self, Bounds, Keep};
use super::pair_template::PairTemplate;
pub(crate) use super::pipeline::guarded;
use super::pipeline::{Inner, Pipeline};
use super::{added_tokens, file, gguf, wordpiece};
use crate::models::formats::gguf::Gguf;
use crate::models::manifest::{Missing, ModelFiles};
use crate::{Error, Result};

/// The tokenizer of one model.
pub struct Tokenizer {
    inner: Pipeline,
    /// Special ids before a text, such as `[CLS]`.
    before: Vec<u32>,
    /// Special ids after a text, such as `[SEP]`.
    after: Vec<u32>,
    keep_end: bool,
    cuts: Cuts,
    /// How two texts become one sequence, if they can.
    pub(super) pair: Option<PairTemplate>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or builds a BERT tokenizer from `vocab.txt`. `lower_case` (sentence-transformers'
    /// `do_lower_case`) lower-cases every text first, whatever the tokenizer itself does.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::InvalidFile`], [`Error::Permission`].
    pub fn load(files: &ModelFiles, lower_case: bool) -> Result<Self> {
        let settings = TokenizerConfig::read(files)?;
        if let Some(path) = files.beside_weights("tokenizer.json") {
            let (mut inner, _) = file::read(&path)?;
            follow(&settings, &mut inner).map_err(|e| invalid(&path, &e.to_string()))?;
            added_tokens::follow(&mut inner, files, &settings)?;
            return Self::prepare(&path, inner, &settings, lower_case);
        }
        if let Some(path) = files.beside_weights("vocab.txt") {
            let inner = wordpiece::from_vocabulary(&path, files, &settings)?;
            return Self::prepare(&path, inner, &settings, lower_case);
        }
        let sentencepiece = files.beside_weights("sentencepiece.bpe.model").is_some();
        Err(Missing::Tokenizer { sentencepiece }.error(&files.model, &files.transformer))
    }

    /// The tokenizer of a `tokenizer.json` or of a GGUF file, whatever other files are there.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn of_file(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|end| end == "gguf") {
            return Self::from_gguf(&Gguf::open(path)?);
        }
        Self::prepare(path, file::read(path)?.0, &TokenizerConfig::default(), false)
    }

    fn prepare(path: &Path, mut inner: Inner, settings: &TokenizerConfig, lower_case: bool) -> Result<Self> {
        let keep_end = match settings.word("truncation_side") {
            Some(side) => side == "left",
            None => inner.get_truncation().is_some_and(|t| t.direction == TruncationDirection::Left),
        };
        let prepare = |inner: &mut Inner| -> tokenizers::Result<()> {
            inner.with_truncation(None)?;
            inner.with_padding(None);
            if lower_case {
                let first = NormalizerWrapper::Lowercase(Lowercase);
                let all = [first].into_iter().chain(inner.get_normalizer().cloned()).collect();
                inner.with_normalizer(Some(Normalizers::new(all)))?;
            }
            // A word that no vocabulary holds: a tokenizer without its unknown token fails here, not on a user's text.
            inner.encode_fast("\u{e000}", false).map(drop)
        };
        guarded(|| prepare(&mut inner)).map_err(|e| invalid(path, &e.to_string()))?;
        let inner = Pipeline::from(inner);
        let (before, after) = special_ids(&inner)
            .map_err(|e| invalid(path, &e.to_string()))?
            .ok_or_else(|| invalid(path, "its post-processor does not keep a text's tokens in one piece"))?;
        let cuts = Cuts::of(&inner);
        // A tokenizer that makes no pairs embeds all the same.
        let pair = PairTemplate::of(&inner, settings).ok().flatten();
        Ok(Self { inner, before, after, keep_end, cuts, pair })
    }

    /// The `tokenizer.json` of a static model, as it is and without special tokens; and what such models read of it.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub(crate) fn of_table(files: &ModelFiles) -> Result<(Self, TableVocabulary)> {
        let Some(path) = files.beside_weights("tokenizer.json") else {
            return Err(Missing::Tokenizer { sentencepiece: false }.error(&files.model, &files.transformer));
        };
        let (inner, json) = file::read(&path)?;
        let max_length = inner.get_truncation().map(|truncation| truncation.max_length);
        let median = median(lengths(&inner));
        let tokenizer = Self::prepare(&path, inner, &TokenizerConfig::default(), false)?;
        let tokenizer = Self { before: Vec::new(), after: Vec::new(), pair: None, ..tokenizer };
        let unknown = match tokenizer.inner.inner().get_model().unknown() {
            Some(known) => known,
            None => unknown(json.as_slice()).and_then(|token| match token {
                Unknown::Id(id) => Some(id),
                Unknown::Token(token) => tokenizer.id(&token),
            }),
        };
        Ok((tokenizer, TableVocabulary { unknown, median, max_length }))
    }

    /// The tokenizer of a GGUF file, with the first and last token that the file asks for.
    ///
    /// # Errors
    /// Those of [`gguf::tokenizer`]; [`Error::InvalidFile`] when the end token is asked for but missing.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let built = gguf::tokenizer(file)?;
        let inner = Pipeline::from(built.tokenizer);
        let (before, mut after) =
            special_ids(&inner).map_err(|e| invalid(file.path(), &e.to_string()))?.ok_or_else(|| {
                invalid(file.path(), "its tokenizer does not keep a text's tokens in one piece")
            })?;
        if built.adds_end {
            after.push(built.eos_id.ok_or_else(|| {
                invalid(file.path(), "it asks for an end token (tokenizer.ggml.add_eos_token) but names none of its tokens as that")
            })?);
        }
        let cuts = Cuts::of(&inner);
        file.check_asked()?;
        Ok(Self { inner, before, after, keep_end: false, cuts, pair: None })
    }

    /// Whether every text ends with a special token.
    pub fn ends(&self) -> bool {
        !self.after.is_empty()
    }

    /// The ids of `text` with the model's special tokens, at most `max_length` in all: the text's own tokens are
    /// cut, the special ones stay. Token types are all 0.
    ///
    /// # Errors
    /// [`Error::Input`] when `max_length` leaves no token in addition to the special ones.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Vec<u32>> {
        self.encode_within(text, max_length, &mut Bounds { max_bytes: usize::MAX, check: &mut || Ok(()) })
    }

    /// [`Tokenizer::encode`] within `bounds`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; [`Error::Input`] for a text that is too long for them, and what their check returns.
    pub fn encode_within(&self, text: &str, max_length: usize, bounds: &mut Bounds<'_>) -> Result<Vec<u32>> {
        self.encode_noting(text, max_length, bounds).map(|(ids, _)| ids)
    }

    /// [`Tokenizer::encode_within`], and whether tokens of the text were cut.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_within`].
    pub fn encode_noting(
        &self,
        text: &str,
        max_length: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<(Vec<u32>, bool)> {
        self.encode_marked(&[], text, max_length, bounds)
    }

    /// The same, with each of the texts `markers` as the one token of its id, though the tokenizer would divide it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_within`].
    pub fn encode_marked(
        &self,
        markers: &[(String, u32)],
        text: &str,
        max_length: usize,
        bounds: &mut Bounds<'_>,
    ) -> Result<(Vec<u32>, bool)> {
        let special = self.special_tokens();
        let room = max_length.saturating_sub(special);
        if room == 0 {
            return Err(Error::Input(format!(
                "max_length={max_length} leaves no room for text: this model adds {special} special tokens"
            )));
        }
        // One token more than there is place for shows that there are more.
        let (wanted, mut rest, mut ids) = (room.saturating_add(1), text, Vec::new());
        let next = |rest: &str| {
            let found =
                markers.iter().filter_map(|(text, id)| Some((rest.find(text.as_str())?, text.len(), *id)));
            found.min_by_key(|(at, length, _)| (*at, usize::MAX - length))
        };
        while let Some((at, length, id)) = next(rest) {
            if at > 0 {
                ids.extend(self.content(&rest[..at], wanted, bounds)?);
            }
            ids.push(id);
            rest = &rest[at + length..];
            if ids.len() >= wanted && !self.keep_end {
                rest = "";
            }
        }
        if !rest.is_empty() || markers.is_empty() {
            ids.extend(self.content(rest, wanted, bounds)?);
        }
        Ok(([&self.before[..], self.cut(&ids, room), &self.after].concat(), ids.len() > room))
    }

    /// The ids of a whole text, without special tokens, and the bytes that each is made of.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_within`].
    pub fn places(&self, text: &str, bounds: &mut Bounds<'_>) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let (mut ids, mut places) = (Vec::new(), Vec::new());
        long::each_piece(&self.inner, &self.cuts, text, bounds, &mut |at, piece, _| {
            let (found, offsets) =
                guarded(|| self.inner.places(piece)).map_err(|e| Error::internal("tokenizer", e))?;
            ids.extend(found);
            places.extend(offsets.into_iter().map(|(start, end)| at + start..at + end));
            Ok(())
        })?;
        Ok((ids, places))
    }

    /// The special ids before a text.
    pub fn before(&self) -> &[u32] {
        &self.before
    }

    /// The ids of a text with the special ones around them.
    pub fn dressed(&self, ids: &[u32]) -> Vec<u32> {
        [&self.before, ids, &self.after].concat()
    }

    /// The ids of a short text alone, without special tokens.
    ///
    /// # Errors
    /// [`Error::Internal`] when the tokenizer fails.
    pub(crate) fn ids_of(&self, text: &str) -> Result<Vec<u32>> {
        self.content(text, usize::MAX, &mut Bounds { max_bytes: usize::MAX, check: &mut || Ok(()) })
    }

    /// The text's own ids: those of `room` that the model keeps, perhaps more.
    pub(super) fn content(&self, text: &str, room: usize, bounds: &mut Bounds<'_>) -> Result<Vec<u32>> {
        let keep = if self.keep_end { Keep::End(room) } else { Keep::Beginning(room) };
        long::read(&self.inner, &self.cuts, text, keep, bounds)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.id(token)
    }

    /// The number of ids of the whole `text`, special tokens included, nothing cut.
    ///
    /// # Errors
    /// [`Error::Internal`] when the tokenizer fails.
    pub fn count(&self, text: &str) -> Result<usize> {
        self.count_within(text, &mut Bounds { max_bytes: usize::MAX, check: &mut || Ok(()) })
    }

    /// [`Tokenizer::count`] within `bounds`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_within`].
    pub fn count_within(&self, text: &str, bounds: &mut Bounds<'_>) -> Result<usize> {
        let mut ids = 0;
        long::each_part(&self.inner, &self.cuts, text, bounds, &mut |part| ids += part.len())?;
        Ok(ids + self.special_tokens())
    }

    /// How many special tokens every text gets.
    pub fn special_tokens(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// One more than the largest id that [`Tokenizer::encode`] can give.
    pub fn id_limit(&self) -> usize {
        self.inner.id_limit()
    }

    /// `ids`, cut to at most `room` of them at the end where this model cuts.
    pub fn cut<'a>(&self, ids: &'a [u32], room: usize) -> &'a [u32] {
        let excess = ids.len().saturating_sub(room);
        if self.keep_end { &ids[excess..] } else { &ids[..ids.len() - excess] }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("before", &self.before)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

/// What static models read of their vocabulary.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableVocabulary {
    /// The id of the unknown token.
    pub(crate) unknown: Option<u32>,
    /// Characters of the token of median length.
    pub(crate) median: usize,
    /// Tokens after which the tokenizer itself cuts a text.
    pub(crate) max_length: Option<usize>,
}

/// The characters of each token.
fn lengths(inner: &Inner) -> Vec<usize> {
    let model = inner.get_model();
    let mut lengths = model.lengths();
    let added = inner.get_added_vocabulary().get_vocab().keys();
    lengths
        .extend(added.filter(|token| model.token_to_id(token).is_none()).map(|token| token.chars().count()));
    lengths
}

/// The unknown token of a tokenizer's model.
enum Unknown {
    Id(u32),
    Token(String),
}

fn unknown(json: &[u8]) -> Option<Unknown> {
    #[derive(Deserialize)]
    struct UnknownFile {
        model: UnknownFields,
    }
    #[derive(Deserialize)]
    struct UnknownFields {
        unk_id: Option<u32>,
        unk_token: Option<String>,
    }
    let UnknownFields { unk_id, unk_token } = serde_json::from_slice::<UnknownFile>(json).ok()?.model;
    unk_id.map(Unknown::Id).or(unk_token.map(Unknown::Token))
}

/// The median of `lengths`, rounded down.
fn median(mut lengths: Vec<usize>) -> usize {
    lengths.sort_unstable();
    let middle = lengths.len() / 2;
    match lengths.len() {
        0 => 0,
        n if n.is_multiple_of(2) => usize::midpoint(lengths[middle - 1], lengths[middle]),
        _ => lengths[middle],
    }
}

/// transformers lets the settings of a BERT tokenizer win over the normalizer stored in `tokenizer.json`.
fn follow(settings: &TokenizerConfig, inner: &mut Inner) -> tokenizers::Result<()> {
    let generic = settings
        .word("tokenizer_class")
        .is_some_and(|class| ["PreTrainedTokenizerFast", "TokenizersBackend"].contains(&&*class));
    let Some(NormalizerWrapper::BertNormalizer(stored)) = inner.get_normalizer() else { return Ok(()) };
    if generic {
        return Ok(());
    }
    let accents = settings.get("strip_accents").map_or(stored.strip_accents, Value::as_bool);
    let wanted = BertNormalizer::new(
        stored.clean_text,
        settings.flag("tokenize_chinese_chars").unwrap_or(stored.handle_chinese_chars),
        accents,
        settings.flag("do_lower_case").unwrap_or(stored.lowercase),
    );
    inner.with_normalizer(Some(wanted)).map(drop)
}

/// The ids that the post-processor puts around a text, found by sending one token through it; `None` when it does not
/// keep a text's tokens in one piece.
///
/// # Errors
/// When the post-processor cannot run, as one that names a special token without giving its id.
pub(crate) fn special_ids(inner: &Pipeline) -> tokenizers::Result<Option<(Vec<u32>, Vec<u32>)>> {
    let probe = Encoding::from_tokens(vec![Token::new(0, String::new(), (0, 0))], 0);
    let dressed = guarded(|| inner.dress(probe, None))?;
    let mask = dressed.get_special_tokens_mask();
    let alone = mask.iter().filter(|&&special| special == 0).count() == 1;
    let at = mask.iter().position(|&special| special == 0).filter(|_| alone);
    Ok(at.map(|at| (dressed.get_ids()[..at].to_vec(), dressed.get_ids()[at + 1..].to_vec())))
}

fn invalid(path: &Path, reason: &str) -> Error {
    Error::InvalidFile { path: path.to_path_buf(), reason: format!("{reason}; download it again") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::file::compact;
    use super::super::tests::{bytes, fixture};
    use super::*;

    /// A setting that says nothing leaves what the file has; `strip_accents` says so by being absent.
    #[test]
    fn settings_of_a_bert_tokenizer_win_over_its_file() {
        let file = fixture("tokenizers/wordpiece_uncased");
        for (settings, changes) in [
            (json!({}), json!({})),
            (json!({"do_lower_case": null, "tokenize_chinese_chars": null}), json!({})),
            (json!({"do_lower_case": false}), json!({"lowercase": false})),
            (json!({"tokenize_chinese_chars": false}), json!({"handle_chinese_chars": false})),
            (json!({"strip_accents": false}), json!({"strip_accents": false})),
            (json!({"strip_accents": true}), json!({"strip_accents": true})),
            (
                json!({"tokenizer_class": "BertTokenizer", "do_lower_case": false}),
                json!({"lowercase": false}),
            ),
            (json!({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": false}), json!({})),
            (json!({"tokenizer_class": "TokenizersBackend", "do_lower_case": false}), json!({})),
        ] {
            let mut inner = compact(&bytes(&file)).unwrap();
            let mut expected = serde_json::to_value(inner.get_normalizer().unwrap()).unwrap();
            expected.as_object_mut().unwrap().extend(changes.as_object().cloned().unwrap());
            follow(&TokenizerConfig::of(&settings), &mut inner).unwrap();
            let found = serde_json::to_value(inner.get_normalizer().unwrap()).unwrap();
            assert_eq!(found, expected, "{settings}");
        }
    }

    #[test]
    fn a_folder_is_read_with_its_settings() {
        let folder = tempfile::tempdir().unwrap();
        let from = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert_wordpiece");
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
        }
        let files = ModelFiles::open("m", folder.path()).unwrap();
        let ids = |settings: Value| {
            std::fs::write(folder.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
            let tokenizer = Tokenizer::load(&files, false).unwrap();
            ["merhaba", "MERHABA"].map(|text| tokenizer.inner.ids(text).unwrap())
        };
        let [small, large] = ids(json!({"do_lower_case": true}));
        assert_eq!(small, large);
        let [kept, large] = ids(json!({"do_lower_case": false}));
        assert_eq!(kept, small);
        assert_ne!(large, small);
    }

    #[test]
    fn the_median_is_that_of_sorted_lengths_rounded_down() {
        let all: [(&[usize], usize); 6] = [
            (&[], 0),
            (&[7], 7),
            (&[9, 2], 5),
            (&[9, 1, 2], 2),
            (&[8, 1, 3, 4], 3),
            (&[5, 5, 1, 9, 9, 2], 5),
        ];
        for (lengths, expected) in all {
            assert_eq!(median(lengths.to_vec()), expected, "{lengths:?}");
        }
    }
}
