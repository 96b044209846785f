use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::time::Duration;

use super::*;

/// Far beyond what any step takes: reached only when something hangs.
const HANG: Duration = Duration::from_secs(60);

type Reply = mpsc::Sender<Result<u32>>;

/// Answers each number with the next one. Number 13 panics, number 7 waits at the gate.
#[derive(Default)]
struct Successor {
    threads: AtomicUsize,
    gate: Mutex<Option<mpsc::Receiver<()>>>,
    away: bool,
}

type Numbers = VecDeque<(u32, Reply)>;

impl Work<Numbers> for Successor {
    fn fresh(&self) -> Numbers {
        Numbers::new()
    }

    fn run(&self, thread: &WorkerThread<'_, Numbers>) {
        self.threads.fetch_add(1, Ordering::SeqCst);
        let mut numbers = thread.lock();
        while !numbers.is_stopping() {
            let Some((number, reply)) = numbers.pop_front() else {
                numbers = numbers.wait();
                continue;
            };
            numbers.set_away(self.away);
            drop(numbers);
            if number == 7 {
                let gate = self.gate.lock();
                gate.as_ref().unwrap().recv_timeout(HANG).unwrap();
            }
            if number == 13 {
                // Its caller is among those who wait.
                thread.lock().push_front((number, reply));
                panic!("unlucky");
            }
            let _ = reply.send(Ok(number + 1));
            numbers = thread.lock();
            numbers.set_away(false);
        }
    }

    fn abandon(&self, numbers: &mut Numbers) -> Option<Abandon> {
        let waiting = std::mem::take(numbers);
        Some(Box::new(move |error| {
            waiting.into_iter().for_each(|(_, reply)| drop(reply.send(Err(error.clone()))));
        }))
    }
}

fn worker(threads: usize) -> (Arc<Successor>, Worker<Numbers>) {
    let work = Arc::new(Successor::default());
    (Arc::clone(&work), Worker::with_threads("test", threads, work))
}

/// A worker whose number 7 waits for a word from the sender.
fn gated(away: bool) -> (mpsc::Sender<()>, Worker<Numbers>) {
    let (open, gate) = mpsc::channel();
    let work = Successor { gate: Mutex::new(Some(gate)), away, ..Successor::default() };
    (open, Worker::new("test", Arc::new(work)))
}

fn ask(worker: &Worker<Numbers>, number: u32) -> mpsc::Receiver<Result<u32>> {
    let (reply, answer) = mpsc::channel();
    if let Err(error) = worker.with(|numbers| numbers.push_back((number, reply.clone()))) {
        reply.send(Err(error)).unwrap();
    }
    answer
}

fn answer(worker: &Worker<Numbers>, number: u32) -> Result<u32> {
    ask(worker, number).recv_timeout(HANG).unwrap()
}

#[test]
fn threads_start_with_the_first_call() {
    let (work, worker) = worker(1);
    assert_eq!(worker.look(|numbers| numbers.len()), 0);
    assert_eq!(work.threads.load(Ordering::SeqCst), 0);
    assert_eq!(answer(&worker, 1), Ok(2));
    assert_eq!(answer(&worker, 2), Ok(3));
    assert_eq!(work.threads.load(Ordering::SeqCst), 1);
}

#[test]
fn threads_have_the_name_of_their_role() {
    struct Names;
    impl Work<Vec<mpsc::Sender<String>>> for Names {
        fn fresh(&self) -> Vec<mpsc::Sender<String>> {
            Vec::new()
        }
        fn run(&self, thread: &WorkerThread<'_, Vec<mpsc::Sender<String>>>) {
            let mut replies = thread.lock();
            while !replies.is_stopping() {
                let name = thread::current().name().unwrap().to_owned();
                replies.drain(..).for_each(|reply| reply.send(name.clone()).unwrap());
                replies = replies.wait();
            }
        }
    }
    let (reply, name) = mpsc::channel();
    let one = Worker::new("role", Arc::new(Names));
    one.with(|replies| replies.push(reply.clone())).unwrap();
    assert_eq!(name.recv_timeout(HANG).unwrap(), "mm-role");
    let two = Worker::with_threads("role", 2, Arc::new(Names));
    two.with(|replies| replies.push(reply)).unwrap();
    assert!(["mm-role-0", "mm-role-1"].contains(&name.recv_timeout(HANG).unwrap().as_str()));
}

