//! One embedding call, from its texts to its matrix.
//!
//! A job looks its texts up in the cache, groups the rest by slot, waits for the slots, then tokenises and queues chunk
//! by chunk: enough to keep the model busy, never so much that a list of a million texts is in memory as tokens.
//! Whoever drives it calls [`Job::step`] when there is something to do: a synchronous caller on its own thread, which
//! waits in between ([`Job::wait`]); an asynchronous call through the manager's [`Front`](super::front::Front).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::core::Core;
use super::entry::{Entry, Known, Resident, Serving};
use super::fork;
use super::front::Task;
use super::options::{EmbedOptions, dimensions, finish};
use crate::batching::{Cancel, Chunk, Lane, Rows};
use crate::cache::{KeyRef, Vector};
use crate::config::Seconds;
use crate::lifecycle::Lease;
use crate::sync::{Condvar, Mutex};
use crate::{Error, Result};

/// Vectors of a call: row-major f32 `[rows, width]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// `rows · width` values.
    pub values: Vec<f32>,
    /// Texts.
    pub rows: usize,
    /// Dimensions; 0 when there were no texts and no model is known yet.
    pub width: usize,
}

/// Whether a job asks the cache, or its caller has just done so.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LookUp {
    Cache,
    Done,
}

/// Called once, from another thread, with a job's result.
pub type OnDone = Box<dyn FnOnce(Result<Matrix>) + Send>;

/// Calls of up to this many texts go before bulk work.
const INTERACTIVE_TEXTS: usize = 16;

/// Texts tokenised between two looks at the queue: some milliseconds of work.
const CHUNK_TEXTS: usize = 64;

/// How often a waiting caller looks for signals of its host.
const CHECK_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Job {
    core: Arc<Core>,
    options: EmbedOptions,
    texts: Vec<String>,
    lane: Lane,
    cancel: Cancel,
    state: Mutex<State>,
    /// Wakes the synchronous caller.
    changed: Condvar,
    /// The asynchronous caller; a synchronous one waits instead.
    on_done: Mutex<Option<OnDone>>,
    asynchronous: bool,
    limit: Option<Limit>,
}

/// When a call's time is over.
#[derive(Clone, Copy)]
struct Limit {
    at: Instant,
    after: Duration,
    /// The configured limit is one for loading only; a caller's own is one for everything.
    load_only: bool,
}

#[derive(Default)]
struct State {
    groups: Vec<Group>,
    out: Vec<f32>,
    width: Option<usize>,
    finished: usize,
    in_flight: usize,
    outcome: Option<Result<()>>,
    /// Something for `step` to do.
    runnable: bool,
}

/// The texts of a job that go to one slot.
struct Group {
    entry: Arc<Entry>,
    lease: Option<Lease<Resident>>,
    /// Text numbers, longest text first: batches are even and the last one is quick.
    order: Vec<usize>,
    next: usize,
    /// Texts still counted in `entry.queued`.
    admitted: usize,
}

impl Group {
    /// Gives up the places of `texts` in the slot's queue.
    fn leave(&mut self, texts: usize) {
        self.admitted -= texts;
        self.entry.queued.fetch_sub(texts, Ordering::Relaxed);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.leave(self.admitted);
    }
}

impl Job {
    /// Routes and looks up all texts, and asks for the slots that are needed. Nothing is computed yet.
    pub(super) fn start(
        core: &Arc<Core>,
        texts: Vec<String>,
        options: EmbedOptions,
        look_up: LookUp,
        on_done: Option<OnDone>,
    ) -> Result<Arc<Self>> {
        let groups = group(core, &texts, options.model.as_deref())?;
        let limit = Limit::of(&options, core);
        let job = Arc::new(Self {
            core: Arc::clone(core),
            lane: if texts.len() <= INTERACTIVE_TEXTS { Lane::Interactive } else { Lane::Bulk },
            options,
            texts,
            cancel: Cancel::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            asynchronous: on_done.is_some(),
            on_done: Mutex::new(on_done),
            limit,
        });
        let mut slots = Vec::new();
        for (entry, texts) in groups {
            if let Some(group) = job.look_up(look_up, entry, texts)? {
                slots.push(group.entry.slot.clone());
                job.state.lock().groups.push(group);
            }
        }
        if slots.is_empty() {
            job.state.lock().outcome = Some(Ok(()));
            job.conclude();
            return Ok(job);
        }
        for (number, slot) in slots.into_iter().enumerate() {
            let waiting = Arc::clone(&job);
            slot.when_ready(Box::new(move |lease| waiting.ready(number, lease)));
        }
        if let (true, Some(limit)) = (job.asynchronous, job.limit) {
            let task: Arc<dyn Task> = Arc::clone(&job) as _;
            core.front().watch(limit.at, &task)?;
        }
        Ok(job)
    }

