//! What an adapter changes: its tensors, gathered by the tensors of the model that they belong to.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::config::PeftConfig;
use super::low_rank::{LowRank, Magnitude, turned};
use crate::compute::Weight;
use crate::{Error, Result};

/// What becomes of one tensor of the model.
#[derive(Debug)]
pub(super) enum Change {
    /// A product of low rank is added to a matrix.
    LowRank(LowRankTensors),
    /// A vector is added to a bias.
    Shift { shift: Weight, scale: f32 },
    /// Another tensor takes its place. A copy that was trained does so in its module alone; else whatever shares the
    /// parameter has it, too.
    Whole { weight: Weight, copy: bool },
}

/// The tensors of a change of low rank, as they are stored.
#[derive(Debug)]
pub(super) struct LowRankTensors {
    pub(super) layout: Layout,
    pub(super) a: Weight,
    pub(super) b: Weight,
    pub(super) scale: f32,
    pub(super) magnitude: Option<Weight>,
    /// Whether the model stores its matrix as `[inputs, outputs]`.
    pub(super) transposed: bool,
}

/// How the two matrices of a change are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Of a linear layer: `a` is `[rank, inputs]`, `b` `[outputs, rank]`.
    Linear,
    /// Of an embedding, by PEFT: `a` is `[rank, rows]`, `b` `[width, rank]`.
    Embedding,
    /// Of an embedding, by Jina: `a` is `[rows, rank]`, `b` `[rank, width]`.
    EmbeddingInOrder,
}

impl LowRankTensors {
    /// The rank that `a` has.
    pub(super) fn rank_of(layout: Layout, a: &[usize]) -> usize {
        let place = usize::from(layout == Layout::EmbeddingInOrder);
        a.get(place).copied().unwrap_or(0)
    }

    /// Checks that it fits a base of `shape`.
    ///
    /// # Errors
    /// Which of its tensors has which shape, and which one was expected.
    pub(super) fn check(&self, shape: &[usize]) -> Result<(), String> {
        let rank = Self::rank_of(self.layout, self.a.shape());
        let &[rows, columns] = shape else {
            return Err(format!("is of a tensor of shape {shape:?}, which is no matrix"));
        };
        let (outputs, inputs) = if self.transposed { (columns, rows) } else { (rows, columns) };
        let (a, b, length) = match self.layout {
            Layout::Linear => ([rank, inputs], [outputs, rank], outputs),
            Layout::Embedding => ([rank, rows], [columns, rank], columns),
            Layout::EmbeddingInOrder => ([rows, rank], [rank, columns], columns),
        };
        for (name, found, expected) in [("A", self.a.shape(), a), ("B", self.b.shape(), b)] {
            if found != expected {
                return Err(format!(
                    "has the matrix {name} of shape {found:?} where a base of shape {shape:?} asks for {expected:?}"
                ));
            }
        }
        match &self.magnitude {
            Some(magnitude) if magnitude.shape() != [length] => Err(format!(
                "has magnitudes of shape {:?} where a base of shape {shape:?} asks for [{length}]",
                magnitude.shape()
            )),
            _ => Ok(()),
        }
    }

    /// `base` with the change, in float32.
    ///
    /// # Errors
    /// Those of reading; [`Error::OutOfMemory`].
    pub(super) fn apply(&self, base: &Weight) -> Result<Weight> {
        let rank = Self::rank_of(self.layout, self.a.shape());
        let (a, b) = (self.a.to_f32()?, self.b.to_f32()?);
        let magnitude = self.magnitude.as_ref().map(Weight::to_f32).transpose()?;
        let (left, right) = match (self.layout, self.transposed) {
            (Layout::Linear, false) => (b, turned(&a, self.a.columns())),
            (Layout::Linear, true) | (Layout::Embedding, _) => (turned(&a, self.a.columns()), b),
            (Layout::EmbeddingInOrder, _) => (a, turned(&b, self.b.columns())),
        };
        let by_rows = self.layout == Layout::Linear && !self.transposed;
        let magnitude = magnitude.map(if by_rows { Magnitude::Rows } else { Magnitude::Columns });
        LowRank { left, right, rank, scale: self.scale, magnitude }.apply(base)
    }
}

