//! What transformers writes about a tokenizer next to `tokenizer.json`.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::Result;
use crate::models::json::read_json_with_nulls;
use crate::models::keys::refusal;
use crate::models::manifest::ModelFiles;

/// `tokenizer_config.json`: what transformers puts over `tokenizer.json`. `special_tokens_map.json` replaces the special
/// tokens that both name and adds to the list of the others, unless the former describes all added tokens itself.
#[derive(Debug, Default)]
pub(crate) struct TokenizerConfig(Map<String, Value>);

impl TokenizerConfig {
    pub(crate) fn read(files: &ModelFiles) -> Result<Self> {
        let read = |name| match files.beside_weights(name) {
            Some(path) => read_json_with_nulls(&path),
            None => Ok(Map::new()),
        };
        let mut settings: Map<String, Value> = read("tokenizer_config.json")?;
        const SPLIT: &str = "split_special_tokens";
        if let Some(value) = settings.get(SPLIT).filter(|value| value.as_bool() == Some(true)) {
            let path = files.transformer.join("tokenizer_config.json");
            return Err(refusal(
                &files.model,
                &path,
                SPLIT,
                value,
                "special tokens in texts are not divided here",
            ));
        }
        // The former name counts where the list of the present one is empty.
        let is_empty = |value: &Value| match value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(named) => named.is_empty(),
            _ => false,
        };
        if settings.get(EXTRA).is_none_or(is_empty)
            && let Some(former) = settings.remove(FORMER_EXTRA)
        {
            settings.insert(EXTRA.to_owned(), former);
        }
        if !settings.get("added_tokens_decoder").is_some_and(Value::is_object) {
            for (key, mut value) in read("special_tokens_map.json")? {
                let own = settings.get_mut(EXTRA).filter(|_| key == EXTRA && value.is_array()).map(as_list);
                match (own, &mut value) {
                    (Some(Value::Array(own)), Value::Array(others)) => {
                        others.retain(|other| !own.contains(other));
                        own.append(others);
                    }
                    _ => drop(settings.insert(key, value)),
                }
            }
        }
        // The former name counts with tokens that have names, and not with a list.
        if let Some(mut extra) = settings.remove(EXTRA) {
            let named = extra.is_object();
            let former = settings.remove(FORMER_EXTRA).filter(|_| named);
            if let (Value::Array(extra), Some(Value::Array(former))) = (as_list(&mut extra), former) {
                extra.extend(former);
            }
            settings.insert(EXTRA.to_owned(), extra);
        }
        Ok(Self(settings))
    }

    #[cfg(test)]
    pub(super) fn of(settings: &Value) -> Self {
        Self(settings.as_object().cloned().unwrap_or_default())
    }

    /// A true-or-false setting, if it is there and not null.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.0.get(key)?.as_bool()
    }

    /// A textual setting; added tokens are sometimes objects with the text as `content`.
    pub(crate) fn word(&self, key: &str) -> Option<String> {
        let value = self.0.get(key)?;
        value.as_str().or_else(|| value.get("content")?.as_str()).map(ToString::to_string)
    }

    /// Any setting.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Any setting; `null` without one.
    pub(crate) fn value(&self, key: &str) -> &Value {
        self.0.get(key).unwrap_or(&Value::Null)
    }

    /// A special token.
    pub(crate) fn token(&self, key: &str) -> Option<AddedToken> {
        added_token(self.0.get(key)?, true)
    }

    /// A table.
    pub(crate) fn object(&self, key: &str) -> Option<&Map<String, Value>> {
        self.0.get(key)?.as_object()
    }

    /// Special tokens without a name of their own.
    pub(crate) fn additional(&self) -> Vec<AddedToken> {
        let lists = [FORMER_EXTRA, EXTRA];
        let listed = lists.iter().filter_map(|key| self.0.get(*key)?.as_array()).flatten();
        listed.filter_map(|value| added_token(value, true)).collect()
    }

    /// `model_max_length`, unless it is the huge number that stands for none.
    pub(crate) fn max_length(&self) -> Option<usize> {
        let length = self.0.get("model_max_length")?.as_f64()?;
        (1.0..1e9).contains(&length).then_some(length as usize)
    }
}

/// Special tokens without an attribute of their own, and what the key was called before transformers 5.
const EXTRA: &str = "extra_special_tokens";
const FORMER_EXTRA: &str = "additional_special_tokens";

/// Tokens by names that a model gives them, as a list of them.
fn as_list(value: &mut Value) -> &mut Value {
    if let Value::Object(named) = value {
        *value = named.values().cloned().collect();
    }
    value
}

