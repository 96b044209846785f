//! Requests to an engine, and its answers.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::generation::params::GenerationParams;
use crate::{Error, Result};

/// One text to continue.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// How to sample, and when to stop.
    pub params: GenerationParams,
    /// Whether the answer's text continues the prompt's (its first word keeps a leading space) or stands alone, as in
    /// a chat.
    pub continues: bool,
    /// Requests of the same scope reuse each other's computation.
    pub scope: Option<PrefixScope>,
    /// When its caller stops waiting; `None`: never.
    pub deadline: Option<Deadline>,
}

/// Requests that share the computation of the beginnings of their prompts. Requests of different scopes learn nothing about
/// each other, neither by their speed nor by their count of reused tokens. Contains a hash of its name with a key of the
/// process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixScope(u64);

impl PrefixScope {
    /// The scope of this name.
    pub fn new(name: &str) -> Self {
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(KEYS.hash_one(name))
    }
}

/// The time by which an answer must be complete: waiting, reading the prompt and writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    at: Instant,
    after: Duration,
}

impl Deadline {
    /// In `after` from now; `None` when that is beyond what a clock counts.
    pub fn after(after: Duration) -> Option<Self> {
        Some(Self { at: Instant::now().checked_add(after)?, after })
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.at
    }

    /// Whether it has been over for as long as `time`.
    pub(super) fn is_over_by(&self, time: Duration) -> bool {
        self.at.elapsed() >= time
    }

    /// What is left; zero when it is over.
    pub fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// The error of a request whose deadline is over.
    pub(crate) fn error(&self, model: &str) -> Error {
        Error::Timeout { what: format!("the answer of model {model:?}"), after: self.after }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended the text, or a stop text was written.
    Stop,
    /// The limit of tokens or the model's context was reached.
    Length,
    /// The caller cancelled it; the text is what was written until then.
    Cancelled,
}

impl FinishReason {
    /// "stop", "length" or "cancelled".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A finished answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// All pieces together.
    pub text: String,
    /// The tokens written, an end token included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub reason: FinishReason,
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// How many of those came from an earlier request's cache.
    pub reused_tokens: usize,
    /// Tokens that were guessed from the text so far, and computed with the one before them.
    pub drafted_tokens: u64,
    /// Of those, tokens that were right and written.
    pub accepted_tokens: u64,
    /// What repeats a sampled answer; `None` for a greedy one.
    pub seed: Option<u64>,
    /// From the request to its first step.
    pub queued: Duration,
    /// From the first step to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

impl Completion {
    /// Tokens a second after the first one; 0 when there are fewer than two.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds = self.decode.as_secs_f64();
        if self.tokens.len() < 2 || seconds == 0.0 { 0.0 } else { (self.tokens.len() - 1) as f64 / seconds }
    }
}

/// What happens to a request, in order: pieces, then one `Done`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// More text; never empty, never half a character, never part of a stop text.
    Piece(String),
    /// The end. Nothing follows.
    Done(Result<Completion>),
}

/// Receives the events of one request on the engine's thread: it must hand over quickly and may not wait for another
/// request of the same engine. If it panics, the request is dropped.
pub type OnEvent = Box<dyn FnMut(Event) + Send>;