/// `base` and `scale` times `shift`, in float32.
pub(super) fn shifted(base: &Weight, shift: &Weight, scale: f32) -> Result<Weight> {
    let mut sum = base.to_f32()?;
    sum.iter_mut().zip(shift.to_f32()?).for_each(|(x, shift)| *x += scale * shift);
    Weight::from_f32(&sum, base.shape())
}

/// A change, and the name of the tensor that it is for, as the adapter's own model calls it.
#[derive(Debug)]
pub(super) struct NamedChange {
    pub(super) name: String,
    pub(super) change: Change,
}

/// The tensors of one module.
#[derive(Default)]
struct ModuleTensors {
    linear: [Option<Weight>; 2],
    embedding: [Option<Weight>; 2],
    shift: Option<Weight>,
    magnitude: Option<Weight>,
}

/// Gathers the tensors of a file of PEFT.
///
/// # Errors
/// [`Error::InvalidFile`] naming the tensor that is not understood, or whose counterpart is missing.
pub(super) fn of_peft(
    path: &Path,
    config: &PeftConfig,
    tensors: BTreeMap<String, Weight>,
) -> Result<Vec<NamedChange>> {
    let invalid = |name: &str, reason: &str| {
        Error::invalid_file(path, format!("the tensor {name:?} of the adapter {reason}"))
    };
    let names: HashSet<String> = tensors.keys().cloned().collect();
    let mut modules: BTreeMap<String, ModuleTensors> = BTreeMap::new();
    let mut changes = Vec::new();
    for (name, weight) in tensors {
        let own = name.strip_prefix("base_model.model.").unwrap_or(&name);
        let place = SUFFIXES.iter().find_map(|(suffix, part)| Some((own.strip_suffix(suffix)?, *part)));
        let Some((module, part)) = place else {
            if own.contains(".lora_") || own.starts_with("lora_") {
                return Err(invalid(&name, "is of a kind that this package does not know"));
            }
            // With `bias="all"`, PEFT saves the biases of a copy three times. That of the original module is not used.
            let plain = own.replace(".modules_to_save.", ".");
            let again =
                plain != own && names.contains(&format!("{}{plain}", &name[..name.len() - own.len()]));
            if again || own.contains(".original_module.") {
                continue;
            }
            let own = plain.replace(".base_layer.", ".");
            let (module, parameter) = own.rsplit_once('.').unwrap_or(("", &own));
            let copy = config.saves(module);
            // PEFT saves the whole of a head that it changes, with a bias that was not trained, too.
            let of_head = plain.contains(".base_layer.");
            if parameter == "bias" && !copy && !of_head && !config.trains_biases() {
                return Err(invalid(
                    &name,
                    "is a bias, though adapter_config.json says that none was trained",
                ));
            }
            changes.push(NamedChange { name: own.clone(), change: Change::Whole { weight, copy } });
            continue;
        };
        let parts = modules.entry(module.to_owned()).or_default();
        let place = match part {
            TensorPart::Linear(index) => &mut parts.linear[index],
            TensorPart::Embedding(index) => &mut parts.embedding[index],
            TensorPart::Shift if config.lora_bias => &mut parts.shift,
            TensorPart::Magnitude if config.use_dora => &mut parts.magnitude,
            TensorPart::Shift | TensorPart::Magnitude => {
                return Err(invalid(&name, "is not announced by adapter_config.json (lora_bias, use_dora)"));
            }
        };
        if place.replace(weight).is_some() {
            return Err(invalid(&name, "is there twice"));
        }
    }
    for (module, parts) in modules {
        let missing = |which: &str| invalid(&module, &format!("has no {which}"));
        let ModuleTensors { linear: [a, b], embedding: [rows, widths], shift, magnitude } = parts;
        let (layout, a, b) = match (a, b, rows, widths) {
            (Some(a), Some(b), None, None) => (Layout::Linear, a, b),
            (None, None, Some(a), Some(b)) => (Layout::Embedding, a, b),
            (None, ..) => return Err(missing("lora_A")),
            _ => return Err(missing("lora_B")),
        };
        let rank = LowRankTensors::rank_of(layout, a.shape());
        if a.shape().len() != 2 || rank == 0 {
            return Err(invalid(
                &module,
                &format!("has a lora_A of shape {:?}, which is no matrix", a.shape()),
            ));
        }
        let scale = config.scale(&module, rank).map_err(|reason| invalid(&module, &reason))?;
        if config.use_dora && magnitude.is_none() {
            return Err(missing("lora_magnitude_vector, which use_dora announces"));
        }
        if config.lora_bias && layout == Layout::Linear {
            let shift = shift.ok_or_else(|| missing("lora_B.bias, which lora_bias announces"))?;
            changes
                .push(NamedChange { name: format!("{module}.bias"), change: Change::Shift { shift, scale } });
        }
        let tensors = LowRankTensors { layout, a, b, scale, magnitude, transposed: false };
        changes.push(NamedChange { name: format!("{module}.weight"), change: Change::LowRank(tensors) });
    }
    Ok(changes)
}

