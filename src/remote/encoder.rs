//! The queue of one server's model, and the threads that empty it, one request each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::link::{Failure, Link, Recovery};
use super::protocol::{Answer, shares};
use crate::batching::{Budget, Chunk, Counters, Lane, Queue, Waiter};
use crate::sync::{Condvar, Mutex};
use crate::{Error, Result};

/// Bytes of text of one request at most: some hundred kilobytes parse at once everywhere.
const BATCH_BYTES: usize = 256 << 10;
/// What the server is asked to embed to see that the model is there and how long its vectors are.
const PROBE: &str = "hello";

/// A model that a server runs. Dropping it ends its threads and fails whoever still waits; the server keeps its model.
pub struct RemoteEncoder {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    link: Link,
    width: usize,
    normalizes: bool,
    budget: Budget,
    counters: Arc<Counters>,
    state: Mutex<State>,
    /// Something is queued, or it is closed.
    wake: Condvar,
    /// It is closed: ends pauses between attempts.
    closing: Condvar,
}

struct State {
    queue: Queue<Arc<str>>,
    closed: bool,
    /// Which threads have a request out, whose end nobody can hasten.
    asking: Vec<bool>,
}

impl RemoteEncoder {
    /// Asks the server for one vector, and starts the threads.
    ///
    /// # Errors
    /// [`Error::Remote`], [`Error::ModelNotFound`] and what else the server's answer means; [`Error::Internal`] when the
    /// operating system gives no thread.
    pub fn open(link: Link, counters: &Arc<Counters>) -> Result<Self> {
        let probe = link.embed(&[PROBE], &mut |pause| {
            thread::sleep(pause);
            true
        });
        let Answer { values, width, .. } = probe.map_err(|failure| failure.error)?;
        let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
        let settings = link.settings();
        let shared = Arc::new(Shared {
            link,
            width,
            normalizes: (length - 1.0).abs() < 1e-3,
            budget: Budget { weight: BATCH_BYTES, items: settings.batch },
            counters: Arc::clone(counters),
            state: Mutex::new(State {
                queue: Queue::default(),
                closed: false,
                asking: vec![false; settings.connections],
            }),
            wake: Condvar::new(),
            closing: Condvar::new(),
        });
        // Made first: a thread that cannot be had ends the ones before it.
        let mut encoder = Self { shared, threads: Vec::with_capacity(settings.connections) };
        for number in 0..settings.connections {
            let shared = Arc::clone(&encoder.shared);
            let thread = thread::Builder::new()
                .name(format!("mm-remote-{number}"))
                .spawn(move || shared.run(number))
                .map_err(|error| Error::Internal {
                    place: "a connection thread".into(),
                    reason: error.to_string(),
                })?;
            encoder.threads.push(thread);
        }
        Ok(encoder)
    }

    /// Length of the vectors.
    #[must_use]
    pub fn width(&self) -> usize {
        self.shared.width
    }

    /// Whether the server's vectors have length 1, by the one that it gave first.
    #[must_use]
    pub fn normalizes(&self) -> bool {
        self.shared.normalizes
    }

    /// The way to the server.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.shared.link
    }

    /// Texts of all requests that may be in flight together.
    #[must_use]
    pub fn texts_in_flight(&self) -> usize {
        let settings = self.link().settings();
        settings.connections * settings.batch
    }

    /// Bytes held here; the model itself is elsewhere.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        (size_of::<Self>() + size_of::<Shared>() + size_of::<Link>()) as u64
    }

    /// Queues the texts of a chunk, row by row. Never blocks.
    pub fn submit(&self, texts: Vec<Arc<str>>, chunk: &Arc<Chunk>, lane: Lane) {
        {
            let mut state = self.shared.state.lock();
            if !state.closed {
                let mut joined = 0;
                for (row, text) in texts.into_iter().enumerate() {
                    let waiter = Waiter { chunk: Arc::clone(chunk), row };
                    joined += usize::from(!state.queue.push(text, waiter, lane));
                }
                drop(state);
                self.shared.counters.note_spared(joined, 0);
                self.shared.wake.notify_one();
                return;
            }
        }
        chunk.fail(Error::Closed);
    }

    /// Texts waiting, not counting those asked for.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().queue.len()
    }
}

