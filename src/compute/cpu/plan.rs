//! How a batch is cut into parts, and who works on them.

use std::ops::Range;

use crate::compute::Packed;

/// Tokens of a part, about: enough that weights are read from far memory seldom, few enough that a thread's
/// activations stay in its second-level cache.
const TOKENS: usize = 256;

/// The parts of a batch: whole sequences each.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Sequences of each part, in order.
    pub parts: Vec<Range<usize>>,
    /// Whether all threads work on one part after another, rather than each thread on parts of its own.
    pub together: bool,
}

impl Plan {
    pub(super) fn new(batch: &Packed<'_>, threads: usize) -> Self {
        let tokens = batch.tokens();
        let apart = cut(batch, threads * tokens.div_ceil(threads * TOKENS));
        // The busiest thread decides: parts go to whoever is free first.
        let mut loads = vec![0; threads];
        for part in &apart {
            if let Some(load) = loads.iter_mut().min() {
                *load += (batch.offsets[part.end] - batch.offsets[part.start]) as usize;
            }
        }
        let busiest = loads.into_iter().max().unwrap_or(0);
        // Working together loses about a tenth to joins and to tiles that are less full.
        if threads > 1 && busiest * threads * 10 > tokens * 11 {
            Self { parts: cut(batch, tokens.div_ceil(TOKENS)), together: true }
        } else {
            Self { parts: apart, together: threads == 1 }
        }
    }
}

/// At most `parts` parts of about equal numbers of tokens.
fn cut(batch: &Packed<'_>, parts: usize) -> Vec<Range<usize>> {
    let (parts, sequences) = (parts.max(1), batch.sequences());
    let mut ranges = Vec::with_capacity(parts);
    let mut start = 0;
    for part in 1..=parts {
        let goal = batch.tokens() * part / parts;
        let after = batch.offsets.partition_point(|&offset| (offset as usize) < goal).min(sequences);
        let before = after.saturating_sub(1);
        let nearer =
            if goal.abs_diff(batch.offsets[before] as usize) < goal.abs_diff(batch.offsets[after] as usize) {
                before
            } else {
                after
            };
        let end = if part == parts { sequences } else { nearer };
        if end > start {
            ranges.push(start..end);
            start = end;
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(lengths: &[u32], threads: usize) -> Plan {
        let mut offsets = vec![0];
        for length in lengths {
            offsets.push(offsets.last().unwrap() + length);
        }
        let ids = vec![0; *offsets.last().unwrap() as usize];
        let plan = Plan::new(&Packed::new(&ids, &offsets).unwrap(), threads);
        let covered: Vec<usize> = plan.parts.iter().cloned().flatten().collect();
        assert_eq!(covered, (0..lengths.len()).collect::<Vec<_>>(), "{lengths:?}");
        plan
    }

    #[test]
    fn many_sequences_are_divided_evenly() {
        let even = plan(&[20; 100], 2);
        assert!(!even.together && even.parts.len() == 8);
        assert!(even.parts.iter().all(|part| part.len() == 12 || part.len() == 13));
        assert_eq!(plan(&[18, 19], 2).parts, [0..1, 1..2]);
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
