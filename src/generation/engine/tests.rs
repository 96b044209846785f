use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::generation::GenerationParams;
use crate::generation::stop::tests::byte_level;
use crate::models::decoder::{KvCache, Step};
use crate::sync::Mutex;

/// Remembers the tokens themselves. It is cut at multiples of its second number. The others are bytes: of each token, and of
/// memory that it does not use.
pub(super) struct Remembered(Vec<u32>, usize, u64, u64);

impl KvCache for Remembered {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn cut(&self, len: usize) -> usize {
        if len < self.len() { len - len % self.1 } else { self.len() }
    }
    fn most_drafted(&self) -> usize {
        if self.1 == 1 { usize::MAX } else { 0 }
    }
    fn truncate(&mut self, len: usize) {
        self.0.truncate(self.cut(len));
    }
    fn reserve(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
    fn fork(&self, len: usize, _: usize) -> Result<Self> {
        Ok(Self(self.0[..self.cut(len)].to_vec(), self.1, self.2, 0))
    }
    fn shrink(&mut self) -> Result<()> {
        self.3 = 0;
        Ok(())
    }
    fn bytes(&self) -> u64 {
        self.2 * self.0.len() as u64 + self.3
    }
}

/// A letter that depends on every token before it, and accidents on demand.
pub(super) struct Letters {
    letters: Vec<u32>,
    context: usize,
    fails: u32,
    panics: u32,
    damages: u32,
    /// Where caches can be cut.
    pub(super) step: AtomicUsize,
    /// Bytes of a token in a cache, and those that a cache has more than it needs.
    pub(super) token_bytes: AtomicU64,
    pub(super) spare_bytes: AtomicU64,
    /// Whether steps with drafts fail.
    pub(super) fails_drafts: AtomicBool,
    /// Additional time for each token.
    nap: Duration,
    /// Steps wait here, so that a test can decide what meets in one.
    pub(super) gate: Mutex<()>,
    /// Sequences and tokens of each step.
    pub(super) log: Mutex<Vec<(usize, usize)>>,
    computed: AtomicUsize,
    /// Steps that have begun: they have their sequences, and may wait at the gate.
    begun: AtomicUsize,
}

impl Letters {
    fn next(&self, tokens: &[u32]) -> u32 {
        let hash = tokens.iter().fold(7u32, |hash, &token| hash.wrapping_mul(31).wrapping_add(token + 1));
        self.letters[(hash >> 8) as usize % self.letters.len()]
    }
}

impl Decoder for Letters {
    type Cache = Remembered;

