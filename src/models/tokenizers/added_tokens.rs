//! Tokens that a model's files add to its vocabulary: `added_tokens_decoder` in `tokenizer_config.json`, or
//! `added_tokens.json` with `special_tokens_map.json`. Read only where no `tokenizer.json` holds them already.
//!
//! As in transformers, a token that the vocabulary lacks gets the next free id, in the order of the ids in the file.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::config::{TokenizerConfig, added_token};
use super::model::Inner;
use crate::models::json::read_json;
use crate::models::manifest::ModelFiles;
use crate::{Error, Result};

/// Added tokens at most.
const MOST: usize = 100_000;
/// Bytes of one at most.
const LONGEST: usize = 4096;

/// Adds what the files next to the weights add, then `own`: the model's special tokens. `plain_special`: the tokens of
/// `added_tokens.json`, which does not say, are special.
///
/// # Errors
/// [`Error::InvalidFile`] naming the file and the entry.
pub(crate) fn add(
    tokenizer: &mut Inner,
    files: &ModelFiles,
    settings: &TokenizerConfig,
    own: Vec<AddedToken>,
    plain_special: bool,
) -> Result<()> {
    let mut tokens = Vec::new();
    let from = if let Some(decoder) = settings.object("added_tokens_decoder") {
        let path = files.transformer.join("tokenizer_config.json");
        for (id, entry) in decoder {
            tokens.push((number(&path, id, &Value::String(id.clone()))?, described(&path, id, entry)?));
        }
        Some(path)
    } else if let Some(path) = files.beside_weights("added_tokens.json") {
        let added: Map<String, Value> = read_json(&path)?;
        for (token, id) in added {
            let id = number(&path, &token, &id)?;
            let added = AddedToken::from(token, plain_special);
            tokens.push((id, added));
        }
        Some(path)
    } else {
        None
    };
    let failed = |path: &Path, error: tokenizers::Error| invalid(path, &error.to_string());
    if let Some(path) = from {
        if tokens.len() > MOST {
            return Err(invalid(&path, &format!("it adds {} tokens; at most {MOST} are read", tokens.len())));
        }
        if let Some((_, long)) = tokens.iter().find(|(_, token)| token.content.len() > LONGEST) {
            let length = long.content.len();
            return Err(invalid(
                &path,
                &format!("it adds a token of {length} bytes; at most {LONGEST} are read"),
            ));
        }
        tokens.sort_by_key(|(id, _)| *id);
        let wanted: Vec<(u64, String)> =
            tokens.iter().map(|(id, token)| (*id, token.content.clone())).collect();
        tokenizer.add_tokens(tokens.into_iter().map(|(_, token)| token)).map_err(|e| failed(&path, e))?;
        for (id, token) in wanted {
            let given = tokenizer.token_to_id(&token);
            if given.map(u64::from) != Some(id) {
                log::warn!("{}: the token {token:?} has the id {given:?}, not {id}", path.display());
            }
        }
    }
    let named = settings.additional();
    let path = files.transformer.join("tokenizer_config.json");
    tokenizer.add_special_tokens(own.into_iter().chain(named)).map_err(|e| failed(&path, e))?;
    Ok(())
}

fn described(path: &Path, id: &str, entry: &Value) -> Result<AddedToken> {
    added_token(entry, false)
        .ok_or_else(|| invalid(path, &format!("its added token {id} has no text (content)")))
}

fn number(path: &Path, name: &str, id: &Value) -> Result<u64> {
    let number = id.as_u64().or_else(|| id.as_str()?.parse().ok());
    number.filter(|&id| id <= u64::from(u32::MAX)).ok_or_else(|| {
        invalid(path, &format!("its added token {name:?} has the id {id}, which is no number of 32 bits"))
    })
}

fn invalid(path: &Path, reason: &str) -> Error {
    Error::InvalidFile { path: path.to_path_buf(), reason: reason.to_owned() }
}
