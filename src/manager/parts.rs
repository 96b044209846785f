//! What a manager consists of. Built from the settings at first use, and again in a child process after `fork`.

use std::sync::{Arc, OnceLock, Weak};

use super::dispatcher::Dispatcher;
use super::jobs::embed::Embedder;
use super::loading::ModelLoader;
use super::memory::ProcessMemory;
use super::pins;
use super::registry::{LoadFor, Registry, SlotDefaults};
use super::router::Router;
use super::spec::{
    ENGLISH, EmbeddingSpec, GENERATOR, ModelSpec, RERANKER, Retention, SourceSpec, Spec, TURKISH,
};
use super::tiering::{self, Tiering};
use crate::Result;
use crate::cache::{CacheSettings, EmbeddingCache, Policy};
use crate::clock::Clock;
use crate::compute::Threads;
use crate::config::{
    CachePolicy, DTypeChoice, EvictionOrder, Host, MULTILINGUAL_MODEL, Profile, Seconds, Settings,
};
use crate::lifecycle::policy::{AdaptiveSettings, Learning};
use crate::lifecycle::{Context, Eviction, Reaper, ReaperSettings, Tracker, WaitGraph};
use crate::models::ModelKind;

/// The variables of the sentence slots' sources.
const TURKISH_VARIABLE: &str = "TURKISH_SENTENCE_MODEL";
const ENGLISH_VARIABLE: &str = "ENGLISH_FALLBACK_MODEL";

/// The parts of a manager. Each knows only the parts that it needs; this type only makes, closes and lends them.
pub(super) struct Parts {
    pub(super) settings: Arc<Settings>,
    pub(super) registry: Arc<Registry>,
    pub(super) router: Router,
    pub(super) cache: Arc<EmbeddingCache>,
    pub(super) tiering: Tiering,
    pub(super) embedder: Arc<Embedder>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) loader: Arc<ModelLoader>,
    pub(super) reaper: Arc<Reaper>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) learning: Arc<Learning>,
}

impl Parts {
    /// The parts, with the built-in slots. `tracker` is the manager's own.
    pub(super) fn new(settings: Settings, host: Arc<dyn Host>, tracker: Arc<Tracker>) -> Result<Self> {
        if settings.threads > 0 {
            Threads::set_count(settings.threads)?;
        }
        let settings = Arc::new(settings);
        let tiering = Tiering::new(&settings, &*host)?;
        tiering::refuse_file(&settings.adaptive_state, "adaptive_state")?;
        let habits = match tiering::folder(&settings.adaptive_state, "adaptive_state", "habits", &*host) {
            // It is on by default, where nothing may ever be learned.
            Err(error) if !settings.is_given("adaptive_state") => {
                log::info!("what is learned of the use of models is not kept: {error}");
                None
            }
            found => found?,
        };
        let loader = Arc::new(ModelLoader::new(Arc::clone(&settings), host, tiering.known())?);
        let cache = Arc::new(EmbeddingCache::new(cache_settings(&settings), Clock::System));
        let idle = ReaperSettings {
            enabled: settings.auto_cleanup,
            interval: settings.cleanup_interval.duration(),
            max_idle: settings.max_idle_time.duration(),
        };
        let usual = settings.max_idle_time.duration();
        let adaptive = AdaptiveSettings {
            usual,
            price: settings.cold_start_price.map_or(usual * 2, Seconds::duration),
            longest: settings.max_keep_alive.duration(),
        };
        let learning = Arc::new(Learning::new(Clock::System, adaptive, habits));
        let (expiring, saving) = (Arc::clone(&cache), Arc::clone(&learning));
        // The registry, whose slots may have caches of their own, is made with the reaper.
        let slots: Arc<OnceLock<Weak<Registry>>> = Arc::default();
        let slots_of_reaper = Arc::clone(&slots);
        let reaper = Arc::new(Reaper::new(Clock::System, idle, move || {
            expiring.purge_expired();
            let slots = slots_of_reaper.get().and_then(Weak::upgrade);
            for entry in slots.iter().flat_map(|registry| registry.all().to_vec()) {
                entry.cache.own().map(EmbeddingCache::purge_expired);
            }
            if saving.is_active() {
                saving.pressure().refresh();
                saving.save_if_due();
            }
        }));
        let context = Context {
            clock: Clock::System,
            memory: Arc::new(ProcessMemory { device: loader.device().clone() }),
            tracker: Arc::clone(&tracker),
            reaper: Arc::clone(&reaper),
            eviction: Arc::new(Eviction::new(settings.eviction == EvictionOrder::Cost)),
            wait_graph: WaitGraph::default(),
        };
        let loading = Arc::clone(&loader);
        let defaults = SlotDefaults {
            keep_alive: settings.keep_alive.as_ref().and_then(|keep| keep.keep_alive),
            adaptive: settings.keep_alive.as_ref().is_some_and(|keep| keep.keep_alive.is_none()),
            load_timeout: settings.load_timeout.map(Seconds::duration),
            cache: cache.settings(),
        };
        let pinning = Arc::clone(&cache);
        let load = Arc::new(move |slot: &LoadFor<'_>| {
            let former = slot.info.load_full();
            let loaded = loading.load(slot);
            if let Some(former) = former {
                // The files may have another model now.
                pins::release(&pinning, &slot.entries.all(), &former);
            }
            loaded
        });
        let mut registry = Registry::new(context, defaults, Arc::clone(&learning), load);
        register_built_in(&mut registry, &settings)?;
        let registry = Arc::new(registry);
        let quiet = Arc::downgrade(&registry);
        let _ = slots.set(Weak::clone(&quiet));
        reaper.ask_before_loading(move || {
            quiet.upgrade().is_some_and(|registry| registry.all().iter().all(|entry| entry.is_quiet()))
        });
        let router = Router {
            language_detection: settings.language_detection,
            prefer_turkish: settings.prefer_turkish,
            detector: settings.language_detector,
        };
        let dispatcher = Arc::new(Dispatcher::new("dispatcher"));
        let embedder = Arc::new(Embedder::new(
            &settings,
            Arc::clone(&registry),
            router,
            Arc::clone(&cache),
            Arc::clone(&tiering.tiers),
            Arc::clone(&loader),
            Arc::clone(&dispatcher),
        ));
        Ok(Self {
            settings,
            registry,
            router,
            cache,
            tiering,
            embedder,
            dispatcher,
            loader,
            reaper,
            tracker,
            learning,
        })
    }

    /// Stops downloads, the requests of loads and idle clean-ups, and unloads everything. Models in use stay in memory
    /// until their calls end.
    pub(super) fn close(&self) {
        self.loader.close();
        self.reaper.stop();
        self.learning.save();
        self.registry.unload_all();
        self.tiering.tiers.close();
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.close();
    }
}

