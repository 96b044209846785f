//! The cache of results: the same text, model and parameters give the same result, so it is computed once.
//!
//! Bounded by entries and by bytes, exactly: after every call both bounds are kept. The entry that leaves is the least
//! recently used one ([`Policy::Lru`]), the least frequently used one ([`Policy::Lfu`]), or chosen by a balance of both that
//! follows the use ([`Policy::Arc`]). With a time to live, an entry older than that is never returned. One lock, for the
//! look-up only; values are dropped after it is released.

mod arc;
mod entry;
mod item;
mod key;
mod store;
#[cfg(test)]
mod tests;
pub mod tiers;

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::time::Duration;

use lru::{DefaultHasher, LruCache};

use crate::clock::Clock;
use crate::sync::Mutex;
use crate::{Error, Result};

use entry::CacheEntry;
use key::{AnyKey, BuildKeyHasher, HashedKey, Key};
use store::{Lfu, Store};

pub use item::CachedItem;
pub use key::{Content, KeyRef};

/// Which entry leaves when the cache is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// The least recently used.
    #[default]
    Lru,
    /// The least frequently used; among equals the least recently used.
    Lfu,
    /// One of those used once or of those used again, whichever group is larger than it has proved useful.
    Arc,
}

impl Policy {
    /// From "lru", "lfu" or "arc".
    ///
    /// # Errors
    /// [`Error::Config`] naming `setting` for anything else.
    pub fn parse(setting: &str, text: &str) -> Result<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "lru" => Ok(Self::Lru),
            "lfu" => Ok(Self::Lfu),
            "arc" => Ok(Self::Arc),
            _ => Err(Error::Config {
                setting: setting.into(),
                value: text.into(),
                reason: "expected \"lru\", \"lfu\" or \"arc\"".into(),
            }),
        }
    }
}

/// The cache's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSettings {
    /// Most entries; 0 turns the cache off.
    pub max_entries: usize,
    /// Most bytes of keys, vectors and bookkeeping together; `None` is no bound.
    pub max_bytes: Option<u64>,
    /// Which entry leaves when the cache is full.
    pub policy: Policy,
    /// Age at which an entry is no longer returned; `None` is none.
    pub time_to_live: Option<Duration>,
}

/// What a cache has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Look-ups answered.
    pub hits: u64,
    /// Look-ups not answered.
    pub misses: u64,
    /// Results stored, replacements included.
    pub insertions: u64,
    /// Entries that left because the cache was full.
    pub evictions: u64,
    /// Entries that left because of their age.
    pub expirations: u64,
    /// Results not stored because one alone exceeds the byte bound, or because there was no memory.
    pub rejections: u64,
}

impl CacheCounts {
    fn plus(self, other: Self) -> Self {
        Self {
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
            insertions: self.insertions + other.insertions,
            evictions: self.evictions + other.evictions,
            expirations: self.expirations + other.expirations,
            rejections: self.rejections + other.rejections,
        }
    }
}

/// What a cache has done and holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStatistics {
    /// Since construction or the latest [`EmbeddingCache::clear`].
    pub counts: CacheCounts,
    /// Since construction. Monitoring reads these, which never fall.
    pub totals: CacheCounts,
    /// Entries now.
    pub entries: usize,
    /// Entries of these that stay until the cache is cleared.
    pub pinned: usize,
    /// Bytes now.
    pub bytes: u64,
    /// The bound on entries.
    pub max_entries: usize,
    /// The bound on bytes.
    pub max_bytes: Option<u64>,
}

/// A thread-safe, exactly bounded cache of the results of texts.
pub struct EmbeddingCache {
    settings: CacheSettings,
    clock: Clock,
    /// Of keys, with a secret of its own.
    hasher: DefaultHasher,
    state: Mutex<CacheState>,
}

