//! Late interaction: what the files of ColBERT models say. Each token of a query and of a document has a vector.
//!
//! Three forms are read: that of sentence-transformers' `MultiVectorEncoder`, that of PyLate, and that of Stanford's ColBERT
//! (`artifact.metadata`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::json::read_json;
use super::keys::{is_unset, refusal, refuse_unknown};
use super::manifest::{ModelFiles, Module};
use crate::{Error, Result};

/// ASCII punctuation, which ColBERT leaves out of documents unless its files say otherwise.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
/// Tokens of a query, where no file says how many.
const QUERY_LENGTH: usize = 32;

/// The keys of `config_sentence_transformers.json` that are read, with [`MARKERS`].
const MODEL_KEYS: &[&str] =
    &["prompts", "default_prompt_name", "similarity_fn_name", "model_type", "__version__"];
/// The keys that PyLate wrote: a file with one of them is that of such a model.
const MARKERS: &[&str] = &[
    "query_prefix",
    "document_prefix",
    "query_length",
    "document_length",
    "query_expansion",
    "do_query_expansion",
    "attend_to_expansion_tokens",
    "attend_to_mask_tokens",
    "skiplist_words",
];
/// The keys of `artifact.metadata` that are read.
const METADATA_KEYS: &[&str] = &[
    "query_token_id",
    "doc_token_id",
    "query_maxlen",
    "doc_maxlen",
    "attend_to_mask_tokens",
    "mask_punctuation",
    "similarity",
    "interaction",
    "relu",
];
/// Those of its keys that say how the model was trained and how texts were indexed.
const METADATA_OTHERS: &[&str] = &[
    "query_token",
    "doc_token",
    "dim",
    "ncells",
    "centroid_score_threshold",
    "ndocs",
    "load_index_with_mmap",
    "index_path",
    "index_bsize",
    "nbits",
    "kmeans_niters",
    "resume",
    "pool_factor",
    "clustering_mode",
    "protected_tokens",
    "rerank",
    "bsize",
    "accumsteps",
    "lr",
    "maxsteps",
    "save_every",
    "warmup",
    "warmup_bert",
    "nway",
    "use_ib_negatives",
    "reranker",
    "distillation_alpha",
    "ignore_scores",
    "model_name",
    "checkpoint",
    "triples",
    "collection",
    "queries",
    "index_name",
    "overwrite",
    "root",
    "experiment",
    "index_root",
    "name",
    "rank",
    "nranks",
    "amp",
    "gpus",
    "total_visible_gpus",
    "avoid_fork_if_possible",
    "meta",
    "schedule",
    "script",
];

/// What the files of a model of late interaction say.
#[derive(Debug, Clone, PartialEq)]
pub struct LateInteraction {
    /// The prompts by name; `query` and `document` stand before texts of these kinds.
    pub prompts: BTreeMap<String, String>,
    /// Texts that are one token each, if the vocabulary has them.
    pub markers: Vec<String>,
    /// The most tokens of a query.
    pub query_length: Option<usize>,
    /// The most tokens of a document.
    pub document_length: Option<usize>,
    /// What fills short queries.
    pub expansion: Option<QueryExpansion>,
    /// Tokens that get no vector.
    pub skipped: Vec<String>,
    /// Whether that is so in queries, and in documents.
    pub skips: [bool; 2],
    /// Folders of the layers over single states, in order; none for the layer among the model's own weights.
    pub dense: Option<Vec<PathBuf>>,
    /// Whether vectors have length 1.
    pub normalize: bool,
}

/// How a query becomes longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryExpansion {
    /// Tokens of each query; more in a longer one that is not cut.
    pub length: usize,
    /// Whether longer queries are cut.
    pub cuts: bool,
    /// Whether other tokens attend to the new ones.
    pub attend: bool,
    /// The token; without it the mask token, or the end of text.
    pub token: Option<String>,
}

impl LateInteraction {
    /// Reads the files of a model; `None` for one of another kind.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming a setting or a module that is not known here, [`Error::InvalidFile`].
    pub fn read(files: &ModelFiles) -> Result<Option<Self>> {
        let path = files.root.join("config_sentence_transformers.json");
        let saved: Map<String, Value> = if path.is_file() { read_json(&path)? } else { Map::new() };
        let native = saved.get("model_type").is_some_and(|kind| kind == "MultiVectorEncoder");
        let pylate = saved.get("model_type").is_some_and(|kind| kind == "ColBERT")
            || MARKERS.iter().any(|key| saved.contains_key(*key));
        if native || pylate {
            refuse_unknown(&files.model, &path, &saved, &[MODEL_KEYS, MARKERS])?;
            return Self::of_modules(files, &path, &saved, native).map(Some);
        }
        let config: Value = match files.beside_weights("config.json") {
            Some(path) => read_json(&path)?,
            None => Value::Null,
        };
        let classes = config["architectures"].as_array();
        if !classes.is_some_and(|classes| classes.iter().any(|class| class == "HF_ColBERT")) {
            return Ok(None);
        }
        Self::of_stanford(files).map(Some)
    }

