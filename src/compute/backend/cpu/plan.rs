//! The division of a batch into parts, and the threads that run them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::compute::batch::PackedBatch;

/// The approximate number of tokens of a part. With so many, weights are seldom read from main memory, and with so few,
/// the activations of a thread stay in its second-level cache.
const TOKENS: usize = 256;

/// The same for weights that exceed all caches, which every part reads from main memory.
const TOKENS_OF_LARGE: usize = 512;

/// Bytes above which weights exceed all caches.
const LARGE: u64 = 64 << 20;

/// The cost of a parallel part in percent of a single-threaded one: fork-joins, and tiles that are not full.
const PARALLEL_COST: usize = 110;

/// The additional cost of a plan with single and parallel parts, in tokens of one thread: all weights are read once more.
const MIXED_COST: usize = 8;

/// The load of the busiest thread, in percent of the average, from which on parallel parts are considered.
const IMBALANCE: usize = 103;

/// The parts of a batch. Each sequence is in one of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Parts that one thread each runs through the model.
    pub single: Vec<Vec<usize>>,
    /// Parts that all threads run in parallel afterwards, one part at a time.
    pub parallel: Vec<Vec<usize>>,
}

impl Plan {
    /// A plan for a model with `bytes` bytes of weights.
    pub(super) fn new(batch: &PackedBatch<'_>, threads: usize, bytes: u64) -> Self {
        let most = if bytes > LARGE { TOKENS_OF_LARGE } else { TOKENS };
        let tokens = |sequences: &[usize]| sequences.iter().map(|&i| batch.range(i).len()).sum::<usize>();
        let single =
            |sequences: &[usize]| cut(batch, sequences, threads * tokens(sequences).div_ceil(threads * most));
        // The time is that of the busiest thread. A part goes to the first idle thread.
        let busiest = |sequences: &[usize]| {
            let mut loads = vec![0; threads];
            for part in single(sequences) {
                if let Some(load) = loads.iter_mut().min() {
                    *load += tokens(&part);
                }
            }
            loads.into_iter().max().unwrap_or(0)
        };
        let mut longest: Vec<usize> = (0..batch.sequences()).collect();
        longest.sort_by_key(|&sequence| Reverse(batch.range(sequence).len()));
        // The longest sequences cause the imbalance, so they become parallel parts.
        let (mut shared, mut least) = (0, busiest(&longest) * 100);
        if threads > 1 && least * threads > batch.tokens() * IMBALANCE {
            for count in (1..=longest.len().min(2 * threads)).chain([longest.len()]) {
                let (first, rest) = longest.split_at(count);
                let both = if rest.is_empty() { 0 } else { MIXED_COST };
                let time = (busiest(rest) + both) * 100 + tokens(first) * PARALLEL_COST / threads;
                if time * IMBALANCE < least * 100 {
                    (shared, least) = (count, time);
                }
            }
        }
        let (first, rest) = longest.split_at(shared);
        Self { single: single(rest), parallel: cut(batch, first, tokens(first).div_ceil(most)) }
    }
}

