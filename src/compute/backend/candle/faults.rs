//! A device whose memory is full, for tests: passes fail as those of a real one do.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Which passes fail.
#[derive(Debug)]
pub(crate) struct Faults {
    /// So many more passes fail.
    pub(crate) next: AtomicUsize,
    /// Passes of more tokens fail.
    pub(crate) most_tokens: AtomicUsize,
    /// Passes that were begun.
    pub(crate) passes: AtomicUsize,
}

impl Default for Faults {
    fn default() -> Self {
        Self { next: 0.into(), most_tokens: usize::MAX.into(), passes: 0.into() }
    }
}

impl Faults {
    /// At the beginning of a pass of so many tokens.
    pub(super) fn check(&self, tokens: usize) -> candle_core::Result<()> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        let left = |left: usize| left.checked_sub(1);
        let due = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok();
        if due || tokens > self.most_tokens.load(Ordering::Relaxed) {
            let words = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
            return Err(candle_core::Error::Msg(words.into()));
        }
        Ok(())
    }
}
