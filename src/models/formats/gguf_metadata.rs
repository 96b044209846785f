//! The metadata of GGUF files, and the reader of their header.

use crate::compute::file::WeightFile;
use crate::compute::memory::zeroed;
use crate::size::size_text;
use crate::{Error, Result};

/// The deepest nesting of arrays; real metadata has one level.
const DEEPEST: usize = 3;
/// Values of the metadata, elements of arrays included: three times what a vocabulary of a million pieces takes.
const MOST_VALUES: usize = 1 << 22;
/// Bytes of metadata and names.
const LONGEST_HEADER: usize = 256 << 20;
/// Bytes of a text: twenty times the longest chat template.
const LONGEST_TEXT: usize = 16 << 20;
/// Bytes that the reader fetches at once.
const WINDOW: usize = 256 << 10;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// Any of the integer types.
    Integer(i128),
    /// f32 or f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text; bytes that are none were replaced.
    Text(String),
    /// Values of one type.
    Array(Vec<GgufValue>),
}

impl GgufValue {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Bool(_) => "a truth value",
            Self::Text(_) => "a text",
            Self::Array(_) => "an array",
        }
    }
}

/// Reads the header of a file, within its limits.
pub(super) struct HeaderReader<'a> {
    file: &'a WeightFile,
    pub(super) at: usize,
    /// Bytes of the file from `window_at` on.
    window: Vec<u8>,
    window_at: usize,
    /// How many more values the metadata may have.
    values: usize,
}

impl<'a> HeaderReader<'a> {
    pub(super) fn new(file: &'a WeightFile) -> Self {
        Self { file, at: 0, window: Vec::new(), window_at: 0, values: MOST_VALUES }
    }

    fn invalid(&self, reason: impl Into<String>) -> Error {
        Error::invalid_file(self.file.path(), reason)
    }

    fn left(&self) -> usize {
        self.file.len() - self.at
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&[u8]> {
        if n > self.left() {
            return Err(self.invalid("it ends in the middle of its header; download it again"));
        }
        if self.at + n > LONGEST_HEADER {
            let reason = format!("its header is longer than {}", size_text(LONGEST_HEADER as u64));
            return Err(self.invalid(reason));
        }
        if self.at + n > self.window_at + self.window.len() {
            let size = n.max(WINDOW).min(self.left());
            if self.window.len() != size {
                self.window = zeroed(size)?;
            }
            self.file.read(self.at, &mut self.window)?;
            self.window_at = self.at;
        }
        let start = self.at - self.window_at;
        self.at += n;
        Ok(&self.window[start..start + n])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn size(&mut self) -> Result<usize> {
        let n = u64::from_le_bytes(self.array()?);
        usize::try_from(n).map_err(|_| self.invalid(format!("it names the size {n}; it is damaged")))
    }

    /// A count of things that take at least `bytes` bytes each.
    pub(super) fn count(&mut self, bytes: usize) -> Result<usize> {
        let n = self.size()?;
        if n.checked_mul(bytes).is_none_or(|all| all > self.left()) {
            return Err(self
                .invalid(format!("it announces {n} entries but is too short for them; download it again")));
        }
        Ok(n)
    }

    pub(super) fn text(&mut self) -> Result<String> {
        let n = self.count(1)?;
        if n > LONGEST_TEXT {
            return Err(self.invalid(format!("it holds a text of {n} bytes; no model needs so long a one")));
        }
        Ok(String::from_utf8_lossy(self.take(n)?).into_owned())
    }

    pub(super) fn value(&mut self, kind: u32, depth: usize) -> Result<GgufValue> {
        self.values = self.values.checked_sub(1).ok_or_else(|| {
            self.invalid(format!("its metadata has more than {MOST_VALUES} values; no model needs so many"))
        })?;
        macro_rules! integer {
            ($kind:ty) => {
                GgufValue::Integer(<$kind>::from_le_bytes(self.array()?).into())
            };
        }
        Ok(match kind {
            0 => integer!(u8),
            1 => integer!(i8),
            2 => integer!(u16),
            3 => integer!(i16),
            4 => integer!(u32),
            5 => integer!(i32),
            6 => GgufValue::Float(f32::from_le_bytes(self.array()?).into()),
            7 => GgufValue::Bool(self.array::<1>()? != [0]),
            8 => GgufValue::Text(self.text()?),
            9 if depth < DEEPEST => {
                let kind = self.u32()?;
                let n = self.count(if kind == 8 { 8 } else { 1 })?;
                GgufValue::Array((0..n).map(|_| self.value(kind, depth + 1)).collect::<Result<_>>()?)
            }
            10 => integer!(u64),
            11 => integer!(i64),
            12 => GgufValue::Float(f64::from_le_bytes(self.array()?)),
            _ => {
                return Err(self.invalid(format!("its metadata has a value of the unknown type {kind}")));
            }
        })
    }
}
