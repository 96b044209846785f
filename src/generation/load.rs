//! From files to a generator's parts: decoder, tokenizer, chat template, the tokens that end a text.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::chat::{self, ChatTemplate, TURNS_TEMPLATE};
use super::stop::TextTokens;
use crate::compute::Isa;
use crate::compute::decoder::{Packer, WeightFormat};
use crate::models::added_tokens;
use crate::models::causal::Causal;
use crate::models::files::{WeightFiles, read_json};
use crate::models::gguf::Gguf;
use crate::models::gguf_llama::{self, GgufSource};
use crate::models::keys::{Family, check_config};
use crate::models::tokenizer::{Settings, guarded, parse as parse_tokenizer};
use crate::models::{
    ModelFiles, Progress, ResolveOptions, Source, Weights, gguf_tokenizer, gpt2, llama, resolve,
};
use crate::{Error, Result};

/// The architectures of transformers that generate text.
const SUPPORTED: &str = "gpt2, llama, qwen2, qwen3";

/// A language model in memory, not yet running.
#[derive(Debug)]
pub struct TextModel {
    /// The source, as messages name it.
    pub name: String,
    /// Where its files lie.
    pub path: PathBuf,
    /// The network.
    pub decoder: Arc<Causal>,
    /// Text to tokens and back.
    pub tokens: Arc<TextTokens>,
    /// How a conversation becomes a prompt; `None` for models that were not trained on any.
    pub template: Option<ChatTemplate>,
    /// Its special tokens by name, as a chat template knows them.
    pub special_tokens: Vec<(Arc<str>, chat::Value)>,
    /// The end-of-text token.
    pub end: Option<u32>,
    /// All tokens that end an answer.
    pub ends: Vec<u32>,
}

/// The files of a language model.
#[derive(Debug, Clone)]
pub enum TextFiles {
    /// A GGUF file with everything, or its parts.
    Gguf(Vec<PathBuf>),
    /// A folder as transformers saves it.
    Folder(ModelFiles),
}

impl TextFiles {
    /// Finds the files of `source`: a GGUF file, or a folder, package or hub model with safetensors or
    /// `pytorch_model.bin`, downloading what is missing.
    ///
    /// # Errors
    /// Those of [`resolve`].
    pub fn find(
        source: &Source,
        options: &ResolveOptions,
        progress: &mut dyn FnMut(&Progress<'_>) -> Result<()>,
    ) -> Result<Self> {
        let files = resolve(source, options, progress)?;
        Ok(match files.weights {
            WeightFiles::Gguf(parts) => Self::Gguf(parts),
            _ => Self::Folder(files),
        })
    }

    /// Bytes that the weights take on disk: about what they will take in memory.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Permission`] when a file cannot be looked at.
    pub fn expected_bytes(&self) -> Result<u64> {
        let paths = match self {
            Self::Gguf(parts) => parts,
            Self::Folder(files) => files.weights.paths(),
        };
        let size =
            |path: &PathBuf| fs::metadata(path).map(|m| m.len()).map_err(|e| Error::io(path, "read", &e));
        paths.iter().map(size).sum()
    }
}

impl TextModel {
    /// Loads the files that [`TextFiles::find`] found. `name` is what messages call the model.
    ///
    /// # Errors
    /// [`Error::InvalidFile`], [`Error::Unsupported`] naming the file and what is wrong.
    pub fn open(name: &str, files: &TextFiles, hold: WeightFormat, isa: Isa) -> Result<Self> {
        match files {
            TextFiles::Gguf(parts) => {
                Self::from_gguf(name, parts.first().map_or(Path::new(""), PathBuf::as_path), hold, isa)
            }
            TextFiles::Folder(files) => Self::from_files(files, hold, isa),
        }
    }

