//! What the cache keeps for one key.

use std::time::Instant;

use super::item::CachedItem;

/// One cached result.
pub(super) struct CacheEntry {
    pub(super) item: CachedItem,
    /// Its bytes in the byte bound.
    pub(super) bytes: u64,
    pub(super) expires: Option<Instant>,
    /// Insertions and hits, as LFU counts them.
    pub(super) uses: u64,
}

impl CacheEntry {
    pub(super) fn expired(&self, now: Option<Instant>) -> bool {
        now.zip(self.expires).is_some_and(|(now, expires)| expires <= now)
    }
}
