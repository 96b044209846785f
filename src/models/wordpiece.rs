//! A BERT tokenizer from its original file, `vocab.txt`, for models saved before `tokenizer.json` existed.

use std::fs;
use std::path::Path;

use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use super::tokenizer::Settings;
use crate::{Error, Result};

/// The five words that a BERT vocabulary holds beside the language's.
struct Special {
    unknown: String,
    separator: String,
    padding: String,
    first: String,
    mask: String,
}

/// Builds what transformers' `BertTokenizer` builds from the same files. Without settings: lower-casing, as there.
pub(crate) fn from_vocabulary(path: &Path, settings: &Settings) -> Result<Tokenizer> {
    let invalid = |reason: String| Error::InvalidFile { path: path.to_path_buf(), reason };
    let bytes = fs::read(path).map_err(|e| Error::io(path, "read", &e))?;
    let vocabulary = WordPiece::read_bytes(&bytes).map_err(|e| {
        invalid(format!("it is not UTF-8 text with one token a line ({e}); download it again"))
    })?;
    let word = |key: &str, default: &str| settings.word(key).unwrap_or_else(|| default.to_string());
    let special = Special {
        unknown: word("unk_token", "[UNK]"),
        separator: word("sep_token", "[SEP]"),
        padding: word("pad_token", "[PAD]"),
        first: word("cls_token", "[CLS]"),
        mask: word("mask_token", "[MASK]"),
    };
    let model = WordPiece::builder()
        .vocab(vocabulary)
        .unk_token(special.unknown.clone())
        .build()
        .map_err(|e| invalid(format!("it is no WordPiece vocabulary ({e}); download it again")))?;
    let mut tokenizer = Tokenizer::new(model);
    let id = |token: &str| {
        tokenizer.token_to_id(token).ok_or_else(|| {
            invalid(format!(
                "it lacks the token {token:?}; it is cut short, or belongs to another kind of model"
            ))
        })
    };
    id(&special.unknown)?;
    let (first, separator) = (id(&special.first)?, id(&special.separator)?);
    let template = TemplateProcessing::builder()
        .try_single(format!("{} $A {}", special.first, special.separator))
        .map_err(&invalid)?
        .special_tokens(vec![(special.first.clone(), first), (special.separator.clone(), separator)])
        .build()
        .map_err(|e| invalid(e.to_string()))?;
    let normalizer = BertNormalizer::new(
        true,
        settings.flag("tokenize_chinese_chars").unwrap_or(true),
        settings.flag("strip_accents"),
        settings.flag("do_lower_case").unwrap_or(true),
    );
    tokenizer.with_normalizer(Some(normalizer)).map_err(|e| invalid(e.to_string()))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer)).with_post_processor(Some(template));
    let Special { unknown, separator, padding, first, mask } = special;
    let present =
        [unknown, separator, padding, first, mask].into_iter().filter(|t| tokenizer.token_to_id(t).is_some());
    let added: Vec<_> = present.map(|token| AddedToken::from(token, true)).collect();
    tokenizer.add_special_tokens(added).map_err(|e| invalid(e.to_string()))?;
    Ok(tokenizer)
}
