//! The thread that computes the batches of one model.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::chunk::Chunk;
use super::counters::Counters;
use super::encoded::Encoded;
use super::queue::{BatchLimit, Lane, Queue, QueuedSequence, Waiter};
use super::queue_worker::{QueueWorker, abandon, complete, next_batch};
use crate::compute::PackedBatch;
use crate::output::{Output, OutputKind, Shape};
use crate::sync::{Abandon, Work, WorkerThread};
use crate::trace::TraceStage;
use crate::{Error, Result};

/// What a batcher drives: token ids in, one item a sequence out.
pub trait Forward: Send + Sync + 'static {
    /// The shape of an item of this kind.
    ///
    /// # Errors
    /// [`Error::Internal`] for a kind that the model does not give.
    fn shape(&self, kind: OutputKind) -> Result<Shape>;

    /// Computes the items of this kind of a packed batch into `out`, which has as many of one of these shapes.
    ///
    /// # Errors
    /// Those of the model; every caller of this batch gets them.
    fn forward(&self, kind: OutputKind, batch: &PackedBatch<'_>, out: &mut Output) -> Result<()>;
}

/// A queue and its worker thread, for one loaded model. Dropping it ends the thread and fails callers that still wait.
pub struct Batcher {
    queue: QueueWorker<QueuedSequence>,
}

impl Batcher {
    /// Starts `threads` workers of `model`, each of which computes a batch at a time. `name` is the model's, for messages. A
    /// batch has at most `budget` tokens unless one sequence alone is longer.
    ///
    /// A worker owns the model only while it computes: an idle model is freed when its last other owner drops it.
    ///
    /// # Errors
    /// [`Error::Internal`] when the operating system provides no thread.
    pub fn start<F: Forward>(
        name: &str,
        model: &Arc<F>,
        budget: usize,
        threads: usize,
        counters: &Arc<Counters>,
    ) -> Result<Self> {
        let work = Arc::new(Batches {
            name: name.to_owned(),
            model: Arc::downgrade(model),
            budget: BatchLimit::of_weight(budget),
            counters: Arc::clone(counters),
        });
        Ok(Self { queue: QueueWorker::start("embed", threads, work, counters)? })
    }

    /// Queues the sequences of a chunk, row by row, for items of this kind. Never blocks.
    pub fn submit(&self, sequences: Vec<Encoded>, kind: OutputKind, chunk: &Arc<Chunk>, lane: Lane) {
        let sequence = |Encoded { ids, second, .. }| QueuedSequence { ids: ids.into(), second, kind };
        self.queue.submit(sequences.into_iter().map(sequence), chunk, lane);
    }

    /// Sequences waiting, not counting those being computed.
    pub fn waiting(&self) -> usize {
        self.queue.waiting()
    }
}

/// Computes the batches of one model.
struct Batches<F> {
    name: String,
    model: Weak<F>,
    budget: BatchLimit,
    counters: Arc<Counters>,
}

impl<F: Forward> Work<Queue<QueuedSequence>> for Batches<F> {
    fn fresh(&self) -> Queue<QueuedSequence> {
        Queue::default()
    }

    fn run(&self, thread: &WorkerThread<'_, Queue<QueuedSequence>>) {
        let mut scratch = BatchBuffers::default();
        while let Some(batch) = next_batch(thread, self.budget, false, &self.counters) {
            for batch in by_kind(batch) {
                let tokens: usize = batch.iter().map(|sequence| sequence.ids.len()).sum();
                let began = Instant::now();
                // A caller that waits keeps the model in memory by its lease, so this fails only when none waits.
                let result = match self.model.upgrade() {
                    Some(model) => scratch.forward(&self.name, &*model, &batch),
                    None => Err(Error::Closed),
                };
                self.counters.note_batch(batch.len(), tokens, result.is_err());
                let waiters = complete(thread, &batch);
                reply(&self.name, &result.map(|()| &scratch.out), &batch, &waiters, began);
            }
        }
    }

    fn abandon(&self, queue: &mut Queue<QueuedSequence>) -> Option<Abandon> {
        abandon(queue)
    }
}

/// The batches of one kind each that a batch consists of: nearly always one.
fn by_kind(batch: Vec<QueuedSequence>) -> Vec<Vec<QueuedSequence>> {
    let mut batches: Vec<Vec<QueuedSequence>> = Vec::new();
    for sequence in batch {
        match batches.iter_mut().find(|batch| batch[0].kind == sequence.kind) {
            Some(batch) => batch.push(sequence),
            None => batches.push(vec![sequence]),
        }
    }
    batches
}

