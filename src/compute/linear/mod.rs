//! Linear layers over weights of any stored form, quantized ones of GGUF files among them.

pub(crate) mod activations;
pub(crate) mod blocks;
mod flipped;
pub(crate) mod gemm;
mod grid_blocks;
pub(crate) mod joined;
pub(crate) mod layer;
pub(crate) mod pack;
pub(crate) mod phases;
mod quant_gemm;
pub(crate) mod quant_unpack;
mod unfinished;

pub(crate) use blocks::GROUP;
pub use blocks::{BlockFormat, BlockTensor};
pub use layer::{Biased, KernelSet, Linear, Matrix, WeightFormat};
pub use pack::Packer;
