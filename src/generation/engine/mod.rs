//! One thread per loaded generator that decodes all its requests together.
//!
//! ```text
//! submit ─ queue ─ admit (cache of a finished request with the same beginning, or a new one)
//!                    └ step: every sequence one token, new ones a part of their prompt ─ sample ─ on_event
//! ```
//! A request joins between two steps and leaves at its end, when it is cancelled, or when its own computation fails;
//! the others do not notice.

mod memory;
mod prefixes;
mod request;
mod sequence;
mod worker;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::sync::{Condvar, Mutex};
use arc_swap::ArcSwap;

pub use self::memory::{Allowance, KvMemory};
use self::memory::{Bound, Pool};
pub use self::request::{Completion, Deadline, Event, FinishReason, OnEvent, PrefixScope, Request};
use super::stop::TextTokens;
use crate::models::decoder::Decoder;
use crate::{Error, Result};

/// How often a waiting caller looks whether it should give up.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// What an engine needs to know beside the model.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// The model's name in errors.
    pub model: String,
    /// Tokens that end a text.
    pub ends: Vec<u32>,
    /// Sequences decoded together.
    pub max_active: usize,
    /// Requests that may wait; more are refused with [`Error::Overloaded`].
    pub max_queue: usize,
    /// Most prompt tokens in one step.
    pub prefill_chunk: usize,
    /// What a step with prompt tokens should take at most: what a long prompt may delay the others by, and how late it
    /// may notice that it was given up.
    pub prefill_time: Duration,
    /// Most tokens of a prompt and its answer; `None`: the model's own limit.
    pub max_context: Option<usize>,
    /// Bytes that keys and values may take, those kept for reuse included.
    pub kv_bytes: u64,
    /// The setting that `kv_bytes` comes from, as messages name it.
    pub kv_setting: &'static str,
    /// Where else keys and values are counted.
    pub kv_memory: Option<Arc<dyn KvMemory>>,
    /// Finished sequences whose caches are kept for prompts that begin alike.
    pub kept_prefixes: usize,
    /// Bytes that those caches may take.
    pub kept_prefix_bytes: u64,
}

impl EngineSettings {
    /// The defaults for a model with these end tokens.
    pub fn new(model: impl Into<String>, ends: Vec<u32>) -> Self {
        Self {
            model: model.into(),
            ends,
            max_active: 16,
            max_queue: 256,
            prefill_chunk: 512,
            prefill_time: Duration::from_millis(250),
            max_context: None,
            kv_bytes: u64::MAX,
            kv_setting: "kv_memory",
            kv_memory: None,
            kept_prefixes: 4,
            kept_prefix_bytes: 256 << 20,
        }
    }
}

/// Totals since the engine started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EngineStats {
    /// Requests accepted.
    pub requests: u64,
    /// Of those, answered to the end (stop or length).
    pub completed: u64,
    /// Given up by their callers.
    pub cancelled: u64,
    /// Ended by an error.
    pub failed: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Of those, found in the cache of an earlier request.
    pub reused_tokens: u64,
    /// Tokens written.
    pub generated_tokens: u64,
    /// Time in forward passes, sampling and callbacks.
    pub busy: Duration,
    /// Being decoded now.
    pub active: usize,
    /// Waiting now.
    pub waiting: usize,
    /// Bytes of the keys and values of requests that are being decoded.
    pub kv_bytes: u64,
    /// Bytes of those kept for reuse.
    pub prefix_bytes: u64,
    /// Bytes that both may take together.
    pub kv_limit: u64,
}

/// The means to give up a request. Dropping it does nothing.
#[derive(Debug, Clone)]
pub struct Ticket {
    cancelled: Arc<AtomicBool>,
    shared: Arc<Shared>,
    process: u32,
}

impl Ticket {
    /// Ends the request before its next token; it is told [`FinishReason::Cancelled`].
    pub fn cancel(&self) {
        self.mark_cancelled();
        if self.process != std::process::id() {
            // The request is the parent process's, and so is the lock.
            return;
        }
        // Under the lock, so that a worker between its look at the queue and its sleep does not miss it.
        let _queue = self.shared.queue.lock();
        self.shared.wake.notify_all();
    }

    /// The same without a lock, for a destructor that may wait for nothing. A request that is being answered ends before
    /// its next token; one that waits in the queue is found when the worker wakes up.
    pub fn mark_cancelled(&self) {
        self.cancelled.store(true, Ordering::Release);
    }
}

/// A request on its way to the worker.
struct Entry {
    request: Request,
    deadline: Option<Deadline>,
    /// Most tokens to write.
    budget: usize,
    on_event: OnEvent,
    cancelled: Arc<AtomicBool>,
    submitted: std::time::Instant,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Entry>,
    closing: bool,
}

/// Memory that is kept only while nobody else needs it.
trait Reclaim {
    /// Gives back `bytes` bytes, or all that there are; how many.
    fn reclaim(&mut self, bytes: u64) -> u64;
}

