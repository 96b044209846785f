//! The manager composes the other modules: lifecycle, models, batching, cache. It is the whole Rust API.
//!
//! ```text
//! Manager (instance, api) ── Parts ── registry: name → NamedSlot ── Slot<LoadedModel> ── EncoderBackend or Generator
//!                             ├ router: text → slot by language
//!                             ├ loading: source → model      sharing: models by identity      memory: the budget
//!                             ├ jobs: one call, from inputs to result      dispatcher: serves asynchronous calls
//!                             └ stats: what is reported
//! ```
//!
//! Each file imports only files below it. From above: `api`, `instance`, `parts`, `jobs` and `loading`, `registry`, `model`,
//! `backend`, `inputs`, `info`, `options`.

mod api;
mod backend;
mod caching;
mod card;
mod closing;
mod device;
mod dispatcher;
mod info;
mod inputs;
mod instance;
mod jobs;
mod known;
mod loaded_files;
mod loading;
mod memory;
mod mistaken;
mod model;
mod options;
mod parts;
mod pins;
mod registry;
mod router;
mod sharing;
mod spec;
mod stats;
mod tiering;

pub use self::api::Activate;
pub use self::api::adaptive::{Forecast, SlotExplanation};
pub use self::api::inspect::ModelReport;
pub use self::caching::{CacheOptions, SlotCacheReport};
pub use self::inputs::{Inputs, Pairs};
pub use self::instance::{Abandoned, Inheritance, Manager};
pub use self::jobs::embed::{Embeddings, OnDone, Ticket};
pub use self::jobs::generate::{GenerateOptions, GenerationTicket, GeneratorLease, OwnedPrompt, TextStream};
pub use self::jobs::openai_body::OnBody;
pub use self::model::SlotValue;
pub use self::options::{Check, EmbedOptions};
pub use self::spec::{
    BUILT_IN, ENGLISH, EmbeddingSpec, GENERATOR, HostLoader, HostObject, ModelSpec, RERANKER, Retention,
    SourceSpec, Spec, TURKISH,
};
pub use self::stats::{
    CardReport, ENGINE, GenerationReport, GeneratorDescription, ManagerStatistics, ModelDescription,
    QueueReport, SlotReport,
};
