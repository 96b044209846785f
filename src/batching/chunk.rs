//! What one caller waits for: items of an output, which batches complete.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::compute::memory::reserve;
use crate::output::{Output, Shape, View};
use crate::sync::Mutex;
use crate::trace::{Trace, TraceStage};
use crate::{Error, Result};

/// Called once, on the worker thread, with the chunk's results or the first error. It must be quick and must not call back
/// into the batcher.
pub(super) type Done = Box<dyn FnOnce(Result<ChunkOutput>) + Send>;

/// What a chunk keeps until nothing of it is queued or computed any more: the lease of its model.
pub(super) type Held = Arc<dyn Any + Send + Sync>;

/// The results of a chunk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChunkOutput {
    /// One item a sequence.
    pub output: Output,
    /// Tokens that the model read, by sequence.
    pub tokens: Vec<u32>,
}

/// A caller's flag that it no longer wants its results. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Sets the flag: sequences that no other caller wants are not computed.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the flag is set.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Results that one caller is waiting for.
pub struct Chunk {
    cancel: Cancel,
    gathered: Mutex<Gathered>,
    /// The record of the call, and when the chunk was queued.
    trace: Option<(Arc<Trace>, Instant)>,
}

struct Gathered {
    results: ChunkOutput,
    missing: usize,
    /// Dropped before `done` gets the results, or else with the chunk: the batch under way may have other sequences of it.
    held: Option<Held>,
    /// Taken when it is called; later items are dropped.
    done: Option<Done>,
}

impl Chunk {
    /// A chunk of `sequences` items of this shape, for a call with this record. With no sequences `done` is called at once.
    /// `held` stays until its sequences are computed, also when the caller has left before.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn new(
        sequences: usize,
        shape: Shape,
        cancel: Cancel,
        done: Done,
        trace: Option<&Arc<Trace>>,
        held: Option<Held>,
    ) -> Result<Arc<Self>> {
        let output = Output::new(shape, sequences)?;
        let mut tokens = Vec::new();
        reserve(&mut tokens, sequences)?;
        tokens.resize(sequences, 0);
        let results = ChunkOutput { output, tokens };
        let gathered = Mutex::new(Gathered { results, missing: sequences, held, done: Some(done) });
        let trace = trace.map(|trace| (Arc::clone(trace), Instant::now()));
        let chunk = Arc::new(Self { cancel, gathered, trace });
        if sequences == 0 {
            chunk.finish(Ok(()));
        }
        Ok(chunk)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// The record of the call.
    pub(crate) fn trace(&self) -> Option<&Arc<Trace>> {
        self.trace.as_ref().map(|(trace, _)| trace)
    }

    /// Records the batch that a sequence was in. To be called before its item is delivered.
    pub(crate) fn note(&self, stage: TraceStage, began: Instant, ended: Instant) {
        if let Some((trace, queued)) = &self.trace {
            trace.computed(stage, *queued, began, ended);
        }
    }

    /// Stores the item of sequence `row`, made of so many tokens. The last one completes the chunk.
    pub(crate) fn deliver(&self, row: usize, item: View<'_>, tokens: u32) {
        let complete = {
            let mut gathered = self.gathered.lock();
            gathered.results.output.put(row, item);
            gathered.results.tokens[row] = tokens;
            gathered.missing -= 1;
            gathered.missing == 0
        };
        if complete {
            self.finish(Ok(()));
        }
    }

    /// Reports a failure to the caller, at once and only once.
    pub(crate) fn fail(&self, error: Error) {
        self.finish(Err(error));
    }

    fn finish(&self, outcome: Result<()>) {
        let (done, results, held) = {
            let mut gathered = self.gathered.lock();
            let Some(done) = gathered.done.take() else { return };
            // After a failure other items of this chunk may still arrive: their place stays.
            let taken =
                outcome.is_ok().then(|| (std::mem::take(&mut gathered.results), gathered.held.take()));
            let (results, held) = taken.unwrap_or_default();
            (done, results, held)
        };
        // Not under the lock: it may free the model.
        drop(held);
        let called = catch_unwind(AssertUnwindSafe(|| done(outcome.map(|()| results))));
        if let Err(payload) = called {
            // The worker goes on with the other callers.
            log::error!("{}", Error::panic("a reply", payload.as_ref()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PAIRS: Shape = Shape::Dense { width: 2 };

    fn chunk(sequences: usize) -> (Arc<Chunk>, mpsc::Receiver<Result<ChunkOutput>>) {
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |result| sender.send(result).unwrap());
        (Chunk::new(sequences, PAIRS, Cancel::default(), done, None, None).unwrap(), receiver)
    }

    #[test]
    fn items_may_arrive_in_any_order() {
        let (chunk, done) = chunk(2);
        chunk.deliver(1, View::Dense(&[3.0, 4.0]), 5);
        assert!(done.try_recv().is_err());
        chunk.deliver(0, View::Dense(&[1.0, 2.0]), 6);
        let found = done.try_recv().unwrap().unwrap();
        assert_eq!(
            (found.output.view(0), found.output.view(1)),
            (View::Dense(&[1.0, 2.0]), View::Dense(&[3.0, 4.0]))
        );
        assert_eq!(found.tokens, [6, 5]);
    }

    #[test]
    fn an_empty_chunk_is_done_at_once() {
        let (_, done) = chunk(0);
        assert_eq!(done.try_recv().unwrap().unwrap().output.rows(), 0);
    }

    #[test]
    fn a_failure_is_reported_once_and_late_items_do_no_harm() {
        let (chunk, done) = chunk(2);
        chunk.fail(Error::Cancelled);
        chunk.fail(Error::Closed);
        chunk.deliver(0, View::Dense(&[1.0, 2.0]), 6);
        chunk.deliver(1, View::Dense(&[1.0, 2.0]), 7);
        assert_eq!(done.try_recv().unwrap(), Err(Error::Cancelled));
        assert!(done.try_recv().is_err());
    }
}
