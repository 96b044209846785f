//! The changes of one model, by the names under which its files store the tensors.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::change::{Change, LowRankTensors, NamedChange, of_own, of_peft, shifted};
use super::config::PeftConfig;
use crate::compute::{Matrix, Weight};
use crate::{Error, Result};

/// What an adapter needs to know of the model that it changes.
pub(crate) trait Base {
    /// The stored name of a tensor that the adapter's own model calls so, if the files have one.
    ///
    /// # Errors
    /// Why it is not clear which one it is.
    fn stored_name(&self, name: &str) -> Result<Option<String>, String>;

    /// The shape of a stored tensor.
    fn shape(&self, stored: &str) -> Vec<usize>;

    /// Whether a matrix is stored as `[inputs, outputs]`.
    fn is_transposed(&self, stored: &str) -> bool;
}

/// The adapters that the files of a model have of their own, one of which is meant.
pub(crate) struct OwnAdapter<'a> {
    /// Its number, and how many there are.
    pub(crate) index: usize,
    pub(crate) count: usize,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
    /// The names of all tensors.
    pub(crate) names: Vec<&'a str>,
    /// Reads a tensor.
    pub(crate) tensor: &'a dyn Fn(&str) -> Result<Weight>,
    /// The file of a tensor.
    pub(crate) path: &'a dyn Fn(&str) -> PathBuf,
}

/// An adapter whose tensors were compared with those of its base.
#[derive(Debug)]
pub(crate) struct Adapter {
    path: PathBuf,
    changes: HashMap<String, TensorChanges>,
    /// Whether numbers are computed; else shapes alone are right.
    computes: bool,
}

/// All changes of one tensor.
#[derive(Debug, Default)]
pub(crate) struct TensorChanges {
    /// It takes the place of the tensor. A copy does so in its module alone.
    whole: Option<(Weight, bool)>,
    low_rank: Option<LowRankTensors>,
    shift: Option<(Weight, f32)>,
    /// Whether the files of the model have no such tensor.
    is_new: bool,
}

/// Ends of names of matrices that models share with their table of words: they have no tensor of their own then.
pub(crate) const HEADS: [&str; 2] = ["lm_head.weight", "embed_out.weight"];

/// What the modules of tables of words are called.
const WORDS: [&str; 6] = ["word_embeddings", "tok_embeddings", "embed_tokens", "embed_in", "wte", "shared"];

/// Whether the tensor is a table of words. Tables of positions are none, nor is the norm after all of them.
fn is_words(name: &str) -> bool {
    name.split('.').any(|word| WORDS.contains(&word))
}

/// Whether the tensor is one of the layer that BERT and its kin put after the first token's state.
pub(crate) fn is_pooler(name: &str) -> bool {
    name.split('.').any(|word| word == "pooler")
}

impl Adapter {
    /// The adapter of a file of PEFT. `tensors` are those of the file `path`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the tensor that is not understood or does not fit, and both shapes.
    pub(crate) fn of_peft(
        path: &Path,
        config: &PeftConfig,
        tensors: BTreeMap<String, Weight>,
        base: &dyn Base,
    ) -> Result<Self> {
        Self::new(path, of_peft(path, config, tensors)?, base)
    }

    /// One of the adapters that the files of a model have of their own.
    ///
    /// # Errors
    /// As [`Adapter::of_peft`].
    pub(crate) fn of_own(path: &Path, own: &OwnAdapter<'_>, base: &dyn Base) -> Result<Self> {
        let changes = of_own(
            own.names.iter().copied(),
            own.tensor,
            own.path,
            (own.index, own.count),
            (own.rank, own.scale),
        )?;
        Self::new(path, changes, base)
    }

    fn new(path: &Path, found: Vec<NamedChange>, base: &dyn Base) -> Result<Self> {
        let mut changes: HashMap<String, TensorChanges> = HashMap::new();
        for NamedChange { name, change } in found {
            let invalid = |reason: String| {
                Error::invalid_file(path, format!("the adapter's change of the tensor {name:?} {reason}"))
            };
            let stored = base.stored_name(&name).map_err(invalid)?;
            let shape = stored.as_deref().map(|stored| base.shape(stored));
            let is_new = stored.is_none();
            let has_place = match &change {
                Change::Whole { copy: true, .. } => true,
                // Vectors are made without a pooler, and many files have none.
                _ => is_pooler(&name) || HEADS.iter().any(|head| name.ends_with(head)),
            };
            if is_new && matches!(change, Change::Shift { .. }) && Self::has_matrix(&name, base) {
                let reason = "is a bias (lora_bias), and the base model's layer has none, so it would not be computed; train \
                              the adapter without lora_bias";
                return Err(invalid(reason.into()));
            }
            if is_new && !has_place {
                let reason = "is for none of the base model's tensors: it was trained on another model";
                return Err(invalid(reason.into()));
            }
            let stored = stored.unwrap_or_else(|| name.clone());
            let all = changes.entry(stored.clone()).or_default();
            all.is_new = is_new;
            let twice = match change {
                Change::LowRank(mut tensors) => {
                    tensors.transposed = base.is_transposed(&stored);
                    all.low_rank.replace(tensors).is_some()
                }
                Change::Shift { shift, scale } => all.shift.replace((shift, scale)).is_some(),
                Change::Whole { weight, copy } => {
                    // A copy of a head may have other labels than that of the base.
                    let fits = |shape: &Vec<usize>| match (copy, weight.shape(), shape.as_slice()) {
                        (true, [_, rest @ ..], [_, own @ ..]) => rest == own,
                        (_, found, shape) => found == shape,
                    };
                    if let Some(shape) = shape.as_ref().filter(|shape| !fits(shape)) {
                        let reason = format!(
                            "has shape {:?} where the base's has {shape:?}; resize the base model first, and save it",
                            weight.shape()
                        );
                        return Err(invalid(reason));
                    }
                    all.whole.replace((weight, copy)).is_some()
                }
            };
            if twice {
                return Err(invalid("is there twice".into()));
            }
        }
        // In order: of several faults, always the same one is named.
        for (name, all) in changes.iter().collect::<BTreeMap<_, _>>() {
            // What is added is added to the tensor that takes the place of the base's, if there is one.
            let whole = all.whole.as_ref().map(|(weight, _)| weight.shape().to_vec());
            if let Some(shape) = whole.or_else(|| (!all.is_new).then(|| base.shape(name))) {
                all.check(&shape).map_err(|reason| {
                    Error::invalid_file(path, format!("the adapter's change of the tensor {name:?} {reason}"))
                })?;
            }
        }
        if changes.is_empty() {
            return Err(Error::invalid_file(path, "it has no tensors: such an adapter changes nothing"));
        }
        Ok(Self { path: path.to_path_buf(), changes, computes: true })
    }

