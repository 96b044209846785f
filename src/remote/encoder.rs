//! The queue of one server's model, and the threads that empty it with one request each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::link::{Callers, Failure, Link, PROBE, Recovery};
use super::protocol::{Answer, shares};
use crate::batching::{
    BatchLimit, Chunk, Counters, Lane, Queue, QueueWorker, Waiter, abandon, complete, next_batch,
};
use crate::output::{Shape, View};
use crate::sync::{Abandon, StopFlag, Work, WorkerThread};
use crate::trace::{Trace, TraceStage};
use crate::{Error, Result};

/// Bytes of text of one request at most: some hundred kilobytes parse at once everywhere.
const BATCH_BYTES: usize = 256 << 10;

/// A model that a server runs. Dropping it ends its threads and fails callers that still wait; the server keeps its model.
pub struct RemoteEncoder {
    queue: QueueWorker<Arc<str>>,
    asking: Arc<Asking>,
}

/// What the connection threads share.
struct Asking {
    link: Link,
    width: usize,
    normalizes: bool,
    budget: BatchLimit,
    counters: Arc<Counters>,
}

type Thread<'a> = WorkerThread<'a, Queue<Arc<str>>>;

impl RemoteEncoder {
    /// Asks the server for one vector, and starts the threads. `closing` ends the pauses between attempts.
    ///
    /// # Errors
    /// [`Error::Remote`], [`Error::ModelNotFound`] and what else the server's answer means; [`Error::Closed`] when `closing`
    /// is raised before the vector is there; [`Error::Internal`] when the operating system provides no thread.
    pub fn open(link: Link, counters: &Arc<Counters>, closing: &StopFlag) -> Result<Self> {
        if closing.is_raised() {
            return Err(Error::Closed);
        }
        let answer =
            link.embed(&[PROBE], None, &mut LoadCaller(closing)).map_err(|failure| match failure.error {
                Error::Cancelled => Error::Closed,
                error => error,
            })?;
        let rows: std::result::Result<Vec<_>, _> = answer.rows.into_iter().collect();
        let probe = rows.map_err(|defect| link.defective(defect))?.concat();
        let length = probe.iter().map(|value| value * value).sum::<f32>().sqrt();
        let settings = link.settings();
        let asking = Arc::new(Asking {
            link,
            width: probe.len(),
            normalizes: (length - 1.0).abs() < 1e-3,
            budget: BatchLimit { weight: BATCH_BYTES, items: settings.batch },
            counters: Arc::clone(counters),
        });
        let queue = QueueWorker::start("remote", settings.connections, Arc::clone(&asking) as _, counters)?;
        Ok(Self { queue, asking })
    }

    /// The shape of its results: both protocols have vectors only.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape::Dense { width: self.asking.width }
    }

    /// Whether the server's vectors have length 1, by the one that it gave first.
    #[must_use]
    pub fn normalizes(&self) -> bool {
        self.asking.normalizes
    }

    /// The connection to the server.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.asking.link
    }

    /// Texts of all requests that may be in flight together.
    #[must_use]
    pub fn texts_in_flight(&self) -> usize {
        let settings = self.link().settings();
        settings.connections * settings.batch
    }

    /// Bytes in this process; the model itself is on the server.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        (size_of::<Self>() + size_of::<Asking>() + size_of::<Link>()) as u64
    }

    /// Queues the texts of a chunk, row by row. Never blocks.
    pub fn submit(&self, texts: Vec<Arc<str>>, chunk: &Arc<Chunk>, lane: Lane) {
        self.queue.submit(texts.into_iter(), chunk, lane);
    }

    /// Texts waiting, not counting those in requests.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.waiting()
    }
}

impl Work<Queue<Arc<str>>> for Asking {
    fn fresh(&self) -> Queue<Arc<str>> {
        Queue::default()
    }

    fn run(&self, thread: &Thread<'_>) {
        // A request cannot be interrupted. One without callers ends within its timeout, and its thread with it.
        while let Some(batch) = next_batch(thread, self.budget, true, &self.counters) {
            self.serve(thread, batch);
        }
    }

    fn abandon(&self, queue: &mut Queue<Arc<str>>) -> Option<Abandon> {
        abandon(queue)
    }
}

