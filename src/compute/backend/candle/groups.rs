//! Which sequences of a pass attend together.

use candle_core::{Device, Tensor};

use crate::compute::attention::heads::Mask;
use crate::compute::backend::rows::PassRows;

/// Scores of one head that are computed at once at most: 4 MB of them in f32.
const SCORES: usize = 1 << 20;

/// Tokens by which a sequence may be shorter than the longest of its group, whatever its length.
const SLACK: usize = 8;

/// The groups of a pass, once an attention has made them.
#[derive(Debug, Default)]
pub(super) struct AttentionGroups {
    groups: Option<Vec<Group>>,
    /// For each row of the states, its row in the concatenation of the padded rows of all groups.
    back: Option<Tensor>,
}

/// Sequences of similar length. Only in their attention are the shorter ones padded.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) members: Vec<usize>,
    /// The length of the longest.
    pub(super) length: usize,
    /// For each member and position, the row of the states; row 0 for positions past the end.
    pub(super) gather: Tensor,
    /// `[members, 1, 1, length]`: 0 for keys that are seen, negative infinity for others. `None` if all are seen.
    pub(super) padding: Option<Tensor>,
    /// Additions to scores by the distance of key and query, which layers share.
    patterns: Vec<(Mask, Tensor)>,
}

impl AttentionGroups {
    /// The groups of the sequences with these rows.
    pub(super) fn of(&mut self, rows: &PassRows<'_>, device: &Device) -> candle_core::Result<&mut [Group]> {
        if self.groups.is_none() {
            let groups = group(rows, device)?;
            self.back = Some(places(rows, &groups, device)?);
            self.groups = Some(groups);
        }
        Ok(self.groups.as_deref_mut().unwrap_or_default())
    }

    /// The rows of `padded`, the concatenation of all groups, in the order of the states.
    pub(super) fn unpad(&self, padded: &Tensor) -> candle_core::Result<Tensor> {
        match &self.back {
            Some(back) => padded.index_select(back, 0),
            None => Ok(padded.clone()),
        }
    }
}

fn group(rows: &PassRows<'_>, device: &Device) -> candle_core::Result<Vec<Group>> {
    let length_of = |member: usize| rows.sequences[member].len();
    let mut order: Vec<usize> = (0..rows.sequences.len()).filter(|&at| length_of(at) > 0).collect();
    order.sort_by_key(|&at| (std::cmp::Reverse(length_of(at)), at));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for at in order {
        match groups.last_mut().filter(|group| joins(group.len(), length_of(group[0]), length_of(at))) {
            Some(group) => group.push(at),
            None => groups.push(vec![at]),
        }
    }
    groups.into_iter().map(|members| Group::new(rows, members, device)).collect()
}

/// For each row of the states, its row in the concatenation of all groups.
fn places(rows: &PassRows<'_>, groups: &[Group], device: &Device) -> candle_core::Result<Tensor> {
    let mut places = vec![0_u32; rows.ids.len()];
    let mut first = 0;
    for group in groups {
        for &member in &group.members {
            for (at, row) in rows.sequences[member].clone().enumerate() {
                places[row] = (first + at) as u32;
            }
            first += group.length;
        }
    }
    Tensor::from_vec(places, rows.ids.len(), device)
}

/// Whether a sequence of `length` joins `members` others, of which the longest has `longest` tokens.
fn joins(members: usize, longest: usize, length: usize) -> bool {
    let similar = longest - length <= SLACK.max(longest / 4);
    similar && (members + 1) * longest * longest <= SCORES
}

impl Group {
    fn new(rows: &PassRows<'_>, members: Vec<usize>, device: &Device) -> candle_core::Result<Self> {
        let length = rows.sequences[members[0]].len();
        let mut gather = Vec::with_capacity(members.len() * length);
        let mut padding = Vec::with_capacity(members.len() * length);
        for &member in &members {
            let (own, seen) = (&rows.sequences[member], rows.seen(member));
            gather.extend((0..length).map(|at| if at < own.len() { (own.start + at) as u32 } else { 0 }));
            padding.extend((0..length).map(|at| if at < seen { 0.0 } else { f32::NEG_INFINITY }));
        }
        let shape = (members.len(), 1, 1, length);
        let padding = padding.iter().any(|&value| value != 0.0).then_some(padding);
        Ok(Self {
            gather: Tensor::from_vec(gather, members.len() * length, device)?,
            padding: padding.map(|padding| Tensor::from_vec(padding, shape, device)).transpose()?,
            members,
            length,
            patterns: Vec::new(),
        })
    }

