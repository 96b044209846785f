//! The thread that empties a queue.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use super::chunk::Chunk;
use super::queue::{Lane, Queue, Tokens, Waiter};
use crate::compute::Packed;
use crate::sync::{Condvar, Mutex};
use crate::{Error, Result};

/// What a batcher drives: token ids in, one vector a sequence out.
pub trait Forward: Send + Sync + 'static {
    /// Length of a vector.
    fn width(&self) -> usize;

    /// Computes the vectors of a packed batch into `out`, row-major `[sequences, width]`.
    ///
    /// # Errors
    /// Whatever the model raises; it is told to every caller of this batch.
    fn forward(&self, batch: &Packed<'_>, out: &mut [f32]) -> Result<()>;
}

/// A queue and its worker thread, for one loaded model. Dropping it ends the thread and fails whoever still waits.
pub struct Batcher {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

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
pub struct Work {
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
    pub fn work(&self) -> Work {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Work {
            batches: read(&self.batches),
            sequences: read(&self.sequences),
            tokens: read(&self.tokens),
            shared: read(&self.shared),
            abandoned: read(&self.abandoned),
            failed: read(&self.failed),
        }
    }

    fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

struct Shared {
    name: String,
    counters: Arc<Counters>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: Queue,
    closed: bool,
}

impl Batcher {
    /// Starts the worker of `model`. `name` is the model's, for messages and for the thread. A batch has at most
    /// `budget` tokens unless one sequence alone is longer.
    ///
    /// The worker holds the model only while it computes: an idle model is freed by whoever drops it.
    ///
    /// # Errors
    /// [`Error::Internal`] when the operating system gives no thread.
    pub fn start<F: Forward>(
        name: &str,
        model: &Arc<F>,
        budget: usize,
        counters: &Arc<Counters>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            counters: Arc::clone(counters),
            state: Mutex::new(State::default()),
            wake: Condvar::new(),
        });
        let worker = thread::Builder::new()
            .name(format!("mm-{name}"))
            .spawn({
                let (shared, model) = (Arc::clone(&shared), Arc::downgrade(model));
                move || work(&shared, &model, budget)
            })
            .map_err(|error| Error::Internal {
                place: format!("thread of {name}"),
                reason: error.to_string(),
            })?;
        Ok(Self { shared, worker: Some(worker) })
    }

    /// Queues the sequences of a chunk, row by row. Never blocks.
    pub fn submit(&self, sequences: Vec<Vec<u32>>, chunk: &Arc<Chunk>, lane: Lane) {
        {
            let mut state = self.shared.state.lock();
            if !state.closed {
                let mut shared = 0;
                for (row, tokens) in sequences.into_iter().enumerate() {
                    let waiter = Waiter { chunk: Arc::clone(chunk), row };
                    shared += usize::from(!state.queue.push(tokens.into(), waiter, lane));
                }
                drop(state);
                Counters::add(&self.shared.counters.shared, shared);
                self.shared.wake.notify_one();
                return;
            }
        }
        chunk.fail(Error::Closed);
    }

    /// Sequences waiting, not counting those being computed.
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().queue.len()
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        let abandoned = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            state.queue.drain()
        };
        self.shared.wake.notify_one();
        for waiter in abandoned {
            waiter.chunk.fail(Error::Closed);
        }
        // The last owner may be a reply that the worker itself is sending: a thread cannot wait for itself.
        if let Some(worker) =
            self.worker.take().filter(|worker| worker.thread().id() != thread::current().id())
        {
            // The worker catches every panic; there is nothing to learn from its result.
            let _ = worker.join();
        }
    }
}

fn work<F: Forward>(shared: &Shared, model: &Weak<F>, budget: usize) {
    let mut scratch = Scratch::default();
    while let Some(batch) = next_batch(shared, budget) {
        let tokens: usize = batch.iter().map(|sequence| sequence.len()).sum();
        // A caller that waits keeps the model alive through its lease, so this fails only when nobody waits.
        let result = match model.upgrade() {
            Some(model) => scratch.forward(&shared.name, &*model, &batch),
            None => Err(Error::Closed),
        };
        let counters = &*shared.counters;
        Counters::add(&counters.batches, 1);
        Counters::add(&counters.sequences, batch.len());
        Counters::add(&counters.tokens, tokens);
        Counters::add(&counters.failed, usize::from(result.is_err()));
        let waiters: Vec<Vec<Waiter>> = {
            let mut state = shared.state.lock();
            batch.iter().map(|sequence| state.queue.complete(sequence)).collect()
        };
        reply(&shared.name, &result.map(|width| (scratch.out.as_slice(), width)), &waiters);
    }
}

