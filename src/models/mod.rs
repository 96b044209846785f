//! What a model is: id or path → files → tokenizer and weights → token states → vectors.
//!
//! ```text
//! source.rs   what the user wrote → hub id, folder, package
//! files.rs    which files make a model, and where they are      hub.rs, transfer.rs, blobs.rs   cache and download
//! tokenizer.rs, wordpiece.rs, cut.rs, long.rs   text → ids       weights.rs, pickle.rs           name → tensor
//! bert.rs     ids → token states (BERT and the RoBERTas)        pooling.rs                      states → vector
//! causal_encoder.rs   the same for Llama, Qwen2, Qwen3          llama.rs, gguf_llama.rs         its shape and tensors
//! keys.rs     which keys of the JSON files are read, which are refused
//! sentence.rs pooling, normalisation, length, prompts           dense.rs                        one more layer
//! ```

pub(crate) mod added_tokens;
pub mod bert;
mod blobs;
pub mod causal;
pub mod causal_encoder;
pub(crate) mod cut;
pub mod decoder;
pub mod dense;
mod digest;
pub mod files;
pub mod gguf;
pub mod gguf_llama;
pub mod gguf_tokenizer;
pub mod gpt2;
mod hub;
mod json;
pub(crate) mod keys;
mod kind;
pub mod llama;
pub(crate) mod long;
mod pickle;
mod pickle_machine;
pub mod pooling;
pub mod sentence;
pub mod source;
pub mod tokenizer;
mod transfer;
pub mod weights;
mod wordpiece;

use std::fmt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::compute::file::WeightFile;
use crate::compute::memory::joined;
use crate::compute::{Backend, Candle, Cpu, Isa, Packed, WeightFormat};
use crate::{Error, Result};

pub use files::{ModelFiles, ResolveOptions, resolve};
pub use hub::Progress;
pub use kind::{Kind, kind_of};
pub use long::Bounds;
pub use pooling::{Pooling, SentenceEncoder};
pub use sentence::{SentenceConfig, Similarity};
pub use source::Source;
pub use tokenizer::Tokenizer;
pub use weights::Weights;

use bert::{Bert, BertConfig};
use causal_encoder::CausalEncoder;
use dense::Dense;
use files::WeightFiles;
use gguf::Gguf;
use keys::{Family, check_config};
use llama::Shape;

/// The `model_type`s of sentence models.
const SUPPORTED: &str = "bert, xlm-roberta, roberta, camembert, llama, qwen2, qwen3";

/// No dimension of a model is larger: products of a few fit into 64 bits.
const LARGEST_SIZE: usize = 1 << 28;

/// The kinds of transformer that this crate runs, by `model_type` of `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// BERT: absolute positions from 0.
    Bert,
    /// XLM-RoBERTa: BERT whose positions start after the padding id.
    XlmRoberta,
    /// RoBERTa: the same network as XLM-RoBERTa.
    Roberta,
    /// CamemBERT: the same network as XLM-RoBERTa.
    Camembert,
    /// Llama: a decoder, causal unless its configuration says otherwise.
    Llama,
    /// Qwen2: a Llama whose queries, keys and values have biases.
    Qwen2,
    /// Qwen3: a Llama whose queries and keys are normalised.
    Qwen3,
}

impl Architecture {
    /// Its classes in transformers, and the keys that its description reads.
    pub(crate) fn family(self) -> Family {
        match self {
            Self::Bert => Family { classes: "Bert", keys: bert::KEYS },
            Self::XlmRoberta => Family { classes: "XLMRoberta", keys: bert::KEYS },
            Self::Roberta => Family { classes: "Roberta", keys: bert::KEYS },
            Self::Camembert => Family { classes: "Camembert", keys: bert::KEYS },
            Self::Llama => Family { classes: "Llama", keys: llama::KEYS },
            Self::Qwen2 => Family { classes: "Qwen2", keys: llama::KEYS },
            Self::Qwen3 => Family { classes: "Qwen3", keys: llama::KEYS },
        }
    }

