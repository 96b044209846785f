//! `fork` copies memory but only the calling thread. What a child may rely on:
//!
//! - No other thread is inside tokeniser or model at the moment of the fork ([`pause`]), so their locks are free.
//! - Models that were loaded stay loaded, their memory shared with the parent.
//! - Everything with a thread (queues, reaper, front) is made anew at first use. Requests in flight belong to the parent.

use std::cell::RefCell;
use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Held for reading while a thread tokenises or computes; for writing across a fork.
static COMPUTING: RwLock<()> = RwLock::new(());

/// A batch takes less; a machine that is slower than this forks without its models.
const PATIENCE: Duration = Duration::from_secs(2);

thread_local! {
    static PAUSE: RefCell<Option<RwLockWriteGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// To be held while tokenising or computing. Recursive, because a thread that waits for the fork must not be waited for.
pub(super) fn computing() -> RwLockReadGuard<'static, ()> {
    COMPUTING.read_recursive()
}

/// Waits until no thread computes, and keeps it so until [`resume`] on this thread. False when that takes too long: the
/// child must then not use the models.
#[must_use]
pub fn pause() -> bool {
    let guard = COMPUTING.try_write_for(PATIENCE);
    let paused = guard.is_some();
    PAUSE.with_borrow_mut(|pause| *pause = guard);
    paused
}

/// Ends the pause, in the parent and in the child.
pub fn resume() {
    PAUSE.with_borrow_mut(Option::take);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn nobody_computes_during_a_pause() {
        assert!(pause());
        let (sender, receiver) = mpsc::channel();
        let worker = thread::spawn(move || {
            let _computing = computing();
            sender.send(()).unwrap();
        });
        assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err());
        resume();
        receiver.recv().unwrap();
        worker.join().unwrap();
    }
}
