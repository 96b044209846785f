//! `tokenizer.json`, as a tokenizer whose model takes little memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::{AddedToken, TokenizerBuilder};

use super::compact::CompactModel;
use super::model::{Inner, TokenModel};
use super::{added_tokens, charsmap, oniguruma};
use crate::compute::memory::Buffer;
use crate::models::manifest::metadata;
use crate::{Error, Result};

/// Bytes of a `tokenizer.json` at most; those of large vocabularies have about 35 million.
const LARGEST_FILE: u64 = 256 << 20;
/// Arrays and objects inside each other in it at most; real ones have about 7. Its reader takes time that grows with
/// every level of a sequence by a factor, and a stack that grows with it.
const DEEPEST: usize = 16;

/// The tokenizer of a `tokenizer.json`, and the file's bytes.
///
/// # Errors
/// [`Error::InvalidFile`] for one that is damaged, too large or too deep.
pub(crate) fn read(path: &Path) -> Result<(Inner, Buffer)> {
    let length = metadata(path)?.len();
    if length > LARGEST_FILE {
        return Err(Error::InvalidFile {
            path: path.to_path_buf(),
            reason: format!("it has {length} bytes; a tokenizer of more than {LARGEST_FILE} is not read"),
        });
    }
    // In memory that the allocator does not keep for later.
    let mut bytes = Buffer::zeroed(length as usize)?;
    let read = File::open(path).and_then(|mut file| file.read_exact(bytes.as_mut_slice()));
    read.map_err(|e| Error::io(path, "read", &e))?;
    let inner = match compact(bytes.as_slice()) {
        Some(inner) => inner,
        None => of_crate(path, bytes.as_slice())?,
    };
    added_tokens::check_distinct(&inner, path)?;
    Ok((inner, bytes))
}

/// White space of JSON.
const BLANK: [char; 4] = [' ', '\n', '\r', '\t'];

/// The parts of a `tokenizer.json` but for the model.
const PARTS: [&str; 8] = [
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
];

/// These parts as texts: all of them are small.
type FileParts<'a> = HashMap<String, &'a str>;

/// An added token as the file has it.
#[derive(Deserialize)]
struct FileToken {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

/// The tokenizer of a file whose model has a form of ours; `None` leaves the file to the crate, which also reports what
/// is wrong with it.
pub(super) fn compact(json: &[u8]) -> Option<Inner> {
    // What its parts do not survive is for the crate to report, too.
    catch_unwind(|| {
        let (model, parts) = split(std::str::from_utf8(json).ok()?)?;
        build(model, &parts).ok()
    })
    .ok()?
}

/// The model, and the other parts. `None` for a text that is not one object with a model and each part once.
fn split(json: &str) -> Option<(TokenModel, FileParts<'_>)> {
    let (mut model, mut parts) = (None, FileParts::new());
    let mut rest = json.trim_matches(BLANK).strip_prefix('{')?;
    loop {
        let (key, after) = value(rest.trim_start_matches(BLANK))?;
        let key: String = serde_json::from_str(key).ok()?;
        rest = after.trim_start_matches(BLANK).strip_prefix(':')?.trim_start_matches(BLANK);
        if key == "model" && model.is_none() {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<CompactModel>();
            model = Some(values.next()?.ok()?.0);
            rest = &rest[values.byte_offset()..];
        } else {
            let (part, after) = value(rest)?;
            rest = after;
            if !PARTS.contains(&key.as_str()) || parts.insert(key, part).is_some() {
                return None;
            }
        }
        rest = rest.trim_start_matches(BLANK);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest == "}" => return Some((model?, parts)),
            None => return None,
        }
    }
}

