//! The names of the families over candle's tensors, in a build without the feature `candle-models`: they are refused.

use crate::Result;
use crate::models::architectures::architecture::Architecture;
use crate::models::architectures::family::{ComputeEngine, ConfigFile, Family};

/// Their names, for lists and refusals.
pub(in crate::models::architectures) const FAMILIES: &[Family] = &[generator("lfm2", "Lfm2")];

const fn generator(model_type: &'static str, classes: &'static str) -> Family {
    Family { embeds: false, engine: ComputeEngine::Candle, ..Family::new(model_type, classes, &[], absent) }
}

fn absent(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    Err(file.unsupported(ComputeEngine::Candle.missing()))
}

#[cfg(all(test, feature = "candle-models"))]
mod tests {
    use std::path::Path;

    use super::FAMILIES;
    use crate::Error;
    use crate::models::architectures::family::ConfigFile;

    /// Builds differ in the families that they compute, but not in those that they know.
    #[test]
    fn a_build_without_these_families_names_the_remedy() {
        let json = serde_json::json!({});
        for (family, built) in FAMILIES.iter().zip(super::super::FAMILIES) {
            let name = |family: &super::Family| {
                (family.model_type, family.classes, family.engine, family.embeds, family.generates)
            };
            assert_eq!(name(family), name(built));
            let file = ConfigFile { model: "some/model", path: Path::new("config.json"), json: &json };
            let error = (family.read)(&file).unwrap_err();
            assert!(matches!(&error, Error::Unsupported { model, .. } if model == "some/model"), "{error:?}");
            assert!(error.to_string().contains("--features candle-models"), "{error}");
        }
        assert_eq!(FAMILIES.len(), super::super::FAMILIES.len());
    }
}
