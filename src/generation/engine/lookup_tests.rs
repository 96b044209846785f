//! Answers with drafts are those without.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::tests::{Bench, END, ENDLESS, bench_up_to, request, unchecked};
use super::*;
use crate::generation::GenerationParams;
use crate::sync::Mutex;

/// A model of few letters writes the same runs again and again, and each choice depends on all tokens before it, so that drafts
/// are right, partly right and wrong.
fn bench(last: char, drafted: usize) -> Bench {
    bench_up_to(last, 2 * ENDLESS, Duration::ZERO, |settings| settings.prompt_lookup_tokens = drafted)
}

fn forms() -> Vec<GenerationParams> {
    let plain = GenerationParams { max_new_tokens: Some(200), ..Default::default() };
    let sampled = |seed| GenerationParams {
        do_sample: true,
        // The logits are 0 and 1, so that any token may be drawn.
        temperature: 0.08,
        seed: Some(seed),
        ..plain.clone()
    };
    vec![
        plain.clone(),
        GenerationParams { max_new_tokens: Some(1), ..plain.clone() },
        GenerationParams { max_new_tokens: Some(7), ..plain.clone() },
        GenerationParams { stop: vec!["abba".into(), "aaaaaaaaaaaaaaaaaaa".into()], ..plain.clone() },
        GenerationParams { repetition_penalty: 1.3, ..sampled(5) },
        GenerationParams { no_repeat_ngram_size: 6, ..plain.clone() },
        sampled(1),
        sampled(2),
    ]
}

#[test]
fn answers_are_the_same() {
    let mut totals = GenerationTotals::default();
    for last in ['a', 'b', 'c'] {
        let (plain, drafting) = (bench(last, 0), bench(last, 8));
        for params in forms() {
            let request = Request { params, ..request((0..40).map(|i| 65 + i % 3).collect(), 1) };
            let [expected, found] = [&plain, &drafting].map(|bench| bench.run(request.clone()).unwrap());
            assert_eq!(found.tokens, expected.tokens, "{last} {:?}", request.params);
            assert_eq!((&found.text, found.reason), (&expected.text, expected.reason));
        }
        let computed = |bench: &Bench| bench.decoder.log.lock().len();
        assert!(computed(&drafting) < computed(&plain), "{last}: as many steps");
        assert_eq!(plain.engine.totals().drafted_tokens, 0);
        let of = drafting.engine.totals();
        totals.drafted_tokens += of.drafted_tokens;
        totals.accepted_tokens += of.accepted_tokens;
        assert_eq!(of.generated_tokens, plain.engine.totals().generated_tokens);
    }
    // Some drafts are right, and some are not.
    assert!(0 < totals.accepted_tokens && totals.accepted_tokens < totals.drafted_tokens, "{totals:?}");
}

#[test]
fn answers_written_together_are_the_same() {
    let bench = bench('b', 8);
    std::thread::scope(|scope| {
        for thread in 0..6u32 {
            let bench = &bench;
            scope.spawn(move || {
                for round in 0..10 {
                    let prompt: Vec<u32> = (0..30 + round).map(|i| 65 + (i * thread) % 7).collect();
                    let new = 20 + round as usize * 9;
                    let completion = bench.run(request(prompt.clone(), new)).unwrap();
                    assert_eq!(completion.tokens, bench.expected(&prompt, new));
                }
            });
        }
    });
    assert!(bench.engine.totals().accepted_tokens > 0);
}

#[test]
fn steps_stay_small() {
    // A setting is kept for one answer alone.
    let alone = bench('a', 20);
    alone.run(request(vec![1], 200)).unwrap();
    assert_eq!(alone.decoder.log.lock().iter().map(|&(_, rows)| rows).max(), Some(21));
    let bench = bench('a', 8);
    let held = bench.decoder.gate.lock();
    let first = bench.engine.stream(request(vec![1], 1)).unwrap();
    bench.until_computing();
    let mut streams: Vec<_> =
        (0..4).map(|index| bench.engine.stream(request(vec![index; 1], 80)).unwrap()).collect();
    drop((held, first));
    for stream in &mut streams {
        while stream.next(&mut unchecked).unwrap().is_some() {}
    }
    let log = bench.decoder.log.lock().clone();
    let most = log.iter().map(|&(_, rows)| rows).max();
    assert_eq!(most, Some(12), "{log:?}");
}