    /// The generation of Qwen, for the families that [`llama`] describes.
    fn decoder(self) -> Option<Option<u8>> {
        match self {
            Self::Llama => Some(None),
            Self::Qwen2 => Some(Some(2)),
            Self::Qwen3 => Some(Some(3)),
            Self::Bert | Self::XlmRoberta | Self::Roberta | Self::Camembert => None,
        }
    }
}

/// What `config.json` says.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The source, as messages name it.
    pub model: String,
    /// The kind of transformer.
    pub architecture: Architecture,
    /// The whole file.
    pub json: Value,
    /// Its path, for messages.
    pub path: PathBuf,
    /// The one file that is the whole model; `json` then holds what else is asked of a configuration.
    pub gguf: Option<Arc<Gguf>>,
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] when it is no JSON object or has no `model_type`, [`Error::Unsupported`] naming the
    /// supported types.
    pub fn read(files: &ModelFiles) -> Result<Self> {
        if let WeightFiles::Gguf(_) = &files.weights {
            return Self::from_gguf(&files.model, &files.root);
        }
        let path = files.transformer.join("config.json");
        let json: Value = files::read_json(&path)?;
        let Some(kind) = json["model_type"].as_str() else {
            return Err(Error::InvalidFile {
                path,
                reason: "it has no model_type; it is not the config.json of a transformers model".into(),
            });
        };
        let architecture =
            Architecture::deserialize(&json["model_type"]).map_err(|_| Error::Unsupported {
                model: files.model.clone(),
                reason: format!(
                    "its model_type is {kind:?}; supported for embeddings are {SUPPORTED}. If it is to write text, \
                     register it with kind=\"generator\""
                ),
            })?;
        check_config(&files.model, &path, &json, architecture.family())?;
        Ok(Self { model: files.model.clone(), architecture, json, path, gguf: None })
    }

    fn from_gguf(model: &str, path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let kind = gguf.text("general.architecture").unwrap_or_default();
        if kind != "qwen3" {
            return Err(Error::Unsupported {
                model: model.into(),
                reason: format!(
                    "its architecture is {kind:?}; of sentence models in GGUF files, qwen3 is supported. If it is to \
                     write text, register it with kind=\"generator\""
                ),
            });
        }
        let shape = Shape::from_gguf(&gguf, kind)?;
        let json = serde_json::json!({
            "model_type": kind, "vocab_size": shape.vocabulary, "max_position_embeddings": shape.context,
        });
        let gguf = Some(Arc::new(gguf));
        Ok(Self { model: model.into(), architecture: Architecture::Qwen3, json, path: path.into(), gguf })
    }

    /// The longest sequence that the positions of the model allow.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] when `max_position_embeddings` is missing or no room is left.
    pub fn positions(&self) -> Result<usize> {
        let number = |key: &str| self.json[key].as_u64().and_then(|n| usize::try_from(n).ok());
        let skipped = match self.architecture {
            Architecture::Bert | Architecture::Llama | Architecture::Qwen2 | Architecture::Qwen3 => 0,
            Architecture::XlmRoberta | Architecture::Roberta | Architecture::Camembert => {
                number("pad_token_id").unwrap_or(1).saturating_add(1)
            }
        };
        let positions = number("max_position_embeddings").and_then(|all| all.checked_sub(skipped));
        positions.filter(|&n| n > 0).ok_or_else(|| Error::InvalidFile {
            path: self.path.clone(),
            reason: "max_position_embeddings is missing or too small".into(),
        })
    }
}

/// Makes the transformer from its configuration and weights.
pub type Build<'a> = &'a dyn Fn(&ModelConfig, &Weights) -> Result<Box<dyn SentenceEncoder>>;

/// What replaces what the model's own files say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overrides {
    /// How token states become one vector.
    pub pooling: Option<Pooling>,
    /// Tokens after which a text is cut; at most what the model's positions allow.
    pub max_length: Option<usize>,
}

