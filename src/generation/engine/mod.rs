//! One thread per loaded generator that decodes all its requests together.
//!
//! ```text
//! submit ─ queue ─ admit (cache of a finished request with the same beginning, or a new one)
//!                    └ step: every sequence one token, new ones a part of their prompt ─ sample ─ on_event
//! ```
//! A request joins between two steps. It leaves at its end, when it is cancelled, or when its own computation fails; the
//! other requests go on.

mod bound;
mod growth;
mod lookup;
mod memory;
mod prefixes;
mod request;
mod sequence;
mod settings;
mod state;
mod stream;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use self::bound::Bound;
pub use self::memory::{Allowance, KvMemory, Reclaim};
pub use self::request::{Completion, Deadline, Event, FinishReason, OnEvent, PrefixScope, Request};
pub use self::settings::{EngineSettings, EngineState, GenerationTotals, SharedTotals};
use self::state::{QueuedRequest, RequestQueue};
use self::stream::EngineId;
pub use self::stream::{EngineTicket, Stream};
use super::stop::TextTokens;
use crate::models::decoder::Decoder;
use crate::sync::Worker;
use crate::{Error, Result};

/// A running generator. Dropping it ends its requests with [`Error::Closed`] and waits for the step under way. The caller
/// must not hold a lock that a callback takes.
pub struct Engine {
    id: EngineId,
    worker: Worker<RequestQueue>,
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
    /// [`Error::Internal`] when the operating system provides no thread.
    pub fn start<D: Decoder>(
        decoder: Arc<D>,
        tokens: Arc<TextTokens>,
        settings: EngineSettings,
    ) -> Result<Self> {
        let vocabulary = decoder.vocabulary();
        let context = Bound::of(&*decoder, &settings);
        // Of many tokens, because memory is divided into panels of several.
        let token_bytes = decoder.cache_bytes(1024) / 1024;
        let id = EngineId::new();
        let work = worker::Decoding { id, decoder, tokens, settings: settings.clone() };
        let worker = Worker::new("generate", Arc::new(work));
        worker.start()?;
        Ok(Self { id, worker, settings, context, vocabulary, token_bytes })
    }

    /// Most tokens of prompt and answer: the least of the model's own limit and those of the settings.
    pub fn context(&self) -> usize {
        self.context.tokens
    }

    /// Bytes of keys and values for each token of a prompt and its answer.
    pub fn token_bytes(&self) -> u64 {
        self.token_bytes
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
    pub fn submit(&self, request: Request, on_event: OnEvent) -> Result<EngineTicket> {
        request.params.validate()?;
        self.context.check(request.prompt.len())?;
        let budget = request.params.budget(request.prompt.len(), self.context.tokens)?;
        if let Some(token) = request.prompt.iter().find(|&&token| token as usize >= self.vocabulary) {
            return Err(Error::Input(format!(
                "the prompt has token {token} but model {:?} knows only {}",
                self.settings.model, self.vocabulary
            )));
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        let ticket = EngineTicket::new(&cancelled, self.worker.monitor(), self.id);
        let submitted = std::time::Instant::now();
        self.worker.with(|state| {
            let queued = state.waiting.len();
            if queued >= self.settings.max_queue {
                return Err(Error::Overloaded {
                    model: self.settings.model.clone(),
                    queued,
                    limit: self.settings.max_queue,
                    setting: "max_generation_queue",
                });
            }
            let deadline = request.deadline;
            state.waiting.push_back(QueuedRequest {
                request,
                deadline,
                budget,
                on_event,
                cancelled,
                submitted,
            });
            self.settings.totals.lock().requests += 1;
            Ok(())
        })??;
        Ok(ticket)
    }

    /// The answer as it comes. Dropping the stream cancels the request.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn stream(&self, request: Request) -> Result<Stream> {
        self.stream_holding(request, ())
    }

    /// The same. The engine keeps `held` until the request has ended, also when the stream is dropped before.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn stream_holding(&self, request: Request, held: impl Send + 'static) -> Result<Stream> {
        let (sender, events) = mpsc::channel();
        let mut held = Some(held);
        let on_event = move |event| {
            if matches!(event, Event::Done(_)) {
                // Before the caller gets the event: it may drop the other reference then.
                drop(held.take());
            }
            // A receiver that is dropped has cancelled the request already.
            drop(sender.send(event));
        };
        let deadline = request.deadline;
        let ticket = self.submit(request, Box::new(on_event))?;
        Ok(Stream::new(events, ticket, self.id, deadline, self.settings.model.clone()))
    }

    /// The whole answer. `check` is called about every 50 ms; an error from it cancels the request and is returned.
    ///
    /// # Errors
    /// As [`submit`](Self::submit), those of `check`, and what went wrong in the computation.
    pub fn generate(&self, request: Request, check: &mut dyn FnMut() -> Result<()>) -> Result<Completion> {
        let mut stream = self.stream(request)?;
        while stream.next(check)?.is_some() {}
        stream.into_completion().ok_or(Error::Cancelled)
    }

    /// What engines that count together have done.
    pub fn totals(&self) -> GenerationTotals {
        *self.settings.totals.lock()
    }

    /// What it does now.
    pub fn state(&self) -> EngineState {
        let (waiting, shared) = self.worker.look(|state| (state.waiting.len(), state.shared.clone()));
        let (kv_bytes, prefix_bytes) = shared.pool.used();
        let active = shared.active.load(Ordering::Relaxed);
        EngineState { active, waiting, kv_bytes, prefix_bytes, kv_limit: self.settings.kv_bytes }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.worker.stop();
        self.worker.join(None);
    }
}

#[cfg(test)]
mod limits_tests;
#[cfg(test)]
mod lookup_tests;
#[cfg(test)]
mod reuse_tests;
#[cfg(test)]
mod tests;
