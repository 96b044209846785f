//! The names of the families over candle's tensors, in a build without the feature `candle-models`: they are refused.

use super::architecture::Architecture;
use super::family::{ComputeEngine, ConfigFile, Family};
use crate::Result;
use crate::models::heads::layout;

/// Their names, for lists and refusals.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        generates: false,
        classifier: Some(&layout::DEBERTA),
        engine: ComputeEngine::Candle,
        ..Family::new("deberta-v2", "DebertaV2", &[], absent)
    },
    generator("lfm2", "Lfm2"),
];

const fn generator(model_type: &'static str, classes: &'static str) -> Family {
    Family { embeds: false, engine: ComputeEngine::Candle, ..Family::new(model_type, classes, &[], absent) }
}

fn absent(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    Err(file.unsupported(ComputeEngine::Candle.missing()))
}
