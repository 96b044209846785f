//! What an engine is started with, and what it counts.

use std::sync::Arc;
use std::time::Duration;

use super::memory::KvMemory;
#[cfg(doc)]
use crate::Error;
use crate::sync::Mutex;

/// What an engine needs to know in addition to the model.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// The model's name in errors.
    pub model: String,
    /// Tokens that end a text.
    pub eos_ids: Vec<u32>,
    /// Tokens that are never written. Those outside of the vocabulary change nothing.
    pub suppressed_ids: Vec<u32>,
    /// Sequences decoded together.
    pub max_active: usize,
    /// Requests that may wait; more are refused with [`Error::Overloaded`].
    pub max_queue: usize,
    /// Most prompt tokens in one step.
    pub prefill_chunk: usize,
    /// The longest duration of a step with prompt tokens. It limits the delay that a long prompt causes to other requests,
    /// and the time until its cancellation is noticed.
    pub prefill_time: Duration,
    /// Most tokens of a prompt and its answer; `None`: the model's own limit.
    pub max_context: Option<usize>,
    /// Bytes that keys and values may take, those kept for reuse included: these may take what requests leave of them.
    pub kv_bytes: u64,
    /// The setting that `kv_bytes` comes from, as messages name it.
    pub kv_setting: &'static str,
    /// A budget that also counts keys and values.
    pub kv_memory: Option<Arc<dyn KvMemory>>,
    /// Finished sequences whose caches are kept for prompts that begin alike.
    pub kept_prefixes: usize,
    /// Most tokens of an answer that are drafted from the text so far and computed with the one before them; 0: none.
    pub prompt_lookup_tokens: usize,
    /// Where the engine counts. One that others count in too goes on from what is there.
    pub totals: SharedTotals,
}

/// Totals that outlive an engine: those of all models of one name.
pub type SharedTotals = Arc<Mutex<GenerationTotals>>;

impl EngineSettings {
    /// The defaults for a model with these end tokens.
    pub fn new(model: impl Into<String>, eos_ids: Vec<u32>) -> Self {
        Self {
            model: model.into(),
            eos_ids,
            suppressed_ids: Vec::new(),
            max_active: 16,
            max_queue: 256,
            prefill_chunk: 512,
            prefill_time: Duration::from_millis(250),
            max_context: None,
            kv_bytes: u64::MAX,
            kv_setting: "kv_memory",
            kv_memory: None,
            kept_prefixes: 4,
            prompt_lookup_tokens: 8,
            totals: SharedTotals::default(),
        }
    }
}

/// What engines have done.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GenerationTotals {
    /// Requests accepted.
    pub requests: u64,
    /// Of those, answered to the end (stop or length).
    pub completed: u64,
    /// Given up by their callers.
    pub cancelled: u64,
    /// Ended by an error.
    pub failed: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Of those, found in the cache of an earlier request.
    pub reused_tokens: u64,
    /// Tokens written.
    pub generated_tokens: u64,
    /// Tokens that were drafted from the text so far.
    pub drafted_tokens: u64,
    /// Of those, written.
    pub accepted_tokens: u64,
    /// Times that a request was stopped for want of memory, to go on later.
    pub paused: u64,
    /// Time in forward passes, sampling and callbacks.
    pub busy: Duration,
}

/// The present state of an engine. The default is that of a model that is not in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineState {
    /// Being decoded now.
    pub active: usize,
    /// Waiting now.
    pub waiting: usize,
    /// Bytes of the keys and values of requests that are being decoded.
    pub kv_bytes: u64,
    /// Bytes of those kept for reuse.
    pub prefix_bytes: u64,
    /// Bytes that both may take together.
    pub kv_limit: u64,
}
