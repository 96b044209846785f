//! Slots by name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::caching::SlotCache;
use super::info::ModelInfo;
use super::model::LoadedModel;
use super::spec::{BUILT_IN, Retention, SlotSpec, Spec};
use crate::cache::CacheSettings;
use crate::generation::SharedTotals;
use crate::lifecycle::policy::Learning;
use crate::lifecycle::{Context, KeepAlive, Lease, Loaded, Slot, SlotOptions};
use crate::sync::Mutex;
use crate::{Error, Result};

/// What the models of one name have done since the name was first registered. Unloading and replacing them does not reset it,
/// as no counter of a monitoring system may fall.
#[derive(Default)]
pub(super) struct SlotTotals {
    /// Texts that were cut because the model reads no more.
    pub(super) truncated: AtomicU64,
    /// Of text generators.
    pub(super) generation: SharedTotals,
}

/// How often slots were registered in this process, and in its parents before they were forked.
static REGISTRATIONS: AtomicU64 = AtomicU64::new(0);

/// A name, its slot, and what is known of its model.
pub(super) struct NamedSlot {
    pub(super) name: String,
    /// Another one after each registration of the name, and equal to no other slot's.
    pub(super) registration: u64,
    spec: Arc<SlotSpec>,
    pub(super) keep: Retention,
    pub(super) slot: Slot<LoadedModel>,
    /// Texts admitted and not finished: waiting for the load, to be tokenized, or queued.
    pub(super) queued: AtomicUsize,
    pub(super) cache: SlotCache,
    pub(super) totals: Arc<SlotTotals>,
    info: Arc<ArcSwapOption<ModelInfo>>,
    /// That texts were cut was logged.
    cut_logged: AtomicBool,
    /// Whether what earlier processes found was looked up.
    recalled: AtomicBool,
}

impl NamedSlot {
    /// Whether its model takes a card's memory, or that of the process. One that is not loaded may take either.
    pub(super) fn is_in(&self, on_card: bool) -> bool {
        self.slot.inspect(LoadedModel::is_on_card).is_none_or(|model| model == on_card)
    }

    /// What it stands for, as far as that is known.
    pub(super) fn spec(&self) -> &Spec {
        self.spec.get()
    }

    /// What the latest load has found; `None` before the first.
    pub(super) fn info(&self) -> Option<Arc<ModelInfo>> {
        self.info.load_full()
    }

    /// Sets what is known of the model before it is loaded here.
    pub(super) fn set_info(&self, info: Arc<ModelInfo>) {
        self.info.store(Some(info));
    }

    /// Gives the model a keep-alive if it is in memory, as a call that uses it does; the cache answered this one.
    pub(super) fn keep_for(&self, keep_alive: Option<KeepAlive>) {
        if let Some(keep_alive) = keep_alive
            && let Some(mut lease) = self.slot.try_acquire()
        {
            lease.keep_alive(keep_alive);
        }
    }

    /// Forgets what is known, if that is still `info`.
    pub(super) fn forget(&self, info: &Arc<ModelInfo>) {
        let former = self.info.compare_and_swap(info, None);
        if former.as_ref().is_some_and(|former| Arc::ptr_eq(former, info)) {
            self.recalled.store(false, Ordering::Relaxed);
        }
    }

    /// Sets what `recall` returns, unless something is known already or this was tried before.
    pub(super) fn recall(&self, recall: impl FnOnce(&Spec) -> Option<ModelInfo>) {
        if self.info.load().is_none()
            && !self.recalled.swap(true, Ordering::Relaxed)
            && let Some(info) = recall(self.spec())
        {
            // Not in the place of what a load has found meanwhile.
            self.info.compare_and_swap(&None::<Arc<ModelInfo>>, Some(Arc::new(info)));
        }
    }

    /// Unloads a model whose files were changed while it was loaded.
    pub(super) fn drop_stale(&self) {
        if self.slot.inspect(LoadedModel::is_stale) == Some(true) {
            log::warn!("{}: its model's files were changed; loading them again", self.name);
            self.slot.unload();
        }
    }