/// What callers and worker share.
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    stats: Mutex<EngineStats>,
    pool: Arc<Pool>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("stats", &*self.stats.lock()).finish_non_exhaustive()
    }
}

/// The worker of one process. A fork's child has the memory but not the thread.
struct Worker {
    shared: Arc<Shared>,
    prefixes: Arc<Mutex<dyn Reclaim + Send>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    process: u32,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let thread = self.thread.get_mut().take();
        if self.process != std::process::id() {
            // Made before a fork: its locks may be held for ever and its callers are in the other process.
            std::mem::forget((thread, self.shared.clone(), self.prefixes.clone()));
            return;
        }
        self.shared.queue.lock().closing = true;
        self.shared.wake.notify_all();
        // A callback may drop the last handle: a thread cannot wait for itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // A worker catches panics; should it die of one all the same, there is nothing left to wait for.
            let _ = thread.join();
        }
    }
}

/// A running generator. Dropping it ends its requests with [`Error::Closed`] and waits for the step under way: do not
/// hold a lock meanwhile that a callback takes.
pub struct Engine {
    worker: ArcSwap<Worker>,
    spawn: Box<dyn Fn() -> Result<Worker> + Send + Sync>,
    settings: EngineSettings,
    context: Bound,
    vocabulary: usize,
    /// Bytes of keys and values for each token.
    token_bytes: u64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("model", &self.settings.model).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the worker thread.
    ///
    /// # Errors
    /// [`Error::Internal`] when the system gives no thread.
    pub fn start<D: Decoder>(
        decoder: Arc<D>,
        tokens: Arc<TextTokens>,
        settings: EngineSettings,
    ) -> Result<Self> {
        let vocabulary = decoder.vocabulary();
        let context = Bound::of(&*decoder, &settings);
        // Of many tokens, because memory is divided into panels of several.
        let token_bytes = decoder.cache_bytes(1024) / 1024;
        let for_worker = settings.clone();
        let spawn = Box::new(move || {
            let shared = Arc::new(Shared {
                queue: Mutex::default(),
                wake: Condvar::new(),
                stats: Mutex::default(),
                pool: Pool::new(for_worker.kv_bytes, for_worker.kv_memory.clone()),
            });
            let worker =
                worker::Run::new(decoder.clone(), tokens.clone(), for_worker.clone(), shared.clone());
            let prefixes = worker.prefixes();
            let thread =
                std::thread::Builder::new()
                    .name("mm-generate".into())
                    .spawn(move || worker.run())
                    .map_err(|e| Error::Internal { place: "generation".into(), reason: e.to_string() })?;
            Ok(Worker { shared, prefixes, thread: Mutex::new(Some(thread)), process: std::process::id() })
        });
        let worker = ArcSwap::from_pointee(spawn()?);
        Ok(Self { worker, spawn, settings, context, vocabulary, token_bytes })
    }

    /// Most tokens of prompt and answer: the least of the model's own limit and those of the settings.
    pub fn context(&self) -> usize {
        self.context.tokens
    }

    /// Bytes of keys and values for each token of a prompt and its answer.
    pub fn token_bytes(&self) -> u64 {
        self.token_bytes
    }

    /// Forgets beginnings of prompts until `bytes` bytes are free or none is left; how many became free.
    pub fn reclaim(&self, bytes: u64) -> u64 {
        let worker = self.worker.load();
        // The parent's lock may be held by a thread that is not here.
        if worker.process == std::process::id() { worker.prefixes.lock().reclaim(bytes) } else { 0 }
    }

    /// What the engine was started with.
    pub fn settings(&self) -> &EngineSettings {
        &self.settings
    }

    /// Queues a request; its events arrive on the engine's thread.
    ///
    /// # Errors
    /// [`Error::Input`] for wrong parameters or a prompt that cannot be continued, [`Error::Overloaded`] when too
    /// many wait, [`Error::Closed`] while the engine stops. `on_event` is then never called.
    pub fn submit(&self, request: Request, on_event: OnEvent) -> Result<Ticket> {
        request.params.validate()?;
        self.context.check(request.prompt.len())?;
        let budget = request.params.budget(request.prompt.len(), self.context.tokens)?;
        if let Some(token) = request.prompt.iter().find(|&&token| token as usize >= self.vocabulary) {
            return Err(Error::Input(format!(
                "the prompt has token {token} but model {:?} knows only {}",
                self.settings.model, self.vocabulary
            )));
        }
        let shared = self.worker()?.shared.clone();
        let cancelled = Arc::new(AtomicBool::new(false));
        let process = std::process::id();
        let ticket = Ticket { cancelled: cancelled.clone(), shared: shared.clone(), process };
        let submitted = std::time::Instant::now();
        let mut queue = shared.queue.lock();
        if queue.closing {
            return Err(Error::Closed);
        }
        if queue.waiting.len() >= self.settings.max_queue {
            return Err(Error::Overloaded {
                model: self.settings.model.clone(),
                queued: queue.waiting.len(),
                limit: self.settings.max_queue,
                setting: "max_generation_queue",
            });
        }
        let deadline = request.deadline;
        queue.waiting.push_back(Entry { request, deadline, budget, on_event, cancelled, submitted });
        drop(queue);
        shared.stats.lock().requests += 1;
        shared.wake.notify_all();
        Ok(ticket)
    }

