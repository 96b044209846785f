//! From the inputs of a job to its results: tokenize, queue, store.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::super::super::dispatcher::Task;
use super::super::super::info::ModelInfo;
use super::super::super::inputs::{BYTES_PER_TOKEN, LONG_TEXT};
use super::super::super::model::ModelHandle;
use super::super::super::registry::NamedSlot;
use super::Job;
use super::state::{GroupModel, LeasedModel};
use crate::batching::{Chunk, ChunkOutput};
use crate::cache::CachedItem;
use crate::cache::tiers::{Tiers, stores};
use crate::compute::Threads;
use crate::models::Bounds;
use crate::output::Output;
use crate::trace::{TraceStage, step};
use crate::{Error, Result};

/// Inputs that are queued together, and tokenized at once by one thread: some milliseconds of work.
const CHUNK_INPUTS: usize = 64;
/// Inputs that many threads tokenize at once.
const MOST_INPUTS: usize = 512;

/// Inputs of one slot that its model computes.
struct Fed {
    entry: Arc<NamedSlot>,
    info: Arc<ModelInfo>,
    inputs: Vec<usize>,
    /// The part of the window that they take.
    weight: usize,
    /// When they were queued.
    since: Instant,
}

impl Job {
    /// Tokenizes and queues one more block of inputs, if the queue is not full. Returns whether there may be more to do.
    /// `check` is called between the parts of a long text; its error, or the end of the call, ends the work.
    pub(super) fn pump(self: &Arc<Self>, check: &mut dyn FnMut() -> Result<()>) -> Result<bool> {
        let Some((model, entry, inputs)) = self.next_block() else { return Ok(false) };
        let ModelHandle { backend, info, .. } = &model.handle;
        let prompt = self.inputs.prompt(info, &self.options)?;
        let mut wanted = || if self.is_done() { Err(Error::Cancelled) } else { check() };
        let max_bytes = self.embedder.max_text_bytes;
        let mut bounds = Bounds { max_bytes, check: &mut wanted };
        let ready = {
            let _step = step(self.options.trace.as_ref(), TraceStage::Tokenize);
            backend.prepare(&self.inputs, &inputs, prompt, &self.options, &mut bounds)?
        };
        entry.note_truncated(ready.truncated(), backend.max_length());
        let (shape, _) = info.shapes(&self.options, &entry.name)?;
        let mut inputs = inputs.into_iter();
        for ready in ready.groups(CHUNK_INPUTS) {
            let (rows, weight) = (ready.len(), ready.weight(self.embedder.window));
            self.state.lock().in_flight += weight;
            let fed = Fed {
                entry: Arc::clone(&entry),
                info: Arc::clone(info),
                inputs: inputs.by_ref().take(rows).collect(),
                weight,
                since: Instant::now(),
            };
            let job = Arc::clone(self);
            let done = Box::new(move |result: Result<ChunkOutput>| {
                if let Err(error) = result.and_then(|computed| job.store(&fed, &computed)) {
                    Task::fail(job, error);
                }
            });
            let trace = self.options.trace.as_ref();
            let held = Arc::clone(&model) as _;
            let chunk = Chunk::new(rows, shape, self.cancel.clone(), done, trace, Some(held))?;
            ready.submit(&chunk, self.lane);
        }
        Ok(true)
    }

