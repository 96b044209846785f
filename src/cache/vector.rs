//! A computed vector, shared by everyone who asked for it.

use std::any::Any;
use std::sync::{Arc, OnceLock};

/// An embedding. Cloning copies a pointer.
#[derive(Clone)]
pub struct Vector(Arc<Inner>);

struct Inner {
    values: Arc<[f32]>,
    tokens: u32,
    view: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Vector {
    /// A vector that a model made of so many tokens.
    #[must_use]
    pub fn new(values: impl Into<Arc<[f32]>>, tokens: u32) -> Self {
        Self(Arc::new(Inner { values: values.into(), tokens, view: OnceLock::new() }))
    }

    /// Tokens that the model read for it: prompt and special ones included, those cut off not.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        self.0.tokens
    }

    /// The vector's values.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.0.values
    }

    /// The storage itself, for owners that outlive the `Vector`.
    #[must_use]
    pub fn values(&self) -> &Arc<[f32]> {
        &self.0.values
    }

    /// A parking place for one further form of the same vector, made by whoever first needs it and found by every
    /// later hit: the binding keeps its numpy array here, so that a hit builds no Python object.
    ///
    /// What is parked lives as long as the vector. It may hold [`Vector::values`], and must not hold the `Vector`: that
    /// would be a cycle. It is dropped on whichever thread drops the last clone, never under the cache's lock.
    #[must_use]
    pub fn view(&self) -> &OnceLock<Box<dyn Any + Send + Sync>> {
        &self.0.view
    }

    /// Bytes of the values.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.as_slice())
    }

    /// Bytes that every vector takes beside its values: both shared allocations' headers and fields.
    pub(super) const OVERHEAD: usize = size_of::<Inner>() + 4 * size_of::<usize>();
}

impl std::fmt::Debug for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Vector").field(&self.0.values).finish()
    }
}

/// Equal values of equally many tokens; the parked view does not count.
impl PartialEq for Vector {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice() && self.tokens() == other.tokens()
    }
}
