//! Deadlines, memory and scopes of requests.

use std::sync::Weak;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::tests::{Bench, ENDLESS, UNLUCKY, bench, bench_of, bench_with, request, slow_bench, unchecked};
use super::*;
use crate::sync::Mutex;

fn with_deadline(mut request: Request, milliseconds: u64) -> Request {
    request.deadline = Deadline::after(Duration::from_millis(milliseconds));
    request
}

fn late(milliseconds: u64) -> Error {
    Error::Timeout {
        what: "the answer of model \"letters\"".into(),
        after: Duration::from_millis(milliseconds),
    }
}

fn finish(stream: &mut Stream) -> Result<Vec<u32>> {
    while stream.next(&mut unchecked)?.is_some() {}
    Ok(stream.completion().expect("it has ended").tokens.clone())
}

#[test]
fn a_deadline_ends_writing_and_waiting() {
    let bench = bench_with(|settings| settings.max_active = 1);
    let busy = bench.engine.stream(request(vec![1], ENDLESS)).unwrap();
    let mut waiting = bench.engine.stream(with_deadline(request(vec![2], 5), 20)).unwrap();
    assert_eq!(finish(&mut waiting), Err(late(20)));
    bench.until(|state, totals| totals.failed == 1 && state.active == 1);
    drop(busy);
    let mut written = bench.engine.stream(with_deadline(request(vec![1], ENDLESS), 200)).unwrap();
    assert_eq!(finish(&mut written), Err(late(200)));
    bench.until(|state, totals| totals.failed == 2 && state.active == 0);
    assert_eq!(
        bench.run(with_deadline(request(vec![3], 5), 600_000)).unwrap().tokens,
        bench.expected(&[3], 5)
    );
}

/// A step, or a callback of another answer, that goes on far beyond the deadline.
#[test]
fn a_caller_does_not_wait_beyond_its_deadline_for_the_engine() {
    let bench = bench();
    let held = bench.decoder.gate.lock();
    let mut answer = bench.engine.stream(with_deadline(request(vec![1], 5), 10)).unwrap();
    assert_eq!(finish(&mut answer), Err(late(10)));
    drop(held);
    bench.until(|state, totals| state.active == 0 && totals.failed == 1);
    assert_eq!(bench.run(request(vec![3], 5)).unwrap().tokens, bench.expected(&[3], 5));
}

#[test]
fn a_deadline_ends_the_reading_of_a_long_prompt() {
    let bench = slow_bench(200_000, Duration::from_millis(1), |settings| settings.prefill_chunk = 32);
    let outcome = bench.run(with_deadline(request(vec![1; 100_000], 5), 100));
    assert_eq!(outcome, Err(late(100)));
    let read: usize = bench.decoder.log.lock().iter().map(|&(_, tokens)| tokens).sum();
    assert!(read < 10_000, "{read} tokens were read");
}

#[test]
fn steps_are_as_long_as_they_may_take() {
    let read = |bench: &Bench| {
        bench.run(request(vec![1; 2000], 1)).unwrap();
        bench.decoder.log.lock().iter().map(|&(_, tokens)| tokens).collect::<Vec<_>>()
    };
    let quick = bench_with(|settings| settings.prefill_time = Duration::MAX);
    assert_eq!(read(&quick), [128, 256, 512, 512, 512, 80]);
    let slow = slow_bench(5000, Duration::from_micros(100), |settings| {
        settings.prefill_time = Duration::from_millis(4);
    });
    assert_eq!(read(&slow)[..4], [128, 32, 32, 32]);
}

#[test]
fn requests_wait_for_the_memory_of_others() {
    // 70 tokens each, and memory for 100.
    let bench = bench_with(|settings| settings.kv_bytes = 400);
    let held = bench.decoder.gate.lock();
    let mut first = bench.engine.stream(request(vec![1; 10], 60)).unwrap();
    bench.until(|state, _| state.kv_bytes == 280);
    let mut second = bench.engine.stream(request(vec![2; 10], 60)).unwrap();
    // Small enough, but it came later.
    let mut third = bench.engine.stream(request(vec![3; 10], 10)).unwrap();
    drop(held);
    assert_eq!(finish(&mut first), Ok(bench.expected(&[1; 10], 60)));
    assert_eq!(finish(&mut second), Ok(bench.expected(&[2; 10], 60)));
    assert_eq!(finish(&mut third), Ok(bench.expected(&[3; 10], 10)));
    let log = bench.decoder.log.lock().clone();
    assert!(log[..60].iter().all(|&(sequences, _)| sequences == 1), "{log:?}");
    bench.until(|state, _| state.kv_bytes == 0 && state.active == 0);
    assert_eq!(bench.engine.state().kv_limit, 400);
}