    fn vocabulary(&self) -> usize {
        300
    }
    fn context(&self) -> usize {
        self.context
    }
    fn new_cache(&self, capacity: usize) -> Result<Remembered> {
        if capacity == UNLUCKY {
            return Err(Error::OutOfMemory { what: "a test".into(), bytes: 1 });
        }
        let [token, spare] =
            [&self.token_bytes, &self.spare_bytes].map(|bytes| bytes.load(Ordering::Relaxed));
        Ok(Remembered(Vec::new(), self.step.load(Ordering::Relaxed), token, spare))
    }
    fn cache_bytes(&self, capacity: usize) -> u64 {
        self.token_bytes.load(Ordering::Relaxed) * capacity as u64
    }
    fn forward(&self, steps: &mut [Step<'_, Remembered>], logits: &mut [f32]) -> Result<()> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let _open = self.gate.lock();
        let tokens = steps.iter().map(|step| step.tokens.len()).sum();
        self.log.lock().push((steps.len(), tokens));
        if !self.nap.is_zero() {
            std::thread::sleep(self.nap * tokens as u32);
        }
        self.computed.fetch_add(tokens, Ordering::Relaxed);
        let mut rows = logits.chunks_exact_mut(300);
        for step in steps {
            let drafted = step.cache.len() >= step.prompt && step.logits > 1;
            step.cache.0.extend_from_slice(step.tokens);
            if drafted && self.fails_drafts.load(Ordering::Relaxed) {
                return Err(Error::OutOfMemory { what: "a draft".into(), bytes: 1 });
            }
            assert!(!step.tokens.contains(&self.panics), "the model panics");
            if step.tokens.contains(&self.fails) {
                return Err(Error::Input("the model fails".into()));
            }
            let text = &step.cache.0;
            for end in text.len() + 1 - step.logits..=text.len() {
                let row = rows.next().expect("a row for each that wants one");
                row.fill(0.0);
                row[256..].fill(-1e30);
                row[self.next(&text[..end]) as usize] = 1.0;
                if text[..end].contains(&self.damages) {
                    row[3] = f32::NAN;
                }
            }
        }
        Ok(())
    }
}

pub(super) struct Bench {
    pub(super) decoder: Arc<Letters>,
    tokens: Arc<TextTokens>,
    pub(super) engine: Engine,
}

/// A cache of so many tokens finds no memory.
pub(super) const UNLUCKY: usize = 777;

pub(super) const END: u32 = 290;

/// More tokens than any machine writes before a test ends: only a cancellation ends such a request.
pub(super) const ENDLESS: usize = 1 << 40;

pub(super) fn bench_with(change: impl FnOnce(&mut EngineSettings)) -> Bench {
    bench_of(2 * ENDLESS, change)
}

pub(super) fn bench_of(context: usize, change: impl FnOnce(&mut EngineSettings)) -> Bench {
    slow_bench(context, Duration::ZERO, change)
}

pub(super) fn slow_bench(context: usize, nap: Duration, change: impl FnOnce(&mut EngineSettings)) -> Bench {
    bench_up_to('z', context, nap, change)
}

/// The model writes the letters up to `last`.
pub(super) fn bench_up_to(
    last: char,
    context: usize,
    nap: Duration,
    change: impl FnOnce(&mut EngineSettings),
) -> Bench {
    let tokens = Arc::new(byte_level());
    let letters = ('a'..=last).map(|letter| tokens.id(&letter.to_string()).unwrap()).collect();
    let decoder = Arc::new(Letters {
        letters,
        context,
        fails: 280,
        panics: 281,
        damages: 282,
        step: AtomicUsize::new(1),
        token_bytes: AtomicU64::new(4),
        spare_bytes: AtomicU64::new(0),
        fails_drafts: AtomicBool::new(false),
        nap,
        gate: Mutex::new(()),
        log: Mutex::default(),
        computed: AtomicUsize::new(0),
        begun: AtomicUsize::new(0),
    });
    let mut settings = EngineSettings::new("letters", vec![END]);
    change(&mut settings);
    let engine = Engine::start(decoder.clone(), tokens.clone(), settings).unwrap();
    Bench { decoder, tokens, engine }
}

pub(super) fn bench() -> Bench {
    bench_with(|_| ())
}

pub(super) fn request(prompt: Vec<u32>, new: usize) -> Request {
    let params = GenerationParams { max_new_tokens: Some(new), ..Default::default() };
    Request { prompt, params, continues: false, scope: None, deadline: None }
}

pub(super) fn unchecked() -> Result<()> {
    Ok(())
}

impl Bench {
    pub(super) fn expected(&self, prompt: &[u32], new: usize) -> Vec<u32> {
        let mut tokens = prompt.to_vec();
        for _ in 0..new {
            tokens.push(self.decoder.next(&tokens));
        }
        tokens.split_off(prompt.len())
    }

    pub(super) fn run(&self, request: Request) -> Result<Completion> {
        self.engine.generate(request, &mut unchecked)
    }

    /// Waits until the first step has begun: a request that comes now is in a later one.
    pub(super) fn until_computing(&self) {
        self.until(|_, _| self.decoder.begun.load(Ordering::Relaxed) > 0);
    }

