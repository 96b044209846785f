//! Writing behind: callers queue results, and one thread for each tier stores them.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::super::item::CachedItem;
use super::key::{InputKey, TierKey};
use super::tier::{Tier, TierCounts};
use crate::sync::{Abandon, Work, Worker, WorkerThread};

/// Results that may wait for one tier, and as many for the content of their models; further ones are not stored.
const QUEUE: usize = 16_384;
/// Results that are stored together.
const BATCH: usize = 128;
/// How often results of a model whose content is not known yet are looked at again.
const CONTENT_CHECK: Duration = Duration::from_millis(100);
/// How long closing waits for results that are still queued.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long clearing waits for the batch that is being stored.
const STORING: Duration = Duration::from_secs(30);

/// SHA-256 of a model's content, once it is known: it is computed in the background, which may fail. A cheap-clone handle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelContent(Arc<OnceLock<Option<[u8; 32]>>>);

impl ModelContent {
    /// The content, unless it is not known yet or will never be.
    #[must_use]
    pub fn get(&self) -> Option<&[u8; 32]> {
        self.0.get()?.as_ref()
    }

    /// Sets it; `None`: it will never be known, and no result is stored under it. The first call decides.
    pub fn settle(&self, content: Option<[u8; 32]>) {
        let _ = self.0.set(content);
    }

    fn is_settled(&self) -> bool {
        self.0.get().is_some()
    }
}

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
                match entry.model.get() {
                    Some(content) if queue.ready.len() < QUEUE => {
                        queue.ready.push_back((entry.key.with_model(content), entry.item));
                    }
                    None if queue.unnamed.len() < QUEUE && !entry.model.is_settled() => {
                        queue.unnamed.push_back(entry);
                    }
                    _ => dropped += 1,
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
            let room = QUEUE.saturating_sub(queue.ready.len());
            queue.ready.extend(entries.iter().take(room).cloned());
        });
    }

    /// Waits until everything that is queued is stored, until `until` at most: with `unnamed` also what waits for the content
    /// of its model. True when it is.
    pub(super) fn flush(&self, until: Instant, unnamed: bool) -> bool {
        self.worker.wait_while(until, |queue| {
            !queue.ready.is_empty()
                || queue.storing
                || queue.has_settled()
                || (unnamed && !queue.unnamed.is_empty())
        })
    }

    /// Removes what the tier holds and what is on its way there. What is queued from now on is stored. Returns what
    /// [`Tier::clear`] does.
    pub(super) fn clear(&self) -> Vec<(String, String)> {
        let queued = self.worker.look(|queue| {
            let fresh = WriteQueue { storing: queue.storing, ..WriteQueue::default() };
            std::mem::replace(queue, fresh)
        });
        TierCounts::add(&self.tier.counts().dropped, queued.ready.len() + queued.unnamed.len());
        // A batch that is being stored can be removed only when it is there.
        if !self.worker.wait_while(Instant::now() + STORING, |queue| queue.storing) {
            log::warn!(
                "the cache {:?} is cleared while it still stores results, which may stay there",
                self.tier.name()
            );
        }
        self.tier.clear()
    }

    /// Stores what is queued, as far as that takes no longer than a second, and ends the thread.
    pub(super) fn close(&self) {
        self.flush(Instant::now() + PATIENCE, false);
        self.worker.stop();
        self.worker.join(Some(Instant::now() + PATIENCE));
    }
}

impl WriteQueue {
    /// Whether it is decided of some waiting result what its model is.
    fn has_settled(&self) -> bool {
        self.unnamed.iter().any(|entry| entry.model.is_settled())
    }

    /// Moves results whose model has become known to the others. How many are not stored, because theirs never will.
    fn name(&mut self) -> usize {
        let mut dropped = 0;
        for entry in std::mem::take(&mut self.unnamed) {
            match entry.model.get() {
                Some(content) => self.ready.push_back((entry.key.with_model(content), entry.item)),
                None if entry.model.is_settled() => dropped += 1,
                None => self.unnamed.push_back(entry),
            }
        }
        dropped
    }
}

impl Work<WriteQueue> for BehindWriter {
    fn fresh(&self) -> WriteQueue {
        WriteQueue::default()
    }

