//! Results of models. A model has one kind of result; each input of a call gets one item of that kind.
//!
//! | kind | the item of one text | status |
//! |---|---|---|
//! | `Dense` | a vector of fixed width | here |
//! | `Scores` | one number for each label, or for a pair of texts | planned |
//! | `Sparse` | weights of some entries of a vocabulary | planned |
//! | `Multi` | one vector for each token | planned |
//!
//! Queues, cache and jobs move items and do not look into them: they use only what is common to all kinds. A further kind
//! is one more variant of [`Shape`], [`Output`], [`View`] and [`Item`]. The compiler then names the places that treat
//! kinds differently: heads, post-processing, and conversion for Python and JSON.

use std::sync::Arc;

use crate::Result;
use crate::compute::memory::zeroed;

/// What the items of a model look like. Items of equal shape can be in one [`Output`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Vectors of `width` values.
    Dense {
        /// Values of each vector.
        width: usize,
    },
    // Scores, Sparse and Multi are further variants.
}

/// Items of equal shape, one for each input.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Vectors of equal width.
    Dense(Dense),
    // Scores, Sparse and Multi are further variants.
}

/// One item, borrowed from an [`Output`] or an [`Item`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum View<'a> {
    /// The values of a vector.
    Dense(&'a [f32]),
    // Scores, Sparse and Multi are further variants.
}

/// One item that owns its memory. Cloning copies a pointer.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// The values of a vector.
    Dense(Arc<[f32]>),
    // Scores, Sparse and Multi are further variants.
}

/// Vectors of equal width, as the rows of a matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dense {
    values: Vec<f32>,
    rows: usize,
    width: usize,
}

impl Shape {
    /// Values of each vector.
    #[must_use]
    pub fn width(self) -> usize {
        match self {
            Self::Dense { width } => width,
        }
    }
}

impl Default for Output {
    /// No items, of no width.
    fn default() -> Self {
        Self::Dense(Dense::default())
    }
}

impl Output {
    /// `rows` items of this shape, all zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(shape: Shape, rows: usize) -> Result<Self> {
        match shape {
            Shape::Dense { width } => {
                let values = zeroed(width.saturating_mul(rows))?;
                Ok(Self::Dense(Dense { values, rows, width }))
            }
        }
    }

    /// Changes it to `rows` items of this shape, all zero. Keeps the memory that it has.
    pub fn reset(&mut self, shape: Shape, rows: usize) {
        match (self, shape) {
            (Self::Dense(dense), Shape::Dense { width }) => {
                dense.values.clear();
                dense.values.resize(rows * width, 0.0);
                (dense.rows, dense.width) = (rows, width);
            }
        }
    }

    /// The shape of its items.
    #[must_use]
    pub fn shape(&self) -> Shape {
        match self {
            Self::Dense(dense) => Shape::Dense { width: dense.width },
        }
    }

    /// Items.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.rows,
        }
    }

    /// Item number `row`.
    #[must_use]
    pub fn view(&self, row: usize) -> View<'_> {
        match self {
            Self::Dense(dense) => View::Dense(dense.row(row)),
        }
    }

    /// Replaces item number `row` by a copy of `item`, which has the same shape.
    pub fn put(&mut self, row: usize, item: View<'_>) {
        match (self, item) {
            (Self::Dense(dense), View::Dense(values)) => dense.row_mut(row).copy_from_slice(values),
        }
    }

    /// The only item of an output of one.
    #[must_use]
    pub fn into_item(self) -> Item {
        match self {
            Self::Dense(dense) => Item::Dense(dense.values.into()),
        }
    }
}

impl View<'_> {
    /// Whether all its numbers are finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        match self {
            Self::Dense(values) => values.iter().all(|value| value.is_finite()),
        }
    }

    /// A copy that owns its memory.
    #[must_use]
    pub fn to_item(&self) -> Item {
        match self {
            Self::Dense(values) => Item::Dense((*values).into()),
        }
    }
}

impl Item {
    /// The item.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        match self {
            Self::Dense(values) => View::Dense(values),
        }
    }

    /// Bytes of its numbers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(values) => size_of_val(&**values),
        }
    }
}

impl Dense {
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
mod tests {
    use super::*;

    const PAIRS: Shape = Shape::Dense { width: 2 };

    #[test]
    fn items_are_put_and_viewed_by_number() {
        let mut output = Output::new(PAIRS, 3).unwrap();
        output.put(2, View::Dense(&[3.0, 4.0]));
        output.put(0, View::Dense(&[1.0, 2.0]));
        assert_eq!((output.shape(), output.rows()), (PAIRS, 3));
        assert_eq!((output.view(1), output.view(2)), (View::Dense(&[0.0, 0.0]), View::Dense(&[3.0, 4.0])));
        let Output::Dense(dense) = output;
        assert_eq!(dense.into_values(), [1.0, 2.0, 0.0, 0.0, 3.0, 4.0]);
    }

    #[test]
    fn a_reset_output_is_zero_and_has_the_new_shape() {
        let mut output = Output::default();
        output.reset(PAIRS, 1);
        output.put(0, View::Dense(&[1.0, 2.0]));
        output.reset(Shape::Dense { width: 3 }, 2);
        assert_eq!((output.rows(), output.shape().width()), (2, 3));
        assert_eq!(output, Output::new(Shape::Dense { width: 3 }, 2).unwrap());
    }

    #[test]
    fn an_item_counts_its_bytes() {
        let mut output = Output::new(PAIRS, 1).unwrap();
        output.put(0, View::Dense(&[1.0, f32::NAN]));
        assert!(!output.view(0).is_finite());
        output.put(0, View::Dense(&[1.0, 2.0]));
        assert!(output.view(0).is_finite());
        let item = output.view(0).to_item();
        assert_eq!((item.bytes(), item.view()), (8, View::Dense(&[1.0, 2.0])));
        assert_eq!(output.into_item(), item);
    }

    #[test]
    fn memory_that_is_refused_is_an_error() {
        assert!(Output::new(Shape::Dense { width: 1 << 40 }, 1 << 40).is_err());
    }
}
