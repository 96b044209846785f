//! The tensors of a model with those of an adapter.

use std::path::Path;

use super::adapters::adapter::{Adapter, Base, OwnAdapter, is_pooler};
use super::adapters::config::PeftConfig;
use super::adapters::own::{OwnAdapters, unknown_adapter};
use super::architectures::ModelKind;
use super::manifest::WeightFiles;
use super::unread::left;
use super::weights::Weights;
use crate::{Error, Result};

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
