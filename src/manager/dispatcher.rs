//! The thread that moves asynchronous calls along: tokenises their next texts, tells them of results and timeouts.
//!
//! One a manager, started by its first asynchronous call. A step is short (one chunk of texts), so calls take turns.
//! Long texts have a second one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::sync::{Condvar, Mutex};
use crate::{Error, Result};

/// A call in progress.
pub(super) trait Task: Send + Sync + 'static {
    /// Does the next piece of work; called again whenever the task is pushed.
    fn step(self: Arc<Self>);
    /// Ends the call with `error`. Does nothing to a call that is already done.
    fn fail(self: Arc<Self>, error: Error);
}

/// A call whose time ends.
pub(super) trait Timed: Send + Sync + 'static {
    /// The call's time may be over.
    fn expire(self: Arc<Self>);
}

pub(super) struct Front {
    name: &'static str,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Arc<dyn Task>>,
    deadlines: BinaryHeap<Reverse<Deadline>>,
    closed: bool,
}

struct Deadline {
    at: Instant,
    call: Weak<dyn Timed>,
}

impl PartialEq for Deadline {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Deadline {}
impl PartialOrd for Deadline {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Deadline {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl Front {
    /// `name` is its thread's.
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, shared: Arc::default(), thread: Mutex::new(None) }
    }

    /// Has the thread call `task.step()`.
    pub(super) fn push(&self, task: Arc<dyn Task>) -> Result<()> {
        self.start()?;
        self.shared.state.lock().ready.push_back(task);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Has the thread call `call.expire()` at `at`, if the call still exists then.
    pub(super) fn watch(&self, at: Instant, call: &Arc<dyn Timed>) -> Result<()> {
        self.start()?;
        self.shared.state.lock().deadlines.push(Reverse(Deadline { at, call: Arc::downgrade(call) }));
        self.shared.wake.notify_one();
        Ok(())
    }

    fn start(&self) -> Result<()> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let handle = thread::Builder::new().name(self.name.into()).spawn(move || run(&shared)).map_err(
                |error| Error::Internal { place: format!("thread {}", self.name), reason: error.to_string() },
            )?;
            *thread = Some(handle);
        }
        Ok(())
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_one();
        // Not waited for: it may be telling Python of a result, which whoever drops this may keep it from.
    }
}

enum Next {
    Step(Arc<dyn Task>),
    Expire(Arc<dyn Timed>),
}

fn run(shared: &Shared) {
    while let Some(next) = next(shared) {
        match next {
            Next::Step(task) => {
                let step = catch_unwind(AssertUnwindSafe(|| Arc::clone(&task).step()));
                if let Err(payload) = step {
                    task.fail(Error::panic("an asynchronous call", payload.as_ref()));
                }
            }
            Next::Expire(call) => {
                // What a callback panics of, the panic hook has reported; the other calls go on.
                let _ = catch_unwind(AssertUnwindSafe(|| call.expire()));
            }
        }
    }
}

fn next(shared: &Shared) -> Option<Next> {
    let mut state = shared.state.lock();
    loop {
        let now = Instant::now();
        while state.deadlines.peek().is_some_and(|Reverse(deadline)| deadline.at <= now) {
            let Some(Reverse(deadline)) = state.deadlines.pop() else { break };
            if let Some(call) = deadline.call.upgrade() {
                return Some(Next::Expire(call));
            }
        }
        if let Some(task) = state.ready.pop_front() {
            return Some(Next::Step(task));
        }
        if state.closed {
            return None;
        }
        match state.deadlines.peek().map(|Reverse(deadline)| deadline.at) {
            Some(at) => state = shared.wake.wait_until(state, at).0,
            None => state = shared.wake.wait(state),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    struct Probe {
        told: Mutex<mpsc::Sender<Option<Error>>>,
        panics: bool,
    }

    impl Task for Probe {
        fn step(self: Arc<Self>) {
            assert!(!self.panics, "step failed");
            self.told.lock().send(None).unwrap();
        }
        fn fail(self: Arc<Self>, error: Error) {
            self.told.lock().send(Some(error)).unwrap();
        }
    }

    impl Timed for Probe {
        fn expire(self: Arc<Self>) {
            assert!(!self.panics, "expire failed");
            self.fail(Error::Cancelled);
        }
    }

    fn probe(panics: bool) -> (Arc<Probe>, mpsc::Receiver<Option<Error>>) {
        let (sender, receiver) = mpsc::channel();
        (Arc::new(Probe { told: Mutex::new(sender), panics }), receiver)
    }

    /// What is watched lives as long as `call`.
    fn watch(front: &Front, at: Instant, call: &Arc<Probe>) {
        let call: Arc<dyn Timed> = Arc::clone(call) as _;
        front.watch(at, &call).unwrap();
    }

    #[test]
    fn steps_and_deadlines_reach_their_task() {
        let (front, (task, told)) = (Front::new("test"), probe(false));
        watch(&front, Instant::now() + Duration::from_millis(20), &task);
        front.push(task.clone()).unwrap();
        assert_eq!(told.recv().unwrap(), None);
        assert_eq!(told.recv().unwrap(), Some(Error::Cancelled));
        drop(task); // watched until here
    }

    #[test]
    fn a_call_that_panics_when_its_time_is_over_harms_no_other() {
        let front = Front::new("test");
        let ((bad, _), (good, good_told)) = (probe(true), probe(false));
        let now = Instant::now();
        watch(&front, now, &bad);
        watch(&front, now + Duration::from_millis(1), &good);
        assert_eq!(good_told.recv().unwrap(), Some(Error::Cancelled));
    }

    #[test]
    fn a_panicking_step_fails_its_own_task_only() {
        let front = Front::new("test");
        let ((bad, bad_told), (good, good_told)) = (probe(true), probe(false));
        front.push(bad).unwrap();
        front.push(good).unwrap();
        assert!(
            matches!(bad_told.recv().unwrap(), Some(Error::Internal { reason, .. }) if reason == "step failed")
        );
        assert_eq!(good_told.recv().unwrap(), None);
    }

    #[test]
    fn dropping_it_does_what_is_ready_and_ends_the_thread() {
        let (front, (task, told)) = (Front::new("test"), probe(false));
        watch(&front, Instant::now() + Duration::from_secs(3600), &task);
        front.push(task).unwrap();
        drop(front);
        assert_eq!(told.recv().unwrap(), None);
        assert!(told.recv().is_err());
    }
}
