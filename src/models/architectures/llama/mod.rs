//! Llama: RMS normalisation, rotary positions, grouped queries, a gated perceptron. Qwen2 and Qwen3 are variations.
//!
//! Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023.

mod config;
mod gguf;

use self::config::{KEYS, read};
#[cfg(test)]
pub(super) use self::config::{Llama, Variant};
use self::gguf::from_gguf;
use super::family::{ConfigFile, Family, GgufFamily};
use super::transformer::Architecture;
use crate::Result;

/// Llama and its variations.
pub(super) const FAMILIES: &[Family] = &[
    family("llama", "Llama", |file| read(file, None)),
    Family {
        gguf: Some(GgufFamily { embeds: false, read: |gguf| from_gguf(gguf, "qwen2") }),
        ..family("qwen2", "Qwen2", |file| read(file, Some(2)))
    },
    Family {
        gguf: Some(GgufFamily { embeds: true, read: |gguf| from_gguf(gguf, "qwen3") }),
        ..family("qwen3", "Qwen3", |file| read(file, Some(3)))
    },
];

const fn family(
    model_type: &'static str,
    classes: &'static str,
    read: fn(&ConfigFile<'_>) -> Result<Box<dyn Architecture>>,
) -> Family {
    let gguf = Some(GgufFamily { embeds: false, read: |gguf| from_gguf(gguf, "llama") });
    Family { model_type, classes, keys: KEYS, embeds: true, generates: true, bare_turns: false, read, gguf }
}