    /// Queries that are computed at once, so that their scores stay few.
    pub(super) fn block(&self) -> usize {
        (SCORES / (self.members.len() * self.length).max(1)).clamp(1, self.length.max(1))
    }

    /// What `mask` adds to the scores `[length, length]`; `None` if every key is seen.
    pub(super) fn pattern(&mut self, mask: Mask, device: &Device) -> candle_core::Result<Option<Tensor>> {
        if mask == Mask::FULL {
            return Ok(None);
        }
        if let Some((_, pattern)) = self.patterns.iter().find(|(known, _)| *known == mask) {
            return Ok(Some(pattern.clone()));
        }
        let pattern = hidden_keys(0, self.length, self.length, mask, device)?;
        self.patterns.push((mask, pattern.clone()));
        Ok(Some(pattern))
    }
}

/// 0 where `mask` lets queries from `before` on see keys from 0 on, else negative infinity: `[rows, length]`.
pub(super) fn hidden_keys(
    before: usize,
    rows: usize,
    length: usize,
    mask: Mask,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let all = before + rows + length;
    let hidden = |i: usize| {
        let (query, key) = (before + i / length, i % length);
        let seen = key + mask.before.min(all) >= query && key <= query + mask.after.min(all);
        if seen { 0.0 } else { f32::NEG_INFINITY }
    };
    let values: Vec<f32> = (0..rows * length).map(hidden).collect();
    Tensor::from_vec(values, (rows, length), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::batch::PackedBatch;

    fn members_and_blocks(lengths: &[usize]) -> (Vec<Vec<usize>>, Vec<usize>) {
        with_rows(lengths, |rows| {
            let mut groups = AttentionGroups::default();
            let groups = groups.of(rows, &Device::Cpu).unwrap();
            groups.iter().map(|group| (group.members.clone(), group.block())).unzip()
        })
    }

    fn members(lengths: &[usize]) -> Vec<Vec<usize>> {
        members_and_blocks(lengths).0
    }

    fn with_rows<T>(lengths: &[usize], look: impl FnOnce(&PassRows<'_>) -> T) -> T {
        let mut offsets = vec![0_u32];
        offsets.extend(lengths.iter().scan(0, |end, &length| {
            *end += length as u32;
            Some(*end)
        }));
        let ids = vec![0; lengths.iter().sum()];
        let batch = PackedBatch::new(&ids, &offsets).unwrap();
        look(&PassRows::of_part(&batch, &(0..lengths.len())))
    }

    #[test]
    fn sequences_of_similar_length_attend_together() {
        assert_eq!(members(&[3, 5, 0, 4]), [[1, 3, 0]]);
        assert_eq!(members(&[100, 80, 70, 3]), [vec![0, 1], vec![2], vec![3]]);
        assert_eq!(members(&[]), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn groups_and_blocks_bound_the_scores() {
        assert_eq!(members(&[1024, 1024]), [[0], [1]]);
        assert_eq!(members_and_blocks(&[8192, 16]).1, [128, 16]);
    }

    #[test]
    fn every_row_comes_back_to_its_place() {
        with_rows(&[2, 30, 4, 0, 31], |rows| {
            let states = Tensor::arange(0_u32, 67, &Device::Cpu).unwrap();
            let mut groups = AttentionGroups::default();
            let made = groups.of(rows, &Device::Cpu).unwrap();
            let padded: Vec<_> =
                made.iter().map(|group| states.index_select(&group.gather, 0).unwrap()).collect();
            let padded = Tensor::cat(&padded, 0).unwrap();
            assert!(padded.dim(0).unwrap() > 67, "some are padded");
            let back = groups.unpad(&padded).unwrap();
            assert_eq!(back.to_vec1::<u32>().unwrap(), states.to_vec1::<u32>().unwrap());
        });
    }
}