#[test]
fn memory_bounds_a_prompt_and_its_answer() {
    let bench = bench_with(|settings| settings.kv_bytes = 400);
    assert_eq!(bench.engine.context(), 100);
    let completion = bench.run(request(vec![1; 10], 500)).unwrap();
    assert_eq!((completion.tokens.len(), completion.reason), (90, FinishReason::Length));
    let refused = bench.run(request(vec![1; 100], 5)).unwrap_err().to_string();
    assert_eq!(
        refused,
        "prompt: the prompt has 100 tokens but kv_memory (400 B) holds the keys and values of 100 including the answer; \
         shorten it or raise kv_memory"
    );
    let bench = bench_of(5000, |settings| settings.max_context = Some(50));
    assert_eq!(bench.run(request(vec![1; 10], 500)).unwrap().tokens.len(), 40);
    let refused = bench.run(request(vec![1; 50], 5)).unwrap_err().to_string();
    assert_eq!(
        refused,
        "prompt: the prompt has 50 tokens but max_context allows 50 including the answer; shorten it or raise max_context"
    );
    let bench = bench_of(50, |settings| settings.max_context = Some(5000));
    let refused = bench.run(request(vec![1; 50], 5)).unwrap_err().to_string();
    assert!(refused.contains("but the model holds 50"), "{refused}");
}

#[test]
fn what_is_kept_for_reuse_makes_room_for_requests() {
    let elsewhere = Arc::new(Elsewhere::default());
    let bench = bench_with(|settings| {
        settings.kv_bytes = 400;
        settings.kv_memory = Some(Arc::clone(&elsewhere) as _);
    });
    bench.run(request(vec![1; 60], 1)).unwrap();
    bench.until(|state, _| (state.kv_bytes, state.prefix_bytes) == (0, 240));
    assert_eq!(bench.run(request(vec![2; 60], 1)).unwrap().tokens, bench.expected(&[2; 60], 1));
    bench.until(|state, _| (state.kv_bytes, state.prefix_bytes) == (0, 240));
    let kept = elsewhere.lent.lock().take().unwrap();
    assert_eq!(kept.upgrade().unwrap().reclaim(1), 240);
    let state = bench.engine.state();
    assert_eq!((state.kv_bytes, state.prefix_bytes), (0, 0));
    drop(bench);
    assert!(kept.upgrade().is_none(), "it ends with the engine");
}

/// Memory that others hold for a while.
#[derive(Debug, Default)]
struct Elsewhere {
    refusals: AtomicUsize,
    used: Arc<AtomicU64>,
    lent: Mutex<Option<Weak<dyn Reclaim>>>,
}

#[derive(Debug)]
struct Taken(Arc<AtomicU64>, u64);

impl KvMemory for Elsewhere {
    fn take(&self, bytes: u64) -> Result<Option<Box<dyn Allowance>>> {
        if bytes > 1000 {
            return Err(Error::Budget { model: "letters".into(), needed: bytes, budget: 1000, in_use: 0 });
        }
        let refused =
            self.refusals.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        if refused.is_ok() {
            return Ok(None);
        }
        self.used.fetch_add(bytes, Ordering::AcqRel);
        Ok(Some(Box::new(Taken(Arc::clone(&self.used), bytes))))
    }

    fn lend(&self, kept: Weak<dyn Reclaim>) {
        *self.lent.lock() = Some(kept);
    }
}

impl Allowance for Taken {
    fn shrink(&mut self, bytes: u64) {
        self.0.fetch_sub(self.1 - bytes, Ordering::AcqRel);
        self.1 = bytes;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::AcqRel);
    }
}

#[test]
fn memory_is_counted_elsewhere_too() {
    let elsewhere = Arc::new(Elsewhere { refusals: AtomicUsize::new(2), ..Elsewhere::default() });
    let bench = bench_with(|settings| settings.kv_memory = Some(Arc::clone(&elsewhere) as _));
    // It waits until there is some, and is reports when there never will be.
    assert_eq!(bench.run(request(vec![1; 10], 5)).unwrap().tokens, bench.expected(&[1; 10], 5));
    assert!(matches!(bench.run(request(vec![1; 300], 5)), Err(Error::Budget { .. })));
    // The last token was never computed.
    bench.until(|state, _| state.active == 0 && state.prefix_bytes == 56);
    assert_eq!(elsewhere.used.load(Ordering::Acquire), 56);
    drop(bench);
    assert_eq!(elsewhere.used.load(Ordering::Acquire), 0);
}

