//! The settings that sentence-transformers saves with a model: pooling, normalization, length, prompts.
//!
//! They are read, never guessed, in the classic spelling and in the one that version 6 writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::formats::gguf::Gguf;
use super::heads::{Pooling, SpladePooling};
use super::json::read_json;
use super::keys::{refusal, refuse_unknown};
use super::late::LateInteraction;
use super::manifest::{ModelFiles, SENTENCE_CONFIGS};
use super::stages::Stages;
use super::tokenizers::config::TokenizerConfig;
use crate::similar::similar;
use crate::{Error, Result};

/// How texts become vectors around the transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SentenceConfig {
    /// From token states to one vector.
    pub pooling: Pooling,
    /// Whether the tokens of a prompt take part in pooling.
    pub include_prompt: bool,
    /// Folders of the Dense modules, in order, between pooling and normalization.
    pub dense: Vec<PathBuf>,
    /// Whether the model itself ends with L2 normalization.
    pub normalize: bool,
    /// The longest sequence in tokens, special ones included.
    pub max_length: usize,
    /// Lower-case texts before tokenizing, whatever the tokenizer does.
    pub lower_case: bool,
    /// Texts put before a text, by name.
    pub prompts: BTreeMap<String, String>,
    /// The prompt used when none is named.
    pub default_prompt_name: Option<String>,
    /// How vectors of this model are compared.
    pub similarity: Similarity,
    /// Values that a vector keeps where a call does not say it.
    pub truncate_dim: Option<usize>,
}

/// How the vectors of a model are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Similarity {
    /// Cosine of the angle.
    #[default]
    Cosine,
    /// Dot product.
    #[serde(alias = "dot_score")]
    Dot,
    /// Negative Euclidean distance.
    Euclidean,
    /// Negative Manhattan distance.
    Manhattan,
}

impl Similarity {
    /// sentence-transformers' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Dot => "dot",
            Self::Euclidean => "euclidean",
            Self::Manhattan => "manhattan",
        }
    }
}

/// The other keys of `sentence_bert_config.json` that [`TransformerFile::check`] reads, with [`LOADERS`].
const TRANSFORMER_KEYS: &[&str] = &[
    "transformer_task",
    "modality_config",
    "module_output_name",
    "processing_kwargs",
    // How the computation is carried out.
    "backend",
    "unpad_inputs",
    "cache_dir",
];
/// Its keys with arguments of transformers' loaders.
const LOADERS: &[&str] =
    &["model_args", "tokenizer_args", "config_args", "model_kwargs", "processor_kwargs", "config_kwargs"];
/// Arguments of transformers' loaders that change no result.
const ARGUMENTS: &[&str] = &[
    "add_pooling_layer",
    "attn_implementation",
    "device_map",
    "dtype",
    "local_files_only",
    "low_cpu_mem_usage",
    "torch_dtype",
    "trust_remote_code",
    "use_fast",
    "use_safetensors",
];
/// What sentence-transformers writes of the model as a whole.
const MODEL_CONFIG: &str = "config_sentence_transformers.json";
/// Keys of [`MODEL_CONFIG`] in addition to the fields of [`ModelFile`]. `model_type` is checked; `activation_fn` is read with
/// a head that scores.
const MODEL_KEYS: &[&str] = &["model_type", "__version__", "activation_fn"];

/// What sentence-transformers writes into the files of one kind of model.
struct SavedTask {
    class: &'static str,
    task: &'static str,
    output: &'static str,
    state: &'static str,
    /// Keys of the transformer's settings that such models have and others do not.
    keys: &'static [&'static str],
}

const EMBEDDING: SavedTask = SavedTask {
    class: "SentenceTransformer",
    task: "feature-extraction",
    output: "token_embeddings",
    state: "last_hidden_state",
    keys: &[],
};
const LATE: SavedTask = SavedTask {
    class: "MultiVectorEncoder",
    keys: &["query_length", "document_length", "query_expansion"],
    ..EMBEDDING
};
const JUDGEMENT: SavedTask = SavedTask {
    class: "CrossEncoder",
    task: "text-generation",
    output: "causal_logits",
    state: "logits",
    keys: &[],
};
const SCORES: SavedTask = SavedTask {
    class: "CrossEncoder",
    task: "sequence-classification",
    output: "scores",
    state: "logits",
    keys: &[],
};
const MASKED: SavedTask = SavedTask {
    class: "SparseEncoder",
    task: "fill-mask",
    output: "token_embeddings",
    state: "logits",
    keys: &[],
};

