//! The engine's thread: admit, step, retire.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::prefixes::{Prefixes, WORTH_REUSING};
use super::sequence::{Finished, Listener, Sequence};
use super::{Completion, EngineSettings, Entry, Event, FinishReason, Reclaim, Shared};
use crate::compute::memory::try_room;
use crate::generation::stop::TextTokens;
use crate::models::decoder::{Cache, Decoder, Step};
use crate::sync::Mutex;
use crate::{Error, Result};

/// Tokens of a prompt in the first step that has any, before it is known how long they take.
const FIRST_CHUNK: usize = 128;

/// Fewer tokens of prompts in a step would slow a machine that is slow already.
const LEAST_CHUNK: usize = 32;

/// How often the engine looks whether memory that others hold is free.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Everything that the thread owns.
pub(super) struct Run<D: Decoder> {
    decoder: Arc<D>,
    tokens: Arc<TextTokens>,
    settings: EngineSettings,
    shared: Arc<Shared>,
    active: Vec<Sequence<D::Cache>>,
    /// Others than the thread only free them.
    prefixes: Arc<Mutex<Prefixes<D::Cache>>>,
    /// Most tokens of prompts in the next step.
    chunk: usize,
    /// The first in the queue waits for memory that is not this engine's to free.
    waits_for_memory: bool,
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
    /// Of those, tokens of the prompt that delay others.
    prefill: usize,
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
        Self {
            chunk: FIRST_CHUNK.min(settings.prefill_chunk).max(1),
            decoder,
            tokens,
            settings,
            shared,
            active: Vec::new(),
            prefixes: Arc::new(Mutex::new(prefixes)),
            waits_for_memory: false,
            logits: Vec::new(),
        }
    }

    /// What other threads may free.
    pub(super) fn prefixes(&self) -> Arc<Mutex<dyn Reclaim + Send>> {
        Arc::clone(&self.prefixes) as _
    }

    pub(super) fn run(mut self) {
        while self.wait() {
            let started = Instant::now();
            self.dismiss_waiting();
            self.admit_waiting();
            self.retire_given_up();
            self.step();
            let mut stats = self.shared.stats.lock();
            stats.busy += started.elapsed();
            stats.active = self.active.len();
        }
        for sequence in self.active.drain(..) {
            sequence.fail(Error::Closed);
        }
        let waiting = std::mem::take(&mut self.shared.queue.lock().waiting);
        for entry in waiting {
            entry.tell(Err(Error::Closed));
        }
    }

    /// Sleeps while there is nothing to do. False when the engine is closing.
    fn wait(&self) -> bool {
        let mut queue = self.shared.queue.lock();
        while self.active.is_empty() && !queue.closing {
            if queue.waiting.is_empty() {
                queue = self.shared.wake.wait(queue);
            } else if self.waits_for_memory {
                queue = self.shared.wake.wait_until(queue, Instant::now() + LOOK_AGAIN).0;
                break;
            } else {
                break;
            }
        }
        !queue.closing
    }

    /// Ends what was cancelled or became late while it waited, wherever it stands in the queue.
    fn dismiss_waiting(&self) {
        let given_up = |entry: &Entry| {
            entry.cancelled.load(Ordering::Acquire)
                || entry.deadline.is_some_and(|deadline| deadline.is_over())
        };
        let gone: Vec<Entry> = {
            let mut queue = self.shared.queue.lock();
            if !queue.waiting.iter().any(given_up) {
                return;
            }
            let (gone, staying) = queue.waiting.drain(..).partition::<Vec<_>, _>(given_up);
            queue.waiting = staying.into();
            gone
        };
        for entry in gone {
            if entry.cancelled.load(Ordering::Acquire) {
                self.shared.stats.lock().cancelled += 1;
                let completion = never_begun(&entry);
                entry.tell(Ok(completion));
            } else {
                let late = entry.deadline.map_or(Error::Cancelled, |late| late.error(&self.settings.model));
                self.refuse(entry, late);
            }
        }
    }

    /// Lets in whom there is room for, in order of arrival: a large request is not overtaken for ever by small ones.
    fn admit_waiting(&mut self) {
        self.waits_for_memory = false;
        while self.active.len() < self.settings.max_active {
            let Some(entry) = self.shared.queue.lock().waiting.pop_front() else { return };
            if let Err(entry) = self.admit(entry) {
                self.shared.queue.lock().waiting.push_front(*entry);
                self.waits_for_memory = true;
                return;
            }
        }
    }

    /// Starts a request or tells why not. Gives it back when its keys and values have to wait for memory.
    fn admit(&mut self, entry: Entry) -> std::result::Result<(), Box<Entry>> {
        let (prompt, scope) = (&entry.request.prompt, entry.request.scope);
        let capacity = prompt.len() + entry.budget;
        let bytes = self.decoder.cache_bytes(capacity);
        let missing = self.shared.pool.missing(bytes);
        if missing > 0 && missing <= self.shared.pool.used().1 {
            self.prefixes.lock().make_room(missing, scope, prompt);
        }
        // Not under the lock: other engines may be asked for memory, and they ask this one.
        let room = match guarded("memory of a request", || self.shared.pool.take(bytes)) {
            Ok(Some(room)) => room,
            Ok(None) => return Err(Box::new(entry)),
            Err(error) => {
                self.refuse(entry, error);
                return Ok(());
            }
        };
        let cache = guarded("new cache", || {
            let found = self.prefixes.lock().find(scope, prompt, capacity, bytes)?;
            found.map_or_else(|| self.decoder.new_cache(capacity), Ok)
        });
        match cache {
            Ok(cache) => {
                let reused = cache.len();
                let mut stats = self.shared.stats.lock();
                stats.prompt_tokens += prompt.len() as u64;
                stats.reused_tokens += reused as u64;
                drop(stats);
                self.active.push(Sequence::new(entry, cache, room, reused));
            }
            Err(error) => self.refuse(entry, error),
        }
        Ok(())
    }

    fn refuse(&self, entry: Entry, error: Error) {
        self.shared.stats.lock().failed += 1;
        entry.tell(Err(error));
    }

    /// Retires what was cancelled or has become late.
    fn retire_given_up(&mut self) {
        for index in (0..self.active.len()).rev() {
            if self.active[index].cancelled() {
                self.retire(index, Outcome::Goes(FinishReason::Cancelled));
            } else if let Some(late) = self.active[index].late() {
                self.retire(index, Outcome::Fails(late.error(&self.settings.model)));
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
        let started = Instant::now();
        let prefill: usize = shares.iter().map(|share| share.prefill).sum();
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
        self.pace(prefill, started.elapsed());
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

    /// Chooses how much of the prompts the next step reads, from how long the last one took.
    fn pace(&mut self, prefill: usize, took: Duration) {
        let most = self.settings.prefill_chunk.max(1);
        if prefill < LEAST_CHUNK.min(most) {
            return;
        }
        let fitting =
            prefill as f64 * self.settings.prefill_time.as_secs_f64() / took.as_secs_f64().max(1e-9);
        // What a short step says of a long one is rough.
        let next = (fitting as usize).min(2 * prefill.max(self.chunk / 2)) / LEAST_CHUNK * LEAST_CHUNK;
        self.chunk = next.max(LEAST_CHUNK).min(most);
    }

    fn shares(&self) -> Vec<Share> {
        let mut budget = self.chunk;
        let mut shares = Vec::with_capacity(self.active.len());
        for (index, sequence) in self.active.iter().enumerate() {
            let (from, end) = (sequence.cache.len(), sequence.tokens.len());
            let writing = end > sequence.prompt();
            let to = if writing { end } else { end.min(from + budget) };
            let prefill = if writing { 0 } else { to - from };
            budget -= prefill;
            if to > from {
                shares.push(Share { sequence: index, from, to, wanted: to == end, prefill });
            }
        }
        shares
    }

    /// Runs the model over `shares`; their logits start at `row`.
    fn forward(&mut self, shares: &[Share], row: usize) -> Result<()> {
        let width = self.decoder.vocabulary();
        let wanted = shares.iter().filter(|share| share.wanted).count();
        let logits = &mut try_room(&mut self.logits, (row + wanted) * width)?[row * width..];
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
                let finished = sequence.finish(reason, &self.tokens);
                self.keep(finished);
            }
        }
    }

    /// Keeps what a later prompt may begin with, unless that takes memory that requests need.
    fn keep(&self, mut finished: Finished<D::Cache>) {
        let len = finished.cache.len();
        let bytes = self.decoder.cache_bytes(len);
        if len < WORTH_REUSING || self.settings.kept_prefixes == 0 || bytes > self.settings.kept_prefix_bytes
        {
            return;
        }
        if finished.cache.bytes() > bytes {
            // The copy without unused room exists beside the original for a moment.
            let missing = self.shared.pool.missing(bytes);
            if missing > 0 {
                self.prefixes.lock().make_room(missing, finished.scope, &finished.tokens);
            }
            if self.shared.pool.missing(bytes) > 0 || finished.cache.shrink().is_err() {
                return;
            }
        }
        self.prefixes.lock().keep(finished);
    }
}

impl Entry {
    /// Ends a request that was never begun.
    fn tell(self, outcome: Result<Completion>) {
        Listener { on_event: self.on_event, cancelled: self.cancelled }.tell(Event::Done(outcome));
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