struct CacheState {
    store: Store,
    /// Entries that never leave because the cache is full. They count in both bounds.
    pinned: HashMap<Key, CacheEntry, BuildKeyHasher>,
    bytes: u64,
    /// Since construction or the latest clearing.
    counts: CacheCounts,
    /// Of the time before.
    earlier: CacheCounts,
}

/// Bytes that an entry takes in addition to the text of its key and the numbers of its result: key, entry, the result's
/// shared headers, four words of list links and hash table, and two words of the allocator for each of five allocations.
const ENTRY_OVERHEAD: usize = size_of::<Key>()
    + size_of::<CacheEntry>()
    + CachedItem::OVERHEAD
    + 4 * size_of::<usize>()
    + 5 * 2 * size_of::<usize>();

impl EmbeddingCache {
    /// An empty cache.
    #[must_use]
    pub fn new(settings: CacheSettings, clock: Clock) -> Self {
        let state = Mutex::new(CacheState::new(settings.policy));
        Self { settings, clock, hasher: DefaultHasher::default(), state }
    }

    /// The bounds.
    #[must_use]
    pub fn settings(&self) -> CacheSettings {
        self.settings
    }

    /// The result stored under `key`, counted as a hit or a miss. A hit allocates nothing.
    #[must_use]
    pub fn get(&self, key: &KeyRef<'_>) -> Option<CachedItem> {
        let now = self.settings.time_to_live.map(|_| self.clock.now());
        let key = &self.hashed(key);
        let mut state = self.state.lock();
        let Some(entry) = state.find(key) else {
            state.counts.misses += 1;
            return None;
        };
        if !entry.expired(now) {
            let item = entry.item.clone();
            state.counts.hits += 1;
            return Some(item);
        }
        let expired = state.pop(key);
        state.counts.expirations += 1;
        state.counts.misses += 1;
        drop(state);
        drop(expired);
        None
    }

    /// Counts look-ups that were not made because nothing could be there: the model has never been loaded.
    pub fn count_misses(&self, misses: usize) {
        self.state.lock().counts.misses += misses as u64;
    }

    /// Stores `item` under `key`, in place of an earlier one. Other entries leave until both bounds are kept. A result that
    /// alone exceeds the byte bound, or for whose key there is no memory, is not stored.
    pub fn insert(&self, key: &KeyRef<'_>, item: CachedItem) {
        self.keep(key, item, false);
    }

    /// The same, and the entry does not leave because the cache is full. When only such entries are left, a further one is
    /// not stored.
    pub fn pin(&self, key: &KeyRef<'_>, item: CachedItem) {
        self.keep(key, item, true);
    }

    fn keep(&self, key: &KeyRef<'_>, item: CachedItem, pin: bool) {
        if self.settings.max_entries == 0 {
            return;
        }
        let bytes = entry_bytes(key, &item);
        let key = &self.hashed(key);
        let Ok(owned) = Key::copy(key) else {
            self.state.lock().counts.rejections += 1;
            return;
        };
        let max_bytes = self.settings.max_bytes.unwrap_or(u64::MAX);
        let expires = self.settings.time_to_live.and_then(|age| self.clock.now().checked_add(age));
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        let pin = pin || (!state.pinned.is_empty() && state.pinned.contains_key(key as &dyn AnyKey));
        let replaced = state.pop(key);
        let uses = replaced.as_ref().map_or(0, |entry| entry.uses) + 1;
        gone.extend(replaced);
        if bytes > max_bytes {
            state.counts.rejections += 1;
        } else {
            // What fits into the bytes is what there is, once they are full.
            let full = state.bytes > max_bytes - bytes;
            let pinned = state.pinned.len();
            let most = self.settings.max_entries.saturating_sub(pinned);
            let capacity = if full { state.store.len() } else { most };
            state.store.expect(key, capacity.max(1));
            let is_full = |state: &CacheState| state.store.len() >= most || state.bytes > max_bytes - bytes;
            while is_full(&state) {
                let Some(evicted) = state.store.pop_next() else { break };
                state.bytes -= evicted.bytes;
                state.counts.evictions += 1;
                gone.push(evicted);
            }
            if is_full(&state) {
                state.counts.rejections += 1;
            } else {
                let entry = CacheEntry { item, bytes, expires, uses };
                if pin {
                    state.pinned.insert(owned, entry);
                } else {
                    state.store.insert(owned, entry);
                }
                state.bytes += bytes;
                state.counts.insertions += 1;
            }
        }
        drop(state);
        drop(gone);
    }

