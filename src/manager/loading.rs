//! From a source to a loaded model: find its files, free memory, load, start its queue.

use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;

use super::backend::EncoderBackend;
use super::card::{generator_format, on_card, weight_format};
use super::device::ComputeDevice;
use super::info::{ModelFacts, ModelInfo};
use super::known::{KnownModel, KnownModels};
use super::loaded_files::{FilesByStamp, LoadedFiles};
use super::memory::{KvShare, make_room_in_time};
use super::mistaken::name_kind;
use super::model::{GeneratorHandle, LoadedModel, ModelHandle};
use super::registry::{LoadFor, NamedSlot};
use super::sharing::{Healths, SharedModels};
use super::spec::{EmbeddingSpec, ModelSpec, Spec};
use crate::batching::{Batcher, Counters};
use crate::cache::tiers::ModelContent;
use crate::compute::{Isa, Threads, WeightFormat, memory};
use crate::config::{DeviceChoice, Host, Settings};
use crate::generation::{ComputeTarget, Generator, TextFiles, TextModel};
use crate::lifecycle::{Budget, Charge, Loaded};
use crate::models::{
    ContentId, Encoder, ModelConfig, ModelFiles, ModelKind, Overrides, Progress, ResolveOptions, Source,
    Weights, installed_kind, kind_of_files, on_cpu, on_device, resolve,
};
use crate::remote::{Address, Link, RemoteEncoder, RemoteSettings, shown};
use crate::size::size_text;
use crate::sync::{StopFlag, spawn};
use crate::{Error, Result};

/// Tokens of a batch for each thread: some milliseconds of work, enough for every thread to have several sub-batches.
const BATCH_TOKENS_PER_THREAD: usize = 2048;

/// Tokens of a batch on a card: enough to fill one.
const BATCH_TOKENS_OF_CARD: usize = 16 << 10;

/// Batches that a card computes at a time, so that it does not wait while vectors are copied and delivered.
const BATCHES_OF_CARD: usize = 2;

/// Bytes for the keys and values of a generator on a system that does not report its memory.
const UNKNOWN_MEMORY: u64 = 4 << 30;

/// Makes the models of one manager.
pub(super) struct ModelLoader {
    settings: Arc<Settings>,
    host: Arc<dyn Host>,
    device: ComputeDevice,
    budget: Budget,
    /// That of the card's memory.
    card_budget: Budget,
    models: SharedModels,
    healths: Healths,
    batch_tokens: usize,
    counters: Arc<Counters>,
    /// Models whose content is known; `None` where no tier asks for it.
    known: Option<Arc<KnownModels>>,
    files: FilesByStamp,
    /// The manager is closed: downloads stop, and so do requests of a load to a server.
    closing: Arc<StopFlag>,
}

/// What the load of a sentence model's files depends on.
struct LoadPlan<'l> {
    files: ModelFiles,
    card: Option<&'l Device>,
    isa: Isa,
    format: WeightFormat,
    overrides: Overrides,
    /// Of the files and all of this: equal for equal results.
    stamp: Arc<str>,
}

impl ModelLoader {
    /// A loader without models.
    ///
    /// # Errors
    /// [`Error::Config`] for a budget or a device that this machine does not have.
    pub(super) fn new(
        settings: Arc<Settings>,
        host: Arc<dyn Host>,
        known: Option<KnownModels>,
    ) -> Result<Self> {
        let device = ComputeDevice::of(settings.device)?;
        let limit = settings.memory_budget.as_ref().map(|budget| budget.limit);
        let bytes = limit.map(|limit| limit.bytes("memory_budget")).transpose()?;
        let of_card = limit.map(|limit| device.share(limit, "memory_budget")).transpose()?;
        Ok(Self {
            budget: Budget::new(bytes),
            card_budget: Budget::new(of_card),
            models: SharedModels::default(),
            healths: Healths::default(),
            batch_tokens: match &device {
                ComputeDevice::Gpu(device) if !device.is_cpu() => BATCH_TOKENS_OF_CARD,
                _ => BATCH_TOKENS_PER_THREAD * Threads::global().count(),
            },
            device,
            counters: Arc::default(),
            known: known.map(Arc::new),
            files: FilesByStamp::default(),
            closing: Arc::default(),
            settings,
            host,
        })
    }

