//! The tokenizers of encoders in GGUF files: WordPiece (`bert`), and Unigram (`t5`) of XLM-R and T5.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::Split;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{Model as _, NormalizedString, Normalizer as _, SplitDelimiterBehavior};

use super::charsmap;
use super::model::{Inner, TokenModel};
use super::pieces::Pieces;
use super::pipeline::guarded;
use super::text_table::TextTable;
use super::unigram::Unigram;
use super::wordpiece::LONGEST_WORD;
use super::wordpiece_model::WordPieces;
use crate::compute::pages;
use crate::models::formats::gguf::{Gguf, GgufValue};
use crate::{Error, Result};

/// Token types of `tokenizer.ggml.token_type`.
const NORMAL: i128 = 1;
pub(super) const UNKNOWN: i128 = 2;
pub(super) const CONTROL: i128 = 3;
pub(super) const USER_DEFINED: i128 = 4;
/// A piece that stands for one byte.
const BYTE: i128 = 6;
/// What a normalizer is tried on: letters with marks, wide forms, and what lies beyond 16 bits.
const TRIED: &str = "a \u{a0}é ﬁ Ａ１ ①🙂İ\u{301}\u{3000}한\u{ad}";

/// WordPiece. Where `vocab.txt` marks pieces inside of words with `##`, the file marks those at their beginning with `▁`.
pub(super) fn word_piece(gguf: &Gguf, pieces: &[String], types: &[i128]) -> Result<Inner> {
    let is_special = |id: usize, piece: &str| {
        types.get(id) == Some(&CONTROL) || (piece.starts_with('[') && piece.ends_with(']'))
    };
    let spelled = |(id, piece): (usize, &String)| match piece.strip_prefix('▁') {
        _ if is_special(id, piece) => piece.clone(),
        Some(word) => word.to_owned(),
        None => format!("##{piece}"),
    };
    let words: Vec<String> = pieces.iter().enumerate().map(spelled).collect();
    let token = |keys: &[&str], default: &str| {
        let numbers = keys.iter().map(|key| gguf.number(&format!("tokenizer.ggml.{key}_token_id")));
        let id = numbers.flatten().next().or_else(|| words.iter().position(|word| word == default));
        id.filter(|&id| id < words.len())
            .ok_or_else(|| invalid(gguf, format!("its vocabulary has no {default}")))
    };
    let unknown = token(&["unknown"], "[UNK]")?;
    let (first, last) = (token(&["cls", "bos"], "[CLS]")?, token(&["seperator", "eos"], "[SEP]")?);
    // Older files do not say whether letters keep their case; their words do.
    let cased = words
        .iter()
        .enumerate()
        .any(|(id, word)| !is_special(id, &pieces[id]) && word.chars().any(char::is_uppercase));
    let damaged = |e: tokenizers::Error| invalid(gguf, format!("its vocabulary does not fit together: {e}"));
    let small = table(&words).and_then(|texts| Pieces::new(texts, None));
    let small =
        small.and_then(|pieces| WordPieces::new(pieces, "##".to_owned(), &words[unknown], LONGEST_WORD));
    let model = match small {
        Some(model) => TokenModel::WordPiece(model),
        None => {
            let model = WordPiece::builder().vocab(vocabulary(&words)).unk_token(words[unknown].clone());
            TokenModel::of_crate(model.build().map_err(damaged)?)
        }
    };
    let mut tokenizer = Inner::new(model);
    let lowercase = gguf.flag("tokenizer.ggml.normalizer.lowercase").unwrap_or(!cased);
    let strips = gguf.flag("tokenizer.ggml.normalizer.strip_accents");
    let normalizer = BertNormalizer::new(true, true, strips, lowercase);
    tokenizer.with_normalizer(Some(normalizer)).map_err(damaged)?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    let (first, last) = ((words[first].clone(), first as u32), (words[last].clone(), last as u32));
    let template = TemplateProcessing::builder()
        .try_single(format!("{} $A {}", first.0, last.0))
        .and_then(|builder| builder.special_tokens(vec![first, last]).build().map_err(|e| e.to_string()))
        .map_err(|e| invalid(gguf, format!("its first and last token cannot be used: {e}")))?;
    tokenizer.with_post_processor(Some(template));
    Ok(tokenizer)
}

