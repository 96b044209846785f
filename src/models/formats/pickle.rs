//! `pytorch_model.bin`: a zip of one pickle and the numbers of its tensors, as `torch.save` writes it since PyTorch 1.6.
//!
//! The pickle is run by [`super::pickle_machine`], which calls nothing that it names.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::pickle_machine::Machine;
use crate::compute::Stored;
use crate::compute::file::WeightFile;
use crate::compute::memory::zeroed;
use crate::size::size_text;
use crate::{Error, Result};

/// The most bytes of the zip's directory and of the pickle: a thousand times those of a real model.
const MOST_BYTES: u64 = 16 << 20;

/// A tensor of the file.
#[derive(Debug)]
pub(in crate::models) struct Pickled {
    pub(in crate::models) name: String,
    pub(in crate::models) shape: Vec<usize>,
    /// Elements from one index to the next, for each dimension.
    pub(in crate::models) strides: Vec<usize>,
    /// The format, or the name of one that is not read.
    pub(in crate::models) dtype: Result<Stored, String>,
    /// Its numbers, from the first to the last, in the file.
    pub(in crate::models) range: Range<usize>,
    pub(in crate::models) storage: Storage,
}

/// The member of the zip with a tensor's numbers; tensors may share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::models) struct Storage {
    pub(in crate::models) range: Range<usize>,
    pub(in crate::models) checksum: u32,
}

impl Pickled {
    /// Whether the numbers are stored row by row.
    pub(in crate::models) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == expected;
            expected *= n;
            fits
        })
    }

    /// The numbers row by row, from the bytes of `range`.
    pub(in crate::models) fn gather(&self, stored: &[u8], size: usize) -> Result<Vec<u8>> {
        let elements: usize = self.shape.iter().product();
        let mut out = zeroed::<u8>(elements * size)?;
        let mut index = vec![0; self.shape.len()];
        for to in out.chunks_exact_mut(size) {
            let at: usize = index.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum();
            to.copy_from_slice(&stored[at * size..][..size]);
            for (i, &n) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < n {
                    break;
                }
                *i = 0;
            }
        }
        Ok(out)
    }
}

impl Storage {
    /// Reads it all and compares its checksum.
    pub(in crate::models) fn check(&self, file: &WeightFile) -> Result<()> {
        let mut piece = zeroed::<u8>(self.range.len().min(1 << 18))?;
        let mut hasher = crc32fast::Hasher::new();
        let mut at = self.range.start;
        while at < self.range.end {
            let n = piece.len().min(self.range.end - at);
            file.read(at, &mut piece[..n])?;
            hasher.update(&piece[..n]);
            at += n;
        }
        if hasher.finalize() == self.checksum {
            return Ok(());
        }
        Err(invalid(file, "the checksum of its numbers is wrong: it is damaged; download it again"))
    }
}

