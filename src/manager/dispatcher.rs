//! The thread that serves asynchronous calls: it tokenizes their next texts, and reports results and timeouts.
//!
//! Each manager has one, which its first asynchronous call starts. A step is short (one chunk of texts), so calls take
//! turns. Long texts have a second dispatcher.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::sync::fork::Process;
use crate::sync::{Abandon, Work, Worker, WorkerThread};
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

/// Calls in progress, and the thread that serves them. Started by the first call.
pub(super) struct Dispatcher(Worker<Calls>, DispatcherId);

thread_local! {
    /// The dispatcher whose thread this is, in the process that it is in.
    static DISPATCHER: Cell<Option<(DispatcherId, Process)>> = const { Cell::new(None) };
}

/// Which dispatcher it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DispatcherId(u64);

impl DispatcherId {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

#[derive(Default)]
struct Calls {
    ready: VecDeque<Arc<dyn Task>>,
    deadlines: BinaryHeap<Reverse<TimedCall>>,
    /// How many deadlines there may be before those of calls that have ended are dropped.
    most: usize,
}

/// Deadlines that are kept whether their calls have ended or not.
const KEPT_DEADLINES: usize = 64;

impl Calls {
    /// Most calls end before their time is over. Their memory must not stay until then.
    fn watch(&mut self, call: TimedCall) {
        if self.deadlines.len() >= self.most {
            self.deadlines.retain(|Reverse(watched)| watched.call.strong_count() > 0);
            self.most = KEPT_DEADLINES.max(2 * self.deadlines.len());
        }
        self.deadlines.push(Reverse(call));
    }
}

struct TimedCall {
    at: Instant,
    call: Weak<dyn Timed>,
}

impl PartialEq for TimedCall {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for TimedCall {}
impl PartialOrd for TimedCall {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for TimedCall {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl Dispatcher {
    /// `role` names its thread.
    pub(super) fn new(role: &'static str) -> Self {
        let id = DispatcherId::new();
        Self(Worker::new(role, Arc::new(Dispatching(id))), id)
    }

    /// Whether the calling thread is the one that serves these calls: what waits for one of them here waits without end.
    pub(super) fn is_here(&self) -> bool {
        DISPATCHER.get().is_some_and(|(id, process)| id == self.1 && process.is_current())
    }

    /// Has the thread call `task.step()`.
    pub(super) fn push(&self, task: Arc<dyn Task>) -> Result<()> {
        self.0.with(|calls| calls.ready.push_back(task))
    }

    /// Has the thread call `call.expire()` at `at`, if the call still exists then.
    pub(super) fn watch(&self, at: Instant, call: &Arc<dyn Timed>) -> Result<()> {
        self.0.with(|calls| calls.watch(TimedCall { at, call: Arc::downgrade(call) }))
    }
}

enum Next {
    Step(Arc<dyn Task>),
    Expire(Arc<dyn Timed>),
}

/// Dropping the dispatcher stops the thread and does not wait for it: it may be calling Python, and wait for the
/// interpreter that the dropping thread is attached to.
struct Dispatching(DispatcherId);

impl Work<Calls> for Dispatching {
    fn fresh(&self) -> Calls {
        Calls::default()
    }

    fn run(&self, thread: &WorkerThread<'_, Calls>) {
        DISPATCHER.set(Some((self.0, Process::current())));
        while let Some(next) = next(thread) {
            match next {
                Next::Step(task) => {
                    let step = catch_unwind(AssertUnwindSafe(|| Arc::clone(&task).step()));
                    if let Err(payload) = step {
                        task.fail(Error::panic("an asynchronous call", payload.as_ref()));
                    }
                }
                Next::Expire(call) => {
                    // The panic hook has reported a panic of the callback; the other calls go on.
                    let _ = catch_unwind(AssertUnwindSafe(|| call.expire()));
                }
            }
        }
    }

