//! Linear layers: any number of rows times weights in any stored format.
//!
//! Weights keep their narrow format. They are packed once into panels, which one thread reads sequentially. Plain weights
//! are multiplied by plain activations. Quantized weights ([`super::blocks`]) are multiplied as integers by activations
//! quantized to eight bits, as in llama.cpp. [`super::gemm`] divides a product among threads.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::activations::Forms;
use super::blocks::{BlockTensor, GROUP, QuantLayout};
use super::quant_gemm::{Dot, PANEL, group_bytes};
use super::quant_unpack::Unpack;
use crate::Result;
#[cfg(feature = "cuda")]
use crate::compute::file::WeightFile;
use crate::compute::isa::{DType, Isa};
use crate::compute::kernels::{Kernels, units};
use crate::compute::memory::{Piece, zeroed};
use crate::compute::weight::Weight;

/// The format in memory of weights that are stored as plain numbers. Blocks of GGUF files keep their own format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// f32, exact.
    F32,
    /// bf16: half the memory; activations are rounded to bf16 as well.
    Bf16,
    /// f16 with a scale for each output: half the memory; activations are rounded to f16 with a scale for each row.
    F16,
    /// Eight bits, with a scale for each 32 weights, as Q8_0.
    Int8,
    /// Four bits, with a scale and a minimum for each 32 weights, as Q4_1.
    Int4,
}

impl WeightFormat {
    /// The name that users see: `float32`, `bfloat16`, `float16`, `int8`, `int4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bytes of [`GROUP`] weights.
    pub fn group_bytes(self) -> u64 {
        match self {
            Self::F32 => 128,
            Self::Bf16 | Self::F16 => 64,
            Self::Int8 => 34,
            Self::Int4 => 20,
        }
    }

    /// The default: f16 if `isa` multiplies it natively, otherwise [`DType::auto`].
    pub fn auto(isa: Isa) -> Self {
        if isa.native_f16() { Self::F16 } else { DType::auto(isa).into() }
    }

    /// The format of activations between products with these weights.
    pub fn activations(self, isa: Isa) -> DType {
        match self {
            Self::F32 | Self::F16 => DType::F32,
            Self::Bf16 => DType::Bf16,
            Self::Int8 | Self::Int4 => DType::auto(isa),
        }
    }
}

impl From<DType> for WeightFormat {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::Bf16 => Self::Bf16,
        }
    }
}

/// A matrix `[outputs, inputs]` and its bias `[outputs]`.
pub type Biased = (Matrix, Option<Weight>);

/// A stored matrix `[outputs, inputs]`.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// Plain numbers.
    Plain(Weight),
    /// Quantized ones.
    Blocks(BlockTensor),
}

impl Matrix {
    /// Outputs.
    pub fn rows(&self) -> usize {
        match self {
            Self::Plain(weight) => weight.rows(),
            Self::Blocks(blocks) => blocks.rows(),
        }
    }

    /// Inputs.
    pub fn columns(&self) -> usize {
        match self {
            Self::Plain(weight) => weight.columns(),
            Self::Blocks(blocks) => blocks.columns(),
        }
    }

    /// Some of its rows: a part of a tensor that has several matrices.
    ///
    /// # Panics
    /// If it has fewer.
    #[must_use]
    pub fn slice_rows(&self, rows: Range<usize>) -> Self {
        match self {
            Self::Plain(weight) => Self::Plain(weight.slice_rows(rows)),
            Self::Blocks(blocks) => Self::Blocks(blocks.slice_rows(rows)),
        }
    }

    /// Each second row, from row `first` on.
    ///
    /// # Errors
    /// As [`to_f32`](Self::to_f32).
    pub(crate) fn every_second_row(&self, first: usize) -> Result<Self> {
        let (rows, mut scratch) = (self.rows(), Vec::new());
        let (size, stored) = match self {
            Self::Plain(weight) => {
                let size = weight.columns() * weight.stored().bytes();
                (size, weight.bytes().read(0..rows * size, &mut scratch)?)
            }
            Self::Blocks(blocks) => (blocks.row_bytes(), blocks.rows_read(0..rows, &mut scratch)?),
        };
        let chosen = rows.saturating_sub(first).div_ceil(2);
        let mut out = zeroed::<u8>(chosen * size)?;
        let from = stored.chunks_exact(size.max(1)).skip(first).step_by(2);
        out.chunks_exact_mut(size.max(1)).zip(from).for_each(|(to, from)| to.copy_from_slice(from));
        match self {
            Self::Plain(weight) => {
                Ok(Self::Plain(Weight::owned(out, weight.stored(), vec![chosen, weight.columns()])?))
            }
            Self::Blocks(blocks) => {
                BlockTensor::owned(out, blocks.format(), chosen, blocks.columns()).map(Self::Blocks)
            }
        }
    }

