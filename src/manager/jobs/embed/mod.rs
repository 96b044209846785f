//! One call of an encoder, from its inputs to its results.
//!
//! A job looks its inputs up in the cache, groups the rest by slot, waits for the slots, then tokenizes and queues chunk
//! by chunk: enough to keep the model busy, never so much that a list of a million texts is in memory as tokens.
//! Two callers drive a job by [`Job::step`] when there is something to do: a synchronous caller on its own thread, which
//! waits in between ([`Job::wait`]); an asynchronous call through the manager's dispatcher.

mod embedder;
mod limit;
mod state;
mod submit;
mod tiers;
mod wait;

use std::sync::{Arc, Weak};
use std::time::Instant;

use super::super::dispatcher::{Task, Timed};
use super::super::inputs::Inputs;
use super::super::model::LoadedModel;
use super::super::options::EmbedOptions;
use super::super::registry::NamedSlot;
use crate::batching::{Cancel, Lane};
use crate::lifecycle::{Lease, State};
use crate::sync::{Condvar, Mutex};
use crate::trace::{TraceStage, step};
use crate::{Error, Result};

pub(in super::super) use self::embedder::Embedder;
use self::limit::Limit;
pub use self::state::Embeddings;
use self::state::{GroupModel, Hits, JobState, LeasedModel, SlotGroup};

/// Whether a job looks its inputs up in the cache, or its caller has just done so.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum LookUp {
    Cache,
    Done,
}

/// Called once, from another thread, with a job's result.
pub type OnDone = Box<dyn FnOnce(Result<Embeddings>) + Send>;

/// Calls of up to this many inputs go before bulk work.
const INTERACTIVE_INPUTS: usize = 16;
/// The same for pairs: a person waits for the candidates of one query.
const INTERACTIVE_PAIRS: usize = 128;

pub(in super::super) struct Job {
    embedder: Arc<Embedder>,
    options: EmbedOptions,
    inputs: Inputs,
    lane: Lane,
    cancel: Cancel,
    state: Mutex<JobState>,
    /// Wakes the synchronous caller.
    changed: Condvar,
    /// The asynchronous caller; a synchronous one waits instead.
    on_done: Mutex<Option<OnDone>>,
    asynchronous: bool,
    limit: Option<Limit>,
}

impl Job {
    /// Starts a call: routes and looks up all inputs, and asks for the slots that are needed. Nothing is computed yet.
    pub(in super::super) fn start(
        embedder: &Arc<Embedder>,
        inputs: Inputs,
        options: EmbedOptions,
        look_up: LookUp,
        on_done: Option<OnDone>,
    ) -> Result<Arc<Self>> {
        embedder.count_request();
        Self::begin(embedder, inputs, options, look_up, on_done)
            .inspect_err(|error| embedder.count_refusal(error))
    }

    fn begin(
        embedder: &Arc<Embedder>,
        inputs: Inputs,
        options: EmbedOptions,
        look_up: LookUp,
        on_done: Option<OnDone>,
    ) -> Result<Arc<Self>> {
        inputs.check(&options)?;
        let groups = embedder.router.group(&embedder.registry, &inputs, options.model.as_deref())?;
        let limit = Limit::of(&options, embedder.registry.load_timeout());
        let interactive = match &inputs {
            Inputs::Pairs(_) => INTERACTIVE_PAIRS,
            _ => INTERACTIVE_INPUTS,
        };
        let job = Arc::new(Self {
            embedder: Arc::clone(embedder),
            lane: if inputs.len() <= interactive { Lane::Interactive } else { Lane::Bulk },
            options,
            inputs,
            cancel: Cancel::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            asynchronous: on_done.is_some(),
            on_done: Mutex::new(on_done),
            limit,
        });
        let mut missing = Vec::new();
        for (entry, inputs) in groups {
            if !embedder.tiers.is_empty() {
                entry.recall(|spec| embedder.loader.recall(spec));
            }
            let looks = job.options.trace.as_ref().filter(|_| look_up == LookUp::Cache);
            let _step = step(looks, TraceStage::Cache);
            missing.extend(job.look_up(look_up, entry, inputs)?);
        }
        job.ask_tiers(missing, 0)?;
        if job.is_done() {
            return Ok(job);
        }
        if let (true, Some(limit)) = (job.asynchronous, job.limit) {
            let timed: Arc<dyn Timed> = Arc::clone(&job) as _;
            embedder.dispatcher.watch(limit.at, &timed)?;
        }
        Ok(job)
    }