    fn abandon(&self, calls: &mut Calls) -> Option<Abandon> {
        let ready = std::mem::take(&mut calls.ready);
        Some(Box::new(move |error| ready.into_iter().for_each(|task| task.fail(error.clone()))))
    }
}

fn next(thread: &WorkerThread<'_, Calls>) -> Option<Next> {
    let mut calls = thread.lock();
    loop {
        let now = Instant::now();
        while calls.deadlines.peek().is_some_and(|Reverse(deadline)| deadline.at <= now) {
            let Some(Reverse(deadline)) = calls.deadlines.pop() else { break };
            if let Some(call) = deadline.call.upgrade() {
                return Some(Next::Expire(call));
            }
        }
        if let Some(task) = calls.ready.pop_front() {
            return Some(Next::Step(task));
        }
        if calls.is_stopping() {
            return None;
        }
        match calls.deadlines.peek().map(|Reverse(deadline)| deadline.at) {
            Some(at) => calls = calls.wait_until(at).0,
            None => calls = calls.wait(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::sync::Mutex;

    struct Probe {
        replies: Mutex<mpsc::Sender<Option<Error>>>,
        panics: bool,
    }

    impl Task for Probe {
        fn step(self: Arc<Self>) {
            assert!(!self.panics, "step failed");
            self.replies.lock().send(None).unwrap();
        }
        fn fail(self: Arc<Self>, error: Error) {
            self.replies.lock().send(Some(error)).unwrap();
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
        (Arc::new(Probe { replies: Mutex::new(sender), panics }), receiver)
    }

    /// What is watched lives as long as `call`.
    fn watch(dispatcher: &Dispatcher, at: Instant, call: &Arc<Probe>) {
        let call: Arc<dyn Timed> = Arc::clone(call) as _;
        dispatcher.watch(at, &call).unwrap();
    }

    /// Says whether it is on the thread of the dispatcher.
    struct Asking(Arc<Dispatcher>, Mutex<mpsc::Sender<bool>>);

    impl Task for Asking {
        fn step(self: Arc<Self>) {
            self.1.lock().send(self.0.is_here()).unwrap();
        }
        fn fail(self: Arc<Self>, _: Error) {}
    }

    #[test]
    fn a_dispatcher_knows_its_thread() {
        let [own, other] = [(); 2].map(|()| Arc::new(Dispatcher::new("test")));
        let (sender, here) = mpsc::channel();
        assert!(!own.is_here());
        for asked in [&own, &other] {
            own.push(Arc::new(Asking(Arc::clone(asked), Mutex::new(sender.clone())))).unwrap();
        }
        assert_eq!([here.recv(), here.recv()], [Ok(true), Ok(false)]);
    }

    #[test]
    fn steps_and_deadlines_reach_their_task() {
        let (dispatcher, (task, replies)) = (Dispatcher::new("test"), probe(false));
        watch(&dispatcher, Instant::now() + Duration::from_millis(20), &task);
        dispatcher.push(task.clone()).unwrap();
        assert_eq!(replies.recv().unwrap(), None);
        assert_eq!(replies.recv().unwrap(), Some(Error::Cancelled));
        drop(task); // watched until here
    }

    #[test]
    fn calls_that_have_ended_are_not_kept_until_their_time_is_over() {
        let (dispatcher, (task, _replies)) = (Dispatcher::new("test"), probe(false));
        let later = Instant::now() + Duration::from_secs(3600);
        let kept = || dispatcher.0.look(|calls| calls.deadlines.len());
        (0..100).for_each(|_| watch(&dispatcher, later, &task));
        assert_eq!(kept(), 100);
        for _ in 0..10_000 {
            watch(&dispatcher, later, &probe(false).0);
            assert!(kept() <= 2 * 100 + KEPT_DEADLINES);
        }
    }

    #[test]
    fn a_call_that_panics_when_its_time_is_over_harms_no_other() {
        let dispatcher = Dispatcher::new("test");
        let ((bad, _), (good, good_replies)) = (probe(true), probe(false));
        let now = Instant::now();
        watch(&dispatcher, now, &bad);
        watch(&dispatcher, now + Duration::from_millis(1), &good);
        assert_eq!(good_replies.recv().unwrap(), Some(Error::Cancelled));
    }

    #[test]
    fn a_panicking_step_fails_its_own_task_only() {
        let dispatcher = Dispatcher::new("test");
        let ((bad, bad_replies), (good, good_replies)) = (probe(true), probe(false));
        dispatcher.push(bad).unwrap();
        dispatcher.push(good).unwrap();
        assert!(
            matches!(bad_replies.recv().unwrap(), Some(Error::Internal { reason, .. }) if reason == "step failed")
        );
        assert_eq!(good_replies.recv().unwrap(), None);
    }

    #[test]
    fn dropping_it_does_what_is_ready_and_ends_the_thread() {
        let (dispatcher, (task, replies)) = (Dispatcher::new("test"), probe(false));
        watch(&dispatcher, Instant::now() + Duration::from_secs(3600), &task);
        dispatcher.push(task).unwrap();
        drop(dispatcher);
        assert_eq!(replies.recv().unwrap(), None);
        assert!(replies.recv().is_err());
    }
}
