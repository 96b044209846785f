//! Gemma 4's text models, and their encoder, EmbeddingGemma 2: layers of full attention have wider heads than those with a
//! window, values are normalized, and each layer has an input of its own, which a gate of its states multiplies.
//!
//! Google DeepMind: the model cards of Gemma 4 and of EmbeddingGemma 2, 2026.

mod config;
mod model;

use self::config::{FIELDS, read_encoder};
use super::family::Family;

/// The families.
pub(super) const FAMILIES: &[Family] = &[Family {
    generates: false,
    fields: FIELDS,
    ..Family::new("embedding_gemma2_text", "EmbeddingGemma2Text", &[], read_encoder)
}];
