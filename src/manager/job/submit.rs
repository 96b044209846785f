//! From the inputs of a job to its rows: tokenise, queue, store.

use std::ops::Range;
use std::sync::Arc;

use super::super::dispatcher::Task;
use super::super::entry::{Entry, ModelHandle, ModelInfo};
use super::super::options::{dimensions, finish};
use super::Job;
use crate::batching::{Chunk, Rows};
use crate::cache::Vector;
use crate::models::Bounds;
use crate::{Error, Result};

/// Inputs tokenised between two looks at the queue: some milliseconds of work.
const CHUNK_INPUTS: usize = 64;
/// Bytes of text tokenised between two looks, and of a text that is long: other calls do not wait for it.
pub(in super::super) const LONG_TEXT: usize = 64 << 10;

/// Some inputs of one slot on their way through its model.
struct Fed {
    entry: Arc<Entry>,
    known: Arc<ModelInfo>,
    inputs: Vec<usize>,
    /// What they take of the window.
    weight: usize,
}

impl Job {
    /// Tokenises and queues one more chunk, if the queue wants one. Returns whether there may be more to do. `check` is
    /// asked between the parts of a long text; its error, or the end of the call, ends the work.
    pub(super) fn pump(self: &Arc<Self>, check: &mut dyn FnMut() -> Result<()>) -> Result<bool> {
        let Some((serving, entry, inputs)) = self.next_chunk() else { return Ok(false) };
        let ModelHandle { running, known, .. } = serving;
        let prompt = self.inputs.prompt(&known, &self.options)?;
        let mut wanted = || if self.is_done() { Err(Error::Cancelled) } else { check() };
        let max_bytes = self.core.settings().max_text_bytes;
        let mut bounds = Bounds { max_bytes, check: &mut wanted };
        let ready = running.prepare(&self.inputs, &inputs, prompt, &self.options, &mut bounds)?;
        let (rows, width, weight) = (inputs.len(), known.width, ready.weight(self.window()));
        self.state.lock().in_flight += weight;
        let (job, fed) = (Arc::clone(self), Fed { entry, known: Arc::clone(&known), inputs, weight });
        let done = Box::new(move |result: Result<Rows>| match result {
            Ok(rows) => job.store(&fed, &rows),
            Err(error) => Task::fail(job, error),
        });
        ready.submit(&Chunk::new(rows, width, self.cancel.clone(), done), self.lane);
        Ok(true)
    }

    /// Tokens that may be queued or computed at a time.
    fn window(&self) -> usize {
        3 * self.core.batch_tokens()
    }

    /// The next inputs to tokenise, unless enough are in flight.
    fn next_chunk(&self) -> Option<(ModelHandle, Arc<Entry>, Vec<usize>)> {
        let mut state = self.state.lock();
        if state.outcome.is_some() || state.in_flight >= self.window() {
            state.runnable = false;
            return None;
        }
        let found = state.groups.iter_mut().find_map(|group| {
            let serving = group.lease.as_ref()?.serving(&group.entry.name).ok()?.clone();
            let most = group.order.len().min(group.next + CHUNK_INPUTS);
            let mut bytes = 0;
            let fits = group.order[group.next..most].iter().take_while(|&&input| {
                bytes += self.inputs.length(input);
                bytes <= LONG_TEXT
            });
            let end = (group.next + fits.count().max(1)).min(most);
            let next: Range<usize> = group.next..end;
            group.next = next.end;
            (!next.is_empty()).then(|| (serving, Arc::clone(&group.entry), group.order[next].to_vec()))
        });
        state.runnable = found.is_some();
        found
    }

    /// Whether the next input takes long to tokenise.
    pub(super) fn is_long(&self) -> bool {
        let state = self.state.lock();
        let mut waiting = state.groups.iter().filter(|group| group.lease.is_some());
        let next = waiting.find_map(|group| group.order.get(group.next));
        state.outcome.is_none() && next.is_some_and(|&input| self.inputs.length(input) > LONG_TEXT)
    }

    /// On the worker's thread: stores rows, keeps them in the cache, and says so.
    fn store(self: &Arc<Self>, fed: &Fed, rows: &Rows) {
        let Fed { entry, known, inputs, weight } = fed;
        let prompt = self.inputs.prompt(known, &self.options).unwrap_or_default();
        let width = dimensions(known.width, self.options.truncate_dim).unwrap_or(known.width);
        let mut vectors = vec![0.0; inputs.len() * width];
        let caching = self.core.settings().cache_size > 0;
        let outs = vectors.chunks_exact_mut(width);
        for (((row, out), &input), &tokens) in
            rows.values.chunks_exact(known.width).zip(outs).zip(inputs).zip(&rows.tokens)
        {
            finish(row, self.options.normalize, out);
            if caching {
                let key = self.options.key(&known.identity, prompt, self.inputs.get(input));
                self.core.cache().insert(&key, Vector::new(&*out, tokens));
            }
        }
        {
            let mut state = self.state.lock();
            state.in_flight -= weight;
            state.tokens += rows.tokens.iter().copied().map(u64::from).sum::<u64>();
            state.finished += inputs.len();
            for (out, &input) in vectors.chunks_exact(width).zip(inputs) {
                state.row(input).copy_from_slice(out);
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
    }
}
