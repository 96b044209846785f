//! Loads the parts of a generator from its files: decoder, tokenizer, chat template, the tokens that end a text.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::stop::TextTokens;
use crate::chat::templates::{ChatTemplates, TemplateSources};
use crate::chat::{self, TURNS_TEMPLATE};
#[cfg(feature = "cuda")]
use crate::compute::Cuda;
use crate::compute::{Candle, CandleDevice, Cpu, Isa, WeightFormat};
use crate::models::adapted::added_bytes;
use crate::models::adapter_files::warn_of_unused;
use crate::models::architectures::Transformer;
use crate::models::formats::gguf::{Gguf, GgufValue};
use crate::models::json::read_json;
use crate::models::manifest::WeightFiles;
use crate::models::tokenizers::chat_form::{special_tokens, template_sources};
use crate::models::tokenizers::compact::of_two_files;
use crate::models::tokenizers::config::TokenizerConfig;
use crate::models::tokenizers::model::{Inner, TokenModel};
use crate::models::tokenizers::tokenizer::guarded;
use crate::models::tokenizers::{added_tokens, file, gguf as gguf_tokenizer};
use crate::models::{
    ModelConfig, ModelFiles, ModelKind, Progress, ResolveOptions, SentenceEncoder, Source, Weights, resolve,
};
use crate::{Error, Result};

/// A language model in memory, not yet running.
#[derive(Debug)]
pub struct TextModel {
    /// The source, as messages name it.
    pub name: String,
    /// Where its files lie.
    pub path: PathBuf,
    /// The adapter that changes its weights.
    pub adapter: Option<String>,
    /// `model_type` of its configuration.
    pub architecture: String,
    /// The type of most weights of a GGUF file.
    pub file_type: Option<&'static str>,
    /// The network.
    pub network: Network,
    /// Text to tokens and back.
    pub tokens: Arc<TextTokens>,
    /// How a conversation becomes a prompt; `None` for models that were not trained on any.
    pub templates: Option<ChatTemplates>,
    /// Its special tokens by name, as a chat template knows them.
    pub special_tokens: Vec<(Arc<str>, chat::Value)>,
    /// The end-of-text token.
    pub eos_id: Option<u32>,
    /// All tokens that end an answer.
    pub eos_ids: Vec<u32>,
    /// Tokens that its files say are never written.
    pub suppressed_ids: Vec<u32>,
}

/// A transformer with a head, on the backend that it was loaded for.
#[derive(Clone)]
pub enum Network {
    /// On the CPU.
    Cpu(Arc<Transformer<Cpu>>),
    /// On a device of candle's.
    Candle(Arc<Transformer<Candle>>),
    /// On a card of NVIDIA.
    #[cfg(feature = "cuda")]
    Cuda(Arc<Transformer<Cuda>>),
}

/// Where a network computes.
#[derive(Debug, Clone)]
pub enum ComputeTarget {
    /// The CPU, with the kernels of an instruction set.
    Cpu(Isa),
    /// A device of candle's.
    Device(CandleDevice),
}

impl Network {
    fn load(
        config: &ModelConfig,
        weights: &Weights,
        format: WeightFormat,
        target: &ComputeTarget,
    ) -> Result<Self> {
        let architecture = &*config.architecture;
        Ok(match target {
            ComputeTarget::Cpu(isa) => {
                let cpu = Cpu::new(*isa, format);
                Self::Cpu(Arc::new(Transformer::load_decoder(cpu, architecture, weights)?))
            }
            #[cfg(feature = "cuda")]
            ComputeTarget::Device(device)
                if device.device.is_cuda() && architecture.has_kernels_on_cards() =>
            {
                let cuda = Cuda::new(device.clone())?;
                Self::Cuda(Arc::new(Transformer::load_decoder(cuda, architecture, weights)?))
            }
            ComputeTarget::Device(device) => {
                let candle = Candle::new(device.clone());
                Self::Candle(Arc::new(Transformer::load_decoder(candle, architecture, weights)?))
            }
        })
    }