fn register_built_in(registry: &mut Registry, settings: &Settings) -> Result<()> {
    let source = |setting, variables, value: &str| {
        if settings.is_given(setting) {
            SourceSpec::Fixed(value.to_owned())
        } else {
            SourceSpec::Environment { variables, default: value.to_owned() }
        }
    };
    // With the profile multilingual, a slot without a source of its own has that of the other one, whose variable is read
    // again too unless a keyword has replaced it.
    let follows = |other| settings.profile == Profile::Multilingual && !settings.is_given(other);
    let turkish_variables: &[&str] = match follows("english_model") {
        true => &[TURKISH_VARIABLE, ENGLISH_VARIABLE],
        false => &[TURKISH_VARIABLE],
    };
    let english_variables: &[&str] = match follows("turkish_model") {
        true => &[ENGLISH_VARIABLE, TURKISH_VARIABLE],
        false => &[ENGLISH_VARIABLE],
    };
    // A fallback would give one slot another space than the other one.
    let fallback = match settings.profile {
        Profile::Compatible => vec![MULTILINGUAL_MODEL.to_owned()],
        Profile::Multilingual => Vec::new(),
    };
    let turkish = EmbeddingSpec {
        fallback,
        kind: Some(ModelKind::Embedding),
        ..EmbeddingSpec::new(source("turkish_model", turkish_variables, settings.turkish_model.as_str()))
    };
    let english = EmbeddingSpec {
        kind: Some(ModelKind::Embedding),
        ..EmbeddingSpec::new(source("english_model", english_variables, settings.english_model.as_str()))
    };
    let reranker = EmbeddingSpec {
        kind: Some(ModelKind::Classifier),
        ..EmbeddingSpec::new(source(
            "reranker_model",
            &["MODEL_MANAGER_RERANKER_MODEL"],
            settings.reranker_model.as_str(),
        ))
    };
    let generator = ModelSpec {
        source: source("generator_model", &["HUGGINGFACE_MODEL"], settings.generator_model.as_str()),
        dtype: DTypeChoice::Auto,
        revision: None,
        adapter: None,
    };
    registry.register(TURKISH, Spec::Embedding(turkish), Retention::default(), false)?;
    registry.register(ENGLISH, Spec::Embedding(english), Retention::default(), false)?;
    registry.offer(RERANKER, Spec::Embedding(reranker));
    registry.register(GENERATOR, Spec::Generator(generator), Retention::default(), false).map(drop)
}

fn cache_settings(settings: &Settings) -> CacheSettings {
    let (policy, time_to_live) = match settings.cache_policy {
        CachePolicy::Lru => (Policy::Lru, None),
        CachePolicy::Lfu => (Policy::Lfu, None),
        CachePolicy::Arc => (Policy::Arc, None),
        CachePolicy::Ttl => (Policy::Lru, Some(settings.cache_ttl.duration())),
    };
    CacheSettings {
        max_entries: settings.cache_size,
        max_bytes: Some(settings.cache_bytes as u64),
        policy,
        time_to_live,
    }
}
