//! What the embedding calls of one manager share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::super::dispatcher::Dispatcher;
use super::super::super::info::ModelInfo;
use super::super::super::loading::ModelLoader;
use super::super::super::options::EmbedOptions;
use super::super::super::pins;
use super::super::super::registry::{NamedSlot, Registry};
use super::super::super::router::Router;
use super::super::super::spec::{EmbeddingSpec, SourceSpec, Spec};
use crate::cache::tiers::Tiers;
use crate::cache::{CachedItem, Content, EmbeddingCache};
use crate::config::Settings;
use crate::lifecycle::State;
use crate::trace::{TraceStage, step};
use crate::{Error, Result};

/// Batches of tokens that one call may have queued or under way: one is computed, one is formed, one is tokenized.
const WINDOW_BATCHES: usize = 3;

/// What an embedding call needs of its manager.
pub(in super::super::super) struct Embedder {
    pub(super) registry: Arc<Registry>,
    pub(super) router: Router,
    pub(super) cache: Arc<EmbeddingCache>,
    /// Below the memory.
    pub(super) tiers: Arc<Tiers>,
    pub(super) loader: Arc<ModelLoader>,
    pub(super) dispatcher: Arc<Dispatcher>,
    /// Tokenizes long texts, so that other calls do not wait for them.
    long_texts: Dispatcher,
    pub(super) max_queue: usize,
    pub(super) max_text_bytes: usize,
    /// Tokens of one call that may be queued or under way.
    pub(super) window: usize,
    requests: AtomicU64,
    rejected: AtomicU64,
    given_up: AtomicU64,
}

impl Embedder {
    pub(in super::super::super) fn new(
        settings: &Settings,
        registry: Arc<Registry>,
        router: Router,
        cache: Arc<EmbeddingCache>,
        tiers: Arc<Tiers>,
        loader: Arc<ModelLoader>,
        dispatcher: Arc<Dispatcher>,
    ) -> Self {
        Self {
            registry,
            router,
            cache,
            tiers,
            window: WINDOW_BATCHES * loader.batch_tokens(),
            loader,
            dispatcher,
            long_texts: Dispatcher::new("long-texts"),
            max_queue: settings.max_queue,
            max_text_bytes: settings.max_text_bytes,
            requests: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
        }
    }

    /// The result of `text` if the cache has it; counts as a hit or a miss. Allocates and loads nothing.
    pub(in super::super::super) fn cached(
        &self,
        text: &str,
        options: &EmbedOptions,
    ) -> Result<Option<CachedItem>> {
        let name = options.model.as_deref().unwrap_or_else(|| self.router.route(text));
        let entry = self.registry.entry(name)?;
        let Some(memory) = entry.cache.memory(&self.cache) else { return Ok(None) };
        let _step = step(options.trace.as_ref(), TraceStage::Cache);
        let Some(info) = self.info(&entry) else {
            memory.count_misses(1);
            return Ok(None);
        };
        let prompt = info.prompt(options)?;
        let found = info.cached(memory, options, prompt, Content::Text(text));
        if let Some(trace) = &options.trace {
            trace.found(usize::from(found.is_some()), 0, &info.facts.model);
        }
        entry.cache.count(usize::from(found.is_some()), 0);
        Ok(found)
    }

    /// What is known of the model of `entry`. A slot whose variable names another model now knows nothing of that one, unless
    /// the former is still in memory.
    pub(super) fn info(&self, entry: &NamedSlot) -> Option<Arc<ModelInfo>> {
        let info = entry.info()?;
        if let Spec::Embedding(EmbeddingSpec { source: source @ SourceSpec::Environment { .. }, .. }) =
            entry.spec()
            && entry.slot.state() != State::Ready
            && source.current(self.loader.host()) != info.asked
        {
            entry.forget(&info);
            pins::release(&self.cache, &self.registry.all(), &info);
            return None;
        }
        Some(info)
    }

    /// The thread that serves asynchronous calls.
    pub(super) fn dispatcher_of(&self, long_text: bool) -> &Dispatcher {
        if long_text { &self.long_texts } else { &self.dispatcher }
    }

    /// Whether the calling thread serves asynchronous calls.
    pub(super) fn is_here(&self) -> bool {
        self.dispatcher.is_here() || self.long_texts.is_here()
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an error that is a refusal because a queue is full.
    pub(super) fn count_refusal(&self, error: &Error) {
        if matches!(error, Error::Overloaded { .. }) {
            self.rejected.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts inputs of a call that was given up before they were queued.
    pub(super) fn count_given_up(&self, inputs: usize) {
        self.given_up.fetch_add(inputs as u64, Ordering::Relaxed);
    }

    /// Inputs that were not queued, because their call was given up.
    pub(in super::super::super) fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Calls so far.
    pub(in super::super::super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Calls that were refused because a queue was full.
    pub(in super::super::super) fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }
}
