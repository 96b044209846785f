//! A cached result, shared by all callers that asked for it.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use crate::output::Item;

/// The result of one text, of any kind. Cloning copies a pointer.
#[derive(Clone)]
pub struct CachedItem(Arc<ItemParts>);

struct ItemParts {
    item: Item,
    tokens: u32,
    parked: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl CachedItem {
    /// A result that a model made of so many tokens.
    #[must_use]
    pub fn new(item: Item, tokens: u32) -> Self {
        Self(Arc::new(ItemParts { item, tokens, parked: OnceLock::new() }))
    }

    /// Tokens that the model read for it: prompt and special ones included, those cut off not.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        self.0.tokens
    }

    /// The result.
    #[must_use]
    pub fn item(&self) -> &Item {
        &self.0.item
    }

    /// A place for one other form of the same result. The first caller that needs it makes it, and later hits find it: the
    /// Python binding keeps its numpy array here, so that a hit builds no Python object.
    ///
    /// It lives as long as the result. It may own the [`Item`], and must not own the `CachedItem`: that would be a cycle. It
    /// is dropped on the thread that drops the last clone, never under the cache's lock.
    #[must_use]
    pub fn parked(&self) -> &OnceLock<Box<dyn Any + Send + Sync>> {
        &self.0.parked
    }

    /// Bytes of its numbers.
    pub(super) fn bytes(&self) -> usize {
        self.0.item.bytes()
    }

    /// Bytes that every result takes in addition to its numbers: headers and fields of both shared allocations.
    pub(super) const OVERHEAD: usize = size_of::<ItemParts>() + 4 * size_of::<usize>();
}

impl std::fmt::Debug for CachedItem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CachedItem").field(&self.0.item).finish()
    }
}

/// Equal results of equally many tokens. What is parked does not count.
impl PartialEq for CachedItem {
    fn eq(&self, other: &Self) -> bool {
        self.item() == other.item() && self.tokens() == other.tokens()
    }
}