#[derive(Default, Deserialize)]
struct TransformerFile {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl TransformerFile {
    /// Refuses settings of the transformer other than those of `saved`.
    fn check(&self, model: &str, path: &Path, saved: &SavedTask) -> Result<()> {
        refuse_unknown(model, path, &self.others, &[TRANSFORMER_KEYS, LOADERS, saved.keys])?;
        for (key, supported) in [("transformer_task", saved.task), ("module_output_name", saved.output)] {
            if let Some(value) = self.others.get(key).filter(|value| *value != supported) {
                let reason = format!("only {supported:?} is supported");
                return Err(refusal(model, path, key, value, &reason));
            }
        }
        for key in LOADERS {
            if let Some(arguments) = self.others.get(*key).and_then(Value::as_object) {
                refuse_unknown(model, path, arguments, &[ARGUMENTS])?;
            }
        }
        // The arguments of a chat template are read with it.
        if let Some(processing) = self.others.get("processing_kwargs").and_then(Value::as_object) {
            refuse_unknown(model, path, processing, &[&["chat_template"]])?;
        }
        let modalities = self.others.get("modality_config").and_then(Value::as_object);
        let read =
            modalities.into_iter().flatten().filter(|(name, _)| ["text", "message"].contains(&&***name));
        for (_, computed) in read {
            if computed["method"] != "forward" || computed["method_output_name"] != saved.state {
                let reason = format!("only the {} of forward is supported", saved.state);
                return Err(refusal(model, path, "modality_config", computed, &reason));
            }
        }
        Ok(())
    }
}

#[derive(Default, Deserialize)]
struct ModelFile {
    #[serde(default)]
    prompts: BTreeMap<String, Option<String>>,
    default_prompt_name: Option<String>,
    similarity_fn_name: Option<Similarity>,
    truncate_dim: Option<usize>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl SentenceConfig {
    /// Reads the files. `positions` is the longest sequence that the transformer itself can take.
    ///
    /// Without `modules.json`: no normalization, and the pooling of [`Stages`], as sentence-transformers loads such a model.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the stage that cannot be run, [`Error::MissingFile`], [`Error::InvalidFile`].
    pub fn load(files: &ModelFiles, positions: usize) -> Result<Self> {
        let own = Self::read(files, positions, &EMBEDDING)?;
        let Stages { pooling, include_prompt, dense, normalize } = Stages::read(files)?;
        Ok(Self { pooling, include_prompt, dense, normalize, ..own })
    }

    /// The longest text as the transformer's settings say, and whether texts are lower-cased.
    fn read_transformer(files: &ModelFiles, positions: usize, saved: &SavedTask) -> Result<(usize, bool)> {
        let transformer: TransformerFile =
            match SENTENCE_CONFIGS.iter().find_map(|name| files.beside_weights(name)) {
                Some(path) => {
                    let file: TransformerFile = read_json(&path)?;
                    file.check(&files.model, &path, saved)?;
                    file
                }
                None => TransformerFile::default(),
            };
        let longest = transformer.max_seq_length.filter(|&n| n > 0);
        let longest = match longest {
            Some(length) => Some(length),
            None => TokenizerConfig::read(files)?.max_length(),
        };
        Ok((longest.map_or(positions, |length| length.min(positions)), transformer.do_lower_case))
    }

    /// The settings of a model of late interaction: its length and its prompts.
    ///
    /// # Errors
    /// As [`SentenceConfig::load`].
    pub fn of_late(files: &ModelFiles, positions: usize, late: &LateInteraction) -> Result<Self> {
        let (max_length, lower_case) = Self::read_transformer(files, positions, &LATE)?;
        Ok(Self { max_length, lower_case, prompts: late.prompts.clone(), ..Self::plain() })
    }

    /// The settings of any model that was saved for `saved`: length, case, prompts, similarity.
    fn read(files: &ModelFiles, positions: usize, saved: &SavedTask) -> Result<Self> {
        if files.modules.is_empty() {
            return Self::of_bare(files, positions);
        }
        let (max_length, lower_case) = Self::read_transformer(files, positions, saved)?;
        Ok(Self { max_length, lower_case, ..Self::of_model(files, saved)? })
    }

    /// The settings of a model without `modules.json`. sentence-transformers then reads none of its own files, which may be
    /// left of another model.
    fn of_bare(files: &ModelFiles, positions: usize) -> Result<Self> {
        let transformer = SENTENCE_CONFIGS.iter().find_map(|name| files.beside_weights(name));
        let model = Some(files.root.join(MODEL_CONFIG)).filter(|path| path.is_file());
        for path in transformer.into_iter().chain(model) {
            let model = &files.model;
            log::warn!("{model}: {} is not read, because there is no modules.json", path.display());
        }
        let longest = TokenizerConfig::read(files)?.max_length();
        Ok(Self { max_length: longest.map_or(positions, |length| length.min(positions)), ..Self::plain() })
    }

    /// The settings of a StaticEmbedding, which has no transformer.
    pub(super) fn of_static(files: &ModelFiles) -> Result<Self> {
        let Stages { dense, normalize, .. } = Stages::read(files)?;
        Ok(Self { dense, normalize, ..Self::of_model(files, &EMBEDDING)? })
    }

    /// The settings that do not depend on the transformer: prompts, similarity.
    fn of_model(files: &ModelFiles, saved: &SavedTask) -> Result<Self> {
        let path = files.root.join(MODEL_CONFIG);
        let model: ModelFile = if path.is_file() { read_json(&path)? } else { ModelFile::default() };
        refuse_unknown(&files.model, &path, &model.others, &[MODEL_KEYS])?;
        if let Some(kind) = model.others.get("model_type").filter(|kind| *kind != saved.class) {
            let reason = format!("here only a {} is supported", saved.class);
            return Err(refusal(&files.model, &path, "model_type", kind, &reason));
        }
        match model.truncate_dim {
            Some(0) => return Err(Error::invalid_file(path, "its truncate_dim is 0; it must be at least 1")),
            // Only SentenceTransformer cuts vectors; other classes have none, or read the key in no version.
            Some(kept) if saved.class != EMBEDDING.class => {
                let reason = format!("a {} has no vectors to truncate", saved.class);
                return Err(refusal(&files.model, &path, "truncate_dim", &kept.into(), &reason));
            }
            _ => {}
        }
        let prompts: BTreeMap<_, _> =
            model.prompts.into_iter().map(|(name, prompt)| (name, prompt.unwrap_or_default())).collect();
        if let Some(name) = model.default_prompt_name.as_ref().filter(|name| !prompts.contains_key(*name)) {
            return Err(Error::invalid_file(
                path,
                format!("its default_prompt_name {name:?} is none of its prompts; correct or remove it"),
            ));
        }
        Ok(Self {
            prompts,
            default_prompt_name: model.default_prompt_name,
            similarity: model.similarity_fn_name.unwrap_or_default(),
            truncate_dim: model.truncate_dim,
            ..Self::plain()
        })
    }

    /// Values of a vector where a call does not say it; the transformer and its heads compute `width`.
    #[must_use]
    pub fn kept(&self, width: usize) -> usize {
        self.truncate_dim.map_or(width, |kept| kept.min(width))
    }

    /// The settings of a model that scores texts: its length. Its head decides the rest.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming a stage that cannot be run, [`Error::InvalidFile`].
    pub fn of_classifier(files: &ModelFiles, positions: usize) -> Result<Self> {
        let known = |kind: &str| ["Transformer", "LogitScore"].contains(&kind);
        if let Some(module) = files.modules.iter().find(|module| !known(&module.kind)) {
            return Err(Error::Unsupported {
                model: files.model.clone(),
                reason: format!(
                    "its modules.json lists {}; a model that scores has a Transformer, and may have a LogitScore",
                    module.kind
                ),
            });
        }
        let judges = files.modules.iter().any(|module| module.kind == "LogitScore");
        Self::read(files, positions, if judges { &JUDGEMENT } else { &SCORES })
    }

    /// The settings of a model of sparse vectors: its length and its prompts.
    ///
    /// # Errors
    /// As [`SentenceConfig::load`].
    pub fn of_sparse(files: &ModelFiles, positions: usize) -> Result<Self> {
        let own = Self::read(files, positions, &MASKED)?;
        let known = |kind: &str| ["Transformer", "MLMTransformer", "SpladePooling"].contains(&kind);
        if let Some(module) = files.modules.iter().find(|module| !known(&module.kind)) {
            return Err(Error::Unsupported {
                model: files.model.clone(),
                reason: format!(
                    "its modules.json lists {}; supported for sparse vectors are MLMTransformer and SpladePooling",
                    module.kind
                ),
            });
        }
        Ok(own)
    }

    /// How a model of sparse vectors pools. Without `modules.json`: the largest of all tokens, as in SPLADE++.
    ///
    /// # Errors
    /// As [`SpladePooling::load`].
    pub fn splade(files: &ModelFiles) -> Result<SpladePooling> {
        match files.modules.iter().find(|module| module.kind == "SpladePooling") {
            Some(module) => SpladePooling::load(&files.model, &files.root.join(&module.path)),
            None => Ok(SpladePooling::default()),
        }
    }

    /// The mean of all states, cut nowhere, without prompts.
    pub fn plain() -> Self {
        Self {
            pooling: Pooling::Mean,
            include_prompt: true,
            dense: Vec::new(),
            normalize: false,
            max_length: usize::MAX,
            lower_case: false,
            prompts: BTreeMap::new(),
            default_prompt_name: None,
            similarity: Similarity::default(),
            truncate_dim: None,
        }
    }

    /// The settings in the metadata of a GGUF file; `pooling` replaces its pooling. Vectors are L2-normalized, as in
    /// llama.cpp.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it names no pooling and none is given, [`Error::InvalidFile`] for an unknown one.
    pub fn from_gguf(gguf: &Gguf, model: &str, positions: usize, pooling: Option<Pooling>) -> Result<Self> {
        let key = format!("{}.pooling_type", gguf.text("general.architecture").unwrap_or_default());
        let named = match gguf.number(&key) {
            Some(1) => Some(Pooling::Mean),
            Some(2) => Some(Pooling::Cls),
            Some(3) => Some(Pooling::Last),
            None | Some(0) => None,
            Some(other) => {
                return Err(Error::invalid_file(
                    gguf.path(),
                    format!("its {key} is {other}; known are 1 (mean), 2 (cls), 3 (last)"),
                ));
            }
        };
        gguf.check_asked()?;
        let pooling = pooling.or(named).ok_or_else(|| Error::Unsupported {
            model: model.into(),
            reason: format!(
                "it names no pooling ({key}), so it was made to write text, not to embed it. To write text, register it \
                 with kind=\"generator\"; if it does embed, say how: pooling=\"lasttoken\""
            ),
        })?;
        Ok(Self { pooling, normalize: true, max_length: positions, ..Self::plain() })
    }

    /// The text to put before each text: `prompt` itself, else the one named, else the default one, else "".
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name; [`Error::Unsupported`] when the model leaves prompts out of pooling.
    pub fn prompt<'a>(&'a self, model: &str, name: Option<&str>, prompt: Option<&'a str>) -> Result<&'a str> {
        let chosen = match (prompt, name.or(self.default_prompt_name.as_deref())) {
            (Some(prompt), _) => prompt,
            (None, Some(name)) => self.prompts.get(name).map(String::as_str).ok_or_else(|| {
                let known: Vec<_> = self.prompts.keys().map(String::as_str).collect();
                let remedy = match (similar(name, known.iter().copied()), known.is_empty()) {
                    (_, true) => "it has no prompts; give the text itself as prompt".to_owned(),
                    (Some(meant), _) => format!("did you mean {meant:?}?"),
                    (None, _) => format!("it has: {}", known.join(", ")),
                };
                Error::argument("prompt_name", format!(": model {model:?} has no prompt {name:?}; {remedy}"))
            })?,
            (None, None) => "",
        };
        if !self.include_prompt && !chosen.is_empty() {
            return Err(Error::Unsupported {
                model: model.into(),
                reason:
                    "it leaves the prompt out of pooling (include_prompt false), which is not supported; \
                         embed without a prompt"
                        .into(),
            });
        }
        Ok(chosen)
    }
}
