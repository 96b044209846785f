//! Tensors by name, wherever they are stored.
//!
//! Headers are read and checked when files are opened; the numbers of a tensor are read from its file when the tensor is
//! packed. Nothing in such a file is executed.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use super::adapters::adapter::{Adapter, HEADS};
use super::adapters::change::{is_own_part, original_name};
use super::architectures::{GgufTensors, Tensors};
use super::formats::gguf::Gguf;
use super::formats::pickle::{self, Pickled, Storage};
use super::formats::{mxfp4, safetensors};
use super::manifest::WeightFiles;
use super::text_part::{of_images, stored_names};
use super::unread::{ReadTensors, left};
use crate::compute::file::{Bytes, WeightFile};
use crate::compute::linear::{BlockFormat, BlockTensor};
use crate::compute::memory::zeroed;
use crate::compute::{Matrix, Stored, Weight};
use crate::sync::Mutex;
use crate::{Error, Result};

/// The tensors of a model.
pub struct Weights {
    tensors: HashMap<String, TensorEntry>,
    first: PathBuf,
    /// The tensors of a GGUF file, quantized ones included; then `tensors` is empty.
    gguf: Option<Arc<Gguf>>,
    files: Vec<Arc<WeightFile>>,
    /// Members of a PyTorch file whose checksums were compared.
    checked: Mutex<HashSet<Storage>>,
    read: ReadTensors,
    adapter: Option<Adapter>,
    /// Whether only names and shapes count.
    shapes_alone: bool,
}

struct TensorEntry {
    shape: Vec<usize>,
    /// The format, or the name of one that cannot be read.
    dtype: Result<Stored, String>,
    place: Place,
}

enum Place {
    Whole { file: Arc<WeightFile>, range: Range<usize> },
    Pickled { file: Arc<WeightFile>, tensor: Pickled },
}

/// A tensor in any format.
pub(crate) enum StoredTensor {
    /// In a format of weights.
    Plain(Weight),
    /// In another one, called as in its file.
    Other { format: String, bytes: Bytes, shape: Vec<usize> },
}

impl StoredTensor {
    /// Dimensions, outermost first.
    pub(crate) fn shape(&self) -> &[usize] {
        match self {
            Self::Plain(weight) => weight.shape(),
            Self::Other { shape, .. } => shape,
        }
    }

    /// Its file, if its numbers were not read yet.
    pub(crate) fn file(&self) -> Option<Arc<WeightFile>> {
        let bytes = match self {
            Self::Plain(weight) => weight.bytes(),
            Self::Other { bytes, .. } => bytes,
        };
        if let Bytes::File(file, _) = bytes { Some(Arc::clone(file)) } else { None }
    }
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Self::Whole { file, .. } | Self::Pickled { file, .. } => file.path(),
        }
    }
}

impl Weights {
    /// Opens the files and checks their headers: that every tensor is inside its file, has as many bytes as
    /// shape and dtype say, and overlaps no other. The numbers themselves are not read.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for a truncated or damaged file, [`Error::Permission`], [`Error::Io`].
    pub fn open(files: &WeightFiles) -> Result<Self> {
        let (mut tensors, mut opened) = (HashMap::new(), Vec::new());
        match files {
            WeightFiles::Gguf(parts) => {
                let file = Gguf::open(parts.first().map_or(Path::new(""), PathBuf::as_path))?;
                return Ok(Self::of_gguf(Arc::new(file)));
            }
            WeightFiles::Safetensors(paths) => {
                for path in paths {
                    let (file, listed) = open(path, safetensors::tensors)?;
                    tensors.extend(listed.into_iter().map(|tensor| {
                        let place = Place::Whole { file: Arc::clone(&file), range: tensor.range };
                        (tensor.name, TensorEntry { shape: tensor.shape, dtype: tensor.dtype, place })
                    }));
                    opened.push(file);
                }
            }
            WeightFiles::Pickle(paths) => {
                for path in paths {
                    let (file, listed) = open(path, pickle::tensors)?;
                    tensors.extend(listed.into_iter().map(|tensor| {
                        let (name, shape, dtype) =
                            (tensor.name.clone(), tensor.shape.clone(), tensor.dtype.clone());
                        let place = Place::Pickled { file: Arc::clone(&file), tensor };
                        (name, TensorEntry { shape, dtype, place })
                    }));
                    opened.push(file);
                }
            }
        }
        let first = files.paths().first().cloned().unwrap_or_default();
        Ok(Self {
            tensors,
            first,
            gguf: None,
            files: opened,
            checked: Mutex::default(),
            read: ReadTensors::default(),
            adapter: None,
            shapes_alone: false,
        })
    }

