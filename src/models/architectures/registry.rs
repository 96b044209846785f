//! The families that this process knows: those of this crate, and those that a program adds.

use serde_json::Value;

use super::family::{Family, GgufFamily, ModelKind, ReadGguf};
use super::{albert, bert, distilbert, gpt2, jina_bert, llama, modernbert, mpnet, rotary_bert};
use crate::sync::Mutex;
use crate::{Error, Result};

/// The families of this crate.
static BUILT_IN: [&[Family]; 9] = [
    bert::FAMILIES,
    modernbert::FAMILIES,
    rotary_bert::FAMILIES,
    jina_bert::FAMILIES,
    mpnet::FAMILIES,
    distilbert::FAMILIES,
    albert::FAMILIES,
    llama::FAMILIES,
    gpt2::FAMILIES,
];

/// Those that a program added.
static ADDED: Mutex<Vec<&'static Family>> = Mutex::new(Vec::new());

/// The families that this process knows.
pub fn families() -> Vec<&'static Family> {
    BUILT_IN.iter().copied().flatten().chain(ADDED.lock().iter().copied()).collect()
}

/// The family of a `model_type`.
pub fn find(model_type: &str) -> Option<&'static Family> {
    families().into_iter().find(|family| family.model_type == model_type)
}

/// The family of a `config.json`: the one whose class `auto_map` names as the model's, for files that call their model by
/// the name of a family that it was derived from; else that of its `model_type`.
pub fn find_config(config: &Value) -> Option<&'static Family> {
    let class = config["auto_map"]["AutoModel"].as_str().and_then(|class| class.rsplit('.').next());
    let own = |family: &&Family| class.and_then(|class| class.strip_suffix("Model")) == Some(family.classes);
    families().into_iter().find(own).or_else(|| find(config["model_type"].as_str()?))
}

/// The family of the GGUF files of an architecture that can be used so, and their reader.
pub fn find_gguf(architecture: &str, kind: ModelKind) -> Option<(&'static Family, ReadGguf)> {
    let is_one = |gguf: &GgufFamily| gguf.architecture == architecture && gguf.serves(kind);
    let family = families().into_iter().find(|family| family.gguf.iter().any(is_one))?;
    Some((family, family.read_gguf?))
}

/// The names of the families that can be used so, for messages.
pub(crate) fn names(kind: ModelKind) -> String {
    let chosen: Vec<_> =
        families().into_iter().filter(|family| family.serves(kind)).map(|family| family.model_type).collect();
    chosen.join(", ")
}

/// The names of the GGUF files that can be used so, for messages.
pub(crate) fn gguf_names(kind: ModelKind) -> String {
    let all = families().into_iter().flat_map(|family| family.gguf);
    let chosen: Vec<_> = all.filter(|gguf| gguf.serves(kind)).map(|gguf| gguf.architecture).collect();
    chosen.join(", ")
}

/// Adds a family for the rest of the process.
///
/// # Errors
/// [`Error::Argument`] when there is one of this `model_type`.
pub fn register(family: &'static Family) -> Result<()> {
    let mut added = ADDED.lock();
    let known = BUILT_IN.iter().copied().flatten().chain(added.iter().copied());
    if known.into_iter().any(|known| known.model_type == family.model_type) {
        return Err(Error::argument(
            "model_type",
            format!("there is an architecture {:?} already", family.model_type),
        ));
    }
    added.push(family);
    Ok(())
}
