//! Which cache a slot uses: that of all models, one of its own, or none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::tiers::TierNames;
use crate::cache::{CacheSettings, CacheStatistics, EmbeddingCache, Policy};
use crate::clock::Clock;
use crate::config::TimeSpan;

/// How the results of one model are cached. What is not said is as for all models.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CacheOptions {
    /// Disables the cache for this model.
    pub off: bool,
    /// Results in memory.
    pub size: Option<usize>,
    /// Which leaves when there are more.
    pub policy: Option<Policy>,
    /// Age at which one is no longer returned.
    pub time_to_live: Option<TimeSpan>,
    /// Names of the tiers that take part, memory among them.
    pub tiers: TierNames,
}

/// The cache of one slot, and how often it had what was asked for.
pub(super) struct SlotCache {
    own: Option<Arc<EmbeddingCache>>,
    in_memory: bool,
    /// The lower tiers that take part; `None` for a slot that uses none.
    pub(super) tiers: Option<TierNames>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl SlotCache {
    /// `shared` is how all models are cached.
    pub(super) fn new(options: &CacheOptions, shared: CacheSettings) -> Self {
        let named =
            |name: &str| options.tiers.as_ref().is_none_or(|tiers| tiers.iter().any(|tier| tier == name));
        let is_own = options.size.is_some() || options.policy.is_some() || options.time_to_live.is_some();
        let in_memory = !options.off && named("memory");
        let own = (is_own && in_memory).then(|| {
            let settings = CacheSettings {
                max_entries: options.size.unwrap_or(shared.max_entries),
                policy: options.policy.unwrap_or(shared.policy),
                time_to_live: options.time_to_live.as_ref().map(|span| span.duration).or(shared.time_to_live),
                ..shared
            };
            Arc::new(EmbeddingCache::new(settings, Clock::System))
        });
        Self {
            own,
            in_memory,
            tiers: (!options.off).then(|| options.tiers.clone()),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// The cache in memory, if the slot uses one that holds anything. `shared` is that of all models.
    pub(super) fn memory<'a>(&'a self, shared: &'a EmbeddingCache) -> Option<&'a EmbeddingCache> {
        let cache = self.own.as_deref().unwrap_or(shared);
        (self.in_memory && cache.settings().max_entries > 0).then_some(cache)
    }

    /// The cache that only this slot uses.
    pub(super) fn own(&self) -> Option<&EmbeddingCache> {
        self.own.as_deref()
    }

    /// Counts results that were asked for, whichever tier had them.
    pub(super) fn count(&self, hits: usize, misses: usize) {
        self.hits.fetch_add(hits as u64, Ordering::Relaxed);
        self.misses.fetch_add(misses as u64, Ordering::Relaxed);
    }

    pub(super) fn report(&self) -> SlotCacheReport {
        SlotCacheReport {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            own: self.own().map(EmbeddingCache::statistics),
            off: self.tiers.is_none(),
        }
    }

    pub(super) fn clear(&self) {
        self.hits.store(0, Ordering::Relaxed);
        self.misses.store(0, Ordering::Relaxed);
        if let Some(own) = self.own() {
            own.clear();
        }
    }
}

/// How often the results of one model were cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotCacheReport {
    /// Results that some tier had.
    pub hits: u64,
    /// Results that were computed.
    pub misses: u64,
    /// Its own cache in memory, if it has one.
    pub own: Option<CacheStatistics>,
    /// It is not cached.
    pub off: bool,
}
