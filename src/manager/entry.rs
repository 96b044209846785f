//! A registered name: where its model comes from, its slot, and what is known of the model once it has been loaded.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;

use super::options::EmbedOptions;
use super::running::EncoderBackend;
use crate::cache::{Content, EmbeddingCache, KeyRef, Vector};
use crate::config::DTypeChoice;
use crate::generation::Generator;
use crate::lifecycle::{KeepAlive, Slot};
use crate::models::Bounds;
use crate::models::{Pooling, SentenceConfig};
use crate::{Error, Result};

/// An object of the host's own, as its loader returned it.
pub type HostObject = Arc<dyn Any + Send + Sync>;

/// Makes a host object. Called on a thread of its own.
pub type HostLoader = Arc<dyn Fn() -> Result<HostObject> + Send + Sync>;

/// What a name stands for.
#[derive(Clone)]
pub enum Spec {
    /// A sentence model from files.
    Embedding(EmbeddingSpec),
    /// A language model from files.
    Generator(GeneratorSpec),
    /// Whatever the host's loader returns.
    Object(HostLoader),
}

/// Where a language model comes from and how it is held.
#[derive(Debug, Clone)]
pub struct GeneratorSpec {
    /// Hub id, folder, `.gguf` file, `pkg:…`.
    pub source: SourceSpec,
    /// How its weights are held; auto: as configured.
    pub dtype: DTypeChoice,
    /// Branch, tag or commit of a hub model.
    pub revision: Option<String>,
}

/// Where a sentence model comes from and how it is used.
#[derive(Debug, Clone)]
pub struct EmbeddingSpec {
    /// Hub id, bare sentence-transformers name, folder, `.gguf` file, `pkg:…`, `ollama://…`.
    pub source: SourceSpec,
    /// Sources to try in turn when the first cannot be loaded.
    pub fallback: Vec<String>,
    /// In which numbers it computes.
    pub dtype: DTypeChoice,
    /// Replaces the pooling that the model's files name.
    pub pooling: Option<Pooling>,
    /// Replaces the number of tokens after which a text is cut.
    pub max_length: Option<usize>,
    /// Branch, tag or commit of a hub model.
    pub revision: Option<String>,
    /// Added to the prompts of the model's files.
    pub prompts: BTreeMap<String, String>,
    /// Nobody has said that it embeds: its first use decides.
    pub open: bool,
}

impl EmbeddingSpec {
    /// The model at `source`, used as its files say.
    pub fn new(source: SourceSpec) -> Self {
        Self {
            source,
            fallback: Vec::new(),
            dtype: DTypeChoice::Auto,
            pooling: None,
            max_length: None,
            revision: None,
            prompts: BTreeMap::new(),
            open: false,
        }
    }
}

/// A source that is fixed, or that the environment names anew at each load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceSpec {
    /// Always this one.
    Fixed(String),
    /// What the variable says when the model is loaded, else the default.
    Environment {
        /// The variable's name.
        variable: &'static str,
        /// Used while the variable is unset or empty.
        default: String,
    },
}

/// How a name is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// How long the model stays after its latest use; `None`: as configured.
    pub keep_alive: Option<KeepAlive>,
    /// Never unloaded by idleness or budget.
    pub pinned: bool,
}

/// What a slot holds, as its user sees it.
pub enum SlotValue {
    /// A sentence model.
    Encoder,
    /// A text generator.
    Generator,
    /// An object of the host's own.
    Object(HostObject),
}

/// What a slot holds.
pub(super) enum LoadedModel {
    Encoder(ModelHandle),
    Generator(Box<GeneratorHandle>),
    Object(HostObject),
}

/// A sentence model as one name serves it.
#[derive(Clone)]
pub(super) struct ModelHandle {
    pub(super) running: Arc<EncoderBackend>,
    pub(super) known: Arc<ModelInfo>,
    /// The source that was loaded: the configured one, or a fallback. Never holds a key.
    pub(super) source: String,
}

/// A language model as one name serves it.
pub(super) struct GeneratorHandle {
    pub(super) generator: Generator,
    /// The source that was loaded.
    pub(super) source: String,
}

/// What outlives the loaded model: enough to answer from the cache while the model is absent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModelInfo {
    /// Files, dtype and overrides, or server and model: equal for equal vectors.
    pub(super) identity: Arc<str>,
    pub(super) width: usize,
    /// The source, as messages name it.
    pub(super) model: String,
    /// What the model's files say, with the slot's own prompts added.
    pub(super) config: SentenceConfig,
    /// Tokens after which an input is cut; `None` when only a server knows.
    pub(super) max_length: Option<usize>,
}

impl ModelInfo {
    /// The prompt that `options` ask for, or the model's default, or none.
    pub(super) fn prompt<'a>(&'a self, options: &'a EmbedOptions) -> Result<&'a str> {
        self.config.prompt(&self.model, options.prompt_name.as_deref(), options.prompt.as_deref())
    }

    /// The vector of `content` if the cache holds one that answers a call with `options`.
    pub(super) fn cached(
        &self,
        cache: &EmbeddingCache,
        options: &EmbedOptions,
        prompt: &str,
        content: Content<'_>,
    ) -> Option<Vector> {
        let vector = cache.get(&options.key(&self.identity, prompt, content))?;
        // One of as many tokens as the model reads may be that of a longer input, cut.
        let whole = self.max_length.is_some_and(|longest| (vector.tokens() as usize) < longest);
        (options.truncate || whole).then_some(vector)
    }
}

