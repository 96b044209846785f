//! What a name stands for: where its model comes from, and how it is kept.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::caching::CacheOptions;
use crate::Result;
use crate::config::{DTypeChoice, Host};
use crate::lifecycle::KeepAlive;
use crate::models::{ModelKind, Pooling};

/// The slot of Turkish texts.
pub const TURKISH: &str = "turkish_sentence";
/// The slot of all other texts.
pub const ENGLISH: &str = "english_sentence";
/// The slot of the text generator.
pub const GENERATOR: &str = "text_generator";
/// The slot of the reranker, which its first use makes.
pub const RERANKER: &str = "reranker";
/// The slots that every manager has.
pub const BUILT_IN: [&str; 3] = [TURKISH, ENGLISH, GENERATOR];

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
    Generator(ModelSpec),
    /// A model whose kind is neither given nor known: its files say it at the first load.
    Open(ModelSpec),
    /// Whatever the host's loader returns.
    Object(HostLoader),
}

/// Where a model comes from, and the format of its weights.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// Hub id, folder, `.gguf` file, `pkg:…`.
    pub source: SourceSpec,
    /// Format of its weights; auto: as configured.
    pub dtype: DTypeChoice,
    /// Branch, tag or commit of a hub model.
    pub revision: Option<String>,
    /// What changes the weights: the id or the folder of an adapter, or the name of one that the model's files have.
    pub adapter: Option<String>,
}

/// Where a sentence model comes from and how it is used.
#[derive(Debug, Clone)]
pub struct EmbeddingSpec {
    /// Hub id, bare sentence-transformers name, folder, `.gguf` file, `pkg:…`, `ollama://…`.
    pub source: SourceSpec,
    /// Sources to try in turn when the first cannot be loaded.
    pub fallback: Vec<String>,
    /// Number format that it computes in.
    pub dtype: DTypeChoice,
    /// Replaces the pooling that the model's files name.
    pub pooling: Option<Pooling>,
    /// Replaces the number of tokens after which a text is cut.
    pub max_length: Option<usize>,
    /// Whether texts go through the model's chat template; `None`: its files decide.
    pub chat_template: Option<bool>,
    /// Branch, tag or commit of a hub model.
    pub revision: Option<String>,
    /// What changes the weights, as of a [`ModelSpec`].
    pub adapter: Option<String>,
    /// Added to the prompts of the model's files.
    pub prompts: BTreeMap<String, String>,
    /// What it is used for; `None`: its files decide, and a language model embeds.
    pub kind: Option<ModelKind>,
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
            chat_template: None,
            revision: None,
            adapter: None,
            prompts: BTreeMap::new(),
            kind: None,
        }
    }
}

impl ModelSpec {
    /// What a slot of this model stands for, once its files have said what it is: `None` where they do not.
    pub(super) fn decided(&self, kind: Option<ModelKind>) -> Spec {
        if kind == Some(ModelKind::Generator) {
            return Spec::Generator(self.clone());
        }
        let Self { source, dtype, revision, adapter } = self.clone();
        Spec::Embedding(EmbeddingSpec { dtype, revision, adapter, kind, ..EmbeddingSpec::new(source) })
    }
}

impl Spec {
    /// Where its model comes from; `None` for a host's own loader.
    pub(super) fn source(&self) -> Option<&SourceSpec> {
        match self {
            Self::Embedding(spec) => Some(&spec.source),
            Self::Generator(spec) | Self::Open(spec) => Some(&spec.source),
            Self::Object(_) => None,
        }
    }

    /// The adapter that was asked for.
    pub(super) fn adapter(&self) -> Option<&str> {
        match self {
            Self::Embedding(spec) => spec.adapter.as_deref(),
            Self::Generator(spec) | Self::Open(spec) => spec.adapter.as_deref(),
            Self::Object(_) => None,
        }
    }

    /// Whether what it is for is known before it is loaded.
    pub(super) fn is_kind_known(&self) -> bool {
        match self {
            Self::Embedding(spec) => spec.kind.is_some(),
            Self::Open(_) => false,
            Self::Generator(_) | Self::Object(_) => true,
        }
    }

    /// What users call such a model, as far as that is known before it is loaded. Most models are for embedding.
    pub(super) fn kind_name(&self) -> &'static str {
        match self {
            Self::Embedding(spec) => spec.kind.unwrap_or(ModelKind::Embedding).name(),
            Self::Open(_) => ModelKind::Embedding.name(),
            Self::Generator(_) => ModelKind::Generator.name(),
            Self::Object(_) => "object",
        }
    }
}

/// What a slot stands for: as it was registered, until the first load of an open one has decided what that is.
#[derive(Clone)]
pub(super) struct SlotSpec {
    registered: Spec,
    decided: OnceLock<Spec>,
}

impl SlotSpec {
    /// What is known of it now.
    pub(super) fn get(&self) -> &Spec {
        self.decided.get().unwrap_or(&self.registered)
    }

    /// What it is, for a load: an open one asks `kind` what its files say.
    ///
    /// # Errors
    /// Those of `kind`.
    pub(super) fn decide(
        &self,
        kind: impl FnOnce(&ModelSpec) -> Result<Option<ModelKind>>,
    ) -> Result<Cow<'_, Spec>> {
        Ok(match self.get() {
            Spec::Open(open) => Cow::Owned(open.decided(kind(open)?)),
            known => Cow::Borrowed(known),
        })
    }

    /// A load of `decided` has succeeded: that is what it is from now on. One that fails settles nothing, since files that
    /// cannot be read do not say what they are.
    pub(super) fn settle(&self, decided: Cow<'_, Spec>) {
        if let Cow::Owned(decided) = decided {
            let _ = self.decided.set(decided);
        }
    }
}

impl From<Spec> for SlotSpec {
    fn from(registered: Spec) -> Self {
        Self { registered, decided: OnceLock::new() }
    }
}

/// A source that is fixed, or that the environment names at each load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceSpec {
    /// Always this one.
    Fixed(String),
    /// What the first of the variables that is set says when the model is loaded, else the default.
    Environment {
        /// The variables' names.
        variables: &'static [&'static str],
        /// Used while all of them are unset or empty.
        default: String,
    },
}

impl SourceSpec {
    /// The source to load now.
    pub(super) fn current(&self, host: &dyn Host) -> String {
        match self {
            Self::Fixed(source) => source.clone(),
            Self::Environment { variables, default } => variables
                .iter()
                .filter_map(|variable| host.env(variable))
                .map(|value| value.trim().to_owned())
                .find(|value| !value.is_empty())
                .unwrap_or_else(|| default.clone()),
        }
    }
}

/// How long the model of a name stays in memory, and where its results stay.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Retention {
    /// How long the model stays after its latest use; `None`: as configured.
    pub keep_alive: Option<KeepAlive>,
    /// It stays as long as its use has shown.
    pub adaptive: bool,
    /// Seconds in memory that one load is worth then; `None`: as configured.
    pub cold_start_price: Option<Duration>,
    /// Never unloaded by idleness or budget.
    pub pinned: bool,
    /// How its results are cached.
    pub cache: CacheOptions,
}