/// Buffers that one batch leaves for the next.
#[derive(Default)]
struct BatchBuffers {
    ids: Vec<u32>,
    offsets: Vec<u32>,
    second_starts: Vec<u32>,
    out: Output,
}

impl BatchBuffers {
    /// Packs and computes a batch of one kind into `self.out`.
    fn forward<F: Forward>(&mut self, name: &str, model: &F, batch: &[QueuedSequence]) -> Result<()> {
        self.ids.clear();
        self.offsets.clear();
        self.second_starts.clear();
        self.offsets.push(0);
        for sequence in batch {
            self.ids.extend_from_slice(&sequence.ids);
            self.offsets.push(self.ids.len() as u32);
            self.second_starts.push(sequence.second);
        }
        let kind = batch.first().map_or(OutputKind::Dense, |sequence| sequence.kind);
        self.out.reset(model.shape(kind)?, batch.len())?;
        let packed = PackedBatch {
            ids: &self.ids,
            offsets: &self.offsets,
            second_starts: &self.second_starts,
            hidden: &[],
        };
        let out = &mut self.out;
        catch_unwind(AssertUnwindSafe(|| model.forward(kind, &packed, out))).unwrap_or_else(|payload| {
            Err(Error::panic(format!("the forward pass of {name}"), payload.as_ref()))
        })
    }
}

