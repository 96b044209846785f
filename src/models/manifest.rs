//! Which files make a model: the weights, the configuration, the tokenizer, and the stages of `modules.json`.

use std::cell::RefCell;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::formats::gguf;
use super::json::read_json;
use super::source::safe_relative;
use crate::{Error, Result};

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
    /// `pytorch_model.bin`, or all its shards.
    Pickle(Vec<PathBuf>),
    /// A `.gguf` file with everything else in it too, or its parts.
    Gguf(Vec<PathBuf>),
}

impl WeightFiles {
    /// The files, in the order of their names.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Self::Safetensors(paths) | Self::Pickle(paths) | Self::Gguf(paths) => paths,
        }
    }
}

/// What changes the weights of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelAdapter {
    /// An adapter of PEFT in files of its own.
    Peft {
        /// As messages name it.
        name: String,
        /// The folder of its `adapter_config.json`.
        folder: PathBuf,
        /// Its tensors.
        weights: WeightFiles,
    },
    /// One of those that the model's own weights have, by its name.
    Own(String),
}

impl ModelAdapter {
    /// What messages and descriptions call it.
    pub fn name(&self) -> &str {
        match self {
            Self::Peft { name, .. } | Self::Own(name) => name,
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
    /// What changes the weights.
    pub adapter: Option<ModelAdapter>,
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
                return Err(Error::invalid_file(
                    root,
                    "it is a file where a model's folder was expected; give the folder that holds config.json",
                ));
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
        let selection = Selection::new(&modules, &has, &|folder| files_in(&root.join(folder)));
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
            adapter: None,
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
            adapter: None,
        })
    }

    /// Whether it is a GGUF file.
    pub(crate) fn is_gguf(&self) -> bool {
        matches!(self.weights, WeightFiles::Gguf(_))
    }

    /// The file `name` in the folder of the weights, if it exists. A GGUF file is a whole model: it has no such files.
    pub fn beside_weights(&self, name: &str) -> Option<PathBuf> {
        if self.is_gguf() {
            return None;
        }
        Some(self.transformer.join(name)).filter(|path| path.is_file())
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

/// A required file that a model lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Missing {
    /// `config.json`
    Config,
    /// Any tokenizer that can be read. `sentencepiece` is set when there is only a `sentencepiece.bpe.model`.
    Tokenizer { sentencepiece: bool },
    /// Any weights that can be read.
    Weights,
    /// A shard that the index names.
    Shard(String),
}

/// Optional files next to the weights, which configure the tokenizer and the pooling.
const OPTIONAL: [&str; 9] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "added_tokens.json",
    // Stanford's ColBERT, and the layers of bge-m3 over single tokens.
    "artifact.metadata",
    "colbert_linear.pt",
    "sparse_linear.pt",
    // Where a model has it next to weights of its own, that is known and refused.
    "adapter_config.json",
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
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// The folder of chat templates with names, and how the names of their files end.
pub(crate) const TEMPLATE_FOLDER: &str = "additional_chat_templates";
pub(crate) const TEMPLATE_END: &str = ".jinja";

/// The names of the files of a folder, in order; none of a folder that is not there.
pub(crate) fn files_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.path().is_file());
    let mut names: Vec<_> = files.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// The names of the file with an adapter's tensors.
pub(crate) const ADAPTER_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// The modules that stand for a transformer, or for the table in its place. That of code of its own is computed for models with
/// adapters of their own alone.
const TRANSFORMERS: [&str; 4] = ["Transformer", "MLMTransformer", "StaticEmbedding", TASK_TRANSFORMER];
pub(crate) const TASK_TRANSFORMER: &str = "custom_st.Transformer";

impl Selection {
    /// What is wanted of the files that there are: `has` says whether there is one of a name, `listed` gives the names of those
    /// in a folder.
    pub(crate) fn new(
        modules: &[Module],
        has: &dyn Fn(&str) -> bool,
        listed: &dyn Fn(&str) -> Vec<String>,
    ) -> Result<Self, Missing> {
        let transformer = modules
            .iter()
            .find(|m| TRANSFORMERS.contains(&&*m.kind))
            .map(|m| m.path.clone())
            .unwrap_or_default();
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
        // A table has no configuration.
        let is_static = modules.iter().any(|module| module.kind == "StaticEmbedding");
        if !take(within("config.json")) && !is_static {
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
        for name in listed(&within(TEMPLATE_FOLDER)).iter().filter(|name| name.ends_with(TEMPLATE_END)) {
            take(within(&format!("{TEMPLATE_FOLDER}/{name}")));
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
        let (name, paths) = match self.weights.strip_suffix(".index.json") {
            None => (&*self.weights, vec![path]),
            Some(name) => {
                let folder = root.join(&self.transformer);
                (name, shards(&path)?.iter().map(|shard| folder.join(shard)).collect())
            }
        };
        Ok(if name.ends_with(".bin") { WeightFiles::Pickle(paths) } else { WeightFiles::Safetensors(paths) })
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
                "pytorch_model.bin or the shards of either with their index would do too, but ONNX, OpenVINO, TensorFlow and Flax copies cannot be \
                 read; download the PyTorch weights",
            ),
            Self::Shard(name) => (name, "the index names it; download it again"),
        };
        Error::MissingFile { model: model.into(), file, folder: folder.to_path_buf(), remedy: remedy.into() }
    }
}

/// The shard names of an index, `model.safetensors.index.json` for example, sorted, each once.
pub(crate) fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index_content: Index = read_json(index)?;
    let names: std::collections::BTreeSet<String> = index_content.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(Error::invalid_file(index, "its weight_map is empty; download it again"));
    }
    names
        .iter()
        .map(|name| {
            safe_relative(name).filter(|path| !path.as_os_str().is_empty()).ok_or_else(|| {
                Error::invalid_file(
                    index,
                    format!("it names the shard {name:?}, outside of the model's folder"),
                )
            })
        })
        .collect()
}

/// Reads `modules.json`. The order is that of the list, as in sentence-transformers, whatever `idx` says.
pub(crate) fn read_modules(path: &Path) -> Result<Vec<Module>> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        path: String,
        #[serde(rename = "type")]
        kind: String,
        /// Arguments of a call that the module takes.
        #[serde(default)]
        kwargs: Vec<String>,
    }
    let entries: Vec<Entry> = read_json(path)?;
    entries
        .into_iter()
        .map(|entry| {
            // A class of the model's own keeps its full name, which no module that runs here has.
            let own = entry.kind.strip_prefix("sentence_transformers.");
            let kind = own.map_or(&*entry.kind, |class| class.rsplit('.').next().unwrap_or_default());
            // The task is that of an adapter, which is chosen with the model here.
            let tasks = kind == TASK_TRANSFORMER && entry.kwargs.iter().all(|argument| argument == "task");
            let kind = if entry.kwargs.is_empty() || tasks {
                kind.to_string()
            } else {
                format!("{} with the arguments {}", entry.kind, entry.kwargs.join(", "))
            };
            // The model's own folder has two spellings.
            let folder = if entry.path == "." { "" } else { &entry.path };
            match safe_relative(folder) {
                Some(path) => Ok(Module { kind, path }),
                None => Err(Error::invalid_file(
                    path,
                    format!("it names the folder {:?}, outside of the model's", entry.path),
                )),
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
