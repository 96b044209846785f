//! Tensors by name, wherever they are stored.
//!
//! Headers are read and checked when files are opened; the numbers of a tensor are read from its file when the tensor is
//! packed. Nothing in such a file is executed.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use super::architectures::{GgufTensors, Tensors};
use super::formats::gguf::Gguf;
use super::formats::pickle::{self, Pickled, Storage};
use super::formats::safetensors;
use super::manifest::{ModelFiles, WeightFiles, metadata};
use crate::compute::file::WeightFile;
use crate::compute::linear::GROUP;
use crate::compute::memory::zeroed;
use crate::compute::{Matrix, Stored, Weight, WeightFormat};
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
            WeightFiles::Pickle(path) => {
                let (file, listed) = open(path, pickle::tensors)?;
                tensors.extend(listed.into_iter().map(|tensor| {
                    let (name, shape, dtype) =
                        (tensor.name.clone(), tensor.shape.clone(), tensor.dtype.clone());
                    (
                        name,
                        TensorEntry {
                            shape,
                            dtype,
                            place: Place::Pickled { file: Arc::clone(&file), tensor },
                        },
                    )
                }));
                opened.push(file);
            }
        }
        let first = files.paths().first().cloned().unwrap_or_default();
        Ok(Self { tensors, first, gguf: None, files: opened, checked: Mutex::default() })
    }

    /// The tensors of a GGUF file that is open already.
    pub(crate) fn of_gguf(gguf: Arc<Gguf>) -> Self {
        let (first, files) = (gguf.path().to_path_buf(), gguf.files().to_vec());
        Self { tensors: HashMap::new(), first, gguf: Some(gguf), files, checked: Mutex::default() }
    }

    /// Checks that no file was changed since it was opened, so that all tensors are of one version.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the one that was.
    pub fn check(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.check())
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
                format!("the tensor {name:?} is stored as {dtype}; F32, F16 and BF16 can be read, so save it in one of these"),
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
}

/// Names are those of transformers. The tensors of a model that was saved without its head lack the prefix `model.`.
impl Tensors for Weights {
    fn contains(&self, name: &str) -> bool {
        match &self.gguf {
            Some(gguf) => GgufTensors(gguf).contains(name),
            None => self.tensors.contains_key(self.own_name(name)),
        }
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        match &self.gguf {
            Some(gguf) => GgufTensors(gguf).matrix(name, shape),
            None => self.get_shaped(self.own_name(name), &shape).map(Matrix::Plain),
        }
    }

    fn vector(&self, name: &str, length: usize) -> Result<Weight> {
        match &self.gguf {
            Some(gguf) => GgufTensors(gguf).vector(name, length),
            None => self.get_shaped(self.own_name(name), &[length]),
        }
    }

    fn files(&self) -> Vec<Weak<WeightFile>> {
        self.files.iter().map(Arc::downgrade).collect()
    }
}

impl Weights {
    fn get_shaped(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let weight = self.get(name)?;
        if weight.shape() == shape {
            return Ok(weight);
        }
        let path = self.tensors.get(name).map_or(self.first.as_path(), |entry| entry.place.path());
        Err(Error::invalid_file(
            path,
            format!(
                "the tensor {name:?} has shape {:?} where config.json asks for {shape:?}; config.json and weights belong \
                 to different models",
                weight.shape()
            ),
        ))
    }

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
        Ok(elements(&self.weights)? * format.group_bytes() / GROUP as u64 + 12 * tokenizer)
    }
}

/// The number of floating-point elements in `files`; integers (position ids) are not loaded and do not count.
fn elements(files: &WeightFiles) -> Result<u64> {
    let weights = Weights::open(files)?;
    let read = weights.tensors.values().filter(|entry| entry.dtype.is_ok());
    Ok(read.map(|entry| entry.shape.iter().product::<usize>() as u64).sum())
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
        assert_eq!(weights.get("a").unwrap().to_f32().unwrap(), [1.5, -2.0]);
        assert_eq!(weights.get_shaped("b", &[1, 2]).unwrap().to_f32().unwrap(), [0.5, 3.0]);
        assert_eq!(weights.get("c").unwrap().to_f32().unwrap(), [0.25, -1.0]);
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

    /// What a damaged copy of `whole` gives: an error that names the file, or tensors.
    fn outcome(path: &Path, whole: &[u8], files: &WeightFiles) {
        fs::write(path, whole).unwrap();
        let read = Weights::open(files).and_then(|weights| {
            let names: Vec<_> = weights.names().map(str::to_owned).collect();
            names.iter().try_for_each(|name| weights.get(name)?.to_f32().map(drop))
        });
        match read {
            Ok(()) => {}
            Err(Error::InvalidFile { path: named, .. }) => assert_eq!(named, path),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn damage_is_an_error_that_names_the_file() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let folder = tempfile::tempdir().unwrap();
        for name in ["bert_bin/pytorch_model.bin", "bert_plain/model.safetensors"] {
            let whole = fs::read(fixtures.join(name)).unwrap();
            let path = folder.path().join(name.rsplit('/').next().unwrap());
            let files = match name.ends_with(".bin") {
                true => WeightFiles::Pickle(path.clone()),
                false => WeightFiles::Safetensors(vec![path.clone()]),
            };
            let mut seed = 1u64;
            let mut next = |below: usize| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 33) as usize % below
            };
            for round in 0..150 {
                let mut damaged = whole.clone();
                // Structure lies at both ends; numbers between.
                let ends = 8000.min(whole.len() / 2);
                let place = |at: usize| if at < ends { at } else { whole.len() - 1 - (at - ends) };
                match round % 3 {
                    0 => (0..=next(4)).for_each(|_| damaged[place(next(2 * ends))] = next(256) as u8),
                    1 => damaged.truncate(place(next(2 * ends))),
                    _ => {
                        let (from, to, n) = (next(whole.len() - 64), next(whole.len() - 64), next(64));
                        damaged.copy_within(from..from + n, to);
                    }
                }
                outcome(&path, &damaged, &files);
            }
        }
    }
}
