//! How a batch is cut into parts, and who works on them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::compute::Packed;

/// Tokens of a part, about: enough that weights are read from far memory seldom, few enough that a thread's
/// activations stay in its second-level cache.
const TOKENS: usize = 256;

/// The same for weights that no cache holds, which every part reads from memory anew.
const TOKENS_OF_LARGE: usize = 512;

/// Bytes of weights that are large.
const LARGE: u64 = 64 << 20;

/// The parts of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Sequences of each part: each once in all of them.
    pub parts: Vec<Vec<usize>>,
    /// Whether all threads work on one part after another, rather than each thread on parts of its own.
    pub together: bool,
}

impl Plan {
    /// For a model of `bytes` of weights.
    pub(super) fn new(batch: &Packed<'_>, threads: usize, bytes: u64) -> Self {
        let tokens = batch.tokens();
        let most = if bytes > LARGE { TOKENS_OF_LARGE } else { TOKENS };
        let apart = cut(batch, threads * tokens.div_ceil(threads * most));
        // The busiest thread decides: parts go to whoever is free first.
        let mut loads = vec![0; threads];
        for part in &apart {
            if let Some(load) = loads.iter_mut().min() {
                *load += part.iter().map(|&sequence| batch.range(sequence).len()).sum::<usize>();
            }
        }
        let busiest = loads.into_iter().max().unwrap_or(0);
        // Working together loses about a tenth to joins and to tiles that are less full.
        if threads > 1 && busiest * threads * 10 > tokens * 11 {
            Self { parts: cut(batch, tokens.div_ceil(most)), together: true }
        } else {
            Self { parts: apart, together: threads == 1 }
        }
    }
}

/// At most `parts` parts of about equal numbers of tokens: the longest sequences first, each to the part that has
/// least. Sequences of a part stay in their order.
fn cut(batch: &Packed<'_>, parts: usize) -> Vec<Vec<usize>> {
    let mut longest: Vec<usize> = (0..batch.sequences()).collect();
    longest.sort_by_key(|&sequence| Reverse(batch.range(sequence).len()));
    let mut least: BinaryHeap<_> = (0..parts.max(1)).map(|part| Reverse((0, part))).collect();
    let mut cut = vec![Vec::new(); parts.max(1)];
    for sequence in longest {
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
        let mut covered = plan.parts.concat();
        covered.sort_unstable();
        assert_eq!(covered, (0..lengths.len()).collect::<Vec<_>>(), "{lengths:?}");
        plan
    }

    #[test]
    fn many_sequences_are_divided_evenly() {
        let even = plan(&[20; 100], 2);
        assert!(!even.together && even.parts.len() == 8);
        assert!(even.parts.iter().all(|part| part.len() == 12 || part.len() == 13));
        assert_eq!(plan_of(&[20; 100], 2, LARGE + 1).parts.len(), 4);
        assert_eq!(plan(&[18, 19], 2).parts, [[1], [0]]);
    }

    #[test]
    fn parts_are_as_even_as_their_sequences_allow() {
        let lengths: Vec<u32> = (0..97).map(|i| 5 + i * 37 % 61).collect();
        let total: u32 = lengths.iter().sum();
        let plan = plan(&lengths, 4);
        let load = |part: &Vec<usize>| part.iter().map(|&sequence| lengths[sequence]).sum::<u32>();
        let loads: Vec<_> = plan.parts.iter().map(load).collect();
        assert!(!plan.together && plan.parts.iter().all(|part| part.is_sorted()));
        let even = total as f32 / loads.len() as f32;
        assert!(loads.iter().all(|&load| (load as f32 - even).abs() < even / 50.0), "{loads:?}");
    }

    #[test]
    fn too_few_sequences_are_worked_on_together() {
        for lengths in [&[18][..], &[256], &[256, 8], &[300, 300, 300], &[5000]] {
            assert!(plan(lengths, 2).together, "{lengths:?}");
        }
        assert!(plan(&[300; 3], 2).parts.len() >= 3);
    }

    #[test]
    fn nothing_and_empty_texts_are_planned() {
        assert!(plan(&[], 2).parts.is_empty());
        plan(&[0, 0, 0], 2);
        plan(&[0, 5, 0, 7, 0], 4);
    }
}