    /// All values, row-major.
    ///
    /// # Errors
    /// Errors of reading its file, and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self {
            Self::Plain(weight) => weight.to_f32(),
            Self::Blocks(blocks) => blocks.to_f32(),
        }
    }

    /// Where it lies in a file, if it does.
    #[cfg(feature = "cuda")]
    pub(in crate::compute) fn place(&self) -> Option<(std::sync::Weak<WeightFile>, Range<usize>)> {
        match self {
            Self::Plain(weight) => weight.bytes().place(),
            Self::Blocks(blocks) => blocks.place(),
        }
    }

    /// Row `row` into `out`, whose length is [`Self::columns`].
    ///
    /// # Errors
    /// Errors of reading its file.
    ///
    /// # Panics
    /// If `row` or the length of `out` is wrong.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Plain(weight) => weight.row_f32(row, out),
            Self::Blocks(blocks) => blocks.row_f32(row, out),
        }
    }

    /// Adds row `row` to `out`, whose length is [`Self::columns`].
    ///
    /// # Errors
    /// Errors of reading its file.
    ///
    /// # Panics
    /// If `row` or the length of `out` is wrong.
    pub fn add_row_f32(&self, row: usize, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Plain(weight) => weight.add_row_f32(row, out),
            Self::Blocks(blocks) => {
                let mut values = vec![0.0; out.len()];
                blocks.row_f32(row, &mut values)?;
                out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
                Ok(())
            }
        }
    }

    /// An embedding table, in memory or in its file. `memory` counts the bytes in memory.
    ///
    /// # Errors
    /// Errors of reading its file, and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(crate) fn table(&self, memory: &Arc<AtomicU64>) -> Result<Self> {
        Ok(match self {
            Self::Plain(weight) => Self::Plain(weight.table(memory)?),
            Self::Blocks(blocks) => Self::Blocks(blocks.table(memory)?),
        })
    }
}

impl From<Weight> for Matrix {
    fn from(weight: Weight) -> Self {
        Self::Plain(weight)
    }
}

/// The kernels of one instruction set, for plain and for quantized weights.
#[derive(Debug, Clone, Copy)]
pub struct KernelSet {
    pub(crate) kernels: &'static Kernels,
    pub(crate) dot: Dot,
    /// If rows that are read are multiplied by unpacked weights.
    pub(crate) unpack: Option<Unpack>,
}

impl KernelSet {
    /// The kernels of `isa`.
    pub fn new(isa: Isa) -> Self {
        Self { kernels: Kernels::of(isa), dot: Dot::of(isa), unpack: Unpack::of(isa) }
    }
}

/// `x Wᵀ + b`, for one or more matrices side by side; or, gated, `activation(x Gᵀ + b) * (x Wᵀ + c)`.
#[derive(Debug)]
pub struct Linear {
    pub(super) parts: Vec<LinearPart>,
    /// One number for each output of `parts`, or empty.
    pub(super) bias: Vec<f32>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) forms: Forms,
    /// Whether the first part is the gate of the second.
    pub(super) gated: bool,
}

/// Matrices of one form.
#[derive(Debug)]
pub(super) struct LinearPart {
    pub(super) form: PartFormat,
    pub(super) memory: Piece,
    /// Outputs, counted over all parts.
    pub(super) columns: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PartFormat {
    Plain(DType),
    /// f16 with a scale for each output.
    Scaled,
    Quantized(QuantLayout),
}

impl PartFormat {
    pub(super) fn of(matrix: &Matrix, plain: WeightFormat) -> Self {
        match (matrix, plain) {
            (Matrix::Blocks(blocks), _) => Self::Quantized(blocks.format().layout()),
            (_, WeightFormat::F32) => Self::Plain(DType::F32),
            (_, WeightFormat::Bf16) => Self::Plain(DType::Bf16),
            (_, WeightFormat::F16) => Self::Scaled,
            (_, WeightFormat::Int8) => {
                Self::Quantized(QuantLayout { bits: 8, minimum: false, halves: false })
            }
            (_, WeightFormat::Int4) => Self::Quantized(QuantLayout { bits: 4, minimum: true, halves: false }),
        }
    }

    /// Outputs of a panel.
    pub(super) fn width(self, kernels: &Kernels) -> usize {
        match self {
            Self::Plain(_) | Self::Scaled => kernels.width,
            Self::Quantized(_) => PANEL,
        }
    }

    /// Bytes of a panel, in whole cache lines.
    pub(super) fn panel_bytes(self, kernels: &Kernels, inputs: usize) -> usize {
        match self {
            Self::Plain(dtype) => units(dtype, inputs) * kernels.width * 4,
            // A row of scales follows those of the weights.
            Self::Scaled => ((units(DType::Bf16, inputs) + 1) * kernels.width * 4).next_multiple_of(64),
            Self::Quantized(layout) => (inputs.div_ceil(GROUP) * group_bytes(layout)).next_multiple_of(64),
        }
    }
}

impl LinearPart {
    /// `count` panels of `bytes` bytes each, from panel `first` on.
    pub(super) fn panels_from(&self, first: usize, count: usize, bytes: usize) -> &[u8] {
        &self.memory.as_slice::<u8>()[first * bytes..][..count * bytes]
    }

    pub(super) fn panels(&self, kernels: &Kernels) -> usize {
        self.columns.len().div_ceil(self.form.width(kernels))
    }

    /// The outputs of some panels of `width` each.
    pub(super) fn outputs(&self, panels: Range<usize>, width: usize) -> Range<usize> {
        let start = self.columns.start + panels.start * width;
        start..self.columns.end.min(start + panels.len() * width)
    }
}

impl Linear {
    /// Length of an input row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Length of an output row.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Whether some of its weights are quantized.
    pub(crate) fn is_quantized(&self) -> bool {
        self.forms.quantized
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.memory.len() as u64).sum::<u64>() + 4 * self.bias.len() as u64
    }
}

#[cfg(test)]
#[path = "layer_tests.rs"]
pub(crate) mod tests;