    /// The tensors of a GGUF file that is open already.
    pub(crate) fn of_gguf(gguf: Arc<Gguf>) -> Self {
        let (first, files) = (gguf.path().to_path_buf(), gguf.files().to_vec());
        Self {
            tensors: HashMap::new(),
            first,
            gguf: Some(gguf),
            files,
            checked: Mutex::default(),
            read: ReadTensors::default(),
            adapter: None,
            shapes_alone: false,
        }
    }

    /// The same tensors, changed by `adapter`. `others` are those that it reads of files of its own.
    #[must_use]
    pub(super) fn with_adapter(mut self, adapter: Adapter, others: Option<&Self>) -> Self {
        self.files.extend(others.into_iter().flat_map(|others| &others.files).cloned());
        self.adapter = Some(adapter);
        self
    }

    /// The same for questions about names and shapes: of an adapter's changes no sum is computed, and of numbers of four bits
    /// none is read.
    #[must_use]
    pub(super) fn without_sums(self) -> Self {
        Self { adapter: self.adapter.map(Adapter::without_numbers), shapes_alone: true, ..self }
    }

    /// The first file.
    pub(super) fn path(&self) -> &Path {
        &self.first
    }

    /// The adapter that changes them.
    pub(crate) fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// Whether the tensor `name` was read.
    pub(super) fn was_read(&self, name: &str) -> bool {
        self.read.has(name)
    }