/// Unigram, with the normalization that SentencePiece has compiled into the file.
pub(super) fn unigram(gguf: &Gguf, pieces: &[String], types: &[i128]) -> Result<Inner> {
    let scores = scores(gguf, pieces)?;
    let unknown = gguf
        .number("tokenizer.ggml.unknown_token_id")
        .or_else(|| types.iter().position(|&kind| kind == UNKNOWN))
        .filter(|&id| id < pieces.len())
        .ok_or_else(|| {
            invalid(gguf, "its tokenizer has no token for unknown text (tokenizer.ggml.unknown_token_id)")
        })?;
    let bytes = types.contains(&BYTE);
    let damaged = |e: tokenizers::Error| invalid(gguf, format!("its vocabulary does not fit together: {e}"));
    let small = table(pieces).and_then(|texts| {
        let scores = scores_in_texts(pieces, types, &scores);
        Unigram::new(texts, pages::copied(&scores), unknown, bytes)
    });
    let model = match small {
        Some(model) => TokenModel::Unigram(model),
        None => {
            let vocabulary = pieces.iter().cloned().zip(scores).collect();
            TokenModel::of_crate(
                guarded(|| unigram::Unigram::from(vocabulary, Some(unknown), bytes)).map_err(damaged)?,
            )
        }
    };
    let mut tokenizer = Inner::new(model);
    if let Some(map) = gguf.array("tokenizer.ggml.precompiled_charsmap") {
        let byte = |value: &GgufValue| match value {
            GgufValue::Integer(byte) => {
                u8::try_from(*byte).ok().or(i8::try_from(*byte).ok().map(i8::cast_unsigned))
            }
            _ => None,
        };
        let bytes: Option<Vec<u8>> = map.iter().map(byte).collect();
        let bytes =
            bytes.ok_or_else(|| invalid(gguf, "its precompiled_charsmap does not consist of bytes"))?;
        let damage = || invalid(gguf, "its precompiled_charsmap is damaged; download it again");
        if !charsmap::is_sound(&bytes) {
            return Err(damage());
        }
        let json = serde_json::json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(bytes)});
        let normalizer: NormalizerWrapper = guarded(|| Ok(serde_json::from_value(json)?)).map_err(damaged)?;
        // A trie may point outside of itself.
        let tried = guarded(|| normalizer.normalize(&mut NormalizedString::from(TRIED)));
        tried.map_err(|_| damage())?;
        tokenizer.with_normalizer(Some(normalizer)).map_err(damaged)?;
    }
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let removes = removes_spaces(gguf, prefix);
    if removes && !prefix {
        let reason = "its tokenizer removes spaces (tokenizer.ggml.remove_extra_whitespaces) and puts none before a text \
                      (tokenizer.ggml.add_space_prefix); only one of both is supported";
        return Err(Error::Unsupported { model: gguf.path().display().to_string(), reason: reason.into() });
    }
    let scheme = if prefix { PrependScheme::Always } else { PrependScheme::Never };
    let marks = PreTokenizerWrapper::from(Metaspace::new('▁', scheme, true));
    let mut splits = vec![marks];
    if removes {
        let words: PreTokenizerWrapper = match blanks_are_spaces(tokenizer.get_normalizer()) {
            true => WhitespaceSplit.into(),
            false => Split::new(SPACE, SplitDelimiterBehavior::Removed, false).map_err(damaged)?.into(),
        };
        splits.insert(0, words);
    }
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(splits)));
    tokenizer.with_decoder(Some(Metaspace::new('▁', scheme, true)));
    if tokenizer.get_model().get_vocab_size() == 0 {
        return Err(invalid(gguf, "its vocabulary is empty"));
    }
    Ok(tokenizer)
}

/// Architectures whose files with Unigram have the tokenizer of XLM-R.
const XLM_R: [&str; 2] = ["bert", "nomic-bert-moe"];

/// Whether spaces at the ends of a text, and further ones in a row, are left out. The tokenizer of XLM-R does that in
/// transformers, whatever its files say. llama.cpp's converter writes what `sentencepiece.bpe.model` says and, without that
/// file, `clean_up_tokenization_spaces`, which is of decoding alone. `prefix`: a space is put before a text.
fn removes_spaces(gguf: &Gguf, prefix: bool) -> bool {
    let own = prefix && gguf.text("general.architecture").is_some_and(|name| XLM_R.contains(&name));
    gguf.flag("tokenizer.ggml.remove_extra_whitespaces").unwrap_or(true) || own
}

const SPACE: &str = " ";

/// Whether blanks are spaces once a text is normalized, as with the usual map of SentencePiece, which leaves out a few rare
/// ones. SentencePiece splits at spaces alone; the `tokenizer.json` of the models with that map at those too.
fn blanks_are_spaces(normalizer: Option<&NormalizerWrapper>) -> bool {
    normalizer.is_some_and(|normalizer| {
        let mut text = NormalizedString::from("a\ta\na\u{a0}a");
        normalizer.normalize(&mut text).is_ok() && text.get() == "a a a a"
    })
}

/// The scores of pieces as a text is made of them, where SentencePiece's `unigram_model.cc` (`EncodeOptimized`) takes those of
/// normal pieces, a bonus for those that users have defined, and finds no others.
fn scores_in_texts(pieces: &[String], types: &[i128], scores: &[f64]) -> Vec<f64> {
    if types.len() != pieces.len() {
        return scores.to_vec();
    }
    let normal = |(_, kind): &(&f64, &i128)| **kind == NORMAL;
    let highest =
        scores.iter().zip(types).filter(normal).map(|(&score, _)| score).fold(f64::NEG_INFINITY, f64::max);
    let score = |((piece, &kind), &score): ((&String, &i128), &f64)| match kind {
        NORMAL => score,
        USER_DEFINED if highest.is_finite() => piece.len() as f64 * highest - 0.1,
        _ => f64::NEG_INFINITY,
    };
    pieces.iter().zip(types).zip(scores).map(score).collect()
}

/// The score of each piece.
pub(super) fn scores(gguf: &Gguf, pieces: &[String]) -> Result<Vec<f64>> {
    let scores: Vec<f64> = gguf
        .array("tokenizer.ggml.scores")
        .unwrap_or_default()
        .iter()
        .map(|score| if let GgufValue::Float(score) = score { *score } else { 0.0 })
        .collect();
    if scores.len() != pieces.len() {
        return Err(invalid(gguf, "its tokenizer has no score for each piece (tokenizer.ggml.scores)"));
    }
    Ok(scores)
}

/// The texts of pieces, one after the other.
pub(super) fn table(pieces: &[String]) -> Option<TextTable> {
    let mut texts = TextTable::default();
    pieces.iter().all(|piece| texts.push(piece)).then_some(texts)
}

pub(super) fn vocabulary(pieces: &[String]) -> Vocab {
    pieces.iter().zip(0..).map(|(piece, id)| (piece.clone(), id)).collect()
}

pub(super) fn invalid(gguf: &Gguf, reason: impl Into<String>) -> Error {
    Error::invalid_file(gguf.path(), reason)
}

#[cfg(test)]
#[path = "gguf_words_tests.rs"]
mod tests;