/// The tensors of `file`.
///
/// # Errors
/// [`Error::InvalidFile`] naming what is damaged, or what no model's weights have; [`Error::Io`].
pub(in crate::models) fn tensors(file: &WeightFile) -> Result<Vec<Pickled>> {
    const MAGIC: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.";
    let mut head = [0; MAGIC.len()];
    let n = head.len().min(file.len());
    file.read(0, &mut head[..n])?;
    if head == MAGIC {
        return Err(invalid(
            file,
            "it is in the format that PyTorch wrote before 1.6, which is not read; load it with torch and save it again, \
             best with safetensors",
        ));
    }
    let damaged = |e: &dyn std::fmt::Display| {
        invalid(
            file,
            &format!(
                "it does not read as a PyTorch checkpoint ({e}); download it again, or save it with safetensors"
            ),
        )
    };
    let mut archive =
        ZipArchive::new(LimitedReader { file, at: 0, left: MOST_BYTES }).map_err(|e| damaged(&e))?;
    let name = archive
        .file_names()
        .filter_map(|name| Some(name.ok()?.into_owned()))
        .find(|name| name.split_once('/').map_or(name.as_str(), |(_, rest)| rest) == "data.pkl")
        .ok_or_else(|| damaged(&"it has no data.pkl"))?;
    let prefix = name.strip_suffix("data.pkl").unwrap_or_default().to_owned();
    let mut member = |name: &str| -> Result<Storage> {
        let entry = archive.by_name(name).map_err(|e| damaged(&format!("{name}: {e}")))?;
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(damaged(&format!("{name} is compressed or encrypted, as torch.save leaves none")));
        }
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
        let end = start.zip(usize::try_from(entry.size()).ok()).and_then(|(start, n)| start.checked_add(n));
        match (start, end) {
            (Some(start), Some(end)) if end <= file.len() => {
                Ok(Storage { range: start..end, checksum: entry.crc32() })
            }
            _ => Err(damaged(&format!("{name} lies outside of the file"))),
        }
    };
    if let Ok(order) = member(&format!("{prefix}byteorder")) {
        let mut bytes = zeroed(order.range.len().min(16))?;
        file.read(order.range.start, &mut bytes)?;
        if bytes == b"big" {
            return Err(damaged(&"its numbers are big-endian"));
        }
    }
    let pickle = member(&name)?;
    if pickle.range.len() as u64 > MOST_BYTES {
        return Err(damaged(&format!("its pickle is larger than {}", size_text(MOST_BYTES))));
    }
    pickle.check(file)?;
    let mut program = zeroed(pickle.range.len())?;
    file.read(pickle.range.start, &mut program)?;
    let machine = Machine::run(&program).map_err(|reason| damaged(&reason))?;
    let mut storages = HashMap::new();
    let mut found = Vec::new();
    for (name, tensor) in machine.state_dict().map_err(|reason| damaged(&reason))? {
        let outside = || {
            damaged(&format!("the tensor {name:?} of shape {:?} lies outside of its storage", tensor.shape))
        };
        let storage = match storages.get(&tensor.storage) {
            Some(storage) => Storage::clone(storage),
            None => {
                let storage = member(&format!("{prefix}data/{}", tensor.storage))?;
                storages.insert(tensor.storage.clone(), storage.clone());
                storage
            }
        };
        let size = tensor.kind.size();
        let last = tensor.shape.iter().zip(&tensor.strides).try_fold(0usize, |last, (&n, &stride)| {
            last.checked_add(n.saturating_sub(1).checked_mul(stride)?)
        });
        let elements = tensor.shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n));
        let bytes = |n: usize| n.checked_mul(size).filter(|&n| n <= storage.range.len());
        let (Some(last), Some(elements)) = (last, elements) else { return Err(outside()) };
        let used = if elements == 0 { 0 } else { last.saturating_add(1) };
        let (Some(skipped), Some(used), Some(_)) = (bytes(tensor.offset), bytes(used), bytes(elements))
        else {
            return Err(outside());
        };
        let start = storage.range.start + skipped;
        if start + used > storage.range.end {
            return Err(outside());
        }
        found.push(Pickled {
            name,
            shape: tensor.shape.clone(),
            strides: tensor.strides.clone(),
            dtype: tensor.kind.stored(),
            range: start..start + used,
            storage,
        });
    }
    Ok(found)
}

fn invalid(file: &WeightFile, reason: &str) -> Error {
    Error::invalid_file(file.path(), reason)
}

/// Reads a file up to a limit of bytes.
struct LimitedReader<'a> {
    file: &'a WeightFile,
    at: u64,
    left: u64,
}

impl Read for LimitedReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let rest = (self.file.len() as u64).saturating_sub(self.at);
        let n = usize::try_from(rest).unwrap_or(usize::MAX).min(out.len());
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::other("its directory is larger than any model's"))?;
        let at = usize::try_from(self.at).map_err(io::Error::other)?;
        self.file.read(at, &mut out[..n]).map_err(io::Error::other)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for LimitedReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => (self.file.len() as u64).checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

#[cfg(test)]
#[path = "pickle_tests.rs"]
mod tests;
