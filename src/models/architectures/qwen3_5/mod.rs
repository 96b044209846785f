//! Qwen3.5 and Qwen3-Next: pre-norm decoders of which most layers are gated delta rules, and the others attention whose outputs
//! have gates. Some have mixtures of experts in the place of perceptrons.
//!
//! Qwen Team, "Qwen3-Next: Towards Ultimate Training & Inference Efficiency", 2025.

mod config;
mod gguf;
mod model;

use self::config::{
    DENSE, EXPERT_FIELDS, EXPERT_IGNORED, FIELDS, IGNORED, MIXTURE, NEXT, NEXT_FIELDS, NEXT_IGNORED,
};
use self::gguf::from_gguf;
use super::family::{Family, GgufFamily};

#[cfg(test)]
pub(super) use self::model::{Qwen35, TensorForm};

/// The families.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        gguf: &[GgufFamily::generators("qwen35")],
        read_gguf: Some(from_gguf),
        fields: FIELDS,
        ..Family::new("qwen3_5_text", "Qwen3_5", IGNORED, |file| DENSE.read(file))
    },
    Family {
        gguf: &[GgufFamily::generators("qwen35moe")],
        read_gguf: Some(from_gguf),
        fields: EXPERT_FIELDS,
        ..Family::new("qwen3_5_moe_text", "Qwen3_5Moe", EXPERT_IGNORED, |file| MIXTURE.read(file))
    },
    Family {
        fields: NEXT_FIELDS,
        ..Family::new("qwen3_next", "Qwen3Next", NEXT_IGNORED, |file| NEXT.read(file))
    },
];