    /// Whether the base has the matrix of the layer whose bias is called `name`. That of logits may be its table of words.
    fn has_matrix(name: &str, base: &dyn Base) -> bool {
        let matrix = name.strip_suffix(".bias").map(|module| format!("{module}.weight"));
        matrix.is_some_and(|name| {
            HEADS.iter().any(|head| name.ends_with(head)) || matches!(base.stored_name(&name), Ok(Some(_)))
        })
    }

    /// The same for questions about shapes: no sum is computed.
    #[must_use]
    pub(crate) fn without_numbers(self) -> Self {
        Self { computes: false, ..self }
    }

    /// Its file, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The stored names of all tensors that it changes, and whether the base has no such tensor.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, bool)> {
        self.changes.iter().map(|(name, changes)| (name.as_str(), changes.is_new))
    }

    /// The tensor that takes the place of the stored tensor `name`.
    pub(crate) fn whole(&self, name: &str) -> Option<&Weight> {
        self.changes.get(name)?.whole.as_ref().map(|(weight, _)| weight)
    }

    /// The same where all that share the parameter have it.
    pub(crate) fn shared(&self, name: &str) -> Option<&Weight> {
        self.changes.get(name)?.whole.as_ref().filter(|(_, copy)| !copy).map(|(weight, _)| weight)
    }

    /// The table of words, if it is changed.
    pub(crate) fn changes_words(&self) -> Option<&str> {
        self.changes.keys().map(String::as_str).filter(|name| is_words(name)).min()
    }

    /// The table of words, if it is changed in its module alone, not in whatever shares it.
    pub(crate) fn changes_words_in_place(&self) -> Option<&str> {
        let in_place = |changes: &TensorChanges| {
            changes.low_rank.is_some() || changes.whole.as_ref().is_some_and(|(_, copy)| *copy)
        };
        let found = self.changes.iter().filter(|(name, changes)| is_words(name) && in_place(changes));
        found.map(|(name, _)| name.as_str()).min()
    }

    /// The stored tensor `name` with what is added to it.
    ///
    /// # Errors
    /// Those of reading; [`Error::OutOfMemory`].
    pub(crate) fn apply(&self, name: &str, base: Weight) -> Result<Weight> {
        match self.changes.get(name) {
            Some(changes) if self.computes => changes.apply(base),
            _ => Ok(base),
        }
    }

    /// The matrix of logits `head` that is the table of words otherwise, with what is added to it.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] when the shapes do not fit; those of reading.
    pub(crate) fn apply_to_tied(&self, head: &str, words: Weight) -> Result<Matrix> {
        if let Some(tensors) = self.changes.get(head).and_then(|changes| changes.low_rank.as_ref()) {
            tensors.check(words.shape()).map_err(|reason| {
                let reason = format!("the adapter's change of the tensor {head:?} {reason}");
                Error::invalid_file(&self.path, reason)
            })?;
        }
        self.apply(head, words).map(Matrix::Plain)
    }
}

impl TensorChanges {
    /// Checks that what is added fits a tensor of `shape`.
    fn check(&self, shape: &[usize]) -> Result<(), String> {
        if let Some(tensors) = &self.low_rank {
            tensors.check(shape)?;
        }
        match &self.shift {
            Some((shift, _)) if shift.shape() != shape => {
                Err(format!("has shape {:?}, that of the tensor is {shape:?}", shift.shape()))
            }
            _ => Ok(()),
        }
    }

    fn apply(&self, base: Weight) -> Result<Weight> {
        let base = match &self.low_rank {
            Some(tensors) => tensors.apply(&base)?,
            None => base,
        };
        match &self.shift {
            Some((shift, scale)) => shifted(&base, shift, *scale),
            None => Ok(base),
        }
    }
}
