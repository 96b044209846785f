//! Tokens that a model's files add to its vocabulary: `added_tokens_decoder` in `tokenizer_config.json`, or
//! `added_tokens.json` with `special_tokens_map.json` where there is no `tokenizer.json`.
//!
//! As in transformers, a token that the vocabulary lacks gets the next free id, in the order of the ids in the file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, NormalizedString, Normalizer as _};

use super::config::{TokenizerConfig, added_token};
use super::model::Inner;
use super::pipeline::guarded;
use crate::chat::SPECIAL_TOKENS;
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
    if settings.object(DECODER).is_some() {
        add_described(tokenizer, files, settings)?;
    } else if let Some(path) = files.beside_weights("added_tokens.json") {
        let added: Map<String, Value> = read_json(&path)?;
        let tokens = added.into_iter().map(|(token, id)| {
            let id = number(&path, &token, &id)?;
            Ok((id, AddedToken::from(token, plain_special)))
        });
        add_all(tokenizer, &path, tokens.collect::<Result<_>>()?)?;
    }
    let path = config_path(files);
    let named = own.into_iter().chain(settings.additional());
    tokenizer.add_special_tokens(named).map_err(|e| invalid(&path, &e.to_string()))?;
    Ok(())
}

/// Puts what `tokenizer_config.json` says of added tokens over `tokenizer.json`, as transformers does: those that it
/// describes otherwise or alone, and special tokens that the vocabulary has as plain pieces. A special token without an
/// id in any file is left out: the model has no row for it.
///
/// # Errors
/// As [`add`].
pub(crate) fn follow(tokenizer: &mut Inner, files: &ModelFiles, settings: &TokenizerConfig) -> Result<()> {
    add_described(tokenizer, files, settings)?;
    let added = tokenizer.get_added_vocabulary().get_vocab();
    let named = SPECIAL_TOKENS.iter().filter_map(|name| settings.token(name)).chain(settings.additional());
    let named: Vec<_> = named
        .filter(|token| {
            !added.contains_key(&token.content) && tokenizer.token_to_id(&token.content).is_some()
        })
        .map(|token| AddedToken { special: true, ..token })
        .collect();
    let path = config_path(files);
    tokenizer.add_tokens(named).map_err(|e| invalid(&path, &e.to_string()))?;
    Ok(())
}

/// The added tokens by their ids.
const DECODER: &str = "added_tokens_decoder";

fn config_path(files: &ModelFiles) -> PathBuf {
    files.transformer.join("tokenizer_config.json")
}

fn add_described(tokenizer: &mut Inner, files: &ModelFiles, settings: &TokenizerConfig) -> Result<()> {
    let path = config_path(files);
    let entries = settings.object(DECODER).into_iter().flatten().map(|(id, entry)| {
        Ok((number(&path, id, &Value::String(id.clone()))?, described(&path, id, entry)?))
    });
    add_all(tokenizer, &path, entries.collect::<Result<_>>()?)
}

fn add_all(tokenizer: &mut Inner, path: &Path, mut tokens: Vec<(u64, AddedToken)>) -> Result<()> {
    if tokens.len() > MOST {
        return Err(invalid(path, &format!("it adds {} tokens; at most {MOST} are read", tokens.len())));
    }
    if let Some((_, long)) = tokens.iter().find(|(_, token)| token.content.len() > LONGEST) {
        let length = long.content.len();
        return Err(invalid(path, &format!("it adds a token of {length} bytes; at most {LONGEST} are read")));
    }
    tokens.sort_by_key(|(id, _)| *id);
    let wanted: Vec<(u64, String)> = tokens.iter().map(|(id, token)| (*id, token.content.clone())).collect();
    let added = tokenizer.add_tokens(tokens.into_iter().map(|(_, token)| token));
    added.map_err(|e| invalid(path, &e.to_string()))?;
    for (id, token) in wanted {
        let given = tokenizer.token_to_id(&token);
        if given.map(u64::from) != Some(id) {
            log::warn!("{}: the token {token:?} has the id {given:?}, not {id}", path.display());
        }
    }
    check_distinct(tokenizer, path)
}