#[test]
fn a_draft_ends_with_the_answer_the_context_and_the_memory() {
    // The context and the memory hold what was asked for, and no more.
    for (context, kv_bytes) in [(120, u64::MAX), (2 * ENDLESS, 4 * 120)] {
        let bench = bench_up_to('a', context, Duration::ZERO, |settings| {
            (settings.prompt_lookup_tokens, settings.kv_bytes) = (8, kv_bytes);
        });
        let completion = bench.run(request(vec![70; 20], 100)).unwrap();
        assert_eq!((completion.tokens.len(), completion.reason), (100, FinishReason::Length));
        assert!(bench.engine.totals().accepted_tokens > 0);
        let most = bench.decoder.log.lock().iter().map(|&(_, rows)| rows).sum::<usize>();
        assert!(most <= 119, "{most} tokens computed");
    }
}

#[test]
fn an_end_token_in_a_draft_ends_the_answer() {
    let bench = bench('a', 8);
    let letter = bench.expected(&[1], 1)[0];
    // What the prompt shows ends with an end token; the model goes on.
    let prompt = [&[letter; 6][..], &[END], &[letter; 6]].concat();
    let completion = bench.run(request(prompt.clone(), 30)).unwrap();
    assert_eq!(completion.tokens, bench.expected(&prompt, 30));
}

#[test]
fn a_step_that_fails_with_a_draft_is_done_without() {
    for together in [1, 3] {
        let bench = bench('a', 8);
        bench.decoder.fails_drafts.store(true, Ordering::Relaxed);
        let mut streams: Vec<_> =
            (0..together).map(|index| bench.engine.stream(request(vec![index; 1], 40)).unwrap()).collect();
        for (index, stream) in streams.iter_mut().enumerate() {
            while stream.next(&mut unchecked).unwrap().is_some() {}
            let completion = stream.completion().unwrap();
            assert_eq!(completion.tokens, bench.expected(&[index as u32], 40));
        }
        bench.until(|state, totals| state.active == 0 && totals.completed == u64::from(together));
        assert_eq!(bench.engine.totals().drafted_tokens, 0);
    }
}

#[test]
fn caches_that_cannot_be_cut_get_no_drafts() {
    let bench = bench('a', 8);
    bench.decoder.step.store(4, Ordering::Relaxed);
    assert_eq!(bench.run(request(vec![1], 50)).unwrap().tokens, bench.expected(&[1], 50));
    assert_eq!(bench.engine.totals().drafted_tokens, 0);
}

#[test]
fn a_cancelled_answer_stops_within_a_token() {
    let bench = bench('a', 8);
    let ticket: Arc<Mutex<Option<EngineTicket>>> = Arc::default();
    let (sender, events) = mpsc::channel();
    let (for_callback, mut pieces) = (ticket.clone(), 0);
    let held = bench.decoder.gate.lock();
    let on_event = move |event: Event| {
        pieces += 1;
        // In the middle of a draft.
        if pieces == 50 {
            for_callback.lock().take().unwrap().cancel();
        }
        sender.send(event).unwrap();
    };
    *ticket.lock() = Some(bench.engine.submit(request(vec![5], ENDLESS), Box::new(on_event)).unwrap());
    drop(held);
    let events: Vec<_> = events.iter().collect();
    let Some(Event::Done(Ok(completion))) = events.last() else { panic!("{events:?}") };
    assert_eq!((completion.reason, completion.tokens.len()), (FinishReason::Cancelled, 50));
    let totals = bench.engine.totals();
    assert!(totals.accepted_tokens > 40 || totals.generated_tokens == 0, "{totals:?}");
}
