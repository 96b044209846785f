//! Results of models. Each input of a call gets one item, and all items of a call are of one kind.
//!
//! | kind | the item of one input |
//! |---|---|
//! | `Dense` | a vector of fixed width |
//! | `Scores` | one number for each label, for a text or a pair of texts |
//! | `Sparse` | weights of some entries of a vocabulary |
//! | `Multi` | one vector for each token |
//! | `All` | a vector, weights of a vocabulary and the vectors of tokens, of one pass |
//!
//! Queues, cache and jobs move items and do not look into them: they use only what is common to all kinds. Heads,
//! post-processing, and conversion for Python and JSON treat kinds differently.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::compute::memory::{reserve, zeroed};
use crate::{Error, Result};

/// What a call asks a model for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum OutputKind {
    /// A vector of fixed width.
    #[default]
    Dense,
    /// One number for each label.
    Scores,
    /// Weights of entries of a vocabulary.
    Sparse,
    /// One vector for each token.
    Multi,
    /// The same of a text that is a query, where a model reads it in another way than a document.
    Queries,
    /// The states of all tokens, whatever else the model makes of them.
    States,
    /// `Dense`, `Sparse` and `Multi` together.
    All,
}

/// What the items of a model look like. Items of equal shape can be in one [`Output`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Vectors of `width` values.
    Dense {
        /// Values of each vector.
        width: usize,
    },
    /// Numbers for `labels` labels.
    Scores {
        /// Labels.
        labels: usize,
    },
    /// Weights of entries of a vocabulary.
    Sparse {
        /// Entries of the vocabulary.
        vocabulary: usize,
    },
    /// Any number of vectors of `width` values.
    Multi {
        /// Values of each vector.
        width: usize,
    },
    /// Three results, of which the vectors of texts have `width` values.
    All {
        /// Values of each vector of a text.
        width: usize,
    },
}

/// The shapes of all that one model can give.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shapes {
    /// Values of a vector.
    pub dense: Option<usize>,
    /// Labels.
    pub scores: Option<usize>,
    /// Entries of the vocabulary.
    pub sparse: Option<usize>,
    /// Values of a token's vector.
    pub multi: Option<usize>,
    /// Values of a token's state.
    #[serde(default)]
    pub states: Option<usize>,
}

/// Items of equal shape, one for each input.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Vectors of equal width.
    Dense(Dense),
    /// Numbers for the same labels.
    Scores(Dense),
    /// Weights of entries of one vocabulary.
    Sparse(Ragged<SparseVector>),
    /// Vectors of tokens.
    Multi(Ragged<MultiVector>),
    /// All three of these.
    All(Ragged<Combined>),
}

/// One item, borrowed from an [`Output`] or an [`Item`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum View<'a> {
    /// The values of a vector.
    Dense(&'a [f32]),
    /// The number of each label.
    Scores(&'a [f32]),
    /// Weights of entries of a vocabulary.
    Sparse(&'a SparseVector),
    /// The vectors of tokens.
    Multi(&'a MultiVector),
    /// Three results.
    All(&'a Combined),
}

/// One item that owns its memory. Cloning copies pointers.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// The values of a vector.
    Dense(Arc<[f32]>),
    /// The number of each label.
    Scores(Arc<[f32]>),
    /// Weights of entries of a vocabulary.
    Sparse(SparseVector),
    /// The vectors of tokens.
    Multi(MultiVector),
    /// Three results.
    All(Combined),
}

/// Entries of a vocabulary with a weight above zero. Cloning copies pointers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SparseVector {
    /// The entries, ascending.
    pub indices: Arc<[u32]>,
    /// The weight of each.
    pub values: Arc<[f32]>,
}

/// One vector for each token of a text. Cloning copies a pointer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MultiVector {
    /// The vectors one after another.
    pub values: Arc<[f32]>,
    /// Values of each vector.
    pub width: usize,
}

/// Three results of one text. Cloning copies pointers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Combined {
    /// Its vector.
    pub dense: Arc<[f32]>,
    /// Its weights of the vocabulary.
    pub sparse: SparseVector,
    /// The vectors of its tokens.
    pub multi: MultiVector,
}

/// Items of different sizes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ragged<T> {
    /// One for each input.
    pub items: Vec<T>,
    /// What their shape says: entries of the vocabulary, or values of each vector.
    pub width: usize,
}

/// Vectors of equal width, as the rows of a matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dense {
    values: Vec<f32>,
    rows: usize,
    width: usize,
}

impl OutputKind {
    /// Every kind of result.
    pub const ALL: [Self; 5] = [Self::Dense, Self::Scores, Self::Sparse, Self::Multi, Self::All];

    /// What it is, and the methods that give it, for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "vectors of texts (embed)",
            Self::Scores => "scores of texts and pairs (rerank, classify)",
            Self::Sparse => "sparse vectors (embed_sparse)",
            Self::States => "states of tokens (encode with token_embeddings)",
            Self::Multi | Self::Queries => "vectors of tokens (embed_multi)",
            Self::All => "all three of a text (embed with outputs)",
        }
    }
}