    /// Of `names`, the first that was not read, though others of its part were.
    pub(super) fn first_left<'a>(&self, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        self.read.first_left(names)
    }

    /// Checks that no file was changed since it was opened, so that all tensors are of one version.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the one that was.
    pub fn check(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.check())
    }

    /// Checks, after the network was made, that no tensor of its parts was left: a bias that the configuration does not
    /// announce, an adapter, a layer more than it counts. Parts without a tensor that was read may be left.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming it.
    pub fn check_read(&self) -> Result<()> {
        // Of the adapters that a file has of its own, one is used at most: without one, its weights are the original ones.
        let is_unused = |name: &str| {
            let module = name.split(".parametrizations.weight.0.").next().unwrap_or_default();
            is_own_part(name)
                && original_name(&format!("{module}.weight")).is_some_and(|own: String| self.read.has(&own))
        };
        // Both lock what was read.
        let names: Vec<_> = self.names().filter(|name| !is_unused(name)).collect();
        match (&self.gguf, self.read.first_left(names.into_iter())) {
            (Some(gguf), _) => gguf.check_read(),
            (None, Some(name)) => Err(left(self.path_of(name), name, "config.json")),
            (None, None) => Ok(()),
        }
    }

    /// The names, in no order; of a GGUF file, none.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of the tensor `name`, outermost dimension first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let whole = self.adapter.as_ref().and_then(|adapter| adapter.whole(name)).map(Weight::shape);
        whole.or_else(|| self.tensors.get(name).map(|entry| entry.shape.as_slice()))
    }

    /// The tensor `name`, of whatever shape, with what its adapter changes.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] when it is missing, or stored in another format than F32, F16 or BF16.
    pub fn get(&self, name: &str) -> Result<Weight> {
        self.read.note(name);
        let Some(adapter) = &self.adapter else { return self.unchanged(name) };
        let base = adapter.whole(name).cloned().map_or_else(|| self.unchanged(name), Ok)?;
        adapter.apply(name, base)
    }

    /// The tensor `name`, as its file stores it.
    pub(super) fn unchanged(&self, name: &str) -> Result<Weight> {
        let Some(entry) = self.tensors.get(name) else {
            let mut some: Vec<_> = self.names().collect();
            some.sort_unstable();
            some.truncate(3);
            return Err(Error::invalid_file(
                &self.first,
                format!(
                    "the tensor {name:?} is missing among its {} ({}, …); the weights belong to another kind of model \
                     than config.json describes",
                    self.tensors.len(),
                    some.join(", ")
                ),
            ));
        };
        let path = entry.place.path();
        let dtype = entry.dtype.clone().map_err(|dtype| {
            Error::invalid_file(
                path,
                format!(
                    "the tensor {name:?} is stored as {dtype}; F32, F16 and BF16 can be read, so choose the model of the same name \
                     that is not quantized, or save it in one of these"
                ),
            )
        })?;
        match &entry.place {
            Place::Whole { file, range } => {
                Weight::in_file(Arc::clone(file), range.clone(), dtype, entry.shape.clone())
            }
            Place::Pickled { file, tensor } => {
                if !self.checked.lock().contains(&tensor.storage) {
                    tensor.storage.check(file)?;
                    self.checked.lock().insert(tensor.storage.clone());
                }
                if tensor.is_contiguous() {
                    return Weight::in_file(
                        Arc::clone(file),
                        tensor.range.clone(),
                        dtype,
                        entry.shape.clone(),
                    );
                }
                let mut stored = zeroed(tensor.range.len())?;
                file.read(tensor.range.start, &mut stored)?;
                Weight::owned(tensor.gather(&stored, dtype.bytes())?, dtype, entry.shape.clone())
            }
        }
    }

    /// The tensor `name`, in whatever format.
    ///
    /// # Errors
    /// As [`get`](Self::get), which reads those of a PyTorch file.
    pub(crate) fn stored(&self, name: &str) -> Result<StoredTensor> {
        self.read.note(name);
        match self.tensors.get(name).map(|entry| (&entry.dtype, &entry.place, &entry.shape)) {
            Some((Err(format), Place::Whole { file, range }, shape)) => Ok(StoredTensor::Other {
                format: format.clone(),
                bytes: Bytes::File(Arc::clone(file), range.clone()),
                shape: shape.clone(),
            }),
            _ => self.get(name).map(StoredTensor::Plain),
        }
    }

    /// The file of the tensor `name`.
    pub(crate) fn path_of(&self, name: &str) -> &Path {
        self.tensors.get(name).map_or(self.first.as_path(), |entry| entry.place.path())
    }
}

/// Names are those of transformers. The tensors of a model that was saved without its head lack the prefix `model.`; those of
/// a model that reads images have a prefix more.
impl Tensors for Weights {
    fn contains(&self, name: &str) -> bool {
        match &self.gguf {
            Some(gguf) => GgufTensors(gguf).contains(name),
            None => self.knows(&self.own_name(name)),
        }
    }

    fn tied_matrix(&self, words: &str, head: &str, shape: [usize; 2]) -> Result<Matrix> {
        let adapter = match &self.adapter {
            Some(adapter) if !self.contains(head) => adapter,
            _ => return self.matrix(if self.contains(head) { head } else { words }, shape),
        };
        // The table is changed where tokens are read alone, as PEFT computes it, and the matrix of logits where it is one.
        let words = self.own_name(words);
        self.read.note(head);
        let table = adapter.shared(&words).cloned().map_or_else(|| self.unchanged(&words), Ok)?;
        adapter.apply_to_tied(head, self.shaped(&words, table, &shape)?)
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        match &self.gguf {
            Some(gguf) => GgufTensors(gguf).matrix(name, shape),
            None => self.get_shaped(&self.own_name(name), &shape).map(Matrix::Plain),
        }
    }

