//! Freeing what a Python object owned, on a thread without the interpreter.
//!
//! A destructor runs where Python's collector runs: with the interpreter's lock held, perhaps inside a logging handler
//! that holds a lock of its own. Freeing a model logs, and waits for threads that log. So a thread without locks frees it,
//! and the destructor does not wait.

use super::gil::is_ending;
use crate::sync::spawn;

/// Drops `owned` on a thread of its own. The end of the process frees what is dropped while the interpreter ends.
pub(super) fn discard<T: Send + 'static>(owned: T) {
    if is_ending() {
        std::mem::forget(owned);
        return;
    }
    // Never dropped here, not even without a thread: a leak is better than a caller that hangs.
    let owned = std::mem::ManuallyDrop::new(owned);
    let dropping = move || drop(std::mem::ManuallyDrop::into_inner(owned));
    if let Err(error) = spawn("discard", dropping) {
        log::error!("no thread to free a model could be started: {error}");
    }
}