    pub(super) fn host(&self) -> &dyn Host {
        &*self.host
    }

    pub(super) fn device(&self) -> &ComputeDevice {
        &self.device
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(super) fn card_budget(&self) -> &Budget {
        &self.card_budget
    }

    pub(super) fn healths(&self) -> &Healths {
        &self.healths
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Tokens of a batch at most.
    pub(super) fn batch_tokens(&self) -> usize {
        self.batch_tokens
    }

    /// Starts the queue of `encoder`.
    fn start_batcher(&self, name: &str, encoder: &Arc<Encoder>) -> Result<Batcher> {
        let at_once = encoder.device_bytes() > 0 && self.device.computes_at_once();
        let threads = if at_once { BATCHES_OF_CARD } else { 1 };
        Batcher::start(name, encoder, self.batch_tokens, threads, &self.counters)
    }

    /// Stops downloads, and the requests of loads to servers.
    pub(super) fn close(&self) {
        self.closing.raise();
    }

    /// Loads the model of a slot. Runs on the slot's loader thread.
    pub(super) fn load(&self, slot: &LoadFor<'_>) -> Result<Loaded<LoadedModel>> {
        let spec = slot.spec.decide(|spec| self.kind_of(spec))?;
        let loaded = self.load_as(slot, &spec)?;
        slot.spec.settle(spec);
        Ok(loaded)
    }

    fn load_as(&self, slot: &LoadFor<'_>, spec: &Spec) -> Result<Loaded<LoadedModel>> {
        match spec {
            Spec::Open(_) => Err(Error::internal("loading", "the kind of a model is not decided")),
            Spec::Generator(spec) => {
                let options = self.resolve_options(spec.revision.as_ref(), spec.adapter.as_ref());
                let source = spec.source.current(self.host());
                let loaded = self.load_generator(slot, spec, &source, &options);
                name_kind(loaded, Some(ModelKind::Generator), &source, &options)
            }
            Spec::Object(loader) => {
                let object = loader()?;
                Ok(Loaded::new(Arc::new(LoadedModel::Object(object)), 0))
            }
            Spec::Embedding(spec) => {
                let (handle, charge) = self.load_first(slot, spec)?;
                slot.info.store(Some(Arc::clone(&handle.info)));
                let bytes = handle.backend.memory_bytes();
                Ok(Loaded { value: Arc::new(LoadedModel::Encoder(handle)), bytes, charge })
            }
        }
    }

    /// What the files of `spec` are made for; `None` where they do not show it. Downloads them if need be.
    fn kind_of(&self, spec: &ModelSpec) -> Result<Option<ModelKind>> {
        let options = self.resolve_options(spec.revision.as_ref(), spec.adapter.as_ref());
        Ok(match Source::parse(&spec.source.current(self.host()))? {
            Source::Server(_) => Some(ModelKind::Embedding),
            local => kind_of_files(&resolve(&local, &options, &mut self.log_progress())?),
        })
    }

    /// What the files of `spec` are made for; `None` when they are not on this machine, or do not show it. Downloads nothing.
    pub(super) fn installed_kind(&self, spec: &ModelSpec) -> Option<ModelKind> {
        let source = Source::parse(&spec.source.current(self.host())).ok()?;
        installed_kind(&source, &self.resolve_options(spec.revision.as_ref(), spec.adapter.as_ref()))
    }

    /// Gives the slot of `entry` a model that the parent process had loaded, with a queue of this process. A model of a
    /// server is not taken over: connections belong to the parent, and the first use connects again.
    pub(super) fn inherit(&self, entry: &NamedSlot, handle: &ModelHandle) -> Result<()> {
        let EncoderBackend::Local { encoder, .. } = &*handle.backend else { return Ok(()) };
        let (backend, charge) = self.models.get_or_load(&handle.info.facts.identity, || {
            let encoder = Arc::clone(encoder);
            let batcher = self.start_batcher(&entry.name, &encoder)?;
            // Its memory is the parent's, and counted there.
            Ok((Arc::new(EncoderBackend::Local { batcher, encoder }), None))
        })?;
        let bytes = backend.memory_bytes();
        // The thread that computes what is not known yet belongs to the parent.
        let content = handle.info.content.clone().filter(|content| content.get().is_some());
        let files = handle.info.files.as_ref().map(LoadedFiles::inherited);
        let info = Arc::new(ModelInfo { content, files, ..ModelInfo::clone(&handle.info) });
        entry.set_info(Arc::clone(&info));
        let handle = ModelHandle { backend, info, ..handle.clone() };
        // The slot is new, so it is absent and takes the model.
        let _ = entry.slot.adopt(Loaded { value: Arc::new(LoadedModel::Encoder(handle)), bytes, charge });
        Ok(())
    }

    /// The first of the spec's sources that can be loaded. When none can, the error is that of the first, which is the
    /// configured one.
    fn load_first(
        &self,
        slot: &LoadFor<'_>,
        spec: &EmbeddingSpec,
    ) -> Result<(ModelHandle, Option<Arc<Charge>>)> {
        let name = slot.name;
        let primary = spec.source.current(self.host());
        let fallbacks = spec.fallback.iter().filter(|source| **source != primary);
        let mut first_error = None;
        for source in std::iter::once(&primary).chain(fallbacks) {
            let options = self.resolve_options(spec.revision.as_ref(), spec.adapter.as_ref());
            let loaded = self.load_source(slot, source, spec, &options);
            match name_kind(loaded, spec.kind, source, &options) {
                Ok(loaded) => {
                    if first_error.is_some() {
                        log::warn!(
                            "{name}: using the fallback {:?}; its vectors do not compare with those of {:?}",
                            shown(source),
                            shown(&primary)
                        );
                    }
                    let (mut handle, charge) = loaded;
                    handle.info = Arc::new(ModelInfo { asked: primary, ..ModelInfo::clone(&handle.info) });
                    return Ok((handle, charge));
                }
                // That the manager is closed, or the system short of something now, says nothing about the source: later it
                // can be loaded, and its vectors do not compare with those of the next one.
                Err(error) if matches!(error, Error::Closed) || error.is_shortage() => return Err(error),
                Err(error) => {
                    log::warn!("{name}: {:?} cannot be loaded: {error}", shown(source));
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or(Error::Closed))
    }

    fn load_source(
        &self,
        slot: &LoadFor<'_>,
        source: &str,
        spec: &EmbeddingSpec,
        options: &ResolveOptions,
    ) -> Result<(ModelHandle, Option<Arc<Charge>>)> {
        let LoadFor { entries, name, .. } = *slot;
        let files = match Source::parse(source)? {
            Source::Server(address) => return Ok((self.connect(source, &address, spec)?, None)),
            local => resolve(&local, options, &mut self.log_progress())?,
        };
        if spec.kind.is_none() && kind_of_files(&files) == Some(ModelKind::Generator) {
            log::warn!(
                "{name}: the files of {:?} are those of a text generator; only models that were trained for it embed well",
                shown(source)
            );
        }

        let plan = self.plan(files, spec)?;
        let adapter = plan.files.adapter.as_ref().map(|adapter| adapter.name().to_owned());
        let LoadPlan { ref files, card, isa, format, overrides, .. } = plan;
        let identity = Arc::clone(&plan.stamp);
        let (backend, charge) = self.models.get_or_load(&identity, || {
            let expected = files.expected_bytes(format)?;
            let budget = if card.is_some() { &self.card_budget } else { &self.budget };
            let charge = make_room_in_time(budget, slot, expected, card.is_some(), &self.closing)?;
            let encoder = match card {
                None => {
                    let build =
                        |config: &ModelConfig, weights: &Weights| on_cpu(config, weights, isa, format);
                    Encoder::load(files, overrides, &build)?
                }
                Some(device) => on_card(device, entries, name, format, expected, |device| {
                    let build =
                        |config: &ModelConfig, weights: &Weights| on_device(config, weights, device.clone());
                    Encoder::load(files, overrides, &build)
                })?,
            };
            let encoder = Arc::new(encoder);
            // The file's pages were read once; the packed weights stay.
            memory::trim();
            let batcher = self.start_batcher(name, &encoder)?;
            Ok((Arc::new(EncoderBackend::Local { batcher, encoder }), Some(Arc::new(charge))))
        })?;
        let facts = backend.facts(identity);
        let LoadPlan { ref files, format, overrides, ref stamp, .. } = plan;
        let loaded = LoadedFiles::new(files.clone(), format, overrides, Arc::clone(stamp));
        let files = Some(self.files.known_or(loaded));
        let content = self.content_of(plan, &facts);
        let info = Arc::new(ModelInfo { content, files, ..info(&backend, spec, facts) });
        Ok((ModelHandle { backend, info, source: source.to_owned(), adapter }, charge))
    }

    /// What the model of `files` computes. Unless that is known, it is computed in the background: a load never waits.
    fn content_of(&self, plan: LoadPlan<'_>, facts: &ModelFacts) -> Option<ModelContent> {
        let known = Arc::clone(self.known.as_ref()?);
        let content = ModelContent::default();
        if let Some(ContentId(id)) = known.find(&plan.stamp).and_then(|known| known.content()) {
            content.settle(Some(id));
            return Some(content);
        }
        let (sent, closing, facts) = (content.clone(), Arc::clone(&self.closing), facts.clone());
        // The stamp of the files before the load: what replaced them since then is another model.
        let LoadPlan { files, format, overrides, stamp, .. } = plan;
        let model = facts.model.clone();
        let compute = move || {
            let model = &facts.model;
            let mut since = Instant::now();
            // Half of the time, so that what computes goes first.
            let mut between = || {
                if !closing.pause(since.elapsed()) {
                    return Err(Error::Closed);
                }
                since = Instant::now();
                Ok(())
            };
            let id = ContentId::of(&files, format, overrides, &mut between);
            // Files that were replaced meanwhile are another model.
            let unchanged = files.stamp(format, overrides).is_ok_and(|now| *now == *stamp);
            let found = match id {
                Ok(id) if unchanged => {
                    known.remember(KnownModel::new(stamp.to_string(), id, facts));
                    Some(id.0)
                }
                Ok(_) => {
                    log::warn!(
                        "{model}: its files were changed; its results are not stored outside this process"
                    );
                    None
                }
                Err(Error::Closed) => None,
                Err(error) => {
                    log::warn!("{model}: its results are not stored outside this process: {error}");
                    None
                }
            };
            sent.settle(found);
        };
        match spawn("content", compute) {
            Ok(_) => Some(content),
            Err(error) => {
                log::warn!("{model}: its results are not stored outside this process: no thread: {error}");
                None
            }
        }
    }

    /// What an earlier process found of the model of `spec`, if its files are still the same. Loads and downloads nothing.
    pub(super) fn recall(&self, spec: &Spec) -> Option<ModelInfo> {
        let known = self.known.as_ref()?;
        let decided;
        let spec = match spec {
            Spec::Embedding(spec) => spec,
            Spec::Open(open) => {
                decided = open.decided(self.installed_kind(open));
                let Spec::Embedding(spec) = &decided else { return None };
                spec
            }
            Spec::Generator(_) | Spec::Object(_) => return None,
        };
        let asked = spec.source.current(self.host());
        let source = Source::parse(&asked).ok()?;
        let options = ResolveOptions {
            offline: true,
            ..self.resolve_options(spec.revision.as_ref(), spec.adapter.as_ref())
        };
        let files = match source {
            Source::Server(_) => return None,
            local => resolve(&local, &options, &mut |_| Err(Error::Closed)).ok()?,
        };
        let plan = self.plan(files, spec).ok()?;
        let found = known.find(&plan.stamp)?;
        // One that scores texts is loaded before it answers.
        let content = found.content().filter(|_| found.facts.shapes.scores.is_none())?;
        let mut facts = found.facts;
        facts.config.prompts.extend(spec.prompts.clone());
        let settled = ModelContent::default();
        settled.settle(Some(content.0));
        Some(ModelInfo { asked, facts, scores: None, content: Some(settled), files: None })
    }

    /// How `files` are loaded for `spec`.
    fn plan(&self, files: ModelFiles, spec: &EmbeddingSpec) -> Result<LoadPlan<'_>> {
        let isa = Isa::from_env()?;
        let card = match &self.device {
            ComputeDevice::Gpu(device) if files.static_form()?.is_none() => Some(device),
            _ => None,
        };
        let format = weight_format(spec.dtype.or(self.settings.dtype), isa, card)?;
        let overrides = spec_overrides(spec, &files);
        let stamp = files.stamp(format, overrides)?.into();
        Ok(LoadPlan { files, card, isa, format, overrides, stamp })
    }

    /// The model at `address`, once its server has returned a first vector. It is not charged to the budget: it takes
    /// little memory here.
    fn connect(&self, source: &str, address: &Address, spec: &EmbeddingSpec) -> Result<ModelHandle> {
        if spec.adapter.is_some() {
            let reason =
                "a server runs it, so no adapter can be added here; give the folder or hub id of the model";
            return Err(Error::Unsupported { model: shown(source).into_owned(), reason: reason.into() });
        }
        if spec.pooling.is_some() || spec.max_length.is_some() || spec.chat_template.is_some() {
            log::warn!(
                "{address}: pooling, max_length and chat_template are its server's to choose; ignored here"
            );
        }
        let settings = &self.settings;
        let asking = RemoteSettings {
            connections: settings.remote_connections,
            batch: settings.remote_batch,
            timeout: settings.remote_timeout.duration(),
        };
        let (backend, _) = self.models.get_or_connect(&address.to_string().into(), || {
            let link = Link::new(address, self.host(), asking, self.healths.of(address))?;
            let encoder = RemoteEncoder::open(link, &self.counters, &self.closing)?;
            Ok((Arc::new(EncoderBackend::Remote(encoder)), None))
        })?;
        // A replacement with other dimensions is another model. One of equal dimensions cannot be detected.
        let identity = format!("{address} {}", backend.shapes().dense.unwrap_or(0)).into();
        let info = Arc::new(info(&backend, spec, backend.facts(identity)));
        Ok(ModelHandle { backend, info, source: shown(source).into_owned(), adapter: None })
    }

    fn load_generator(
        &self,
        slot: &LoadFor<'_>,
        spec: &ModelSpec,
        source: &str,
        options: &ResolveOptions,
    ) -> Result<Loaded<LoadedModel>> {
        let LoadFor { entries, name, .. } = *slot;
        let files = TextFiles::find(&Source::parse(source)?, options, &mut self.log_progress())?;
        let isa = Isa::from_env()?;
        // A card that `auto` finds is for sentence models: there, quantized weights would take several times their size.
        let card = match &self.device {
            ComputeDevice::Gpu(device) if self.settings.device != DeviceChoice::Auto => Some(device),
            _ => None,
        };
        let dtype = spec.dtype.or(self.settings.generator_dtype);
        let format = generator_format(dtype, isa, card)?;
        let expected = files.expected_bytes()?;
        let budget = if card.is_some() { &self.card_budget } else { &self.budget };
        let charge = make_room_in_time(budget, slot, expected, card.is_some(), &self.closing)?;
        let open = |target: &ComputeTarget| TextModel::open_on(source, &files, format, target);
        let model = match card {
            None => open(&ComputeTarget::Cpu(isa))?,
            Some(device) => on_card(device, entries, name, format, expected, |device| {
                open(&ComputeTarget::Device(device.clone()))
            })?,
        };
        memory::trim();
        let kv = self.kv_memory(&model, budget, card.is_some())?;
        let mut generator = Generator::start(model, |engine| {
            engine.max_active = self.settings.max_parallel;
            engine.max_queue = self.settings.max_generation_queue;
            engine.max_context = self.settings.max_context;
            engine.prompt_lookup_tokens = self.settings.prompt_lookup_tokens;
            (engine.kv_bytes, engine.kv_setting) = kv;
            engine.totals = Arc::clone(&slot.totals.generation);
            engine.kv_memory = Some(Arc::new(KvShare {
                budget: budget.clone(),
                entries: Arc::downgrade(entries),
                model: name.to_owned(),
                on_card: card.is_some(),
            }));
        })?;
        generator.limit_prompts(self.settings.max_text_bytes);
        let bytes = generator.memory_bytes();
        let loaded =
            LoadedModel::Generator(Box::new(GeneratorHandle { generator, source: source.to_owned() }));
        Ok(Loaded { value: Arc::new(loaded), bytes, charge: Some(Arc::new(charge)) })
    }

    /// Bytes that keys and values may take, and the setting that limits them: their own one, or the memory that the
    /// weights leave of the budget of all models.
    fn kv_memory(&self, model: &TextModel, budget: &Budget, on_card: bool) -> Result<(u64, &'static str)> {
        let own = &self.settings.kv_memory;
        let device = if on_card { &self.device } else { &ComputeDevice::Cpu };
        let own = match device.share(own.limit, "kv_memory") {
            // A system that does not report its memory.
            Err(_) if *own == Settings::default().kv_memory => UNKNOWN_MEMORY,
            bytes => bytes?,
        };
        let left = budget.limit().map(|limit| limit.saturating_sub(model.network.memory_bytes()));
        Ok(match left {
            Some(left) if left < own => (left, "memory_budget"),
            _ => (own, "kv_memory"),
        })
    }

    /// Where files are looked for: as configured, with the slot's own revision and adapter.
    pub(super) fn resolve_options(
        &self,
        revision: Option<&String>,
        adapter: Option<&String>,
    ) -> ResolveOptions {
        let settings = &self.settings;
        let mut options = ResolveOptions::new(Arc::clone(&self.host));
        options.offline |= settings.offline;
        options.cache_dir = settings.cache_dir.as_ref().map(|folder| folder.0.clone());
        let configured = || settings.revision.as_ref().map(|revision| revision.as_str().to_owned());
        options.revision = revision.cloned().or_else(configured);
        options.adapter = adapter.cloned();
        options
    }

    /// Logs the progress of a download, at its start and about every 10 %. Closing the manager stops it.
    fn log_progress(&self) -> impl FnMut(&Progress<'_>) -> Result<()> {
        let mut logged = (String::new(), 0);
        move |progress| {
            if self.closing.is_raised() {
                return Err(Error::Closed);
            }
            let tenth =
                progress.total.filter(|total| *total > 0).map_or(0, |total| progress.done * 10 / total);
            if logged.0 != progress.file || logged.1 != tenth {
                log::info!(
                    "downloading {}: {} of {}",
                    progress.file,
                    size_text(progress.done),
                    progress.total.map_or_else(|| "an unknown size".into(), size_text)
                );
                logged = (progress.file.to_owned(), tenth);
            }
            Ok(())
        }
    }
}

/// What `spec` says in place of `files`. The kind is always there: slots share a model whether it is given or found.
fn spec_overrides(spec: &EmbeddingSpec, files: &ModelFiles) -> Overrides {
    let EmbeddingSpec { pooling, max_length, kind, chat_template, .. } = *spec;
    let given = Overrides { pooling, max_length, kind, chat_template };
    Overrides { kind: Some(given.kind_of(files)), ..given }
}

/// What a slot with `spec` knows of a loaded model.
fn info(backend: &EncoderBackend, spec: &EmbeddingSpec, mut facts: ModelFacts) -> ModelInfo {
    facts.config.prompts.extend(spec.prompts.clone());
    let scores = backend.scores().cloned().map(Arc::new);
    ModelInfo { asked: String::new(), facts, scores, content: None, files: None }
}