impl Drop for RemoteEncoder {
    fn drop(&mut self) {
        let (abandoned, asking) = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            (state.queue.drain(), state.asking.clone())
        };
        self.shared.wake.notify_all();
        self.shared.closing.notify_all();
        for waiter in abandoned {
            waiter.chunk.fail(Error::Closed);
        }
        for (thread, asking) in self.threads.drain(..).zip(asking) {
            // A request that nobody waits for any more ends by itself, within its timeout, and its thread with it.
            if !asking && thread.thread().id() != thread::current().id() {
                // The thread catches every panic; there is nothing to learn from its result.
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn run(&self, number: usize) {
        while let Some(batch) = self.next_batch(number) {
            self.serve(number, batch);
        }
    }

    /// Waits for texts, and takes them as those of thread `number`.
    fn next_batch(&self, number: usize) -> Option<Vec<Arc<str>>> {
        let mut state = self.state.lock();
        state.asking[number] = false;
        loop {
            if state.closed {
                return None;
            }
            let (batch, abandoned) = state.queue.next_batch(self.budget);
            self.counters.note_spared(0, abandoned);
            if !batch.is_empty() {
                state.asking[number] = true;
                if !state.queue.is_empty() {
                    // One wake-up may have announced more than one batch.
                    self.wake.notify_one();
                }
                return Some(batch);
            }
            state = self.wake.wait(state);
        }
    }

    /// Gets the vectors of a batch, in several requests where the server does not take it whole.
    fn serve(&self, number: usize, batch: Vec<Arc<str>>) {
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            self.drop_unwanted(&mut part);
            if part.is_empty() {
                continue;
            }
            let outcome =
                catch_unwind(AssertUnwindSafe(|| self.ask(number, &part))).unwrap_or_else(|payload| {
                    let error =
                        Error::panic(format!("a request to {}", self.link.address()), payload.as_ref());
                    Err(Failure { error, remedy: Recovery::Nothing })
                });
            match outcome {
                // Nobody wanted it any more; unless somebody has joined since.
                Err(Failure { error: Error::Cancelled, .. }) => parts.push(part),
                Err(failure) if self.divisible(&part, failure.remedy) => {
                    let second = part.split_off(part.len() / 2);
                    parts.extend([second, part]);
                }
                outcome => self.reply(&part, outcome.map_err(|failure| failure.error)),
            }
        }
    }

    /// Takes out of `part` what nobody waits for any more.
    fn drop_unwanted(&self, part: &mut Vec<Arc<str>>) {
        let before = part.len();
        {
            let mut state = self.state.lock();
            part.retain(|text| {
                let wanted = state.queue.waiters(text).iter().any(|waiter| !waiter.chunk.is_cancelled());
                if !wanted {
                    state.queue.complete(text);
                }
                wanted
            });
        }
        self.counters.note_spared(0, before - part.len());
    }

    fn ask(&self, number: usize, texts: &[Arc<str>]) -> std::result::Result<Answer, Failure> {
        let borrowed: Vec<&str> = texts.iter().map(|text| &**text).collect();
        let answer = self.link.embed(&borrowed, &mut |pause| self.pause(number, texts, pause))?;
        if answer.width == self.width {
            return Ok(answer);
        }
        let reason = format!(
            "its vectors have {} dimensions now, not {}: the model was replaced there. Unload it here, so that it is looked \
             at anew",
            answer.width, self.width
        );
        let error = Error::Remote { server: self.link.address().to_string(), reason };
        Err(Failure { error, remedy: Recovery::Nothing })
    }

    /// Waits before the next attempt; whether there is to be one.
    fn pause(&self, number: usize, texts: &[Arc<str>], pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut state = self.state.lock();
        state.asking[number] = false;
        while !state.closed && Instant::now() < until {
            state = self.closing.wait_until(state, until).0;
        }
        let waiters = |text| state.queue.waiters(text).iter();
        let wanted = texts.iter().any(|text| waiters(text).any(|waiter| !waiter.chunk.is_cancelled()));
        let goes_on = wanted && !state.closed;
        state.asking[number] = goes_on;
        goes_on
    }

    /// Whether a part that failed may fare better in two. Texts of one caller fail together anyway.
    fn divisible(&self, part: &[Arc<str>], remedy: Recovery) -> bool {
        match remedy {
            Recovery::Nothing => false,
            Recovery::SplitBatch => part.len() > 1,
            Recovery::Isolate => {
                let state = self.state.lock();
                let mut all = part.iter().map(|text| state.queue.waiters(text));
                let first = all.next().and_then(|waiters| waiters.first());
                let one = |caller: &Waiter| {
                    all.all(|waiters| waiters.iter().any(|other| Arc::ptr_eq(&other.chunk, &caller.chunk)))
                };
                !first.is_none_or(one)
            }
        }
    }

    /// Hands every row to those who want it.
    fn reply(&self, texts: &[Arc<str>], outcome: Result<Answer>) {
        let tokens = outcome.as_ref().ok().and_then(|answer| answer.tokens).unwrap_or(0);
        self.counters.note_batch(texts.len(), tokens as usize, outcome.is_err());
        let waiters: Vec<Vec<Waiter>> = {
            let mut state = self.state.lock();
            texts.iter().map(|text| state.queue.complete(text)).collect()
        };
        match outcome {
            Ok(answer) => {
                let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
                let tokens = shares(tokens, &lengths);
                let rows = answer.values.chunks_exact(answer.width);
                for ((vector, tokens), waiters) in rows.zip(tokens).zip(waiters) {
                    waiters.iter().for_each(|waiter| waiter.chunk.deliver(waiter.row, vector, tokens));
                }
            }
            Err(error) => {
                waiters.iter().flatten().for_each(|waiter| waiter.chunk.fail(error.clone()));
            }
        }
    }
}
