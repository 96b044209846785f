//! LFM2: a pre-norm decoder of which most layers are short convolutions with gates, and the others attention; and its encoder,
//! which sees in both directions. Another form has mixtures of experts in the place of perceptrons. LFM3 has attention in
//! windows too, gates of the outputs of each head, and norms of what its blocks add.
//!
//! Liquid AI, "LFM2 Technical Report", 2025.

mod config;
mod gguf;
mod lfm3;
mod model;

use self::config::{EXPERT_FIELDS, FIELDS, IGNORED, read, read_bidirectional, read_experts};
use self::gguf::from_gguf;
use super::family::{Family, GgufFamily};

#[cfg(test)]
pub(super) use self::model::{AttentionForm, AttentionNames, Lfm2};

/// The families. The files of the second one call it an "lfm2": `auto_map` names its classes.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        gguf: &[GgufFamily::generators("lfm2")],
        read_gguf: Some(from_gguf),
        fields: FIELDS,
        ..Family::new("lfm2", "Lfm2", IGNORED, read)
    },
    Family {
        generates: false,
        fields: FIELDS,
        ..Family::new("lfm2_bidirectional", "Lfm2Bidirectional", IGNORED, read_bidirectional)
    },
    Family {
        gguf: &[GgufFamily::generators("lfm2moe")],
        read_gguf: Some(from_gguf),
        fields: EXPERT_FIELDS,
        ..Family::new("lfm2_moe", "Lfm2Moe", IGNORED, read_experts)
    },
    Family { fields: lfm3::FIELDS, ..Family::new("lfm3", "Lfm3", &[], lfm3::read) },
];