impl EmbedOptions {
    /// The cache key of `content` under these options: everything that changes the vector.
    pub(super) fn key<'a>(&self, model: &'a Arc<str>, prompt: &'a str, content: Content<'a>) -> KeyRef<'a> {
        KeyRef { model, content, prompt, normalized: self.normalize, dimensions: self.truncate_dim }
    }
}

impl LoadedModel {
    /// The sentence model, or an error that says what `name` is instead.
    pub(super) fn serving(&self, name: &str) -> Result<&ModelHandle> {
        match self {
            Self::Encoder(serving) => Ok(serving),
            Self::Generator(_) => Err(Error::Input(format!(
                "{name:?} generates text; generate() and stream() use it, and embed() needs an embedding model. If this \
                 model embeds, register it with kind=\"embedding\""
            ))),
            Self::Object(_) => Err(Error::Input(format!(
                "{name:?} is registered with a loader of its own; get({name:?}) returns its object, and embed() needs an \
                 embedding model"
            ))),
        }
    }

    /// The text generator, or an error that says what there is instead.
    pub(super) fn generator(&self) -> Result<&Generator> {
        match self {
            Self::Generator(serving) => Ok(&serving.generator),
            Self::Encoder(_) => {
                Err(Error::NoGenerator { reason:
                    "the model of this name makes embeddings; one that writes text is registered with kind=\"generator\""
                        .into(),
                })
            }
            Self::Object(_) => Err(Error::NoGenerator {
                reason: "the model of this name has a loader of its own; get() returns its object".into(),
            }),
        }
    }

    /// Tokens of `text`, special ones included, not cut.
    pub(super) fn count_tokens(&self, name: &str, text: &str, bounds: &mut Bounds<'_>) -> Result<usize> {
        match self {
            Self::Encoder(serving) => serving.running.count_tokens(text, bounds),
            Self::Generator(_) if text.is_empty() => Ok(0),
            Self::Generator(serving) => Ok(serving.generator.count(text, bounds)?),
            Self::Object(_) => Err(Error::Input(format!(
                "{name:?} is registered with a loader of its own, and has no tokenizer here"
            ))),
        }
    }

    /// Whether a file that the model still reads from was changed: it has to be loaded anew.
    pub(super) fn is_stale(&self) -> bool {
        matches!(self, Self::Encoder(serving) if serving.running.is_stale())
    }

    /// Names the model behind this slot among those in memory: equal for slots that share one.
    pub(super) fn shared(&self) -> Option<usize> {
        match self {
            Self::Encoder(serving) => Some(Arc::as_ptr(&serving.running) as usize),
            Self::Generator(_) | Self::Object(_) => None,
        }
    }

    /// What it is, and the host's object if it is one.
    pub(super) fn held(&self) -> SlotValue {
        match self {
            Self::Encoder(_) => SlotValue::Encoder,
            Self::Generator(_) => SlotValue::Generator,
            Self::Object(object) => SlotValue::Object(Arc::clone(object)),
        }
    }

    /// The source that was loaded; `None` for a host's own loader.
    pub(super) fn source(&self) -> Option<&str> {
        match self {
            Self::Encoder(serving) => Some(&serving.source),
            Self::Generator(serving) => Some(&serving.source),
            Self::Object(_) => None,
        }
    }
}

/// A name and everything behind it.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) spec: Spec,
    pub(super) keep: Retention,
    pub(super) slot: Slot<LoadedModel>,
    /// Texts admitted and not finished: waiting for the load, to be tokenised, or queued.
    pub(super) queued: AtomicUsize,
    known: Arc<ArcSwapOption<ModelInfo>>,
}

impl Entry {
    pub(super) fn new(
        name: String,
        spec: Spec,
        keep: Retention,
        slot: Slot<LoadedModel>,
        known: Arc<ArcSwapOption<ModelInfo>>,
    ) -> Self {
        Self { name, spec, keep, slot, queued: AtomicUsize::new(0), known }
    }

    /// What the latest load found out; `None` before the first.
    pub(super) fn known(&self) -> Option<Arc<ModelInfo>> {
        self.known.load_full()
    }

    /// Notes what a model of this name is, before it is loaded here.
    pub(super) fn learn(&self, known: Arc<ModelInfo>) {
        self.known.store(Some(known));
    }

    /// Lets go of a model whose files were changed while it was loaded.
    pub(super) fn drop_stale(&self) {
        if self.slot.inspect(LoadedModel::is_stale) == Some(true) {
            log::warn!("{}: its model's files were changed; loading them anew", self.name);
            self.slot.unload();
        }
    }

    /// Counts `texts` as waiting. A call is refused when the queue is full already, not because it is long itself.
    pub(super) fn admit(&self, texts: usize, limit: usize) -> Result<()> {
        let queued = self.queued.fetch_add(texts, Ordering::Relaxed);
        if queued >= limit {
            self.queued.fetch_sub(texts, Ordering::Relaxed);
            return Err(Error::Overloaded { model: self.name.clone(), queued, limit, setting: "max_queue" });
        }
        Ok(())
    }
}
