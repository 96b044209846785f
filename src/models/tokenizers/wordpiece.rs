//! A BERT tokenizer from its original file, `vocab.txt`, for models saved before `tokenizer.json` existed.

use std::fs;
use std::path::Path;

use tokenizers::AddedToken;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;

use super::added_tokens;
use super::config::TokenizerConfig;
use super::model::{Inner, TokenModel};
use super::pieces::Pieces;
use super::text_table::TextTable;
use super::wordpiece_model::WordPieces;
use crate::models::manifest::ModelFiles;
use crate::{Error, Result};

/// Characters of a word above which it is one unknown token.
pub(super) const LONGEST_WORD: usize = 100;

/// Builds what transformers' `BertTokenizer` builds from the same files. Without settings: lower-casing, as there.
pub(crate) fn from_vocabulary(path: &Path, files: &ModelFiles, settings: &TokenizerConfig) -> Result<Inner> {
    let invalid = |reason: String| Error::InvalidFile { path: path.to_path_buf(), reason };
    let bytes = fs::read(path).map_err(|e| Error::io(path, "read", &e))?;
    // In the order in which transformers adds those that the vocabulary lacks.
    let special = |key: &str, default: &str| {
        settings.token(key).unwrap_or_else(|| AddedToken::from(default.to_owned(), true))
    };
    let (unknown, separator) = (special("unk_token", "[UNK]"), special("sep_token", "[SEP]"));
    let (padding, first) = (special("pad_token", "[PAD]"), special("cls_token", "[CLS]"));
    let mask = special("mask_token", "[MASK]");
    let model =
        match small(&bytes, &unknown.content) {
            Some(model) => TokenModel::WordPiece(model),
            None => {
                let vocabulary = WordPiece::read_bytes(&bytes).map_err(|e| {
                    invalid(format!("it is not UTF-8 text with one token a line ({e}); download it again"))
                })?;
                let model = WordPiece::builder().vocab(vocabulary).unk_token(unknown.content.clone()).build();
                TokenModel::of_crate(model.map_err(|e| {
                    invalid(format!("it is no WordPiece vocabulary ({e}); download it again"))
                })?)
            }
        };
    let mut tokenizer = Inner::new(model);
    let id = |token: &str| {
        tokenizer.token_to_id(token).ok_or_else(|| {
            invalid(format!(
                "it lacks the token {token:?}; it is cut short, or belongs to another kind of model"
            ))
        })
    };
    id(&unknown.content)?;
    let (first_id, separator_id) = (id(&first.content)?, id(&separator.content)?);
    let template = TemplateProcessing::builder()
        .try_single(format!("{} $A {}", first.content, separator.content))
        .map_err(&invalid)?
        .special_tokens(vec![(first.content.clone(), first_id), (separator.content.clone(), separator_id)])
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
    let own = vec![unknown, separator, padding, first, mask];
    added_tokens::add(&mut tokenizer, files, settings, own, false)?;
    Ok(tokenizer)
}

/// The model in its small form; `None` for a vocabulary that only the tokenizers crate reads.
fn small(vocabulary: &[u8], unknown: &str) -> Option<WordPieces> {
    let mut texts = TextTable::default();
    for line in std::str::from_utf8(vocabulary).ok()?.lines() {
        texts.push(line.trim_end()).then_some(())?;
    }
    WordPieces::new(Pieces::new(texts, None)?, "##".to_owned(), unknown, LONGEST_WORD)
}