    /// Gives the call up. True when its caller will not be told any more, false when it has been or is being told.
    pub(super) fn cancel(self: &Arc<Self>) -> bool {
        let cancelled = self.on_done.lock().take().is_some();
        Arc::clone(self).fail(Error::Cancelled);
        cancelled
    }

    pub(super) fn is_done(&self) -> bool {
        self.state.lock().outcome.is_some()
    }

    /// Takes from the cache what is there; the rest makes a group. No texts at all make an empty one, because the shape
    /// of the answer is the model's.
    fn look_up(&self, look_up: LookUp, entry: Arc<Entry>, mut texts: Vec<usize>) -> Result<Option<Group>> {
        let cache = self.core.cache();
        if let Some(known) = entry.known() {
            let dimensions = dimensions(known.width, self.options.truncate_dim)?;
            let prompt = known.prompt(&self.options)?;
            let mut state = self.state.lock();
            // Only what the cache answers settles the width: a model that loads anew may be another one.
            let mut fitted = if texts.is_empty() { state.fit(dimensions, 0) } else { Ok(()) };
            texts.retain(|&text| {
                if look_up == LookUp::Done || fitted.is_err() {
                    return true;
                }
                let Some(vector) = cache.get(&self.key(&known.identity, prompt, text)) else { return true };
                fitted = state.fit(dimensions, self.texts.len());
                if fitted.is_err() {
                    return true;
                }
                state.row(text).copy_from_slice(vector.as_slice());
                state.finished += 1;
                false
            });
            fitted?;
            if texts.is_empty() {
                return Ok(None);
            }
        } else if look_up == LookUp::Cache {
            cache.count_misses(texts.len());
        }
        entry.admit(texts.len(), self.core.settings().max_queue)?;
        texts.sort_by_key(|&text| std::cmp::Reverse(self.texts[text].len()));
        Ok(Some(Group { entry, lease: None, admitted: texts.len(), order: texts, next: 0 }))
    }

