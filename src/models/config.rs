//! What a model's configuration says, read by its family.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::adapters::adapter::Adapter;
use super::adapters::config::PeftConfig;
use super::adapters::own::{OwnAdapters, unknown_adapter};
use super::architectures::{self, Architecture, ConfigFile, Description, Family, ModelKind};
use super::formats::gguf::Gguf;
use super::json::read_config;
use super::keys::check_config;
use super::manifest::{ModelAdapter, ModelFiles, WeightFiles};
use super::text_part::{check_whole, text_part};
use super::weights::Weights;
use crate::{Error, Result};

/// What `config.json` or the metadata of a GGUF file says.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The source, as messages name it.
    pub model: String,
    /// The family of its architecture.
    pub family: &'static Family,
    /// What it is used for.
    pub kind: ModelKind,
    /// What it is made of.
    pub architecture: Arc<dyn Architecture>,
    /// The file, for messages.
    pub path: PathBuf,
    /// `config.json`; null for a GGUF file.
    pub json: Value,
    /// The one file that is the whole model.
    pub gguf: Option<Arc<Gguf>>,
}

impl ModelConfig {
    /// Reads the configuration of a model that is to be used so.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] when it is damaged or names no architecture, [`Error::Unsupported`] naming what is not
    /// supported, and what is.
    pub fn read(files: &ModelFiles, kind: ModelKind) -> Result<Self> {
        match &files.weights {
            WeightFiles::Gguf(_) => Self::from_gguf(files, kind),
            _ => Self::from_json(files, kind),
        }
    }

    fn from_json(files: &ModelFiles, kind: ModelKind) -> Result<Self> {
        let path = files.transformer.join("config.json");
        let (family, json) = Self::family_of(&files.model, &path, &read_config(&path)?, kind)?;
        let file = ConfigFile { model: &files.model, path: &path, json: &json };
        let architecture = family.read_config(&file)?.into();
        Ok(Self { model: files.model.clone(), family, kind, architecture, json, path, gguf: None })
    }

    /// The family of a `config.json` that is to be used so, if it reads all of its keys, and what the file says of it: all, or
    /// of a model that reads images too, what belongs to its text model.
    ///
    /// # Errors
    /// [`Error::InvalidFile`], [`Error::Unsupported`] with the reason.
    pub fn family_of(
        model: &str,
        path: &Path,
        whole: &Value,
        kind: ModelKind,
    ) -> Result<(&'static Family, Value)> {
        let json = text_part(whole.clone());
        if json != *whole {
            check_whole(model, path, whole)?;
        }
        let Some(model_type) = json["model_type"].as_str() else {
            return Err(Error::invalid_file(
                path,
                "it has no model_type; it is not the config.json of a transformers model",
            ));
        };
        let found = architectures::find_config(&json);
        let Some(family) = found.filter(|family| family.serves(kind)) else {
            let scores = whole["architectures"]
                .as_array()
                .and_then(|classes| classes.first()?.as_str())
                .is_some_and(|class| class.ends_with("SequenceClassification"));
            let reason = architectures::refusal(model_type, found, kind, scores);
            return Err(Error::Unsupported { model: model.to_owned(), reason });
        };
        check_config(model, path, &json, (family.classes, family.code), &family.accepted_keys())?;
        Ok((family, json))
    }

    fn from_gguf(files: &ModelFiles, kind: ModelKind) -> Result<Self> {
        let gguf = Gguf::open(&files.root)?;
        let name = gguf.text("general.architecture").unwrap_or_default();
        let Some((family, read)) = architectures::find_gguf(name, kind) else {
            let reason = architectures::gguf_refusal(name, kind);
            return Err(Error::Unsupported { model: files.model.clone(), reason });
        };
        let architecture = read(&gguf)?.into();
        gguf.check_asked()?;
        let path = files.root.clone();
        let gguf = Some(Arc::new(gguf));
        Ok(Self { model: files.model.clone(), family, kind, architecture, json: Value::Null, path, gguf })
    }

    /// The tensors of the files that this is the configuration of. A GGUF file is the one that was opened for it.
    ///
    /// # Errors
    /// Those of [`Weights::open`].
    pub fn weights(&self, files: &ModelFiles) -> Result<Weights> {
        let weights = match &self.gguf {
            Some(gguf) => Weights::of_gguf(Arc::clone(gguf)),
            None => Weights::open(&files.weights)?,
        };
        match &files.adapter {
            Some(adapter) => self.adapted(weights, adapter),
            None => Ok(weights),
        }
    }

    /// `weights` with what `adapter` changes.
    fn adapted(&self, weights: Weights, adapter: &ModelAdapter) -> Result<Weights> {
        let is_transposed = |name: &str| self.architecture.stores_transposed(name);
        let weights = match adapter {
            ModelAdapter::Own(name) => match OwnAdapters::read(&self.path, &self.json)? {
                Some(own) => weights.with_own_adapter(&self.path, &own, name)?,
                None => return Err(unknown_adapter(&self.model, name, &[])),
            },
            ModelAdapter::Peft { folder, weights: files, .. } => {
                let config = PeftConfig::read(&self.model, folder)?;
                weights.with_peft(files, &config, &is_transposed)?
            }
        };
        let refused = |reason: String| Err(Error::Unsupported { model: self.model.clone(), reason });
        // The matrix of a masked language model's logits is its table of words, which PEFT then leaves as it was.
        let words = weights.adapter().and_then(Adapter::changes_words);
        if let Some(name) = words.filter(|_| self.kind == ModelKind::Sparse) {
            return refused(format!(
                "its adapter changes {name:?}, the table of words, which is not supported for sparse vectors; train one \
                 without it"
            ));
        }
        // The encoder of T5 refers to the table by another name, and PEFT leaves that one as it was.
        let words = weights.adapter().and_then(Adapter::changes_words_in_place);
        if let Some(name) = words.filter(|_| self.family.model_type.contains("t5")) {
            return refused(format!(
                "its adapter changes {name:?}, the table of words, which PEFT itself does not apply in the encoder of T5; \
                 train one without it"
            ));
        }
        Ok(weights)
    }

    /// The numbers of its architecture.
    pub fn describe(&self) -> Description {
        self.architecture.describe()
    }

    /// Length of an output row of an encoder.
    pub fn output_width(&self) -> usize {
        self.architecture.output_width()
    }

    /// The longest sequence that the positions of the model allow.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] when they leave no room for a token.
    pub fn positions(&self) -> Result<usize> {
        Some(self.describe().context)
            .filter(|&n| n > 0)
            .ok_or_else(|| Error::invalid_file(&self.path, "max_position_embeddings is missing or too small"))
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