/// The JSON value that a text begins with, and the rest. Whoever reads the value checks it.
fn value(json: &str) -> Option<(&str, &str)> {
    let (mut inside, mut escaped, mut depth) = (false, false, 0usize);
    for (at, byte) in json.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => {
                inside = !inside;
                if !inside && depth == 0 {
                    return Some(json.split_at(at + 1));
                }
            }
            _ if inside => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' if depth == 1 => return Some(json.split_at(at + 1)),
            b',' | b'}' if depth == 0 => return Some(json.split_at(at)),
            b']' | b'}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

/// Puts the parts together as the crate does.
fn build(model: TokenModel, parts: &FileParts<'_>) -> tokenizers::Result<Inner> {
    fn part<T: DeserializeOwned>(parts: &FileParts<'_>, key: &str, absent: T) -> tokenizers::Result<T> {
        let Some(json) = parts.get(key) else { return Ok(absent) };
        if depth(json.as_bytes()) >= DEEPEST {
            return Err("it is too deep".into());
        }
        if !json.contains("\"Regex\"") {
            return Ok(serde_json::from_str(json)?);
        }
        let mut json: Value = serde_json::from_str(json)?;
        oniguruma::translate_all(&mut json)?;
        Ok(serde_json::from_value(json)?)
    }
    if part(parts, "version", "1.0".to_owned())? != "1.0" {
        return Err("its version is unknown".into());
    }
    if parts.get("normalizer").is_some_and(|json| !maps_are_sound(json)) {
        return Err("its precompiled_charsmap is damaged".into());
    }
    let mut inner: Inner = TokenizerBuilder::new()
        .with_model(model)
        .with_normalizer(part(parts, "normalizer", None)?)
        .with_pre_tokenizer(part(parts, "pre_tokenizer", None)?)
        .with_post_processor(part(parts, "post_processor", None)?)
        .with_decoder(part(parts, "decoder", None)?)
        .with_truncation(part(parts, "truncation", None)?)
        .with_padding(part(parts, "padding", None)?)
        .build()?;
    let tokens: Vec<FileToken> = part(parts, "added_tokens", Vec::new())?;
    for FileToken { id, token } in &tokens {
        if let Some(given) = inner.token_to_id(&token.content).filter(|given| given != id) {
            log::warn!("the token {:?} should have the id {id}, and has {given}", token.content);
        }
    }
    inner.add_tokens(tokens.into_iter().map(|token| token.token))?;
    Ok(inner)
}

/// Whether a text of JSON has no map whose reader would take memory that it has no use for.
fn maps_are_sound(json: &str) -> bool {
    !json.contains("charsmap") || serde_json::from_str(json).is_ok_and(|json| charsmap::are_sound(&json))
}

/// The tokenizer as the tokenizers crate reads it.
fn of_crate(path: &Path, bytes: &[u8]) -> Result<Inner> {
    if depth(bytes) > DEEPEST {
        return Err(Error::InvalidFile {
            path: path.to_path_buf(),
            reason: format!(
                "its parts (normalizers, pre-tokenizers and the like) lie more than {DEEPEST} levels inside each other, \
                 which is not read"
            ),
        });
    }
    /// The parts that are looked at first.
    #[derive(Deserialize)]
    struct Checked {
        normalizer: Option<Value>,
        pre_tokenizer: Option<Value>,
        decoder: Option<Value>,
    }
    let invalid = |reason: &str| Error::invalid_file(path, format!("{reason}; download it again"));
    let checked = serde_json::from_slice::<Checked>(bytes).ok();
    let mut translated = Vec::new();
    if let Some(Checked { normalizer, pre_tokenizer, decoder }) = checked {
        if normalizer.as_ref().is_some_and(|json| !charsmap::are_sound(json)) {
            return Err(invalid("its precompiled_charsmap is damaged"));
        }
        for (key, part) in
            [("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer), ("decoder", decoder)]
        {
            let Some(mut part) = part else { continue };
            let before = part.clone();
            oniguruma::translate_all(&mut part).map_err(|reason| Error::invalid_file(path, reason))?;
            translated.extend((part != before).then_some((key, part)));
        }
    }
    let read = || {
        if translated.is_empty() {
            return serde_json::from_slice(bytes);
        }
        let mut json: Value = serde_json::from_slice(bytes)?;
        for (key, part) in translated {
            json[key] = part;
        }
        serde_json::from_value(json)
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(inner)) => Ok(inner),
        Ok(Err(e)) => Err(invalid(&format!("it does not read as a tokenizer ({e})"))),
        Err(_) => Err(invalid("it is damaged in a way that its reader does not survive")),
    }
}

/// How many arrays and objects of a JSON text lie inside each other.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut inside, mut escaped) = (0usize, 0, false, false);
    for byte in json {
        match (inside, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => inside = !inside,
            (false, b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_texts_are_no_depth() {
        for (json, expected) in [
            ("7", 0),
            ("{}", 1),
            (r#"{"a": [1, [2]], "b": []}"#, 3),
            ("[[[]], [[[[]]]], []]", 5),
            (r#"{"a[{": "[[[{{{"}"#, 1),
            (r#"["\"[[[", "\\", [], "[\\\"["]"#, 2),
            ("]]}}[", 1),
        ] {
            assert_eq!(depth(json.as_bytes()), expected, "{json}");
        }
    }

    #[test]
    fn a_value_ends_where_it_ends() {
        for (json, expected) in [
            ("7,8", Some(("7", ",8"))),
            ("null}", Some(("null", "}"))),
            (r#""a,\"}]" ,"#, Some((r#""a,\"}]""#, " ,"))),
            (r#""\\","b""#, Some((r#""\\""#, r#","b""#))),
            (r#"{"a":"}]","b":[{}]},7"#, Some((r#"{"a":"}]","b":[{}]}"#, ",7"))),
            ("[[],[1]]}", Some(("[[],[1]]", "}"))),
            ("[[]", None),
            (r#""a"#, None),
            (r#""a\""#, None),
            ("]", None),
            ("", None),
        ] {
            assert_eq!(value(json), expected, "{json}");
        }
    }
}