    /// Asks for the slots of the groups that are left. Nothing happens when the call has ended meanwhile.
    fn request(self: &Arc<Self>, mut groups: Vec<SlotGroup>) -> Result<()> {
        groups.retain(|group| !group.order.is_empty() || self.inputs.len() == 0);
        let mut slots = Vec::new();
        for group in &groups {
            group.entry.cache.count(0, group.order.len());
            group.entry.drop_stale();
            self.embedder.registry.used(&group.entry.name, self.options.user.as_deref());
            slots.push(group.entry.slot.clone());
        }
        {
            let mut state = self.state.lock();
            if let Some(outcome) = &state.outcome {
                if let Err(error) = outcome {
                    self.count_given_up(&groups, error);
                }
                drop(state);
                return Ok(());
            }
            if groups.is_empty() {
                state.outcome = Some(Ok(()));
            }
            state.groups = groups;
        }
        if slots.is_empty() {
            self.changed.notify_all();
            self.conclude();
        }
        for (number, slot) in slots.into_iter().enumerate() {
            let waiting = Arc::clone(self);
            let trace = self.options.trace.as_ref().filter(|_| slot.state() != State::Ready).cloned();
            let asked = Instant::now();
            slot.when_ready(Box::new(move |lease| {
                if let Some(trace) = trace {
                    trace.add(TraceStage::Load, asked, Instant::now());
                }
                waiting.ready(number, lease);
            }));
        }
        Ok(())
    }

    /// Gives the call up. True when its callback will not be called any more, false when it has been or is being called.
    fn cancel(self: &Arc<Self>) -> bool {
        let cancelled = self.on_done.lock().take().is_some();
        Arc::clone(self).fail(Error::Cancelled);
        cancelled
    }

    fn is_done(&self) -> bool {
        self.state.lock().outcome.is_some()
    }

    /// Takes what the cache has; the other inputs make a group. A call without inputs makes an empty group, because the
    /// model determines the shape of the result.
    fn look_up(
        &self,
        look_up: LookUp,
        entry: Arc<NamedSlot>,
        mut inputs: Vec<usize>,
    ) -> Result<Option<SlotGroup>> {
        let memory = entry.cache.memory(&self.embedder.cache);
        let mut hits = Hits::default();
        if let Some(info) = self.embedder.info(&entry) {
            let (_, shape) = info.shapes(&self.options, &entry.name)?;
            let prompt = self.inputs.prompt(&info, &self.options)?;
            let mut state = self.state.lock();
            state.info = Some(Arc::clone(&info));
            // Only a cached result fixes the shape: a model that is loaded again may be another one.
            let mut fitted = if inputs.is_empty() { state.fit(shape, 0) } else { Ok(()) };
            let all = inputs.len();
            inputs.retain(|&input| {
                let Some(memory) = memory.filter(|_| look_up == LookUp::Cache && fitted.is_ok()) else {
                    return true;
                };
                let content = self.inputs.get(input);
                let Some(cached) = info.cached(memory, &self.options, prompt, content) else { return true };
                let fits = state.fit(shape, self.inputs.len());
                fitted = fits.and_then(|()| hits.add(&info.facts.identity, input, cached.tokens()));
                if fitted.is_err() {
                    return true;
                }
                if self.options.pin {
                    memory.pin(&self.options.key(&info.facts.identity, prompt, content), cached.clone());
                }
                state.put(input, cached.item().view());
                state.tokens += u64::from(cached.tokens());
                state.finished += 1;
                false
            });
            fitted?;
            entry.cache.count(all - inputs.len(), 0);
            if let Some(trace) = &self.options.trace {
                trace.found(all - inputs.len(), 0, &info.facts.model);
            }
            if inputs.is_empty() {
                // Not under the lock: the last lease may free a model.
                drop(state);
                entry.keep_for(self.options.keep_alive);
                return Ok(None);
            }
        } else if let (LookUp::Cache, Some(memory)) = (look_up, memory) {
            memory.count_misses(inputs.len());
        }
        entry.admit(inputs.len(), self.embedder.max_queue)?;
        // In place: a stable sort takes memory, and a refused allocation in it ends the process.
        inputs.sort_unstable_by_key(|&input| (std::cmp::Reverse(self.inputs.length(input)), input));
        Ok(Some(SlotGroup {
            entry,
            model: GroupModel::Awaited,
            admitted: inputs.len(),
            order: inputs,
            next: 0,
            hits,
        }))
    }

    /// A slot is ready, or will not be.
    fn ready(self: Arc<Self>, group: usize, lease: Result<Lease<LoadedModel>>) {
        match lease.and_then(|lease| self.accept(group, lease)) {
            Ok(()) => self.wake(),
            Err(error) => self.fail(error),
        }
    }

