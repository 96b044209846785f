//! How the CPU runs a model.

#[allow(unsafe_code)]
pub mod memory;
pub mod weight;

pub use memory::MappedFile;
pub use weight::{Packed, Stored, Tensors, Weight};

/// The number format that a model computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// 32-bit floats.
    F32,
    /// bfloat16 with 32-bit accumulation.
    Bf16,
}