    fn of_modules(files: &ModelFiles, path: &Path, saved: &Map<String, Value>, native: bool) -> Result<Self> {
        let model = &files.model;
        if let Some(name) = saved.get("similarity_fn_name").and_then(Value::as_str).filter(|_| native)
            && !name.eq_ignore_ascii_case("maxsim")
        {
            let reason = "only maxsim is supported";
            return Err(refusal(model, path, "similarity_fn_name", &Value::from(name), reason));
        }
        let text = |key: &str| saved.get(key).and_then(Value::as_str);
        let mut prompts = BTreeMap::new();
        for (name, prompt) in saved.get("prompts").and_then(Value::as_object).into_iter().flatten() {
            prompts.insert(name.clone(), prompt.as_str().unwrap_or_default().to_owned());
        }
        let mut markers = Vec::new();
        for (key, name) in [("query_prefix", "query"), ("document_prefix", "document")] {
            let Some(prefix) = text(key) else { continue };
            markers.push(prefix.to_owned());
            let own = prompts.get(name).map_or("", |prompt| prompt.strip_prefix(prefix).unwrap_or(prompt));
            prompts.insert(name.to_owned(), format!("{prefix}{own}"));
        }
        let transformer = match files.beside_weights("sentence_bert_config.json") {
            Some(path) => read_json::<Value>(&path)?,
            None => Value::Null,
        };
        let number = |key: &str| {
            let own = transformer[key].as_u64().or_else(|| saved.get(key).and_then(Value::as_u64));
            own.and_then(|length| usize::try_from(length).ok()).filter(|&length| length > 0)
        };
        let marked = MARKERS.iter().any(|key| saved.contains_key(*key));
        let mut query_length = number("query_length");
        let given = transformer.get("query_expansion").or_else(|| saved.get("query_expansion"));
        let expansion = match given {
            Some(given) => QueryExpansion::read(model, path, given)?,
            None if !marked || saved.get("do_query_expansion") == Some(&Value::Bool(false)) => None,
            None => {
                let attend = ["attend_to_expansion_tokens", "attend_to_mask_tokens"]
                    .iter()
                    .find_map(|key| saved.get(*key))
                    .is_some_and(|value| !is_unset(value));
                let length = query_length.take().unwrap_or(QUERY_LENGTH);
                Some(QueryExpansion { length, cuts: true, attend, token: None })
            }
        };
        let words = |value: &Value| -> Vec<String> {
            let words = value.as_array().map_or(&[][..], Vec::as_slice);
            words.iter().filter_map(|word| word.as_str().map(ToOwned::to_owned)).collect()
        };
        let skipped = match saved.get("skiplist_words") {
            Some(value) if !value.is_null() => words(value),
            _ if native => Vec::new(),
            _ => punctuation(),
        };
        if let (Some(most), Some(QueryExpansion { length, .. })) = (query_length, &expansion)
            && most < *length
        {
            let reason = format!("query_expansion makes every query {length} tokens long at least");
            return Err(refusal(model, path, "query_length", &most.into(), &reason));
        }
        let mut own = Self {
            prompts,
            markers,
            query_length,
            document_length: number("document_length"),
            expansion,
            skipped,
            skips: [false, true],
            dense: Some(Vec::new()),
            // PyLate's files do not list it.
            normalize: !native,
        };
        let mut masked = !native;
        for module in &files.modules {
            own.take(files, module, &mut masked, &words)?;
        }
        if own.expansion.is_some() && !masked {
            let reason =
                "its queries are expanded, but no MultiVectorMask gives the new tokens vectors".into();
            return Err(Error::Unsupported { model: model.clone(), reason });
        }
        Ok(own)
    }

