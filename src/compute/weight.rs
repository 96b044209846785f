//! A stored tensor in the format of its file, and a batch of token sequences.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};

use super::file::{Bytes, WeightFile};
use super::memory::zeroed;
use crate::{Error, Result};

/// The number format of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// IEEE 754 single.
    F32,
    /// IEEE 754 half.
    F16,
    /// bfloat16.
    Bf16,
}

impl Stored {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A view of one tensor, cheap to clone: row-major and little-endian, in the format of its file.
#[derive(Debug, Clone)]
pub struct Weight {
    bytes: Bytes,
    stored: Stored,
    shape: Vec<usize>,
}

impl Weight {
    /// The tensor at `range` of a file. Its numbers are read from the file on each access.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if the range lies outside the file or does not match `shape`.
    pub fn in_file(
        file: Arc<WeightFile>,
        range: Range<usize>,
        stored: Stored,
        shape: Vec<usize>,
    ) -> Result<Self> {
        if range.start > range.end || range.end > file.len() || !fits(range.len(), stored, &shape) {
            return Err(Error::InvalidFile {
                path: file.path().to_path_buf(),
                reason: format!(
                    "a tensor of shape {shape:?} cannot lie at bytes {range:?} of {}; fetch the file again",
                    file.len()
                ),
            });
        }
        Ok(Self { bytes: Bytes::File(file, range), stored, shape })
    }

    /// A tensor in memory.
    ///
    /// # Errors
    /// [`Error::Input`] if the number of bytes does not match `shape`.
    pub fn owned(bytes: Vec<u8>, stored: Stored, shape: Vec<usize>) -> Result<Self> {
        if !fits(bytes.len(), stored, &shape) {
            return Err(Error::Input(format!(
                "{} bytes do not make a tensor of shape {shape:?}",
                bytes.len()
            )));
        }
        Ok(Self { bytes: Bytes::Memory(bytes.into()), stored, shape })
    }

    /// A tensor of f32 values in memory.
    ///
    /// # Errors
    /// [`Error::Input`] if the number of values does not match `shape`.
    pub fn from_f32(values: &[f32], shape: &[usize]) -> Result<Self> {
        Self::owned(values.iter().flat_map(|x| x.to_le_bytes()).collect(), Stored::F32, shape.to_vec())
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The stored number format.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// The same tensor as an embedding table: [`Bytes::table`].
    pub(crate) fn table(&self, memory: &Arc<AtomicU64>) -> Result<Self> {
        Ok(Self { bytes: self.bytes.table(memory)?, ..self.clone() })
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Length of the first dimension (1 for a scalar).
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements in one row: the product of the dimensions after the first.
    pub fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// The same numbers in another shape.
    ///
    /// # Panics
    /// If that has another number of them.
    #[must_use]
    pub fn reshaped(self, shape: &[usize]) -> Self {
        assert!(fits(self.bytes.len(), self.stored, shape), "numbers of a tensor");
        Self { shape: shape.to_vec(), ..self }
    }

    /// Some of its rows.
    ///
    /// # Panics
    /// If it has fewer.
    pub fn slice_rows(&self, rows: Range<usize>) -> Self {
        let size = self.columns() * self.stored.bytes();
        let bytes = self.bytes.slice(rows.start * size..rows.end * size);
        let shape = std::iter::once(rows.len()).chain(self.shape.iter().skip(1).copied()).collect();
        Self { bytes, stored: self.stored, shape }
    }

    /// All values.
    ///
    /// # Errors
    /// Errors of reading its file, and [`Error::OutOfMemory`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut values = zeroed(self.bytes.len() / self.stored.bytes())?;
        let mut scratch = Vec::new();
        let bytes = self.bytes.read(0..self.bytes.len(), &mut scratch)?;
        decode(bytes, self.stored, &mut values, |x, value| *x = value);
        Ok(values)
    }

    /// Row `row` of a matrix into `out`, whose length is [`Self::columns`].
    ///
    /// # Errors
    /// Errors of reading its file.
    ///
    /// # Panics
    /// If `row` or the length of `out` is wrong.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), self.columns(), "row length");
        self.rows_f32(row..row + 1, out, &mut Vec::new())
    }

    /// Consecutive rows. Those of a file are read into `scratch`.
    pub(crate) fn rows_f32(&self, rows: Range<usize>, out: &mut [f32], scratch: &mut Vec<u8>) -> Result<()> {
        decode(self.rows_read(rows, scratch)?, self.stored, out, |x, value| *x = value);
        Ok(())
    }

