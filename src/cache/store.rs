//! The order in which entries leave: least recently used, least frequently used, or a balance of both.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lru::LruCache;

use super::arc::ArcPolicy;
use super::entry::CacheEntry;
use super::key::{AnyKey, BuildKeyHasher, Key};

/// Entries by key, in their order of leaving.
pub(super) enum Store {
    /// Least recently used first.
    Lru(LruCache<Key, CacheEntry, BuildKeyHasher>),
    /// Least frequently used first; the least recently used of those.
    Lfu(Lfu),
    /// By a balance of both that follows the use.
    Arc(Box<ArcPolicy>),
}

/// An exact LFU: O(log n) per operation.
#[derive(Default)]
pub(super) struct Lfu {
    entries: HashMap<Arc<Key>, (CacheEntry, Rank), BuildKeyHasher>,
    order: BTreeMap<Rank, Arc<Key>>,
    ticks: u64,
}

/// Uses, then the moment of the latest use. Unique, since no moment is given twice.
type Rank = (u64, u64);

impl Store {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Lru(entries) => entries.len(),
            Self::Lfu(lfu) => lfu.entries.len(),
            Self::Arc(arc) => arc.len(),
        }
    }

    /// The entry, counted as used.
    pub(super) fn get(&mut self, key: &dyn AnyKey) -> Option<&CacheEntry> {
        match self {
            Self::Lru(entries) => entries.get(key),
            Self::Lfu(lfu) => lfu.get(key),
            Self::Arc(arc) => arc.get(key),
        }
    }

    /// Takes the entry out.
    pub(super) fn pop(&mut self, key: &dyn AnyKey) -> Option<CacheEntry> {
        match self {
            Self::Lru(entries) => entries.pop(key),
            Self::Lfu(lfu) => lfu.pop(key),
            Self::Arc(arc) => arc.pop(key),
        }
    }

    /// An entry with `key`, which is not there, is about to be inserted into a cache of `capacity` entries.
    pub(super) fn expect(&mut self, key: &dyn AnyKey, capacity: usize) {
        if let Self::Arc(arc) = self {
            arc.expect(key, capacity);
        }
    }

    /// Takes out the entry that leaves next.
    pub(super) fn pop_next(&mut self) -> Option<CacheEntry> {
        match self {
            Self::Lru(entries) => entries.pop_lru().map(|(_, entry)| entry),
            Self::Lfu(lfu) => {
                let (_, key) = lfu.order.pop_first()?;
                lfu.entries.remove(&*key as &dyn AnyKey).map(|(entry, _)| entry)
            }
            Self::Arc(arc) => arc.pop_next(),
        }
    }

    /// Adds an entry under a key that is not there.
    pub(super) fn insert(&mut self, key: Key, entry: CacheEntry) {
        match self {
            Self::Lru(entries) => {
                entries.put(key, entry);
            }
            Self::Lfu(lfu) => lfu.insert(key, entry),
            Self::Arc(arc) => arc.insert(key, entry),
        }
    }

    /// Takes out all entries that `unwanted` picks.
    pub(super) fn pop_all(&mut self, unwanted: &impl Fn(&Key, &CacheEntry) -> bool) -> Vec<CacheEntry> {
        let keys: Vec<Key> = match self {
            Self::Lru(entries) => entries
                .iter()
                .filter(|(key, entry)| unwanted(key, entry))
                .map(|(key, _)| key.clone())
                .collect(),
            Self::Lfu(lfu) => {
                let picked = lfu.entries.iter().filter(|(key, (entry, _))| unwanted(key, entry));
                picked.map(|(key, _)| Key::clone(key)).collect()
            }
            Self::Arc(arc) => {
                arc.iter().filter(|(key, entry)| unwanted(key, entry)).map(|(key, _)| key.clone()).collect()
            }
        };
        keys.iter().filter_map(|key| self.pop(key)).collect()
    }

    /// The keys, in their order of leaving.
    #[cfg(test)]
    pub(super) fn keys(&self) -> Vec<Key> {
        match self {
            Self::Lru(entries) => entries.iter().rev().map(|(key, _)| key.clone()).collect(),
            Self::Lfu(lfu) => lfu.order.values().map(|key| Key::clone(key)).collect(),
            Self::Arc(arc) => arc.iter().map(|(key, _)| key.clone()).collect(),
        }
    }
}

impl Lfu {
    fn get(&mut self, key: &dyn AnyKey) -> Option<&CacheEntry> {
        let (entry, rank) = self.entries.get_mut(key)?;
        let key = self.order.remove(rank)?;
        self.ticks += 1;
        entry.uses += 1;
        *rank = (entry.uses, self.ticks);
        self.order.insert(*rank, key);
        Some(entry)
    }

    fn pop(&mut self, key: &dyn AnyKey) -> Option<CacheEntry> {
        let (entry, rank) = self.entries.remove(key)?;
        self.order.remove(&rank);
        Some(entry)
    }

    fn insert(&mut self, key: Key, entry: CacheEntry) {
        let key = Arc::new(key);
        self.ticks += 1;
        let rank = (entry.uses, self.ticks);
        self.order.insert(rank, Arc::clone(&key));
        self.entries.insert(key, (entry, rank));
    }
}
