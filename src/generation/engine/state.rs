//! What callers and the engine's thread share.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::memory::KvPool;
use super::request::{Completion, Deadline, Event, FinishReason, OnEvent, Request};
use crate::Result;

/// A request that waits for the engine's thread.
pub(super) struct QueuedRequest {
    pub(super) request: Request,
    pub(super) deadline: Option<Deadline>,
    /// Most tokens to write.
    pub(super) budget: usize,
    pub(super) on_event: OnEvent,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) submitted: Instant,
}

/// The queue of an engine.
pub(super) struct RequestQueue {
    pub(super) waiting: VecDeque<QueuedRequest>,
    pub(super) shared: Arc<EngineShared>,
}

/// What an engine shares in addition to its queue, behind locks of its own.
pub(super) struct EngineShared {
    /// Sequences that were begun and have not ended.
    pub(super) active: AtomicUsize,
    pub(super) pool: Arc<KvPool>,
}

impl QueuedRequest {
    /// Ends a request that was never begun.
    pub(super) fn end(self, outcome: Result<Completion>) {
        Listener { on_event: self.on_event, cancelled: self.cancelled }.emit(Event::Done(outcome));
    }

    /// The answer to a request that was given up before it began.
    pub(super) fn never_begun(&self) -> Completion {
        Completion {
            text: String::new(),
            tokens: Vec::new(),
            reason: FinishReason::Cancelled,
            prompt_tokens: self.request.prompt.len(),
            reused_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            seed: None,
            queued: self.submitted.elapsed(),
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        }
    }
}

/// The callback of a request. If it panics, the request is cancelled.
pub(super) struct Listener {
    pub(super) on_event: OnEvent,
    pub(super) cancelled: Arc<AtomicBool>,
}

impl Listener {
    pub(super) fn emit(&mut self, event: Event) {
        if catch_unwind(AssertUnwindSafe(|| (self.on_event)(event))).is_err() {
            log::error!("a callback for generated text panicked; its request is dropped");
            self.cancelled.store(true, Ordering::Release);
            self.on_event = Box::new(|_| ());
        }
    }
}
