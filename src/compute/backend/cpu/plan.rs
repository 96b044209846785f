//! How a batch is cut into parts, and who works on them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::compute::weight::Packed;

/// Tokens of a part, about: enough that weights are read from far memory seldom, few enough that a thread's
/// activations stay in its second-level cache.
const TOKENS: usize = 256;

/// The same for weights that no cache holds, which every part reads from memory anew.
const TOKENS_OF_LARGE: usize = 512;

/// Bytes of weights that are large.
const LARGE: u64 = 64 << 20;

/// What working together costs, in percent: joins, and tiles that are less full.
const TOGETHER: usize = 110;

/// What a plan with both kinds of parts costs beside, in tokens of one thread: all weights are read once more.
const BOTH: usize = 8;

/// Percent that threads may wait for the last one before anything is done about it.
const UNEVEN: usize = 103;

/// The parts of a batch. Each sequence is in one of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Parts that one thread each takes through the model.
    pub apart: Vec<Vec<usize>>,
    /// Parts that all threads work on afterwards, one after another.
    pub together: Vec<Vec<usize>>,
}

impl Plan {
    /// For a model of `bytes` of weights.
    pub(super) fn new(batch: &Packed<'_>, threads: usize, bytes: u64) -> Self {
        let most = if bytes > LARGE { TOKENS_OF_LARGE } else { TOKENS };
        let tokens = |sequences: &[usize]| sequences.iter().map(|&i| batch.range(i).len()).sum::<usize>();
        let apart =
            |sequences: &[usize]| cut(batch, sequences, threads * tokens(sequences).div_ceil(threads * most));
        // The busiest thread decides: parts go to whoever is free first.
        let busiest = |sequences: &[usize]| {
            let mut loads = vec![0; threads];
            for part in apart(sequences) {
                if let Some(load) = loads.iter_mut().min() {
                    *load += tokens(&part);
                }
            }
            loads.into_iter().max().unwrap_or(0)
        };
        let mut longest: Vec<usize> = (0..batch.sequences()).collect();
        longest.sort_by_key(|&sequence| Reverse(batch.range(sequence).len()));
        // The longest are what threads cannot share out evenly: so many of them are worked on together.
        let (mut shared, mut least) = (0, busiest(&longest) * 100);
        if threads > 1 && least * threads > batch.tokens() * UNEVEN {
            for count in (1..=longest.len().min(2 * threads)).chain([longest.len()]) {
                let (first, rest) = longest.split_at(count);
                let both = if rest.is_empty() { 0 } else { BOTH };
                let time = (busiest(rest) + both) * 100 + tokens(first) * TOGETHER / threads;
                if time * UNEVEN < least * 100 {
                    (shared, least) = (count, time);
                }
            }
        }
        let (first, rest) = longest.split_at(shared);
        Self { apart: apart(rest), together: cut(batch, first, tokens(first).div_ceil(most)) }
    }
}

/// At most `parts` parts of about equal numbers of tokens, from sequences that come longest first: each goes to the part
/// that has least. Sequences of a part stay in their order.
fn cut(batch: &Packed<'_>, longest: &[usize], parts: usize) -> Vec<Vec<usize>> {
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
        let plan = Plan::new(&Packed::new(&ids, &offsets).unwrap(), threads, bytes);
        let mut covered = [plan.apart.concat(), plan.together.concat()].concat();
        covered.sort_unstable();
        assert_eq!(covered, (0..lengths.len()).collect::<Vec<_>>(), "{lengths:?}");
        plan
    }

    #[test]
    fn many_sequences_are_divided_evenly() {
        let even = plan(&[20; 100], 2);
        assert!(even.together.is_empty() && even.apart.len() == 8);
        assert!(even.apart.iter().all(|part| part.len() == 12 || part.len() == 13));
        assert_eq!(plan_of(&[20; 100], 2, LARGE + 1).apart.len(), 4);
        assert_eq!(plan(&[18, 19], 2).apart, [[1], [0]]);
    }

    #[test]
    fn parts_are_as_even_as_their_sequences_allow() {
        let lengths: Vec<u32> = (0..97).map(|i| 5 + i * 37 % 61).collect();
        let total: u32 = lengths.iter().sum();
        let plan = plan(&lengths, 4);
        let load = |part: &Vec<usize>| part.iter().map(|&sequence| lengths[sequence]).sum::<u32>();
        let loads: Vec<_> = plan.apart.iter().map(load).collect();
        assert!(plan.together.is_empty() && plan.apart.iter().all(|part| part.is_sorted()));
        let even = total as f32 / loads.len() as f32;
        assert!(loads.iter().all(|&load| (load as f32 - even).abs() < even / 50.0), "{loads:?}");
    }

    #[test]
    fn too_few_sequences_are_worked_on_together() {
        for lengths in [&[18][..], &[256], &[256, 8], &[5000]] {
            assert!(
                plan(lengths, 2).apart.concat().len() < 2 && !plan(lengths, 2).together.is_empty(),
                "{lengths:?}"
            );
        }
        assert_eq!(plan(&[5000, 20, 20], 2), Plan { apart: vec![vec![1], vec![2]], together: vec![vec![0]] });
    }

    #[test]
    fn what_is_left_over_when_all_threads_had_their_share_is_shared() {
        assert_eq!(plan(&[300; 3], 2), Plan { apart: vec![vec![1], vec![2]], together: vec![vec![0]] });
        let odd = plan_of(&[264; 15], 2, LARGE + 1);
        assert_eq!((odd.together.concat(), odd.apart.concat().len()), (vec![0], 14));
        // A short one is not worth reading all weights once more.
        assert!(plan(&[18; 15], 2).together.is_empty());
        // 20 on 16 threads: in two turns twelve would have nothing to do.
        assert_eq!(plan(&[100; 20], 16).together.concat().len(), 4);
    }

    #[test]
    fn one_thread_shares_with_nobody() {
        for lengths in [&[18][..], &[300; 3], &[5000, 20]] {
            assert!(plan(lengths, 1).together.is_empty(), "{lengths:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_plan_takes_longer_than_working_together(
            lengths in proptest::collection::vec(0_u32..700, 0..60),
            threads in 1_usize..9,
        ) {
            let load = |part: &Vec<usize>| part.iter().map(|&i| lengths[i] as usize).sum::<usize>();
            let time = |plan: &Plan| {
                let mut loads = vec![0; threads];
                for part in &plan.apart {
                    *loads.iter_mut().min().unwrap() += load(part);
                }
                let together = plan.together.iter().map(load).sum::<usize>();
                loads.into_iter().max().unwrap() * 100 + together * TOGETHER / threads
            };
            let plan = plan(&lengths, threads);
            let total = lengths.iter().sum::<u32>() as usize;
            proptest::prop_assert!(threads == 1 || time(&plan) * 100 <= total * TOGETHER * UNEVEN / threads + 100);
            proptest::prop_assert!(plan.apart.iter().chain(&plan.together).all(|part| !part.is_empty()));
        }
    }

    #[test]
    fn nothing_and_empty_texts_are_planned() {
        assert!(plan(&[], 2).apart.is_empty());
        plan(&[0, 0, 0], 2);
        plan(&[0, 5, 0, 7, 0], 4);
    }
}