    /// Waits until `ready` says so of the engine's state and totals.
    pub(super) fn until(&self, ready: impl Fn(EngineState, GenerationTotals) -> bool) {
        let started = Instant::now();
        while !ready(self.engine.state(), self.engine.totals()) {
            let figures = (self.engine.state(), self.engine.totals());
            assert!(started.elapsed() < Duration::from_secs(20), "{figures:?}");
            std::thread::yield_now();
        }
    }
}

#[test]
fn racing_requests_get_the_answers_they_would_get_alone() {
    let bench = bench_with(|settings| settings.max_active = 3);
    std::thread::scope(|scope| {
        for thread in 0..8u32 {
            let bench = &bench;
            scope.spawn(move || {
                for round in 0..20u32 {
                    let prompt: Vec<u32> =
                        (0..5 + round * thread % 37).map(|i| (i * (thread % 3) + 7) % 250).collect();
                    let new = 1 + (round as usize * 7 + thread as usize) % 30;
                    let completion = bench.run(request(prompt.clone(), new)).unwrap();
                    assert_eq!(completion.tokens, bench.expected(&prompt, new));
                    assert_eq!(completion.text, bench.tokens.decode(&completion.tokens).unwrap());
                    assert_eq!(completion.reason, FinishReason::Length);
                    assert_eq!(completion.prompt_tokens, prompt.len());
                }
            });
        }
    });
    bench.until(|state, _| state.active == 0);
    let totals = bench.engine.totals();
    assert_eq!((totals.requests, totals.completed, totals.failed, totals.cancelled), (160, 160, 0, 0));
    let most = bench.decoder.log.lock().iter().map(|&(sequences, _)| sequences).max();
    assert!(most.is_some_and(|most| most > 1 && most <= 3), "{most:?} decoded together");
}

#[test]
fn a_request_joins_between_steps() {
    let bench = bench();
    let held = bench.decoder.gate.lock();
    let first = bench.engine.stream(request(vec![1, 2, 3], 50)).unwrap();
    bench.until_computing();
    let others: Vec<_> = (0..3).map(|i| bench.engine.stream(request(vec![4 + i], 5)).unwrap()).collect();
    drop(held);
    for mut stream in others.into_iter().chain([first]) {
        while stream.next(&mut unchecked).unwrap().is_some() {}
    }
    let log = bench.decoder.log.lock().clone();
    assert_eq!(log[..3], [(1, 3), (4, 4), (4, 4)]);
    assert_eq!(log.len(), 50, "no request waited for another: {log:?}");
}

#[test]
fn a_long_prompt_does_not_stall_the_others() {
    let bench = bench_with(|settings| (settings.prefill_chunk, settings.prefill_time) = (64, Duration::MAX));
    let held = bench.decoder.gate.lock();
    let short = bench.engine.stream(request(vec![1], 12)).unwrap();
    bench.until_computing();
    let prompt: Vec<u32> = (0..1000).map(|i| i % 250).collect();
    let mut long = bench.engine.stream(request(prompt.clone(), 2)).unwrap();
    drop(held);
    while long.next(&mut unchecked).unwrap().is_some() {}
    drop(short);
    assert_eq!(long.completion().unwrap().tokens, bench.expected(&prompt, 2));
    let log = bench.decoder.log.lock().clone();
    assert_eq!(log[..12], [[(1, 1)].as_slice(), &[(2, 65); 11]].concat());
}

#[test]
fn a_cancelled_request_stops_within_a_token() {
    let bench = bench();
    let ticket: Arc<Mutex<Option<EngineTicket>>> = Arc::default();
    let (sender, events) = mpsc::channel();
    let for_callback = ticket.clone();
    let held = bench.decoder.gate.lock();
    *ticket.lock() = Some(
        bench
            .engine
            .submit(
                request(vec![5], ENDLESS),
                Box::new(move |event| {
                    if let Some(ticket) = for_callback.lock().take() {
                        ticket.cancel();
                    }
                    sender.send(event).unwrap();
                }),
            )
            .unwrap(),
    );
    drop(held);
    let events: Vec<_> = events.iter().collect();
    let Some(Event::Done(Ok(completion))) = events.last() else { panic!("{events:?}") };
    assert_eq!((completion.reason, completion.tokens.len()), (FinishReason::Cancelled, 1));
    bench.until(|state, totals| state.active == 0 && totals.cancelled == 1);
}

#[test]
fn a_waiting_request_is_cancelled_though_the_engine_is_full() {
    let bench = bench_with(|settings| settings.max_active = 1);
    let busy = bench.engine.stream(request(vec![1], ENDLESS)).unwrap();
    let mut waiting = bench.engine.stream(request(vec![2], 10)).unwrap();
    waiting.cancel();
    assert_eq!(waiting.next(&mut unchecked).unwrap(), None);
    assert_eq!(waiting.completion().unwrap().reason, FinishReason::Cancelled);
    drop(busy);
    bench.until(|state, totals| totals.cancelled == 2 && state.active == 0);
}

#[test]
fn a_failing_check_cancels_and_is_returned() {
    let bench = bench();
    let mut calls = 0;
    let mut check = || {
        calls += 1;
        if calls > 3 { Err(Error::Input("interrupted".into())) } else { Ok(()) }
    };
    let outcome = bench.engine.generate(request(vec![1], ENDLESS), &mut check);
    assert_eq!(outcome, Err(Error::Input("interrupted".into())));
    bench.until(|state, totals| totals.cancelled == 1 && state.active == 0);
}

#[test]
fn an_accident_reaches_only_its_own_request() {
    accidents(1);
}

#[test]
fn nor_another_whose_cache_is_shortened_by_more_than_the_step() {
    accidents(4);
}

fn accidents(step: usize) {
    let bench = bench_with(|settings| settings.prefill_chunk = 16);
    bench.decoder.step.store(step, Ordering::Relaxed);
    let held = bench.decoder.gate.lock();
    let blocker = bench.engine.stream(request(vec![1], 1)).unwrap();
    bench.until_computing();
    // The third fails in a later step, when others have written some tokens.
    let late = (0..60).chain([280]).collect();
    let prompts = [vec![3, 4], vec![9, 280], late, vec![281], vec![282, 1], vec![6], vec![5]];
    let streams: Vec<_> =
        prompts.iter().map(|p| bench.engine.stream(request(p.clone(), 9)).unwrap()).collect();
    drop(held);
    drop(blocker);
    let outcomes: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            while stream.next(&mut unchecked)?.is_some() {}
            Ok(stream.completion().unwrap().tokens.clone())
        })
        .collect();
    for failed in [1, 2] {
        assert_eq!(outcomes[failed], Err(Error::Input("the model fails".into())));
    }
    assert!(matches!(&outcomes[3], Err(Error::Internal { reason, .. }) if reason == "the model panics"));
    assert_eq!(outcomes[4], Err(Error::NotFinite { model: "letters".into() }));
    for good in [0, 5, 6] {
        assert_eq!(outcomes[good], Ok(bench.expected(&prompts[good], 9)), "prompt {good}");
    }
    bench.until(|_, totals| totals.failed == 4);
    assert!(bench.run(request(vec![8], 3)).is_ok(), "the worker lives on");
}

