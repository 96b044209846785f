//! From the inputs of a job to its rows: tokenise, queue, store.

use std::ops::Range;
use std::sync::Arc;

use super::super::entry::{Entry, Known, Serving};
use super::super::fork;
use super::super::front::Task;
use super::super::options::{dimensions, finish};
use super::Job;
use crate::Result;
use crate::batching::Chunk;
use crate::cache::Vector;

/// Inputs tokenised between two looks at the queue: some milliseconds of work.
const CHUNK_INPUTS: usize = 64;

/// Some inputs of one slot on their way through its model.
struct Fed {
    entry: Arc<Entry>,
    known: Arc<Known>,
    inputs: Vec<usize>,
    /// Tokens of each of them.
    lengths: Vec<u32>,
}

impl Fed {
    fn tokens(&self) -> u64 {
        self.lengths.iter().copied().map(u64::from).sum()
    }
}

impl Job {
    /// Tokenises and queues one more chunk, if the queue wants one. Returns whether there may be more to do.
    pub(super) fn pump(self: &Arc<Self>) -> Result<bool> {
        let Some((serving, entry, inputs)) = self.next_chunk() else { return Ok(false) };
        let Serving { running, known, .. } = serving;
        let prompt = self.inputs.prompt(&known, &self.options)?;
        let mut sequences = Vec::with_capacity(inputs.len());
        {
            let _computing = fork::computing();
            for &input in &inputs {
                sequences.push(self.inputs.sequence(
                    input,
                    &running.encoder,
                    prompt,
                    self.options.truncate,
                )?);
            }
        }
        let lengths = sequences.iter().map(|ids| ids.len() as u32).collect();
        let (rows, width) = (inputs.len(), known.width);
        let fed = Fed { entry, known, inputs, lengths };
        self.state.lock().in_flight += fed.tokens() as usize;
        let job = Arc::clone(self);
        let done = Box::new(move |result: Result<Vec<f32>>| match result {
            Ok(rows) => job.store(&fed, &rows),
            Err(error) => Task::fail(job, error),
        });
        let chunk = Chunk::new(rows, width, self.cancel.clone(), done);
        running.batcher.submit(sequences, &chunk, self.lane);
        Ok(true)
    }

    /// The next inputs to tokenise, unless enough are in flight.
    fn next_chunk(&self) -> Option<(Serving, Arc<Entry>, Vec<usize>)> {
        let mut state = self.state.lock();
        let window = 3 * self.core.batch_tokens();
        if state.outcome.is_some() || state.in_flight >= window {
            state.runnable = false;
            return None;
        }
        let found = state.groups.iter_mut().find_map(|group| {
            let serving = group.lease.as_ref()?.serving(&group.entry.name).ok()?.clone();
            let next: Range<usize> = group.next..group.order.len().min(group.next + CHUNK_INPUTS);
            group.next = next.end;
            (!next.is_empty()).then(|| (serving, Arc::clone(&group.entry), group.order[next].to_vec()))
        });
        state.runnable = found.is_some();
        found
    }

    /// On the worker's thread: stores rows, keeps them in the cache, and says so.
    fn store(self: &Arc<Self>, fed: &Fed, rows: &[f32]) {
        let Fed { entry, known, inputs, lengths } = fed;
        let prompt = self.inputs.prompt(known, &self.options).unwrap_or_default();
        let width = dimensions(known.width, self.options.truncate_dim).unwrap_or(known.width);
        let mut vectors = vec![0.0; inputs.len() * width];
        let caching = self.core.settings().cache_size > 0;
        let outs = vectors.chunks_exact_mut(width);
        for (((row, out), &input), &tokens) in
            rows.chunks_exact(known.width).zip(outs).zip(inputs).zip(lengths)
        {
            finish(row, self.options.normalize, out);
            if caching {
                let key = self.options.key(&known.identity, prompt, self.inputs.get(input));
                self.core.cache().insert(&key, Vector::new(&*out, tokens));
            }
        }
        {
            let mut state = self.state.lock();
            state.in_flight -= fed.tokens() as usize;
            state.tokens += fed.tokens();
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