/// A token as an object describes it, or its text alone. `special` where the object does not say.
pub(super) fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return Some(AddedToken::from(text.to_owned(), special));
    }
    let flag = |key: &str, default: bool| value[key].as_bool().unwrap_or(default);
    let special = flag("special", special);
    let token = AddedToken::from(value["content"].as_str()?.to_owned(), special)
        .lstrip(flag("lstrip", false))
        .rstrip(flag("rstrip", false))
        .single_word(flag("single_word", false))
        .normalized(flag("normalized", !special));
    Some(token)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    /// A model whose tokenizer has no settings.
    fn model() -> (tempfile::TempDir, ModelFiles) {
        let folder = tempfile::tempdir().unwrap();
        let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama");
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::copy(from.join(file), folder.path().join(file)).unwrap();
        }
        let files = ModelFiles::open("m", folder.path()).unwrap();
        (folder, files)
    }

    #[test]
    fn the_length_that_stands_for_none_is_none() {
        let length = |value: Value| TokenizerConfig::of(&json!({"model_max_length": value})).max_length();
        assert_eq!(
            (length(json!(512)), length(json!(512.0)), length(json!(1))),
            (Some(512), Some(512), Some(1))
        );
        for none in [json!(1e30), json!(1_000_000_000), json!(0), json!(-1), json!("512"), json!(null)] {
            assert_eq!(length(none.clone()), None, "{none}");
        }
        assert_eq!(TokenizerConfig::default().max_length(), None);
    }

    #[test]
    fn the_map_replaces_special_tokens_of_the_settings() {
        let (folder, files) = model();
        let write = |name: &str, json: Value| fs::write(folder.path().join(name), json.to_string()).unwrap();
        write("special_tokens_map.json", json!({"eos_token": "<map>", "bos_token": {"content": "<start>"}}));
        for (settings, eos, bos) in [
            (json!({}), Some("<map>"), Some("<start>")),
            (json!({"eos_token": "<own>", "pad_token": "<pad>"}), Some("<map>"), Some("<start>")),
            (json!({"eos_token": null}), Some("<map>"), Some("<start>")),
            (json!({"added_tokens_decoder": null}), Some("<map>"), Some("<start>")),
            // It describes all tokens itself.
            (json!({"added_tokens_decoder": {}, "eos_token": "<own>"}), Some("<own>"), None),
        ] {
            write("tokenizer_config.json", settings.clone());
            let read = TokenizerConfig::read(&files).unwrap();
            let found = (read.word("eos_token"), read.word("bos_token"));
            assert_eq!((found.0.as_deref(), found.1.as_deref()), (eos, bos), "{settings}");
        }
    }

    /// As transformers 5.23 has them.
    #[test]
    fn special_tokens_without_a_name_are_those_of_both_files() {
        let (folder, files) = model();
        for (settings, map, expected) in [
            (json!({FORMER_EXTRA: ["a"]}), json!({}), &["a"][..]),
            (json!({}), json!({FORMER_EXTRA: ["b"]}), &["b"]),
            (json!({FORMER_EXTRA: ["a"]}), json!({FORMER_EXTRA: ["b"]}), &["a"]),
            (json!({FORMER_EXTRA: ["a"]}), json!({FORMER_EXTRA: []}), &["a"]),
            (json!({FORMER_EXTRA: ["a"]}), json!({FORMER_EXTRA: null}), &["a"]),
            (json!({FORMER_EXTRA: ["a"], EXTRA: []}), json!({}), &["a"]),
            (json!({FORMER_EXTRA: ["a"]}), json!({EXTRA: ["b", "a"]}), &["a", "b"]),
            (json!({EXTRA: ["a"]}), json!({EXTRA: ["b"]}), &["a", "b"]),
            (json!({EXTRA: ["a"]}), json!({FORMER_EXTRA: ["b"]}), &["a"]),
            (json!({EXTRA: {"foo_token": "a"}}), json!({EXTRA: ["b"]}), &["a", "b"]),
            (json!({EXTRA: ["a"]}), json!({EXTRA: {"foo_token": "b"}}), &["b"]),
            (json!({EXTRA: {"foo_token": "a"}}), json!({FORMER_EXTRA: ["b"]}), &["a", "b"]),
        ] {
            for (name, json) in [("tokenizer_config.json", &settings), ("special_tokens_map.json", &map)] {
                fs::write(folder.path().join(name), json.to_string()).unwrap();
            }
            let found = TokenizerConfig::read(&files).unwrap().additional();
            let found: Vec<_> = found.iter().map(|token| &*token.content).collect();
            assert_eq!(found, expected, "{settings} {map}");
        }
    }
}
