//! What a slot's source is when it is not what the slot was registered for.

use crate::models::{ModelKind, ResolveOptions, Source, installed_kind};
use crate::{Error, Result};

/// The result of a load, whose error says so where the files are those of another kind of model. Downloads nothing.
pub(super) fn name_kind<T>(
    loaded: Result<T>,
    asked: Option<ModelKind>,
    source: &str,
    options: &ResolveOptions,
) -> Result<T> {
    loaded.map_err(|mut error| {
        if let Error::Unsupported { reason, .. } | Error::InvalidFile { reason, .. } = &mut error
            && let Ok(source) = Source::parse(source)
            && let Some(kind) = installed_kind(&source, options)
            // A slot without a kind takes each but a text generator.
            && asked.map_or(kind == ModelKind::Generator, |asked| asked != kind)
        {
            // First: what is missing for the other use follows from it.
            *reason = format!(
                "its files are those of {}, which is registered with kind={:?}; {reason}",
                kind.model(),
                kind.name()
            );
        }
        error
    })
}