#[test]
fn a_request_without_memory_fails_alone() {
    let bench = bench();
    let mut other = bench.engine.stream(request(vec![1], 50)).unwrap();
    let refused = bench.run(request(vec![5; UNLUCKY - 64], 100));
    assert_eq!(refused, Err(Error::OutOfMemory { what: "a test".into(), bytes: 1 }));
    assert_eq!(finish(&mut other), Ok(bench.expected(&[1], 50)));
    bench.until(|state, totals| state.kv_bytes == 0 && totals.failed == 1);
}

/// Two answers of 200 tokens and memory for 250: each is whole, and the second one pauses.
#[test]
fn answers_take_memory_as_they_grow_and_pause_without() {
    let bench = bench_with(|settings| {
        settings.kv_bytes = 1000;
        settings.kept_prefixes = 0;
    });
    let held = bench.decoder.gate.lock();
    let mut first = bench.engine.stream(request(vec![1; 10], 200)).unwrap();
    let mut second = bench.engine.stream(request(vec![2; 10], 200)).unwrap();
    let mut third = bench.engine.stream(request(vec![3; 10], 200)).unwrap();
    drop(held);
    assert_eq!(finish(&mut first), Ok(bench.expected(&[1; 10], 200)));
    assert_eq!(finish(&mut second), Ok(bench.expected(&[2; 10], 200)));
    assert_eq!(finish(&mut third), Ok(bench.expected(&[3; 10], 200)));
    bench.until(|state, _| state.kv_bytes == 0 && state.active == 0);
    let (totals, log) = (bench.engine.totals(), bench.decoder.log.lock().clone());
    assert!(totals.paused >= 1, "{totals:?}");
    assert!(log.iter().any(|&(sequences, _)| sequences == 3), "all began together: {log:?}");
}

#[test]
fn a_paused_request_can_be_cancelled_and_can_be_late() {
    let bench = bench_with(|settings| settings.kv_bytes = 1000);
    let held = bench.decoder.gate.lock();
    let mut first = bench.engine.stream(request(vec![1; 10], 240)).unwrap();
    let mut second = bench.engine.stream(request(vec![2; 10], 200)).unwrap();
    let late = bench.engine.stream(with_deadline(request(vec![3; 10], 200), 1)).unwrap();
    drop(held);
    bench.until(|_, totals| totals.paused >= 1);
    second.cancel();
    assert_eq!(finish(&mut first), Ok(bench.expected(&[1; 10], 240)));
    let second = finish(&mut second).unwrap();
    assert_eq!(second, bench.expected(&[2; 10], 200)[..second.len()]);
    drop(late);
    bench.until(|state, _| state.kv_bytes == 0 && state.active == 0);
}

/// Memory that others take in the middle of an answer.
#[test]
fn an_answer_waits_for_memory_that_others_hold() {
    let elsewhere = Arc::new(Elsewhere::default());
    let bench = bench_with(|settings| settings.kv_memory = Some(Arc::clone(&elsewhere) as _));
    let held = bench.decoder.gate.lock();
    let mut answer = bench.engine.stream(request(vec![1; 10], 150)).unwrap();
    bench.until(|state, _| state.kv_bytes == 296);
    elsewhere.refusals.store(3, Ordering::Release);
    drop(held);
    assert_eq!(finish(&mut answer), Ok(bench.expected(&[1; 10], 150)));
    assert_eq!(elsewhere.refusals.load(Ordering::Acquire), 0);
    bench.until(|state, _| state.active == 0);
    assert!(bench.engine.totals().paused >= 1);
    drop((answer, bench));
    assert_eq!(elsewhere.used.load(Ordering::Acquire), 0);
}

#[test]
fn beginnings_are_reused_only_in_their_scope() {
    let bench = bench();
    let reused = |scope: Option<&str>| {
        let scope = scope.map(PrefixScope::new);
        bench.run(Request { scope, ..request((0..40).collect(), 2) }).unwrap().reused_tokens
    };
    assert_eq!([reused(Some("a")), reused(Some("b")), reused(None)], [0, 0, 0]);
    assert_eq!([reused(Some("a")), reused(Some("b")), reused(None)], [39, 39, 39]);
}
