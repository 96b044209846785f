//! Late interaction: how well the vectors of a query's tokens match those of documents' tokens.

use super::backend::Rows;
use super::isa::Isa;
use super::memory::zeroed;
use super::parallel::{Parallelism, Target};
use super::projection::Projection;
use super::threads::Threads;
use crate::sync::Mutex;
use crate::{Error, Result};

/// Rows of a document whose products are in memory at a time.
const BLOCK: usize = 64;
/// Rows that one task works through.
const PIECE: usize = 512;

/// For each document: the greatest dot product of each row of `query` with a row of the document, summed over the rows of
/// the query. A document without rows has 0; a NaN makes a NaN. `query` and the documents have rows of `width` values, in
/// f32, and so are the products.
///
/// # Errors
/// [`Error::Input`] for values that do not make whole rows; [`Error::OutOfMemory`].
pub fn maxsim(isa: Isa, query: &[f32], documents: &[&[f32]], width: usize) -> Result<Vec<f32>> {
    let mut scores = zeroed(documents.len())?;
    if query.is_empty() {
        return Ok(scores);
    }
    let all = || std::iter::once(query).chain(documents.iter().copied());
    if width == 0 || all().any(|values| !values.len().is_multiple_of(width)) {
        return Err(Error::Input(format!("values that are not whole rows of {width} cannot be compared")));
    }
    let rows = query.len() / width;
    let query = Projection::new(isa, query, None, width)?;
    let piece = PIECE * width;
    let mut pieces = Vec::new();
    for (number, document) in documents.iter().enumerate() {
        pieces.extend(document.chunks(piece).map(|rows| (number, rows)));
    }
    let mut best = zeroed(pieces.len().saturating_mul(rows))?;
    let threads = Threads::global();
    let values = Target::over(&mut best, rows);
    let task = |range: std::ops::Range<usize>| {
        for index in range {
            // SAFETY: each row of `values` is that of one piece, and each piece belongs to one task.
            greatest(&query, pieces[index].1, unsafe { values.row_f32(index) })?;
        }
        Ok(())
    };
    let failed = Mutex::new(None);
    Parallelism::All(&threads).split_rows(pieces.len(), |range| {
        if let Err(error) = task(range) {
            failed.lock().get_or_insert(error);
        }
    })?;
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    let mut first = 0;
    while let Some(&(number, _)) = pieces.get(first) {
        let count = pieces[first..].iter().take_while(|piece| piece.0 == number).count();
        let (one, others) = best[first * rows..(first + count) * rows].split_at_mut(rows);
        others.chunks_exact(rows).for_each(|other| greater(one, other));
        scores[number] = one.iter().sum();
        first += count;
    }
    Ok(scores)
}

/// The greatest product of each row of the query with one of `rows`.
fn greatest(query: &Projection, rows: &[f32], best: &mut [f32]) -> Result<()> {
    let (width, outputs) = (query.inputs(), query.outputs());
    let mut products = zeroed(outputs * BLOCK.min(rows.len() / width))?;
    best.fill(f32::NEG_INFINITY);
    for block in rows.chunks(BLOCK * width) {
        let products = &mut products[..block.len() / width * outputs];
        query.apply_into(Rows::new(block, width, width), products)?;
        products.chunks_exact(outputs).for_each(|row| greater(best, row));
    }
    Ok(())
}

/// The greater of both, number by number. A NaN stays.
fn greater(best: &mut [f32], row: &[f32]) {
    for (best, &value) in best.iter_mut().zip(row) {
        *best = if *best >= value || best.is_nan() { *best } else { value };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(query: &[f32], document: &[f32], width: usize) -> f64 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        if document.is_empty() {
            return 0.0;
        }
        let best = |row: &[f32]| {
            document.chunks(width).map(|other| dot(row, other)).fold(f64::NEG_INFINITY, f64::max)
        };
        query.chunks(width).map(best).sum()
    }

    fn values(count: usize, seed: u32) -> Vec<f32> {
        (0..count).map(|i| ((i as f32 + 1.3) * (0.37 + seed as f32 * 0.011)).sin()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn scores_are_those_of_the_definition(
            width in 1usize..40,
            rows in 0usize..40,
            lengths in prop::collection::vec(0usize..150, 0..6),
            seed in 0u32..100,
        ) {
            let query = values(rows * width, seed);
            let texts: Vec<Vec<f32>> =
                lengths.iter().enumerate().map(|(i, &n)| values(n * width, seed + 1 + i as u32)).collect();
            let documents: Vec<&[f32]> = texts.iter().map(Vec::as_slice).collect();
            for isa in Isa::available() {
                let scores = maxsim(isa, &query, &documents, width).unwrap();
                prop_assert_eq!(scores.len(), documents.len());
                for (score, document) in scores.iter().zip(&documents) {
                    let expected = naive(&query, document, width);
                    prop_assert!((f64::from(*score) - expected).abs() <= 1e-5 * (1.0 + (width * rows) as f64));
                }
            }
        }
    }

    #[test]
    fn a_document_of_several_pieces_and_a_number_that_is_none() {
        let width = 3;
        let query = values(5 * width, 1);
        let mut long = values((2 * PIECE + 7) * width, 2);
        let found = |document: &[f32]| maxsim(Isa::best(), &query, &[document, &[]], width).unwrap();
        let expected = naive(&query, &long, width);
        assert!((f64::from(found(&long)[0]) - expected).abs() < 1e-4);
        assert_eq!(found(&long)[1], 0.0);
        for at in [0, BLOCK * width, 2 * PIECE * width + 1] {
            let kept = std::mem::replace(&mut long[at], f32::NAN);
            assert!(found(&long)[0].is_nan(), "{at}");
            long[at] = kept;
        }
        assert!(maxsim(Isa::best(), &query, &[&query[..4]], width).is_err());
        assert_eq!(maxsim(Isa::best(), &[], &[&query], width), Ok(vec![0.0]));
    }
}