    /// Bytes of weights in memory.
    pub fn memory_bytes(&self) -> u64 {
        match self {
            Self::Cpu(model) => model.memory_bytes(),
            Self::Candle(model) => model.memory_bytes(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => model.memory_bytes(),
        }
    }

    /// Of those, bytes on a device with a memory of its own.
    pub fn device_bytes(&self) -> u64 {
        match self {
            Self::Cpu(_) => 0,
            Self::Candle(model) => model.device_bytes(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => model.device_bytes(),
        }
    }

    /// The format that weights are held in.
    pub fn dtype(&self) -> &'static str {
        match self {
            Self::Cpu(model) => model.dtype(),
            Self::Candle(model) => model.dtype(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => model.dtype(),
        }
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("dtype", &self.dtype()).finish_non_exhaustive()
    }
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
    /// Those of [`resolve()`].
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
        let own = paths.iter().map(size).sum::<Result<u64>>()?;
        Ok(own + if let Self::Folder(files) = self { added_bytes(files)? } else { 0 })
    }
}

/// The key of a GGUF file's chat template. Further ones have their names after it.
const TEMPLATE: &str = "tokenizer.chat_template";
/// The key of a GGUF file that lists the names of its further templates, and those that are looked for without it: the names
/// that transformers and Cohere's models give them.
const TEMPLATE_NAMES: &str = "tokenizer.chat_templates";
const USUAL_NAMES: [&str; 2] = ["tool_use", "rag"];

/// The chat templates of a GGUF file next to its usual one, by their names.
fn further_templates(gguf: &Gguf) -> Vec<(String, String)> {
    let listed = gguf.array(TEMPLATE_NAMES).unwrap_or_default().iter();
    let mut names: Vec<&str> = listed
        .filter_map(|name| if let GgufValue::Text(name) = name { Some(&**name) } else { None })
        .collect();
    names.extend(USUAL_NAMES);
    // The order of the list is that of a set.
    names.sort_unstable_by_key(|name| {
        (USUAL_NAMES.iter().position(|usual| usual == name).unwrap_or(2), *name)
    });
    names.dedup();
    let further = |name: &str| Some((name.to_owned(), gguf.text(&format!("{TEMPLATE}.{name}"))?.to_owned()));
    names.into_iter().filter_map(further).collect()
}

impl TextModel {
    /// Loads the files that [`TextFiles::find`] found onto the CPU. `name` is what messages call the model.
    ///
    /// # Errors
    /// [`Error::InvalidFile`], [`Error::Unsupported`] naming the file and what is wrong.
    pub fn open(name: &str, files: &TextFiles, format: WeightFormat, isa: Isa) -> Result<Self> {
        Self::open_on(name, files, format, &ComputeTarget::Cpu(isa))
    }

    /// Loads the files onto `target`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(
        name: &str,
        files: &TextFiles,
        format: WeightFormat,
        target: &ComputeTarget,
    ) -> Result<Self> {
        match files {
            TextFiles::Gguf(parts) => {
                let path = parts.first().cloned().unwrap_or_default();
                Self::from_gguf(&ModelFiles::gguf(name, path)?, format, target)
            }
            TextFiles::Folder(files) => Self::from_folder(files, format, target),
        }
    }

    fn from_gguf(files: &ModelFiles, format: WeightFormat, target: &ComputeTarget) -> Result<Self> {
        let config = ModelConfig::read(files, ModelKind::Generator)?;
        let (name, path) = (files.model.as_str(), config.path.as_path());
        let Some(gguf) = &config.gguf else { return Err(Error::invalid_file(path, "it is no GGUF file")) };
        let words = gguf_tokenizer::tokenizer(gguf)?;
        check_causal(&config)?;
        let template = gguf.text(TEMPLATE);
        let named = [("bos_token", &words.bos), ("eos_token", &words.eos)];
        let special_tokens: Vec<_> = named
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(name, text)| (Arc::from(name), chat::Value::text(text.as_str())))
            .collect();
        let templates = template.map(|usual| {
            let others = further_templates(gguf);
            ChatTemplates::new(name, &TemplateSources { usual: Ok(usual.into()), others }, &special_tokens)
        });
        let weights = config.weights(files)?;
        let network = Network::load(&config, &weights, format, target)?;
        weights.check_read()?;
        weights.check_adapter_read(config.kind)?;
        weights.check()?;
        Ok(Self {
            name: name.into(),
            path: path.to_path_buf(),
            adapter: files.adapter.as_ref().map(|adapter| adapter.name().to_owned()),
            architecture: config.family.model_type.to_owned(),
            file_type: gguf.file_type(),
            network,
            tokens: Arc::new(
                TextTokens::new(words.tokenizer).map_err(|e| Error::invalid_file(path, e.to_string()))?,
            ),
            templates,
            special_tokens,
            eos_id: words.eos_id,
            eos_ids: words.eos_ids,
            suppressed_ids: suppressed_in_gguf(gguf)?,
        })
    }

    fn from_folder(files: &ModelFiles, format: WeightFormat, target: &ComputeTarget) -> Result<Self> {
        let config = ModelConfig::read(files, ModelKind::Generator)?;
        check(&config)?;
        let settings = TokenizerConfig::read(files)?;
        let generation = optional(files, GENERATION)?;
        log_unused(&files.model, &generation);
        let suppressed_ids = suppressed(files, &generation)?;
        let tokens = TextTokens::new(tokenizer(files)?)
            .map_err(|e| Error::invalid_file(files.transformer.join("tokenizer.json"), e.to_string()))?;
        let tokens = Arc::new(tokens);
        let weights = config.weights(files)?;
        let network = Network::load(&config, &weights, format, target)?;
        weights.check_read()?;
        weights.check_adapter_read(config.kind)?;
        weights.check()?;
        warn_of_unused(files);
        let spelling = |key: &str| settings.word(key).unwrap_or_default();
        let mut end_text = spelling("eos_token");
        let mut eos_ids = [&generation, &config.json]
            .iter()
            .map(|file| ids(&file["eos_token_id"]))
            .find(|ids| !ids.is_empty())
            .unwrap_or_default();
        let eos_id = tokens.id(&end_text).or_else(|| eos_ids.first().copied());
        eos_ids.extend(eos_id.filter(|id| !eos_ids.contains(id)));
        if end_text.is_empty() {
            end_text = eos_id.and_then(|id| tokens.token(id)).unwrap_or_default();
        }
        let own = template_sources(files, &settings)?;
        let bare = config.family.bare_turns && !end_text.is_empty();
        let own = own.or_else(|| bare.then(|| TemplateSources::of(TURNS_TEMPLATE)));
        let special_tokens = special_tokens(&settings, &end_text);
        let templates = own.map(|sources| ChatTemplates::new(&files.model, &sources, &special_tokens));
        Ok(Self {
            name: files.model.clone(),
            path: files.root.clone(),
            adapter: files.adapter.as_ref().map(|adapter| adapter.name().to_owned()),
            architecture: config.family.model_type.to_owned(),
            file_type: None,
            network,
            tokens,
            templates,
            special_tokens,
            eos_id,
            eos_ids,
            suppressed_ids,
        })
    }
}

