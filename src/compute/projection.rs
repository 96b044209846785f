//! A linear layer over the states of tokens, in f32.

use super::isa::{DType, Isa};
use super::kernels::Activation;
use super::linear::activations::PlainRows;
use super::linear::gemm::{Epilogue, GemmScratch};
use super::linear::pack::Packer;
use super::linear::phases::RowPhases;
use super::linear::{Linear, WeightFormat};
use super::memory::zeroed;
use super::parallel::{Parallelism, Target};
use super::pooling::Rows;
use super::weight::Weight;
use crate::Result;

/// `W·x + b` for any number of rows, on the calling thread. A row's result depends on no other row.
#[derive(Debug)]
pub struct Projection {
    packer: Packer,
    linear: Linear,
}

impl Projection {
    /// `weight` has rows of `inputs` values.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(isa: Isa, weight: &[f32], bias: Option<&[f32]>, inputs: usize) -> Result<Self> {
        let outputs = weight.len() / inputs.max(1);
        let packer = Packer::new(isa, WeightFormat::F32);
        let bias = bias.map(|bias| Weight::from_f32(bias, &[outputs])).transpose()?;
        let linear = packer.linear(&[(Weight::from_f32(weight, &[outputs, inputs])?.into(), bias)])?;
        Ok(Self { packer, linear })
    }

    /// Values of a row that it takes.
    pub fn inputs(&self) -> usize {
        self.linear.inputs()
    }

    /// Values of a row that it gives.
    pub fn outputs(&self) -> usize {
        self.linear.outputs()
    }

    /// Bytes held.
    pub fn memory_bytes(&self) -> u64 {
        self.linear.bytes()
    }

    /// The rows of the result, one after another, into `out`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    ///
    /// # Panics
    /// If `rows` are of another width, or `out` has not as many rows.
    pub fn apply_into(&self, rows: Rows<'_>, out: &mut [f32]) -> Result<()> {
        let (values, stride, width) = rows.parts();
        assert!(rows.is_empty() || width == self.inputs(), "width of rows");
        assert_eq!(out.len(), rows.len() * self.outputs(), "rows of a projection");
        // SAFETY: the bytes of numbers are bytes, and f32 has no padding.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        let x = PlainRows::new(bytes, stride * 4, rows.len(), self.inputs(), DType::F32);
        let out = Target::over(out, self.outputs());
        let store = Epilogue::Store(Activation::Identity);
        let (scratch, one, phases) = (&mut GemmScratch::default(), Parallelism::One, RowPhases::PREFILL);
        self.linear.multiply(&self.packer.kernel_set, one, scratch, x, &phases, store, &out, 0)
    }

    /// The same into memory of its own.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn apply(&self, rows: Rows<'_>) -> Result<Vec<f32>> {
        let mut out = zeroed(rows.len() * self.outputs())?;
        self.apply_into(rows, &mut out)?;
        Ok(out)
    }
}