    /// Counts texts that were cut to `longest` tokens. The first one is logged: a vector of a part of a text is rarely wanted.
    pub(super) fn note_truncated(&self, texts: usize, longest: Option<usize>) {
        if texts == 0 {
            return;
        }
        self.totals.truncated.fetch_add(texts as u64, Ordering::Relaxed);
        if !self.cut_logged.swap(true, Ordering::Relaxed) {
            let longest = longest.unwrap_or_default();
            log::warn!(
                "{:?} reads at most {longest} tokens of a text; the rest of a longer one was cut. chunk() splits texts, \
                 truncate=False refuses them, stats() counts them; this is logged once",
                self.name
            );
        }
    }

    /// Whether nothing waits for it, and it computes nothing.
    pub(super) fn is_quiet(&self) -> bool {
        self.queued.load(Ordering::Relaxed) == 0 && self.slot.status().leases == 0
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

/// All names, in the order in which they were registered. Few and rarely changed: read without a lock, replaced whole.
pub(super) struct NamedSlots(ArcSwap<Vec<Arc<NamedSlot>>>);

impl NamedSlots {
    pub(super) fn all(&self) -> Arc<Vec<Arc<NamedSlot>>> {
        self.0.load_full()
    }

    fn get(&self, name: &str) -> Option<Arc<NamedSlot>> {
        self.0.load().iter().find(|entry| entry.name == name).cloned()
    }
}

/// What a load gets of the slot that it is for.
pub(super) struct LoadFor<'a> {
    /// All slots: others may have to give memory back.
    pub(super) entries: &'a Arc<NamedSlots>,
    pub(super) name: &'a str,
    pub(super) spec: &'a SlotSpec,
    /// Where it stores what it finds out.
    pub(super) info: &'a ArcSwapOption<ModelInfo>,
    /// Where its model counts.
    pub(super) totals: &'a SlotTotals,
}

/// The slot that had a name before.
pub(super) type Replaced = Option<Arc<NamedSlot>>;

/// Loads what a name stands for.
pub(super) type SpecLoader = dyn Fn(&LoadFor<'_>) -> Result<Loaded<LoadedModel>> + Send + Sync;

/// What holds for slots and calls that have no settings of their own.
pub(super) struct SlotDefaults {
    pub(super) keep_alive: Option<KeepAlive>,
    /// Slots without a keep-alive stay as long as their use has shown.
    pub(super) adaptive: bool,
    /// Limits loads.
    pub(super) load_timeout: Option<Duration>,
    /// How models are cached.
    pub(super) cache: CacheSettings,
}

/// The slots of a manager.
pub(super) struct Registry {
    entries: Arc<NamedSlots>,
    registering: Mutex<()>,
    context: Context,
    defaults: SlotDefaults,
    learning: Arc<Learning>,
    load: Arc<SpecLoader>,
    /// Slots that their first use makes.
    offered: Vec<(&'static str, Spec)>,
}

impl Registry {
    /// A registry without slots.
    pub(super) fn new(
        context: Context,
        defaults: SlotDefaults,
        learning: Arc<Learning>,
        load: Arc<SpecLoader>,
    ) -> Self {
        let entries = Arc::new(NamedSlots(ArcSwap::from_pointee(Vec::new())));
        Self { entries, registering: Mutex::new(()), context, defaults, learning, load, offered: Vec::new() }
    }

    pub(super) fn all(&self) -> Arc<Vec<Arc<NamedSlot>>> {
        self.entries.all()
    }

    /// Has the first use of `name` make its slot.
    pub(super) fn offer(&mut self, name: &'static str, spec: Spec) {
        self.offered.push((name, spec));
    }

    pub(super) fn entry(&self, name: &str) -> Result<Arc<NamedSlot>> {
        if let Some(found) = self.entries.get(name) {
            return Ok(found);
        }
        let offered = self.offered.iter().find(|(offered, _)| *offered == name);
        let (_, spec) = offered.ok_or_else(|| self.unknown(name))?;
        // Another thread may have made it meanwhile.
        let made = self.register(name, spec.clone(), Retention::default(), false);
        self.entries.get(name).ok_or_else(|| made.err().unwrap_or_else(|| self.unknown(name)))
    }

    /// The error for a name that no slot has, with those that there are.
    fn unknown(&self, name: &str) -> Error {
        let mut known: Vec<_> = self.all().iter().map(|entry| entry.name.clone()).collect();
        for (offered, _) in &self.offered {
            if !known.iter().any(|name| name == offered) {
                known.push((*offered).to_owned());
            }
        }
        Error::UnknownModel { name: name.to_owned(), known }
    }

    pub(super) fn load_timeout(&self) -> Option<Duration> {
        self.defaults.load_timeout
    }

    /// The model of the slot `name`, loaded if need be.
    pub(super) fn acquire(
        &self,
        name: &str,
        timeout: Option<Duration>,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Lease<LoadedModel>> {
        self.entry(name)?.slot.acquire(timeout.or(self.load_timeout()), check)
    }

    /// The slot is about to be used, on behalf of `user`: those that usually follow are expected.
    pub(super) fn used(&self, name: &str, user: Option<&str>) {
        if self.learning.used(name, user) {
            self.context.reaper.look_ahead();
        }
    }

    /// The slot will be needed soon, on behalf of `user`. False when its stay is not decided by its use.
    pub(super) fn hint(&self, name: &str, user: Option<&str>) -> bool {
        let hinted = self.learning.hint(name, user);
        if hinted {
            self.context.reaper.look_ahead();
        }
        hinted
    }

    /// Unloads every slot; how many were loaded.
    pub(super) fn unload_all(&self) -> usize {
        self.all().iter().filter(|entry| entry.slot.unload()).count()
    }

    /// Adds the slot `name`. Nothing is loaded yet. Returns the slot that it replaces.
    pub(super) fn register(
        &self,
        name: &str,
        spec: Spec,
        keep: Retention,
        replace: bool,
    ) -> Result<Replaced> {
        if name.trim().is_empty() {
            return Err(Error::Input("the name of a model must not be blank".into()));
        }
        if keep.cold_start_price.is_some() && !self.is_adaptive(&keep) {
            let reason = " is for a slot with keep_alive=\"auto\" that is not pinned; leave it out";
            return Err(Error::argument("cold_start_price", reason));
        }
        if keep.pinned && (keep.adaptive || matches!(keep.keep_alive, Some(KeepAlive::For(_)))) {
            let reason = " is for a slot that is not pinned: a pinned model stays until unload(); leave one of both out";
            return Err(Error::argument("keep_alive", reason));
        }
        let registration = REGISTRATIONS.fetch_add(1, Ordering::Relaxed);
        self.put(name, spec.into(), keep, registration, replace).ok_or_else(|| {
            let taken = format!("a model is already registered as {name:?}; pass replace=True to replace it");
            Error::Input(taken)
        })
    }

    /// Adds a slot of the parent process, which keeps its registration.
    pub(super) fn inherit(&self, parents: &NamedSlot) {
        let NamedSlot { name, spec, keep, registration, .. } = parents;
        self.put(name, SlotSpec::clone(spec), keep.clone(), *registration, true);
    }

    /// Adds the slot `name`, or replaces it if it may. `None` when the name is taken.
    fn put(
        &self,
        name: &str,
        spec: SlotSpec,
        keep: Retention,
        registration: u64,
        replace: bool,
    ) -> Option<Replaced> {
        let registering = self.registering.lock();
        let mut entries = Vec::clone(&self.entries.all());
        let taken = entries.iter().position(|existing| existing.name == name);
        if taken.is_some() && !replace {
            return None;
        }
        let totals = taken.map(|at| Arc::clone(&entries[at].totals)).unwrap_or_default();
        let entry = Arc::new(self.entry_of(name, spec, keep, registration, totals));
        let replaced = match taken {
            Some(at) => Some(std::mem::replace(&mut entries[at], entry)),
            None => {
                entries.push(entry);
                None
            }
        };
        self.entries.0.store(Arc::new(entries));
        drop(registering);
        if let Some(replaced) = &replaced {
            replaced.slot.unload();
        }
        Some(replaced)
    }

    /// Whether the use of a slot decides how long its model stays.
    fn is_adaptive(&self, keep: &Retention) -> bool {
        (keep.adaptive || (self.defaults.adaptive && keep.keep_alive.is_none())) && !keep.pinned
    }

    /// A slot that is not among the others yet.
    fn entry_of(
        &self,
        name: &str,
        spec: SlotSpec,
        keep: Retention,
        registration: u64,
        totals: Arc<SlotTotals>,
    ) -> NamedSlot {
        let (spec, info) = (Arc::new(spec), Arc::new(ArcSwapOption::empty()));
        let loader = {
            let (entries, load) = (Arc::downgrade(&self.entries), Arc::clone(&self.load));
            let (spec, info, totals) = (Arc::clone(&spec), Arc::clone(&info), Arc::clone(&totals));
            let name = name.to_owned();
            move || {
                let entries = &entries.upgrade().ok_or(Error::Closed)?;
                load(&LoadFor { entries, name: &name, spec: &spec, info: &info, totals: &totals })
            }
        };
        let keep_alive = keep.keep_alive.or(self.defaults.keep_alive);
        let (options, context) = (SlotOptions { keep_alive, pinned: keep.pinned }, self.context.clone());
        let slot = if self.is_adaptive(&keep) {
            let policy = self.learning.policy(name, keep.cold_start_price);
            let options = SlotOptions { keep_alive: None, ..options };
            Slot::adaptive(name, options, context, policy, loader)
        } else {
            self.learning.end(name);
            Slot::new(name, options, context, loader)
        };
        NamedSlot {
            name: name.to_owned(),
            registration,
            cache: SlotCache::new(&keep.cache, self.defaults.cache),
            spec,
            keep,
            slot,
            queued: AtomicUsize::new(0),
            totals,
            info,
            cut_logged: AtomicBool::new(false),
            recalled: AtomicBool::new(false),
        }
    }

    /// Unloads the slot, removes it and its figures, and returns it.
    pub(super) fn unregister(&self, name: &str) -> Result<Arc<NamedSlot>> {
        if BUILT_IN.contains(&name) {
            return Err(Error::Input(format!("{name:?} is built in; unload({name:?}) frees its memory")));
        }
        let entry = {
            let _registering = self.registering.lock();
            let entry = self.entries.get(name).ok_or_else(|| self.unknown(name))?;
            let mut entries = Vec::clone(&self.entries.all());
            entries.retain(|existing| existing.name != name);
            self.entries.0.store(Arc::new(entries));
            // Under the lock: a slot that takes the name from now on has a policy and figures of its own.
            self.learning.end(name);
            self.context.tracker.forget(name);
            entry
        };
        entry.slot.unload();
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::{ModelSpec, SourceSpec};
    use super::*;
    use crate::cache::Policy;
    use crate::clock::Clock;
    use crate::config::DTypeChoice;
    use crate::lifecycle::policy::AdaptiveSettings;
    use crate::lifecycle::{Eviction, MemoryProbe, Reaper, ReaperSettings, Tracker, WaitGraph};
    use crate::models::ModelKind;

    struct NoMemory;

    impl MemoryProbe for NoMemory {
        fn resident(&self) -> u64 {
            0
        }

        fn trim(&self) {}
    }

    fn registry() -> Registry {
        let clock = Clock::manual();
        let reaper = ReaperSettings { enabled: false, ..ReaperSettings::default() };
        let context = Context {
            clock: clock.clone(),
            memory: Arc::new(NoMemory),
            tracker: Arc::new(Tracker::new(clock.clone())),
            reaper: Arc::new(Reaper::new(clock.clone(), reaper, || {})),
            eviction: Arc::new(Eviction::default()),
            wait_graph: WaitGraph::default(),
        };
        let cache =
            CacheSettings { max_entries: 1, max_bytes: None, policy: Policy::Lru, time_to_live: None };
        let defaults = SlotDefaults { keep_alive: None, adaptive: false, load_timeout: None, cache };
        let seconds = Duration::from_secs;
        let adaptive = AdaptiveSettings { usual: seconds(1), price: seconds(1), longest: seconds(1) };
        let learning = Arc::new(Learning::new(clock, adaptive, None));
        Registry::new(context, defaults, learning, Arc::new(|_| Err(Error::Closed)))
    }

    /// A model whose kind its files decide.
    fn open(source: &str) -> Spec {
        Spec::Open(ModelSpec {
            source: fixed(source),
            dtype: DTypeChoice::Auto,
            revision: None,
            adapter: None,
        })
    }

    fn source(entry: &NamedSlot) -> Option<&SourceSpec> {
        entry.spec().source()
    }

    fn fixed(source: &str) -> SourceSpec {
        SourceSpec::Fixed(source.to_owned())
    }

    #[test]
    fn a_taken_name_is_replaced_only_where_that_is_asked() {
        let registry = registry();
        registry.register("m", open("a"), Retention::default(), false).unwrap();
        let first = registry.entry("m").unwrap();
        let refused = registry.register("m", open("b"), Retention::default(), false);
        assert!(matches!(refused, Err(Error::Input(reason)) if reason.contains("replace=True")));
        assert!(Arc::ptr_eq(&registry.entry("m").unwrap(), &first));
        registry.register("m", open("b"), Retention::default(), true).unwrap();
        let second = registry.entry("m").unwrap();
        assert_eq!(source(&second), Some(&fixed("b")));
        assert_ne!(second.registration, first.registration);
        registry.unregister("m").unwrap();
        assert!(matches!(registry.entry("m"), Err(Error::UnknownModel { .. })));
    }

    #[test]
    fn the_files_of_an_open_slot_decide_once_what_it_is() {
        let registry = registry();
        registry.register("m", open("a"), Retention::default(), false).unwrap();
        let entry = registry.entry("m").unwrap();
        assert!(entry.spec.decide(|_| Err(Error::Closed)).is_err());
        // What is decided counts when it has been loaded.
        let failed = entry.spec.decide(|_| Ok(Some(ModelKind::Embedding))).unwrap();
        assert!(matches!(*failed, Spec::Embedding(_)) && matches!(entry.spec(), Spec::Open(_)));
        for found in [Some(ModelKind::Generator), Some(ModelKind::Sparse)] {
            let decided = entry.spec.decide(|_| Ok(found)).unwrap();
            assert!(matches!(*decided, Spec::Generator(_)));
            entry.spec.settle(decided);
        }
        assert_eq!((source(&entry), entry.spec().kind_name()), (Some(&fixed("a")), "generator"));
        // A process that is forked goes on with what is known.
        let child = self::registry();
        child.inherit(&entry);
        assert_eq!(child.entry("m").unwrap().spec().kind_name(), "generator");

        for kind in [None, Some(ModelKind::Embedding), Some(ModelKind::Classifier)] {
            registry.register("m", open("a"), Retention::default(), true).unwrap();
            let entry = registry.entry("m").unwrap();
            let decided = entry.spec.decide(|_| Ok(kind)).unwrap();
            assert!(
                matches!(&*decided, Spec::Embedding(spec) if spec.kind == kind && spec.source == fixed("a"))
            );
        }
    }

    #[test]
    fn a_pinned_model_takes_no_time_to_stay() {
        let registry = registry();
        for (keep_alive, adaptive) in [(Some(KeepAlive::For(Duration::ZERO)), false), (None, true)] {
            let keep = Retention { keep_alive, adaptive, pinned: true, ..Retention::default() };
            let refused = registry.register("m", open("a"), keep, false).map(drop).unwrap_err().to_string();
            assert!(refused.starts_with("keep_alive") && refused.contains("pinned"), "{refused}");
        }
        let keep = Retention { keep_alive: Some(KeepAlive::Forever), pinned: true, ..Retention::default() };
        registry.register("m", open("a"), keep, false).unwrap();
    }
}