    /// The answer as it comes. Dropping the stream cancels the request.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn stream(&self, request: Request) -> Result<Stream> {
        self.stream_holding(request, ())
    }

    /// The same; the engine keeps `held` until it has done with the request, also when the stream is dropped before.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn stream_holding(&self, request: Request, held: impl Send + 'static) -> Result<Stream> {
        let (sender, events) = mpsc::channel();
        let mut held = Some(held);
        let on_event = move |event| {
            if matches!(event, Event::Done(_)) {
                // Before the caller goes on, who may be the other holder.
                drop(held.take());
            }
            // A receiver that has gone cancelled the request already.
            drop(sender.send(event));
        };
        let ticket = self.submit(request, Box::new(on_event))?;
        Ok(Stream { events, ticket, completion: None, over: false })
    }

    /// The whole answer. `check` is called about every 50 ms; an error from it cancels the request and is returned.
    ///
    /// # Errors
    /// As [`submit`](Self::submit), those of `check`, and what went wrong in the computation.
    pub fn generate(&self, request: Request, check: &mut dyn FnMut() -> Result<()>) -> Result<Completion> {
        let mut stream = self.stream(request)?;
        while stream.next(check)?.is_some() {}
        stream.completion.take().ok_or(Error::Cancelled)
    }

    /// Totals and the present state.
    pub fn stats(&self) -> EngineStats {
        let worker = self.worker.load();
        if worker.process != std::process::id() {
            return EngineStats { kv_limit: self.settings.kv_bytes, ..EngineStats::default() };
        }
        let waiting = worker.shared.queue.lock().waiting.len();
        let (kv_bytes, prefix_bytes) = worker.shared.pool.used();
        let kv_limit = self.settings.kv_bytes;
        EngineStats { waiting, kv_bytes, prefix_bytes, kv_limit, ..*worker.shared.stats.lock() }
    }

    /// This process's worker: after a fork a new one.
    fn worker(&self) -> Result<Arc<Worker>> {
        let worker = self.worker.load_full();
        if worker.process == std::process::id() {
            return Ok(worker);
        }
        let fresh = Arc::new((self.spawn)()?);
        // Of several threads that notice at once, one wins; the others' workers end idle.
        let before = self.worker.compare_and_swap(&worker, fresh.clone());
        Ok(if Arc::ptr_eq(&before, &worker) { fresh } else { self.worker.load_full() })
    }
}

/// The pieces of one answer.
#[derive(Debug)]
pub struct Stream {
    events: mpsc::Receiver<Event>,
    ticket: Ticket,
    completion: Option<Completion>,
    over: bool,
}

impl Stream {
    /// The next piece; `None` at the end and ever after, also after an error. `check` is called before each wait and about every 50 ms of it; its error
    /// cancels the request and is returned.
    ///
    /// # Errors
    /// Those of `check`, and what went wrong in the computation.
    pub fn next(&mut self, check: &mut dyn FnMut() -> Result<()>) -> Result<Option<String>> {
        let outcome = if self.over { Ok(None) } else { self.wait(check) };
        if !matches!(outcome, Ok(Some(_))) {
            self.over = true;
        }
        outcome
    }

    fn wait(&mut self, check: &mut dyn FnMut() -> Result<()>) -> Result<Option<String>> {
        loop {
            check().inspect_err(|_| self.ticket.cancel())?;
            match self.events.recv_timeout(CHECK_EVERY) {
                Ok(Event::Piece(piece)) => return Ok(Some(piece)),
                Ok(Event::Done(completion)) => {
                    self.completion = Some(completion?);
                    return Ok(None);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::Internal {
                        place: "generation".into(),
                        reason: "the answer was lost".into(),
                    });
                }
            }
        }
    }

    /// Cancels the request from wherever it is kept.
    pub fn ticket(&self) -> Ticket {
        self.ticket.clone()
    }

    /// Ends the request; [`next`](Self::next) gives what was written until then.
    pub fn cancel(&self) {
        self.ticket.cancel();
    }

    /// Counts, times and the whole text, once [`next`](Self::next) gave `None`.
    pub fn completion(&self) -> Option<&Completion> {
        self.completion.as_ref()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.over {
            self.ticket.cancel();
        }
    }
}

#[cfg(test)]
mod limits_tests;
#[cfg(test)]
mod tests;
