//! The architectures that this crate runs, by the names that files give them.
//!
//! An architecture is one file: what its configuration says, and the names of its tensors. [`Transformer`] makes vectors
//! and logits of both, on any [`Backend`](crate::compute::Backend). To add one, write its file and name its
//! [`Family`] in [`BUILT_IN`]; a program adds its own with [`register`].

mod bert;
mod gpt2;
mod llama;
mod llama_gguf;
mod tensors;
mod transformer;

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::gguf::Gguf;
use crate::sync::Mutex;
use crate::{Error, Result};

pub(crate) use llama_gguf::GgufTensors;
pub use tensors::{Biased, EmbeddingTensors, LayerTensors, NormTensors, Tensors};
pub use transformer::{Architecture, Description, Transformer};

/// What a model is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Texts to vectors.
    Embedding,
    /// Text to more text.
    Generator,
}

/// The families of this crate.
static BUILT_IN: [&[Family]; 3] = [bert::FAMILIES, gpt2::FAMILIES, llama::FAMILIES];

/// Those that a program added.
static ADDED: Mutex<Vec<&'static Family>> = Mutex::new(Vec::new());

/// Models of one `model_type`, and how their configuration is read.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// `model_type` of `config.json`, and `general.architecture` of a GGUF file.
    pub model_type: &'static str,
    /// What the names of its classes in transformers begin with.
    pub classes: &'static str,
    /// The keys of `config.json` that [`read`](Self::read) reads. Others are refused unless they are harmless.
    pub keys: &'static [&'static str],
    /// Whether its models embed text.
    pub embeds: bool,
    /// Whether its models write text.
    pub generates: bool,
    /// Whether a model without a chat template gets one of bare turns, each ended by the end-of-text token.
    pub bare_turns: bool,
    /// Reads `config.json`.
    pub read: fn(&ConfigFile<'_>) -> Result<Box<dyn Architecture>>,
    /// Reads a GGUF file.
    pub gguf: Option<GgufFamily>,
}

/// Models of one `general.architecture`.
#[derive(Debug, Clone, Copy)]
pub struct GgufFamily {
    /// Whether they are read as sentence models too.
    pub embeds: bool,
    /// Reads the metadata.
    pub read: ReadGguf,
}

/// Reads the metadata of a GGUF file.
pub type ReadGguf = fn(&Gguf) -> Result<Box<dyn Architecture>>;

/// A model's `config.json`.
#[derive(Debug, Clone, Copy)]
pub struct ConfigFile<'a> {
    /// The source, as messages name it.
    pub model: &'a str,
    /// Where the file is.
    pub path: &'a Path,
    /// What it says, without nulls.
    pub json: &'a Value,
}

impl ConfigFile<'_> {
    /// Reads the fields of `T`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the field that is missing or of another type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(self.json).map_err(|error| Error::InvalidFile {
            path: self.path.to_path_buf(),
            reason: format!("it does not describe its model: {error}"),
        })
    }

    /// The error for what this crate cannot compute.
    pub fn unsupported(&self, reason: impl Into<String>) -> Error {
        Error::Unsupported { model: self.model.into(), reason: reason.into() }
    }
}

impl Family {
    /// Whether its models can be used so.
    pub fn serves(&self, kind: Kind) -> bool {
        match kind {
            Kind::Embedding => self.embeds,
            Kind::Generator => self.generates,
        }
    }

    /// The reader of its GGUF files for this use.
    pub fn gguf_reader(&self, kind: Kind) -> Option<ReadGguf> {
        let gguf = self.gguf?;
        (self.serves(kind) && (kind == Kind::Generator || gguf.embeds)).then_some(gguf.read)
    }
}

/// The families that this process knows.
pub fn families() -> Vec<&'static Family> {
    BUILT_IN.iter().copied().flatten().chain(ADDED.lock().iter().copied()).collect()
}

/// The family of a `model_type`.
pub fn find(model_type: &str) -> Option<&'static Family> {
    families().into_iter().find(|family| family.model_type == model_type)
}

/// The names of the families that `choose` chooses, for messages.
pub(crate) fn names(choose: impl Fn(&Family) -> bool) -> String {
    let chosen: Vec<_> =
        families().into_iter().filter(|family| choose(family)).map(|family| family.model_type).collect();
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