    fn vector(&self, name: &str, length: usize) -> Result<Weight> {
        match &self.gguf {
            Some(gguf) => GgufTensors(gguf).vector(name, length),
            None => self.get_shaped(&self.own_name(name), &[length]),
        }
    }

    fn damaged(&self, name: &str, what: &str) -> Error {
        let own = self.own_name(name);
        let reason = format!("tensor {own:?}: {what}; the file is damaged, download it again");
        Error::invalid_file(self.path_of(&own), reason)
    }

    fn stacked(&self, name: &str, shape: [usize; 3]) -> Result<Matrix> {
        match &self.gguf {
            Some(gguf) => GgufTensors(gguf).stacked(name, shape),
            None => {
                let weight = self.get_shaped(&self.own_name(name), &shape)?;
                Ok(Matrix::Plain(weight.reshaped(&[shape[0] * shape[1], shape[2]])))
            }
        }
    }

    fn microscaled(&self, name: &str, [count, rows, columns]: [usize; 3]) -> Result<Matrix> {
        let names = ["blocks", "scales"].map(|part| self.own_name(&format!("{name}_{part}")).into_owned());
        let refused = |reason: String| Error::invalid_file(self.path_of(&names[1]), reason);
        if !columns.is_multiple_of(mxfp4::GROUP) {
            return Err(refused(format!(
                "its rows of {columns} numbers ({name}) are no groups of {}",
                mxfp4::GROUP
            )));
        }
        let groups = columns / mxfp4::GROUP;
        let codes = self.bytes_of(&names[0], &[count, rows, groups, mxfp4::CODES])?;
        let scales = self.bytes_of(&names[1], &[count, rows, groups])?;
        let each = rows * groups;
        let mut blocks = zeroed(count * each * mxfp4::BLOCK)?;
        if !self.shapes_alone {
            let (mut codes_read, mut scales_read) = (Vec::new(), Vec::new());
            for (index, out) in blocks.chunks_exact_mut((each * mxfp4::BLOCK).max(1)).enumerate() {
                let own = index * each..(index + 1) * each;
                let scales = scales.read(own.clone(), &mut scales_read)?;
                let codes = codes.read(own.start * mxfp4::CODES..own.end * mxfp4::CODES, &mut codes_read)?;
                mxfp4::write_blocks(codes, scales, out).map_err(refused)?;
            }
        }
        Ok(Matrix::Blocks(BlockTensor::owned(blocks, BlockFormat::Mxfp4, count * rows, columns)?))
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        match &self.gguf {
            Some(gguf) => GgufTensors(gguf).tensor(name, shape),
            None => self.get_shaped(&self.own_name(name), shape),
        }
    }

    fn files(&self) -> Vec<Weak<WeightFile>> {
        self.files.iter().map(Arc::downgrade).collect()
    }
}

impl Weights {
    fn get_shaped(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        self.shaped(name, self.get(name)?, shape)
    }

    /// The bytes of a tensor of bytes.
    fn bytes_of(&self, name: &str, shape: &[usize]) -> Result<Bytes> {
        match self.stored(name)? {
            StoredTensor::Other { format, bytes, shape: found } if format == "U8" && found == shape => {
                Ok(bytes)
            }
            other => Err(Error::invalid_file(
                self.path_of(name),
                format!(
                    "the tensor {name:?} is no tensor of bytes of shape {shape:?}, but of shape {:?}; the file is damaged or of \
                     another model",
                    other.shape()
                ),
            )),
        }
    }

    fn shaped(&self, name: &str, weight: Weight, shape: &[usize]) -> Result<Weight> {
        if weight.shape() == shape {
            return Ok(weight);
        }
        Err(Error::invalid_file(
            self.path_of(name),
            format!(
                "the tensor {name:?} has shape {:?} where config.json asks for {shape:?}; config.json and weights belong \
                 to different models",
                weight.shape()
            ),
        ))
    }