/// Delivers every item to the callers that want it. An item that is not finite fails its own callers only.
fn reply(
    name: &str,
    result: &Result<&Output>,
    batch: &[QueuedSequence],
    waiters: &[Vec<Waiter>],
    began: Instant,
) {
    let ended = Instant::now();
    for (row, (sequence, waiters)) in batch.iter().zip(waiters).enumerate() {
        let item = result.as_ref().map_err(Clone::clone).and_then(|out| {
            let item = out.view(row);
            if item.is_finite() { Ok(item) } else { Err(Error::NotFinite { model: name.to_owned() }) }
        });
        for waiter in waiters {
            waiter.chunk.note(TraceStage::Forward, began, ended);
            match &item {
                Ok(item) => waiter.chunk.deliver(waiter.row, *item, sequence.ids.len() as u32),
                Err(error) => waiter.chunk.fail(error.clone()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::super::chunk::{Cancel, ChunkOutput};
    use super::*;
    use crate::output::View;
    use crate::sync::Mutex;

    const PAIRS: Shape = Shape::Dense { width: 2 };

    /// A model whose vector is (first token, length). Token 13 panics, 14 errs, 15 gives NaN; batches are counted,
    /// and each waits for a permit so that tests decide what is in flight.
    struct Fake {
        batches: AtomicUsize,
        gate: Mutex<mpsc::Receiver<()>>,
    }

    impl Forward for Fake {
        fn shape(&self, _: OutputKind) -> Result<Shape> {
            Ok(PAIRS)
        }

        fn forward(&self, _: OutputKind, batch: &PackedBatch<'_>, out: &mut Output) -> Result<()> {
            let Output::Dense(out) = out else { panic!() };
            self.gate.lock().recv().unwrap();
            self.batches.fetch_add(1, Ordering::Relaxed);
            for (row, range) in batch.offsets.windows(2).enumerate() {
                let sequence = &batch.ids[range[0] as usize..range[1] as usize];
                match sequence[0] {
                    13 => panic!("unlucky"),
                    14 => return Err(Error::Input("fourteen".into())),
                    15 => out.row_mut(row)[0] = f32::NAN,
                    first => out.row_mut(row).copy_from_slice(&[first as f32, sequence.len() as f32]),
                }
            }
            Ok(())
        }
    }

    /// The fake's vectors, and the token counts that belong to them.
    fn rows(values: &[f32]) -> ChunkOutput {
        let tokens = values.chunks(2).map(|vector| vector[1] as u32).collect();
        let mut output = Output::new(PAIRS, values.len() / 2).unwrap();
        values.chunks(2).enumerate().for_each(|(row, vector)| output.put(row, View::Dense(vector)));
        ChunkOutput { output, tokens }
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
                batcher: Batcher::start("fake", &model, budget, 1, &counters).unwrap(),
                counters,
                model,
                permits,
            }
        }

        fn permit(&self, batches: usize) {
            (0..batches).for_each(|_| self.permits.send(()).unwrap());
        }

        fn submit(&self, sequences: &[&[u32]], cancel: &Cancel) -> mpsc::Receiver<Result<ChunkOutput>> {
            let (sender, receiver) = mpsc::channel();
            let done = Box::new(move |result| drop(sender.send(result)));
            let chunk = Chunk::new(sequences.len(), PAIRS, cancel.clone(), done, None, None).unwrap();
            let sequences = sequences.iter().map(|s| s.to_vec().into()).collect();
            self.batcher.submit(sequences, OutputKind::Dense, &chunk, Lane::Interactive);
            receiver
        }

        /// Occupies the worker, so that what follows is queued together.
        fn occupy(&self) -> mpsc::Receiver<Result<ChunkOutput>> {
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
        assert_eq!(busy.recv().unwrap(), Ok(rows(&[9.0, 1.0])));
        for (id, reply) in (1..=8).zip(replies) {
            assert_eq!(reply.recv().unwrap(), Ok(rows(&[id as f32, 2.0, id as f32, 1.0])));
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
        assert_eq!(bench.submit(&[&[1]], &Cancel::default()).recv().unwrap(), Ok(rows(&[1.0, 1.0])));
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
        assert_eq!(fine.recv().unwrap(), Ok(rows(&[1.0, 1.0])));
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

    /// Owns a model and its batcher, as a lease does. Says which thread drops it.
    struct Owner {
        batcher: Batcher,
        _model: Arc<Fake>,
        dropped: mpsc::Sender<Option<String>>,
    }

    impl Drop for Owner {
        fn drop(&mut self) {
            self.dropped.send(thread::current().name().map(str::to_owned)).unwrap();
        }
    }

    impl Owner {
        /// Queues a sequence whose chunk keeps the owner.
        fn submit(self: &Arc<Self>, id: u32, cancel: &Cancel) -> mpsc::Receiver<Result<ChunkOutput>> {
            let (sender, receiver) = mpsc::channel();
            let done = Box::new(move |result| drop(sender.send(result)));
            let held = Arc::clone(self) as _;
            let chunk = Chunk::new(1, PAIRS, cancel.clone(), done, None, Some(held)).unwrap();
            self.batcher.submit(vec![vec![id].into()], OutputKind::Dense, &chunk, Lane::Bulk);
            receiver
        }
    }

    #[test]
    fn a_batch_keeps_its_model_after_its_caller_has_left() {
        for queued in [false, true] {
            let Bench { batcher, model, permits, .. } = Bench::new(100);
            let (dropped, drops) = mpsc::channel();
            let owner = Arc::new(Owner { batcher, _model: model, dropped });
            let cancel = Cancel::default();
            let computed = owner.submit(1, &cancel);
            while owner.batcher.waiting() > 0 {
                thread::yield_now();
            }
            let abandoned = queued.then(|| owner.submit(2, &cancel));
            cancel.cancel();
            // Returns while the batch is computed.
            drop(owner);
            assert_eq!(drops.try_recv(), Err(mpsc::TryRecvError::Empty));
            permits.send(()).unwrap();
            assert_eq!(computed.recv().unwrap(), Ok(rows(&[1.0, 1.0])));
            assert_eq!(drops.recv().unwrap().as_deref(), Some("mm-embed"));
            assert!(abandoned.is_none_or(|abandoned| abandoned.recv().is_err()));
        }
    }

    #[test]
    fn a_model_that_is_gone_leaves_nobody_waiting() {
        let Bench { batcher, model, permits, .. } = Bench::new(100);
        drop((model, permits));
        let (sender, receiver) = mpsc::channel();
        let chunk =
            Chunk::new(1, PAIRS, Cancel::default(), Box::new(move |r| drop(sender.send(r))), None, None)
                .unwrap();
        batcher.submit(vec![vec![1].into()], OutputKind::Dense, &chunk, Lane::Bulk);
        assert_eq!(receiver.recv().unwrap(), Err(Error::Closed));
    }

    #[test]
    fn racing_callers_all_get_their_own_rows() {
        const STEPS: usize = if cfg!(miri) { 4 } else { 50 };
        let bench = Bench::new(64);
        // Each call makes two batches at most.
        bench.permit(16 * STEPS * 2);
        thread::scope(|scope| {
            for id in 0..16u32 {
                let bench = &bench;
                scope.spawn(move || {
                    for step in 1..=STEPS {
                        // Half of the sequences are common to all threads.
                        let (own, common) = (vec![100 + id; step], vec![50; step]);
                        let found =
                            bench.submit(&[&own, &common], &Cancel::default()).recv().unwrap().unwrap();
                        let expected = [100.0 + id as f32, step as f32, 50.0, step as f32];
                        assert_eq!(found, rows(&expected));
                    }
                });
            }
        });
    }
}
