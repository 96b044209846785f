//! Settings: defaults, environment, keywords; validated once, then immutable.
//!
//! One table (`for_each_setting`) holds every setting with its meaning, type, default and environment variable. The
//! struct, the parser, the Python class, the table in docs/configuration.md and the tests that nothing is missing are all
//! made from it.

mod bounds;
mod device;
mod folder;
mod span;
mod value;

use std::collections::BTreeSet;
use std::path::PathBuf;

pub use bounds::{AtLeast, Between, Bounded, NumberRange, Positive};
pub use device::DeviceChoice;
pub(crate) use folder::expand_home;
pub use folder::{Folder, FolderSetting};
pub use span::{ByteSize, TimeSpan};
pub use value::{Choice, KeepAliveSetting, MemoryBudget, NonEmpty, Seconds, Setting, SettingValue};

use crate::compute::{Isa, WeightFormat};
use crate::lifecycle::policy::SHORTEST_STAY;
use crate::similar::similar;
use crate::{Error, Result};

/// What this crate asks of the process that embeds it.
pub trait Host: Send + Sync + 'static {
    /// An environment variable; `None` when unset.
    fn env(&self, name: &str) -> Option<String>;

    /// The folder of an installed package, found without importing it.
    fn package_dir(&self, name: &str) -> Option<PathBuf>;

    /// Called before the settings are read from the environment, which it may add to.
    fn before_settings(&self) {}

    /// Folders in which models may lie that other programs downloaded, in addition to the cache.
    fn model_folders(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// The operating system's environment and no packages: a host that is not Python.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemHost;

impl Host for SystemHost {
    fn env(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn package_dir(&self, _name: &str) -> Option<PathBuf> {
        None
    }
}

/// Source of the slot `turkish_sentence` when nothing else is configured, and its fallback when something is.
pub const MULTILINGUAL_MODEL: &str = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2";

/// Source of both sentence slots with the profile multilingual. It needs no prompts, so it can replace the default models
/// where callers give none.
pub const PROFILE_MODEL: &str = "Alibaba-NLP/gte-multilingual-base";

/// Calls `$then!` with the table of settings: meaning, name, type, default, environment variable.
macro_rules! for_each_setting {
    ($then:ident) => {
        $then! {
            /// Load models at first use; false: the configured ones with the manager.
            lazy_loading: bool = true, "LAZY_LOADING_ENABLED";
            /// Unload models that are idle.
            auto_cleanup: bool = true, "AUTO_CLEANUP_ENABLED";
            /// Seconds between clean-ups at most; idle deadlines are kept exactly.
            cleanup_interval: Bounded<Seconds, Positive> = Seconds(300.0), "CLEANUP_INTERVAL_SECONDS";
            /// Seconds after its latest use that a model is unloaded.
            max_idle_time: Seconds = Seconds(600.0), "MAX_IDLE_TIME_SECONDS";
            /// Vectors that the embedding cache holds; 0 turns it off.
            cache_size: usize = 50, "MEMORY_EFFICIENT_CACHE_SIZE";
            /// Bytes that the embedding cache holds.
            cache_bytes: usize = 64 << 20, "MODEL_MANAGER_CACHE_BYTES";
            /// Which vector leaves a full cache: lru, lfu, arc (a balance of both), or ttl (LRU whose entries expire).
            cache_policy: CachePolicy = CachePolicy::Lru, "MODEL_MANAGER_CACHE_POLICY";
            /// Seconds that an entry lives under the policy ttl.
            cache_ttl: Seconds = Seconds(600.0), "MODEL_MANAGER_CACHE_TTL";
            /// Folder in which vectors outlive the process; true: one in the user's cache folder; false: none.
            cache_disk: FolderSetting = FolderSetting::Off, "MODEL_MANAGER_CACHE_DISK";
            /// Bytes of that folder: a number or text such as "1GB".
            cache_disk_bytes: ByteSize = ByteSize::gigabyte(), "MODEL_MANAGER_CACHE_DISK_BYTES";
            /// How values are written there: float32 (exactly), float16 or int8.
            cache_disk_dtype: DiskDType = DiskDType::Float32, "MODEL_MANAGER_CACHE_DISK_DTYPE";
            /// Seconds, or text such as "30d", after which a vector there is no longer used; none: no limit.
            cache_disk_ttl: Option<TimeSpan> = None, "MODEL_MANAGER_CACHE_DISK_TTL";
            /// So many of the vectors stored there last are read into memory at the start; 0: none.
            warm_restart: usize = 0, "MODEL_MANAGER_WARM_RESTART";
            /// Redis or Valkey servers that share vectors between processes: redis:// or rediss:// addresses, separated
            /// by commas, or redis+cluster:// for nodes of a cluster; none: no server.
            cache_url: Option<NonEmpty> = None, "MODEL_MANAGER_CACHE_URL";
            /// Seconds, or text such as "7d", that a vector is kept there.
            cache_url_ttl: TimeSpan = TimeSpan::week(), "MODEL_MANAGER_CACHE_URL_TTL";
            /// Seconds that one request to such a server may take; afterwards the vector is computed.
            cache_timeout: Bounded<Seconds, Positive> = Seconds(0.05), "MODEL_MANAGER_CACHE_TIMEOUT";
            /// Text, or env:NAME. Without it, programs cannot read the keys of vectors there or add forged ones; none:
            /// keys are plain digests.
            cache_secret: Option<NonEmpty> = None, "MODEL_MANAGER_CACHE_SECRET";
            /// Default sources of the sentence slots: compatible (one model for Turkish, one for all other texts) or
            /// multilingual (one model for both).
            profile: Profile = Profile::Compatible, "MODEL_MANAGER_PROFILE";
            /// The preferred sentence model is the Turkish one.
            prefer_turkish: bool = true, "AI_PREFER_TURKISH_MODELS";
            /// Each text goes to the model of its language; false: all go to the preferred one.
            language_detection: bool = true, "AI_LANGUAGE_DETECTION";
            /// How the language of a text is found: compatible (as always) or improved (short texts and Turkish in ASCII
            /// letters too).
            language_detector: LanguageDetector = LanguageDetector::Compatible, "MODEL_MANAGER_LANGUAGE_DETECTOR";
            /// Source of the slot turkish_sentence. The variable is read again at each load.
            turkish_model: NonEmpty = NonEmpty::from(MULTILINGUAL_MODEL), "TURKISH_SENTENCE_MODEL";
            /// Source of the slot english_sentence. The variable is read again at each load.
            english_model: NonEmpty = NonEmpty::from("all-MiniLM-L6-v2"), "ENGLISH_FALLBACK_MODEL";
            /// Source of the slot text_generator. The variable is read again at each load.
            generator_model: NonEmpty = NonEmpty::from("ytu-ce-cosmos/turkish-gpt2-large"), "HUGGINGFACE_MODEL";
            /// Source of the slot reranker. The variable is read again at each load.
            reranker_model: NonEmpty = NonEmpty::from("BAAI/bge-reranker-v2-m3"), "MODEL_MANAGER_RERANKER_MODEL";
            /// A warm-up of everything includes the generator.
            use_huggingface: bool = true, "USE_HUGGINGFACE";
            /// Default length of generated answers, in tokens.
            max_tokens: Bounded<usize, Positive> = 150, "AI_MAX_TOKENS";
            /// Default sampling temperature.
            temperature: Bounded<f64, Between<0, 100>> = 0.7, "AI_TEMPERATURE";
            /// How sentence models' weights are held: float32, bfloat16, float16, int8, int4, or auto: bfloat16 where the CPU or
            /// the card multiplies it natively, float16 where a CPU multiplies that faster, else float32.
            dtype: DTypeChoice = DTypeChoice::Auto, "MODEL_MANAGER_DTYPE";
            /// The same for the generator, but auto is bfloat16 on every CPU: a token of an answer reads all weights. GGUF
            /// files keep their own form.
            generator_dtype: DTypeChoice = DTypeChoice::Auto, "MODEL_MANAGER_GENERATOR_DTYPE";
            /// auto, cpu, cuda, cuda:1 (the second card) or mps, also written metal; a card needs a build with its
            /// feature (docs/gpu.md). auto is the card with the most free memory, else the CPU. Generators use a card
            /// only where it is named: their quantized weights take 16 or 32 bits each there. candle-cpu is for tests.
            device: DeviceChoice = DeviceChoice::Auto, "MODEL_MANAGER_DEVICE";
            /// Threads that compute, shared by all managers of the process; 0: as many as the cores it may use.
            threads: Bounded<usize, Between<0, 4096>> = 0, "MODEL_MANAGER_THREADS";
            /// Texts that may wait for one model before a call is refused.
            max_queue: Bounded<usize, Positive> = 200_000, "MODEL_MANAGER_MAX_QUEUE";
            /// Bytes of a text whose every token is wanted (prompts, truncate=False, counting); a longer one is refused,
            /// and so is any text with a sixteenth of them and no place to cut.
            max_text_bytes: Bounded<usize, Positive> = 4 << 20, "MODEL_MANAGER_MAX_TEXT_BYTES";
            /// Answers that one generator writes at the same time; more requests wait.
            max_parallel: Bounded<usize, Between<1, 1024>> = 16, "MODEL_MANAGER_MAX_PARALLEL";
            /// Requests for text that may wait for one generator before a call is refused.
            max_generation_queue: Bounded<usize, Positive> = 256, "MODEL_MANAGER_MAX_GENERATION_QUEUE";
            /// Most tokens of an answer that are guessed from the prompt and the answer so far, and checked in one step;
            /// 0: none. Answers are the same.
            prompt_lookup_tokens: Bounded<usize, Between<0, 64>> = 8, "MODEL_MANAGER_PROMPT_LOOKUP_TOKENS";
            /// Tokens of a prompt and its answer together; none: the model's own limit.
            max_context: Option<Bounded<usize, Positive>> = None, "MODEL_MANAGER_MAX_CONTEXT";
            /// Memory that the keys and values of one generator's requests may take: bytes, text such as "2GB", or a
            /// fraction of RAM or cgroup limit.
            kv_memory: MemoryBudget = MemoryBudget::quarter(), "MODEL_MANAGER_KV_MEMORY";
            /// Memory that all models may take, keys and values of generators included: bytes, text such as "2GB", or a
            /// fraction of RAM or cgroup limit. Models on a card have the same limit there, or that fraction of the
            /// card's memory.
            memory_budget: Option<MemoryBudget> = None, "MODEL_MANAGER_MEMORY_BUDGET";
            /// Which idle model leaves when memory_budget is full: lru (the least recently used) or cost (the one whose
            /// uses and load time are worth least for its size).
            eviction: EvictionOrder = EvictionOrder::Lru, "MODEL_MANAGER_EVICTION";
            /// How long models stay after their latest use: seconds or "5m"; 0: not at all; negative: until unloaded by
            /// hand; auto: as their use has shown; none: max_idle_time.
            keep_alive: Option<KeepAliveSetting> = None, "MODEL_MANAGER_KEEP_ALIVE";
            /// With keep_alive auto, seconds in memory that one load is worth; none: twice max_idle_time.
            cold_start_price: Option<Bounded<Seconds, Positive>> = None, "MODEL_MANAGER_COLD_START_PRICE";
            /// With keep_alive auto, the longest stay after a use, at least 30.
            max_keep_alive: Bounded<Seconds, AtLeast<{ SHORTEST_STAY as u32 }>> = Seconds(14_400.0),
                "MODEL_MANAGER_MAX_KEEP_ALIVE";
            /// With keep_alive auto, the folder in which the times of use are remembered across restarts; true: one in
            /// the user's cache folder; false: none.
            adaptive_state: FolderSetting = FolderSetting::Usual, "MODEL_MANAGER_ADAPTIVE_STATE";
            /// Seconds that loading may take when a call gives no timeout of its own; none: no limit.
            load_timeout: Option<Seconds> = None, "MODEL_MANAGER_LOAD_TIMEOUT";
            /// Folder of downloaded models; none: the Hugging Face cache.
            cache_dir: Option<Folder> = None, "MODEL_MANAGER_CACHE_DIR";
            /// Never download. HF_HUB_OFFLINE turns it on too.
            offline: bool = false, "MODEL_MANAGER_OFFLINE";
            /// Requests to a server's model (ollama://, openai+https://) in flight at a time, each on a connection of its own.
            remote_connections: Bounded<usize, Between<1, 64>> = 4, "MODEL_MANAGER_REMOTE_CONNECTIONS";
            /// Texts of one request to a server at most.
            remote_batch: Bounded<usize, Positive> = 64, "MODEL_MANAGER_REMOTE_BATCH";
            /// Seconds that one request to a server may take, its answer included.
            remote_timeout: Bounded<Seconds, Positive> = Seconds(60.0), "MODEL_MANAGER_REMOTE_TIMEOUT";
            /// Branch, tag or commit of hub models; none: main.
            revision: Option<NonEmpty> = None, "MODEL_MANAGER_REVISION";
        }
    };
}
#[cfg(feature = "python")]
pub(crate) use for_each_setting;

value::choice! {
    /// Which vector leaves a full cache.
    CachePolicy {
        /// The least recently used one.
        Lru = "lru",
        /// The least frequently used one.
        Lfu = "lfu",
        /// The least recently used one, and every entry after its time.
        Ttl = "ttl",
        /// One of those used once or of those used again, by a balance that follows the use.
        Arc = "arc",
    }
}

value::choice! {
    /// Which models the sentence slots have by default.
    Profile {
        /// One for Turkish texts, one for all others.
        Compatible = "compatible",
        /// The same one.
        Multilingual = "multilingual",
    }
}

value::choice! {
    /// What finds the language of a text.
    LanguageDetector {
        /// The detector by which stored vectors were made.
        Compatible = "compatible",
        /// One that knows short texts and Turkish in ASCII letters too.
        Improved = "improved",
    }
}

value::choice! {
    /// Which idle model leaves when another one needs memory.
    EvictionOrder {
        /// The least recently used one.
        Lru = "lru",
        /// The one whose uses and load time are worth least for its size.
        Cost = "cost",
    }
}

value::choice! {
    /// How vectors are written to disk.
    DiskDType {
        /// Exactly as they were computed.
        Float32 = "float32",
        /// In half the bytes.
        Float16 = "float16",
        /// In a quarter of the bytes, with one scale for each vector.
        Int8 = "int8",
    }
}

value::choice! {
    /// How a model's weights are held, and with that what it computes in.
    DTypeChoice {
        /// bfloat16 where the CPU or the card multiplies it natively, float16 where a CPU multiplies that faster, else float32.
        Auto = "auto",
        /// 32-bit floating point.
        Float32 = "float32",
        /// bfloat16 products, float32 sums.
        Bfloat16 = "bfloat16",
        /// float16 products with a scale for each row and output, float32 sums.
        Float16 = "float16",
        /// Quantized at load: 8 bits a weight and a scale for every 32.
        Int8 = "int8",
        /// Quantized at load: 4 bits a weight, a scale and a minimum for every 32.
        Int4 = "int4",
    }
}

impl DTypeChoice {
    /// This choice, or `configured` where it leaves the choice open.
    pub fn or(self, configured: Self) -> Self {
        if self == Self::Auto { configured } else { self }
    }

    /// The choice that a person wrote down.
    ///
    /// # Errors
    /// [`Error::Config`] with what is allowed.
    pub fn parse(dtype: &str) -> Result<Self> {
        let refused = |reason| Error::Config { setting: "dtype".into(), value: dtype.into(), reason };
        Self::from_text(dtype.trim()).map_err(refused)
    }

    /// What it comes to on `isa`.
    pub fn weight_format(self, isa: Isa) -> WeightFormat {
        match self {
            Self::Auto => WeightFormat::auto(isa),
            Self::Float32 => WeightFormat::F32,
            Self::Bfloat16 => WeightFormat::Bf16,
            Self::Float16 => WeightFormat::F16,
            Self::Int8 => WeightFormat::Int8,
            Self::Int4 => WeightFormat::Int4,
        }
    }
}

/// One row of the table, for documentation and for checks.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Keyword.
    pub name: &'static str,
    /// Environment variable.
    pub environment: &'static str,
    /// Value without keyword and environment.
    pub default: SettingValue,
    /// Type, as Python annotates it.
    pub annotation: String,
    /// Meaning, unit, allowed values.
    pub doc: String,
}

macro_rules! define_settings {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr, $environment:literal;)+) => {
        /// The settings of a manager. Made by [`Settings::resolve`].
        #[derive(Debug, Clone)]
        pub struct Settings {
            $($(#[doc = $doc])+ pub $name: <$type as Setting>::Held,)+
            /// Settings given by keyword, which the environment no longer changes.
            given: BTreeSet<&'static str>,
            /// Settings that the environment gave.
            read: BTreeSet<&'static str>,
        }

        impl Default for Settings {
            fn default() -> Self {
                Self { $($name: $default,)+ given: BTreeSet::new(), read: BTreeSet::new() }
            }
        }

        impl PartialEq for Settings {
            /// Equal values; where they came from does not matter.
            fn eq(&self, other: &Self) -> bool {
                true $(&& self.$name == other.$name)+
            }
        }

        impl Settings {
            /// Every setting.
            #[must_use]
            pub fn fields() -> Vec<Field> {
                let defaults = Self::default();
                vec![$(Field {
                    name: stringify!($name),
                    environment: $environment,
                    default: <$type as Setting>::to_value(&defaults.$name),
                    annotation: <$type as Setting>::annotation(),
                    doc: concat!($($doc),+).trim().to_owned(),
                }),+]
            }

            /// The value of a setting; `None` when there is no such setting.
            #[must_use]
            pub fn get(&self, name: &str) -> Option<SettingValue> {
                match name {
                    $(stringify!($name) => Some(<$type as Setting>::to_value(&self.$name)),)+
                    _ => None,
                }
            }

            fn set_keyword(&mut self, name: &str, value: &SettingValue) -> Result<()> {
                match name {
                    $(stringify!($name) => {
                        self.$name = <$type as Setting>::from_value(value).map_err(|reason| refused(name, value, reason))?;
                        self.given.insert(stringify!($name));
                        Ok(())
                    })+
                    _ => Err(unknown(name)),
                }
            }

            /// Reads every variable whose setting `keywords` does not replace.
            fn read_environment(&mut self, host: &dyn Host, keywords: &[(&str, SettingValue)]) -> Result<()> {
                let is_replaced = |setting: &str| keywords.iter().any(|(name, _)| *name == setting);
                $(if !is_replaced(stringify!($name))
                    && let Some(text) = host.env($environment).filter(|text| !text.trim().is_empty())
                {
                    self.$name = <$type as Setting>::from_text(text.trim())
                        .map_err(|reason| refused($environment, &SettingValue::Text(text), reason))?;
                    self.read.insert(stringify!($name));
                })+
                Ok(())
            }
        }
    };
}
for_each_setting!(define_settings);

impl Settings {
    /// Defaults, replaced by the environment, replaced by `keywords`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the keyword or the variable, its value, and what is allowed.
    pub fn resolve<'a>(
        host: &dyn Host,
        keywords: impl IntoIterator<Item = (&'a str, SettingValue)>,
    ) -> Result<Self> {
        let mut settings = Self::default();
        let keywords: Vec<_> = keywords.into_iter().collect();
        settings.read_environment(host, &keywords)?;
        settings.with(keywords)
    }

    /// These settings with some replaced.
    ///
    /// # Errors
    /// As [`Settings::resolve`].
    pub fn with<'a>(mut self, keywords: impl IntoIterator<Item = (&'a str, SettingValue)>) -> Result<Self> {
        for (name, value) in keywords {
            self.set_keyword(name, &value)?;
        }
        self.apply_profile();
        Ok(self)
    }

    /// Sets the sources of the sentence slots that were given nowhere. With the profile multilingual, a slot whose source
    /// is not given has that of the other one.
    fn apply_profile(&mut self) {
        let is_set = |name| self.given.contains(name) || self.read.contains(name);
        let (turkish, english) = (is_set("turkish_model"), is_set("english_model"));
        let (for_turkish, for_english) = match self.profile {
            Profile::Compatible => {
                let defaults = Self::default();
                (defaults.turkish_model, defaults.english_model)
            }
            Profile::Multilingual if turkish => (self.turkish_model.clone(), self.turkish_model.clone()),
            Profile::Multilingual if english => (self.english_model.clone(), self.english_model.clone()),
            Profile::Multilingual => (NonEmpty::from(PROFILE_MODEL), NonEmpty::from(PROFILE_MODEL)),
        };
        if !turkish {
            self.turkish_model = for_turkish;
        }
        if !english {
            self.english_model = for_english;
        }
    }

    /// The setting that a misspelt name stands for, or all that there are, for messages.
    pub(crate) fn meant_by(name: &str) -> String {
        let known: Vec<_> = Self::fields().iter().map(|field| field.name).collect();
        match similar(name, known.iter().copied()) {
            Some(meant) => format!("did you mean {meant}? Config.fields() lists all"),
            None => format!("there are {}", known.join(", ")),
        }
    }

    /// Whether the setting was given by keyword.
    #[must_use]
    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains(name)
    }
}

fn refused(setting: &str, value: &SettingValue, reason: String) -> Error {
    Error::Config { setting: setting.into(), value: value.to_string(), reason }
}

fn unknown(name: &str) -> Error {
    let reason = format!("there is no such setting; {}", Settings::meant_by(name));
    Error::Config { setting: name.into(), value: "…".into(), reason }
}

#[cfg(test)]
mod tests;
