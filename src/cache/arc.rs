//! ARC, the adaptive replacement cache of Megiddo and Modha (FAST 2003): it balances what was used recently against what
//! was used often, by what it has just removed too early.
//!
//! ```text
//! removed once: ghosts of `recent` ← recent (used once) │ frequent (used again) → ghosts of `frequent`
//!                                           ←── target ──→
//! ```

use lru::LruCache;

use super::entry::CacheEntry;
use super::key::{AnyKey, BuildKeyHasher, Key};

/// Entries by key. A ghost is the 64-bit hash of a key whose entry was removed: two keys of equal hashes make the balance
/// a little worse, never a result wrong.
pub(super) struct ArcPolicy {
    recent: LruCache<Key, CacheEntry, BuildKeyHasher>,
    frequent: LruCache<Key, CacheEntry, BuildKeyHasher>,
    recent_ghosts: LruCache<u64, (), BuildKeyHasher>,
    frequent_ghosts: LruCache<u64, (), BuildKeyHasher>,
    /// Entries that `recent` should have.
    target: usize,
    arriving: Arriving,
}

/// Where the entry that is about to be inserted comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arriving {
    New,
    FromRecentGhosts,
    FromFrequentGhosts,
}

impl Default for ArcPolicy {
    fn default() -> Self {
        Self {
            recent: LruCache::unbounded_with_hasher(BuildKeyHasher::default()),
            frequent: LruCache::unbounded_with_hasher(BuildKeyHasher::default()),
            recent_ghosts: LruCache::unbounded_with_hasher(BuildKeyHasher::default()),
            frequent_ghosts: LruCache::unbounded_with_hasher(BuildKeyHasher::default()),
            target: 0,
            arriving: Arriving::New,
        }
    }
}

impl ArcPolicy {
    pub(super) fn len(&self) -> usize {
        self.recent.len() + self.frequent.len()
    }

    /// The entry, which is frequent from now on.
    pub(super) fn get(&mut self, key: &dyn AnyKey) -> Option<&CacheEntry> {
        if let Some((key, entry)) = self.recent.pop_entry(key) {
            self.frequent.put(key, entry);
        }
        self.frequent.get(key)
    }

    pub(super) fn pop(&mut self, key: &dyn AnyKey) -> Option<CacheEntry> {
        self.recent.pop(key).or_else(|| self.frequent.pop(key))
    }

    /// An entry with `key`, which is not here, will be inserted: learns from its ghost, of a cache of `capacity` entries.
    pub(super) fn expect(&mut self, key: &dyn AnyKey, capacity: usize) {
        let ghost = key.hashed();
        let (recent, frequent) = (self.recent_ghosts.len(), self.frequent_ghosts.len());
        self.arriving = if self.recent_ghosts.pop(&ghost).is_some() {
            self.target = capacity.min(self.target + (frequent / recent).max(1));
            Arriving::FromRecentGhosts
        } else if self.frequent_ghosts.pop(&ghost).is_some() {
            self.target = self.target.saturating_sub((recent / frequent).max(1));
            Arriving::FromFrequentGhosts
        } else {
            if self.recent.len() + recent >= capacity {
                self.recent_ghosts.pop_lru();
            } else if self.len() + recent + frequent >= 2 * capacity {
                self.frequent_ghosts.pop_lru();
            }
            Arriving::New
        };
    }

    /// Takes out the entry that leaves next, and leaves its ghost.
    pub(super) fn pop_next(&mut self) -> Option<CacheEntry> {
        let from_frequent = self.arriving == Arriving::FromFrequentGhosts;
        let too_many = self.recent.len() > self.target || (from_frequent && self.recent.len() == self.target);
        if !self.recent.is_empty() && (too_many || self.frequent.is_empty()) {
            let (key, entry) = self.recent.pop_lru()?;
            // A cache in which nothing was used twice has no room for ghosts.
            if !(self.arriving == Arriving::New && self.frequent.is_empty() && self.recent_ghosts.is_empty())
            {
                self.recent_ghosts.put(key.hashed(), ());
            }
            return Some(entry);
        }
        let (key, entry) = self.frequent.pop_lru()?;
        self.frequent_ghosts.put(key.hashed(), ());
        Some(entry)
    }

    /// Adds an entry under a key that is not there, after [`ArcPolicy::expect`].
    pub(super) fn insert(&mut self, key: Key, entry: CacheEntry) {
        // A replacement is a use.
        let again = entry.uses > 1 || self.arriving != Arriving::New;
        self.arriving = Arriving::New;
        if again { &mut self.frequent } else { &mut self.recent }.put(key, entry);
    }

    /// All entries, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &CacheEntry)> {
        self.recent.iter().chain(self.frequent.iter())
    }
}