    /// Loads a GGUF file of Llama's, Qwen2's or Qwen3's architecture.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_gguf(name: &str, path: &Path, hold: WeightFormat, isa: Isa) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let architecture = gguf.text("general.architecture").unwrap_or_default();
        if !gguf_llama::SUPPORTED.contains(&architecture) {
            return Err(Error::Unsupported {
                model: name.into(),
                reason: format!(
                    "its architecture is {architecture:?}; supported in GGUF files are {}",
                    gguf_llama::SUPPORTED.join(", ")
                ),
            });
        }
        let words = gguf_tokenizer::tokenizer(&gguf)?;
        let shape = llama::Shape::from_gguf(&gguf, architecture)?;
        check_causal(name, &shape)?;
        let template = gguf.text("tokenizer.chat_template");
        let named = [("bos_token", &words.begin), ("eos_token", &words.end)];
        let special_tokens: Vec<_> = named
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(name, text)| (Arc::from(name), chat::Value::text(text.as_str())))
            .collect();
        let template = template.map(|source| ChatTemplate::new(name, source, special_tokens.clone()));
        let decoder = shape.load(&GgufSource(&gguf), &Packer::new(isa, hold))?;
        gguf.check()?;
        Ok(Self {
            name: name.into(),
            path: path.to_path_buf(),
            decoder: Arc::new(decoder),
            tokens: Arc::new(TextTokens::new(words.tokenizer).map_err(|e| damaged(path, &e.to_string()))?),
            template,
            special_tokens,
            end: words.end_id,
            ends: words.ends,
        })
    }

    /// Loads GPT-2, Llama, Qwen2 or Qwen3 from a folder as transformers saves it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_files(files: &ModelFiles, hold: WeightFormat, isa: Isa) -> Result<Self> {
        let path = files.transformer.join("config.json");
        let config: Value = read_json(&path)?;
        let settings = Settings::read(files)?;
        let generation = optional(files, "generation_config.json")?;
        let tokens = TextTokens::new(tokenizer(files)?)
            .map_err(|e| damaged(&files.transformer.join("tokenizer.json"), &e.to_string()))?;
        let tokens = Arc::new(tokens);
        let weights = Weights::open(&files.weights)?;
        let (name, packer) = (files.model.as_str(), Packer::new(isa, hold));
        let kind = config["model_type"].as_str().unwrap_or_default();
        let family = match kind {
            "gpt2" => Some(Family { classes: "GPT2", keys: gpt2::KEYS }),
            "llama" => Some(Family { classes: "Llama", keys: llama::KEYS }),
            "qwen2" => Some(Family { classes: "Qwen2", keys: llama::KEYS }),
            "qwen3" => Some(Family { classes: "Qwen3", keys: llama::KEYS }),
            _ => None,
        };
        if let Some(family) = family {
            check_config(name, &path, &config, family)?;
        }
        check_head(name, &config)?;
        let decoder = match kind {
            "gpt2" => parse::<gpt2::Config>(&config, &path)?.load(name, &weights, &packer)?,
            "llama" | "qwen2" | "qwen3" => {
                let qwen = match kind {
                    "qwen2" => Some(2),
                    "qwen3" => Some(3),
                    _ => None,
                };
                let shape = parse::<llama::Config>(&config, &path)?.shape(name, qwen)?;
                check_causal(name, &shape)?;
                shape.load(&weights, &packer)?
            }
            other => {
                let reason =
                    format!("its model_type is {other:?}; supported for text generation are {SUPPORTED}");
                return Err(Error::Unsupported { model: name.into(), reason });
            }
        };
        weights.check()?;
        let spelling = |key: &str| settings.word(key).unwrap_or_default();
        let mut end_text = spelling("eos_token");
        let mut ends = [&generation, &config]
            .iter()
            .map(|file| ids(&file["eos_token_id"]))
            .find(|ids| !ids.is_empty())
            .unwrap_or_default();
        let end = tokens.id(&end_text).or_else(|| ends.first().copied());
        ends.extend(end.filter(|id| !ends.contains(id)));
        if end_text.is_empty() {
            end_text = end.and_then(|id| tokens.token(id)).unwrap_or_default();
        }
        let own = match files.beside_weights("chat_template.jinja") {
            Some(path) => Some(fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", &e))?),
            None => template(settings.value("chat_template")),
        };
        let own = own.or_else(|| (kind == "gpt2" && !end_text.is_empty()).then(|| TURNS_TEMPLATE.into()));
        let special_tokens = special_tokens(&settings, &end_text);
        let template = own.map(|source| ChatTemplate::new(name, &source, special_tokens.clone()));
        Ok(Self {
            name: name.into(),
            path: files.root.clone(),
            decoder: Arc::new(decoder),
            tokens,
            template,
            special_tokens,
            end,
            ends,
        })
    }
}

