//! What a manager reports: its slots, queues, cache and memory.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::backend::EncoderBackend;
use super::caching::SlotCacheReport;
use super::device::ComputeDevice;
use super::model::{LoadedModel, ModelHandle};
use super::parts::Parts;
use super::registry::NamedSlot;
use crate::batching::WorkDone;
use crate::cache::CacheStatistics;
use crate::cache::tiers::TierStatistics;
use crate::chat::ChatTemplate;
use crate::chat::templates::ChatTemplates;
use crate::compute::{Isa, Threads, memory};
use crate::config::{Choice as _, Profile};
use crate::generation::{EngineState, GenerationTotals, Generator};
use crate::lifecycle::policy::Explanation;
use crate::lifecycle::{KeepAlive, State, TrackerStatistics};
use crate::remote::{Address, HealthReport, shown};

/// What computes the models of this process.
pub const ENGINE: &str = "model_manager";

/// The model of one slot.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDescription {
    /// The slot.
    pub name: String,
    /// The profile of the manager's settings.
    pub profile: &'static str,
    /// The source that was loaded.
    pub source: String,
    /// The adapter that changes its weights.
    pub adapter: Option<String>,
    /// SHA-256 of what the adapter contains.
    pub adapter_content: Option<String>,
    /// Folder of the files in use, or the URL of a server.
    pub path: String,
    /// `model_type` of its config.json; ollama or openai for a server's model.
    pub architecture: String,
    /// What computes it: [`ENGINE`], or a "server".
    pub engine: &'static str,
    /// Length of its vectors; 0 if it gives none.
    pub dimension: usize,
    /// Entries of the vocabulary of its sparse vectors; 0 if it gives none.
    pub sparse_dimension: usize,
    /// The methods that it answers.
    pub tasks: Vec<&'static str>,
    /// Names of the labels that it scores.
    pub labels: Vec<String>,
    /// Tokens after which a text is cut, special tokens included; `None` when only a server knows.
    pub max_length: Option<usize>,
    /// How token states become one; `None` where they do not, and when only a server knows.
    pub pooling: Option<String>,
    /// Whether texts or pairs go through its chat template; `None` when only a server knows.
    pub chat_template: Option<bool>,
    /// Whether the model itself ends in a normalization.
    pub normalizes: bool,
    /// cosine, dot, euclidean or manhattan.
    pub similarity: String,
    /// Prompts by name.
    pub prompts: Vec<(String, String)>,
    /// The prompt of calls that ask for none.
    pub default_prompt_name: Option<String>,
    /// How its weights are held: the name of a `DType`.
    pub dtype: String,
    /// The type of most weights of a GGUF file.
    pub file_type: Option<&'static str>,
    /// Memory of the weights.
    pub bytes: u64,
    /// Where it computes: cpu, or a card's name.
    pub device: String,
    /// Of the memory of its weights, what lies on a card.
    pub device_bytes: u64,
}

impl ModelDescription {
    pub(super) fn new(name: &str, handle: &ModelHandle, profile: Profile, device: &ComputeDevice) -> Self {
        let (backend, config) = (&handle.backend, &handle.info.facts.config);
        let shapes = backend.shapes();
        let (path, architecture, engine, pooling, dtype, adapter_content) = match &**backend {
            EncoderBackend::Local { encoder, .. } => (
                encoder.path.display().to_string(),
                encoder.architecture.clone(),
                ENGINE,
                shapes.dense.or(shapes.scores).map(|_| config.pooling.name().to_owned()),
                encoder.dtype(),
                encoder.adapter_content.clone(),
            ),
            EncoderBackend::Remote(remote) => {
                let link = remote.link();
                let protocol = link.address().protocol.name().to_owned();
                (link.url().to_owned(), protocol, "server", None, "float32", None)
            }
        };
        Self {
            name: name.to_owned(),
            profile: profile.as_str(),
            source: handle.source.clone(),
            adapter: handle.adapter.clone(),
            adapter_content,
            path,
            architecture,
            engine,
            dimension: shapes.dense.map_or(0, |width| config.kept(width)),
            sparse_dimension: shapes.sparse.unwrap_or(0),
            tasks: shapes.tasks(),
            labels: backend.scores().map(|scores| scores.labels.clone()).unwrap_or_default(),
            max_length: handle.info.facts.max_length,
            pooling,
            chat_template: backend.local().ok().map(|encoder| encoder.reads_conversations()),
            normalizes: config.normalize,
            similarity: config.similarity.name().to_owned(),
            prompts: config.prompts.clone().into_iter().collect(),
            default_prompt_name: config.default_prompt_name.clone(),
            dtype: dtype.to_owned(),
            file_type: backend.local().ok().and_then(|encoder| encoder.file_type),
            bytes: backend.memory_bytes(),
            device: if backend.device_bytes() > 0 { device.name() } else { "cpu".into() },
            device_bytes: backend.device_bytes(),
        }
    }
}