#[test]
fn racing_callers_each_get_their_own_answer() {
    let (work, worker) = worker(3);
    let start = Barrier::new(16);
    thread::scope(|scope| {
        for caller in 0..16 {
            let (start, worker) = (&start, &worker);
            scope.spawn(move || {
                start.wait();
                for round in 0..if cfg!(miri) { 3 } else { 200 } {
                    let number = 1000 + caller * 1000 + round;
                    assert_eq!(answer(worker, number), Ok(number + 1));
                }
            });
        }
    });
    worker.close();
    assert_eq!(work.threads.load(Ordering::SeqCst), 3);
}

#[test]
fn closing_against_racing_callers_leaves_none_without_an_answer() {
    for _ in 0..if cfg!(miri) { 3 } else { 50 } {
        let (_, worker) = worker(2);
        let start = Barrier::new(5);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    while answer(&worker, 1).is_ok() {}
                });
            }
            start.wait();
            worker.close();
        });
        assert_eq!(answer(&worker, 1), Err(Error::Closed));
    }
}

#[test]
fn a_call_while_a_thread_reports_its_panic_is_served_by_another_thread() {
    struct SlowReport {
        inner: Successor,
        reports: mpsc::Sender<()>,
        gate: Mutex<Option<mpsc::Receiver<()>>>,
    }
    impl Work<Numbers> for SlowReport {
        fn fresh(&self) -> Numbers {
            Numbers::new()
        }
        fn run(&self, thread: &WorkerThread<'_, Numbers>) {
            self.inner.run(thread);
        }
        fn abandon(&self, numbers: &mut Numbers) -> Option<Abandon> {
            let report = self.inner.abandon(numbers)?;
            let (reports, gate) = (self.reports.clone(), self.gate.lock().take());
            Some(Box::new(move |error| {
                let _ = reports.send(());
                gate.into_iter().for_each(|gate| gate.recv_timeout(HANG).unwrap());
                report(error);
            }))
        }
    }
    let ((open, gate), (reports, reported)) = (mpsc::channel(), mpsc::channel());
    let work = SlowReport { inner: Successor::default(), reports, gate: Mutex::new(Some(gate)) };
    let worker = Worker::new("test", Arc::new(work));
    let unlucky = ask(&worker, 13);
    reported.recv_timeout(HANG).unwrap();
    assert_eq!(answer(&worker, 1), Ok(2));
    open.send(()).unwrap();
    assert!(matches!(unlucky.recv_timeout(HANG).unwrap(), Err(Error::Internal { .. })));
    // The first thread's end is not taken for that of the second.
    assert_eq!(answer(&worker, 2), Ok(3));
    worker.close();
}

#[test]
fn a_panic_is_an_error_of_those_who_wait_and_the_next_call_starts_a_thread() {
    let (work, worker) = worker(1);
    let error = answer(&worker, 13).unwrap_err();
    assert!(
        matches!(&error, Error::Internal { place, reason } if place.contains("mm-test") && reason == "unlucky")
    );
    assert!(worker.join(None));
    assert_eq!(answer(&worker, 1), Ok(2));
    assert_eq!(work.threads.load(Ordering::SeqCst), 2);
}

#[test]
fn closing_fails_what_waits_at_once_and_joins_the_thread() {
    let (open, worker) = gated(false);
    let busy = ask(&worker, 7);
    while worker.look(|numbers| numbers.len()) > 0 {
        thread::yield_now();
    }
    let waiting = ask(&worker, 1);
    thread::scope(|scope| {
        let closing = scope.spawn(|| worker.close());
        assert_eq!(waiting.recv_timeout(HANG).unwrap(), Err(Error::Closed));
        assert!(!worker.join(Some(Instant::now())), "it computes");
        open.send(()).unwrap();
        closing.join().unwrap();
    });
    assert_eq!(busy.recv_timeout(HANG).unwrap(), Ok(8));
    assert!(worker.join(Some(Instant::now())));
}

