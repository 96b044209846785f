//! Llama: RMS normalization, rotary positions, grouped queries, a gated perceptron. Qwen2 and Qwen3 are variations.
//!
//! Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023.

mod config;
mod gguf;

use self::config::{KEYS, read};
#[cfg(test)]
pub(super) use self::config::{Llama, Variant};
use self::gguf::from_gguf;
use super::family::{Family, GgufFamily, ReadConfig, ReadGguf};
use crate::models::heads::layout;

/// Llama and its variations.
pub(super) const FAMILIES: &[Family] = &[
    family("llama", "Llama", |file| read(file, None), false, |gguf| from_gguf(gguf, "llama")),
    family("qwen2", "Qwen2", |file| read(file, Some(2)), false, |gguf| from_gguf(gguf, "qwen2")),
    family("qwen3", "Qwen3", |file| read(file, Some(3)), true, |gguf| from_gguf(gguf, "qwen3")),
];

const fn family(
    model_type: &'static str,
    classes: &'static str,
    read: ReadConfig,
    gguf_embeds: bool,
    read_gguf: ReadGguf,
) -> Family {
    let gguf = Some(GgufFamily { embeds: gguf_embeds, read: read_gguf });
    Family { gguf, classifier: Some(&layout::CAUSAL), ..Family::new(model_type, classes, KEYS, read) }
}