    fn key<'a>(&'a self, model: &'a Arc<str>, prompt: &'a str, text: usize) -> KeyRef<'a> {
        self.options.key(model, prompt, &self.texts[text])
    }

    /// A slot is ready, or will not be.
    fn ready(self: Arc<Self>, group: usize, lease: Result<Lease<Resident>>) {
        match lease.and_then(|lease| self.accept(group, lease)) {
            Ok(()) => self.wake(),
            Err(error) => self.fail(error),
        }
    }

    fn accept(&self, group: usize, mut lease: Lease<Resident>) -> Result<()> {
        if let Some(keep_alive) = self.options.keep_alive {
            lease.keep_alive(keep_alive);
        }
        let mut state = self.state.lock();
        if state.outcome.is_some() {
            // Cancelled meanwhile: the lease goes back, after the lock.
            drop(state);
            return Ok(());
        }
        let known = Arc::clone(&lease.serving(&state.groups[group].entry.name)?.known);
        known.prompt(&self.options)?;
        state.fit(dimensions(known.width, self.options.truncate_dim)?, self.texts.len())?;
        state.groups[group].lease = Some(lease);
        if state.finished == self.texts.len() {
            state.outcome = Some(Ok(()));
        }
        state.runnable = true;
        Ok(())
    }

    /// Has whoever drives this job look at it.
    fn wake(self: &Arc<Self>) {
        if self.asynchronous {
            let task: Arc<dyn Task> = Arc::clone(self) as _;
            if let Err(error) = self.core.front().push(task) {
                // No thread could be had: end here, on this one.
                self.end(error);
                self.conclude();
            }
        } else {
            self.changed.notify_all();
        }
    }

    /// Tokenises and queues one more chunk, if the queue wants one. Returns whether there may be more to do.
    fn pump(self: &Arc<Self>) -> Result<bool> {
        let Some((serving, entry, texts)) = self.next_chunk() else { return Ok(false) };
        let Serving { running, known, .. } = serving;
        let prompt = known.prompt(&self.options)?;
        let mut sequences = Vec::with_capacity(texts.len());
        {
            let _computing = fork::computing();
            for &text in &texts {
                sequences.push(running.encoder.tokenize(prompt, &self.texts[text])?);
            }
        }
        let tokens: usize = sequences.iter().map(Vec::len).sum();
        {
            let mut state = self.state.lock();
            state.in_flight += tokens;
        }
        let (job, rows, width) = (Arc::clone(self), texts.len(), known.width);
        let done = Box::new(move |result| job.chunk_done(&entry, &known, &texts, tokens, result));
        let chunk = Chunk::new(rows, width, self.cancel.clone(), done);
        running.batcher.submit(sequences, &chunk, self.lane);
        Ok(true)
    }

    /// The next texts to tokenise, unless enough are in flight.
    fn next_chunk(&self) -> Option<(Serving, Arc<Entry>, Vec<usize>)> {
        let mut state = self.state.lock();
        let window = 3 * self.core.batch_tokens();
        if state.outcome.is_some() || state.in_flight >= window {
            state.runnable = false;
            return None;
        }
        let found = state.groups.iter_mut().find_map(|group| {
            let serving = group.lease.as_ref()?.serving(&group.entry.name).ok()?.clone();
            let texts: Range<usize> = group.next..group.order.len().min(group.next + CHUNK_TEXTS);
            group.next = texts.end;
            (!texts.is_empty()).then(|| (serving, Arc::clone(&group.entry), group.order[texts].to_vec()))
        });
        state.runnable = found.is_some();
        found
    }

    /// On the worker's thread: stores rows, keeps them in the cache, and says so.
    fn chunk_done(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        known: &Known,
        texts: &[usize],
        tokens: usize,
        result: Result<Rows>,
    ) {
        let rows = match result {
            Ok(rows) => rows,
            Err(error) => return Arc::clone(self).fail(error),
        };
        let prompt = known.prompt(&self.options).unwrap_or_default();
        let width = dimensions(known.width, self.options.truncate_dim).unwrap_or(known.width);
        let mut vectors = vec![0.0; texts.len() * width];
        let caching = self.core.settings().cache_size > 0;
        for ((row, out), &text) in
            rows.values.chunks_exact(known.width).zip(vectors.chunks_exact_mut(width)).zip(texts)
        {
            finish(row, self.options.normalize, out);
            if caching {
                self.core.cache().insert(&self.key(&known.identity, prompt, text), Vector::from(&*out));
            }
        }
        {
            let mut state = self.state.lock();
            state.in_flight -= tokens;
            state.finished += texts.len();
            for (out, &text) in vectors.chunks_exact(width).zip(texts) {
                state.row(text).copy_from_slice(out);
            }
            if let Some(group) = state.groups.iter_mut().find(|group| Arc::ptr_eq(&group.entry, entry)) {
                group.leave(texts.len());
            }
            if state.finished == self.texts.len() && state.outcome.is_none() {
                state.outcome = Some(Ok(()));
            }
            state.runnable = true;
        }
        self.wake();
    }

    /// Lets go of the models. Not on a worker's thread: the last lease may free a model.
    fn release(&self) {
        let groups = std::mem::take(&mut self.state.lock().groups);
        drop(groups);
    }

    fn take_result(&self) -> Result<Matrix> {
        let mut state = self.state.lock();
        state.outcome.clone().unwrap_or(Err(Error::Cancelled))?;
        let width = state.width.unwrap_or(0);
        Ok(Matrix { values: std::mem::take(&mut state.out), rows: self.texts.len(), width })
    }

    /// Drives the job on this thread until it is done. `check` is called about every 50 ms; its error ends the wait and
    /// cancels the job. `progress` hears of finished texts: (finished, all).
    pub(super) fn wait(
        self: &Arc<Self>,
        check: &mut dyn FnMut() -> Result<()>,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Matrix> {
        let result = self.drive(check, progress);
        if let Err(error) = &result {
            self.end(error.clone());
        }
        self.release();
        result.and_then(|()| self.take_result())
    }

    fn drive(
        self: &Arc<Self>,
        check: &mut dyn FnMut() -> Result<()>,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        let mut told = 0;
        let mut next_check = Instant::now() + CHECK_EVERY;
        loop {
            let (finished, outcome, runnable) = {
                let state = self.state.lock();
                (state.finished, state.outcome.clone(), state.runnable)
            };
            if finished != told {
                told = finished;
                progress(finished, self.texts.len())?;
            }
            if let Some(outcome) = outcome {
                return outcome;
            }
            if Instant::now() >= next_check {
                check()?;
                next_check = Instant::now() + CHECK_EVERY;
            }
            if let Some(error) = self.overdue() {
                return Err(error);
            }
            if runnable && self.pump()? {
                continue;
            }
            let state = self.state.lock();
            if state.outcome.is_none() && !state.runnable && state.finished == told {
                // A limit that has passed and still lets the call go on was one for loading: it is over.
                let limit = self.limit.map(|limit| limit.at).filter(|at| *at > Instant::now());
                let until = limit.map_or(next_check, |at| at.min(next_check));
                drop(self.changed.wait_until(state, until));
            }
        }
    }

    /// The error of a call whose time is over.
    fn overdue(&self) -> Option<Error> {
        let limit = self.limit.filter(|limit| Instant::now() >= limit.at)?;
        let state = self.state.lock();
        let loading = state.groups.iter().find(|group| group.lease.is_none());
        match loading {
            Some(group) => {
                Some(Error::Timeout { what: format!("model {:?}", group.entry.name), after: limit.after })
            }
            None if limit.load_only => None,
            None => Some(Error::Timeout {
                what: format!("embedding {} texts", self.texts.len()),
                after: limit.after,
            }),
        }
    }

    /// Sets the outcome of a call that has none yet. What is still queued need not be computed.
    fn end(&self, error: Error) -> bool {
        {
            let mut state = self.state.lock();
            if state.outcome.is_some() {
                return false;
            }
            state.outcome = Some(Err(error));
        }
        self.cancel.cancel();
        true
    }

    /// Tells the asynchronous caller, once.
    fn conclude(&self) {
        self.release();
        if let Some(on_done) = self.on_done.lock().take() {
            on_done(self.take_result());
        }
    }
}

