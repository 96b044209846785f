//! The tensors of a model with those of an adapter.

use std::path::Path;

use super::adapters::adapter::{Adapter, Base, HEADS, OwnAdapter, is_pooler};
use super::adapters::config::PeftConfig;
use super::adapters::own::{OwnAdapters, unknown_adapter};
use super::architectures::ModelKind;
use super::manifest::{ModelAdapter, ModelFiles, WeightFiles, metadata};
use super::unread::left;
use super::weights::{Weights, elements};
use crate::compute::WeightFormat;
use crate::compute::linear::GROUP;
use crate::{Error, Result};

impl ModelFiles {
    /// The memory that the model takes in this format, known before it is loaded: all floating-point elements at that
    /// width, plus twelve times the tokenizer's file for its tables (measured: 8 MB for 0.5 MB of WordPiece, 94 MB for
    /// 8.6 MB of Unigram).
    ///
    /// # Errors
    /// As for reading the weights' header.
    pub fn expected_bytes(&self, format: WeightFormat) -> Result<u64> {
        if let WeightFiles::Gguf(parts) = &self.weights {
            // Quantized weights stay as they are. The tokenizer's tables take about as much as the file's metadata.
            return parts.iter().map(|path| Ok(metadata(path)?.len())).sum();
        }
        let tokenizer = ["tokenizer.json", "vocab.txt"]
            .iter()
            .find_map(|name| self.beside_weights(name))
            .map_or(Ok(0), |path| metadata(&path).map(|meta| meta.len()))?;
        if self.static_form()?.is_some() {
            // Its table stays in its file; it has two numbers for each token in memory, whose file has at least two bytes.
            return Ok(16 * tokenizer);
        }
        let own = elements(&self.weights)? * format.group_bytes() / GROUP as u64;
        Ok(own + added_bytes(self)? + 12 * tokenizer)
    }
}

/// The bytes of what an adapter makes larger: a table of words that it changes is held in float32, and a matrix of logits that
/// was the table is one of its own.
///
/// # Errors
/// Those of [`Weights::open`].
pub(crate) fn added_bytes(files: &ModelFiles) -> Result<u64> {
    let Some(adapter) = &files.adapter else { return Ok(0) };
    let tables = match adapter {
        ModelAdapter::Own(_) => {
            let weights = Weights::open(&files.weights)?;
            let tables = weights.names().filter(|name| name.ends_with(OWN_TABLE));
            tables.filter_map(|name| weights.shape(name)).map(|shape| shape.iter().product()).collect()
        }
        ModelAdapter::Peft { weights, .. } => {
            let (own, base) = (Weights::open(weights)?, Weights::open(&files.weights)?);
            let size = |name: &str| {
                let (module, ends) = match name.strip_suffix(".lora_embedding_A") {
                    Some(module) => (module, [".lora_embedding_A", ".lora_embedding_B"]),
                    None => (name.strip_suffix(".lora_A.weight")?, [".lora_A.weight", ".lora_B.weight"]),
                };
                let matrix = format!("{module}.weight");
                let head = HEADS.into_iter().find(|head| matrix.ends_with(head));
                let is_head = head.is_some_and(|head| !base.names().any(|name| name.ends_with(head)));
                if ends[0] != ".lora_embedding_A" && !is_head {
                    return None;
                }
                let (a, b) = (own.shape(name)?, own.shape(&format!("{module}{}", ends[1]))?);
                Some(a.get(1)? * b.first()?)
            };
            own.names().filter_map(size).collect::<Vec<usize>>()
        }
    };
    Ok(tables.into_iter().map(|size| 4 * size as u64).sum())
}

/// How tables end in files with adapters of their own.
const OWN_TABLE: &str = "_embeddings.parametrizations.weight.original";

/// The tensors of a model without its adapter.
struct StoredBase<'a> {
    weights: &'a Weights,
    is_transposed: &'a dyn Fn(&str) -> bool,
}

impl Base for StoredBase<'_> {
    fn stored_name(&self, name: &str) -> Result<Option<String>, String> {
        self.weights.stored_name(name)
    }

    fn shape(&self, stored: &str) -> Vec<usize> {
        self.weights.shape(stored).unwrap_or_default().to_vec()
    }

    fn is_transposed(&self, stored: &str) -> bool {
        (self.is_transposed)(stored)
    }
}

impl Weights {
    /// The same tensors, changed by the adapter of PEFT in `files`. `is_transposed` says which matrices are stored as
    /// `[inputs, outputs]`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the tensor of the adapter that is not understood, or that does not fit.
    pub(crate) fn with_peft(
        self,
        files: &WeightFiles,
        config: &PeftConfig,
        is_transposed: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        let own = Self::open(files)?;
        let tensors = own.names().map(|name| Ok((name.to_owned(), own.unchanged(name)?)));
        let tensors = tensors.collect::<Result<_>>()?;
        let adapter =
            Adapter::of_peft(own.path(), config, tensors, &StoredBase { weights: &self, is_transposed })?;
        Ok(self.with_adapter(adapter, Some(&own)))
    }

    /// The same tensors, changed by the one of the file's own adapters that is called `name`. `path` is that of
    /// `config.json`, which `own` was read from.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that there is not, [`Error::InvalidFile`] naming a tensor of another shape.
    pub(crate) fn with_own_adapter(self, path: &Path, own: &OwnAdapters, name: &str) -> Result<Self> {
        let index = own.names.iter().position(|own| own == name);
        let index = index.ok_or_else(|| unknown_adapter(&path.display().to_string(), name, &own.names))?;
        let meant = OwnAdapter {
            index,
            count: own.names.len(),
            rank: own.rank,
            scale: own.scale(),
            names: self.names().collect(),
            tensor: &|name: &str| self.unchanged(name),
            path: &|name: &str| self.path_of(name).to_path_buf(),
        };
        let adapter =
            Adapter::of_own(self.path(), &meant, &StoredBase { weights: &self, is_transposed: &|_| false })?;
        Ok(self.with_adapter(adapter, None))
    }

    /// Checks, after the network and its head were made, that every tensor of the adapter was used. As for the model's own,
    /// parts without a tensor that was read may be left: a pooler, a head for another use than `kind`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the first that was not.
    pub(crate) fn check_adapter_read(&self, kind: ModelKind) -> Result<()> {
        let Some(adapter) = self.adapter() else { return Ok(()) };
        let (path, names) = (adapter.path(), || adapter.names().map(|(name, _)| name));
        if let Some(name) = self.first_left(names()) {
            return Err(left(path, name, "the base model's config.json"));
        }
        let of_other_use = |name: &str| match kind {
            ModelKind::Classifier => name.ends_with("lm_head.weight"),
            ModelKind::Generator => false,
            ModelKind::Embedding | ModelKind::Sparse => {
                is_pooler(name) || ["lm_head", "score", "classifier"].iter().any(|head| name.contains(head))
            }
        };
        let unused = adapter.names().filter(|(name, is_new)| *is_new && !self.was_read(name));
        if let Some((name, _)) = unused.filter(|(name, _)| !of_other_use(name)).min() {
            return Err(left(path, name, "the base model's config.json"));
        }
        if names().any(|name| self.was_read(name)) {
            return Ok(());
        }
        Err(Error::invalid_file(path, "it changes no tensor that this use of the model reads"))
    }
}
