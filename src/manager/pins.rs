//! Results that stay in the cache though it is full, as long as some slot has their model.

use std::sync::Arc;

use super::info::ModelInfo;
use super::registry::NamedSlot;
use crate::cache::EmbeddingCache;

/// Removes the pinned results of `former`, the model that a slot had, from `cache`, unless one of `slots` has that model.
/// No call would find them, and the cache would stay full.
pub(super) fn release(cache: &EmbeddingCache, slots: &[Arc<NamedSlot>], former: &ModelInfo) {
    let identity = &former.facts.identity;
    if !slots.iter().any(|slot| slot.info().is_some_and(|info| info.facts.identity == *identity)) {
        cache.release(identity);
    }
}
