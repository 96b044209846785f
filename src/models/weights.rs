//! Tensors by name, wherever they are stored.
//!
//! safetensors files are mapped, and tensors are views into the mapping. A `pytorch_model.bin` is a zip of pickles:
//! its tensors are read, and copied, when asked for. Nothing in such a file is executed.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::pickle::PthTensors;
use safetensors::SafeTensors;

use super::causal;
use super::files::{WeightFiles, metadata};
use super::gguf::Gguf;
use super::gguf_llama::GgufSource;
use crate::compute::memory::MappedFile;
use crate::compute::{Matrix, Stored, Tensors, Weight};
use crate::{Error, Result};

/// The tensors of a model.
pub struct Weights {
    tensors: HashMap<String, Entry>,
    first: PathBuf,
    /// Where the tensors are, coded ones among them, if they are not in `tensors`.
    gguf: Option<Gguf>,
}

struct Entry {
    shape: Vec<usize>,
    /// The format, or the name of one that cannot be read.
    dtype: Result<Stored, String>,
    place: Place,
}

enum Place {
    Mapped { file: Arc<MappedFile>, range: Range<usize>, path: Arc<Path> },
    Pickle { file: Arc<PthTensors>, path: Arc<Path> },
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Self::Mapped { path, .. } | Self::Pickle { path, .. } => path,
        }
    }
}

impl Weights {
    /// Opens the files and checks their headers: that every tensor lies inside of its file, has as many bytes as
    /// shape and dtype say, and overlaps no other. The numbers themselves are not read.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for a truncated or damaged file, [`Error::Permission`], [`Error::Io`].
    pub fn open(files: &WeightFiles) -> Result<Self> {
        let (mut tensors, mut gguf) = (HashMap::new(), None);
        match files {
            WeightFiles::Gguf(path) => gguf = Some(Gguf::open(path)?),
            WeightFiles::Safetensors(paths) => {
                for path in paths {
                    map(path, &mut tensors)?;
                }
            }
            WeightFiles::Pickle(path) => unpickle(path, &mut tensors)?,
        }
        Ok(Self { tensors, first: files.paths().first().cloned().unwrap_or_default(), gguf })
    }

    /// The file, where it is one in GGUF.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_ref()
    }

    /// The names, in no order; of a GGUF file, none.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of the tensor `name`, outermost dimension first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The tensor `name`, of whatever shape.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] when it is missing, or stored in another format than F32, F16 or BF16.
    pub fn get(&self, name: &str) -> Result<Weight> {
        let Some(entry) = self.tensors.get(name) else {
            let mut some: Vec<_> = self.names().collect();
            some.sort_unstable();
            some.truncate(3);
            return Err(invalid(
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
            invalid(
                path,
                format!("the tensor {name:?} is stored as {dtype}; F32, F16 and BF16 can be read, so save it in one of these"),
            )
        })?;
        match &entry.place {
            Place::Mapped { file, range, .. } => {
                Weight::mapped(Arc::clone(file), range.clone(), dtype, entry.shape.clone())
            }
            Place::Pickle { file, path } => {
                Weight::owned(read_pickled(file, path, name, dtype)?, dtype, entry.shape.clone())
            }
        }
    }
}

impl Tensors for Weights {
    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn get_shaped(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let weight = self.get(name)?;
        if weight.shape() == shape {
            return Ok(weight);
        }
        let path = self.tensors.get(name).map_or(self.first.as_path(), |entry| entry.place.path());
        Err(invalid(
            path,
            format!(
                "the tensor {name:?} has shape {:?} where config.json asks for {shape:?}; config.json and weights belong \
                 to different models",
                weight.shape()
            ),
        ))
    }
}

/// The names are transformers'; tensors of a model without a head lack their first part.
impl causal::Source for Weights {
    fn contains(&self, name: &str) -> bool {
        match &self.gguf {
            Some(gguf) => GgufSource(gguf).contains(name),
            None => Tensors::contains(self, self.own_name(name)),
        }
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        match &self.gguf {
            Some(gguf) => GgufSource(gguf).matrix(name, shape),
            None => self.get_shaped(self.own_name(name), &shape).map(Matrix::Plain),
        }
    }

    fn vector(&self, name: &str, length: usize) -> Result<Weight> {
        match &self.gguf {
            Some(gguf) => GgufSource(gguf).vector(name, length),
            None => self.get_shaped(self.own_name(name), &[length]),
        }
    }
}

impl Weights {
    fn own_name<'a>(&self, name: &'a str) -> &'a str {
        let short = name.strip_prefix("model.").filter(|short| self.tensors.contains_key(*short));
        short.unwrap_or(name)
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weights({} tensors, {})", self.tensors.len(), self.first.display())
    }
}

/// The number of floating-point elements in `files`; integers (position ids) are not loaded and do not count.
pub(crate) fn elements(files: &WeightFiles) -> Result<u64> {
    let weights = Weights::open(files)?;
    let read = weights.tensors.values().filter(|entry| entry.dtype.is_ok());
    Ok(read.map(|entry| entry.shape.iter().product::<usize>() as u64).sum())
}