    fn accept(&self, group: usize, mut lease: Lease<LoadedModel>) -> Result<()> {
        if let Some(keep_alive) = self.options.keep_alive {
            lease.keep_alive(keep_alive);
        }
        let mut state = self.state.lock();
        if state.outcome.is_some() {
            // Cancelled meanwhile: the lease goes back, after the lock.
            drop(state);
            return Ok(());
        }
        let name = &state.groups[group].entry.name;
        let handle = lease.encoder(name, self.options.kind)?.clone();
        let info = Arc::clone(&handle.info);
        let (_, shape) = info.shapes(&self.options, name)?;
        if let Some(trace) = &self.options.trace {
            trace.found(0, 0, &info.facts.model);
        }
        self.inputs.prompt(&info, &self.options)?;
        state.take_back(group, &info.facts.identity, |input| self.inputs.length(input))?;
        state.fit(shape, self.inputs.len())?;
        state.info = Some(Arc::clone(&info));
        state.groups[group].model = GroupModel::Ready(Arc::new(LeasedModel { handle, _lease: lease }));
        if state.finished == self.inputs.len() {
            state.outcome = Some(Ok(()));
        }
        state.runnable = true;
        Ok(())
    }

    /// Wakes the thread that drives this job.
    fn wake(self: &Arc<Self>) {
        if self.asynchronous {
            let task: Arc<dyn Task> = Arc::clone(self) as _;
            let dispatcher = self.embedder.dispatcher_of(self.is_long());
            if let Err(error) = dispatcher.push(task) {
                // The system provides no thread: end here, on this one.
                self.end(error);
                self.conclude();
            }
        } else {
            self.changed.notify_all();
        }
    }

    /// Drops the leases of the call. Not under a lock: the last lease may free a model.
    fn release(&self) {
        let groups = std::mem::take(&mut self.state.lock().groups);
        drop(groups);
    }

    fn take_result(&self) -> Result<Embeddings> {
        let mut state = self.state.lock();
        state.outcome.clone().unwrap_or(Err(Error::Cancelled))?;
        let output = std::mem::take(&mut state.output).unwrap_or_default();
        let info = state.info.take();
        let scores = info.as_ref().and_then(|info| info.scores.clone());
        Ok(Embeddings { output, tokens: state.tokens, scores, info })
    }

    /// Sets the outcome of a call that has none yet. Inputs that are still queued are not computed.
    fn end(&self, error: Error) -> bool {
        {
            let mut state = self.state.lock();
            if state.outcome.is_some() {
                return false;
            }
            self.count_given_up(&state.groups, &error);
            state.outcome = Some(Err(error));
        }
        self.cancel.cancel();
        true
    }

    /// Counts what was not queued of a call that was cancelled or took too long. The queue counts the rest.
    fn count_given_up(&self, groups: &[SlotGroup], error: &Error) {
        if matches!(error, Error::Cancelled | Error::Timeout { .. }) {
            self.embedder.count_given_up(groups.iter().map(|group| group.order.len() - group.next).sum());
        }
    }

    /// Calls the callback of an asynchronous caller, once.
    fn conclude(&self) {
        self.release();
        // Not under the lock: the callback may cancel its own call, or wait for a thread that does.
        let on_done = self.on_done.lock().take();
        if let Some(on_done) = on_done {
            on_done(self.take_result());
        }
    }
}

/// A request under way. It does not keep the request alive: its slots and threads do, until its callback is called.
pub struct Ticket {
    job: Weak<Job>,
    own_thread: bool,
}

impl Ticket {
    pub(in super::super) fn new(job: &Arc<Job>) -> Self {
        Self { job: Arc::downgrade(job), own_thread: job.embedder.is_here() }
    }

    /// Whether a thread that serves asynchronous calls made the request, in a callback. Unless the result is there already, a
    /// wait for it on that thread would not end.
    #[must_use]
    pub fn waits_for_its_thread(&self) -> bool {
        self.own_thread
    }

    /// Whether the result is there, or the request has failed or been cancelled.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.job.upgrade().is_none_or(|job| job.is_done())
    }

    /// Gives the request up. True when its callback will not be called any more.
    pub fn cancel(&self) -> bool {
        self.job.upgrade().is_some_and(|job| job.cancel())
    }
}

impl Task for Job {
    fn step(self: Arc<Self>) {
        if !self.is_done() {
            match self.pump(&mut || Ok(())) {
                Ok(true) => return self.wake(), // other calls take their turn in between
                Ok(false) => {}
                Err(error) => drop(self.end(error)),
            }
        }
        if self.is_done() {
            self.conclude();
        }
    }

    fn fail(self: Arc<Self>, error: Error) {
        if self.end(error) {
            self.wake();
        }
    }
}

impl Timed for Job {
    fn expire(self: Arc<Self>) {
        if let Some(error) = self.overdue() {
            self.fail(error);
        }
    }
}