    fn own_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let known = |name: &str| self.knows(name);
        if let Some(short) = name.strip_prefix("model.").filter(|short| known(short)) {
            return short.into();
        }
        if known(name) {
            return name.into();
        }
        let others = stored_names(name).into_iter().chain([original_name(name)]);
        others.flatten().find(|name| known(name)).map_or(name.into(), Cow::Owned)
    }

    /// Whether there is a tensor of this name, in the files or in those of an adapter.
    fn knows(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
            || self.adapter.as_ref().is_some_and(|adapter| adapter.whole(name).is_some())
    }

    /// The name of the stored tensor that another model around the same network calls `name`: `bert.encoder.…` may be
    /// `encoder.…`, and the other way round. `None` if there is none.
    ///
    /// # Errors
    /// Which ones it might be, if there are several.
    pub(super) fn stored_name(&self, name: &str) -> Result<Option<String>, String> {
        let text = name.replacen("model.language_model.", "model.", 1);
        for name in [name, &text] {
            let own = self.own_name(name);
            if self.tensors.contains_key(&*own) {
                return Ok(Some(own.into_owned()));
            }
        }
        // What stands around a network has a short name, never one of a layer.
        let outer =
            |prefix: &str| prefix.matches('.').count() < 2 && !prefix.contains(|c: char| c.is_ascii_digit());
        let around = |long: &str, short: &str| {
            long.strip_suffix(short).and_then(|rest| rest.strip_suffix('.')).is_some_and(outer)
        };
        let mut found: Vec<_> =
            self.names().filter(|stored| around(stored, name) || around(name, stored)).collect();
        found.sort_unstable();
        match found[..] {
            [] => Ok(self.renamed_head(name)),
            [one] => Ok(Some(one.to_owned())),
            [one, other, ..] => Err(format!("may be for {one:?} or for {other:?} of the base model")),
        }
    }

    /// The stored matrix of logits of a GPT-NeoX that the adapter's model calls `name`: transformers has changed its name.
    fn renamed_head(&self, name: &str) -> Option<String> {
        let [new, old] = HEADS;
        let other = if name == new { old } else { new };
        let found = HEADS.contains(&name) && self.tensors.contains_key(other) && self.has_neox_layers();
        found.then(|| other.to_owned())
    }

    fn has_neox_layers(&self) -> bool {
        self.names().any(|name| name.starts_with("gpt_neox."))
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weights({} tensors, {})", self.tensors.len(), self.first.display())
    }
}

/// The number of floating-point elements in `files`; integers (position ids) are not loaded and do not count.
pub(super) fn elements(files: &WeightFiles) -> Result<u64> {
    let weights = Weights::open(files)?;
    let read = weights.tensors.iter().filter(|(name, entry)| entry.dtype.is_ok() && !of_images(name));
    Ok(read.map(|(_, entry)| entry.shape.iter().product::<usize>() as u64).sum())
}

/// Opens a file and reads its list of tensors. A panic in `parse` is the fault of the file.
fn open<T>(
    path: &Path,
    parse: impl FnOnce(&WeightFile) -> Result<Vec<T>>,
) -> Result<(Arc<WeightFile>, Vec<T>)> {
    let file = WeightFile::open(path)?;
    refuse_pointer(&file)?;
    let parsed = catch_unwind(AssertUnwindSafe(|| parse(&file))).map_err(|_| {
        Error::invalid_file(
            path,
            "it is damaged in a way that its reader does not survive; download it again",
        )
    })??;
    Ok((file, parsed))
}

/// Refuses a Git LFS pointer by name, where a parser would report a damaged header.
fn refuse_pointer(file: &WeightFile) -> Result<()> {
    const POINTER: &[u8] = b"version https://git-lfs";
    let mut head = [0; POINTER.len()];
    let n = head.len().min(file.len());
    file.read(0, &mut head[..n])?;
    if head == POINTER {
        return Err(Error::invalid_file(
            file.path(),
            "it is a Git LFS pointer, not the weights; run git lfs pull in its repository",
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