impl Task for Job {
    fn step(self: Arc<Self>) {
        if !self.is_done() {
            match self.pump() {
                Ok(true) => return self.wake(), // others take their turn in between
                Ok(false) => {}
                Err(error) => drop(self.end(error)),
            }
        }
        if self.is_done() {
            self.conclude();
        }
    }

    fn expire(self: Arc<Self>) {
        if let Some(error) = self.overdue() {
            self.fail(error);
        }
    }

    fn fail(self: Arc<Self>, error: Error) {
        if self.end(error) {
            self.wake();
        }
    }
}

impl Limit {
    fn of(options: &EmbedOptions, core: &Core) -> Option<Self> {
        let configured = core.settings().load_timeout.map(Seconds::duration);
        let (after, load_only) = match options.timeout {
            Some(timeout) => (timeout, false),
            None => (configured?, true),
        };
        Some(Self { at: Instant::now().checked_add(after)?, after, load_only })
    }
}

impl State {
    /// Makes room for `texts` rows of `width`.
    fn fit(&mut self, width: usize, texts: usize) -> Result<()> {
        match self.width {
            None => {
                self.width = Some(width);
                self.out = vec![0.0; width * texts];
                Ok(())
            }
            Some(known) if known == width => Ok(()),
            Some(known) => Err(Error::Input(format!(
                "these texts go to models of different dimensions ({known} and {width}), which one array cannot hold; \
                 name the model: embed(texts, model=...)"
            ))),
        }
    }

    fn row(&mut self, text: usize) -> &mut [f32] {
        let width = self.width.unwrap_or(0);
        &mut self.out[text * width..(text + 1) * width]
    }
}

/// Text numbers by slot, in order of first appearance.
fn group(core: &Core, texts: &[String], model: Option<&str>) -> Result<Vec<(Arc<Entry>, Vec<usize>)>> {
    if let Some(name) = model {
        return Ok(vec![(core.entry(name)?, (0..texts.len()).collect())]);
    }
    if texts.is_empty() {
        return Ok(vec![(core.entry(core.preferred())?, Vec::new())]);
    }
    let mut groups: Vec<(Arc<Entry>, Vec<usize>)> = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        let name = core.route(text);
        match groups.iter_mut().find(|(entry, _)| entry.name == name) {
            Some((_, order)) => order.push(number),
            None => groups.push((core.entry(name)?, vec![number])),
        }
    }
    Ok(groups)
}
