//! Text generation through a slot: the same lifecycle as an embedding model, another kind of work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::dispatcher::{Dispatcher, Timed};
use super::super::model::LoadedModel;
use super::super::options::Check;
use super::super::registry::Registry;
use super::super::spec::GENERATOR;
use crate::chat::Conversation;
use crate::generation::{
    Completion, Deadline, EngineTicket, Event, GenerationParams, Generator, OnEvent, PrefixScope, Prompt,
    RequestTerms, Stream,
};
use crate::lifecycle::{KeepAlive, Lease, State};
use crate::sync::{Mutex, fork};
use crate::trace::{Trace, TraceStage, step};
use crate::{Error, Result};

/// What to continue, owned: it outlives the call that gave it.
#[derive(Debug, Clone)]
pub enum OwnedPrompt {
    /// A text; the answer continues it.
    Text(String),
    /// Token ids of the model's own vocabulary; the answer continues them.
    Tokens(Vec<u32>),
    /// A conversation; the answer is the assistant's next turn.
    Chat(Conversation),
}

impl OwnedPrompt {
    fn borrow(&self) -> Prompt<'_> {
        match self {
            Self::Text(text) => Prompt::Text(text),
            Self::Tokens(ids) => Prompt::Tokens(ids),
            Self::Chat(conversation) => Prompt::Chat(conversation),
        }
    }
}

/// Options of one generation that concern the slot, not the text.
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// Slot; `None`: `text_generator`.
    pub model: Option<String>,
    /// For everything: loading, waiting in the queue, reading the prompt, writing. `None`: as configured for the load,
    /// without limit for the rest.
    pub timeout: Option<Duration>,
    /// Replaces the slot's for this use.
    pub keep_alive: Option<KeepAlive>,
    /// Requests of the same scope may reuse the computation of this prompt's beginning; `None`: requests without a scope.
    pub prefix_scope: Option<PrefixScope>,
    /// On whose behalf: habits of this user's go first when a model is loaded ahead of its use. Only a hash is kept.
    pub user: Option<String>,
    /// What the call spends its time on, if its caller wants to know.
    pub trace: Option<Arc<Trace>>,
}

impl GenerateOptions {
    /// The slot's name.
    fn slot(&self) -> &str {
        self.model.as_deref().unwrap_or(GENERATOR)
    }

    /// The terms of a request that is made now.
    fn terms(&self) -> RequestTerms {
        RequestTerms { scope: self.prefix_scope, deadline: self.timeout.and_then(Deadline::after) }
    }
}

/// A loaded generator, kept in memory while this exists.
pub struct GeneratorLease {
    lease: Lease<LoadedModel>,
    /// The slot's name.
    slot: String,
}

impl GeneratorLease {
    fn new(mut lease: Lease<LoadedModel>, slot: &str, keep_alive: Option<KeepAlive>) -> Result<Self> {
        lease.generator(slot)?;
        if let Some(keep_alive) = keep_alive {
            lease.keep_alive(keep_alive);
        }
        Ok(Self { lease, slot: slot.to_owned() })
    }

    /// The generator.
    ///
    /// # Errors
    /// None in practice: checked at construction.
    pub fn generator(&self) -> Result<&Generator> {
        self.lease.generator(&self.slot)
    }
}

/// The pieces of one answer; keeps its model in memory.
pub struct TextStream {
    // Before the lease: the request ends first.
    stream: Stream,
    _lease: Arc<GeneratorLease>,
}

impl TextStream {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// Those of `check`, and what went wrong in the computation.
    pub fn next(&mut self, check: Check<'_>) -> Result<Option<String>> {
        self.stream.next(check)
    }

    /// The means to end the answer within one token, also while another thread waits in [`TextStream::next`].
    pub fn ticket(&self) -> EngineTicket {
        self.stream.ticket()
    }

    /// The whole answer and its figures, once [`TextStream::next`] gave `None`.
    pub fn completion(&self) -> Option<&Completion> {
        self.stream.completion()
    }
}

/// An asynchronous generation: first its model loads, then it runs.
#[derive(Clone, Default)]
pub struct GenerationTicket(Arc<Mutex<Stage>>);

#[derive(Default)]
enum Stage {
    #[default]
    Loading,
    Running(EngineTicket),
    Cancelled,
}

impl GenerationTicket {
    /// Ends the generation within one token, or before it starts.
    pub fn cancel(&self) {
        let running = std::mem::replace(&mut *self.0.lock(), Stage::Cancelled);
        if let Stage::Running(ticket) = running {
            ticket.cancel();
        }
    }

    /// Whether the calling thread is the one that writes the answer: a wait for it here would not end.
    pub fn waits_for_this_thread(&self) -> bool {
        matches!(&*self.0.lock(), Stage::Running(ticket) if ticket.waits_for_this_thread())
    }

    fn is_cancelled(&self) -> bool {
        matches!(*self.0.lock(), Stage::Cancelled)
    }

    fn run(&self, ticket: EngineTicket) {
        let mut stage = self.0.lock();
        if matches!(*stage, Stage::Cancelled) {
            drop(stage);
            ticket.cancel();
        } else {
            *stage = Stage::Running(ticket);
        }
    }
}

/// An asynchronous generation until its model is ready or its time for loading is over: whichever comes first takes the
/// request.
struct Waiting {
    slot: String,
    after: Duration,
    request: Mutex<Option<WaitingRequest>>,
}

impl Waiting {
    fn take(&self) -> Option<WaitingRequest> {
        self.request.lock().take()
    }
}

