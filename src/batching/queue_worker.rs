//! A queue and the threads that empty it, whatever computes the items.

use std::sync::Arc;

use super::chunk::Chunk;
use super::counters::Counters;
use super::queue::{BatchLimit, Lane, Queue, QueueItem, Waiter};
use crate::Result;
use crate::sync::{Abandon, Work, Worker, WorkerThread};

/// A queue, and the threads that empty it. Dropping it ends the threads and fails callers that still wait. It waits for a
/// batch under way; callers whose chunks hold the owner of the queue see to it that there is none.
pub(crate) struct QueueWorker<T: QueueItem> {
    worker: Worker<Queue<T>>,
    counters: Arc<Counters>,
}

impl<T: QueueItem> QueueWorker<T> {
    /// Starts `threads` threads.
    pub(crate) fn start(
        role: &'static str,
        threads: usize,
        work: Arc<dyn Work<Queue<T>>>,
        counters: &Arc<Counters>,
    ) -> Result<Self> {
        let queue =
            Self { worker: Worker::with_threads(role, threads, work), counters: Arc::clone(counters) };
        queue.worker.start()?;
        Ok(queue)
    }

    /// Queues the items of a chunk, row by row. Never blocks.
    pub(crate) fn submit(&self, items: impl Iterator<Item = T>, chunk: &Arc<Chunk>, lane: Lane) {
        let queued = self.worker.with(|queue| {
            let mut joined = 0;
            for (row, item) in items.enumerate() {
                let waiter = Waiter { chunk: Arc::clone(chunk), row };
                joined += usize::from(!queue.push(item, waiter, lane));
            }
            joined
        });
        match queued {
            Ok(joined) => self.counters.note_spared(joined, 0),
            Err(error) => chunk.fail(error),
        }
    }

    /// Items waiting, not counting those being computed.
    pub(crate) fn waiting(&self) -> usize {
        self.worker.look(|queue| queue.len())
    }
}

impl<T: QueueItem> Drop for QueueWorker<T> {
    fn drop(&mut self) {
        self.worker.close();
    }
}

/// Waits for items and takes a batch of them; `None` at the end. `away`: what the thread does with them cannot be
/// interrupted.
pub(crate) fn next_batch<T: QueueItem>(
    thread: &WorkerThread<'_, Queue<T>>,
    budget: BatchLimit,
    away: bool,
    counters: &Counters,
) -> Option<Vec<T>> {
    let mut queue = thread.lock();
    queue.set_away(false);
    while !queue.is_stopping() {
        let (batch, left) = queue.next_batch(budget);
        counters.note_spared(0, left.len());
        if batch.is_empty() && left.is_empty() {
            queue = queue.wait();
            continue;
        }
        if !batch.is_empty() {
            queue.set_away(away);
            if !queue.is_empty() {
                // One notification may have announced more than one batch.
                thread.wake_another();
            }
        }
        drop(queue);
        drop(left);
        if !batch.is_empty() {
            return Some(batch);
        }
        queue = thread.lock();
    }
    None
}

/// The callers that want the items of a batch which has been computed, or has failed.
pub(crate) fn complete<T: QueueItem>(thread: &WorkerThread<'_, Queue<T>>, batch: &[T]) -> Vec<Vec<Waiter>> {
    let mut queue = thread.lock();
    batch.iter().map(|item| queue.complete(item)).collect()
}

/// Fails every caller that waits for an item of `queue`.
pub(crate) fn abandon<T: QueueItem>(queue: &mut Queue<T>) -> Option<Abandon> {
    let waiters = queue.drain();
    Some(Box::new(move |error| waiters.iter().for_each(|waiter| waiter.chunk.fail(error.clone()))))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::super::chunk::Cancel;
    use super::*;
    use crate::Error;
    use crate::output::Shape;
    use crate::sync::Mutex;

    /// Reports each batch that it takes, and fails it when the test says so. It cannot be interrupted in between.
    struct Gated {
        counters: Arc<Counters>,
        taken: mpsc::Sender<usize>,
        gate: Mutex<mpsc::Receiver<()>>,
    }

    impl Work<Queue<Arc<str>>> for Gated {
        fn fresh(&self) -> Queue<Arc<str>> {
            Queue::default()
        }

        fn run(&self, thread: &WorkerThread<'_, Queue<Arc<str>>>) {
            while let Some(batch) = next_batch(thread, BatchLimit::of_weight(100), true, &self.counters) {
                self.taken.send(batch.len()).unwrap();
                self.gate.lock().recv().unwrap();
                let waiters = complete(thread, &batch).into_iter().flatten();
                waiters.for_each(|waiter| waiter.chunk.fail(Error::Closed));
            }
        }
    }

    #[test]
    fn equal_items_are_counted_as_shared_and_a_thread_is_away_during_a_batch_alone() {
        let ((taken, batches), (open, gate)) = (mpsc::channel(), mpsc::channel());
        let counters = Arc::<Counters>::default();
        let work = Gated { counters: Arc::clone(&counters), taken, gate: Mutex::new(gate) };
        let queue = QueueWorker::start("test", 1, Arc::new(work), &counters).unwrap();
        // Dropped before the queue, which waits for its thread.
        let open = open;
        let (sender, answer) = mpsc::channel();
        let done = Box::new(move |result| drop(sender.send(result)));
        let chunk = Chunk::new(3, Shape::Dense { width: 1 }, Cancel::default(), done, None, None).unwrap();
        queue.submit(["a", "b", "a"].map(Arc::from).into_iter(), &chunk, Lane::Bulk);
        assert_eq!(batches.recv(), Ok(2));
        assert_eq!(counters.work().shared, 1);
        // Nothing waits for a thread that is away, so this is true before it ends.
        let ends = || queue.worker.join(Some(Instant::now()));
        assert!(ends());
        open.send(()).unwrap();
        assert_eq!(answer.recv().unwrap(), Err(Error::Closed));
        // It comes back for the next batch.
        let late = Instant::now() + Duration::from_secs(60);
        while ends() {
            assert!(Instant::now() < late, "the thread waits for items and counts as away");
            thread::yield_now();
        }
    }
}