/// Refuses two added tokens that a normalizer makes the same text, since which of them a text gets would be chance; and one
/// that it makes empty.
///
/// # Errors
/// [`Error::InvalidFile`] naming them.
pub(super) fn check_distinct(tokenizer: &Inner, path: &Path) -> Result<()> {
    let Some(normalizer) = tokenizer.get_normalizer() else { return Ok(()) };
    let mut forms = HashMap::new();
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    for token in added.values().filter(|token| token.normalized) {
        let mut form = NormalizedString::from(token.content.as_str());
        guarded(|| normalizer.normalize(&mut form)).map_err(|e| invalid(path, &e.to_string()))?;
        if form.get().is_empty() {
            // The crate would find it everywhere, without an end.
            let reason = format!(
                "its added token {:?} is empty for its normalizer: remove it, or set \"normalized\": false",
                token.content
            );
            return Err(invalid(path, &reason));
        }
        if let Some(other) = forms.insert(form.get().to_owned(), &token.content) {
            let (one, other) = (other.min(&token.content), other.max(&token.content));
            let reason = format!(
                "its added tokens {one:?} and {other:?} are one text for its normalizer, so none is sure to be found: \
                 remove one, or set \"normalized\": false for both"
            );
            return Err(invalid(path, &reason));
        }
    }
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

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::super::file::compact;
    use super::super::pipeline::Pipeline;
    use super::super::tests::{bytes, fixture};
    use super::*;

    /// The first id after those of the vocabulary.
    fn next_id() -> usize {
        Pipeline::from(tokenizer()).id_limit()
    }

    fn tokenizer() -> Inner {
        compact(&bytes(&fixture("tokenizers/bytes_gpt2"))).unwrap()
    }

    /// A model's folder with these `added_tokens.json`.
    fn model(added: Option<&Value>) -> (tempfile::TempDir, ModelFiles) {
        let folder = tempfile::tempdir().unwrap();
        let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama");
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::copy(from.join(file), folder.path().join(file)).unwrap();
        }
        if let Some(added) = added {
            fs::write(folder.path().join("added_tokens.json"), added.to_string()).unwrap();
        }
        let files = ModelFiles::open("m", folder.path()).unwrap();
        (folder, files)
    }

    fn special(tokenizer: &Inner, token: &str) -> Option<(u32, bool)> {
        let id = tokenizer.token_to_id(token)?;
        Some((id, tokenizer.get_added_vocabulary().get_added_tokens_decoder().get(&id)?.special))
    }

    #[test]
    fn what_the_settings_describe_is_added_and_the_list_without_descriptions_is_not_read_then() {
        let id = next_id();
        let listed = json!({"<listed>": id});
        let described = json!({DECODER: {id.to_string(): {"content": "<described>", "special": true},
            (id + 1).to_string(): {"content": "<plain>"}}});
        let (_folder, files) = model(Some(&listed));
        let settings = TokenizerConfig::of(&described);
        let mut one = tokenizer();
        add(&mut one, &files, &settings, Vec::new(), true).unwrap();
        let mut other = tokenizer();
        follow(&mut other, &files, &settings).unwrap();
        for tokenizer in [one, other] {
            assert_eq!(special(&tokenizer, "<described>"), Some((id as u32, true)));
            assert_eq!(special(&tokenizer, "<plain>"), Some((id as u32 + 1, false)));
            assert_eq!(special(&tokenizer, "<listed>"), None);
        }
        for plain_special in [false, true] {
            let mut tokenizer = self::tokenizer();
            let own = vec![AddedToken::from("<own>", true)];
            add(&mut tokenizer, &files, &TokenizerConfig::default(), own, plain_special).unwrap();
            assert_eq!(special(&tokenizer, "<listed>"), Some((id as u32, plain_special)));
            assert_eq!(special(&tokenizer, "<own>"), Some((id as u32 + 1, true)));
        }
    }

    #[test]
    fn entries_that_are_none_are_refused_by_name() {
        let (_folder, files) = model(None);
        let long = "x".repeat(LONGEST + 1);
        for (decoder, word) in [
            (json!({"7": {"special": true}}), "added token 7 has no text"),
            (json!({"seven": "<a>"}), "no number of 32 bits"),
            (json!({"4294967296": "<a>"}), "no number of 32 bits"),
            (json!({"7": long}), "a token of 4097 bytes"),
        ] {
            let settings = TokenizerConfig::of(&json!({DECODER: decoder}));
            let error = follow(&mut tokenizer(), &files, &settings).unwrap_err();
            assert!(
                matches!(&error, Error::InvalidFile { path, .. } if path.ends_with("tokenizer_config.json"))
            );
            assert!(error.to_string().contains(word), "{error}");
        }
        let longest = TokenizerConfig::of(&json!({DECODER: {next_id().to_string(): "x".repeat(LONGEST)}}));
        assert_eq!(follow(&mut tokenizer(), &files, &longest), Ok(()));
    }
    #[test]
    fn a_token_that_is_empty_for_the_normalizer_is_refused() {
        let normalizer = json!({"type": "Strip", "strip_left": true, "strip_right": true});
        for (token, reason) in [("\n", Some("\"\\n\" is empty for its normalizer")), ("x\n", None)] {
            let mut json: Value = serde_json::from_slice(&bytes(&fixture("tokenizers/bytes_gpt2"))).unwrap();
            json["normalizer"] = normalizer.clone();
            let id = next_id();
            json["added_tokens"] = json!([{"id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": true, "special": false}]);
            let tokenizer: Inner = serde_json::from_value(json).unwrap();
            let refused = check_distinct(&tokenizer, Path::new("tokenizer.json")).err();
            assert_eq!(refused.is_some(), reason.is_some(), "{token:?}");
            assert!(refused.is_none_or(|error| error.to_string().contains(reason.unwrap())));
        }
    }
}