/// What `generation_config.json` calls the tokens that are never written, and what GGUF files call them.
const SUPPRESSED: &str = "suppress_tokens";
const SUPPRESSED_IN_GGUF: &str = "tokenizer.ggml.suppress_tokens";

/// The tokens that a model is never to write. As in transformers, numbers that no token has change nothing.
fn suppressed(files: &ModelFiles, generation: &Value) -> Result<Vec<u32>> {
    let given = &generation[SUPPRESSED];
    let numbers = match given {
        Value::Null => return Ok(Vec::new()),
        Value::Array(values) => values.iter().map(Value::as_i64).collect::<Option<Vec<_>>>(),
        _ => None,
    };
    let numbers = numbers.ok_or_else(|| {
        let path = files.beside_weights(GENERATION).unwrap_or_default();
        Error::invalid_file(&path, format!("its {SUPPRESSED} is {given}; expected is a list of token ids"))
    })?;
    Ok(numbers.into_iter().filter_map(|number| u32::try_from(number).ok()).collect())
}

fn suppressed_in_gguf(gguf: &Gguf) -> Result<Vec<u32>> {
    let number = |value: &GgufValue| if let GgufValue::Integer(n) = value { Some(*n) } else { None };
    let numbers: Option<Vec<_>> = match gguf.get(SUPPRESSED_IN_GGUF) {
        None => return Ok(Vec::new()),
        Some(GgufValue::Array(values)) => values.iter().map(number).collect(),
        Some(_) => None,
    };
    let numbers = numbers.ok_or_else(|| {
        Error::invalid_file(gguf.path(), format!("its {SUPPRESSED_IN_GGUF} is no list of token ids"))
    })?;
    Ok(numbers.into_iter().filter_map(|number| u32::try_from(number).ok()).collect())
}

/// What sets how transformers writes.
const GENERATION: &str = "generation_config.json";

/// What `generation_config.json` may set that changes answers in transformers. Here the call sets it.
const SET_BY_CALLS: [&str; 12] = [
    "bad_words_ids",
    "begin_suppress_tokens",
    "do_sample",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
];

/// Logs what `generation_config.json` sets and this crate leaves to calls.
fn log_unused(model: &str, generation: &Value) {
    let set = SET_BY_CALLS.iter().filter(|key| !generation[**key].is_null());
    let set: Vec<_> = set.copied().collect();
    if !set.is_empty() {
        log::info!("{model}: generation_config.json sets {}; here the call does", set.join(", "));
    }
}

/// `tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`.
fn tokenizer(files: &ModelFiles) -> Result<Inner> {
    if let Some(path) = files.beside_weights("tokenizer.json") {
        let (mut inner, _) = file::read(&path)?;
        added_tokens::follow(&mut inner, files, &TokenizerConfig::read(files)?)?;
        return Ok(inner);
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
    let read = |path: &PathBuf| fs::read(path).map_err(|e| Error::io(path, "read", &e));
    let model = match of_two_files(&read(&vocabulary)?, &read(&merges)?) {
        Some(model) => model,
        None => {
            let model = BPE::from_file(&vocabulary.to_string_lossy(), &merges.to_string_lossy());
            let model = guarded(|| model.build());
            TokenModel::of_crate(model.map_err(|e| Error::invalid_file(&vocabulary, e.to_string()))?)
        }
    };
    let mut tokenizer = Inner::new(model);
    let settings = TokenizerConfig::read(files)?;
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

/// Refuses a model that does not write text, by its configuration.
///
/// # Errors
/// [`Error::Unsupported`] with the reason.
pub fn check(config: &ModelConfig) -> Result<()> {
    check_head(&config.model, &config.json)?;
    check_causal(config)
}

/// Refuses a model whose tokens see those after them: it was not trained to write.
fn check_causal(config: &ModelConfig) -> Result<()> {
    if config.describe().is_causal() {
        return Ok(());
    }
    Err(Error::Unsupported {
        model: config.model.clone(),
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

/// A JSON file next to the weights; `null` if there is none.
fn optional(files: &ModelFiles, name: &str) -> Result<Value> {
    files.beside_weights(name).map_or(Ok(Value::Null), |path| read_json(&path))
}

/// One id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(values) => values.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
