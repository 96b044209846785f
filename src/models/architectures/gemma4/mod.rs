//! Gemma 4's text models, and their encoder, EmbeddingGemma 2: layers of full attention have wider heads than those with a
//! window, values are normalized, and each layer has an input of its own, which a gate of its states multiplies. One of them has
//! experts next to the perceptron of each layer.
//!
//! Google DeepMind: the model cards of Gemma 4 and of EmbeddingGemma 2, 2026.

mod config;
mod experts;
mod gguf;
mod model;

use self::config::{FIELDS, GENERATOR_FIELDS, UNIFIED_FIELDS, read_encoder, read_generator};
use self::gguf::from_gguf;
use super::family::{Family, GgufFamily};

/// The families.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        generates: false,
        fields: FIELDS,
        ..Family::new("embedding_gemma2_text", "EmbeddingGemma2Text", &[], read_encoder)
    },
    Family {
        fields: GENERATOR_FIELDS,
        gguf: &[GgufFamily::generators("gemma4")],
        read_gguf: Some(from_gguf),
        ..Family::new("gemma4_text", "Gemma4", &[], read_generator)
    },
    Family {
        fields: UNIFIED_FIELDS,
        ..Family::new("gemma4_unified_text", "Gemma4Unified", &[], read_generator)
    },
];
