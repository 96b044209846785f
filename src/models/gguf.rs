//! GGUF files: metadata and tensors of one model in one file, as llama.cpp writes them (versions 2 and 3).
//!
//! The file is mapped; nothing in it is trusted. A length that does not fit what is left of the file ends the reading
//! before memory is taken for it.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::compute::decoder::{BlockFormat, BlockTensor, Matrix};
use crate::compute::memory::MappedFile;
use crate::compute::{Stored, Weight};
use crate::{Error, Result};

/// Arrays of arrays: what metadata really holds is one deep.
const DEEPEST: usize = 3;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any of the integer types.
    Integer(i128),
    /// f32 or f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text; bytes that are none were replaced.
    Text(String),
    /// Values of one type.
    Array(Vec<Value>),
}

#[derive(Debug, Clone)]
struct Entry {
    /// Outermost first, the reverse of the file's order.
    shape: Vec<usize>,
    kind: u32,
    start: usize,
}

/// An open file.
#[derive(Clone)]
pub struct Gguf {
    file: Arc<MappedFile>,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, Entry>,
}

impl Gguf {
    /// Maps `path` and reads everything but the tensors' numbers.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Permission`]; [`Error::InvalidFile`] for a wrong magic number, a version that we do not
    /// read, a truncated or damaged file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let mut reader = Reader { bytes: &file, at: 0, path };
        if reader.take(4)? != b"GGUF" {
            return Err(invalid(path, "it does not begin with GGUF; it is no GGUF file"));
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            let reason =
                format!("its GGUF version is {version}; versions 2 and 3 (little-endian) can be read");
            return Err(invalid(path, reason));
        }
        let tensor_count = reader.count(1)?;
        let metadata_count = reader.count(1)?;
        let mut metadata = HashMap::new();
        for _ in 0..metadata_count {
            let key = reader.text()?;
            let kind = reader.u32()?;
            metadata.insert(key, reader.value(kind, 0)?);
        }
        let mut tensors = HashMap::new();
        for _ in 0..tensor_count {
            let name = reader.text()?;
            let dimensions = reader.u32()? as usize;
            if !(1..=4).contains(&dimensions) {
                return Err(invalid(path, format!("the tensor {name:?} has {dimensions} dimensions")));
            }
            let mut shape = (0..dimensions).map(|_| reader.size()).collect::<Result<Vec<_>>>()?;
            shape.reverse();
            let kind = reader.u32()?;
            let start = reader.size()?;
            tensors.insert(name, Entry { shape, kind, start });
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Integer(n)) if *n > 0 && *n <= 1 << 20 => *n as usize,
            Some(_) => return Err(invalid(path, "its alignment is no positive number")),
        };
        let data = reader.at.next_multiple_of(alignment);
        for entry in tensors.values_mut() {
            entry.start = entry
                .start
                .checked_add(data)
                .ok_or_else(|| invalid(path, "a tensor lies outside of the file"))?;
        }
        let gguf = Self { file, metadata, tensors };
        for name in gguf.tensors.keys() {
            if gguf.known(name)? {
                gguf.matrix(name)?;
            }
        }
        Ok(gguf)
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.file.len() as u64
    }

    /// The names of all metadata.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// A metadata value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A whole number that is not negative.
    pub fn number(&self, key: &str) -> Option<usize> {
        match self.get(key) {
            Some(Value::Integer(n)) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn float(&self, key: &str) -> Option<f32> {
        match self.get(key) {
            Some(Value::Float(x)) => Some(*x as f32),
            Some(Value::Integer(n)) => Some(*n as f32),
            _ => None,
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.get(key) {
            Some(Value::Bool(flag)) => Some(*flag),
            _ => None,
        }
    }

    /// An array.
    pub fn array(&self, key: &str) -> Option<&[Value]> {
        match self.get(key) {
            Some(Value::Array(values)) => Some(values),
            _ => None,
        }
    }

    /// The metadata `key`, which the model cannot do without.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming it.
    pub fn required(&self, key: &str) -> Result<usize> {
        self.number(key).ok_or_else(|| invalid(self.path(), format!("its metadata has no number {key:?}")))
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
        let entry = self.entry(name)?;
        let columns = entry.shape.last().copied().unwrap_or(1);
        let elements = entry.shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n));
        let outside = || {
            invalid(self.path(), format!("the tensor {name:?} lies outside of the file; download it again"))
        };
        let elements = elements.ok_or_else(outside)?;
        let range = |bytes: Option<usize>| -> Result<Range<usize>> {
            let end =
                bytes.and_then(|bytes| entry.start.checked_add(bytes)).filter(|&end| end <= self.file.len());
            Ok(entry.start..end.ok_or_else(outside)?)
        };
        let plain = |stored: Stored| {
            let range = range(elements.checked_mul(stored.bytes()))?;
            Ok(Matrix::Plain(Weight::mapped(self.file.clone(), range, stored, entry.shape.clone())?))
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
                Ok(Matrix::Blocks(BlockTensor::new(self.file.clone(), range, format, rows, columns)?))
            }
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| {
            invalid(
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
                "the tensor {name:?} is stored in ggml's format number {kind}; supported are F32, F16, BF16, Q4_0, Q4_1, \
                 Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K: quantise it to one of these"
            ),
        }
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gguf({}, {} tensors)", self.path().display(), self.tensors.len())
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end =
            end.ok_or_else(|| invalid(self.path, "it ends in the middle of its header; download it again"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn size(&mut self) -> Result<usize> {
        let n = u64::from_le_bytes(self.array()?);
        usize::try_from(n).map_err(|_| invalid(self.path, format!("it names the size {n}; it is damaged")))
    }

    /// A number of things that take `bytes` bytes at least.
    fn count(&mut self, bytes: usize) -> Result<usize> {
        let n = self.size()?;
        if n.checked_mul(bytes).is_none_or(|all| all > self.bytes.len() - self.at) {
            return Err(invalid(
                self.path,
                format!("it announces {n} entries but is too short for them; download it again"),
            ));
        }
        Ok(n)
    }

    fn text(&mut self) -> Result<String> {
        let n = self.count(1)?;
        Ok(String::from_utf8_lossy(self.take(n)?).into_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        macro_rules! integer {
            ($kind:ty) => {
                Value::Integer(<$kind>::from_le_bytes(self.array()?).into())
            };
        }
        Ok(match kind {
            0 => integer!(u8),
            1 => integer!(i8),
            2 => integer!(u16),
            3 => integer!(i16),
            4 => integer!(u32),
            5 => integer!(i32),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 if depth < DEEPEST => {
                let kind = self.u32()?;
                let n = self.count(1)?;
                Value::Array((0..n).map(|_| self.value(kind, depth + 1)).collect::<Result<_>>()?)
            }
            10 => integer!(u64),
            11 => integer!(i64),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => {
                return Err(invalid(
                    self.path,
                    format!("its metadata has a value of the unknown type {kind}"),
                ));
            }
        })
    }
}

fn invalid(path: &Path, reason: impl Into<String>) -> Error {
    Error::InvalidFile { path: PathBuf::from(path), reason: reason.into() }
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
pub(crate) mod tests;
