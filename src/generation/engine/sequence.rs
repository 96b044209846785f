//! One request while it is decoded.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::memory::Room;
use super::request::{Completion, Deadline, Event, FinishReason, PrefixScope};
use super::state::{Listener, QueuedRequest};
use crate::Result;
use crate::generation::params::GenerationParams;
use crate::generation::processors::Processors;
use crate::generation::sampler::{self, Sampler};
use crate::generation::stop::{Detokenizer, StopTexts, TextTokens};

/// State from admission to the end.
pub(super) struct Sequence<C> {
    /// Prompt and answer.
    pub(super) tokens: Vec<u32>,
    /// Keys and values of a beginning of `tokens`.
    pub(super) cache: C,
    /// Whether the keys of `cache` have the positions of a long text.
    pub(super) long: bool,
    /// The memory of `cache`, given back after it.
    pub(super) room: Room,
    pub(super) scope: Option<PrefixScope>,
    deadline: Option<Deadline>,
    params: GenerationParams,
    prompt: usize,
    reused: usize,
    budget: usize,
    sampler: Sampler,
    processors: Processors,
    detokenizer: Detokenizer,
    stops: StopTexts,
    /// A stop text was written: the text that is not emitted yet belongs to it.
    stopped: bool,
    text: String,
    listener: Listener,
    queued: Duration,
    admitted: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl<C> Sequence<C> {
    /// Admits a request; the cache has the first `reused` tokens of its prompt.
    pub(super) fn new(
        entry: QueuedRequest,
        cache: C,
        room: Room,
        reused: usize,
        long: bool,
        tokens: &TextTokens,
    ) -> Self {
        let QueuedRequest { request, deadline, budget, on_event, cancelled, submitted } = entry;
        let params = request.params;
        let context: &[u32] = if request.continues { &request.prompt } else { &[] };
        Self {
            detokenizer: Detokenizer::new(tokens, context),
            prompt: request.prompt.len(),
            tokens: request.prompt,
            cache,
            long,
            room,
            scope: request.scope,
            deadline,
            reused,
            budget,
            sampler: if params.samples() { Sampler::seeded(params.seed) } else { Sampler::greedy() },
            processors: Processors::default(),
            stops: StopTexts::new(params.stop.clone()),
            stopped: false,
            params,
            text: String::new(),
            listener: Listener { on_event, cancelled },
            queued: submitted.elapsed(),
            admitted: Instant::now(),
            first: None,
            last: None,
        }
    }

    /// Tokens of the prompt.
    pub(super) fn prompt(&self) -> usize {
        self.prompt
    }

    /// Tokens that the answer may still have.
    pub(super) fn tokens_left(&self) -> usize {
        self.budget - (self.tokens.len() - self.prompt).min(self.budget)
    }

    pub(super) fn cancelled(&self) -> bool {
        self.listener.cancelled.load(Ordering::Acquire)
    }

    /// The deadline, when it is over.
    pub(super) fn late(&self) -> Option<Deadline> {
        self.deadline.filter(Deadline::is_over)
    }

    /// Chooses the next token and emits its text. `Some` when the answer is over.
    ///
    /// # Errors
    /// Damaged logits, parameters that rule out every token.
    pub(super) fn advance(
        &mut self,
        logits: &mut [f32],
        eos_ids: &[u32],
        tokens: &TextTokens,
        model: &str,
    ) -> Result<Option<FinishReason>> {
        sampler::check_finite(logits, model)?;
        let written = self.tokens.len() - self.prompt;
        self.processors.apply(&self.params, &self.tokens, written, eos_ids, logits);
        let token = self.sampler.choose(logits)?;
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.tokens.push(token);
        if eos_ids.contains(&token) {
            return Ok(Some(FinishReason::Stop));
        }
        let piece = self.detokenizer.push(tokens, token)?;
        let released = self.stops.push(&piece);
        self.emit(released.text);
        self.stopped = released.stopped;
        Ok(if self.stopped {
            Some(FinishReason::Stop)
        } else if written + 1 >= self.budget {
            Some(FinishReason::Length)
        } else {
            None
        })
    }

    /// Emits the rest of the text and the end. Returns what a later request may reuse.
    pub(super) fn finish(mut self, reason: FinishReason, tokens: &TextTokens) -> Finished<C> {
        // A character of which a part is missing is not begun when the answer is cancelled.
        let rest =
            if reason == FinishReason::Cancelled { Ok(self.stops.finish()) } else { self.rest(tokens) };
        let outcome = rest.map(|rest| {
            self.emit(rest);
            self.completion(if self.stopped { FinishReason::Stop } else { reason })
        });
        self.listener.emit(Event::Done(outcome));
        Finished {
            scope: self.scope,
            tokens: self.tokens,
            long: self.long,
            cache: self.cache,
            room: self.room,
        }
    }

    /// Emits an error as the end.
    pub(super) fn fail(mut self, error: crate::Error) {
        self.listener.emit(Event::Done(Err(error)));
    }

    fn rest(&mut self, tokens: &TextTokens) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        let last = self.detokenizer.finish(tokens)?;
        let released = self.stops.push(&last);
        self.stopped = released.stopped;
        let pending = if released.stopped { String::new() } else { self.stops.finish() };
        Ok(released.text + &pending)
    }

    fn emit(&mut self, piece: String) {
        if !piece.is_empty() {
            self.text.push_str(&piece);
            self.listener.emit(Event::Piece(piece));
        }
    }

    fn completion(&mut self, reason: FinishReason) -> Completion {
        let first = self.first.unwrap_or(self.admitted);
        Completion {
            text: std::mem::take(&mut self.text),
            tokens: self.tokens[self.prompt..].to_vec(),
            reason,
            prompt_tokens: self.prompt,
            reused_tokens: self.reused,
            seed: self.params.samples().then(|| self.sampler.seed()),
            queued: self.queued,
            prefill: first - self.admitted,
            decode: self.last.unwrap_or(first) - first,
        }
    }
}

/// A sequence that has ended.
pub(super) struct Finished<C> {
    pub(super) scope: Option<PrefixScope>,
    pub(super) tokens: Vec<u32>,
    /// Whether the keys of `cache` have the positions of a long text.
    pub(super) long: bool,
    pub(super) cache: C,
    /// The memory of `cache`, given back after it.
    pub(super) room: Room,
}
