//! One thread per loaded generator that decodes all its requests together.
//!
//! ```text
//! submit ─ queue ─ admit (cache of a finished request with the same beginning, or a new one)
//!                    └ step: every sequence one token, new ones a part of their prompt ─ sample ─ on_event
//! ```
//! A request joins between two steps and leaves at its end, when it is cancelled, or when its own computation fails;
//! the others do not notice.

mod prefixes;
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

use super::GenerationParams;
use super::tokens::TextTokens;
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
    /// Most prompt tokens in one step: what a long prompt may delay the others by.
    pub prefill_chunk: usize,
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
            kept_prefixes: 4,
            kept_prefix_bytes: 256 << 20,
        }
    }
}

/// One text to continue.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// The wishes.
    pub params: GenerationParams,
    /// Whether the answer's text continues the prompt's (its first word keeps a leading space) or stands alone, as in
    /// a chat.
    pub continues: bool,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended the text, or a stop text was written.
    Stop,
    /// The limit of tokens or the model's context was reached.
    Length,
    /// The caller gave up; the text is what was written until then.
    Cancelled,
}

impl FinishReason {
    /// "stop", "length" or "cancelled".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A finished answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// All pieces together.
    pub text: String,
    /// The tokens written, an end token included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub reason: FinishReason,
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// How many of those came from an earlier request's cache.
    pub reused_tokens: usize,
    /// What repeats a sampled answer; `None` for a greedy one.
    pub seed: Option<u64>,
    /// From the request to its first step.
    pub queued: Duration,
    /// From the first step to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

impl Completion {
    /// Tokens a second after the first one; 0 when there are fewer than two.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds = self.decode.as_secs_f64();
        if self.tokens.len() < 2 || seconds == 0.0 { 0.0 } else { (self.tokens.len() - 1) as f64 / seconds }
    }
}

/// What happens to a request, in order: pieces, then one `Done`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// More text; never empty, never half a character, never part of a stop text.
    Piece(String),
    /// The end. Nothing follows.
    Done(Result<Completion>),
}

/// Receives the events of one request on the engine's thread: it must hand over quickly and may not wait for another
/// request of the same engine. If it panics, the request is dropped.
pub type OnEvent = Box<dyn FnMut(Event) + Send>;

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
    /// Bytes of the caches kept for reuse.
    pub prefix_bytes: u64,
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
        self.cancelled.store(true, Ordering::Release);
        if self.process != std::process::id() {
            // The request is the parent process's, and so is the lock.
            return;
        }
        // Under the lock, so that a worker between its look at the queue and its sleep does not miss it.
        let _queue = self.shared.queue.lock();
        self.shared.wake.notify_all();
    }
}

/// A request on its way to the worker.
struct Entry {
    request: Request,
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

/// What callers and worker share.
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    stats: Mutex<EngineStats>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("stats", &*self.stats.lock()).finish_non_exhaustive()
    }
}

/// The worker of one process. A fork's child has the memory but not the thread.
struct Worker {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    process: u32,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let thread = self.thread.get_mut().take();
        if self.process != std::process::id() {
            // Made before a fork: its locks may be held for ever and its callers are in the other process.
            std::mem::forget((thread, self.shared.clone()));
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
    context: usize,
    vocabulary: usize,
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
        let (context, vocabulary) = (decoder.context(), decoder.vocabulary());
        let for_worker = settings.clone();
        let spawn = Box::new(move || {
            let shared =
                Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new(), stats: Mutex::default() });
            let worker =
                worker::Run::new(decoder.clone(), tokens.clone(), for_worker.clone(), shared.clone());
            let thread = std::thread::Builder::new()
                .name("model-manager-generate".into())
                .spawn(move || worker.run())
                .map_err(|e| Error::Internal { place: "generation".into(), reason: e.to_string() })?;
            Ok(Worker { shared, thread: Mutex::new(Some(thread)), process: std::process::id() })
        });
        Ok(Self { worker: ArcSwap::from_pointee(spawn()?), spawn, settings, context, vocabulary })
    }

    /// Most tokens of prompt and answer.
    pub fn context(&self) -> usize {
        self.context
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
        let budget = request.params.budget(request.prompt.len(), self.context)?;
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
            });
        }
        queue.waiting.push_back(Entry { request, budget, on_event, cancelled, submitted });
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
        let (sender, events) = mpsc::channel();
        // A receiver that has gone cancelled the request already.
        let ticket = self.submit(request, Box::new(move |event| drop(sender.send(event))))?;
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
            return EngineStats::default();
        }
        let waiting = worker.shared.queue.lock().waiting.len();
        EngineStats { waiting, ..*worker.shared.stats.lock() }
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

    /// The means to do so from another thread.
    pub fn ticket(&self) -> Ticket {
        self.ticket.clone()
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
mod tests;
