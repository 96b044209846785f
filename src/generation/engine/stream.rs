//! One answer as its caller sees it: pieces, and the means to cancel it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

#[cfg(doc)]
use super::request::FinishReason;
use super::request::{Completion, Event};
use super::state::RequestQueue;
use crate::sync::Monitor;
use crate::sync::fork::Process;
use crate::{Error, Result};

/// How often a waiting caller checks whether it should give up.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// The means to give up a request. Dropping it does nothing.
#[derive(Debug, Clone)]
pub struct EngineTicket {
    cancelled: Arc<AtomicBool>,
    monitor: Arc<Monitor<RequestQueue>>,
}

impl EngineTicket {
    pub(super) fn new(cancelled: &Arc<AtomicBool>, monitor: Arc<Monitor<RequestQueue>>) -> Self {
        Self { cancelled: Arc::clone(cancelled), monitor }
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
}

impl Stream {
    pub(super) fn new(events: mpsc::Receiver<Event>, ticket: EngineTicket) -> Self {
        Self { events, ticket, completion: None, over: false, process: Process::current() }
    }

    /// The next piece; `None` at the end and ever after, also after an error. `check` is called before each wait and about
    /// every 50 ms of it; its error cancels the request and is returned.
    ///
    /// # Errors
    /// Those of `check`, what went wrong in the computation, and [`Error::Forked`].
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
                Err(mpsc::RecvTimeoutError::Timeout) => {}
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
