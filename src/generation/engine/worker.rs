//! The work of the engine's thread: admit, step, retire.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::memory::KvPool;
use super::prefixes::{Prefixes, Taken, WORTH_REUSING};
use super::request::FinishReason;
use super::sequence::{Finished, Sequence};
use super::settings::{EngineSettings, GenerationTotals};
use super::state::{EngineShared, QueuedRequest, RequestQueue};
use super::stream::EngineId;
use crate::compute::memory::try_resized;
use crate::generation::stop::TextTokens;
use crate::models::decoder::{Decoder, KvCache, Step};
use crate::sync::{Abandon, Mutex, MutexGuard, Work, WorkerThread};
use crate::{Error, Result};

/// Tokens of a prompt in the first step that has any, before it is known how long they take.
const FIRST_CHUNK: usize = 128;

/// Tokens of an answer that a sequence has memory for when it starts. Most answers to a chat are longer, so that few
/// requests start that are stopped at once.
pub(super) const FIRST_TOKENS: usize = 64;

/// Least tokens of prompts in a step: fewer would make a slow machine slower.
const LEAST_CHUNK: usize = 32;

/// Most rows of a step for tokens that are written and for drafts of them, but for one answer alone: more take longer than
/// they save.
const MOST_DRAFTED_ROWS: usize = 12;

/// How often the engine checks for memory that others may have freed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The work of the engine's thread.
pub(super) struct Decoding<D: Decoder> {
    pub(super) id: EngineId,
    pub(super) decoder: Arc<D>,
    pub(super) tokens: Arc<TextTokens>,
    pub(super) settings: EngineSettings,
}

impl<D: Decoder> Work<RequestQueue> for Decoding<D> {
    fn fresh(&self) -> RequestQueue {
        let pool = KvPool::new(self.settings.kv_bytes, self.settings.kv_memory.clone());
        let shared = Arc::new(EngineShared { active: AtomicUsize::new(0), pool });
        RequestQueue { waiting: VecDeque::new(), shared }
    }

    fn run(&self, thread: &WorkerThread<'_, RequestQueue>) {
        self.id.take_thread();
        Run::new(self, thread).run();
    }

    fn abandon(&self, state: &mut RequestQueue) -> Option<Abandon> {
        let waiting = std::mem::take(&mut state.waiting);
        Some(Box::new(move |error| waiting.into_iter().for_each(|entry| entry.end(Err(error.clone())))))
    }
}

/// Everything that the thread owns.
pub(super) struct Run<'a, D: Decoder> {
    pub(super) work: &'a Decoding<D>,
    thread: &'a WorkerThread<'a, RequestQueue>,
    pub(super) shared: Arc<EngineShared>,
    /// In order of arrival.
    pub(super) active: Vec<Sequence<D::Cache>>,
    /// Sequences that were stopped for want of memory, in order of arrival; all came after the active ones.
    pub(super) paused: VecDeque<Sequence<D::Cache>>,
    /// Other threads only free them.
    pub(super) prefixes: Arc<Mutex<Prefixes<D::Cache>>>,
    /// Most tokens of prompts in the next step.
    pub(super) chunk: usize,
    /// A paused sequence, or the first request in the queue, waits for memory that this engine cannot free.
    pub(super) waits_for_memory: bool,
    logits: Vec<f32>,
}

/// What one sequence contributes to a step.
struct StepShare {
    sequence: usize,
    /// Tokens in its cache before the step.
    from: usize,
    /// And after it.
    to: usize,
    /// Of the tokens between, those of the prompt that delay others.
    prefill: usize,
    /// Rows of logits: one if a token is chosen after the last of them, and one for each token of a draft.
    logits: usize,
}

/// How a sequence ends.
pub(super) enum Outcome {
    Ends(FinishReason),
    Fails(Error),
}

impl<D: Decoder> Drop for Run<'_, D> {
    /// Ends the sequences under way, also when the thread panics.
    fn drop(&mut self) {
        for sequence in self.active.drain(..).chain(self.paused.drain(..)) {
            sequence.fail(Error::Closed);
        }
    }
}