impl Asking {
    /// Gets the vectors of a batch, in several requests where the server does not take it whole.
    fn serve(&self, thread: &Thread<'_>, batch: Vec<Arc<str>>) {
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            if thread.lock().is_stopping() {
                // Whoever closes the queue fails the callers that still wait; nothing more is sent for them.
                return;
            }
            self.drop_unwanted(thread, &mut part);
            if part.is_empty() {
                continue;
            }
            let began = Instant::now();
            let outcome =
                catch_unwind(AssertUnwindSafe(|| self.ask(thread, &part))).unwrap_or_else(|payload| {
                    let error =
                        Error::panic(format!("a request to {}", self.link.address()), payload.as_ref());
                    Err(Failure { error, remedy: Recovery::Nothing })
                });
            match outcome {
                // No caller wanted it any more; one may have joined since.
                Err(Failure { error: Error::Cancelled, .. }) => parts.push(part),
                Err(failure) if divisible(thread, &part, failure.remedy) => {
                    let second = part.split_off(part.len() / 2);
                    parts.extend([second, part]);
                }
                outcome => self.reply(thread, &part, outcome.map_err(|failure| failure.error), began),
            }
        }
    }

    /// Takes texts without a waiting caller out of `part`.
    fn drop_unwanted(&self, thread: &Thread<'_>, part: &mut Vec<Arc<str>>) {
        let mut left = Vec::new();
        {
            let mut queue = thread.lock();
            part.retain(|text| {
                let wanted = is_wanted(&queue, text);
                if !wanted {
                    left.push(queue.complete(text));
                }
                wanted
            });
        }
        self.counters.note_spared(0, left.len());
    }

    fn ask(&self, thread: &Thread<'_>, texts: &[Arc<str>]) -> std::result::Result<Answer, Failure> {
        let borrowed: Vec<&str> = texts.iter().map(|text| &**text).collect();
        let trace = trace_of(thread, texts);
        let answer = self.link.embed(&borrowed, trace.as_deref(), &mut Batch { thread, texts })?;
        let Some(width) = answer.width().filter(|width| *width != self.width) else { return Ok(answer) };
        let reason = format!(
            "its vectors have {width} dimensions now, not {}: the model was replaced there. Unload it here, so \
             that it is loaded again",
            self.width
        );
        // Another attempt gets the same.
        let error = Error::RemoteRefused { server: self.link.address().to_string(), reason };
        Err(Failure { error, remedy: Recovery::Nothing })
    }

    /// Delivers every row to the callers that want it. A row that is none fails its own callers only.
    fn reply(&self, thread: &Thread<'_>, texts: &[Arc<str>], outcome: Result<Answer>, began: Instant) {
        let ended = Instant::now();
        let tokens = outcome.as_ref().ok().and_then(|answer| answer.tokens).unwrap_or(0);
        self.counters.note_batch(texts.len(), tokens as usize, outcome.is_err());
        let waiters = complete(thread, texts);
        waiters.iter().flatten().for_each(|waiter| waiter.chunk.note(TraceStage::Remote, began, ended));
        match outcome {
            Ok(answer) => {
                let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
                let tokens = shares(tokens, &lengths);
                for ((row, tokens), waiters) in answer.rows.into_iter().zip(tokens).zip(waiters) {
                    let row = row.map_err(|defect| self.link.defective(defect));
                    for waiter in waiters {
                        match &row {
                            Ok(vector) => waiter.chunk.deliver(waiter.row, View::Dense(vector), tokens),
                            Err(error) => waiter.chunk.fail(error.clone()),
                        }
                    }
                }
            }
            Err(error) => {
                waiters.iter().flatten().for_each(|waiter| waiter.chunk.fail(error.clone()));
            }
        }
    }
}

/// The trace that a request for `texts` belongs to: that of the first caller who has one.
fn trace_of(thread: &Thread<'_>, texts: &[Arc<str>]) -> Option<Arc<Trace>> {
    let queue = thread.lock();
    let mut waiters = texts.iter().flat_map(|text| queue.waiters(text));
    waiters.find_map(|waiter| waiter.chunk.trace().cloned())
}

/// Whether a caller still waits for `text`.
fn is_wanted(queue: &Queue<Arc<str>>, text: &Arc<str>) -> bool {
    queue.waiters(text).iter().any(|waiter| !waiter.chunk.is_cancelled())
}

/// The load of a model, as the only caller of its one request.
struct LoadCaller<'a>(&'a StopFlag);

impl Callers for LoadCaller<'_> {
    fn pause(&mut self, pause: Duration) -> bool {
        self.0.pause(pause)
    }

    fn divisible(&self, _: Recovery) -> bool {
        false
    }
}

/// The callers of a batch.
struct Batch<'a> {
    thread: &'a Thread<'a>,
    texts: &'a [Arc<str>],
}

impl Callers for Batch<'_> {
    fn pause(&mut self, pause: Duration) -> bool {
        let mut queue = self.thread.lock();
        queue.set_away(false);
        queue = queue.pause_until(Instant::now() + pause);
        let goes_on = !queue.is_stopping() && self.texts.iter().any(|text| is_wanted(&queue, text));
        queue.set_away(goes_on);
        goes_on
    }

    fn divisible(&self, remedy: Recovery) -> bool {
        divisible(self.thread, self.texts, remedy)
    }
}

/// Whether the two halves of a part that failed may succeed. Texts of one caller fail together anyway.
fn divisible(thread: &Thread<'_>, part: &[Arc<str>], remedy: Recovery) -> bool {
    match remedy {
        Recovery::Nothing => false,
        Recovery::SplitBatch => part.len() > 1,
        Recovery::Isolate => {
            let queue = thread.lock();
            let mut all = part.iter().map(|text| queue.waiters(text));
            let first = all.next().and_then(|waiters| waiters.first());
            let one = |caller: &Waiter| {
                all.all(|waiters| waiters.iter().any(|other| Arc::ptr_eq(&other.chunk, &caller.chunk)))
            };
            !first.is_none_or(one)
        }
    }
}
