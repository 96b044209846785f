//! Reading the JSON files of a model.

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, Result};

/// Reads a JSON file of a model; a key whose value is null counts as absent.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let json = without_nulls(read_json_with_nulls(path)?);
    T::deserialize(json).map_err(|e| unexpected(path, &e))
}

/// Keys of a `config.json` whose null differs from their absence: absent, they have a default that is not null.
pub(crate) const NULL_COUNTS: [&str; 7] = [
    "sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rotary_dim",
    "head_dim",
    "partial_rotary_factor",
    "per_layer_config",
];

/// Reads a `config.json`; a key whose value is null counts as absent, but for [`NULL_COUNTS`].
pub(crate) fn read_config(path: &Path) -> Result<Value> {
    let mut json: Value = read_json_with_nulls(path)?;
    if let Some(map) = json.as_object_mut() {
        map.retain(|key, value| !value.is_null() || NULL_COUNTS.contains(&key.as_str()));
    }
    Ok(json)
}

/// Reads a JSON file of a model, nulls included: in `tokenizer_config.json` they replace what `tokenizer.json` says.
/// Files over 64 MiB are refused: a model's JSON files are small.
pub(crate) fn read_json_with_nulls<T: DeserializeOwned>(path: &Path) -> Result<T> {
    const LIMIT: u64 = 64 << 20;
    let unreadable = |e| Error::io(path, "read", &e);
    if fs::metadata(path).map_err(unreadable)?.len() > LIMIT {
        return Err(Error::invalid_file(path, "it is too large to be a model's JSON file"));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    serde_json::from_slice(&bytes).map_err(|e| unexpected(path, &e))
}

fn unexpected(path: &Path, error: &serde_json::Error) -> Error {
    Error::invalid_file(
        path,
        format!("it does not read as the JSON expected ({error}); download it again or correct it"),
    )
}

/// `json` without the keys that are null, of the object itself or of the objects in an array: null means absent. Objects
/// further down are data, such as prompts by name.
pub(crate) fn without_nulls(mut json: Value) -> Value {
    let strip = |value: &mut Value| {
        if let Some(map) = value.as_object_mut() {
            map.retain(|_, value| !value.is_null());
        }
    };
    match &mut json {
        Value::Array(values) => values.iter_mut().for_each(strip),
        one => strip(one),
    }
    json
}
