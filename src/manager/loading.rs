//! From a source to a model that answers: resolve, make room, load, start its queue.

use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;

use super::core::Core;
use super::device::Place;
use super::entry::{
    EmbeddingSpec, GeneratorHandle, GeneratorSpec, LoadedModel, ModelHandle, ModelInfo, SourceSpec, Spec,
};
use super::running::EncoderBackend;
use crate::batching::{Batcher, Forward};
use crate::compute::{Isa, Packed, memory};
use crate::config::Settings;
use crate::generation::engine::{Allowance, KvMemory};
use crate::generation::{Generator, TextFiles, TextModel};
use crate::lifecycle::{Charge, Loaded};
use crate::models::{
    Encoder, ModelConfig, Overrides, Progress, ResolveOptions, Source, Weights, on_cpu, on_device, resolve,
};
use crate::remote::{Address, Link, RemoteEncoder, RemoteSettings, shown};
use crate::sync::fork;
use crate::{Error, Result};

/// What keys and values of a generator may take where the system does not tell how much memory it has.
const UNKNOWN_MEMORY: u64 = 4 << 30;

/// Loads what `spec` describes, for the slot `name`. Runs on the slot's loader thread.
pub(super) fn load(
    core: &Arc<Core>,
    name: &str,
    spec: &Spec,
    known: &ArcSwapOption<ModelInfo>,
) -> Result<Loaded<LoadedModel>> {
    match spec {
        Spec::Generator(spec) => load_generator(core, name, spec),
        Spec::Object(loader) => {
            let object = loader()?;
            Ok(Loaded::new(Arc::new(LoadedModel::Object(object)), 0))
        }
        Spec::Embedding(spec) => {
            let (serving, charge) = load_first(core, name, spec)?;
            known.store(Some(Arc::clone(&serving.known)));
            let bytes = serving.running.memory_bytes();
            Ok(Loaded { value: Arc::new(LoadedModel::Encoder(serving)), bytes, charge })
        }
    }
}

/// The first of the spec's sources that can be loaded. When none can, the error is that of the first: it is the one
/// that the user asked for.
fn load_first(core: &Arc<Core>, name: &str, spec: &EmbeddingSpec) -> Result<(ModelHandle, Option<Charge>)> {
    let primary = spec.source.current(core);
    let mut first_error = None;
    for source in std::iter::once(&primary).chain(spec.fallback.iter().filter(|source| **source != primary)) {
        match load_source(core, name, source, spec) {
            Ok(loaded) => {
                if first_error.is_some() {
                    log::warn!(
                        "{name}: using the fallback {:?}; its vectors do not compare with those of {:?}",
                        shown(source),
                        shown(&primary)
                    );
                }
                return Ok(loaded);
            }
            Err(error) => {
                log::warn!("{name}: {:?} cannot be loaded: {error}", shown(source));
                first_error.get_or_insert(error);
            }
        }
    }
    Err(first_error.unwrap_or(Error::Closed))
}

fn load_source(
    core: &Arc<Core>,
    name: &str,
    source: &str,
    spec: &EmbeddingSpec,
) -> Result<(ModelHandle, Option<Charge>)> {
    let settings = core.settings();
    let options = resolve_options(core, spec.revision.as_ref());
    let files = match Source::parse(source)? {
        Source::Server(address) => return Ok((connect(core, source, &address, spec)?, None)),
        local => resolve(&local, &options, &mut log_progress(core))?,
    };

    let isa = Isa::from_env()?;
    let hold = spec.dtype.or(settings.dtype).hold(isa);
    let overrides = Overrides { pooling: spec.pooling, max_length: spec.max_length };
    let identity: Arc<str> = format!("{} {overrides:?}", files.fingerprint(hold)?).into();
    let mut charge = None;
    let running = core.share(&identity, || {
        charge = Some(core.make_room(name, files.expected_bytes(hold)?)?);
        let build = |config: &ModelConfig, weights: &Weights| match core.place() {
            Place::Cpu => on_cpu(config, weights, isa, hold),
            Place::Gpu(device) => on_device(config, weights, device),
        };
        let encoder = Arc::new(Encoder::load(&files, hold, overrides, &build)?);
        // The file's pages were read once; what is kept is packed.
        memory::trim();
        let batcher = Batcher::start(name, &encoder, core.batch_tokens(), core.work())?;
        Ok(Arc::new(EncoderBackend::Local { batcher, encoder }))
    })?;
    let known = Arc::new(known(&running, spec, identity));
    Ok((ModelHandle { running, known, source: source.to_owned() }, charge))
}

/// The model at `address`, once its server has given a first vector. Takes no memory worth a place in the budget.
fn connect(core: &Core, source: &str, address: &Address, spec: &EmbeddingSpec) -> Result<ModelHandle> {
    if spec.pooling.is_some() || spec.max_length.is_some() {
        log::warn!("{address}: pooling and max_length are its server's to choose; ignored here");
    }
    let settings = core.settings();
    let asking = RemoteSettings {
        connections: settings.remote_connections,
        batch: settings.remote_batch,
        timeout: settings.remote_timeout.duration(),
    };
    let running = core.share(&address.to_string().into(), || {
        let link = Link::new(address, &**core.host(), asking, core.health(address))?;
        Ok(Arc::new(EncoderBackend::Remote(RemoteEncoder::open(link, core.work())?)))
    })?;
    // A model that is replaced there by one of other dimensions is another one; of the same, nobody can tell.
    let identity = format!("{address} {}", running.width()).into();
    let known = Arc::new(known(&running, spec, identity));
    Ok(ModelHandle { running, known, source: shown(source).into_owned() })
}

