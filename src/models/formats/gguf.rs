//! GGUF files: metadata and tensors of one model in one file, as llama.cpp writes them (versions 2 and 3).
//!
//! Nothing in a file is trusted. A length that does not fit what is left of the file ends the reading before memory is
//! taken for it.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::gguf_asked::AskedKeys;
pub use super::gguf_metadata::GgufValue;
use super::gguf_metadata::HeaderReader;
use crate::compute::file::WeightFile;
use crate::compute::linear::{BlockFormat, BlockTensor, Matrix};
use crate::compute::{Stored, Weight};
use crate::models::unread::{ReadTensors, left};
use crate::{Error, Result};

/// Tensors of all parts.
const MOST_TENSORS: usize = 1 << 18;

#[derive(Debug, Clone)]
struct GgufTensor {
    /// Outermost first, the reverse of the file's order.
    shape: Vec<usize>,
    kind: u32,
    /// The index of its part, and the offset in that file.
    part: usize,
    start: usize,
}

/// Parts of a model that one of its uses does without: the head that writes text, the one that scores, and what
/// sentence-transformers adds to a language model.
const OPTIONAL: [&str; 3] = ["output.", "cls", "dense_"];

/// An open file, or all parts of one that was split.
pub struct Gguf {
    files: Vec<Arc<WeightFile>>,
    metadata: HashMap<String, GgufValue>,
    tensors: HashMap<String, GgufTensor>,
    read: ReadTensors,
    asked: AskedKeys,
}

/// The files that `path` stands for: itself, or all parts when its name ends like `-00001-of-00003.gguf`.
///
/// # Errors
/// [`Error::InvalidFile`] for a part other than the first, [`Error::MissingFile`] naming a part that is not there.
pub fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let numbers = name.strip_suffix(".gguf").and_then(|stem| {
        let (stem, count) = stem.rsplit_once("-of-")?;
        let (stem, number) = stem.rsplit_once('-')?;
        let five = |digits: &str| digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
        let all = five(number) && five(count);
        Some((stem.to_owned(), number.parse::<usize>().ok()?, count.parse::<usize>().ok()?)).filter(|_| all)
    });
    let Some((stem, number, count)) = numbers else { return Ok(vec![path.to_path_buf()]) };
    let named = |number: usize| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"));
    if number == 0 || number > count {
        return Err(Error::invalid_file(path, format!("its name says part {number} of {count}; rename it")));
    }
    if number != 1 {
        let reason = format!("it is part {number} of {count}; give the first, {}", named(1).display());
        return Err(Error::invalid_file(path, reason));
    }
    let parts: Vec<PathBuf> = (1..=count).map(named).collect();
    if let Some(missing) = parts.iter().find(|part| !part.is_file()) {
        return Err(Error::MissingFile {
            model: path.display().to_string(),
            file: missing.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            folder: path.parent().unwrap_or(Path::new("")).to_path_buf(),
            remedy: format!("the model has {count} parts; download all of them"),
        });
    }
    Ok(parts)
}

impl Gguf {
    /// Opens `path`, or all parts where it is the first of several, and reads everything but the tensors' numbers.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Permission`]; [`Error::MissingFile`] for a missing part; [`Error::InvalidFile`] for a wrong
    /// magic number, a version that we do not read, a truncated or damaged file.
    pub fn open(path: &Path) -> Result<Self> {
        let parts = parts(path)?;
        let mut gguf = Self {
            files: Vec::new(),
            metadata: HashMap::new(),
            tensors: HashMap::new(),
            read: ReadTensors::default(),
            asked: AskedKeys::default(),
        };
        for (number, part) in parts.iter().enumerate() {
            let metadata = gguf.read_part(number, part)?;
            let said = |key: &str| match metadata.get(key) {
                Some(GgufValue::Integer(n)) => usize::try_from(*n).ok(),
                _ => None,
            };
            let (no, count) = (said("split.no").unwrap_or(0), said("split.count").unwrap_or(1).max(1));
            if (no, count) != (number, parts.len()) {
                return Err(Error::invalid_file(
                    part,
                    format!(
                        "it says that it is part {} of {count}, where its name makes it part {} of {}; parts are found \
                         by names like model-00001-of-00003.gguf",
                        no + 1,
                        number + 1,
                        parts.len()
                    ),
                ));
            }
            if number == 0 {
                gguf.metadata = metadata;
            }
        }
        if let Some(all) = gguf.number("split.tensors.count").filter(|&all| all != gguf.tensors.len()) {
            let reason = format!("its parts hold {} tensors, where it says {all}", gguf.tensors.len());
            return Err(Error::invalid_file(path, reason));
        }
        for name in gguf.tensors.keys() {
            if gguf.known(name)? {
                gguf.locate(name)?;
            }
        }
        Ok(gguf)
    }