fn next_batch(shared: &Shared, budget: usize) -> Option<Vec<Tokens>> {
    let mut state = shared.state.lock();
    loop {
        if state.closed {
            return None;
        }
        let (batch, abandoned) = state.queue.next_batch(budget);
        Counters::add(&shared.counters.abandoned, abandoned);
        if !batch.is_empty() {
            return Some(batch);
        }
        state = shared.wake.wait(state);
    }
}

/// Buffers that one batch leaves for the next.
#[derive(Default)]
struct Scratch {
    ids: Vec<u32>,
    offsets: Vec<u32>,
    out: Vec<f32>,
}

impl Scratch {
    /// Packs and computes a batch into `self.out`; returns the width of a row.
    fn forward<F: Forward>(&mut self, name: &str, model: &F, batch: &[Tokens]) -> Result<usize> {
        self.ids.clear();
        self.offsets.clear();
        self.offsets.push(0);
        for sequence in batch {
            self.ids.extend_from_slice(sequence);
            self.offsets.push(self.ids.len() as u32);
        }
        let width = model.width();
        self.out.clear();
        self.out.resize(batch.len() * width, 0.0);
        let packed = Packed { ids: &self.ids, offsets: &self.offsets };
        let out = &mut self.out;
        catch_unwind(AssertUnwindSafe(|| model.forward(&packed, out))).unwrap_or_else(|payload| {
            Err(Error::panic(format!("the forward pass of {name}"), payload.as_ref()))
        })?;
        Ok(width)
    }
}

