//! `model.safetensors`: a JSON header and the numbers of its tensors.

use std::fmt::Display;
use std::ops::Range;

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::compute::Stored;
use crate::compute::file::WeightFile;
use crate::compute::memory::zeroed;
use crate::{Error, Result};

/// The longest header: some hundred thousand tensors.
const LONGEST_HEADER: usize = 32 << 20;

/// A tensor of the file.
pub(in crate::models) struct Listed {
    pub(in crate::models) name: String,
    pub(in crate::models) shape: Vec<usize>,
    /// The format, or the name of one that is not read.
    pub(in crate::models) dtype: Result<Stored, String>,
    /// Its numbers in the file.
    pub(in crate::models) range: Range<usize>,
}

/// The tensors of `file`.
///
/// # Errors
/// [`Error::InvalidFile`] when the header is damaged or the file is cut short; [`Error::Io`].
///
/// # Panics
/// The `safetensors` crate adds up lengths that the file states; a hostile header makes the sum overflow.
pub(in crate::models) fn tensors(file: &WeightFile) -> Result<Vec<Listed>> {
    let damaged = |e: &dyn Display| {
        Error::invalid_file(
            file.path(),
            format!("its safetensors header is damaged or the file is cut short ({e}); download it again"),
        )
    };
    let mut length = [0; 8];
    if file.len() < length.len() {
        return Err(damaged(&"too short for a header"));
    }
    file.read(0, &mut length)?;
    let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > LONGEST_HEADER || length > file.len() - 8 {
        return Err(damaged(&format_args!("a header of {length} bytes")));
    }
    let mut header = zeroed(length)?;
    file.read(8, &mut header)?;
    let read: Metadata = serde_json::from_slice(&header).map_err(|e| damaged(&e))?;
    let begin = 8 + length;
    if begin.checked_add(read.data_len()) != Some(file.len()) {
        return Err(damaged(&format_args!("{} bytes of tensors", read.data_len())));
    }
    let listed = read.tensors().into_iter().map(|(name, info)| Listed {
        name,
        shape: info.shape.clone(),
        dtype: match info.dtype {
            Dtype::F32 => Ok(Stored::F32),
            Dtype::F16 => Ok(Stored::F16),
            Dtype::BF16 => Ok(Stored::Bf16),
            other => Err(format!("{other:?}")),
        },
        // The crate has checked that the tensors follow each other up to the end.
        range: begin + info.data_offsets.0..begin + info.data_offsets.1,
    });
    Ok(listed.collect())
}