/// The transformer on the CPU, on the kernels of `isa`, its weights held as `hold` says.
///
/// # Errors
/// [`Error::InvalidFile`] when `config.json` lacks a number; those of the weights.
pub fn on_cpu(
    config: &ModelConfig,
    weights: &Weights,
    isa: Isa,
    hold: WeightFormat,
) -> Result<Box<dyn SentenceEncoder>> {
    build(Cpu::new(isa, hold), config, weights)
}

/// The transformer on any device that candle knows, in f32.
///
/// # Errors
/// As [`on_cpu`].
pub fn on_device(
    config: &ModelConfig,
    weights: &Weights,
    device: &candle_core::Device,
) -> Result<Box<dyn SentenceEncoder>> {
    build(Candle::new(device.clone()), config, weights)
}

fn build<B: Backend>(
    backend: B,
    config: &ModelConfig,
    weights: &Weights,
) -> Result<Box<dyn SentenceEncoder>> {
    let Some(qwen) = config.architecture.decoder() else {
        let described: BertConfig = parsed(config)?;
        return Ok(Box::new(Bert::load(backend, &described, weights, &config.model)?));
    };
    let shape = match &config.gguf {
        Some(gguf) => Shape::from_gguf(gguf, "qwen3")?,
        None => parsed::<llama::Config>(config)?.shape(&config.model, qwen)?,
    };
    Ok(Box::new(CausalEncoder::load(backend, shape, weights)?))
}

fn parsed<T: DeserializeOwned>(config: &ModelConfig) -> Result<T> {
    T::deserialize(&config.json)
        .map_err(|error| Error::InvalidFile { path: config.path.clone(), reason: error.to_string() })
}

/// A sentence model in memory: tokenizer, transformer, and what sentence-transformers put around it.
pub struct Encoder {
    /// The source, as messages name it.
    pub name: String,
    /// The model's folder.
    pub path: PathBuf,
    /// Text → ids.
    pub tokenizer: Tokenizer,
    /// Pooling, normalisation, length, prompts.
    pub config: SentenceConfig,
    /// `model_type` of `config.json`.
    pub architecture: String,
    /// Ids that the model has an embedding of: those below this one.
    pub vocabulary: usize,
    model: Box<dyn SentenceEncoder>,
    dense: Vec<Dense>,
    /// The weights' files; those that a table is read from are still open.
    open: Vec<Weak<WeightFile>>,
}

impl Encoder {
    /// Loads tokenizer and weights.
    ///
    /// # Errors
    /// Every error of this room but those of downloading.
    pub fn load(files: &ModelFiles, overrides: Overrides, build: Build<'_>) -> Result<Self> {
        let config = ModelConfig::read(files)?;
        let positions = config.positions()?;
        let mut sentence = match &config.gguf {
            Some(gguf) => SentenceConfig::from_gguf(gguf, &files.model, positions, overrides.pooling)?,
            None => SentenceConfig::load(files, positions)?,
        };
        sentence.pooling = overrides.pooling.unwrap_or(sentence.pooling);
        sentence.max_length =
            overrides.max_length.map_or(sentence.max_length, |length| length.min(positions));
        // A tokenizer takes about as long to read as the weights of a small model take to pack.
        let (tokenizer, model) = together(
            || match &config.gguf {
                Some(gguf) => Tokenizer::from_gguf(gguf),
                None => Tokenizer::load(files, sentence.lower_case),
            },
            || {
                let weights = Weights::open(&files.weights)?;
                let model = build(&config, &weights)?;
                weights.check()?;
                Ok::<_, Error>((model, weights.files()))
            },
        );
        let tokenizer = tokenizer?;
        if sentence.pooling == Pooling::Last && !tokenizer.ends() {
            log::warn!(
                "{}: a text's vector is the state of its last token, but the tokenizer adds no end token",
                files.model
            );
        }
        let dense: Vec<_> =
            sentence.dense.iter().map(|folder| Dense::load(&files.model, folder)).collect::<Result<_>>()?;
        let (model, open) = model?;
        let mut width = model.width();
        for (layer, folder) in dense.iter().zip(&sentence.dense) {
            if layer.inputs() != width {
                return Err(Error::InvalidFile {
                    path: folder.join("config.json"),
                    reason: format!("it takes vectors of {} dimensions, but gets {width}", layer.inputs()),
                });
            }
            width = layer.outputs();
        }
        let known = tokenizer.id_limit();
        let embedded = config.json["vocab_size"].as_u64().and_then(|size| usize::try_from(size).ok());
        let vocabulary = embedded.unwrap_or(known);
        if known > vocabulary {
            log::warn!(
                "{}: the tokenizer knows {known} ids, the model {vocabulary}; a text with one of the others will fail",
                files.model
            );
        }
        Ok(Self {
            name: files.model.clone(),
            path: files.root.clone(),
            tokenizer,
            config: sentence,
            architecture: config.json["model_type"].as_str().unwrap_or_default().to_owned(),
            vocabulary,
            model,
            dense,
            open,
        })
    }

