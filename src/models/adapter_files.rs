//! Finds the files of an adapter, and the model that it changes.

use std::fs;
use std::path::{Path, PathBuf};

use super::adapters::config::{CONFIG, PeftConfig, is_adapter};
use super::adapters::own::{OwnAdapters, unknown_adapter};
use super::hub::{Hub, Progress, ResolveOptions};
use super::json::read_json;
use super::manifest::{ADAPTER_WEIGHTS, ModelAdapter, ModelFiles, WeightFiles};
use super::source::{Source, is_hub_id, looks_like_path, safe_relative};
use crate::config::expand_home;
use crate::{Error, Result};

/// `files` with the adapter that a user calls `adapter`: one that they have, or the folder, the hub id, or the hub id and the
/// folder after it, of one of PEFT.
///
/// # Errors
/// [`Error::Argument`] for one that there is not; [`Error::Unsupported`] for a model that takes none; those of the hub.
pub(super) fn attach(
    files: ModelFiles,
    adapter: &str,
    options: &ResolveOptions,
    progress: &mut dyn FnMut(&Progress<'_>) -> Result<()>,
) -> Result<ModelFiles> {
    if files.adapter.is_some() {
        let reason = format!(
            "={adapter:?}: {:?} is an adapter itself, and a model takes one; give its base as the source, {:?}",
            files.model,
            files.root.display().to_string()
        );
        return Err(Error::argument("adapter", reason));
    }
    refuse_quantized(&files)?;
    let config = files.transformer.join("config.json");
    let json = if config.is_file() { read_json(&config)? } else { serde_json::Value::Null };
    if let Some(own) = OwnAdapters::read(&config, &json)? {
        if !own.names.iter().any(|name| name == adapter) {
            return Err(unknown_adapter(&files.model, adapter, &own.names));
        }
        return Ok(ModelFiles { adapter: Some(ModelAdapter::Own(adapter.to_owned())), ..files });
    }
    let folder = locate(adapter, options, progress)?;
    attach_folder(files, adapter, &folder)
}

/// `files` with the adapter of PEFT in `folder`.
///
/// # Errors
/// [`Error::Unsupported`] for a model that takes none; [`Error::MissingFile`].
pub(super) fn attach_folder(files: ModelFiles, name: &str, folder: &Path) -> Result<ModelFiles> {
    refuse_quantized(&files)?;
    if files.static_form()?.is_some() {
        let reason = "it is a static model, which takes no adapter".into();
        return Err(Error::Unsupported { model: files.model, reason });
    }
    let is_there = |name: &&str| folder.join(name).is_file();
    let weights = match ADAPTER_WEIGHTS.into_iter().find(is_there) {
        Some(file) if file.ends_with(".bin") => WeightFiles::Pickle(vec![folder.join(file)]),
        Some(file) => WeightFiles::Safetensors(vec![folder.join(file)]),
        None => return Err(missing(name, ADAPTER_WEIGHTS[0], folder)),
    };
    let adapter = ModelAdapter::Peft { name: name.to_owned(), folder: folder.to_path_buf(), weights };
    Ok(ModelFiles { adapter: Some(adapter), ..files })
}

/// Files that sentence-transformers and transformers save with an adapter, of which nothing is read.
const UNUSED: [&str; 6] = [
    "modules.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "tokenizer.json",
    "added_tokens.json",
    "chat_template.jinja",
];

/// Says which files of the adapter's folder are not used though they differ from those of the base, and that the adapter was
/// trained on another model than the given one.
pub(crate) fn warn_of_unused(files: &ModelFiles) {
    let Some(ModelAdapter::Peft { name, folder, .. }) = &files.adapter else { return };
    let differs = |file: &&str| {
        let Ok(own) = fs::read(folder.join(file)) else { return false };
        let same = |base: &PathBuf| fs::read(base.join(file)).is_ok_and(|base| base == own);
        ![&files.root, &files.transformer].into_iter().any(same)
    };
    let unused: Vec<_> = UNUSED.into_iter().filter(differs).collect();
    if !unused.is_empty() {
        log::warn!(
            "{}: the adapter {name:?} has files that are not used: {}; pooling, prompts, tokenizer and chat template are \
             those of the base",
            files.model,
            unused.join(", ")
        );
    }
    let trained_on = PeftConfig::read(name, folder).ok().and_then(|config| config.base_model_name_or_path);
    let last = |path: &str| path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().map(str::to_owned);
    if let Some(base) = trained_on.filter(|base| *name != files.model && last(base) != last(&files.model)) {
        log::warn!("{}: the adapter {name:?} says that it was trained on {base:?}", files.model);
    }
}

/// Refuses a model with an adapter next to weights of its own: transformers adds it to them, others do not.
///
/// # Errors
/// [`Error::Unsupported`] with both ways to say what is meant.
pub(super) fn refuse_both(files: &ModelFiles) -> Result<()> {
    let is_file = matches!(files.weights, WeightFiles::Gguf(_));
    if is_file || ![&files.root, &files.transformer].into_iter().any(|folder| is_adapter(folder)) {
        return Ok(());
    }
    let model = &files.model;
    let reason = format!(
        "it has an adapter ({CONFIG}) next to weights of its own; to add it, register(name, {model:?}, adapter={model:?}); \
         for the weights alone, give a folder without {CONFIG}"
    );
    Err(Error::Unsupported { model: model.clone(), reason })
}

fn refuse_quantized(files: &ModelFiles) -> Result<()> {
    if !matches!(files.weights, WeightFiles::Gguf(_)) {
        return Ok(());
    }
    let reason = "an adapter is not added to the weights of a GGUF file; give the folder or the hub id of the model in \
                  safetensors (dtype=\"int8\" or \"int4\" keeps it small), or merge the adapter before the conversion";
    Err(Error::Unsupported { model: files.model.clone(), reason: reason.into() })
}

fn missing(adapter: &str, file: &str, folder: &Path) -> Error {
    Error::MissingFile {
        model: adapter.into(),
        file: file.into(),
        folder: folder.to_path_buf(),
        remedy: "an adapter of PEFT has it; give the folder that save_pretrained wrote".into(),
    }
}

/// The folder of the adapter of PEFT that a user calls `adapter`.
fn locate(
    adapter: &str,
    options: &ResolveOptions,
    progress: &mut dyn FnMut(&Progress<'_>) -> Result<()>,
) -> Result<PathBuf> {
    let adapter = adapter.trim();
    let path = expand_home(adapter);
    if is_adapter(&path) {
        return Ok(path);
    }
    if looks_like_path(adapter, &path) || path.is_dir() {
        return Err(missing(adapter, CONFIG, &path));
    }
    if let Some(HubAdapter { id, revision, inner }) = HubAdapter::parse(adapter) {
        // The revision of the options is that of the model.
        let options = ResolveOptions { revision, ..options.clone() };
        return Hub::new(&options)?.adapter(&id, &inner, progress);
    }
    let expected = "expected the folder of an adapter, a hub id (organization/name), a hub id and the folder after it, or a \
                    hub id with a revision (organization/name@v1.0)";
    Err(Error::argument("adapter", format!("={adapter:?}: {expected}")))
}

/// An adapter of the hub, as a user writes it: `organization/name`, `organization/name@revision`, and both with the folder
/// after them. The form is that of paths of `huggingface_hub`.
#[derive(Debug, PartialEq)]
struct HubAdapter {
    id: String,
    /// A branch, a tag or a commit; without it, the main branch.
    revision: Option<String>,
    inner: PathBuf,
}

impl HubAdapter {
    fn parse(adapter: &str) -> Option<Self> {
        let (organization, rest) = adapter.split_once('/')?;
        let end = rest.find(['/', '@']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let (revision, inner) = match rest.strip_prefix('@') {
            Some(rest) => {
                // Such a name has two slashes; in others, one is written as %2F.
                let special = ["refs/pr/", "refs/convert/"].into_iter().find(|start| rest.starts_with(start));
                let begin = special.map_or(0, str::len);
                let end = rest[begin..].find('/').map_or(rest.len(), |end| begin + end);
                let (revision, inner) = rest.split_at(end);
                (Some(revision.replace("%2F", "/").replace("%2f", "/")), inner)
            }
            None => (None, rest),
        };
        let id = format!("{organization}/{name}");
        let sound = |revision: &String| {
            safe_relative(revision).is_some_and(|path| !path.as_os_str().is_empty())
                && !revision.contains('@')
                && !revision.ends_with('/')
        };
        let inner = safe_relative(inner.strip_prefix('/').unwrap_or(inner))?;
        (is_hub_id(&id) && revision.as_ref().is_none_or(sound)).then_some(Self { id, revision, inner })
    }
}

/// The model that the adapter of PEFT in `folder` was trained on. `model` is what messages call the adapter, and `is_local`
/// says that its files are not those of the hub.
///
/// # Errors
/// [`Error::Unsupported`] when it names none, or one that files of the hub may not name.
pub(super) fn base_of(model: &str, folder: &Path, is_local: bool) -> Result<(Source, Option<String>)> {
    let config = PeftConfig::read(model, folder)?;
    let remedy = format!("give it yourself: register(name, BASE, adapter={model:?})");
    let refused =
        |reason: String| Error::Unsupported { model: model.into(), reason: format!("{reason}; {remedy}") };
    if folder.join("modules.json").is_file() {
        let reason = "it is an adapter that sentence-transformers has saved with modules of its own (modules.json), \
                      which are not read: with adapter=, pooling and prompts are those of the base";
        return Err(refused(reason.into()));
    }
    let Some(base) = config.base_model_name_or_path.filter(|base| !base.trim().is_empty()) else {
        return Err(refused(
            "it is an adapter whose adapter_config.json does not name its base model".into(),
        ));
    };
    let shown = format!("it is an adapter of {base:?}");
    match Source::parse(&base)
        .map_err(|_| refused(format!("{shown}, which is no model here or on the hub")))?
    {
        hub @ Source::Hub(_) => Ok((hub, config.revision)),
        directory @ Source::Directory(_) if is_local => match directory {
            Source::Directory(path) if path.is_dir() => Ok((Source::Directory(path), None)),
            _ => Err(refused(format!("{shown}, a folder that is not here"))),
        },
        Source::Directory(_) => {
            Err(refused(format!("{shown}, a folder of the machine that it was trained on")))
        }
        _ => Err(refused(format!("{shown}, which an adapter may not name"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_of_the_hub_have_an_id_a_revision_and_a_folder() {
        for (adapter, id, revision, inner) in [
            ("me/lora", "me/lora", None, ""),
            ("me/lora/", "me/lora", None, ""),
            ("me/lora/epoch-3", "me/lora", None, "epoch-3"),
            ("me/lora/a/b", "me/lora", None, "a/b"),
            ("me/lora@v1.0", "me/lora", Some("v1.0"), ""),
            ("me/lora@v1.0/epoch-3", "me/lora", Some("v1.0"), "epoch-3"),
            ("me/lora@refs/pr/7", "me/lora", Some("refs/pr/7"), ""),
            ("me/lora@refs/pr/7/epoch-3", "me/lora", Some("refs/pr/7"), "epoch-3"),
            ("me/lora@feature%2Fnew/a", "me/lora", Some("feature/new"), "a"),
            // A folder may have such a letter.
            ("me/lora/a@b", "me/lora", None, "a@b"),
        ] {
            let expected = HubAdapter {
                id: id.to_owned(),
                revision: revision.map(str::to_owned),
                inner: PathBuf::from(inner),
            };
            assert_eq!(HubAdapter::parse(adapter), Some(expected), "{adapter}");
        }
        for wrong in [
            "lora",
            "me@v1/lora",
            "me/lora@",
            "me/lora@/a",
            "me/lora@..",
            "me/lora@a@b",
            "me/lora@v1/../a",
            "/a/b",
            "me/",
            "me/lora@%2Fetc",
            "me/lora@refs/pr/",
        ] {
            assert_eq!(HubAdapter::parse(wrong), None, "{wrong}");
        }
    }
}
