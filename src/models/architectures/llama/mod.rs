//! Llama: RMS normalization, rotary positions, grouped queries, a gated perceptron; and the families that differ from it
//! by a few fields.
//!
//! Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023.

mod config;
mod dialect;
mod gguf;
mod model;

use self::config::read;
pub(super) use self::dialect::FAMILIES;
use self::gguf::from_gguf;
#[cfg(test)]
pub(super) use self::model::{HeadNorms, Llama, NormNames, Variant};
