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
    /// Ends the load, also where it panics: the thread may load for callers afterwards.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            AHEAD.set(false);
        }
    }
    let _end = End;
    AHEAD.set(true);
    load()
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn a_panic_ends_it_too() {
        assert!(loading_ahead(is_loading_ahead));
        assert!(!is_loading_ahead());
        assert!(catch_unwind(|| loading_ahead(|| panic!("the load"))).is_err());
        assert!(!is_loading_ahead());
    }
}
