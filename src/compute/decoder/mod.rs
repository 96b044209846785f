//! What decoders need beside the encoder's kernels: weights in the coded formats of GGUF files, products for few
//! rows, rotary positions, and attention over a cache.

pub(crate) mod activations;
pub(crate) mod attention;
mod blocks;
mod cache;
mod dot;
mod linear;
mod pack;
pub(crate) mod product;
pub(crate) mod rows;

pub use blocks::{BlockFormat, BlockTensor};
pub use cache::{CacheShape, KvCache};
pub use linear::{Hold, Linear, Machine, Matrix};
pub use rows::{Pairing, Rotary};
