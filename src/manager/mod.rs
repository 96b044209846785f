//! The manager composes the rooms: lifecycle, models, batching, cache. It is the whole Rust API.
//!
//! ```text
//! Manager ── Core ── entries: name → Entry ── Slot<LoadedModel> ── ModelHandle ── EncoderBackend: Encoder + Batcher, or RemoteEncoder
//!    │         ├ cache, budget, reaper, tracker
//!    │         └ front: moves asynchronous calls along
//!    └ Job: one call, from texts to matrix
//! ```

mod core;
mod device;
mod dispatcher;
mod ending;
mod entry;
mod generate;
mod inputs;
mod job;
mod loading;
mod openai_body;
mod options;
mod report;
mod running;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};

pub use self::core::{BUILT_IN, ENGLISH, GENERATOR, TURKISH};
pub use self::ending::{Abandoned, Inheritance};
pub use self::entry::{
    EmbeddingSpec, GeneratorSpec, HostLoader, HostObject, Retention, SlotValue, SourceSpec, Spec,
};
pub use self::generate::{GenerateOptions, GenerationTicket, GeneratorLease, OwnedPrompt, TextStream};
pub use self::inputs::Inputs;
use self::job::LONG_TEXT;
pub use self::job::{Matrix, OnDone};
pub use self::openai_body::OnBody;
pub use self::options::EmbedOptions;
pub use self::report::{Description, ManagerStatistics, QueueReport, SlotReport};

use self::core::Core;
use self::ending::Closing;
use self::entry::{LoadedModel, ModelHandle};
use self::job::{Job, LookUp};
use crate::cache::{CacheStatistics, Content, Vector};
use crate::compute::memory::{joined, reserve};
use crate::config::{Host, Settings, Value};
use crate::lifecycle::{Lease, ReaperSettings, State, Tracker};
use crate::models::Bounds;
use crate::sync::{Mutex, fork};
use crate::{Error, Result};

/// Looks for a reason to stop waiting, about every 50 ms; the binding looks for signals.
pub type Check<'a> = &'a mut dyn FnMut() -> Result<()>;

/// Model slots, the embedding cache and the queues. All methods may be called from any thread.
///
/// The settings are read, and everything is built, at the first use: constructing a manager costs nothing.
pub struct Manager {
    host: Arc<dyn Host>,
    given: Given,
    /// Replaced in a child process, where a thread that is gone may hold a lock of the parent's.
    tracker: ArcSwap<Tracker>,
    core: ArcSwapOption<Core>,
    building: Mutex<()>,
    closing: Closing,
    closed: AtomicBool,
}

/// Where a manager's settings come from.
enum Given {
    /// Validated already.
    Settings(Box<Settings>),
    /// Keywords over the environment, which is read at first use.
    Keywords(Vec<(String, Value)>),
}

/// A request under way. It does not keep the request alive: what serves it does, until its caller has been told.
pub struct Ticket(Weak<Job>);

impl Ticket {
    /// Whether the result is there, or the request has failed or been cancelled.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.upgrade().is_none_or(|job| job.is_done())
    }

    /// Gives the request up. True when its caller will not be told any more.
    pub fn cancel(&self) -> bool {
        self.0.upgrade().is_some_and(|job| job.cancel())
    }
}

impl Manager {
    /// A manager with these settings.
    pub fn new(settings: Settings, host: Arc<dyn Host>) -> Self {
        Self::build(Given::Settings(Box::new(settings)), host)
    }

