//! One answer as its caller sees it: pieces, and the means to cancel it.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

#[cfg(doc)]
use super::request::FinishReason;
use super::request::{Completion, Deadline, Event};
use super::state::RequestQueue;
use crate::sync::Monitor;
use crate::sync::fork::Process;
use crate::{Error, Result};

/// How often a waiting caller checks whether it should give up.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// How long after its deadline an answer is given up by its caller. The engine ends it earlier, unless a callback of
/// another answer holds its thread.
const GRACE: Duration = Duration::from_millis(250);

thread_local! {
    /// The engine whose thread this is.
    static ENGINE: Cell<Option<EngineId>> = const { Cell::new(None) };
}

/// Which engine it is, in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EngineId(u64);

impl EngineId {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// This thread is the engine's.
    pub(super) fn take_thread(self) {
        ENGINE.set(Some(self));
    }

    fn is_here(self) -> bool {
        ENGINE.get() == Some(self)
    }
}

/// The means to give up a request. Dropping it does nothing.
#[derive(Debug, Clone)]
pub struct EngineTicket {
    cancelled: Arc<AtomicBool>,
    monitor: Arc<Monitor<RequestQueue>>,
    engine: EngineId,
}

impl EngineTicket {
    pub(super) fn new(
        cancelled: &Arc<AtomicBool>,
        monitor: Arc<Monitor<RequestQueue>>,
        engine: EngineId,
    ) -> Self {
        Self { cancelled: Arc::clone(cancelled), monitor, engine }
    }

    /// Whether the calling thread is the one that writes the answer: a wait for it here would not end.
    pub fn waits_for_this_thread(&self) -> bool {
        self.engine.is_here()
    }

    /// Ends the request before its next token, with [`FinishReason::Cancelled`].
    pub fn cancel(&self) {
        self.mark_cancelled();
        self.monitor.wake_all();
    }

    /// The same without a lock, for a destructor that must not wait. A request that is being answered ends before its
    /// next token; one that waits in the queue is found when the worker wakes up.
    pub fn mark_cancelled(&self) {
        self.cancelled.store(true, Ordering::Release);
    }
}

/// The pieces of one answer.
#[derive(Debug)]
pub struct Stream {
    events: mpsc::Receiver<Event>,
    ticket: EngineTicket,
    completion: Option<Completion>,
    over: bool,
    /// Where the engine works on the answer. In a child of a fork nothing does.
    process: Process,
    engine: EngineId,
    deadline: Option<Deadline>,
    model: String,
}

impl Stream {
    pub(super) fn new(
        events: mpsc::Receiver<Event>,
        ticket: EngineTicket,
        engine: EngineId,
        deadline: Option<Deadline>,
        model: String,
    ) -> Self {
        let process = Process::current();
        Self { events, ticket, completion: None, over: false, process, engine, deadline, model }
    }

    /// The next piece; `None` at the end and ever after, also after an error. `check` is called before each wait and about
    /// every 50 ms of it; its error cancels the request and is returned.
    ///
    /// # Errors
    /// Those of `check`, what went wrong in the computation, [`Error::Forked`], [`Error::Timeout`] when the deadline is over,
    /// and [`Error::Input`] on the engine's own thread, which would wait for itself.
    pub fn next(&mut self, check: &mut dyn FnMut() -> Result<()>) -> Result<Option<String>> {
        let outcome = if self.over { Ok(None) } else { self.wait(check) };
        if !matches!(outcome, Ok(Some(_))) {
            self.over = true;
        }
        outcome
    }

    fn wait(&mut self, check: &mut dyn FnMut() -> Result<()>) -> Result<Option<String>> {
        if !self.process.is_current() {
            return Err(Error::Forked);
        }
        loop {
            check().inspect_err(|_| self.ticket.cancel())?;
            match self.events.recv_timeout(CHECK_EVERY) {
                Ok(Event::Piece(piece)) => return Ok(Some(piece)),
                Ok(Event::Done(completion)) => {
                    self.completion = Some(completion?);
                    return Ok(None);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if self.engine.is_here() {
                        self.ticket.cancel();
                        return Err(Error::Input(format!(
                            "a callback cannot wait for another answer of model {:?}, which is written after the callback \
                             has returned; use submit_generation, or another thread",
                            self.model
                        )));
                    }
                    if let Some(late) = self.deadline.filter(|deadline| deadline.is_over_by(GRACE)) {
                        // The engine ends the answer by the same deadline, when it comes to it.
                        return Err(late.error(&self.model));
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal("generation", "the answer was lost"));
                }
            }
        }
    }

    /// Cancels the request from wherever it is kept.
    pub fn ticket(&self) -> EngineTicket {
        self.ticket.clone()
    }

    /// Ends the request; [`next`](Self::next) gives what was written until then.
    pub fn cancel(&self) {
        self.ticket.cancel();
    }

    pub(super) fn into_completion(mut self) -> Option<Completion> {
        self.completion.take()
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
