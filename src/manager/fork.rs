//! `fork` copies memory but only the calling thread. What a child may rely on:
//!
//! - No other thread is inside tokeniser or model at the moment of the fork ([`pause`]), so their locks are free.
//! - Sentence models that were loaded stay loaded, their memory shared with the parent; all else loads anew.
//! - Everything with a thread (queues, reaper, front) is made anew at first use. Requests in flight belong to the parent.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex, MutexGuard};

/// Who computes, and whether somebody waits for them to stop. Held by the forking thread across a fork, so that in the
/// child nobody who is gone holds it.
struct Gate {
    computing: usize,
    pausing: bool,
}

static GATE: Mutex<Gate> = Mutex::new(Gate { computing: 0, pausing: false });
/// The last thread has stopped computing.
static QUIET: Condvar = Condvar::new();
/// The pause is over.
static OPEN: Condvar = Condvar::new();

/// A batch takes less; a machine that is slower than this forks without its models.
const PATIENCE: Duration = Duration::from_secs(2);

thread_local! {
    static PAUSE: RefCell<Option<MutexGuard<'static, Gate>>> = const { RefCell::new(None) };
    /// How often this thread has entered. Only the first time asks: a thread that computes must not wait for the fork
    /// that waits for it.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// While it lives, this thread tokenises or computes, and no fork happens.
pub(super) struct Computing(());

/// To be held while tokenising or computing. Waits during a [`pause`].
pub(super) fn computing() -> Computing {
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

/// Waits until no thread computes, and keeps it so until [`resume`] on this thread. False when that takes too long: the
/// child must then not use the models.
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

/// Ends the pause in the child, where nobody computes: those who did are not there.
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
