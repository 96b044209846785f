//! The rows of a device's pass: which sequences and tokens they are of.

use std::borrow::Cow;
use std::ops::Range;

use super::traits::{Positions, Row, Step};
use crate::compute::batch::PackedBatch;
use crate::{Error, Result};

/// Some sequences of a batch, or the new tokens of sequences with caches. Each token has a row.
#[derive(Debug)]
pub(super) struct PassRows<'a> {
    /// The tokens of all sequences.
    pub(super) ids: Cow<'a, [u32]>,
    /// The rows of each sequence.
    pub(super) sequences: Vec<Range<usize>>,
    /// The number of the first sequence in the batch.
    pub(super) first: usize,
    /// Tokens at the end of each sequence to which no token attends; empty if there are none.
    hidden: Vec<usize>,
    /// The token of each sequence from which on tokens have type 1; empty if all have type 0.
    second_types: Vec<usize>,
    /// Of sequences with caches.
    cached: Option<Vec<CachedTerms>>,
}

/// What a step with a cache has in addition to its tokens.
#[derive(Debug)]
struct CachedTerms {
    /// Tokens in the cache before the pass.
    cached: usize,
    /// Tokens of the whole text.
    length: usize,
    /// So many of its last tokens need logits.
    logits: usize,
}

impl<'a> PassRows<'a> {
    /// The sequences `part` of a batch.
    pub(super) fn of_part(batch: &PackedBatch<'a>, part: &Range<usize>) -> Self {
        let start = batch.offsets[part.start] as usize;
        let rows = part.clone().map(|number| batch.range(number));
        let second = |number| batch.second_type(number).saturating_sub(batch.offsets[number] as usize);
        let hidden = |number| batch.hidden.get(number).map_or(0, |&hidden| hidden as usize);
        Self {
            ids: Cow::Borrowed(&batch.ids[start..batch.offsets[part.end] as usize]),
            sequences: rows.map(|rows| rows.start - start..rows.end - start).collect(),
            first: part.start,
            hidden: part.clone().map(hidden).collect(),
            second_types: part.clone().map(second).collect(),
            cached: None,
        }
    }

