//! One request while it is decoded.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::lookup::PromptLookup;
use super::memory::Room;
use super::request::{Completion, Deadline, Event, FinishReason, PrefixScope};
use super::settings::EngineSettings;
use super::state::{Listener, QueuedRequest};
use crate::Result;
use crate::generation::params::GenerationParams;
use crate::generation::processors::{Processors, rule_out};
use crate::generation::sampler::{self, Sampler};
use crate::generation::stop::{Detokenizer, StopTexts, TextTokens};
use crate::models::decoder::KvCache;

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
    /// What came of its drafts.
    pub(super) drafts: DraftCounts,
    lookup: PromptLookup,
    /// The last of `tokens` and a draft of those after it; empty without a draft.
    ahead: Vec<u32>,
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

/// Tokens of drafts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DraftCounts {
    pub(super) drafted: u64,
    /// Of those, tokens that were chosen.
    pub(super) accepted: u64,
}

impl<C: KvCache> Sequence<C> {
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
            drafts: DraftCounts::default(),
            lookup: PromptLookup::default(),
            ahead: Vec::new(),
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

    /// Whether its next step computes the last token of the answer alone. A sequence that was paused reads its own answer again.
    pub(super) fn is_writing(&self) -> bool {
        self.tokens.len() > self.prompt && self.tokens.len() - self.cache.len() == 1
    }

    /// Drafts the tokens after the last, at most `most`, if its memory holds what `bytes` says of so many. Returns their number.
    pub(super) fn draft(&mut self, most: usize, bytes: impl Fn(usize) -> u64) -> usize {
        self.ahead.clear();
        // The last token of an answer is chosen after the logits of a token that stays.
        let most = most.min(self.tokens_left().saturating_sub(1)).min(self.cache.most_drafted());
        if most > 0 {
            self.ahead.extend(self.tokens.last());
            self.lookup.draft(&self.tokens, most, &mut self.ahead);
            if self.drafted() == 0 || bytes(self.drafted()) > self.room.bytes() {
                self.ahead.clear();
            }
        }
        self.drafted()
    }

    /// Tokens of the draft.
    pub(super) fn drafted(&self) -> usize {
        self.ahead.len().saturating_sub(1)
    }

    pub(super) fn forget_draft(&mut self) {
        self.ahead.clear();
    }

    /// The cache, and the tokens that a step appends: those of `range`, or the last one and its draft.
    pub(super) fn parts(&mut self, range: Range<usize>) -> (&mut C, &[u32]) {
        (&mut self.cache, if self.ahead.is_empty() { &self.tokens[range] } else { &self.ahead })
    }

    pub(super) fn cancelled(&self) -> bool {
        self.listener.cancelled.load(Ordering::Acquire)
    }

    /// The deadline, when it is over.
    pub(super) fn late(&self) -> Option<Deadline> {
        self.deadline.filter(Deadline::is_over)
    }

    /// Chooses the tokens after the last one and after each drafted one, for as long as the draft is right. `rows` are their
    /// logits. `Some` when the answer is over.
    ///
    /// # Errors
    /// Damaged logits, parameters that rule out every token.
    pub(super) fn write<'l>(
        &mut self,
        mut rows: impl Iterator<Item = &'l mut [f32]>,
        settings: &EngineSettings,
        tokens: &TextTokens,
    ) -> Result<Option<FinishReason>> {
        let (drafted, mut right) = (self.drafted(), 0);
        let outcome = loop {
            let Some(logits) = rows.next() else { break Ok(None) };
            let outcome = self.advance(logits, settings, tokens);
            let is_right = right < drafted && self.tokens.last() == self.ahead.get(right + 1);
            right += usize::from(is_right);
            if !is_right || !matches!(outcome, Ok(None)) || self.cancelled() {
                break outcome;
            }
        };
        // Those after a wrong token.
        rows.for_each(drop);
        if drafted > 0 {
            self.lookup.learn(drafted, right);
            self.drafts.drafted += drafted as u64;
            self.drafts.accepted += right as u64;
            self.ahead.clear();
            self.cache.truncate(self.tokens.len() - 1);
        }
        outcome
    }

    /// Chooses the next token and emits its text. `Some` when the answer is over.
    ///
    /// # Errors
    /// Damaged logits, parameters that rule out every token.
    fn advance(
        &mut self,
        logits: &mut [f32],
        settings: &EngineSettings,
        tokens: &TextTokens,
    ) -> Result<Option<FinishReason>> {
        let eos_ids = &settings.eos_ids;
        sampler::check_finite(logits, &settings.model)?;
        let written = self.tokens.len() - self.prompt;
        rule_out(&settings.suppressed_ids, logits);
        self.processors.apply(&self.params, &self.tokens, written, eos_ids, logits);
        let token = self.sampler.choose(logits)?;
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.tokens.push(token);
        if eos_ids.contains(&token) || tokens.is_stop_token(token, &self.params.stop) {
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
            drafted_tokens: self.drafts.drafted,
            accepted_tokens: self.drafts.accepted,
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
