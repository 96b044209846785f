//! Linear layers over weights of any stored form, coded ones of GGUF files among them, for encoders and decoders; and
//! what decoders need beside: rotary positions, and attention over a cache.

pub(crate) mod activations;
pub(crate) mod attention;
mod blocks;
mod cache;
mod dot;
mod linear;
mod pack;
pub(crate) mod product;
pub(crate) mod rows;

pub(crate) use blocks::GROUP;
pub use blocks::{BlockFormat, BlockTensor};
pub use cache::{CacheShape, KvCache};
pub use linear::{Hold, Linear, Machine, Matrix};
pub use pack::Packer;
pub use rows::{Pairing, Rotary};