    /// The new tokens of steps. `cached_len` gives the number of tokens in a cache.
    pub(super) fn of_steps<C>(steps: &[Step<'a, C>], cached_len: impl Fn(&C) -> usize) -> Self {
        let mut end = 0;
        let rows = steps.iter().map(|step| {
            end += step.tokens.len();
            end - step.tokens.len()..end
        });
        let terms = steps.iter().map(|step| CachedTerms {
            cached: cached_len(step.cache),
            length: step.length,
            logits: step.logits,
        });
        Self {
            sequences: rows.collect(),
            ids: match steps {
                [step] => Cow::Borrowed(step.tokens),
                steps => steps.iter().flat_map(|step| step.tokens).copied().collect(),
            },
            first: 0,
            hidden: Vec::new(),
            second_types: Vec::new(),
            cached: Some(terms.collect()),
        }
    }

    /// The indices of the sequences in the batch.
    pub(super) fn sequence_indices(&self) -> Vec<usize> {
        (self.first..self.first + self.sequences.len()).collect()
    }

    /// Tokens in the cache of sequence `number` before this pass.
    pub(super) fn cached_len(&self, number: usize) -> usize {
        self.cached.as_ref().map_or(0, |cached| cached[number].cached)
    }

    /// Tokens of sequence `number` to which tokens attend, in the cache and in this pass.
    pub(super) fn seen(&self, number: usize) -> usize {
        let length = self.cached_len(number) + self.sequences[number].len();
        length.saturating_sub(self.hidden.get(number).copied().unwrap_or(0))
    }

    /// The row of the position table for each token.
    ///
    /// # Errors
    /// [`Error::Internal`] for a scheme that depends on the tokens in a cache, which are not known here.
    pub(super) fn positions(&self, scheme: Positions) -> Result<Vec<u32>> {
        check_scheme(scheme, self.cached.is_some())?;
        let of = |(number, rows): (usize, &Range<usize>)| {
            let cached = self.cached_len(number);
            scheme.of(&self.ids[rows.clone()]).map(move |position| (cached + position) as u32)
        };
        Ok(self.sequences.iter().enumerate().flat_map(of).collect())
    }

    /// The type of each token, for a table of so many types. A table of one type has it for both texts of a pair.
    pub(super) fn token_types(&self, types: usize) -> Vec<u32> {
        let of = |(number, rows): (usize, &Range<usize>)| {
            let second = self.second_types.get(number).copied().unwrap_or(usize::MAX);
            (0..rows.len()).map(move |token| u32::from(token >= second && types > 1))
        };
        self.sequences.iter().enumerate().flat_map(of).collect()
    }

    /// The position of each token, and the length of its text, which choose its angles.
    pub(super) fn rotary_positions(&self) -> Vec<(usize, usize)> {
        let of = |(number, rows): (usize, &Range<usize>)| {
            let (cached, count) = (self.cached_len(number), rows.len());
            let length = self.cached.as_ref().map_or(count, |cached| cached[number].length);
            (cached..cached + count).map(move |position| (position, length))
        };
        self.sequences.iter().enumerate().flat_map(of).collect()
    }

    /// The rows that [`Pass::gather_rows`](super::traits::Pass::gather_rows) leaves.
    pub(super) fn gathered(&self, row: Row) -> Vec<u32> {
        let of = |(number, rows): (usize, &Range<usize>)| {
            let count = self.gathered_of(number);
            let first = match row {
                Row::First => rows.start,
                Row::Last => rows.end - count,
            };
            (first..first + count).map(|row| row as u32)
        };
        self.sequences.iter().enumerate().flat_map(of).collect()
    }

    /// So many of them are of sequence `number`.
    fn gathered_of(&self, number: usize) -> usize {
        let wanted = self.cached.as_ref().map_or(1, |cached| cached[number].logits);
        wanted.min(self.sequences[number].len())
    }

    /// The rows of each sequence in states of `rows` rows: all of its tokens', or those that were gathered.
    pub(super) fn rows_in(&self, rows: usize) -> Vec<Range<usize>> {
        if rows == self.ids.len() {
            return self.sequences.clone();
        }
        let mut next = 0;
        let gathered = (0..self.sequences.len()).map(|number| {
            let from = next;
            next += self.gathered_of(number);
            from..next
        });
        gathered.collect()
    }
}

/// Refuses positions that depend on earlier tokens after a cache.
///
/// # Errors
/// [`Error::Internal`].
pub(super) fn check_scheme(scheme: Positions, has_cache: bool) -> Result<()> {
    if has_cache && scheme != Positions::FromZero {
        let reason = "positions that depend on earlier tokens cannot go on after a cache";
        return Err(Error::internal("model description", reason));
    }
    Ok(())
}

/// What the rows of an embedding table stand for.
#[derive(Debug, Clone, Copy)]
pub(super) enum TableOf {
    Tokens,
    Positions,
    TokenTypes,
}

impl TableOf {
    /// The error for a number that a table of `rows` rows does not have.
    pub(super) fn outside(self, number: usize, rows: usize) -> Error {
        Error::Input(match self {
            Self::Tokens => format!("token {number} lies outside the model's vocabulary ({rows})"),
            Self::Positions => format!("position {number} lies outside the model's longest text ({rows})"),
            Self::TokenTypes => format!("the model has no token type {number}, but {rows}"),
        })
    }