/// The generator of one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratorDescription {
    /// The slot.
    pub name: String,
    /// The source that was loaded.
    pub source: String,
    /// The adapter that changes its weights.
    pub adapter: Option<String>,
    /// Where its files lie.
    pub path: String,
    /// `model_type` of its configuration.
    pub architecture: String,
    /// What computes it: [`ENGINE`].
    pub engine: &'static str,
    /// The format of its weights in matrix products.
    pub dtype: &'static str,
    /// The type of most weights of a GGUF file.
    pub file_type: Option<&'static str>,
    /// Tokens of prompt and answer together.
    pub context: usize,
    /// The token that ends a text, and its own text.
    pub eos: Option<(u32, Option<String>)>,
    /// All tokens that end a text.
    pub eos_ids: Vec<u32>,
    /// Whether it has a chat template.
    pub chat_template: bool,
    /// The variables that the template reads and a caller may set.
    pub chat_template_variables: Vec<String>,
    /// Whether the template is one of a model that writes its thoughts first.
    pub thinks: bool,
    /// Memory of the weights.
    pub bytes: u64,
    /// Of it, what lies on a card.
    pub device_bytes: u64,
    /// Bytes of keys and values for each token.
    pub kv_bytes_per_token: u64,
    /// Bytes that all keys and values may take.
    pub kv_limit: u64,
    /// Sequences decoded together.
    pub max_parallel: usize,
}

impl GeneratorDescription {
    pub(super) fn new(name: &str, generator: &Generator) -> Self {
        let model = generator.model();
        let template = model.templates.as_ref().map(ChatTemplates::usual);
        let variables = template.into_iter().flat_map(ChatTemplate::reads);
        Self {
            name: name.to_owned(),
            source: model.name.clone(),
            adapter: model.adapter.clone(),
            path: model.path.display().to_string(),
            architecture: model.architecture.clone(),
            engine: ENGINE,
            dtype: model.network.dtype(),
            file_type: model.file_type,
            context: generator.context(),
            eos: generator.eos_token_id().map(|id| (id, model.tokens.token(id))),
            eos_ids: model.eos_ids.clone(),
            chat_template: template.is_some(),
            chat_template_variables: variables.map(|name| name.to_string()).collect(),
            thinks: template.is_some_and(ChatTemplate::thinks),
            bytes: generator.memory_bytes(),
            device_bytes: generator.device_bytes(),
            kv_bytes_per_token: generator.token_bytes(),
            kv_limit: generator.settings().kv_bytes,
            max_parallel: generator.settings().max_active,
        }
    }
}

/// A card in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardReport {
    /// Its name.
    pub name: String,
    /// Bytes of the models on it.
    pub models: u64,
    /// Bytes that models there may take.
    pub budget: Option<u64>,
    /// Bytes that no process holds; `None` where the driver does not report it.
    pub free: Option<u64>,
    /// All of its bytes.
    pub total: Option<u64>,
}

