//! A conversation that goes on needs the memory of one.

use std::sync::atomic::Ordering;

use super::tests::{Bench, bench_with, request};

/// The memory of a conversation's last turn, at most: 4 bytes for each token.
const LIMIT: u64 = 4 * 220;

fn bench(kv_bytes: u64) -> Bench {
    bench_with(|settings| settings.kv_bytes = kv_bytes)
}

/// Turns of a conversation, each with the answer before: how many tokens of each were reused.
fn turns(bench: &Bench, first: u32, count: usize) -> Vec<usize> {
    let mut conversation: Vec<u32> = (first..first + 100).collect();
    let mut reused = Vec::new();
    for _ in 0..count {
        let completion = bench.run(request(conversation.clone(), 10)).unwrap();
        assert_eq!(completion.tokens, bench.expected(&conversation, 10));
        reused.push(completion.reused_tokens);
        conversation.extend(&completion.tokens);
        conversation.extend([11, 12, 13]);
    }
    reused
}

#[test]
fn a_conversation_needs_the_memory_of_its_longest_turn() {
    let bench = bench(LIMIT);
    assert_eq!(turns(&bench, 0, 4), [0, 109, 122, 135]);
    bench.until(|state, totals| state.active == 0 && totals.completed == 4);
    assert_eq!(bench.engine.totals().paused, 0);
}

/// The memory of keys and values is the only limit: a token of a large model takes megabytes of it.
#[test]
fn a_conversation_is_kept_as_far_as_there_is_memory() {
    let mebibyte = 1 << 20;
    for (kv_bytes, reused) in [(u64::MAX, [0, 109, 122]), (220 * 4 * mebibyte, [0, 109, 122])] {
        let bench = bench(kv_bytes);
        bench.decoder.token_bytes.store(4 * mebibyte, Ordering::Relaxed);
        assert_eq!(turns(&bench, 0, 3), reused);
        bench.until(|state, _| state.active == 0 && state.prefix_bytes == 135 * 4 * mebibyte);
    }
}

/// A copy without the memory that a cache does not use needs memory too.
#[test]
fn a_conversation_without_memory_for_a_copy_keeps_its_own() {
    let bench = bench(LIMIT);
    bench.decoder.spare_bytes.store(8, Ordering::Relaxed);
    assert_eq!(turns(&bench, 0, 4), [0, 109, 122, 135]);
}

#[test]
fn two_conversations_in_the_memory_of_one_answer_both() {
    let bench = bench(LIMIT);
    for first in [0, 130, 0] {
        assert_eq!(turns(&bench, first, 2), [0, 109]);
    }
    let enough = self::bench(u64::MAX);
    assert_eq!([0, 130, 0].map(|first| turns(&enough, first, 2)), [[0, 109], [0, 109], [99, 112]]);
}

/// Without memory for a copy, the beginning that two texts share is taken from the first.
#[test]
fn a_common_beginning_is_cut_where_there_is_no_memory_for_a_copy() {
    let text: Vec<u32> = (0..100).collect();
    let other: Vec<u32> = (0..60).chain(200..240).collect();
    for (kv_bytes, again) in [(4 * 130, 60), (u64::MAX, 99)] {
        let bench = bench(kv_bytes);
        let run = |prompt: &Vec<u32>| {
            let completion = bench.run(request(prompt.clone(), 10)).unwrap();
            assert_eq!(completion.tokens, bench.expected(prompt, 10));
            completion.reused_tokens
        };
        assert_eq!([run(&text), run(&other), run(&text)], [0, 60, again]);
    }
}

/// While another request has the memory, a conversation that waits loses nothing.
#[test]
fn a_conversation_that_waits_keeps_what_it_has() {
    let bench = bench(4 * 330);
    let conversation: Vec<u32> = (0..100).collect();
    let first = bench.run(request(conversation.clone(), 10)).unwrap();
    let next: Vec<u32> = conversation.iter().chain(&first.tokens).copied().chain([11, 12, 13]).collect();
    let held = bench.decoder.gate.lock();
    let busy = bench.engine.stream(request(vec![1; 150], 10)).unwrap();
    let mut waiting = bench.engine.stream(request(next.clone(), 60)).unwrap();
    drop(held);
    while waiting.next(&mut super::tests::unchecked).unwrap().is_some() {}
    let completion = waiting.completion().unwrap();
    assert_eq!((completion.reused_tokens, &completion.tokens), (109, &bench.expected(&next, 60)));
    drop(busy);
}