    /// A manager whose environment is read at its first use. A wrong keyword is told now.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn from_environment(keywords: Vec<(String, Value)>, host: Arc<dyn Host>) -> Result<Self> {
        Settings::default().with(pairs(&keywords))?;
        Ok(Self::build(Given::Keywords(keywords), host))
    }

    fn build(given: Given, host: Arc<dyn Host>) -> Self {
        Self {
            host,
            given,
            tracker: ArcSwap::from_pointee(Tracker::new(crate::clock::Clock::System)),
            core: ArcSwapOption::empty(),
            building: Mutex::new(()),
            closing: Closing::default(),
            closed: AtomicBool::new(false),
        }
    }

    fn core(&self) -> Result<Arc<Core>> {
        if let Some(core) = self.core.load_full() {
            return Ok(core);
        }
        // A caller that holds Python's lock must not wait for this one: building may wait for Python.
        if self.is_closed() {
            return Err(Error::Closed);
        }
        // Not under the lock: reading Python's environment may run a signal handler that comes back here.
        let settings = match &self.given {
            Given::Settings(settings) => (**settings).clone(),
            Given::Keywords(keywords) => {
                self.host.before_settings();
                Settings::resolve(&*self.host, pairs(keywords))?
            }
        };
        let building = self.building.lock();
        if let Some(core) = self.core.load_full() {
            return Ok(core);
        }
        // Under the lock: what is built here is found by `close`, or is not built.
        if self.is_closed() {
            return Err(Error::Closed);
        }
        let core = Core::new(settings, Arc::clone(&self.host), self.tracker())?;
        self.core.store(Some(Arc::clone(&core)));
        drop(building);
        if !core.settings().lazy_loading {
            for name in [TURKISH, ENGLISH] {
                core.entry(name)?.slot.when_ready(Box::new(|_| ()));
            }
        }
        Ok(core)
    }

    /// The settings in force. Reading them fixes them.
    ///
    /// # Errors
    /// [`Error::Config`] when the environment holds a wrong value; [`Error::Closed`].
    pub fn settings(&self) -> Result<Settings> {
        Ok(self.core()?.settings().clone())
    }

    /// Where sentence models compute: cpu, cuda or mps.
    ///
    /// # Errors
    /// As [`Manager::settings`].
    pub fn device(&self) -> Result<&'static str> {
        Ok(self.core()?.place().name())
    }

    /// Load times, memory and accesses by slot.
    #[must_use]
    pub fn tracker(&self) -> Arc<Tracker> {
        self.tracker.load_full()
    }

    // --- Slots -------------------------------------------------------------------------------------------------------

    /// Makes the slot `name`. Nothing is loaded yet.
    ///
    /// # Errors
    /// [`Error::Input`] when the name is blank, or taken and not to be replaced.
    pub fn register(&self, name: &str, spec: Spec, keep: Retention, replace: bool) -> Result<()> {
        self.core()?.register(name, spec, keep, replace)
    }

    /// Unloads and forgets the slot.
    ///
    /// # Errors
    /// [`Error::Input`] for a built-in slot; [`Error::UnknownModel`].
    pub fn unregister(&self, name: &str) -> Result<()> {
        self.core()?.unregister(name)
    }

    /// Names of all slots, in the order they were made.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(self.core()?.entries().iter().map(|entry| entry.name.clone()).collect())
    }

    /// Loads the slot and waits for it. Concurrent callers share one load.
    ///
    /// # Errors
    /// [`Error::UnknownModel`]; [`Error::Timeout`], while the load goes on; whatever the load failed with.
    pub fn load(&self, name: &str, timeout: Option<Duration>, check: Check<'_>) -> Result<()> {
        self.lease(name, timeout, check).map(drop)
    }

    /// Loads several slots at the same time and waits for all.
    ///
    /// # Errors
    /// The first failure, after all have ended.
    pub fn warm_up(&self, names: &[String], timeout: Option<Duration>, check: Check<'_>) -> Result<()> {
        let core = self.core()?;
        let entries = names.iter().map(|name| core.entry(name)).collect::<Result<Vec<_>>>()?;
        for entry in &entries {
            entry.slot.when_ready(Box::new(|_| ()));
        }
        let mut outcome = Ok(());
        for name in names {
            outcome = outcome.and(self.load(name, timeout, check));
        }
        outcome
    }

    /// Unloads the slot; true if it was loaded. Calls that compute with it finish first.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn unload(&self, name: &str) -> Result<bool> {
        let entry = self.core()?.entry(name)?;
        Ok(entry.slot.unload())
    }

    /// Unloads every slot; how many were loaded.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn unload_all(&self) -> Result<usize> {
        Ok(self.core()?.entries().iter().filter(|entry| entry.slot.unload()).count())
    }

    /// Whether the slot's model makes vectors. Never loads.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::Closed`].
    pub fn is_embedding(&self, name: &str) -> Result<bool> {
        Ok(matches!(self.core()?.entry(name)?.spec, Spec::Embedding(_)))
    }

    /// Whether the slot is in memory now.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn is_loaded(&self, name: &str) -> Result<bool> {
        Ok(self.core()?.entry(name)?.slot.state() == State::Ready)
    }

    /// What the slot holds, loaded if need be.
    ///
    /// # Errors
    /// As [`Manager::load`].
    pub fn get(&self, name: &str, timeout: Option<Duration>, check: Check<'_>) -> Result<SlotValue> {
        Ok(self.lease(name, timeout, check)?.held())
    }

    /// What the slot holds if it is in memory. Never loads and is no use: deadlines stay.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn peek(&self, name: &str) -> Result<Option<SlotValue>> {
        let entry = self.core()?.entry(name)?;
        Ok(entry.slot.inspect(LoadedModel::held))
    }

    fn lease(&self, name: &str, timeout: Option<Duration>, check: Check<'_>) -> Result<Lease<LoadedModel>> {
        let core = self.core()?;
        core.entry(name)?.slot.acquire(timeout.or_else(|| core.load_timeout()), check)
    }

    fn serving(&self, name: &str, check: Check<'_>) -> Result<ModelHandle> {
        self.lease(name, None, check)?.serving(name).cloned()
    }

    // --- Embedding ---------------------------------------------------------------------------------------------------

    /// The slot that a text goes to when the call names none.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn route(&self, text: &str) -> Result<&'static str> {
        Ok(self.core()?.route(text))
    }

    /// The vector of `text` if the cache holds it; counts as a hit or a miss. Costs no allocation and loads nothing.
    ///
    /// # Errors
    /// [`Error::UnknownModel`]; [`Error::Input`] for options that do not fit the model.
    pub fn cached(&self, text: &str, options: &EmbedOptions) -> Result<Option<Vector>> {
        let core = self.core()?;
        let entry = match &options.model {
            Some(name) => core.entry(name)?,
            None => core.entry(core.route(text))?,
        };
        let Some(known) = entry.known() else {
            core.cache().count_misses(1);
            return Ok(None);
        };
        let prompt = known.prompt(options)?;
        Ok(known.cached(core.cache(), options, prompt, Content::Text(text)))
    }

    /// Embeds a text that [`Manager::cached`] has just not found, and waits.
    ///
    /// # Errors
    /// As [`Manager::embed`].
    pub fn embed_missed(&self, text: &str, options: EmbedOptions, check: Check<'_>) -> Result<Vector> {
        let job = self.start(vec![joined(&[text])?].into(), options, LookUp::Done, None)?;
        let matrix = job.wait(check, &mut |_, _| Ok(()))?;
        Ok(Vector::new(matrix.values, u32::try_from(matrix.tokens).unwrap_or(u32::MAX)))
    }

    /// Embeds texts or token ids and waits, driving the work on this thread. `progress` hears of finished inputs:
    /// (finished, all).
    ///
    /// # Errors
    /// [`Error::Input`], [`Error::UnknownModel`], [`Error::Overloaded`], [`Error::Timeout`], [`Error::NotFinite`],
    /// whatever `check` and `progress` return, and whatever loading the model failed with.
    pub fn embed(
        &self,
        inputs: impl Into<Inputs>,
        options: EmbedOptions,
        check: Check<'_>,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Matrix> {
        self.start(inputs.into(), options, LookUp::Cache, None)?.wait(check, progress)
    }

    /// Embeds texts or token ids without waiting: `on_done` is called once, from another thread, or from this one when
    /// everything was cached.
    ///
    /// # Errors
    /// What is known at once: [`Error::Input`], [`Error::UnknownModel`], [`Error::Overloaded`], [`Error::Closed`].
    pub fn submit(
        &self,
        inputs: impl Into<Inputs>,
        options: EmbedOptions,
        on_done: OnDone,
    ) -> Result<Ticket> {
        self.start(inputs.into(), options, LookUp::Cache, Some(on_done))
            .map(|job| Ticket(Arc::downgrade(&job)))
    }

    fn start(
        &self,
        inputs: Inputs,
        options: EmbedOptions,
        look_up: LookUp,
        on_done: Option<OnDone>,
    ) -> Result<Arc<Job>> {
        let core = self.core()?;
        core.counts.requests.fetch_add(1, Ordering::Relaxed);
        Job::start(&core, inputs, options, look_up, on_done).inspect_err(|error| core.note(error))
    }

    /// Tokens of each text, special tokens included, not cut to the model's maximum. Loads the model.
    ///
    /// # Errors
    /// As [`Manager::embed`].
    pub fn count_tokens(
        &self,
        texts: &[String],
        model: Option<&str>,
        check: Check<'_>,
    ) -> Result<Vec<usize>> {
        let core = self.core()?;
        let mut counts = Vec::new();
        reserve(&mut counts, texts.len())?;
        for (number, text) in texts.iter().enumerate() {
            let name = model.unwrap_or_else(|| core.route(text));
            let lease = self.lease(name, None, check)?;
            let _computing = fork::computing();
            let mut between = || if text.len() > LONG_TEXT { check() } else { Ok(()) };
            let mut bounds = Bounds { max_bytes: core.settings().max_text_bytes, check: &mut between };
            counts.push(lease.count_tokens(name, text, &mut bounds)?);
            if number % 256 == 255 {
                check()?;
            }
        }
        Ok(counts)
    }

    /// What the model of an embedding slot is. Without `load`, `None` when it is not in memory.
    ///
    /// # Errors
    /// [`Error::Input`] for a slot with a loader of the host's own; as [`Manager::load`].
    pub fn describe(&self, name: &str, load: bool, check: Check<'_>) -> Result<Option<Description>> {
        let entry = self.core()?.entry(name)?;
        let serving = if load {
            Some(self.serving(name, check)?)
        } else {
            entry.slot.inspect(|resident| resident.serving(name).cloned()).transpose()?
        };
        Ok(serving.map(|serving| Description::new(name, &serving)))
    }

    // --- Cache, upkeep, figures --------------------------------------------------------------------------------------

    /// State of the embedding cache.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn cache_statistics(&self) -> Result<CacheStatistics> {
        Ok(self.core()?.cache().statistics())
    }

    /// Empties the embedding cache and sets its counts to zero.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn clear_cache(&self) -> Result<()> {
        self.core()?.cache().clear();
        Ok(())
    }

    /// When idle models leave.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn reaper_settings(&self) -> Result<ReaperSettings> {
        Ok(self.core()?.reaper().settings())
    }

    /// Changes when idle models leave; takes effect at once.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn set_reaper(&self, settings: ReaperSettings) -> Result<()> {
        self.core()?.reaper().set(settings);
        Ok(())
    }

    /// Unloads now what has been idle for long enough; how many slots.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn clean_up(&self) -> Result<usize> {
        Ok(self.core()?.reaper().clean_up())
    }

    /// Time since the latest clean-up of idle models.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn since_clean_up(&self) -> Result<Duration> {
        Ok(self.core()?.reaper().since_cleanup())
    }

    /// Everything countable. Loads nothing.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn statistics(&self) -> Result<ManagerStatistics> {
        Ok(ManagerStatistics::of(&*self.core()?))
    }
}

fn pairs(keywords: &[(String, Value)]) -> impl Iterator<Item = (&str, Value)> {
    keywords.iter().map(|(name, value)| (name.as_str(), value.clone()))
}