/// The text generators of one slot.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GenerationReport {
    /// What they have done since the name was registered.
    pub totals: GenerationTotals,
    /// What the loaded one does; zero where none is.
    pub state: EngineState,
}

/// One slot.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotReport {
    /// The slot.
    pub name: String,
    /// absent, loading or ready
    pub state: &'static str,
    /// The source that is loaded or would be; `None` for a host's own loader.
    pub source: Option<String>,
    /// The adapter that the slot was registered with.
    pub adapter: Option<String>,
    /// embedding, reranker, classifier, sparse, generator or object
    pub kind: &'static str,
    /// False while it is a guess, which the first load replaces by what the files say.
    pub kind_known: bool,
    /// What text generators of this name have done and do; `None` before the first.
    pub generation: Option<GenerationReport>,
    /// The health of its server, if it is a server's model that has been asked for.
    pub remote: Option<HealthReport>,
    /// Never unloaded by idleness or budget.
    pub pinned: bool,
    /// How long it stays after its latest use; `None`: without limit.
    pub keep_alive: Option<Duration>,
    /// Memory in use now.
    pub bytes: u64,
    /// Of it, what lies on a card.
    pub device_bytes: u64,
    /// Calls using it now.
    pub leases: usize,
    /// Time since its latest use; `None` when it never was.
    pub idle: Option<Duration>,
    /// Time until it is unloaded if it is not used again, as its latest uses asked; `None`: never, or it is not in memory.
    pub unload_in: Option<Duration>,
    /// Texts waiting for it.
    pub queued: usize,
    /// Texts that were cut because it reads no more tokens, since the name was registered.
    pub truncated: u64,
    /// How often its results were cached.
    pub cache: SlotCacheReport,
    /// What was learned of its use; `None` when that does not decide its stay.
    pub adaptive: Option<Explanation>,
    /// Why the latest load failed.
    pub last_error: Option<String>,
}

/// What the queues have done so far, summed over all models.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueReport {
    /// Texts waiting now.
    pub queued: usize,
    /// Limit per model.
    pub max_queue: usize,
    /// Calls.
    pub requests: u64,
    /// Calls refused because a queue was full.
    pub rejected: u64,
    /// Texts computed, tokens, batches.
    pub work: WorkDone,
}

/// Everything countable.
#[derive(Debug, Clone, PartialEq)]
pub struct ManagerStatistics {
    /// Every slot, in the order of registration.
    pub slots: Vec<SlotReport>,
    /// Load times, memory, accesses.
    pub tracker: TrackerStatistics,
    /// The embedding cache.
    pub cache: CacheStatistics,
    /// The tiers below it.
    pub tiers: Vec<TierStatistics>,
    /// The queues.
    pub queue: QueueReport,
    /// Resident bytes of the process.
    pub resident: u64,
    /// Bytes of all models.
    pub models: u64,
    /// Bytes of the keys and values of all generators, those kept for reuse included.
    pub kv: u64,
    /// Bytes allowed for all models and their keys and values.
    pub budget: Option<u64>,
    /// The card in use, if one is.
    pub card: Option<CardReport>,
    /// Threads that compute.
    pub threads: usize,
    /// Instruction set in use.
    pub isa: String,
    /// Time since the latest clean-up.
    pub since_clean_up: Duration,
}

