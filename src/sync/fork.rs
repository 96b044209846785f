//! `fork` copies the memory, but only the calling thread. What a child process can rely on:
//!
//! - No other thread is inside a tokenizer or a model at the moment of the fork ([`pause`]), so their locks are free.
//! - Loaded sentence models stay loaded and share their memory with the parent. Everything else loads again.
//! - Every [`Worker`](super::Worker) is rebuilt by its first call. Requests in flight belong to the parent.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use super::locks::{Condvar, Mutex, MutexGuard};

/// The process that a value was made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process(u32);

impl Process {
    /// This process.
    #[must_use]
    pub fn current() -> Self {
        Self(std::process::id())
    }

    /// Whether this is the process that runs now; false in a child made by `fork` after this value.
    #[must_use]
    pub fn is_current(self) -> bool {
        self == Self::current()
    }

    /// A process that is never the current one, as a parent is for its child.
    #[cfg(test)]
    pub(crate) fn parent() -> Self {
        Self(0)
    }
}

/// How many threads compute, and whether a fork waits for them to stop. The forking thread holds the lock across the
/// fork, so that the child never inherits it locked by a thread that does not exist there.
struct Gate {
    computing: usize,
    pausing: bool,
}

static GATE: Mutex<Gate> = Mutex::new(Gate { computing: 0, pausing: false });
/// Signalled when the last thread stops computing.
static QUIET: Condvar = Condvar::new();
/// Signalled when the pause ends.
static OPEN: Condvar = Condvar::new();

/// How long a fork waits for computing threads. A batch takes less; on a slower machine the child loads its models again.
const PATIENCE: Duration = Duration::from_secs(2);

thread_local! {
    static PAUSE: RefCell<Option<MutexGuard<'static, Gate>>> = const { RefCell::new(None) };
    /// Nesting depth of [`Computing`] on this thread. Only the outermost one waits at the gate: a thread that computes
    /// must not wait for a fork that waits for it.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// While it exists, this thread tokenizes or computes, and no fork happens.
pub struct Computing(());

/// To be kept while tokenizing or computing. Waits during a [`pause`].
#[must_use]
pub fn computing() -> Computing {
    if DEPTH.replace(DEPTH.get() + 1) == 0 {
        let mut gate = GATE.lock();
        while gate.pausing {
            gate = OPEN.wait(gate);
        }
        gate.computing += 1;
    }
    Computing(())
}

impl Drop for Computing {
    fn drop(&mut self) {
        if DEPTH.replace(DEPTH.get() - 1) == 1 {
            let mut gate = GATE.lock();
            gate.computing -= 1;
            if gate.computing == 0 {
                QUIET.notify_all();
            }
        }
    }
}

/// Waits until no thread computes, and lets none begin until [`resume`] on this thread. False when the wait takes too
/// long; the child must then not use the models.
#[must_use]
pub fn pause() -> bool {
    let deadline = Instant::now() + PATIENCE;
    let mut gate = GATE.lock();
    gate.pausing = true;
    while gate.computing > 0 && Instant::now() < deadline {
        gate = QUIET.wait_until(gate, deadline).0;
    }
    let paused = gate.computing == 0;
    PAUSE.with_borrow_mut(|pause| *pause = Some(gate));
    paused
}

/// Ends the pause in the process that forked.
pub fn resume() {
    reopen(|gate| gate.pausing = false);
}

/// Ends the pause in the child, where no other thread exists, so none computes.
pub fn resume_in_child() {
    DEPTH.set(0);
    reopen(|gate| *gate = Gate { computing: 0, pausing: false });
}

fn reopen(change: impl FnOnce(&mut Gate)) {
    if let Some(mut gate) = PAUSE.with_borrow_mut(Option::take) {
        change(&mut gate);
        drop(gate);
        OPEN.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn no_thread_computes_during_a_pause() {
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