fn map(path: &Path, tensors: &mut HashMap<String, Entry>) -> Result<()> {
    refuse_what_is_no_weights(path)?;
    let file = MappedFile::open(path)?;
    // The crate adds up lengths that the file states; a header made to overflow them must not take us down.
    let header = guarded(path, || SafeTensors::read_metadata(&file).map_err(|e| e.to_string()))?;
    let (length, header) = header.map_err(|e| {
        invalid(
            path,
            format!("its safetensors header is damaged or the file is cut short ({e}); download it again"),
        )
    })?;
    let shared: Arc<Path> = path.into();
    for (name, info) in header.tensors() {
        let begin = 8 + length;
        let range = begin.checked_add(info.data_offsets.0).zip(begin.checked_add(info.data_offsets.1));
        let Some((start, end)) = range.filter(|(start, end)| start <= end && *end <= file.len()) else {
            return Err(invalid(
                path,
                format!("the tensor {name:?} lies outside of the file; download it again"),
            ));
        };
        let dtype = match info.dtype {
            safetensors::Dtype::F32 => Ok(Stored::F32),
            safetensors::Dtype::F16 => Ok(Stored::F16),
            safetensors::Dtype::BF16 => Ok(Stored::Bf16),
            other => Err(format!("{other:?}")),
        };
        let place = Place::Mapped { file: Arc::clone(&file), range: start..end, path: Arc::clone(&shared) };
        tensors.insert(name, Entry { shape: info.shape.clone(), dtype, place });
    }
    Ok(())
}

fn unpickle(path: &Path, tensors: &mut HashMap<String, Entry>) -> Result<()> {
    refuse_what_is_no_weights(path)?;
    let size = metadata(path)?.len();
    let opened = guarded(path, || PthTensors::new(path, None).map_err(|e| e.to_string()))?;
    let file = Arc::new(opened.map_err(|e| {
        invalid(
            path,
            format!(
                "it does not read as a PyTorch checkpoint ({e}); it is damaged, or older than PyTorch 1.6: download it \
                 again, or save it with safetensors"
            ),
        )
    })?);
    let shared: Arc<Path> = path.into();
    for (name, info) in file.tensor_infos() {
        let shape = info.layout.dims().to_vec();
        let bytes =
            shape.iter().try_fold(info.dtype.size_in_bytes() as u64, |all, &n| all.checked_mul(n as u64));
        if bytes.is_none_or(|bytes| bytes > size) {
            return Err(invalid(
                path,
                format!("the tensor {name:?} of shape {shape:?} is larger than the file; download it again"),
            ));
        }
        let dtype = match info.dtype {
            candle_core::DType::F32 => Ok(Stored::F32),
            candle_core::DType::F16 => Ok(Stored::F16),
            candle_core::DType::BF16 => Ok(Stored::Bf16),
            other => Err(format!("{other:?}")),
        };
        let place = Place::Pickle { file: Arc::clone(&file), path: Arc::clone(&shared) };
        tensors.insert(name.clone(), Entry { shape, dtype, place });
    }
    if tensors.is_empty() {
        return Err(invalid(
            path,
            "it holds no tensors; a whole pickled model instead of its state_dict cannot be read",
        ));
    }
    Ok(())
}

/// The bytes of one pickled tensor, row-major and little-endian.
fn read_pickled(file: &PthTensors, path: &Path, name: &str, dtype: Stored) -> Result<Arc<[u8]>> {
    let read = || -> candle_core::Result<Option<Vec<u8>>> {
        let Some(tensor) = file.get(name)? else { return Ok(None) };
        let tensor = tensor.flatten_all()?;
        Ok(Some(match dtype {
            Stored::F32 => tensor.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Stored::F16 => tensor.to_vec1::<half::f16>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Stored::Bf16 => tensor.to_vec1::<half::bf16>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }))
    };
    match guarded(path, read)? {
        Ok(Some(bytes)) => Ok(bytes.into()),
        Ok(None) => Err(invalid(path, format!("the tensor {name:?} is missing; download it again"))),
        Err(e) => {
            Err(invalid(path, format!("the tensor {name:?} cannot be read ({e}); download the file again")))
        }
    }
}

/// Runs a parser over a file from outside; a panic in it is the file's fault.
fn guarded<T>(path: &Path, parse: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(parse)).map_err(|_| {
        invalid(path, "it is damaged in a way that its reader does not survive; download it again")
    })
}

