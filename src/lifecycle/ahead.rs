//! Whether this thread loads a model ahead of its use: such a load takes only memory that is free.

use std::cell::Cell;

thread_local! {
    static AHEAD: Cell<bool> = const { Cell::new(false) };
}

/// Whether the present load is one that no caller waits for. It must evict nothing.
pub fn is_loading_ahead() -> bool {
    AHEAD.get()
}

/// Runs a load that no caller waits for.
pub(super) fn loading_ahead<R>(load: impl FnOnce() -> R) -> R {
    AHEAD.set(true);
    let result = load();
    AHEAD.set(false);
    result
}
