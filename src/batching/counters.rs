//! What the queues have done.

use std::sync::atomic::{AtomicU64, Ordering};

/// Work done so far. Shared by the batchers of one manager, so that it outlives unloading.
#[derive(Debug, Default)]
pub struct Counters {
    batches: AtomicU64,
    sequences: AtomicU64,
    tokens: AtomicU64,
    shared: AtomicU64,
    abandoned: AtomicU64,
    failed: AtomicU64,
}

/// [`Counters`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkDone {
    /// Batches computed.
    pub batches: u64,
    /// Sequences computed.
    pub sequences: u64,
    /// Tokens computed.
    pub tokens: u64,
    /// Sequences answered by an equal one in the same batch or in flight.
    pub shared: u64,
    /// Sequences dropped because all their callers had left.
    pub abandoned: u64,
    /// Batches that failed.
    pub failed: u64,
}

impl Counters {
    /// The counts now.
    pub fn work(&self) -> WorkDone {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        WorkDone {
            batches: read(&self.batches),
            sequences: read(&self.sequences),
            tokens: read(&self.tokens),
            shared: read(&self.shared),
            abandoned: read(&self.abandoned),
            failed: read(&self.failed),
        }
    }

    /// Counts a batch that was computed, or failed.
    pub(crate) fn note_batch(&self, sequences: usize, tokens: usize, failed: bool) {
        Self::add(&self.batches, 1);
        Self::add(&self.sequences, sequences);
        Self::add(&self.tokens, tokens);
        Self::add(&self.failed, usize::from(failed));
    }

    /// Counts what was queued or dropped without being computed.
    pub(crate) fn note_spared(&self, shared: usize, abandoned: usize) {
        Self::add(&self.shared, shared);
        Self::add(&self.abandoned, abandoned);
    }

    fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}