/// Empty files and Git LFS pointers deserve better words than "invalid header".
fn refuse_what_is_no_weights(path: &Path) -> Result<()> {
    const POINTER: &[u8] = b"version https://git-lfs";
    if metadata(path)?.len() == 0 {
        return Err(invalid(path, "it is empty; download it again"));
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(|e| Error::io(path, "read", &e))?;
    file.take(POINTER.len() as u64).read_to_end(&mut head).map_err(|e| Error::io(path, "read", &e))?;
    if head == POINTER {
        return Err(invalid(
            path,
            "it is a Git LFS pointer, not the weights; run git lfs pull in its repository",
        ));
    }
    Ok(())
}

fn invalid(path: &Path, reason: impl Into<String>) -> Error {
    Error::InvalidFile { path: path.to_path_buf(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    /// Header text and data → a safetensors file in a folder of its own.
    fn file(header: &str, data: &[u8]) -> (TempDir, WeightFiles) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        raw(&bytes)
    }

    fn raw(bytes: &[u8]) -> (TempDir, WeightFiles) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, bytes).unwrap();
        (folder, WeightFiles::Safetensors(vec![path]))
    }

    fn reason(files: &WeightFiles) -> String {
        match Weights::open(files).unwrap_err() {
            Error::InvalidFile { path, reason } => {
                assert_eq!(path, files.paths()[0]);
                reason
            }
            other => panic!("{other}"),
        }
    }

    const THREE: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "b":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]},"c":{"dtype":"F16","shape":[2],"data_offsets":[12,16]},
        "ids":{"dtype":"I64","shape":[1],"data_offsets":[16,24]}}"#;

    fn three() -> Vec<u8> {
        let mut data = [1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        data.extend([0.5, 3.0].iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()));
        data.extend([0.25, -1.0].iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()));
        data.extend(7i64.to_le_bytes());
        data
    }

    #[test]
    fn every_format_reads_as_what_was_written() {
        let (_folder, files) = file(THREE, &three());
        let weights = Weights::open(&files).unwrap();
        assert_eq!(weights.get("a").unwrap().to_f32(), [1.5, -2.0]);
        assert_eq!(weights.get_shaped("b", &[1, 2]).unwrap().to_f32(), [0.5, 3.0]);
        assert_eq!(weights.get("c").unwrap().to_f32(), [0.25, -1.0]);
        assert_eq!(weights.shape("ids"), Some(&[1][..]));
        assert_eq!(weights.names().count(), 4);
        assert_eq!(elements(&files).unwrap(), 6);
    }

    #[test]
    fn what_cannot_be_given_is_named() {
        let (_folder, files) = file(THREE, &three());
        let weights = Weights::open(&files).unwrap();
        let missing = weights.get("embeddings").unwrap_err().to_string();
        assert!(missing.contains("\"embeddings\" is missing among its 4 (a, b, c, …)"), "{missing}");
        let integer = weights.get("ids").unwrap_err().to_string();
        assert!(integer.contains("stored as I64"), "{integer}");
        let shape = weights.get_shaped("a", &[3]).unwrap_err().to_string();
        assert!(shape.contains("has shape [2]") && shape.contains("asks for [3]"), "{shape}");
    }

    #[test]
    fn every_truncation_is_an_error() {
        let (folder, files) = file(THREE, &three());
        let whole = fs::read(&files.paths()[0]).unwrap();
        for length in 0..whole.len() {
            fs::write(folder.path().join("model.safetensors"), &whole[..length]).unwrap();
            assert!(!reason(&files).is_empty(), "{length} of {}", whole.len());
        }
    }

    #[test]
    fn hostile_headers() {
        let tensor = |shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let data = [0; 8];
        for header in [
            tensor("[2]", "[0,4]"),                                     // fewer bytes than the shape needs
            tensor("[2]", "[4,12]"),                                    // past the end
            tensor("[2]", "[8,0]"),                                     // backwards
            tensor("[4611686018427387904]", "[0,0]"),                   // shape × 4 overflows
            tensor("[4294967296,4294967296]", "[0,8]"),                 // shape overflows
            tensor("[4611686018427387903]", "[0,18446744073709551612]"), // header + data overflows
            tensor("[-1]", "[0,8]"),
            r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#.into(),
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#
                .into(), // overlap, and a hole
            "[]".into(),
            "{".into(),
            String::new(),
        ] {
            let (_folder, files) = file(&header, &data);
            assert!(reason(&files).contains("download it again"), "{header}");
        }
        for length in [u64::MAX, u64::MAX - 7, 1 << 40, 100_000_001, 9] {
            let (_folder, files) = raw(&[&length.to_le_bytes()[..], b"{}"].concat());
            assert!(reason(&files).contains("download it again"), "{length}");
        }
    }

    #[test]
    fn an_empty_file_and_a_git_lfs_pointer_are_called_that() {
        let (_folder, files) = raw(b"");
        assert!(reason(&files).contains("empty"));
        let (_folder, files) = raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
        assert!(reason(&files).contains("git lfs pull"));
    }

    #[test]
    fn a_pickle_that_is_none() {
        for bytes in [&b"PK\x03\x04 not a zip"[..], b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"garbage"] {
            let (folder, _) = raw(b"x");
            let path = folder.path().join("pytorch_model.bin");
            fs::write(&path, bytes).unwrap();
            let said = reason(&WeightFiles::Pickle(path));
            assert!(said.contains("safetensors"), "{said}");
        }
    }

    #[test]
    fn a_vanished_file_is_an_io_error() {
        let files = WeightFiles::Safetensors(vec!["/nowhere/model.safetensors".into()]);
        assert!(matches!(Weights::open(&files), Err(Error::Io { .. })));
    }
}