    /// Opens the next part, adds its tensors, and returns its metadata.
    fn read_part(&mut self, part: usize, path: &Path) -> Result<HashMap<String, GgufValue>> {
        let file = WeightFile::open(path)?;
        let mut reader = HeaderReader::new(&file);
        if reader.take(4)? != b"GGUF" {
            return Err(Error::invalid_file(path, "it does not begin with GGUF; it is no GGUF file"));
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            let reason =
                format!("its GGUF version is {version}; versions 2 and 3 (little-endian) can be read");
            return Err(Error::invalid_file(path, reason));
        }
        let tensor_count = reader.count(1)?;
        let metadata_count = reader.count(1)?;
        let mut metadata = HashMap::new();
        for _ in 0..metadata_count {
            let key = reader.text()?;
            let kind = reader.u32()?;
            let value = reader.value(kind, 0)?;
            if let Some(first) = metadata.insert(key, value) {
                return Err(Error::invalid_file(
                    path,
                    format!("its metadata has a key twice, once with {}", first.kind()),
                ));
            }
        }
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            if self.tensors.len() + tensors.len() >= MOST_TENSORS {
                return Err(Error::invalid_file(path, format!("it has more than {MOST_TENSORS} tensors")));
            }
            let name = reader.text()?;
            let dimensions = reader.u32()? as usize;
            if !(1..=4).contains(&dimensions) {
                return Err(Error::invalid_file(
                    path,
                    format!("the tensor {name:?} has {dimensions} dimensions"),
                ));
            }
            let mut shape = (0..dimensions).map(|_| reader.size()).collect::<Result<Vec<_>>>()?;
            shape.reverse();
            let kind = reader.u32()?;
            let start = reader.size()?;
            tensors.push((name, GgufTensor { shape, kind, part, start }));
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(GgufValue::Integer(n)) if *n > 0 && *n <= 1 << 20 => *n as usize,
            Some(_) => return Err(Error::invalid_file(path, "its alignment is no positive number")),
        };
        let data = reader.at.next_multiple_of(alignment);
        for (name, mut entry) in tensors {
            let start = entry.start.checked_add(data);
            entry.start =
                start.ok_or_else(|| Error::invalid_file(path, "a tensor lies outside of the file"))?;
            if self.tensors.contains_key(&name) {
                return Err(Error::invalid_file(path, format!("the tensor {name:?} is there twice")));
            }
            self.tensors.insert(name, entry);
        }
        self.files.push(file);
        Ok(metadata)
    }

    /// The files, in the order of their parts.
    pub(crate) fn files(&self) -> &[Arc<WeightFile>] {
        &self.files
    }

    /// The path of the file, or of its first part.
    pub fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), |file| file.path())
    }

    /// Bytes of the file, or of all its parts.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len() as u64).sum()
    }

    /// Of each tensor, the number of ggml's type, and how many weights it has.
    pub(super) fn stored_types(&self) -> impl Iterator<Item = (u32, usize)> {
        self.tensors.values().map(|tensor| (tensor.kind, tensor.shape.iter().product()))
    }

    /// The names of all metadata.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// A metadata value.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(key)
    }

    /// A text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.understood(key, "a text", |value| match value {
            GgufValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A whole number that is not negative.
    pub fn number(&self, key: &str) -> Option<usize> {
        self.understood(key, "a whole number of 0 or more", |value| match value {
            GgufValue::Integer(n) => usize::try_from(*n).ok(),
            _ => None,
        })
    }

    /// Any number.
    pub fn float(&self, key: &str) -> Option<f32> {
        self.understood(key, "a number", |value| match value {
            GgufValue::Float(x) => Some(*x as f32),
            GgufValue::Integer(n) => Some(*n as f32),
            _ => None,
        })
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.understood(key, "true or false", |value| match value {
            GgufValue::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// An array.
    pub fn array(&self, key: &str) -> Option<&[GgufValue]> {
        self.understood(key, "a list", |value| match value {
            GgufValue::Array(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// The value of `key` as `read` understands it; `None` if there is none, or it is not a `wanted`, which
    /// [`check_asked`](Self::check_asked) refuses.
    pub(crate) fn understood<'a, T>(
        &'a self,
        key: &str,
        wanted: &'static str,
        read: impl FnOnce(&'a GgufValue) -> Option<T>,
    ) -> Option<T> {
        let found = read(self.get(key)?);
        self.asked.note(key, wanted, found.is_some());
        found
    }

    /// Refuses metadata that was asked for and is of another kind. The id of a token is none if it is no number.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the key.
    pub fn check_asked(&self) -> Result<()> {
        match self.asked.first_misread().filter(|(key, _)| !key.ends_with("_token_id")) {
            Some((key, wanted)) => {
                let kind = self.get(&key).map_or("nothing", GgufValue::kind);
                let reason = format!("its metadata has {kind} as {key:?}, where {wanted} is expected");
                Err(Error::invalid_file(self.path(), reason))
            }
            None => Ok(()),
        }
    }

    /// The metadata `key`, which the model cannot do without.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming it.
    pub fn required(&self, key: &str) -> Result<usize> {
        self.number(key)
            .ok_or_else(|| Error::invalid_file(self.path(), format!("its metadata has no number {key:?}")))
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor's dimensions, outermost first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// A tensor of one or two dimensions.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] when it is missing or lies outside of the file, [`Error::Unsupported`] for a format
    /// without a kernel.
    pub fn matrix(&self, name: &str) -> Result<Matrix> {
        self.read.note(name);
        self.locate(name)
    }

    /// Notes that the tensors whose names begin with `part` belong to a part of the model that is not used.
    pub fn pass_over(&self, part: &str) {
        self.tensors.keys().filter(|name| name.starts_with(part)).for_each(|name| self.read.note(name));
    }

    /// Refuses a tensor that [`matrix`](Self::matrix) did not give, but for those of parts that a use of a model does
    /// without. llama.cpp loads no file with tensors that its network does not have.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming it; as [`check_asked`](Self::check_asked).
    pub fn check_read(&self) -> Result<()> {
        self.check_asked()?;
        let names = || self.tensors.keys().map(String::as_str);
        let needed =
            |name: &&str| !self.read.has(name) && !OPTIONAL.iter().any(|part| name.starts_with(part));
        match self.read.first_left(names()).or_else(|| names().filter(needed).min()) {
            Some(name) => Err(left(self.path(), name, "its metadata")),
            None => Ok(()),
        }
    }

    fn locate(&self, name: &str) -> Result<Matrix> {
        let entry = self.entry(name)?;
        let file = &self.files[entry.part];
        let columns = entry.shape.last().copied().unwrap_or(1);
        let elements = entry.shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n));
        let outside = || {
            Error::invalid_file(
                file.path(),
                format!("the tensor {name:?} lies outside of the file; download it again"),
            )
        };
        let elements = elements.ok_or_else(outside)?;
        let range = |bytes: Option<usize>| -> Result<Range<usize>> {
            let end = bytes.and_then(|bytes| entry.start.checked_add(bytes)).filter(|&end| end <= file.len());
            Ok(entry.start..end.ok_or_else(outside)?)
        };
        let plain = |stored: Stored| {
            let range = range(elements.checked_mul(stored.bytes()))?;
            Ok(Matrix::Plain(Weight::in_file(Arc::clone(file), range, stored, entry.shape.clone())?))
        };
        match entry.kind {
            0 => plain(Stored::F32),
            1 => plain(Stored::F16),
            30 => plain(Stored::Bf16),
            kind => {
                let format = BlockFormat::from_ggml(kind).ok_or_else(|| self.unsupported(name, kind))?;
                let rows = elements / columns.max(1);
                let bytes = (columns / format.elements()).checked_mul(format.bytes());
                let range = range(bytes.and_then(|row| row.checked_mul(rows)))?;
                Ok(Matrix::Blocks(BlockTensor::new(Arc::clone(file), range, format, rows, columns)?))
            }
        }
    }

    fn entry(&self, name: &str) -> Result<&GgufTensor> {
        self.tensors.get(name).ok_or_else(|| {
            Error::invalid_file(
                self.path(),
                format!("the tensor {name:?} is missing; the file is incomplete, or of another model"),
            )
        })
    }

    fn known(&self, name: &str) -> Result<bool> {
        let kind = self.entry(name)?.kind;
        Ok([0, 1, 30].contains(&kind) || BlockFormat::from_ggml(kind).is_some())
    }

    fn unsupported(&self, name: &str, kind: u32) -> Error {
        Error::Unsupported {
            model: self.path().display().to_string(),
            reason: format!(
                "the tensor {name:?} is stored in ggml's format number {kind}{}, which is not read here; take a file in another \
                 format, Q8_0 or Q4_K_M for example (docs/gguf.md lists those that are read)",
                OTHER_FORMATS
                    .iter()
                    .find(|(number, _)| *number == kind)
                    .map_or_else(String::new, |(_, name)| format!(" ({name})"))
            ),
        }
    }
}

/// Formats of tensors that are not read.
const OTHER_FORMATS: [(u32, &str); 7] =
    [(24, "I8"), (25, "I16"), (26, "I32"), (27, "I64"), (28, "F64"), (40, "NVFP4"), (41, "Q1_0")];

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gguf({}, {} tensors)", self.path().display(), self.tensors.len())
    }
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
pub(crate) mod tests;