fn load_generator(core: &Arc<Core>, name: &str, spec: &GeneratorSpec) -> Result<Loaded<LoadedModel>> {
    let source = spec.source.current(core);
    let options = resolve_options(core, spec.revision.as_ref());
    let files = TextFiles::find(&Source::parse(&source)?, &options, &mut log_progress(core))?;
    let isa = Isa::from_env()?;
    let hold = spec.dtype.or(core.settings().generator_dtype).hold(isa);
    let charge = core.make_room(name, files.expected_bytes()?)?;
    let model = TextModel::open(&source, &files, hold, isa)?;
    memory::trim();
    let kv = kv_memory(core, &model)?;
    let mut generator = Generator::start(model, |engine| {
        let settings = core.settings();
        engine.max_active = settings.max_parallel;
        engine.max_queue = settings.max_generation_queue;
        engine.max_context = settings.max_context;
        (engine.kv_bytes, engine.kv_setting) = kv;
        engine.kv_memory = Some(Arc::new(Shares { core: Arc::downgrade(core), model: name.to_owned() }));
    })?;
    generator.limit_prompts(core.settings().max_text_bytes);
    let bytes = generator.memory_bytes();
    let resident = LoadedModel::Generator(Box::new(GeneratorHandle { generator, source }));
    Ok(Loaded { value: Arc::new(resident), bytes, charge: Some(charge) })
}

/// Bytes that keys and values may take, and the setting that says so: the share of their own, or what the weights leave
/// of the budget of all models.
fn kv_memory(core: &Core, model: &TextModel) -> Result<(u64, &'static str)> {
    let own = &core.settings().kv_memory;
    let own = match own.limit.bytes("kv_memory") {
        // A system that does not tell its memory.
        Err(_) if *own == Settings::default().kv_memory => UNKNOWN_MEMORY,
        bytes => bytes?,
    };
    let left = core.budget().limit().map(|limit| limit.saturating_sub(model.decoder.memory_bytes()));
    Ok(match left {
        Some(left) if left < own => (left, "memory_budget"),
        _ => (own, "kv_memory"),
    })
}

/// Keys and values of one generator in the budget of all models.
#[derive(Clone)]
struct Shares {
    core: Weak<Core>,
    model: String,
}

impl std::fmt::Debug for Shares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shares").field("model", &self.model).finish_non_exhaustive()
    }
}

impl KvMemory for Shares {
    fn take(&self, bytes: u64) -> Result<Option<Box<dyn Allowance>>> {
        let core = self.core.upgrade().ok_or(Error::Closed)?;
        match core.make_room(&self.model, bytes) {
            Ok(charge) => Ok(Some(Box::new(charge.passing()))),
            Err(Error::Budget { .. }) if core.budget().will_fit(bytes) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Allowance for Charge {
    fn shrink(&mut self, bytes: u64) {
        Self::shrink(self, bytes);
    }
}

/// Where files are looked for: as configured, with the slot's own revision.
fn resolve_options(core: &Core, revision: Option<&String>) -> ResolveOptions {
    let settings = core.settings();
    let mut options = ResolveOptions::new(Arc::clone(core.host()));
    options.offline |= settings.offline;
    options.cache_dir = settings.cache_dir.as_ref().map(|dir| dir.as_str().into());
    let configured = || settings.revision.as_ref().map(|revision| revision.as_str().to_owned());
    options.revision = revision.cloned().or_else(configured);
    options
}

/// Tells the log of a download: at its start and about every 10 %. A manager that ends stops it.
fn log_progress(core: &Core) -> impl FnMut(&Progress<'_>) -> Result<()> {
    let mut told = (String::new(), 0);
    move |progress| {
        if core.is_closing() {
            return Err(Error::Closed);
        }
        let tenth = progress.total.filter(|total| *total > 0).map_or(0, |total| progress.done * 10 / total);
        if told.0 != progress.file || told.1 != tenth {
            log::info!(
                "downloading {}: {} of {} MB",
                progress.file,
                progress.done >> 20,
                progress.total.unwrap_or(0) >> 20
            );
            told = (progress.file.to_owned(), tenth);
        }
        Ok(())
    }
}

fn known(running: &EncoderBackend, spec: &EmbeddingSpec, identity: Arc<str>) -> ModelInfo {
    let mut config = running.config();
    config.prompts.extend(spec.prompts.clone());
    let (width, max_length) = (running.width(), running.max_length());
    ModelInfo { identity, width, model: running.name(), config, max_length }
}

impl SourceSpec {
    /// The source to load now.
    pub(super) fn current(&self, core: &Core) -> String {
        match self {
            Self::Fixed(source) => source.clone(),
            Self::Environment { variable, default } => core
                .host()
                .env(variable)
                .map(|value| value.trim().to_owned())
                .filter(|value| !value.is_empty())
                .unwrap_or_else(|| default.clone()),
        }
    }
}

impl Forward for Encoder {
    fn width(&self) -> usize {
        Encoder::width(self)
    }

    fn forward(&self, batch: &Packed<'_>, out: &mut [f32]) -> Result<()> {
        let _computing = fork::computing();
        self.encode(batch, out)
    }
}