impl<'a, D: Decoder> Run<'a, D> {
    fn new(work: &'a Decoding<D>, thread: &'a WorkerThread<'a, RequestQueue>) -> Self {
        let settings = &work.settings;
        let prefixes = Arc::new(Mutex::new(Prefixes::new(settings.kept_prefixes, settings.kv_bytes)));
        if let Some(memory) = &settings.kv_memory {
            let kept: Weak<Mutex<Prefixes<D::Cache>>> = Arc::downgrade(&prefixes);
            memory.lend(kept);
        }
        let shared = thread.lock().shared.clone();
        Self {
            work,
            thread,
            shared,
            active: Vec::new(),
            paused: VecDeque::new(),
            prefixes,
            chunk: FIRST_CHUNK.min(settings.prefill_chunk).max(1),
            waits_for_memory: false,
            logits: Vec::new(),
        }
    }

    pub(super) fn totals(&self) -> MutexGuard<'_, GenerationTotals> {
        self.work.settings.totals.lock()
    }

    fn run(mut self) {
        while self.wait() {
            let started = Instant::now();
            self.dismiss_waiting();
            self.dismiss_paused();
            self.admit_waiting();
            self.retire_given_up();
            self.lengthen();
            self.grow();
            self.draft();
            self.step();
            self.totals().busy += started.elapsed();
            self.shared.active.store(self.active.len() + self.paused.len(), Ordering::Relaxed);
        }
    }

    /// Sleeps while there is nothing to do. False when the engine stops.
    fn wait(&self) -> bool {
        let mut state = self.thread.lock();
        while self.active.is_empty() && !state.is_stopping() {
            if state.waiting.is_empty() && self.paused.is_empty() {
                state = state.wait();
            } else if self.waits_for_memory {
                state = state.wait_until(Instant::now() + LOOK_AGAIN).0;
                break;
            } else {
                break;
            }
        }
        !state.is_stopping()
    }

    /// Ends requests that were cancelled or became late while they waited, anywhere in the queue.
    fn dismiss_waiting(&self) {
        let given_up = |entry: &QueuedRequest| {
            entry.cancelled.load(Ordering::Acquire)
                || entry.deadline.is_some_and(|deadline| deadline.is_over())
        };
        let gone: Vec<QueuedRequest> = {
            let mut queue = self.thread.lock();
            if !queue.waiting.iter().any(given_up) {
                return;
            }
            let (gone, staying) = queue.waiting.drain(..).partition::<Vec<_>, _>(given_up);
            queue.waiting = staying.into();
            gone
        };
        for entry in gone {
            if entry.cancelled.load(Ordering::Acquire) {
                self.totals().cancelled += 1;
                let completion = entry.never_begun();
                entry.end(Ok(completion));
            } else {
                let late =
                    entry.deadline.map_or(Error::Cancelled, |late| late.error(&self.work.settings.model));
                self.refuse(entry, late);
            }
        }
    }

    /// Admits the requests that memory allows, in order of arrival: small requests do not overtake a large one.
    fn admit_waiting(&mut self) {
        self.waits_for_memory = false;
        if !self.resume_paused() {
            return;
        }
        while self.active.len() < self.work.settings.max_active {
            let Some(entry) = self.thread.lock().waiting.pop_front() else { return };
            if let Err(entry) = self.admit(entry) {
                self.thread.lock().waiting.push_front(*entry);
                self.waits_for_memory = true;
                return;
            }
        }
    }

    /// Starts a request, or ends it with an error. Gives it back when its keys and values have to wait for memory.
    fn admit(&mut self, entry: QueuedRequest) -> std::result::Result<(), Box<QueuedRequest>> {
        let (prompt, scope) = (&entry.request.prompt, entry.request.scope);
        let capacity = prompt.len() + entry.budget.min(FIRST_TOKENS);
        let bytes = self.work.decoder.cache_bytes(capacity);
        let long = is_long(&*self.work.decoder, prompt.len());
        // A conversation that goes on keeps its memory, and needs no more than the rest.
        let missing = self.shared.pool.missing(bytes);
        let taken = self.prefixes.lock().take(scope, prompt, long, bytes, missing);
        let own = taken.as_ref().map_or(0, Taken::bytes);
        let room = match self.take_memory(bytes.saturating_sub(own), scope, prompt) {
            Ok(Some(room)) => room,
            none => {
                if let Some(taken) = taken {
                    self.prefixes.lock().give_back(taken);
                }
                let Err(error) = none else { return Err(Box::new(entry)) };
                self.refuse(entry, error);
                return Ok(());
            }
        };
        let cache = guarded("new cache", || match taken {
            Some(taken) => taken.go_on(capacity, bytes, room).map_err(|failed| {
                let (taken, error) = *failed;
                self.prefixes.lock().give_back(taken);
                error
            }),
            None => {
                let found = self.prefixes.lock().copy(scope, prompt, long, capacity)?;
                let cache = found.map_or_else(|| self.work.decoder.new_cache(capacity), Ok)?;
                Ok((cache, room))
            }
        });
        match cache {
            Ok((cache, room)) => {
                let reused = cache.len();
                let mut totals = self.totals();
                totals.prompt_tokens += prompt.len() as u64;
                totals.reused_tokens += reused as u64;
                drop(totals);
                self.active.push(Sequence::new(entry, cache, room, reused, long, &self.work.tokens));
            }
            Err(error) => self.refuse(entry, error),
        }
        Ok(())
    }

    fn refuse(&self, entry: QueuedRequest, error: Error) {
        self.totals().failed += 1;
        entry.end(Err(error));
    }

    /// Retires sequences that were cancelled or have become late.
    fn retire_given_up(&mut self) {
        for index in (0..self.active.len()).rev() {
            if self.active[index].cancelled() {
                self.retire(index, Outcome::Ends(FinishReason::Cancelled));
            } else if let Some(late) = self.active[index].late() {
                self.retire(index, Outcome::Fails(late.error(&self.work.settings.model)));
            }
        }
    }

    /// Empties the caches of texts that have become long: their positions are others from the first token on.
    fn lengthen(&mut self) {
        for sequence in &mut self.active {
            if !sequence.long && is_long(&*self.work.decoder, sequence.tokens.len()) {
                sequence.cache.truncate(0);
                sequence.long = true;
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
        let width = self.work.decoder.vocabulary();
        let mut failed: Vec<(usize, Error)> = Vec::new();
        let started = Instant::now();
        let prefill: usize = shares.iter().map(|share| share.prefill).sum();
        if let Err(error) = self.forward(&shares, 0) {
            // One of them has failed. Each alone shows which.
            let mut row = 0;
            let alone = shares.len() == 1 && shares[0].logits <= 1;
            shares.retain_mut(|share| {
                // A cache may keep fewer tokens than it had before the step; those are read again.
                let sequence = &mut self.active[share.sequence];
                sequence.forget_draft();
                share.logits = share.logits.min(1);
                sequence.cache.truncate(share.from);
                share.from = sequence.cache.len();
                let outcome =
                    if alone { Err(error.clone()) } else { self.forward(std::slice::from_ref(share), row) };
                match outcome {
                    Ok(()) => row += share.logits,
                    Err(error) => failed.push((share.sequence, error)),
                }
                !failed.iter().any(|(sequence, _)| *sequence == share.sequence)
            });
        }
        self.pace(prefill, started.elapsed());
        let mut outcomes: Vec<(usize, Outcome)> =
            failed.into_iter().map(|(sequence, error)| (sequence, Outcome::Fails(error))).collect();
        let (settings, tokens) = (&self.work.settings, &self.work.tokens);
        let mut rows = self.logits.chunks_exact_mut(width);
        for share in shares.iter().filter(|share| share.logits > 0) {
            let sequence = &mut self.active[share.sequence];
            let logits = &mut rows.by_ref().take(share.logits);
            match guarded("sampling", || sequence.write(logits, settings, tokens)) {
                Ok(None) => {}
                Ok(Some(reason)) => outcomes.push((share.sequence, Outcome::Ends(reason))),
                Err(error) => outcomes.push((share.sequence, Outcome::Fails(error))),
            }
        }
        outcomes.sort_by_key(|(sequence, _)| std::cmp::Reverse(*sequence));
        for (sequence, outcome) in outcomes {
            self.retire(sequence, outcome);
        }
    }

    /// Drafts tokens of the answers that are being written, while the step stays small. Memory is not taken for them.
    fn draft(&mut self) {
        let (decoder, settings) = (&self.work.decoder, &self.work.settings);
        let writing = self.active.iter().filter(|sequence| sequence.is_writing()).count();
        let most = MOST_DRAFTED_ROWS.max(1 + settings.prompt_lookup_tokens);
        let mut rows = most.saturating_sub(writing);
        for sequence in self.active.iter_mut().filter(|sequence| sequence.is_writing()) {
            let length = sequence.tokens.len();
            // Positions of a long text are others from the first on.
            let short = decoder.longest_short_text().filter(|_| !sequence.long).unwrap_or(usize::MAX);
            let most = decoder.context().min(short).saturating_sub(length).min(settings.prompt_lookup_tokens);
            let drafted = sequence.draft(most.min(rows), |count| decoder.cache_bytes(length + count));
            rows -= drafted;
        }
    }

    /// Chooses how many tokens of prompts the next step reads, by the duration of the last one.
    fn pace(&mut self, prefill: usize, took: Duration) {
        let most = self.work.settings.prefill_chunk.max(1);
        if prefill < LEAST_CHUNK.min(most) {
            return;
        }
        let fitting =
            prefill as f64 * self.work.settings.prefill_time.as_secs_f64() / took.as_secs_f64().max(1e-9);
        // A short step predicts a long one only roughly.
        let next = (fitting as usize).min(2 * prefill.max(self.chunk / 2)) / LEAST_CHUNK * LEAST_CHUNK;
        self.chunk = next.max(LEAST_CHUNK).min(most);
    }

    fn shares(&self) -> Vec<StepShare> {
        let mut budget = self.chunk;
        let mut shares = Vec::with_capacity(self.active.len());
        for (index, sequence) in self.active.iter().enumerate() {
            let (from, end) = (sequence.cache.len(), sequence.tokens.len());
            let writing = sequence.is_writing();
            let to = if writing { end } else { end.min(from + budget) };
            let prefill = if writing { 0 } else { to - from };
            budget -= prefill;
            if to > from {
                let logits = if to == end { 1 + sequence.drafted() } else { 0 };
                shares.push(StepShare { sequence: index, from, to, logits, prefill });
            }
        }
        shares
    }

    /// Runs the model over `shares`; their logits start at `row`.
    fn forward(&mut self, shares: &[StepShare], row: usize) -> Result<()> {
        let width = self.work.decoder.vocabulary();
        let wanted: usize = shares.iter().map(|share| share.logits).sum();
        let logits = &mut try_resized(&mut self.logits, (row + wanted) * width)?[row * width..];
        let mut next = shares.iter().peekable();
        let mut steps = Vec::with_capacity(shares.len());
        for (index, sequence) in self.active.iter_mut().enumerate() {
            if let Some(share) = next.next_if(|share| share.sequence == index) {
                let (prompt, length) = (sequence.prompt(), sequence.tokens.len());
                let (cache, tokens) = sequence.parts(share.from..share.to);
                steps.push(Step { cache, tokens, prompt, length, logits: share.logits });
            }
        }
        guarded("forward pass", || self.work.decoder.forward(&mut steps, logits))
    }

    pub(super) fn retire(&mut self, index: usize, outcome: Outcome) {
        // In order of arrival: the first one's prompt is read first.
        let sequence = self.active.remove(index);
        self.end(sequence, outcome);
    }

    pub(super) fn end(&self, sequence: Sequence<D::Cache>, outcome: Outcome) {
        let written = (sequence.tokens.len() - sequence.prompt()) as u64;
        let mut totals = self.totals();
        totals.generated_tokens += written;
        totals.drafted_tokens += sequence.drafts.drafted;
        totals.accepted_tokens += sequence.drafts.accepted;
        match outcome {
            Outcome::Ends(FinishReason::Cancelled) => totals.cancelled += 1,
            Outcome::Ends(_) => totals.completed += 1,
            Outcome::Fails(_) => totals.failed += 1,
        }
        drop(totals);
        match outcome {
            Outcome::Fails(error) => sequence.fail(error),
            Outcome::Ends(reason) => {
                let prompt = sequence.prompt();
                let mut finished = sequence.finish(reason, &self.work.tokens);
                if self.work.decoder.phases_differ() {
                    // A prompt that goes on with the answer reads its tokens, which has other keys and values.
                    finished.cache.truncate(prompt);
                }
                self.keep(finished);
            }
        }
    }

    /// Keeps the cache for later prompts with the same beginning, until requests need its memory.
    fn keep(&self, mut finished: Finished<D::Cache>) {
        let len = finished.cache.len();
        let bytes = self.work.decoder.cache_bytes(len);
        if len < WORTH_REUSING || self.work.settings.kept_prefixes == 0 {
            return;
        }
        // The copy without unused capacity and the original exist at the same time for a moment. Without memory for both, the
        // original stays as it is.
        let copies = finished.cache.bytes() > bytes && self.shared.pool.missing(bytes) == 0;
        if copies && finished.cache.shrink().is_err() {
            return;
        }
        self.prefixes.lock().keep(finished);
    }
}

/// Whether a text of so many tokens has the positions of a long one.
fn is_long(decoder: &impl Decoder, tokens: usize) -> bool {
    decoder.longest_short_text().is_some_and(|longest| tokens > longest)
}

/// A panic becomes an error of the request that it happened in.
pub(super) fn guarded<T>(place: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(Error::panic(place, payload.as_ref())))
}