impl Shape {
    /// The kind.
    #[must_use]
    pub fn kind(self) -> OutputKind {
        match self {
            Self::Dense { .. } => OutputKind::Dense,
            Self::Scores { .. } => OutputKind::Scores,
            Self::Sparse { .. } => OutputKind::Sparse,
            Self::Multi { .. } => OutputKind::Multi,
            Self::All { .. } => OutputKind::All,
        }
    }

    /// Values of each vector, labels, or entries of the vocabulary.
    #[must_use]
    pub fn width(self) -> usize {
        match self {
            Self::Dense { width } | Self::Multi { width } | Self::All { width } => width,
            Self::Scores { labels } => labels,
            Self::Sparse { vocabulary } => vocabulary,
        }
    }
}

impl Shapes {
    /// Of a model that gives vectors alone.
    #[must_use]
    pub fn dense(width: usize) -> Self {
        Self { dense: Some(width), ..Self::default() }
    }

    /// The shape of this kind, if the model gives it.
    #[must_use]
    pub fn of(self, kind: OutputKind) -> Option<Shape> {
        match kind {
            OutputKind::Dense => self.dense.map(|width| Shape::Dense { width }),
            OutputKind::Scores => self.scores.map(|labels| Shape::Scores { labels }),
            OutputKind::Sparse => self.sparse.map(|vocabulary| Shape::Sparse { vocabulary }),
            OutputKind::Multi | OutputKind::Queries => self.multi.map(|width| Shape::Multi { width }),
            // Shapes that an earlier version stored do not name them: vectors of tokens were states.
            OutputKind::States => self.states.or(self.multi).map(|width| Shape::Multi { width }),
            OutputKind::All => {
                let three = self.dense.zip(self.sparse).zip(self.multi);
                three.map(|((width, _), _)| Shape::All { width })
            }
        }
    }

    /// What the model gives.
    pub fn kinds(self) -> impl Iterator<Item = OutputKind> {
        OutputKind::ALL.into_iter().filter(move |kind| self.of(*kind).is_some())
    }

    /// What users call a model that gives these.
    #[must_use]
    pub fn kind_name(self) -> &'static str {
        match self.scores {
            Some(1) => "reranker",
            Some(_) => "classifier",
            None if self.sparse.is_some() && self.dense.is_none() => "sparse",
            None => "embedding",
        }
    }

    /// The methods that a user calls.
    #[must_use]
    pub fn tasks(self) -> Vec<&'static str> {
        let tasks = |kind| match kind {
            OutputKind::Dense => &["embed"][..],
            OutputKind::Scores if self.scores == Some(1) => &["rerank", "classify"],
            OutputKind::Scores => &["classify"],
            OutputKind::Sparse => &["embed_sparse"],
            OutputKind::Multi | OutputKind::Queries => &["embed_multi"],
            OutputKind::States | OutputKind::All => &[],
        };
        self.kinds().flat_map(tasks).copied().collect()
    }

    /// The shape of this kind, or the error that says what the model of the slot `name` gives instead.
    ///
    /// # Errors
    /// [`Error::Task`].
    pub fn expect(self, kind: OutputKind, name: &str) -> Result<Shape> {
        self.of(kind).ok_or_else(|| {
            let given: Vec<_> = self.kinds().map(OutputKind::name).collect();
            Error::Task { name: name.to_owned(), asked: kind.name(), given: given.join(", ") }
        })
    }
}

impl Default for Output {
    /// No items, of no width.
    fn default() -> Self {
        Self::Dense(Dense::default())
    }
}