    /// Checks that a table of so many rows has all of these. A device reads whatever lies past its end.
    ///
    /// # Errors
    /// [`Error::Input`] for the first that it does not have.
    pub(super) fn check(self, numbers: &[u32], rows: usize) -> Result<()> {
        match numbers.iter().find(|&&number| number as usize >= rows) {
            Some(&number) => Err(self.outside(number as usize, rows)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_batch_counts_from_its_own_first_row() {
        let ids = [9, 5, 6, 7, 1, 5, 8];
        let mut batch = PackedBatch::new(&ids, &[0, 1, 4, 4, 7]).unwrap();
        (batch.second_starts, batch.hidden) = (&[1, 2, 0, 1], &[0, 1, 0, 0]);
        let rows = PassRows::of_part(&batch, &(1..4));
        assert_eq!((&*rows.ids, rows.sequence_indices()), (&ids[1..], vec![1, 2, 3]));
        assert_eq!(rows.sequences, [0..3, 3..3, 3..6]);
        assert_eq!((0..3).map(|number| rows.seen(number)).collect::<Vec<_>>(), [2, 0, 3]);
        assert_eq!(rows.positions(Positions::FromZero).unwrap(), [0, 1, 2, 0, 1, 2]);
        assert_eq!(rows.positions(Positions::AfterPadding(1)).unwrap(), [2, 3, 4, 1, 2, 3]);
        assert_eq!((rows.token_types(2), rows.token_types(1)), (vec![0, 0, 1, 0, 1, 1], vec![0; 6]));
        assert_eq!(rows.rotary_positions(), [(0, 3), (1, 3), (2, 3), (0, 3), (1, 3), (2, 3)]);
        assert_eq!((rows.gathered(Row::First), rows.gathered(Row::Last)), (vec![0, 3], vec![2, 5]));
        assert_eq!(rows.rows_in(2), [0..1, 1..1, 1..2]);
        assert_eq!(rows.rows_in(6), rows.sequences);
    }

    #[test]
    fn steps_go_on_behind_their_caches() {
        let (mut one, mut two, mut three) = (4, 0, 7);
        let step = |cache, tokens, length, logits| Step { cache, tokens, prompt: 4, length, logits };
        let steps = [
            step(&mut one, &[5, 6][..], 6, 1),
            step(&mut two, &[7][..], 9, 0),
            step(&mut three, &[8][..], 8, 1),
        ];
        let rows = PassRows::of_steps(&steps, |&cached| cached);
        assert_eq!((&*rows.ids, &*rows.sequences), (&[5, 6, 7, 8][..], &[0..2, 2..3, 3..4][..]));
        assert_eq!(rows.positions(Positions::FromZero).unwrap(), [4, 5, 0, 7]);
        assert!(matches!(rows.positions(Positions::AfterPadding(1)), Err(Error::Internal { .. })));
        assert_eq!(rows.rotary_positions(), [(4, 6), (5, 6), (0, 9), (7, 8)]);
        assert_eq!(rows.gathered(Row::Last), [1, 3]);
        assert_eq!(rows.rows_in(2), [0..1, 1..1, 1..2]);
        assert_eq!((rows.seen(0), rows.token_types(2)), (6, vec![0; 4]));
        assert!(matches!(PassRows::of_steps(&steps[..1], |&cached| cached).ids, Cow::Borrowed(_)));
        let (mut four, mut five) = (4, 0);
        let steps = [step(&mut four, &[5, 6, 7][..], 7, 2), step(&mut five, &[8][..], 1, 1)];
        let rows = PassRows::of_steps(&steps, |&cached| cached);
        assert_eq!((rows.gathered(Row::Last), rows.rows_in(3)), (vec![1, 2, 3], vec![0..2, 2..3]));
    }

    #[test]
    fn rows_outside_a_table_are_refused() {
        assert!(TableOf::Tokens.check(&[0, 3], 4).is_ok());
        let said = |table: TableOf| table.check(&[0, 4, 5], 4).unwrap_err().to_string();
        assert_eq!(said(TableOf::Tokens), "token 4 lies outside the model's vocabulary (4)");
        assert_eq!(said(TableOf::Positions), "position 4 lies outside the model's longest text (4)");
        assert_eq!(said(TableOf::TokenTypes), "the model has no token type 4, but 4");
    }
}