#[test]
fn too_many_waiting_requests_are_refused() {
    let bench = bench_with(|settings| (settings.max_active, settings.max_queue) = (1, 2));
    let held = bench.decoder.gate.lock();
    let mut streams = vec![bench.engine.stream(request(vec![1], 1)).unwrap()];
    bench.until_computing();
    streams.extend((0..2).map(|_| bench.engine.stream(request(vec![1], 1)).unwrap()));
    let refused = bench.engine.stream(request(vec![1], 1)).map(|_| ());
    assert_eq!(
        refused,
        Err(Error::Overloaded {
            model: "letters".into(),
            queued: 2,
            limit: 2,
            setting: "max_generation_queue"
        })
    );
    drop(held);
    for mut stream in streams {
        while stream.next(&mut unchecked).unwrap().is_some() {}
    }
    assert!(bench.run(request(vec![1], 1)).is_ok());
}

#[test]
fn the_next_turn_computes_only_what_is_new() {
    let bench = bench();
    let mut conversation: Vec<u32> = (0..100).collect();
    let first = bench.run(request(conversation.clone(), 10)).unwrap();
    assert_eq!((first.reused_tokens, bench.decoder.computed.load(Ordering::Relaxed)), (0, 109));
    conversation.extend(&first.tokens);
    conversation.extend([11, 12, 13]);
    let second = bench.run(request(conversation.clone(), 5)).unwrap();
    assert_eq!(second.reused_tokens, 109);
    assert_eq!(second.tokens, bench.expected(&conversation, 5));
    assert_eq!(bench.decoder.computed.load(Ordering::Relaxed), 109 + 4 + 4);
    bench.until(|state, totals| state.prefix_bytes > 0 && totals.reused_tokens == 109);
}

#[test]
fn the_end_of_a_stream_stays_its_end() {
    let bench = bench();
    let mut stream = bench.engine.stream(request(vec![5, 6], 4)).unwrap();
    while stream.next(&mut unchecked).unwrap().is_some() {}
    assert_eq!(stream.completion().map(|completion| completion.tokens.len()), Some(4));
    assert_eq!(stream.next(&mut unchecked), Ok(None));
    let mut failed = bench.engine.stream(request(vec![5, 6], ENDLESS)).unwrap();
    assert_eq!(failed.next(&mut || Err(Error::Cancelled)), Err(Error::Cancelled));
    assert_eq!(failed.next(&mut unchecked), Ok(None));
    assert!(failed.completion().is_none());
}