/// Hands every row to those who want it. A vector that is not finite fails its own callers only.
fn reply(name: &str, result: &Result<(&[f32], usize)>, waiters: &[Vec<Waiter>]) {
    for (row, waiters) in waiters.iter().enumerate() {
        let outcome = result.as_ref().map_err(Clone::clone).and_then(|(out, width)| {
            let vector = &out[row * width..(row + 1) * width];
            if vector.iter().all(|value| value.is_finite()) {
                Ok(vector)
            } else {
                Err(Error::NotFinite { model: name.to_owned() })
            }
        });
        for waiter in waiters {
            match &outcome {
                Ok(vector) => waiter.chunk.deliver(waiter.row, vector),
                Err(error) => waiter.chunk.fail(error.clone()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use super::super::chunk::Cancel;
    use super::*;

    /// A model whose vector is (first token, length). Token 13 panics, 14 errs, 15 gives NaN; batches are counted,
    /// and each waits for a permit so that tests decide what is in flight.
    struct Fake {
        batches: AtomicUsize,
        gate: Mutex<mpsc::Receiver<()>>,
    }

    impl Forward for Fake {
        fn width(&self) -> usize {
            2
        }

        fn forward(&self, batch: &Packed<'_>, out: &mut [f32]) -> Result<()> {
            self.gate.lock().recv().unwrap();
            self.batches.fetch_add(1, Ordering::Relaxed);
            for (row, range) in batch.offsets.windows(2).enumerate() {
                let sequence = &batch.ids[range[0] as usize..range[1] as usize];
                match sequence[0] {
                    13 => panic!("unlucky"),
                    14 => return Err(Error::Input("fourteen".into())),
                    15 => out[row * 2] = f32::NAN,
                    first => {
                        out[row * 2] = first as f32;
                        out[row * 2 + 1] = sequence.len() as f32;
                    }
                }
            }
            Ok(())
        }
    }

    struct Bench {
        counters: Arc<Counters>,
        batcher: Batcher,
        model: Arc<Fake>,
        permits: mpsc::Sender<()>,
    }

    impl Bench {
        fn new(budget: usize) -> Self {
            let (permits, gate) = mpsc::channel();
            let model = Arc::new(Fake { batches: AtomicUsize::new(0), gate: Mutex::new(gate) });
            let counters = Arc::default();
            Self {
                batcher: Batcher::start("fake", &model, budget, &counters).unwrap(),
                counters,
                model,
                permits,
            }
        }

        fn permit(&self, batches: usize) {
            (0..batches).for_each(|_| self.permits.send(()).unwrap());
        }

        fn submit(&self, sequences: &[&[u32]], cancel: &Cancel) -> mpsc::Receiver<Result<Vec<f32>>> {
            let (sender, receiver) = mpsc::channel();
            let done = Box::new(move |result| drop(sender.send(result)));
            let chunk = Chunk::new(sequences.len(), 2, cancel.clone(), done);
            self.batcher.submit(sequences.iter().map(|s| s.to_vec()).collect(), &chunk, Lane::Interactive);
            receiver
        }

        /// Occupies the worker, so that what follows is queued together.
        fn occupy(&self) -> mpsc::Receiver<Result<Vec<f32>>> {
            let busy = self.submit(&[&[9]], &Cancel::default());
            while self.batcher.waiting() > 0 {
                thread::yield_now();
            }
            busy
        }
    }

    #[test]
    fn what_arrives_during_a_batch_becomes_the_next_batch() {
        let bench = Bench::new(100);
        let busy = bench.occupy();
        let replies: Vec<_> =
            (1..=8).map(|id| bench.submit(&[&[id, 0], &[id]], &Cancel::default())).collect();
        bench.permit(2);
        assert_eq!(busy.recv().unwrap(), Ok(vec![9.0, 1.0]));
        for (id, reply) in (1..=8).zip(replies) {
            assert_eq!(reply.recv().unwrap(), Ok(vec![id as f32, 2.0, id as f32, 1.0]));
        }
        assert_eq!(bench.model.batches.load(Ordering::Relaxed), 2);
        let work = bench.counters.work();
        assert_eq!((work.batches, work.sequences, work.tokens, work.failed), (2, 17, 25, 0));
    }

    #[test]
    fn a_failed_batch_fails_only_its_own_callers_and_the_worker_lives_on() {
        let bench = Bench::new(1);
        bench.permit(4);
        let panicked = bench.submit(&[&[13]], &Cancel::default()).recv().unwrap();
        assert!(
            matches!(&panicked, Err(Error::Internal { place, reason }) if place.contains("fake") && reason == "unlucky"),
            "{panicked:?}"
        );
        let failed = bench.submit(&[&[14]], &Cancel::default()).recv().unwrap();
        assert_eq!(failed, Err(Error::Input("fourteen".into())));
        let nan = bench.submit(&[&[15]], &Cancel::default()).recv().unwrap();
        assert_eq!(nan, Err(Error::NotFinite { model: "fake".into() }));
        assert_eq!(bench.submit(&[&[1]], &Cancel::default()).recv().unwrap(), Ok(vec![1.0, 1.0]));
        assert_eq!(bench.counters.work().failed, 2);
    }

    #[test]
    fn a_vector_that_is_not_finite_spares_its_batch_mates() {
        let bench = Bench::new(100);
        let _busy = bench.occupy();
        let nan = bench.submit(&[&[15]], &Cancel::default());
        let fine = bench.submit(&[&[1]], &Cancel::default());
        bench.permit(2);
        assert!(nan.recv().unwrap().is_err());
        assert_eq!(fine.recv().unwrap(), Ok(vec![1.0, 1.0]));
    }

    #[test]
    fn cancelled_sequences_are_not_computed() {
        let bench = Bench::new(100);
        let busy = bench.occupy();
        let cancel = Cancel::default();
        let _cancelled = bench.submit(&[&[13]], &cancel);
        cancel.cancel();
        let fine = bench.submit(&[&[1]], &Cancel::default());
        bench.permit(2);
        busy.recv().unwrap().unwrap();
        fine.recv().unwrap().unwrap();
        let work = bench.counters.work();
        assert_eq!((work.sequences, work.abandoned), (2, 1));
    }

    #[test]
    fn dropping_a_batcher_fails_whoever_waits() {
        let bench = Bench::new(100);
        let busy = bench.occupy();
        let waiting = bench.submit(&[&[1]], &Cancel::default());
        let Bench { batcher, permits, .. } = bench;
        let dropper = thread::spawn(move || drop(batcher));
        assert_eq!(waiting.recv().unwrap(), Err(Error::Closed));
        permits.send(()).unwrap();
        dropper.join().unwrap();
        assert_eq!(busy.recv().unwrap(), Err(Error::Closed));
    }

    #[test]
    fn a_model_that_is_gone_leaves_nobody_waiting() {
        let Bench { batcher, model, permits, .. } = Bench::new(100);
        drop((model, permits));
        let (sender, receiver) = mpsc::channel();
        let chunk = Chunk::new(1, 2, Cancel::default(), Box::new(move |r| drop(sender.send(r))));
        batcher.submit(vec![vec![1]], &chunk, Lane::Bulk);
        assert_eq!(receiver.recv().unwrap(), Err(Error::Closed));
    }

    #[test]
    fn racing_callers_all_get_their_own_rows() {
        let bench = Bench::new(64);
        bench.permit(2 * 16 * 50); // each sequence may come to be a batch of its own
        thread::scope(|scope| {
            for id in 0..16u32 {
                let bench = &bench;
                scope.spawn(move || {
                    for step in 1..=50usize {
                        // Half of the sequences are common to all threads.
                        let (own, common) = (vec![100 + id; step], vec![50; step]);
                        let rows =
                            bench.submit(&[&own, &common], &Cancel::default()).recv().unwrap().unwrap();
                        assert_eq!(rows, [100.0 + id as f32, step as f32, 50.0, step as f32]);
                    }
                });
            }
        });
    }
}