/// Divides sequences, longest first, into at most `parts` parts with about the same number of tokens: each goes to the part
/// with the fewest. The sequences of a part are in the order of the batch.
fn cut(batch: &PackedBatch<'_>, longest: &[usize], parts: usize) -> Vec<Vec<usize>> {
    let mut least: BinaryHeap<_> = (0..parts.max(1)).map(|part| Reverse((0, part))).collect();
    let mut cut = vec![Vec::new(); parts.max(1)];
    for &sequence in longest {
        let Some(mut part) = least.peek_mut() else { break };
        cut[part.0.1].push(sequence);
        part.0.0 += batch.range(sequence).len();
    }
    cut.retain(|part| !part.is_empty());
    cut.iter_mut().for_each(|part| part.sort_unstable());
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(lengths: &[u32], threads: usize) -> Plan {
        plan_of(lengths, threads, 0)
    }

    fn plan_of(lengths: &[u32], threads: usize, bytes: u64) -> Plan {
        let mut offsets = vec![0];
        for length in lengths {
            offsets.push(offsets.last().unwrap() + length);
        }
        let ids = vec![0; *offsets.last().unwrap() as usize];
        let plan = Plan::new(&PackedBatch::new(&ids, &offsets).unwrap(), threads, bytes);
        let mut covered = [plan.single.concat(), plan.parallel.concat()].concat();
        covered.sort_unstable();
        assert_eq!(covered, (0..lengths.len()).collect::<Vec<_>>(), "{lengths:?}");
        plan
    }

    #[test]
    fn many_sequences_are_divided_evenly() {
        let even = plan(&[20; 100], 2);
        assert!(even.parallel.is_empty() && even.single.len() == 8);
        assert!(even.single.iter().all(|part| part.len() == 12 || part.len() == 13));
        assert_eq!(plan_of(&[20; 100], 2, LARGE + 1).single.len(), 4);
        assert_eq!(plan(&[18, 19], 2).single, [[1], [0]]);
    }

    #[test]
    fn parts_are_as_even_as_their_sequences_allow() {
        let lengths: Vec<u32> = (0..97).map(|i| 5 + i * 37 % 61).collect();
        let total: u32 = lengths.iter().sum();
        let plan = plan(&lengths, 4);
        let load = |part: &Vec<usize>| part.iter().map(|&sequence| lengths[sequence]).sum::<u32>();
        let loads: Vec<_> = plan.single.iter().map(load).collect();
        assert!(plan.parallel.is_empty() && plan.single.iter().all(|part| part.is_sorted()));
        let even = total as f32 / loads.len() as f32;
        assert!(loads.iter().all(|&load| (load as f32 - even).abs() < even / 50.0), "{loads:?}");
    }

    #[test]
    fn too_few_sequences_run_in_parallel() {
        for lengths in [&[18][..], &[256], &[256, 8], &[5000]] {
            assert!(
                plan(lengths, 2).single.concat().len() < 2 && !plan(lengths, 2).parallel.is_empty(),
                "{lengths:?}"
            );
        }
        assert_eq!(
            plan(&[5000, 20, 20], 2),
            Plan { single: vec![vec![1], vec![2]], parallel: vec![vec![0]] }
        );
    }

    #[test]
    fn a_remainder_runs_in_parallel() {
        assert_eq!(plan(&[300; 3], 2), Plan { single: vec![vec![1], vec![2]], parallel: vec![vec![0]] });
        let odd = plan_of(&[264; 15], 2, LARGE + 1);
        assert_eq!((odd.parallel.concat(), odd.single.concat().len()), (vec![0], 14));
        // A short remainder is not worth reading all weights once more.
        assert!(plan(&[18; 15], 2).parallel.is_empty());
        // 20 on 16 threads: in a second round, twelve threads would be idle.
        assert_eq!(plan(&[100; 20], 16).parallel.concat().len(), 4);
    }

    #[test]
    fn one_thread_has_no_parallel_parts() {
        for lengths in [&[18][..], &[300; 3], &[5000, 20]] {
            assert!(plan(lengths, 1).parallel.is_empty(), "{lengths:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_plan_takes_longer_than_parallel_parts(
            lengths in proptest::collection::vec(0_u32..700, 0..60),
            threads in 1_usize..9,
        ) {
            let load = |part: &Vec<usize>| part.iter().map(|&i| lengths[i] as usize).sum::<usize>();
            let time = |plan: &Plan| {
                let mut loads = vec![0; threads];
                for part in &plan.single {
                    *loads.iter_mut().min().unwrap() += load(part);
                }
                let parallel = plan.parallel.iter().map(load).sum::<usize>();
                loads.into_iter().max().unwrap() * 100 + parallel * PARALLEL_COST / threads
            };
            let plan = plan(&lengths, threads);
            let total = lengths.iter().sum::<u32>() as usize;
            proptest::prop_assert!(threads == 1 || time(&plan) * 100 <= total * PARALLEL_COST * IMBALANCE / threads + 100);
            proptest::prop_assert!(plan.single.iter().chain(&plan.parallel).all(|part| !part.is_empty()));
        }
    }

    #[test]
    fn nothing_and_empty_texts_are_planned() {
        assert!(plan(&[], 2).single.is_empty());
        plan(&[0, 0, 0], 2);
        plan(&[0, 5, 0, 7, 0], 4);
    }
}