impl ManagerStatistics {
    pub(super) fn of(parts: &Parts) -> Self {
        let entries = parts.registry.all();
        let slots: Vec<_> = entries.iter().map(|entry| slot(parts, entry)).collect();
        let mut work = parts.loader.counters().work();
        work.abandoned += parts.embedder.given_up();
        let queue = QueueReport {
            queued: slots.iter().map(|slot| slot.queued).sum(),
            max_queue: parts.settings.max_queue,
            requests: parts.embedder.requests(),
            rejected: parts.embedder.rejected(),
            work,
        };
        // Slots with the same files share one model, which counts once.
        let (mut models, mut on_card) = (0, 0);
        let mut counted = Vec::new();
        for (entry, report) in entries.iter().zip(&slots) {
            let shared = entry.slot.inspect(LoadedModel::shared).flatten();
            if shared.is_none_or(|model| !counted.contains(&model)) {
                models += report.bytes;
                on_card += report.device_bytes;
                counted.extend(shared);
            }
        }
        Self {
            queue,
            tracker: parts.tracker.statistics(),
            cache: parts.cache.statistics(),
            tiers: parts.tiering.tiers.statistics(),
            resident: memory::resident_bytes(),
            models,
            kv: slots
                .iter()
                .filter_map(|slot| slot.generation.as_ref())
                .map(|report| report.state.kv_bytes + report.state.prefix_bytes)
                .sum(),
            budget: parts.loader.budget().limit(),
            card: card(parts, on_card),
            threads: Threads::global().count(),
            isa: Isa::from_env().map_or_else(|error| error.to_string(), |isa| isa.to_string()),
            since_clean_up: parts.reaper.since_cleanup(),
            slots,
        }
    }
}

fn card(parts: &Parts, models: u64) -> Option<CardReport> {
    let device = parts.loader.device();
    let memory = device.memory();
    device.is_card().then(|| CardReport {
        name: device.name(),
        models,
        budget: parts.loader.card_budget().limit(),
        free: memory.map(|memory| memory.free),
        total: memory.map(|memory| memory.total),
    })
}

fn slot(parts: &Parts, entry: &NamedSlot) -> SlotReport {
    let status = entry.slot.status();
    let loaded = entry.slot.inspect(|model| model.source().map(str::to_owned)).flatten();
    let state = entry.slot.inspect(|model| model.text_generator().map(Generator::state)).flatten();
    let totals = *entry.totals.generation.lock();
    let has_run = state.is_some() || totals != GenerationTotals::default();
    let generation = has_run.then(|| GenerationReport { totals, state: state.unwrap_or_default() });
    let configured = || Some(entry.spec().source()?.current(parts.loader.host()));
    let reaper = parts.reaper.settings();
    let adaptive = parts.learning.explain(&entry.name).map(|(explanation, _)| explanation);
    let keep_alive = match status.options.keep_alive {
        None if adaptive.is_some() => adaptive.as_ref().map(|explanation| explanation.stay),
        Some(KeepAlive::For(duration)) => Some(duration),
        Some(KeepAlive::Forever) => None,
        None => reaper.enabled.then_some(reaper.max_idle),
    };
    let source = loaded.or_else(configured);
    let address = source.as_deref().filter(|source| Address::is_meant(source)).map(Address::parse);
    let info = entry.info();
    let health = address.and_then(Result::ok).and_then(|address| parts.loader.healths().known(&address));
    SlotReport {
        name: entry.name.clone(),
        state: match status.state {
            State::Absent => "absent",
            State::Loading => "loading",
            State::Ready => "ready",
        },
        source: source.map(|source| shown(&source).into_owned()),
        adapter: entry.spec().adapter().map(str::to_owned),
        kind: info.as_ref().map_or(entry.spec().kind_name(), |info| info.facts.shapes.kind_name()),
        kind_known: info.is_some() || entry.spec().is_kind_known(),
        generation,
        remote: health.map(|health| health.report()),
        pinned: status.options.pinned,
        keep_alive,
        bytes: status.bytes,
        device_bytes: entry.slot.inspect(LoadedModel::device_bytes).unwrap_or(0),
        leases: status.leases,
        idle: status.last_used.map(|at| Instant::now().saturating_duration_since(at)),
        unload_in: status.deadline.map(|at| at.saturating_duration_since(Instant::now())),
        queued: entry.queued.load(Ordering::Relaxed),
        truncated: entry.totals.truncated.load(Ordering::Relaxed),
        cache: entry.cache.report(),
        adaptive,
        last_error: status.last_error.map(|error| error.to_string()),
    }
}
