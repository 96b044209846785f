//! Workers under schedules that Shuttle chooses: no request is lost or answered twice, and nothing hangs. Shuttle reports
//! a deadlock as a failure.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use shuttle::sync::mpsc;

use super::*;
use crate::{Error, Result};

/// Schedules for each test.
const SCHEDULES: usize = 3000;
const UNLUCKY: u32 = 13;

type Numbers = VecDeque<(u32, mpsc::Sender<Result<u32>>)>;

/// Answers each number with the next one, and panics at 13.
#[derive(Default)]
struct Successor {
    threads: AtomicUsize,
}

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
            if number == UNLUCKY {
                numbers.push_front((number, reply));
                drop(numbers);
                // Shuttle's own panics must pass, so this one is raised where the worker alone sees it.
                std::panic::resume_unwind(Box::new("unlucky"));
            }
            drop(numbers);
            let _ = reply.send(Ok(number + 1));
            numbers = thread.lock();
        }
    }

    fn abandon(&self, numbers: &mut Numbers) -> Option<Abandon> {
        let waiting = std::mem::take(numbers);
        Some(Box::new(move |error| {
            waiting.into_iter().for_each(|(_, reply)| drop(reply.send(Err(error.clone()))));
        }))
    }
}

/// Asks for the successor of `number`. Waits for the answer without a limit.
fn ask(worker: &Worker<Numbers>, number: u32) -> Result<u32> {
    let (reply, answer) = mpsc::channel();
    worker.with(|numbers| numbers.push_back((number, reply)))?;
    let outcome = answer.recv().expect("each request gets an answer");
    assert!(answer.try_recv().is_err(), "one answer");
    outcome
}

fn worker(threads: usize) -> (Arc<Worker<Numbers>>, Arc<Successor>) {
    let work = Arc::new(Successor::default());
    (Arc::new(Worker::with_threads("successor", threads, Arc::clone(&work) as _)), work)
}

/// Runs `body` on `threads` threads and waits for them.
pub(crate) fn together<R: Send + 'static>(
    threads: u32,
    body: impl Fn(u32) -> R + Send + Sync + 'static,
) -> Vec<R> {
    let body = Arc::new(body);
    let started: Vec<_> = (0..threads)
        .map(|number| {
            let body = Arc::clone(&body);
            thread::spawn(move || body(number))
        })
        .collect();
    started.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn shuttle_racing_callers_share_the_threads_and_get_their_answers() {
    shuttle::check_random(
        || {
            let (worker, work) = worker(2);
            let answers = together(3, {
                let worker = Arc::clone(&worker);
                move |number| ask(&worker, number)
            });
            assert_eq!(answers, [Ok(1), Ok(2), Ok(3)]);
            worker.close();
            assert_eq!(work.threads.load(Ordering::SeqCst), 2);
        },
        SCHEDULES,
    );
}

#[test]
fn shuttle_closing_answers_everyone() {
    shuttle::check_random(
        || {
            let (worker, _) = worker(1);
            let answers = together(3, {
                let worker = Arc::clone(&worker);
                move |number| {
                    if number == 0 {
                        worker.close();
                        return Err(Error::Closed);
                    }
                    ask(&worker, number)
                }
            });
            for (number, answer) in (0..).zip(answers) {
                assert!(answer == Ok(number + 1) || answer == Err(Error::Closed), "{answer:?}");
            }
            assert_eq!(ask(&worker, 1), Err(Error::Closed));
        },
        SCHEDULES,
    );
}

#[test]
fn shuttle_a_panic_is_an_error_for_those_who_wait_and_the_next_call_starts_a_thread() {
    shuttle::check_random(
        || {
            let (worker, _) = worker(1);
            let answers = together(3, {
                let worker = Arc::clone(&worker);
                move |number| ask(&worker, if number == 0 { UNLUCKY } else { number })
            });
            assert!(matches!(answers[0], Err(Error::Internal { .. })), "{:?}", answers[0]);
            for (number, answer) in (0..).zip(&answers).skip(1) {
                assert!(
                    matches!(answer, Err(Error::Internal { .. })) || *answer == Ok(number + 1),
                    "{answer:?}"
                );
            }
            assert_eq!(ask(&worker, 1), Ok(2));
            worker.close();
        },
        SCHEDULES,
    );
}