    /// Adds row `row` of a matrix to `out`, whose length is [`Self::columns`].
    ///
    /// # Errors
    /// Errors of reading its file.
    ///
    /// # Panics
    /// If `row` or the length of `out` is wrong.
    pub fn add_row_f32(&self, row: usize, out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), self.columns(), "row length");
        let mut scratch = Vec::new();
        decode(self.rows_read(row..row + 1, &mut scratch)?, self.stored, out, |x, value| *x += value);
        Ok(())
    }

    fn rows_read<'a>(&'a self, rows: Range<usize>, scratch: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        let size = self.columns() * self.stored.bytes();
        self.bytes.read(rows.start * size..rows.end * size, scratch)
    }
}

fn fits(bytes: usize, stored: Stored, shape: &[usize]) -> bool {
    let elements = shape.iter().try_fold(1_usize, |product, &n| product.checked_mul(n));
    elements.and_then(|n| n.checked_mul(stored.bytes())) == Some(bytes)
}

/// Values in f16 that are decoded together.
const TOGETHER: usize = 256;

fn decode(bytes: &[u8], stored: Stored, out: &mut [f32], put: impl Fn(&mut f32, f32)) {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f32], put: impl Fn(&mut f32, [u8; N])) {
        for (x, raw) in out.iter_mut().zip(bytes.as_chunks().0) {
            put(x, *raw);
        }
    }
    match stored {
        Stored::F32 => each(bytes, out, |x, raw| put(x, f32::from_le_bytes(raw))),
        Stored::F16 => {
            // Many at once, by the CPU's own instruction: one at a time costs a call each.
            let (mut halves, mut wide) = ([f16::ZERO; TOGETHER], [0.0; TOGETHER]);
            for (out, raw) in out.chunks_mut(TOGETHER).zip(bytes.chunks(2 * TOGETHER)) {
                halves
                    .iter_mut()
                    .zip(raw.as_chunks().0)
                    .for_each(|(half, raw)| *half = f16::from_le_bytes(*raw));
                halves.convert_to_f32_slice(&mut wide);
                out.iter_mut().zip(wide).for_each(|(x, value)| put(x, value));
            }
        }
        Stored::Bf16 => each(bytes, out, |x, raw| put(x, bf16::from_le_bytes(raw).to_f32())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stored_format_reads_as_f32() {
        let values = [1.0_f32, -2.5, 0.0, 65504.0, 1.0e-3, f32::INFINITY];
        let single = Weight::from_f32(&values, &[3, 2]).unwrap();
        assert_eq!(single.to_f32().unwrap(), values);
        let bytes = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let weight = Weight::owned(bytes, Stored::F16, vec![2, 3]).unwrap();
        let mut row = [0.0; 3];
        weight.row_f32(1, &mut row).unwrap();
        assert_eq!(row, [65504.0, f16::from_f32(1.0e-3).to_f32(), f32::INFINITY]);
        weight.add_row_f32(0, &mut row).unwrap();
        assert_eq!(row[0], 65505.0);
        let bytes = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        let weight = Weight::owned(bytes, Stored::Bf16, vec![6]).unwrap();
        assert_eq!(weight.to_f32().unwrap()[1], -2.5);
    }

    #[test]
    fn every_f16_is_decoded_alone_and_among_others() {
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for end in [1, TOGETHER - 1, TOGETHER + 1, all.len()] {
            let bytes = all[..end].iter().flat_map(|x| x.to_le_bytes()).collect();
            let found = Weight::owned(bytes, Stored::F16, vec![end]).unwrap().to_f32().unwrap();
            let wanted = all[..end].iter().map(|x| x.to_f32());
            assert!(found.into_iter().map(f32::to_bits).eq(wanted.map(f32::to_bits)), "{end}");
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        assert!(Weight::from_f32(&[0.0; 5], &[2, 3]).is_err());
        assert!(Weight::owned([0; 8].into(), Stored::F32, vec![usize::MAX, 2]).is_err());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        std::fs::write(&path, [0; 16]).unwrap();
        let file = WeightFile::open(&path).unwrap();
        assert!(Weight::in_file(Arc::clone(&file), 0..16, Stored::F32, vec![4]).is_ok());
        let (late, early) = (16, 0);
        for range in [0..20, 4..16, late..early] {
            assert!(Weight::in_file(Arc::clone(&file), range, Stored::F32, vec![4]).is_err());
        }
    }
}
