//! Limits of a call.

use std::time::{Duration, Instant};

use super::super::super::options::EmbedOptions;

/// The time limit of a call.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    pub(super) at: Instant,
    pub(super) after: Duration,
    /// The configured limit applies to loading only; a caller's own applies to everything.
    pub(super) load_only: bool,
}

impl Limit {
    pub(super) fn of(options: &EmbedOptions, load_timeout: Option<Duration>) -> Option<Self> {
        let (after, load_only) = match options.timeout {
            Some(timeout) => (timeout, false),
            None => (load_timeout?, true),
        };
        Some(Self { at: Instant::now().checked_add(after)?, after, load_only })
    }
}