/// What a tensor of a module is.
#[derive(Debug, Clone, Copy)]
enum TensorPart {
    Linear(usize),
    Embedding(usize),
    Shift,
    Magnitude,
}

/// How the names of the tensors of a module end.
const SUFFIXES: [(&str, TensorPart); 7] = [
    (".lora_A.weight", TensorPart::Linear(0)),
    (".lora_B.weight", TensorPart::Linear(1)),
    (".lora_embedding_A", TensorPart::Embedding(0)),
    (".lora_embedding_B", TensorPart::Embedding(1)),
    (".lora_B.bias", TensorPart::Shift),
    (".lora_magnitude_vector", TensorPart::Magnitude),
    (".lora_magnitude_vector.weight", TensorPart::Magnitude),
];

/// How the names of the tensors end that the code of Jina's third embedding model stores in place of a weight: the weight, and
/// two matrices for each adapter.
const ORIGINAL: &str = ".parametrizations.weight.original";
const OWN_PARTS: [&str; 2] = [".parametrizations.weight.0.lora_A", ".parametrizations.weight.0.lora_B"];

/// The name under which such a file stores the tensor `name`.
pub(crate) fn original_name(name: &str) -> Option<String> {
    name.strip_suffix(".weight").map(|module| format!("{module}{ORIGINAL}"))
}

/// Whether the tensor belongs to an adapter of such a file.
pub(crate) fn is_own_part(name: &str) -> bool {
    OWN_PARTS.iter().any(|part| name.ends_with(part))
}

/// The changes of adapter number `index` of a file that has several of its own. `names` are those of its tensors.
///
/// # Errors
/// [`Error::InvalidFile`] naming the tensor whose shape says something else than `count` adapters of `rank`.
pub(super) fn of_own<'a>(
    names: impl Iterator<Item = &'a str>,
    tensor: &dyn Fn(&str) -> Result<Weight>,
    path: &dyn Fn(&str) -> PathBuf,
    (index, count): (usize, usize),
    (rank, scale): (usize, f32),
) -> Result<Vec<NamedChange>> {
    let mut modules: Vec<&str> = names.filter_map(|name| name.strip_suffix(ORIGINAL)).collect();
    modules.sort_unstable();
    let change = |module: &str| {
        let part = |end: &str| -> Result<Weight> {
            let name = format!("{module}{end}");
            let all = tensor(&name)?;
            let &[adapters, rows, columns] = all.shape() else {
                let reason = format!("the tensor {name:?} has shape {:?}, not three dimensions", all.shape());
                return Err(Error::invalid_file(path(&name), reason));
            };
            if adapters != count {
                let reason = format!(
                    "the tensor {name:?} has shape {:?}, where config.json names {count} adapters",
                    all.shape()
                );
                return Err(Error::invalid_file(path(&name), reason));
            }
            Ok(all.slice_rows(index..index + 1).reshaped(&[rows, columns]))
        };
        let (a, b) = (part(OWN_PARTS[0])?, part(OWN_PARTS[1])?);
        // Both kinds of layers have the rank where the other one has the size of the layer.
        let embeds = module.ends_with("_embeddings");
        let layout = if embeds { Layout::EmbeddingInOrder } else { Layout::Linear };
        let found = LowRankTensors::rank_of(layout, a.shape());
        if found != rank {
            let name = format!("{module}{}", OWN_PARTS[0]);
            let reason = format!(
                "the tensor {name:?} has shape {:?}, where config.json says lora_rank {rank}",
                a.shape()
            );
            return Err(Error::invalid_file(path(&name), reason));
        }
        let tensors = LowRankTensors { layout, a, b, scale, magnitude: None, transposed: false };
        Ok(NamedChange { name: format!("{module}{ORIGINAL}"), change: Change::LowRank(tensors) })
    };
    modules.into_iter().map(change).collect()
}