impl Output {
    /// `rows` items of this shape, all zero or empty.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(shape: Shape, rows: usize) -> Result<Self> {
        let width = shape.width();
        Ok(match shape.kind() {
            OutputKind::Dense => Self::Dense(Dense::zeros(rows, width)?),
            OutputKind::Scores => Self::Scores(Dense::zeros(rows, width)?),
            OutputKind::Sparse => Self::Sparse(Ragged::empty(rows, width)?),
            OutputKind::Multi | OutputKind::Queries | OutputKind::States => {
                Self::Multi(Ragged::empty(rows, width)?)
            }
            OutputKind::All => Self::All(Ragged::empty(rows, width)?),
        })
    }

    /// Changes it to `rows` items of this shape, all zero or empty. Keeps the memory that fits.
    ///
    /// # Errors
    /// As [`Output::new`].
    pub fn reset(&mut self, shape: Shape, rows: usize) -> Result<()> {
        match (self, shape) {
            (Self::Dense(dense), Shape::Dense { width })
            | (Self::Scores(dense), Shape::Scores { labels: width }) => dense.reset(rows, width),
            (output, _) => *output = Self::new(shape, rows)?,
        }
        Ok(())
    }

    /// The shape of its items.
    #[must_use]
    pub fn shape(&self) -> Shape {
        match self {
            Self::Dense(dense) => Shape::Dense { width: dense.width },
            Self::Scores(scores) => Shape::Scores { labels: scores.width },
            Self::Sparse(ragged) => Shape::Sparse { vocabulary: ragged.width },
            Self::Multi(ragged) => Shape::Multi { width: ragged.width },
            Self::All(ragged) => Shape::All { width: ragged.width },
        }
    }

    /// Items.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(dense) | Self::Scores(dense) => dense.rows,
            Self::Sparse(ragged) => ragged.items.len(),
            Self::Multi(ragged) => ragged.items.len(),
            Self::All(ragged) => ragged.items.len(),
        }
    }

    /// Item number `row`.
    #[must_use]
    pub fn view(&self, row: usize) -> View<'_> {
        match self {
            Self::Dense(dense) => View::Dense(dense.row(row)),
            Self::Scores(scores) => View::Scores(scores.row(row)),
            Self::Sparse(ragged) => View::Sparse(&ragged.items[row]),
            Self::Multi(ragged) => View::Multi(&ragged.items[row]),
            Self::All(ragged) => View::All(&ragged.items[row]),
        }
    }

    /// Replaces item number `row` by a copy of `item`, which has the same shape.
    ///
    /// # Panics
    /// For an item of another kind or width.
    pub fn put(&mut self, row: usize, item: View<'_>) {
        match (self, item) {
            (Self::Dense(dense), View::Dense(values)) | (Self::Scores(dense), View::Scores(values)) => {
                dense.row_mut(row).copy_from_slice(values);
            }
            (Self::Sparse(ragged), View::Sparse(item)) => ragged.items[row] = item.clone(),
            (Self::Multi(ragged), View::Multi(item)) => ragged.items[row] = item.clone(),
            (Self::All(ragged), View::All(item)) => ragged.items[row] = item.clone(),
            (output, item) => panic!("{item:?} is no item of {:?}", output.shape()),
        }
    }

    /// The only item of an output of one.
    #[must_use]
    pub fn into_item(self) -> Item {
        match self {
            Self::Dense(dense) => Item::Dense(dense.values.into()),
            Self::Scores(scores) => Item::Scores(scores.values.into()),
            Self::Sparse(mut ragged) => Item::Sparse(ragged.items.pop().unwrap_or_default()),
            Self::Multi(mut ragged) => Item::Multi(ragged.items.pop().unwrap_or_default()),
            Self::All(mut ragged) => Item::All(ragged.items.pop().unwrap_or_default()),
        }
    }
}

impl View<'_> {
    /// Whether all its numbers are finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        match self {
            Self::Dense(values) | Self::Scores(values) => finite(values),
            Self::Sparse(item) => finite(&item.values),
            Self::Multi(item) => finite(&item.values),
            Self::All(item) => {
                finite(&item.dense) && finite(&item.sparse.values) && finite(&item.multi.values)
            }
        }
    }

    /// A copy that owns its memory.
    #[must_use]
    pub fn to_item(&self) -> Item {
        match *self {
            Self::Dense(values) => Item::Dense(values.into()),
            Self::Scores(values) => Item::Scores(values.into()),
            Self::Sparse(item) => Item::Sparse(item.clone()),
            Self::Multi(item) => Item::Multi(item.clone()),
            Self::All(item) => Item::All(item.clone()),
        }
    }
}

impl Item {
    /// The item.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        match self {
            Self::Dense(values) => View::Dense(values),
            Self::Scores(values) => View::Scores(values),
            Self::Sparse(item) => View::Sparse(item),
            Self::Multi(item) => View::Multi(item),
            Self::All(item) => View::All(item),
        }
    }

    /// Bytes of its numbers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(values) | Self::Scores(values) => size_of_val(&**values),
            Self::Sparse(item) => size_of_val(&*item.indices) + size_of_val(&*item.values),
            Self::Multi(item) => size_of_val(&*item.values),
            Self::All(Combined { dense, sparse, multi }) => {
                size_of_val(&**dense)
                    + size_of_val(&*sparse.indices)
                    + size_of_val(&*sparse.values)
                    + size_of_val(&*multi.values)
            }
        }
    }
}

impl<T: Clone + Default> Ragged<T> {
    fn empty(rows: usize, width: usize) -> Result<Self> {
        let mut items = Vec::new();
        reserve(&mut items, rows)?;
        items.resize(rows, T::default());
        Ok(Self { items, width })
    }
}

impl Dense {
    fn zeros(rows: usize, width: usize) -> Result<Self> {
        Ok(Self { values: zeroed(width.saturating_mul(rows))?, rows, width })
    }

    fn reset(&mut self, rows: usize, width: usize) {
        self.values.clear();
        self.values.resize(rows * width, 0.0);
        (self.rows, self.width) = (rows, width);
    }

    /// The vectors one after another.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The same, to be written to.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The same, as a list of its own.
    #[must_use]
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// Vectors.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of each vector; 0 when there are no inputs and no model is known yet.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Vector number `row`.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }

    /// The same, to be written to.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.width..(row + 1) * self.width]
    }
}

#[cfg(test)]
mod tests;
