//! What a manager is made of. Built from the settings at first use, and built again in a child process after `fork`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::device::Place;
use super::dispatcher::Dispatcher;
use super::entry::{
    EmbeddingSpec, Entry, GeneratorSpec, LoadedModel, ModelHandle, Retention, SourceSpec, Spec,
};
use super::loading;
use super::running::EncoderBackend;
use crate::batching::{Batcher, Counters};
use crate::cache::{CacheSettings, EmbeddingCache, Policy};
use crate::clock::Clock;
use crate::compute::{Threads, memory};
use crate::config::{CachePolicy, DTypeChoice, Host, MULTILINGUAL_MODEL, Seconds, Settings};
use crate::language;
use crate::lifecycle::{
    Budget, Charge, Context, Loaded, Managed, MemoryProbe, Reaper, ReaperSettings, Slot, SlotOptions, Tracker,
};
use crate::remote::{Address, Health};
use crate::sync::Mutex;
use crate::{Error, Result};

/// The slot of Turkish texts.
pub const TURKISH: &str = "turkish_sentence";
/// The slot of all other texts.
pub const ENGLISH: &str = "english_sentence";
/// The slot of the text generator.
pub const GENERATOR: &str = "text_generator";
/// The slots that every manager has.
pub const BUILT_IN: [&str; 3] = [TURKISH, ENGLISH, GENERATOR];

/// Characters of a text that decide its language, as the chatbot cuts texts.
const ROUTED_CHARACTERS: usize = 800;

/// Tokens of a batch for each thread: some milliseconds of work, enough for every thread to have several sub-batches.
const BATCH_TOKENS_PER_THREAD: usize = 2048;

pub(super) struct Core {
    settings: Settings,
    host: Arc<dyn Host>,
    /// All names, in the order they were registered. Few and rarely changed: read without a lock, replaced whole.
    entries: ArcSwap<Vec<Arc<Entry>>>,
    registering: Mutex<()>,
    cache: Arc<EmbeddingCache>,
    context: Context,
    budget: Budget,
    dispatcher: Dispatcher,
    /// Tokenises long texts, so that other calls do not wait for them.
    long_texts: Dispatcher,
    /// Loaded models by identity, for names that share one. The inner lock is held during a load: it is the
    /// single flight of names with the same files.
    shared: Mutex<HashMap<Arc<str>, Flight>>,
    /// How the models of servers have been doing, by address. Outlives their slots' loads.
    healths: Mutex<HashMap<Address, Arc<Health>>>,
    batch_tokens: usize,
    place: Place,
    work: Arc<Counters>,
    pub(super) counts: Counts,
    /// The manager ends: downloads stop.
    closing: AtomicBool,
}

/// A shared model, or the place where its one load is waited for.
type Flight = Arc<Mutex<Weak<EncoderBackend>>>;

/// Calls so far.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) requests: AtomicU64,
    pub(super) rejected: AtomicU64,
}

fn cache_settings(settings: &Settings) -> CacheSettings {
    let (policy, time_to_live) = match settings.cache_policy {
        CachePolicy::Lru => (Policy::Lru, None),
        CachePolicy::Lfu => (Policy::Lfu, None),
        CachePolicy::Ttl => (Policy::Lru, Some(settings.cache_ttl.duration())),
    };
    CacheSettings {
        max_entries: settings.cache_size,
        max_bytes: Some(settings.cache_bytes as u64),
        policy,
        time_to_live,
    }
}

/// The process's memory, as the operating system and the allocator tell it.
struct ProcessMemory;

impl MemoryProbe for ProcessMemory {
    fn resident(&self) -> u64 {
        memory::resident_bytes()
    }

    fn trim(&self) {
        memory::trim();
    }
}

impl Core {
    /// A manager's rooms, with the built-in slots. `tracker` is the manager's own.
    pub(super) fn new(settings: Settings, host: Arc<dyn Host>, tracker: Arc<Tracker>) -> Result<Arc<Self>> {
        if settings.threads > 0 {
            Threads::set_count(settings.threads)?;
        }
        let limit = settings.memory_budget.as_ref().map(|budget| budget.limit.bytes("memory_budget"));
        let cache = Arc::new(EmbeddingCache::new(cache_settings(&settings), Clock::System));
        let idle = ReaperSettings {
            enabled: settings.auto_cleanup,
            interval: settings.cleanup_interval.duration(),
            max_idle: settings.max_idle_time.duration(),
        };
        let expiring = Arc::clone(&cache);
        let reaper = Arc::new(Reaper::new(Clock::System, idle, move || {
            expiring.purge_expired();
        }));
        let core = Arc::new(Self {
            entries: ArcSwap::from_pointee(Vec::new()),
            registering: Mutex::new(()),
            cache,
            context: Context { clock: Clock::System, memory: Arc::new(ProcessMemory), tracker, reaper },
            budget: Budget::new(limit.transpose()?),
            dispatcher: Dispatcher::new("dispatcher"),
            long_texts: Dispatcher::new("long-texts"),
            shared: Mutex::default(),
            healths: Mutex::default(),
            batch_tokens: BATCH_TOKENS_PER_THREAD * Threads::global().count(),
            place: Place::of(settings.device)?,
            work: Arc::default(),
            counts: Counts::default(),
            closing: AtomicBool::new(false),
            settings,
            host,
        });
        core.register_built_in()?;
        Ok(core)
    }

