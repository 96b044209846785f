//! Sparse vectors: weights of entries of the vocabulary.

use std::path::Path;

use serde_json::{Map, Value};

use crate::compute::Rows;
use crate::models::json::read_json;
use crate::models::keys::{refusal, refuse_unknown};
use crate::output::SparseVector;
use crate::sync::Mutex;
use crate::{Error, Result};

/// From a number for each entry of the vocabulary at each token to one weight for each entry, as in SPLADE:
/// `log(1 + max(x, 0))`, the largest or the sum over the tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpladePooling {
    /// The sum over the tokens, not the largest.
    sum: bool,
    /// `log(1 + log(1 + max(x, 0)))`.
    twice: bool,
}

/// The keys of a SpladePooling's `config.json` that are read, or that change nothing.
const KEYS: &[&str] =
    &["pooling_strategy", "activation_function", "embedding_dimension", "word_embedding_dimension"];

impl SpladePooling {
    /// Reads the module in `folder`. `model` is what messages call it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming a setting that is not known here.
    pub fn load(model: &str, folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        if !path.is_file() {
            return Err(Error::MissingFile {
                model: model.into(),
                file: "config.json".into(),
                folder: folder.to_path_buf(),
                remedy: "modules.json names this pooling; copy its folder too".into(),
            });
        }
        let json: Map<String, Value> = read_json(&path)?;
        refuse_unknown(model, &path, &json, &[KEYS])?;
        let choose = |key: &str, plain: &str, other: &str| match json.get(key) {
            None => Ok(false),
            Some(value) if value == plain => Ok(false),
            Some(value) if value == other => Ok(true),
            Some(value) => {
                Err(refusal(model, &path, key, value, &format!("supported are {plain} and {other}")))
            }
        };
        Ok(Self {
            sum: choose("pooling_strategy", "max", "sum")?,
            twice: choose("activation_function", "relu", "log1p_relu")?,
        })
    }

    /// The weight of one entry, from its number at each token.
    fn weight(self, numbers: impl Iterator<Item = f32>) -> f32 {
        if self.sum {
            return numbers.map(|x| self.activate(x)).sum();
        }
        // A NaN must show, and not be passed over as `f32::max` would.
        let larger = |most: f32, x: f32| if x > most || x.is_nan() { x } else { most };
        self.activate(numbers.fold(f32::NEG_INFINITY, larger))
    }

    fn activate(self, x: f32) -> f32 {
        let x = if x < 0.0 { 0.0 } else { x.ln_1p() };
        if self.twice { x.ln_1p() } else { x }
    }
}

/// Sparse vectors of a batch that grow entry by entry.
#[derive(Debug)]
pub struct SparseBatch(Vec<Mutex<(Vec<u32>, Vec<f32>)>>);

impl SparseBatch {
    /// Empty vectors.
    pub fn new(sequences: usize) -> Self {
        Self((0..sequences).map(|_| Mutex::default()).collect())
    }

    /// Adds the entries from `first` on to vector `sequence`: those whose weight is not zero. `rows` has their numbers at
    /// each token.
    pub fn add(&self, pooling: SpladePooling, sequence: usize, first: usize, rows: Rows<'_>) {
        let mut vector = self.0[sequence].lock();
        for column in 0..rows.iter().next().map_or(0, <[f32]>::len) {
            let weight = pooling.weight(rows.iter().map(|row| row[column]));
            if weight != 0.0 {
                vector.0.push((first + column) as u32);
                vector.1.push(weight);
            }
        }
    }

    /// The vectors.
    pub fn into_vectors(self) -> impl Iterator<Item = SparseVector> {
        self.0.into_iter().map(|vector| {
            let (indices, values) = vector.into_inner();
            SparseVector { indices: indices.into(), values: values.into() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(pooling: SpladePooling, numbers: &[f32]) -> (Vec<u32>, Vec<f32>) {
        let batch = SparseBatch::new(1);
        batch.add(pooling, 0, 10, Rows::new(numbers, 3, 2));
        let vector = batch.into_vectors().next().unwrap();
        (vector.indices.to_vec(), vector.values.to_vec())
    }

    #[test]
    fn entries_without_a_weight_are_left_out() {
        // Two entries, and a third column that is padding.
        let numbers = [1.0, -2.0, 99.0, 3.0, -4.0, 99.0];
        assert_eq!(vector(SpladePooling::default(), &numbers), (vec![10], vec![3.0_f32.ln_1p()]));
        let sum = SpladePooling { sum: true, twice: false };
        assert_eq!(vector(sum, &numbers), (vec![10], vec![1.0_f32.ln_1p() + 3.0_f32.ln_1p()]));
        let twice = SpladePooling { sum: false, twice: true };
        assert_eq!(vector(twice, &numbers), (vec![10], vec![3.0_f32.ln_1p().ln_1p()]));
        assert_eq!(vector(SpladePooling::default(), &[]), (vec![], vec![]));
    }

    #[test]
    fn not_a_number_is_not_hidden() {
        for sum in [false, true] {
            let found = vector(SpladePooling { sum, twice: false }, &[f32::NAN, 0.0, 0.0, 5.0, 0.0, 0.0]);
            assert!(found.1[0].is_nan());
        }
    }

    #[test]
    fn every_column_has_the_number_of_its_entry() {
        let batch = SparseBatch::new(2);
        batch.add(SpladePooling::default(), 1, 10, Rows::new(&[1.0, -1.0, 2.0, 0.5, -2.0, 3.0], 3, 3));
        batch.add(SpladePooling::default(), 1, 20, Rows::new(&[4.0, 5.0], 2, 2));
        let [none, found] = &batch.into_vectors().collect::<Vec<_>>()[..] else { panic!("two vectors") };
        assert!(none.indices.is_empty() && none.values.is_empty());
        assert_eq!(*found.indices, [10, 12, 20, 21]);
        assert_eq!(*found.values, [1.0, 3.0, 4.0, 5.0].map(f32::ln_1p));
    }
}
