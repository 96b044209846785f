//! Which load a thread is part of, so that a loader that asks for its own model is refused instead of waiting for itself.

use std::cell::Cell;

use crate::sync::thread::{self, ThreadId};

thread_local! {
    static ACTS_FOR: Cell<Option<ThreadId>> = const { Cell::new(None) };
}

/// Counts the calling thread as `loader` from now on, which waits for it: what this thread asks for, the loader asks for.
pub fn act_for(loader: ThreadId) {
    ACTS_FOR.set(Some(loader));
}

/// The thread that asks.
pub(super) fn caller() -> ThreadId {
    ACTS_FOR.get().unwrap_or_else(|| thread::current().id())
}