/// `tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`.
fn tokenizer(files: &ModelFiles) -> Result<Tokenizer> {
    if let Some(path) = files.beside_weights("tokenizer.json") {
        return parse_tokenizer(&path);
    }
    let missing = |file: &str| Error::MissingFile {
        model: files.model.clone(),
        file: file.into(),
        folder: files.transformer.clone(),
        remedy: "vocab.json with merges.txt would do too: copy them there from the model's page on the hub"
            .into(),
    };
    let vocabulary = files.beside_weights("vocab.json").ok_or_else(|| missing("tokenizer.json"))?;
    let merges = files.beside_weights("merges.txt").ok_or_else(|| missing("merges.txt"))?;
    let model = BPE::from_file(&vocabulary.to_string_lossy(), &merges.to_string_lossy());
    let model = guarded(|| model.build()).map_err(|e| damaged(&vocabulary, &e.to_string()))?;
    let mut tokenizer = Tokenizer::new(model);
    let settings = Settings::read(files)?;
    let space = settings.flag("add_prefix_space").unwrap_or(false);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(space, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let names = ["bos_token", "eos_token", "unk_token"].iter().filter_map(|key| settings.token(key));
    // GPT-2's own special token lies in its vocabulary without being marked there.
    let own = AddedToken::from("<|endoftext|>", true);
    let known = names.chain([own]).filter(|token| tokenizer.token_to_id(&token.content).is_some());
    let known: Vec<AddedToken> = known.collect();
    added_tokens::add(&mut tokenizer, files, &settings, known, true)?;
    Ok(tokenizer)
}

/// Refuses a model whose tokens see those after them: it was not trained to write.
fn check_causal(model: &str, shape: &llama::Shape) -> Result<()> {
    if shape.causal {
        return Ok(());
    }
    Err(Error::Unsupported {
        model: model.into(),
        reason:
            "it attends in both directions (is_causal, use_bidirectional_attention), so it embeds text and \
                 cannot write it; register it with kind=\"embedding\""
                .into(),
    })
}

/// Refuses a model whose head gives classes or scores: the head that writes text would be made up.
fn check_head(model: &str, config: &Value) -> Result<()> {
    let classes = config["architectures"].as_array().map_or(&[][..], Vec::as_slice);
    let other = classes.iter().filter_map(Value::as_str).find(|class| {
        ["Classification", "QuestionAnswering", "MultipleChoice", "Reward"]
            .iter()
            .any(|head| class.contains(head))
    });
    match other {
        None => Ok(()),
        Some(class) => Err(Error::Unsupported {
            model: model.into(),
            reason: format!("its config.json names the architecture {class:?}, which does not write text"),
        }),
    }
}

/// A JSON file beside the weights; `null` without one.
fn optional(files: &ModelFiles, name: &str) -> Result<Value> {
    files.beside_weights(name).map_or(Ok(Value::Null), |path| read_json(&path))
}

fn parse<T: serde::de::DeserializeOwned>(config: &Value, path: &Path) -> Result<T> {
    T::deserialize(config).map_err(|e| damaged(path, &format!("it does not describe its model: {e}")))
}

/// The special tokens that `tokenizer_config.json` names, and the end of text.
fn special_tokens(settings: &Settings, end: &str) -> Vec<(Arc<str>, chat::Value)> {
    const NAMES: [&str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let text = |name: &str| match settings.word(name) {
        None if name == "eos_token" && !end.is_empty() => Some(end.to_owned()),
        found => found,
    };
    let mut tokens: Vec<(Arc<str>, chat::Value)> =
        NAMES.into_iter().filter_map(|name| Some((name.into(), chat::Value::text(text(name)?)))).collect();
    let more: Vec<_> =
        settings.additional().into_iter().map(|token| chat::Value::text(token.content)).collect();
    if !more.is_empty() {
        tokens.extend(chat::Value::list(more).ok().map(|list| ("additional_special_tokens".into(), list)));
    }
    tokens
}

/// One id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(values) => values.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    }
}

/// The template itself, or the one called "default" of several.
fn template(value: &Value) -> Option<String> {
    let named = || value.as_array()?.iter().find(|entry| entry["name"] == "default");
    value.as_str().or_else(|| named()?["template"].as_str()).map(str::to_owned)
}

fn damaged(path: &Path, reason: &str) -> Error {
    Error::InvalidFile { path: path.to_path_buf(), reason: reason.into() }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
