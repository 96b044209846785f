//! Llama: RMS normalization, rotary positions, grouped queries, a gated perceptron; and the families that differ from it
//! by a few fields.
//!
//! Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023.

mod config;
mod dialect;
mod fields;
mod forms;
mod gguf;
mod mixtures;
mod model;
mod parts;

use self::config::read;
use self::dialect::Dialect;
use self::gguf::from_gguf;
use self::mixtures::DIALECTS;
use super::family::{Family, ReadGguf};
use crate::models::heads::layout;

/// The families.
pub(super) const FAMILIES: &[Family] = &{
    let mut families = [family(&DIALECTS[0]); DIALECTS.len()];
    let mut index = 1;
    while index < families.len() {
        families[index] = family(&DIALECTS[index]);
        index += 1;
    }
    families
};

const fn family(dialect: &Dialect) -> Family {
    let Dialect { model_type, classes, fields, ignored, gguf, .. } = *dialect;
    let classifier = if dialect.classifies { Some(&layout::CAUSAL) } else { None };
    let generates = dialect.causal;
    let read_gguf = Some(from_gguf as ReadGguf);
    let family = Family::new(model_type, classes, ignored, read);
    Family { generates, fields, gguf, read_gguf, classifier, ..family }
}

#[cfg(test)]
pub(super) use self::model::{HeadNorms, Llama, NormNames, Variant};
#[cfg(test)]
pub(super) use self::parts::{NormForm, XieluNumbers};