impl Timed for Waiting {
    fn expire(self: Arc<Self>) {
        if let Some(mut request) = self.take() {
            let what = format!("model {:?}", self.slot);
            (request.on_event)(Event::Done(Err(Error::Timeout { what, after: self.after })));
        }
    }
}

/// What an asynchronous generation needs besides its model.
struct WaitingRequest {
    prompt: OwnedPrompt,
    params: GenerationParams,
    terms: RequestTerms,
    keep_alive: Option<KeepAlive>,
    trace: Option<Arc<Trace>>,
    ticket: GenerationTicket,
    on_event: OnEvent,
}

/// The generator of a slot, loaded if need be.
pub(in super::super) fn lease(
    registry: &Registry,
    options: &GenerateOptions,
    check: Check<'_>,
) -> Result<GeneratorLease> {
    let entry = registry.entry(options.slot())?;
    let timeout = options.timeout.or(registry.load_timeout());
    registry.used(&entry.name, options.user.as_deref());
    let absent = options.trace.as_ref().filter(|_| entry.slot.state() != State::Ready);
    let _step = step(absent, TraceStage::Load);
    let lease = GeneratorLease::new(entry.slot.acquire(timeout, check)?, &entry.name, options.keep_alive)?;
    note_model(options.trace.as_ref(), &lease);
    Ok(lease)
}

/// The answer to `prompt` piece by piece.
pub(in super::super) fn stream(
    registry: &Registry,
    prompt: &OwnedPrompt,
    params: GenerationParams,
    options: &GenerateOptions,
    check: Check<'_>,
) -> Result<TextStream> {
    params.validate()?;
    let terms = options.terms();
    let lease = Arc::new(lease(registry, options, check)?);
    let _computing = fork::computing();
    let held = Arc::clone(&lease);
    let _step = step(options.trace.as_ref(), TraceStage::Tokenize);
    let stream = lease.generator()?.stream(prompt.borrow(), params, terms, held, check)?;
    Ok(TextStream { stream, _lease: lease })
}

/// The answer to `prompt` as events on another thread.
pub(in super::super) fn submit(
    registry: &Registry,
    dispatcher: &Dispatcher,
    prompt: OwnedPrompt,
    params: GenerationParams,
    options: &GenerateOptions,
    on_event: OnEvent,
) -> Result<GenerationTicket> {
    params.validate()?;
    let entry = registry.entry(options.slot())?;
    let ticket = GenerationTicket::default();
    let request = WaitingRequest {
        prompt,
        params,
        terms: options.terms(),
        keep_alive: options.keep_alive,
        trace: options.trace.clone(),
        ticket: ticket.clone(),
        on_event,
    };
    let limit = options.timeout.or(registry.load_timeout());
    let deadline = limit.and_then(|after| Instant::now().checked_add(after));
    let waiting = Arc::new(Waiting {
        slot: entry.name.clone(),
        after: limit.unwrap_or_default(),
        request: Mutex::new(Some(request)),
    });
    registry.used(&entry.name, options.user.as_deref());
    let (loading, asked) = (Arc::clone(&waiting), Instant::now());
    let absent = options.trace.clone().filter(|_| entry.slot.state() != State::Ready);
    entry.slot.when_ready(Box::new(move |lease| {
        if let Some(trace) = absent {
            trace.add(TraceStage::Load, asked, Instant::now());
        }
        if let Some(request) = loading.take() {
            request.begin(lease, &loading.slot);
        }
    }));
    if let Some(at) = deadline
        && waiting.request.lock().is_some()
    {
        let timed: Arc<dyn Timed> = Arc::clone(&waiting) as _;
        // Without a thread for the deadline the call fails here, unless its model is ready meanwhile.
        if let Err(error) = dispatcher.watch(at, &timed)
            && waiting.take().is_some()
        {
            return Err(error);
        }
    }
    Ok(ticket)
}

/// Records which model answers.
fn note_model(trace: Option<&Arc<Trace>>, lease: &GeneratorLease) {
    if let (Some(trace), Ok(generator)) = (trace, lease.generator()) {
        trace.found(0, 0, &generator.model().name);
    }
}

impl WaitingRequest {
    /// Starts the generation now that the model is ready, or ends it with an error.
    fn begin(self, lease: Result<Lease<LoadedModel>>, slot: &str) {
        let Self { prompt, params, terms, keep_alive, trace, ticket, on_event } = self;
        // Shared with the engine's callback, which may never be made.
        let on_event = Arc::new(Mutex::new(on_event));
        let fail = |error: Error| (on_event.lock())(Event::Done(Err(error)));
        if ticket.is_cancelled() {
            return fail(Error::Cancelled);
        }
        let lease = match lease.and_then(|lease| GeneratorLease::new(lease, slot, keep_alive)) {
            Ok(lease) => Arc::new(lease),
            Err(error) => return fail(error),
        };
        note_model(trace.as_ref(), &lease);
        let (held, events) = (Arc::clone(&lease), Arc::clone(&on_event));
        let step = step(trace.as_ref(), TraceStage::Tokenize);
        let submitted = lease.generator().and_then(|generator| {
            let _computing = fork::computing();
            let on_event = Box::new(move |event| {
                // The callback keeps the model in memory until its last event.
                let _held = &held;
                (events.lock())(event);
            });
            let mut wanted = || if ticket.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) };
            generator.submit(prompt.borrow(), params, terms, on_event, &mut wanted)
        });
        drop(step);
        match submitted {
            Ok(running) => ticket.run(running),
            Err(error) => fail(error),
        }
    }
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