#[test]
fn a_thread_that_is_away_is_not_waited_for() {
    let (open, worker) = gated(true);
    let busy = ask(&worker, 7);
    while worker.look(|numbers| numbers.len()) > 0 {
        thread::yield_now();
    }
    worker.close();
    open.send(()).unwrap();
    assert_eq!(busy.recv_timeout(HANG).unwrap(), Ok(8));
}

#[test]
fn a_pause_ends_when_the_worker_stops() {
    struct Pauses;
    impl Work<bool> for Pauses {
        fn fresh(&self) -> bool {
            false
        }
        fn run(&self, thread: &WorkerThread<'_, bool>) {
            let mut paused = thread.lock();
            *paused = true;
            drop(paused.pause_until(Instant::now() + HANG));
        }
    }
    let worker = Worker::new("test", Arc::new(Pauses));
    worker.start().unwrap();
    while !worker.look(|paused| *paused) {
        thread::yield_now();
    }
    worker.stop();
    assert!(worker.join(Some(Instant::now() + HANG)));
}

#[test]
fn the_last_owner_may_be_its_own_thread() {
    type Owned = Option<(Worker<Option<()>>, mpsc::Sender<()>)>;
    struct Owns(Mutex<Owned>);
    impl Work<Option<()>> for Owns {
        fn fresh(&self) -> Option<()> {
            None
        }
        fn run(&self, thread: &WorkerThread<'_, Option<()>>) {
            let mut asked = thread.lock();
            while asked.is_none() {
                asked = asked.wait();
            }
            drop(asked);
            let (worker, dropped) = self.0.lock().take().unwrap();
            worker.close();
            drop(worker);
            dropped.send(()).unwrap();
            assert!(thread.lock().is_stopping());
        }
    }
    let work = Arc::new(Owns(Mutex::new(None)));
    let worker = Worker::new("test", Arc::clone(&work) as _);
    let (sender, dropped) = mpsc::channel();
    worker.start().unwrap();
    let monitor = worker.monitor();
    *work.0.lock() = Some((worker, sender));
    monitor.inner.lock().state = Some(());
    monitor.wake_all();
    dropped.recv_timeout(HANG).unwrap();
}

/// Makes `worker` look as it does in a child: its state is the parent's, locked by a thread that is not there.
fn fork(worker: &Worker<Numbers>) -> Arc<Monitor<Numbers>> {
    let parent = Arc::new(Monitor::new(Process::parent(), Numbers::new(), 1));
    std::mem::forget(parent.inner.lock());
    worker.monitor.store(Arc::clone(&parent));
    parent
}

#[test]
fn after_a_fork_the_first_call_makes_a_new_state_and_thread() {
    let (work, worker) = worker(1);
    assert_eq!(answer(&worker, 1), Ok(2));
    let parent = fork(&worker);
    parent.wake_all();
    assert_eq!(answer(&worker, 2), Ok(3));
    assert_eq!(work.threads.load(Ordering::SeqCst), 2);
    assert_eq!(Arc::strong_count(&parent), 2, "the parent's state is never freed");
}

#[test]
fn a_worker_of_the_parent_ends_in_the_child_without_waiting() {
    let (_, worker) = worker(1);
    let parent = fork(&worker);
    worker.stop();
    assert!(worker.join(None));
    worker.close();
    drop(worker);
    assert_eq!(Arc::strong_count(&parent), 2, "the parent's state is never freed");
}

#[test]
fn of_racing_first_calls_in_a_child_one_makes_the_state() {
    for _ in 0..if cfg!(miri) { 2 } else { 20 } {
        let (work, worker) = worker(1);
        fork(&worker);
        let start = Barrier::new(8);
        thread::scope(|scope| {
            for number in 0..8 {
                let (start, worker) = (&start, &worker);
                scope.spawn(move || {
                    start.wait();
                    assert_eq!(answer(worker, 100 + number), Ok(101 + number));
                });
            }
        });
        assert_eq!(work.threads.load(Ordering::SeqCst), 1);
    }
}