    /// Length of the vectors.
    pub fn width(&self) -> usize {
        self.dense.last().map_or(self.model.width(), Dense::outputs)
    }

    /// Bytes held by weights; the tokenizer's tables are not counted.
    pub fn memory_bytes(&self) -> u64 {
        self.model.memory_bytes() + self.dense.iter().map(Dense::memory_bytes).sum::<u64>()
    }

    /// The format that the transformer computes in.
    pub fn dtype(&self) -> &'static str {
        self.model.dtype()
    }

    /// Checks that no file that is still read from was changed since the model was loaded.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming the one that was.
    pub fn check(&self) -> Result<()> {
        self.open.iter().filter_map(Weak::upgrade).try_for_each(|file| file.check())
    }

    /// The ids of `prompt` and `text` together, special tokens included, cut to the model's maximum.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn tokenize(&self, prompt: &str, text: &str, bounds: &mut Bounds<'_>) -> Result<Vec<u32>> {
        self.ids(prompt, text, self.config.max_length, bounds)
    }

    /// The same, with nothing cut.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn tokenize_whole(&self, prompt: &str, text: &str, bounds: &mut Bounds<'_>) -> Result<Vec<u32>> {
        self.ids(prompt, text, usize::MAX, bounds)
    }

    fn ids(&self, prompt: &str, text: &str, max_length: usize, bounds: &mut Bounds<'_>) -> Result<Vec<u32>> {
        if prompt.is_empty() {
            return self.tokenizer.encode_within(text, max_length, bounds);
        }
        self.tokenizer.encode_within(&joined(&[prompt, text])?, max_length, bounds)
    }

    /// The vectors of a batch into `out`, row-major `[sequences, width]`: pooled, through the Dense layers, and
    /// L2-normalised when the model itself does that. Whether they are finite is for the caller to see.
    ///
    /// # Errors
    /// Those of the transformer.
    pub fn encode(&self, batch: &Packed<'_>, out: &mut [f32]) -> Result<()> {
        if self.dense.is_empty() {
            self.model.encode(batch, self.config.pooling, out)?;
        } else {
            let mut vectors = vec![0.0; batch.sequences() * self.model.width()];
            self.model.encode(batch, self.config.pooling, &mut vectors)?;
            for layer in &self.dense {
                vectors = layer.apply(&vectors);
            }
            out.copy_from_slice(&vectors);
        }
        // Rows of a table may have been read from a file that is being written to.
        self.check()?;
        if self.config.normalize {
            out.chunks_exact_mut(self.width().max(1)).for_each(normalize);
        }
        Ok(())
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoder({}, {} dimensions, {})", self.name, self.width(), self.dtype())
    }
}

/// Both results, `aside` computed on a thread of its own where one can be had. A panic of it goes on in the caller.
fn together<A: Send, B>(aside: impl Fn() -> A + Sync, here: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("mm-tokenizer".into());
        match builder.spawn_scoped(scope, &aside) {
            Ok(thread) => {
                let b = here();
                (thread.join().unwrap_or_else(|panic| resume_unwind(panic)), b)
            }
            Err(_) => (aside(), here()),
        }
    })
}

/// Divides by the Euclidean length; a zero vector stays zero (PyTorch's `normalize`, whose floor is 1e-12).
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
}
