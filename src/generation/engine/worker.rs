//! The engine's thread: admit, step, retire.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::prefixes::Prefixes;
use super::sequence::{Listener, Sequence};
use super::{Completion, EngineSettings, Entry, Event, FinishReason, Shared};
use crate::generation::tokens::TextTokens;
use crate::models::decoder::{Cache, Decoder, Step};
use crate::{Error, Result};

/// Everything that the thread owns.
pub(super) struct Run<D: Decoder> {
    decoder: Arc<D>,
    tokens: Arc<TextTokens>,
    settings: EngineSettings,
    shared: Arc<Shared>,
    active: Vec<Sequence<D::Cache>>,
    prefixes: Prefixes<D::Cache>,
    logits: Vec<f32>,
}

/// What one sequence contributes to a step.
struct Share {
    sequence: usize,
    /// Tokens in its cache before the step.
    from: usize,
    /// And after it.
    to: usize,
    wanted: bool,
}

/// How a sequence stands after a step.
enum Outcome {
    Goes(FinishReason),
    Fails(Error),
}

impl<D: Decoder> Run<D> {
    pub(super) fn new(
        decoder: Arc<D>,
        tokens: Arc<TextTokens>,
        settings: EngineSettings,
        shared: Arc<Shared>,
    ) -> Self {
        let prefixes = Prefixes::new(settings.kept_prefixes, settings.kept_prefix_bytes);
        Self { decoder, tokens, settings, shared, active: Vec::new(), prefixes, logits: Vec::new() }
    }

    pub(super) fn run(mut self) {
        while let Some(entries) = self.next_entries() {
            let started = Instant::now();
            for entry in entries {
                self.admit(entry);
            }
            self.retire_cancelled();
            self.step();
            let mut stats = self.shared.stats.lock();
            stats.busy += started.elapsed();
            stats.active = self.active.len();
            stats.prefix_bytes = self.prefixes.bytes();
        }
        for sequence in self.active.drain(..) {
            sequence.fail(Error::Closed);
        }
        let waiting = std::mem::take(&mut self.shared.queue.lock().waiting);
        for Entry { on_event, cancelled, .. } in waiting {
            Listener { on_event, cancelled }.tell(Event::Done(Err(Error::Closed)));
        }
    }

    /// What joins now: all that were cancelled while waiting, and as many others as there is room for. Sleeps while
    /// there is nothing to do; `None` when the engine is closing.
    fn next_entries(&self) -> Option<Vec<Entry>> {
        let mut queue = self.shared.queue.lock();
        while queue.waiting.is_empty() && self.active.is_empty() && !queue.closing {
            queue = self.shared.wake.wait(queue);
        }
        if queue.closing {
            return None;
        }
        let mut room = self.settings.max_active.saturating_sub(self.active.len());
        let mut joining = Vec::new();
        let mut staying = std::collections::VecDeque::new();
        for entry in queue.waiting.drain(..) {
            if entry.cancelled.load(Ordering::Acquire) {
                joining.push(entry);
            } else if room > 0 {
                room -= 1;
                joining.push(entry);
            } else {
                staying.push_back(entry);
            }
        }
        queue.waiting = staying;
        Some(joining)
    }

    fn admit(&mut self, entry: Entry) {
        if entry.cancelled.load(Ordering::Acquire) {
            self.shared.stats.lock().cancelled += 1;
            let completion = never_begun(&entry);
            let Entry { on_event, cancelled, .. } = entry;
            Listener { on_event, cancelled }.tell(Event::Done(Ok(completion)));
            return;
        }
        let prompt = &entry.request.prompt;
        let capacity = prompt.len() + entry.budget;
        let cache = guarded("new cache", || match self.prefixes.find(prompt, capacity)? {
            Some(cache) => Ok(cache),
            None => self.decoder.new_cache(capacity),
        });
        match cache {
            Ok(cache) => {
                let reused = cache.len();
                let mut stats = self.shared.stats.lock();
                stats.prompt_tokens += prompt.len() as u64;
                stats.reused_tokens += reused as u64;
                drop(stats);
                self.active.push(Sequence::new(entry, cache, reused));
            }
            Err(error) => {
                self.shared.stats.lock().failed += 1;
                let Entry { on_event, cancelled, .. } = entry;
                Listener { on_event, cancelled }.tell(Event::Done(Err(error)));
            }
        }
    }

    fn retire_cancelled(&mut self) {
        for index in (0..self.active.len()).rev() {
            if self.active[index].cancelled() {
                self.retire(index, Outcome::Goes(FinishReason::Cancelled));
            }
        }
    }