    /// Reads what one of the modules says.
    fn take(
        &mut self,
        files: &ModelFiles,
        module: &Module,
        masked: &mut bool,
        words: &dyn Fn(&Value) -> Vec<String>,
    ) -> Result<()> {
        const SUPPORTED: &str =
            "supported for late interaction are Transformer, any Dense, MultiVectorMask and Normalize";
        let folder = files.root.join(&module.path);
        let settings = || -> Result<(PathBuf, Map<String, Value>)> {
            let path = folder.join("config.json");
            let json = if path.is_file() { read_json(&path)? } else { Map::new() };
            Ok((path, json))
        };
        let kind = module.kind.split(" with the arguments ").next().unwrap_or_default();
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" => {}
            "Dense" => self.dense.get_or_insert_default().push(folder),
            "Normalize" => {
                let (path, json) = settings()?;
                refuse_unknown(&files.model, &path, &json, &[&["module_input_name", "module_output_name"]])?;
                let of_tokens = |key: &str| json.get(key).is_some_and(|name| name == "token_embeddings");
                self.normalize |= of_tokens("module_input_name");
                if self.normalize
                    && json.contains_key("module_output_name")
                    && !of_tokens("module_output_name")
                {
                    let name = &json["module_output_name"];
                    let reason = "only token_embeddings is supported";
                    return Err(refusal(&files.model, &path, "module_output_name", name, reason));
                }
            }
            "MultiVectorMask" => {
                *masked = true;
                let (path, json) = settings()?;
                const KEYS: &[&str] = &["skiplist_words", "skiplist_tasks"];
                refuse_unknown(&files.model, &path, &json, &[KEYS])?;
                self.skipped = json.get("skiplist_words").map(words).unwrap_or_default();
                let tasks = match json.get("skiplist_tasks") {
                    None | Some(Value::Null) => vec!["document".to_owned()],
                    Some(Value::String(task)) => vec![task.clone()],
                    Some(tasks) => words(tasks),
                };
                self.skips = ["query", "document"].map(|side| tasks.iter().any(|task| task == side));
            }
            // Of a model that was one of single vectors.
            "Pooling" => {}
            _ => {
                let reason = format!("its modules.json lists {}; {SUPPORTED}", module.kind);
                return Err(Error::Unsupported { model: files.model.clone(), reason });
            }
        }
        Ok(())
    }

    fn of_stanford(files: &ModelFiles) -> Result<Self> {
        let path = files.root.join("artifact.metadata");
        let json: Map<String, Value> = if path.is_file() { read_json(&path)? } else { Map::new() };
        refuse_unknown(&files.model, &path, &json, &[METADATA_KEYS, METADATA_OTHERS])?;
        for (key, supported) in [("similarity", "cosine"), ("interaction", "colbert")] {
            if let Some(value) = json.get(key).filter(|value| *value != supported && !is_unset(value)) {
                return Err(refusal(
                    &files.model,
                    &path,
                    key,
                    value,
                    &format!("only {supported} is supported"),
                ));
            }
        }
        if let Some(value) = json.get("relu").filter(|value| !is_unset(value)) {
            return Err(refusal(&files.model, &path, "relu", value, "only false is supported"));
        }
        let marker = |key: &str, default: &str| {
            format!("{} ", json.get(key).and_then(Value::as_str).filter(|m| !m.is_empty()).unwrap_or(default))
        };
        let (query, document) = (marker("query_token_id", "[unused0]"), marker("doc_token_id", "[unused1]"));
        let number = |key: &str| {
            json.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0)
        };
        let flag = |key: &str, default: bool| json.get(key).and_then(Value::as_bool).unwrap_or(default);
        let expansion = QueryExpansion {
            length: number("query_maxlen").unwrap_or(QUERY_LENGTH),
            cuts: true,
            attend: flag("attend_to_mask_tokens", false),
            token: None,
        };
        Ok(Self {
            prompts: [("query".to_owned(), query.clone()), ("document".to_owned(), document.clone())].into(),
            markers: vec![query, document],
            query_length: None,
            document_length: number("doc_maxlen"),
            expansion: Some(expansion),
            skipped: if flag("mask_punctuation", true) { punctuation() } else { Vec::new() },
            skips: [false, true],
            dense: None,
            normalize: true,
        })
    }
}

impl QueryExpansion {
    fn read(model: &str, path: &Path, given: &Value) -> Result<Option<Self>> {
        if given.is_null() {
            return Ok(None);
        }
        let refuse = |reason: &str| refusal(model, path, "query_expansion", given, reason);
        let Some(json) = given.as_object() else { return Err(refuse("an object is expected")) };
        refuse_unknown(model, path, json, &[&["strategy", "attend", "token", "length"]])?;
        let cuts = match json.get("strategy").and_then(Value::as_str) {
            Some("fixed") => true,
            Some("min") => false,
            _ => return Err(refuse("the supported strategies are fixed and min")),
        };
        let length = json.get("length").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let length = length.filter(|&n| n > 0).ok_or_else(|| refuse("its length is not a number above 0"))?;
        let attend = json.get("attend").is_some_and(|value| !is_unset(value));
        let token = json.get("token").and_then(Value::as_str).map(ToOwned::to_owned);
        Ok(Some(Self { length, cuts, attend, token }))
    }
}

fn punctuation() -> Vec<String> {
    PUNCTUATION.chars().map(String::from).collect()
}
