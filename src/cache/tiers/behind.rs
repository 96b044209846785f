//! Writing behind: callers queue results, and one thread for each tier stores them.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::super::item::CachedItem;
use super::key::{InputKey, TierKey};
use super::tier::{Tier, TierCounts};
use crate::sync::{Work, Worker, WorkerThread};

/// Results that may wait for one tier; further ones are not stored.
const QUEUE: usize = 16_384;
/// Results that are stored together.
const BATCH: usize = 128;
/// How often results of a model whose content is not known yet are looked at again.
const CONTENT_CHECK: Duration = Duration::from_millis(100);
/// How long closing waits for results that are still queued.
const PATIENCE: Duration = Duration::from_secs(1);

/// SHA-256 of a model's content, once it is known. It is computed in the background.
pub type ModelContent = Arc<OnceLock<[u8; 32]>>;

/// A result on its way to a tier.
#[derive(Clone)]
pub(super) struct PendingWrite {
    pub(super) key: InputKey,
    pub(super) model: ModelContent,
    pub(super) item: CachedItem,
}

/// The queue of one tier, and the thread that serves it.
pub(super) struct WriteBehind {
    tier: Arc<dyn Tier>,
    worker: Worker<WriteQueue>,
}

#[derive(Default)]
struct WriteQueue {
    /// The content of their models is known.
    ready: VecDeque<(TierKey, CachedItem)>,
    /// It is not.
    unnamed: VecDeque<PendingWrite>,
    /// The thread stores a batch now.
    storing: bool,
}

struct BehindWriter(Arc<dyn Tier>);

impl WriteBehind {
    pub(super) fn new(tier: Arc<dyn Tier>) -> Self {
        Self { worker: Worker::new("cache-writer", Arc::new(BehindWriter(Arc::clone(&tier)))), tier }
    }

    pub(super) fn tier(&self) -> &Arc<dyn Tier> {
        &self.tier
    }

    /// Queues results. Never waits: what finds no place is not stored.
    pub(super) fn push(&self, entries: impl IntoIterator<Item = PendingWrite>) {
        if !self.tier.is_working() {
            return;
        }
        let mut dropped = 0;
        let queued = self.worker.with(|queue| {
            for entry in entries {
                if queue.ready.len() + queue.unnamed.len() >= QUEUE {
                    dropped += 1;
                    continue;
                }
                match entry.model.get() {
                    Some(content) => queue.ready.push_back((entry.key.with_model(content), entry.item)),
                    None => queue.unnamed.push_back(entry),
                }
            }
        });
        if queued.is_ok() {
            TierCounts::add(&self.tier.counts().dropped, dropped);
        }
    }

    /// Queues results that a lower tier had.
    pub(super) fn copy(&self, entries: &[(TierKey, CachedItem)]) {
        if entries.is_empty() || !self.tier.is_working() {
            return;
        }
        let _ = self.worker.with(|queue| {
            let room = QUEUE.saturating_sub(queue.ready.len() + queue.unnamed.len());
            queue.ready.extend(entries.iter().take(room).cloned());
        });
    }

    /// Waits until everything that is queued is stored, `patience` at most: with `unnamed` also what waits for the content
    /// of its model.
    pub(super) fn flush(&self, patience: Duration, unnamed: bool) {
        let until = Instant::now() + patience;
        let is_waiting = |queue: &mut WriteQueue| {
            !queue.ready.is_empty()
                || queue.storing
                || queue.named()
                || (unnamed && !queue.unnamed.is_empty())
        };
        while Instant::now() < until && self.worker.look(is_waiting) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stores what is queued, as far as that takes no longer than a second, and ends the thread.
    pub(super) fn close(&self) {
        self.flush(PATIENCE, false);
        self.worker.stop();
        self.worker.join(Some(Instant::now() + PATIENCE));
    }
}

impl WriteQueue {
    /// Whether the content of some waiting result's model has become known.
    fn named(&self) -> bool {
        self.unnamed.iter().any(|entry| entry.model.get().is_some())
    }

    /// Moves results whose model has become known to the others.
    fn name(&mut self) {
        for entry in std::mem::take(&mut self.unnamed) {
            match entry.model.get() {
                Some(content) => self.ready.push_back((entry.key.with_model(content), entry.item)),
                None => self.unnamed.push_back(entry),
            }
        }
    }
}

impl Work<WriteQueue> for BehindWriter {
    fn fresh(&self) -> WriteQueue {
        WriteQueue::default()
    }

    fn run(&self, thread: &WorkerThread<'_, WriteQueue>) {
        let mut queue = thread.lock();
        while !queue.is_stopping() {
            if queue.named() {
                queue.name();
            }
            if queue.ready.is_empty() {
                queue = if queue.unnamed.is_empty() {
                    queue.wait()
                } else {
                    queue.wait_until(Instant::now() + CONTENT_CHECK).0
                };
                continue;
            }
            let most = queue.ready.len().min(BATCH);
            let batch: Vec<_> = queue.ready.drain(..most).collect();
            queue.storing = true;
            drop(queue);
            self.0.put(&batch);
            drop(batch);
            queue = thread.lock();
            queue.storing = false;
        }
    }
}