    /// One pass: a token for each sequence that is writing, a part of the prompt for those that are not, in order of
    /// arrival while the budget of prompt tokens lasts.
    fn step(&mut self) {
        let mut shares = self.shares();
        if shares.is_empty() {
            return;
        }
        let width = self.decoder.vocabulary();
        let mut failed: Vec<(usize, Error)> = Vec::new();
        self.logits.resize(shares.iter().filter(|share| share.wanted).count() * width, 0.0);
        if let Err(error) = self.forward(&shares, 0) {
            // One of them is to blame: alone, each answers for itself.
            let mut row = 0;
            let alone = shares.len() == 1;
            shares.retain(|share| {
                self.active[share.sequence].cache.truncate(share.from);
                let outcome =
                    if alone { Err(error.clone()) } else { self.forward(std::slice::from_ref(share), row) };
                match outcome {
                    Ok(()) => row += usize::from(share.wanted),
                    Err(error) => failed.push((share.sequence, error)),
                }
                !failed.iter().any(|(sequence, _)| *sequence == share.sequence)
            });
        }
        let mut outcomes: Vec<(usize, Outcome)> =
            failed.into_iter().map(|(sequence, error)| (sequence, Outcome::Fails(error))).collect();
        let rows = self.logits.chunks_exact_mut(width);
        for (share, logits) in shares.iter().filter(|share| share.wanted).zip(rows) {
            let sequence = &mut self.active[share.sequence];
            let (ends, model) = (&self.settings.ends, self.settings.model.as_str());
            match guarded("sampling", || sequence.advance(logits, ends, &self.tokens, model)) {
                Ok(None) => {}
                Ok(Some(reason)) => outcomes.push((share.sequence, Outcome::Goes(reason))),
                Err(error) => outcomes.push((share.sequence, Outcome::Fails(error))),
            }
        }
        outcomes.sort_by_key(|(sequence, _)| std::cmp::Reverse(*sequence));
        for (sequence, outcome) in outcomes {
            self.retire(sequence, outcome);
        }
    }

    fn shares(&self) -> Vec<Share> {
        let mut budget = self.settings.prefill_chunk.max(1);
        let mut shares = Vec::with_capacity(self.active.len());
        for (index, sequence) in self.active.iter().enumerate() {
            let (from, end) = (sequence.cache.len(), sequence.tokens.len());
            let writing = end > sequence.prompt();
            let to = if writing { end } else { end.min(from + budget) };
            if !writing {
                budget -= to - from;
            }
            if to > from {
                shares.push(Share { sequence: index, from, to, wanted: to == end });
            }
        }
        shares
    }

    /// Runs the model over `shares`; their logits start at `row`.
    fn forward(&mut self, shares: &[Share], row: usize) -> Result<()> {
        let width = self.decoder.vocabulary();
        let wanted = shares.iter().filter(|share| share.wanted).count();
        let logits = &mut self.logits[row * width..(row + wanted) * width];
        let mut next = shares.iter().peekable();
        let mut steps = Vec::with_capacity(shares.len());
        for (index, sequence) in self.active.iter_mut().enumerate() {
            if let Some(share) = next.next_if(|share| share.sequence == index) {
                let tokens = &sequence.tokens[share.from..share.to];
                steps.push(Step { cache: &mut sequence.cache, tokens, wanted: share.wanted });
            }
        }
        guarded("forward pass", || self.decoder.forward(&mut steps, logits))
    }

    fn retire(&mut self, index: usize, outcome: Outcome) {
        // Order is kept: who came first gets its prompt read first.
        let sequence = self.active.remove(index);
        let written = (sequence.tokens.len() - sequence.prompt()) as u64;
        let mut stats = self.shared.stats.lock();
        stats.generated_tokens += written;
        match outcome {
            Outcome::Goes(FinishReason::Cancelled) => stats.cancelled += 1,
            Outcome::Goes(_) => stats.completed += 1,
            Outcome::Fails(_) => stats.failed += 1,
        }
        drop(stats);
        match outcome {
            Outcome::Fails(error) => sequence.fail(error),
            Outcome::Goes(reason) => {
                let (tokens, cache) = sequence.finish(reason, &self.tokens);
                self.prefixes.keep(tokens, cache);
            }
        }
    }
}

/// The answer to a request that was given up before it began.
fn never_begun(entry: &Entry) -> Completion {
    Completion {
        text: String::new(),
        tokens: Vec::new(),
        reason: FinishReason::Cancelled,
        prompt_tokens: entry.request.prompt.len(),
        reused_tokens: 0,
        seed: None,
        queued: entry.submitted.elapsed(),
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
    }
}

/// A panic becomes an error of the request that it happened in.
fn guarded<T>(place: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(Error::panic(place, payload.as_ref())))
}