    fn run(&self, thread: &WorkerThread<'_, WriteQueue>) {
        let mut queue = thread.lock();
        while !queue.is_stopping() {
            if queue.has_settled() {
                TierCounts::add(&self.0.counts().dropped, queue.name());
                queue.report();
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
            queue.report();
        }
    }

    /// After a panic: the next thread goes on with what is queued.
    fn abandon(&self, queue: &mut WriteQueue) -> Option<Abandon> {
        queue.storing = false;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::key::{Content, KeyRef};
    use crate::output::{Item, OutputKind};
    use crate::sync::Mutex;

    /// A tier that keeps the keys of what it stores.
    #[derive(Default)]
    struct Keys {
        stored: Mutex<Vec<TierKey>>,
        counts: TierCounts,
        /// Storing waits until this is open.
        gate: Mutex<()>,
    }

    impl Tier for Keys {
        fn name(&self) -> &'static str {
            "disk"
        }

        fn is_fast(&self) -> bool {
            true
        }

        fn get(&self, keys: &[TierKey]) -> Vec<Option<CachedItem>> {
            vec![None; keys.len()]
        }

        fn put(&self, entries: &[(TierKey, CachedItem)]) {
            let _open = self.gate.lock();
            self.stored.lock().extend(entries.iter().map(|(key, _)| *key));
        }

        fn clear(&self) -> Vec<(String, String)> {
            self.stored.lock().clear();
            Vec::new()
        }

        fn counts(&self) -> &TierCounts {
            &self.counts
        }

        fn is_working(&self) -> bool {
            true
        }
    }

    /// Results of one text by `model`.
    fn results(count: usize, model: &ModelContent) -> Vec<PendingWrite> {
        let input = KeyRef {
            content: Content::Text("a text"),
            prompt: "",
            model: &"a model".into(),
            dimensions: None,
            normalized: true,
            kind: OutputKind::Dense,
        };
        let entry = PendingWrite {
            key: InputKey::of(&input),
            model: model.clone(),
            item: CachedItem::new(Item::Dense(vec![1.0].into()), 1),
        };
        vec![entry; count]
    }

    #[test]
    fn clearing_removes_what_is_queued_and_what_is_being_stored() {
        let tier = Arc::new(Keys::default());
        let behind = WriteBehind::new(Arc::<Keys>::clone(&tier));
        let (unknown, known) = (ModelContent::default(), ModelContent::default());
        known.settle(Some([1; 32]));
        let closed = tier.gate.lock();
        behind.push(results(BATCH + 5, &known));
        behind.push(results(3, &unknown));
        while !behind.worker.look(|queue| queue.storing) {
            std::thread::yield_now();
        }
        std::thread::scope(|scope| {
            let clearing = scope.spawn(|| behind.clear());
            while behind.worker.look(|queue| queue.ready.len() + queue.unnamed.len()) > 0 {
                std::thread::yield_now();
            }
            drop(closed);
            clearing.join().unwrap();
        });
        assert!(tier.stored.lock().is_empty());
        assert_eq!(tier.counts.dropped.load(std::sync::atomic::Ordering::Relaxed), 8);
        unknown.settle(Some([2; 32]));
        behind.push(results(1, &known));
        behind.flush(Instant::now() + Duration::from_secs(60), true);
        assert_eq!(tier.stored.lock().len(), 1, "what comes later is stored");
        behind.close();
    }

    #[test]
    fn a_model_that_never_becomes_known_leaves_the_queue_to_others() {
        let tier = Arc::new(Keys::default());
        let behind = WriteBehind::new(Arc::<Keys>::clone(&tier));
        let dropped = || tier.counts.dropped.load(std::sync::atomic::Ordering::Relaxed);
        let (lost, known) = (ModelContent::default(), ModelContent::default());
        known.settle(Some([1; 32]));
        behind.push(results(QUEUE + 10, &lost));
        assert_eq!(dropped(), 10);
        behind.push(results(3, &known));
        behind.flush(Instant::now() + Duration::from_secs(60), false);
        assert_eq!(tier.stored.lock().len(), 3, "the other model's are stored meanwhile");
        lost.settle(None);
        behind.flush(Instant::now() + Duration::from_secs(60), true);
        assert!(!behind.worker.look(|queue| !queue.unnamed.is_empty()));
        assert_eq!(dropped(), QUEUE as u64 + 10);
        behind.push(results(5, &lost));
        assert_eq!((dropped(), lost.get()), (QUEUE as u64 + 15, None));
        behind.close();
    }
}