#[test]
fn stop_texts_and_end_tokens_end_the_answer() {
    let bench = bench();
    let free = bench.run(request(vec![1, 2], 20)).unwrap();
    let stop = free.text[6..9].to_owned();
    let mut stopped = request(vec![1, 2], 20);
    stopped.params.stop = vec![stop.clone()];
    let mut stream = bench.engine.stream(stopped).unwrap();
    let mut text = String::new();
    while let Some(piece) = stream.next(&mut unchecked).unwrap() {
        text.push_str(&piece);
    }
    let completion = stream.completion().unwrap();
    assert_eq!(completion.reason, FinishReason::Stop);
    assert_eq!(text, free.text[..free.text.find(&stop).unwrap()]);
    assert_eq!(completion.text, text);

    let last = bench.expected(&[1, 2], 4)[3];
    let ending = bench_with(|settings| settings.eos_ids = vec![last]);
    let completion = ending.run(request(vec![1, 2], 20)).unwrap();
    let first = free.tokens.iter().position(|&token| token == last).unwrap();
    assert_eq!((completion.reason, completion.tokens.len()), (FinishReason::Stop, first + 1));
    assert_eq!(completion.text, free.text[..first], "the end token is no text");
}

#[test]
fn impossible_requests_are_refused_at_once() {
    let bench = bench_of(2000, |_| ());
    let refusal = |request| bench.run(request).unwrap_err().to_string();
    assert!(refusal(request(vec![], 5)).contains("the prompt is empty"));
    assert!(refusal(request(vec![0; 2000], 5)).contains("2000 tokens"));
    assert!(refusal(request(vec![300], 5)).contains("token 300"));
    let mut wrong = request(vec![1], 5);
    wrong.params.top_p = 2.0;
    assert!(refusal(wrong).starts_with("top_p=2"));
    assert_eq!(bench.engine.totals().requests, 0);
}

#[test]
fn the_context_ends_an_answer() {
    let bench = bench_of(2000, |_| ());
    let completion = bench.run(request(vec![1; 1990], 500)).unwrap();
    assert_eq!((completion.tokens.len(), completion.reason), (10, FinishReason::Length));
}

#[test]
fn closing_ends_every_request() {
    let bench = bench_with(|settings| settings.max_active = 1);
    let held = bench.decoder.gate.lock();
    let mut active = bench.engine.stream(request(vec![1], ENDLESS)).unwrap();
    bench.until_computing();
    let mut waiting = bench.engine.stream(request(vec![1], 5)).unwrap();
    let Bench { engine, .. } = bench;
    let monitor = engine.worker.monitor();
    let stopping = || monitor.is_stopping();
    std::thread::scope(|scope| {
        scope.spawn(move || drop(engine));
        while !stopping() {
            std::thread::yield_now();
        }
        drop(held);
        let end = |stream: &mut Stream| loop {
            match stream.next(&mut unchecked) {
                Ok(Some(_)) => {}
                other => return other,
            }
        };
        assert_eq!(end(&mut active), Err(Error::Closed));
        assert_eq!(end(&mut waiting), Err(Error::Closed));
    });
}

#[test]
fn a_panicking_callback_drops_its_request_only() {
    let bench = bench();
    bench.engine.submit(request(vec![1], ENDLESS), Box::new(|_| panic!("callback"))).unwrap();
    assert_eq!(bench.run(request(vec![2], 5)).unwrap().tokens, bench.expected(&[2], 5));
    bench.until(|state, totals| totals.cancelled == 1 && state.active == 0);
}

#[test]
fn sampled_answers_repeat_by_seed() {
    let bench = bench();
    let sampled = |seed| {
        let mut request = request(vec![1], 40);
        (request.params.do_sample, request.params.top_k, request.params.seed) = (true, 0, seed);
        bench.run(request).unwrap()
    };
    let fresh = sampled(None);
    let again = sampled(fresh.seed);
    assert_eq!(fresh.tokens, again.tokens);
    assert_ne!(fresh.tokens, sampled(None).tokens);
}