    fn hashed<'a>(&self, key: &KeyRef<'a>) -> HashedKey<'a> {
        HashedKey { key: *key, hash: self.hasher.hash_one(key) }
    }

    /// Removes entries that are too old to be returned. Returns how many.
    pub fn purge_expired(&self) -> usize {
        if self.settings.time_to_live.is_none() {
            return 0;
        }
        let now = Some(self.clock.now());
        let gone = {
            let mut state = self.state.lock();
            let gone = state.pop_all(|_, entry| entry.expired(now));
            state.counts.expirations += gone.len() as u64;
            gone
        };
        gone.len()
    }

    /// Removes the entries of `model` that would never leave: no slot has it any more.
    pub fn release(&self, model: &str) {
        let mut state = self.state.lock();
        let gone: Vec<_> = state.pinned.extract_if(|key, _| &**key.borrowed().model == model).collect();
        state.bytes -= gone.iter().map(|(_, entry)| entry.bytes).sum::<u64>();
        drop(state);
        drop(gone);
    }

    /// Removes everything and sets the counts, but not the totals, to zero.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        let earlier = state.earlier.plus(state.counts);
        let old =
            std::mem::replace(&mut *state, CacheState { earlier, ..CacheState::new(self.settings.policy) });
        drop(state);
        drop(old);
    }

    /// Its content and counts.
    #[must_use]
    pub fn statistics(&self) -> CacheStatistics {
        let state = self.state.lock();
        CacheStatistics {
            counts: state.counts,
            totals: state.earlier.plus(state.counts),
            entries: state.store.len() + state.pinned.len(),
            pinned: state.pinned.len(),
            bytes: state.bytes,
            max_entries: self.settings.max_entries,
            max_bytes: self.settings.max_bytes,
        }
    }
}

impl CacheState {
    fn new(policy: Policy) -> Self {
        let store = match policy {
            Policy::Lru => Store::Lru(LruCache::unbounded_with_hasher(BuildKeyHasher::default())),
            Policy::Lfu => Store::Lfu(Lfu::default()),
            Policy::Arc => Store::Arc(Box::default()),
        };
        Self {
            store,
            pinned: HashMap::default(),
            bytes: 0,
            counts: CacheCounts::default(),
            earlier: CacheCounts::default(),
        }
    }

    /// The entry, counted as used.
    fn find(&mut self, key: &HashedKey<'_>) -> Option<&CacheEntry> {
        if self.pinned.is_empty() {
            return self.store.get(key);
        }
        self.pinned.get(key as &dyn AnyKey).or_else(|| self.store.get(key))
    }

    fn pop(&mut self, key: &HashedKey<'_>) -> Option<CacheEntry> {
        let entry = self.pinned.remove(key as &dyn AnyKey).or_else(|| self.store.pop(key))?;
        self.bytes -= entry.bytes;
        Some(entry)
    }

    fn pop_all(&mut self, unwanted: impl Fn(&Key, &CacheEntry) -> bool) -> Vec<CacheEntry> {
        let mut gone = self.store.pop_all(&unwanted);
        gone.extend(self.pinned.extract_if(|key, entry| unwanted(key, entry)).map(|(_, entry)| entry));
        self.bytes -= gone.iter().map(|entry| entry.bytes).sum::<u64>();
        gone
    }
}

fn entry_bytes(key: &KeyRef<'_>, item: &CachedItem) -> u64 {
    (key.content.bytes() + key.prompt.len() + item.bytes() + ENTRY_OVERHEAD) as u64
}