    /// The next inputs to tokenize, unless enough are in flight: as much text as the window has place for, and at most
    /// [`LONG_TEXT`] bytes.
    fn next_block(&self) -> Option<(Arc<LeasedModel>, Arc<NamedSlot>, Vec<usize>)> {
        let mut state = self.state.lock();
        let free = self.embedder.window.saturating_sub(state.in_flight);
        if state.outcome.is_some() || free == 0 {
            state.runnable = false;
            return None;
        }
        // The first inputs of a call reach its model soon; many threads have more to share.
        let inputs = match state.block {
            0 => CHUNK_INPUTS,
            last => (2 * last).min(self.most_inputs()),
        };
        let most_bytes = (free * BYTES_PER_TOKEN).min(LONG_TEXT);
        let found = state.groups.iter_mut().find_map(|group| {
            let model = Arc::clone(group.model.ready()?);
            let inputs = if model.handle.backend.local().is_ok() { inputs } else { CHUNK_INPUTS };
            let most = group.order.len().min(group.next + inputs);
            let mut bytes = 0;
            let fits = group.order[group.next..most].iter().enumerate().take_while(|&(at, &input)| {
                bytes += self.inputs.length(input);
                bytes <= if at < CHUNK_INPUTS { LONG_TEXT } else { most_bytes }
            });
            let end = (group.next + fits.count().max(1)).min(most);
            let next: Range<usize> = group.next..end;
            group.next = next.end;
            if group.next == group.order.len() && !next.is_empty() {
                group.model = GroupModel::WithChunks;
            }
            (!next.is_empty()).then(|| (model, Arc::clone(&group.entry), group.order[next].to_vec()))
        });
        state.block = found.as_ref().map_or(0, |(_, _, inputs)| inputs.len().max(CHUNK_INPUTS));
        state.runnable = found.is_some();
        found
    }

    /// Inputs in a block: asynchronous calls take turns, so theirs take about as long on many threads as a chunk on one.
    fn most_inputs(&self) -> usize {
        let threads = Threads::global().count();
        if threads > 1 && !self.asynchronous { MOST_INPUTS } else { CHUNK_INPUTS * threads.min(4) }
    }

    /// Whether the next input takes long to tokenize.
    pub(super) fn is_long(&self) -> bool {
        let state = self.state.lock();
        let mut waiting = state.groups.iter().filter(|group| group.model.ready().is_some());
        let next = waiting.find_map(|group| group.order.get(group.next));
        state.outcome.is_none() && next.is_some_and(|&input| self.inputs.length(input) > LONG_TEXT)
    }

    /// On the worker's thread: stores results, puts them into the cache, and wakes the driver of the job.
    fn store(self: &Arc<Self>, fed: &Fed, computed: &ChunkOutput) -> Result<()> {
        let Fed { entry, info, inputs, weight, .. } = fed;
        let prompt = self.inputs.prompt(info, &self.options)?;
        let (_, shape) = info.shapes(&self.options, &entry.name)?;
        let mut results = Output::new(shape, inputs.len())?;
        let memory = entry.cache.memory(&self.embedder.cache);
        let content = info.content.as_ref().zip(entry.cache.tiers.as_ref());
        let content = content.filter(|_| stores(self.options.kind));
        let mut stored = Vec::new();
        for (row, (&input, &tokens)) in inputs.iter().zip(&computed.tokens).enumerate() {
            self.options.finish(computed.output.view(row), &mut results, row);
            if memory.is_none() && content.is_none() {
                continue;
            }
            let key = self.options.key(&info.facts.identity, prompt, self.inputs.get(input));
            let item = CachedItem::new(results.view(row).to_item(), tokens);
            if content.is_some() {
                stored.push((Tiers::key(&key), item.clone()));
            }
            if let Some(memory) = memory {
                self.options.keep(memory, &key, item);
            }
        }
        if let Some((content, names)) = content {
            self.embedder.tiers.put(&stored, content, names);
            self.embedder.tiers.computed(inputs.len(), fed.since.elapsed());
        }
        {
            let mut state = self.state.lock();
            state.in_flight -= weight;
            state.tokens += computed.tokens.iter().copied().map(u64::from).sum::<u64>();
            state.finished += inputs.len();
            for (row, &input) in inputs.iter().enumerate() {
                state.put(input, results.view(row));
            }
            if let Some(group) = state.groups.iter_mut().find(|group| Arc::ptr_eq(&group.entry, entry)) {
                group.leave(inputs.len());
            }
            if state.finished == self.inputs.len() && state.outcome.is_none() {
                state.outcome = Some(Ok(()));
            }
            state.runnable = true;
        }
        self.wake();
        Ok(())
    }
}