    fn register_built_in(self: &Arc<Self>) -> Result<()> {
        let source = |setting, variable, value: &str| {
            if self.settings.is_given(setting) {
                SourceSpec::Fixed(value.to_owned())
            } else {
                SourceSpec::Environment { variable, default: value.to_owned() }
            }
        };
        let settings = &self.settings;
        let turkish = EmbeddingSpec {
            fallback: vec![MULTILINGUAL_MODEL.to_owned()],
            ..EmbeddingSpec::new(source(
                "turkish_model",
                "TURKISH_SENTENCE_MODEL",
                settings.turkish_model.as_str(),
            ))
        };
        let english = EmbeddingSpec::new(source(
            "english_model",
            "ENGLISH_FALLBACK_MODEL",
            settings.english_model.as_str(),
        ));
        let generator = GeneratorSpec {
            source: source("generator_model", "HUGGINGFACE_MODEL", settings.generator_model.as_str()),
            dtype: DTypeChoice::Auto,
            revision: None,
        };
        self.register(TURKISH, Spec::Embedding(turkish), Retention::default(), false)?;
        self.register(ENGLISH, Spec::Embedding(english), Retention::default(), false)?;
        self.register(GENERATOR, Spec::Generator(generator), Retention::default(), false)
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What loading may take when a call does not say.
    pub(super) fn load_timeout(&self) -> Option<Duration> {
        self.settings.load_timeout.map(Seconds::duration)
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn host(&self) -> &Arc<dyn Host> {
        &self.host
    }

    pub(super) fn cache(&self) -> &EmbeddingCache {
        &self.cache
    }

    pub(super) fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    pub(super) fn long_texts(&self) -> &Dispatcher {
        &self.long_texts
    }

    pub(super) fn reaper(&self) -> &Reaper {
        &self.context.reaper
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(super) fn work(&self) -> &Arc<Counters> {
        &self.work
    }

    pub(super) fn tracker(&self) -> &Tracker {
        &self.context.tracker
    }

    pub(super) fn batch_tokens(&self) -> usize {
        self.batch_tokens
    }

    pub(super) fn entries(&self) -> Arc<Vec<Arc<Entry>>> {
        self.entries.load_full()
    }

    pub(super) fn entry(&self, name: &str) -> Result<Arc<Entry>> {
        let entries = self.entries.load();
        entries.iter().find(|entry| entry.name == name).cloned().ok_or_else(|| Error::UnknownModel {
            name: name.to_owned(),
            known: entries.iter().map(|entry| entry.name.clone()).collect(),
        })
    }

    /// Takes `needed` bytes of the memory budget for the slot `name`. What generators keep of earlier prompts goes first,
    /// then idle models of other slots.
    pub(super) fn make_room(&self, name: &str, needed: u64) -> Result<Charge> {
        let mut missing = self.budget.missing(needed);
        for entry in self.entries.load().iter() {
            if missing == 0 {
                break;
            }
            let freed = entry
                .slot
                .inspect(|resident| resident.generator().map_or(0, |generator| generator.reclaim(missing)));
            missing = missing.saturating_sub(freed.unwrap_or(0));
        }
        self.budget.make_room(name, needed, &self.others(name))
    }

    /// Slots other than `name`, which the memory budget may unload for it.
    fn others(&self, name: &str) -> Vec<Arc<dyn Managed>> {
        self.entries
            .load()
            .iter()
            .filter(|entry| entry.name != name)
            .map(|entry| entry.slot.managed())
            .collect()
    }

    pub(super) fn register(
        self: &Arc<Self>,
        name: &str,
        spec: Spec,
        keep: Retention,
        replace: bool,
    ) -> Result<()> {
        if name.trim().is_empty() {
            return Err(Error::Input("the name of a model must not be blank".into()));
        }
        let known = Arc::new(ArcSwapOption::empty());
        let keep_alive = keep.keep_alive.or_else(|| self.settings.keep_alive.as_ref().map(|k| k.keep_alive));
        let slot = Slot::new(name, SlotOptions { keep_alive, pinned: keep.pinned }, self.context.clone(), {
            let (core, spec, known, name) =
                (Arc::downgrade(self), spec.clone(), Arc::clone(&known), name.to_owned());
            move || loading::load(&core.upgrade().ok_or(Error::Closed)?, &name, &spec, &known)
        });
        let entry = Arc::new(Entry::new(name.to_owned(), spec, keep, slot, known));
        let replaced = {
            let _registering = self.registering.lock();
            let mut entries = Vec::clone(&self.entries.load());
            let replaced = match entries.iter_mut().find(|existing| existing.name == name) {
                Some(_) if !replace => {
                    let known =
                        format!("a model is already registered as {name:?}; pass replace=True to replace it");
                    return Err(Error::Input(known));
                }
                Some(existing) => Some(std::mem::replace(existing, entry)),
                None => {
                    entries.push(entry);
                    None
                }
            };
            self.entries.store(Arc::new(entries));
            replaced
        };
        if let Some(replaced) = replaced {
            replaced.slot.unload();
        }
        Ok(())
    }

    /// The slot `name` for writing text: one whose kind is open becomes a generator.
    pub(super) fn entry_for_text(self: &Arc<Self>, name: &str) -> Result<Arc<Entry>> {
        let entry = self.entry(name)?;
        match &entry.spec {
            Spec::Embedding(spec) if spec.open && entry.known().is_none() => {
                let spec = GeneratorSpec {
                    source: spec.source.clone(),
                    dtype: spec.dtype,
                    revision: spec.revision.clone(),
                };
                self.register(name, Spec::Generator(spec), entry.keep, true)?;
                self.entry(name)
            }
            _ => Ok(entry),
        }
    }

    pub(super) fn unregister(&self, name: &str) -> Result<()> {
        if BUILT_IN.contains(&name) {
            return Err(Error::Input(format!("{name:?} is built in; unload({name:?}) frees its memory")));
        }
        let entry = self.entry(name)?;
        {
            let _registering = self.registering.lock();
            let mut entries = Vec::clone(&self.entries.load());
            entries.retain(|existing| existing.name != name);
            self.entries.store(Arc::new(entries));
        }
        entry.slot.unload();
        Ok(())
    }

    /// The slot that texts of no particular language go to.
    pub(super) fn preferred(&self) -> &'static str {
        if self.settings.prefer_turkish { TURKISH } else { ENGLISH }
    }

    /// The slot for `text`: by the language of its first 800 characters, lower-cased.
    pub(super) fn route(&self, text: &str) -> &'static str {
        if !self.settings.language_detection {
            return self.preferred();
        }
        // A character is lower-cased to one or more; the next word decides on a sigma.
        let text = text.trim();
        let read = text.char_indices().nth(2 * ROUTED_CHARACTERS).map_or(text.len(), |(end, _)| end);
        let lowered = text[..read].to_lowercase();
        let end = lowered.char_indices().nth(ROUTED_CHARACTERS).map_or(lowered.len(), |(end, _)| end);
        if language::is_turkish(&lowered[..end]) { TURKISH } else { ENGLISH }
    }

    /// The loaded model with this identity, or the one that `load` makes. Concurrent callers wait for one load.
    pub(super) fn share(
        &self,
        identity: &Arc<str>,
        load: impl FnOnce() -> Result<Arc<EncoderBackend>>,
    ) -> Result<Arc<EncoderBackend>> {
        let cell = Arc::clone(self.shared.lock().entry(Arc::clone(identity)).or_default());
        let mut held = cell.lock();
        if let Some(running) = held.upgrade() {
            return Ok(running);
        }
        let running = load()?;
        *held = Arc::downgrade(&running);
        Ok(running)
    }

    /// How the model at `address` has been doing; `None` when it has never been asked for.
    pub(super) fn known_health(&self, address: &Address) -> Option<Arc<Health>> {
        self.healths.lock().get(address).cloned()
    }

    /// The same, from now on if it has not been.
    pub(super) fn health(&self, address: &Address) -> Arc<Health> {
        let fresh = || Arc::new(Health::new(Clock::System));
        Arc::clone(self.healths.lock().entry(address.clone()).or_insert_with(fresh))
    }

    /// Counts a refusal for being overloaded.
    pub(super) fn note(&self, error: &Error) {
        if matches!(error, Error::Overloaded { .. }) {
            self.counts.rejected.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Core {
    /// Takes over a model that the parent process had loaded, with a queue of this process. One of a server is connected
    /// to anew at its first use: connections belong to the parent.
    pub(super) fn inherit(&self, name: &str, serving: &ModelHandle) -> Result<()> {
        let EncoderBackend::Local { encoder, .. } = &*serving.running else { return Ok(()) };
        let entry = self.entry(name)?;
        let running = self.share(&serving.known.identity, || {
            let encoder = Arc::clone(encoder);
            let batcher = Batcher::start(name, &encoder, self.batch_tokens, &self.work)?;
            Ok(Arc::new(EncoderBackend::Local { batcher, encoder }))
        })?;
        let bytes = running.memory_bytes();
        entry.learn(Arc::clone(&serving.known));
        let serving = ModelHandle { running, ..serving.clone() };
        // The slot is new: nobody else can have loaded it.
        let _ = entry.slot.adopt(Loaded::new(Arc::new(LoadedModel::Encoder(serving)), bytes));
        Ok(())
    }

    /// Whether [`Core::close`] was called.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Lets go of everything; what is in use lives until its calls end.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.context.reaper.stop();
        for entry in self.entries.load().iter() {
            entry.slot.unload();
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.close();
    }
}
