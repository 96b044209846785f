//! Linear layers over weights of any stored form, coded ones of GGUF files among them, for encoders and decoders; and
//! what decoders need beside: rotary positions, and attention over a cache.

pub(crate) mod activations;
pub(crate) mod attention;
mod blocks;
pub(crate) mod gemm;
mod kv_cache;
mod linear;
mod pack;
mod quant_gemm;
pub(crate) mod rope;

pub(crate) use blocks::GROUP;
pub use blocks::{BlockFormat, BlockTensor};
pub use kv_cache::{CacheShape, KvCache};
pub use linear::{KernelSet, Linear, Matrix, WeightFormat};
pub use pack::Packer;
pub use rope::{RopeStyle, Rotary};
