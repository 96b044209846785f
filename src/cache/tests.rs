//! The cache against a model that does everything by looking at every entry.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::output::{Item, OutputKind};

#[path = "arc_tests.rs"]
mod arc;

fn settings(max_entries: usize) -> CacheSettings {
    CacheSettings { max_entries, max_bytes: None, policy: Policy::Lru, time_to_live: None }
}

fn cache(settings: CacheSettings) -> EmbeddingCache {
    EmbeddingCache::new(settings, Clock::manual())
}

/// A key that the other fields of no other text share.
fn key<'a>(text: &'a str, model: &'a Arc<str>) -> KeyRef<'a> {
    KeyRef {
        content: Content::Text(text),
        prompt: "",
        model,
        dimensions: None,
        normalized: true,
        kind: OutputKind::Dense,
    }
}

fn vector(dimensions: usize) -> CachedItem {
    CachedItem::new(Item::Dense(vec![0.5; dimensions].into()), 3)
}

#[test]
fn pinned_entries_stay_within_the_bounds() {
    let model: Arc<str> = "m".into();
    for policy in [Policy::Lru, Policy::Lfu, Policy::Arc] {
        let cache = cache(CacheSettings { policy, ..settings(4) });
        let texts: Vec<String> = (0..40).map(|number| number.to_string()).collect();
        cache.insert(&key("0", &model), vector(2));
        for text in ["0", "1", "2"] {
            cache.pin(&key(text, &model), vector(1));
        }
        for text in &texts[3..] {
            cache.insert(&key(text, &model), vector(1));
            assert_eq!(cache.statistics().entries, 4.min(text.parse::<usize>().unwrap() + 1));
        }
        assert_eq!(cache.statistics().pinned, 3);
        // Stored again, it stays pinned.
        cache.insert(&key("1", &model), vector(3));
        for text in &texts[..3] {
            assert!(cache.get(&key(text, &model)).is_some(), "{text}");
        }
        assert!(cache.get(&key("39", &model)).is_some() && cache.get(&key("38", &model)).is_none());
        // The last place may be pinned too; then nothing else is stored.
        cache.pin(&key("39", &model), vector(1));
        cache.insert(&key("40", &model), vector(1));
        cache.pin(&key("41", &model), vector(1));
        let CacheStatistics { entries, pinned, counts: CacheCounts { rejections, .. }, .. } =
            cache.statistics();
        assert_eq!((entries, pinned, rejections), (4, 4, 2));
        cache.clear();
        assert_eq!((cache.statistics().entries, cache.statistics().pinned), (0, 0));
    }
    let clock = Clock::manual();
    let aged = CacheSettings { time_to_live: Some(Duration::from_secs(5)), ..settings(4) };
    let cache = EmbeddingCache::new(aged, clock.clone());
    cache.pin(&key("0", &model), vector(1));
    clock.advance(Duration::from_secs(6));
    assert_eq!(cache.purge_expired(), 1);
    assert_eq!((cache.statistics().pinned, cache.statistics().bytes), (0, 0));
}

#[test]
fn a_model_that_is_gone_releases_its_pins() {
    let (gone, stays): (Arc<str>, Arc<str>) = ("gone".into(), "stays".into());
    for policy in [Policy::Lru, Policy::Lfu, Policy::Arc] {
        let cache = cache(CacheSettings { policy, ..settings(3) });
        cache.pin(&key("0", &gone), vector(1));
        cache.pin(&key("1", &gone), vector(1));
        cache.pin(&key("0", &stays), vector(1));
        cache.insert(&key("1", &stays), vector(1));
        assert!(cache.get(&key("1", &stays)).is_none(), "the cache is full of pins");
        cache.release(&gone);
        assert_eq!((cache.statistics().entries, cache.statistics().pinned), (1, 1));
        cache.insert(&key("1", &stays), vector(1));
        cache.insert(&key("2", &stays), vector(1));
        assert!(["0", "1", "2"].iter().all(|text| cache.get(&key(text, &stays)).is_some()));
        assert!(cache.get(&key("0", &gone)).is_none());
        cache.clear();
        assert_eq!(cache.statistics().bytes, 0);
    }
}

#[test]
fn every_field_of_the_key_counts() {
    let cache = cache(settings(100));
    let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
    let base = key("text", &a);
    let others = [
        KeyRef { content: Content::Text("texts"), ..base },
        KeyRef { prompt: "query: ", ..base },
        KeyRef { model: &b, ..base },
        KeyRef { dimensions: Some(4), ..base },
        KeyRef { dimensions: Some(5), ..base },
        KeyRef { normalized: false, ..base },
        KeyRef { kind: OutputKind::Sparse, ..base },
        KeyRef { content: Content::Pair("te", "xt"), ..base },
        KeyRef { content: Content::Pair("tex", "t"), ..base },
        KeyRef { content: Content::Tokens(&[1, 2]), ..base },
        KeyRef { content: Content::Tokens(&[1, 2, 3]), ..base },
        // The same characters, cut differently.
        KeyRef { content: Content::Text("xt"), prompt: "te", ..base },
        KeyRef { content: Content::Text("t"), prompt: "tex", ..base },
    ];
    cache.insert(&base, vector(1));
    for other in &others {
        assert_eq!(cache.get(other), None, "{other:?}");
    }
    for (index, other) in others.iter().enumerate() {
        cache.insert(other, vector(index + 2));
    }
    assert_eq!(cache.get(&base), Some(vector(1)));
    for (index, other) in others.iter().enumerate() {
        assert_eq!(cache.get(other), Some(vector(index + 2)));
    }
    // An equal identity is the same model, wherever its text is stored.
    let again: Arc<str> = "a".into();
    assert_eq!(cache.get(&KeyRef { model: &again, ..base }), Some(vector(1)));
}

/// Hashes only sort keys: two keys of one hash are still two.
#[test]
fn equal_hashes_are_not_equal_keys() {
    let model = "m".into();
    let of = |text| HashedKey { key: key(text, &model), hash: 7 };
    for policy in [Policy::Lru, Policy::Lfu, Policy::Arc] {
        let mut store = CacheState::new(policy).store;
        for (text, length) in [("a", 1), ("b", 2)] {
            let entry = CacheEntry { item: vector(length), bytes: 1, expires: None, uses: 1 };
            store.expect(&of(text), 4);
            store.insert(Key::copy(&of(text)).unwrap(), entry);
        }
        assert_eq!(store.get(&of("a")).map(|entry| entry.item.clone()), Some(vector(1)));
        assert_eq!(store.get(&of("b")).map(|entry| entry.item.clone()), Some(vector(2)));
        assert!(store.get(&of("c")).is_none());
        assert!(store.get(&HashedKey { hash: 8, ..of("a") }).is_none());
    }
}

#[test]
fn a_hit_shares_the_result_and_what_is_parked() {
    let cache = cache(settings(1));
    let model = "m".into();
    let stored = vector(3);
    cache.insert(&key("x", &model), stored.clone());
    let hit = cache.get(&key("x", &model)).unwrap();
    let (Item::Dense(stored), Item::Dense(found)) = (stored.item(), hit.item()) else { panic!() };
    assert!(Arc::ptr_eq(stored, found));
    assert!(hit.parked().set(Box::new("a view")).is_ok());
    let again = cache.get(&key("x", &model)).unwrap();
    assert_eq!(again.parked().get().and_then(|view| view.downcast_ref()), Some(&"a view"));
}

#[test]
fn views_drop_outside_the_lock() {
    struct Meddler(Arc<EmbeddingCache>, Arc<AtomicUsize>);
    impl Drop for Meddler {
        fn drop(&mut self) {
            let _ = self.0.statistics();
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }
    let clock = Clock::manual();
    for policy in [Policy::Lru, Policy::Lfu, Policy::Arc] {
        let limits = CacheSettings { time_to_live: Some(Duration::from_secs(1)), policy, ..settings(1) };
        let cache = Arc::new(EmbeddingCache::new(limits, clock.clone()));
        let (model, drops) = ("m".into(), Arc::new(AtomicUsize::new(0)));
        let park = |text| {
            let vector = vector(1);
            let parked = vector.parked().set(Box::new(Meddler(Arc::clone(&cache), Arc::clone(&drops))));
            assert!(parked.is_ok());
            cache.insert(&key(text, &model), vector);
        };
        park("evicted");
        park("replaced");
        park("replaced");
        cache.clear();
        park("expired on sight");
        clock.advance(Duration::from_secs(1));
        assert_eq!(cache.get(&key("expired on sight", &model)), None);
        park("purged");
        clock.advance(Duration::from_secs(1));
        assert_eq!(cache.purge_expired(), 1);
        park("cleared");
        cache.clear();
        assert_eq!(drops.load(Ordering::SeqCst), 6);
    }
}

#[test]
fn off_stores_nothing_and_counts_misses() {
    let cache = cache(settings(0));
    let model = "m".into();
    cache.insert(&key("x", &model), vector(1));
    assert_eq!(cache.get(&key("x", &model)), None);
    let counts = CacheCounts { misses: 1, ..CacheCounts::default() };
    assert_eq!(cache.statistics(), CacheStatistics { counts, totals: counts, ..CacheStatistics::default() });
}

#[test]
fn clear_resets_contents_and_counts_but_not_totals() {
    let cache = cache(CacheSettings { max_bytes: Some(1 << 20), ..settings(2) });
    let model = "m".into();
    for text in ["a", "b", "c"] {
        cache.insert(&key(text, &model), vector(1));
        let _ = cache.get(&key(text, &model));
    }
    let totals = CacheCounts { hits: 3, insertions: 3, evictions: 1, ..CacheCounts::default() };
    let empty = CacheStatistics { max_entries: 2, max_bytes: Some(1 << 20), ..CacheStatistics::default() };
    assert_eq!(cache.statistics().counts, totals);
    for _ in 0..2 {
        cache.clear();
        assert_eq!(cache.statistics(), CacheStatistics { totals, ..empty });
    }
    assert_eq!(cache.get(&key("c", &model)), None);
    let (counts, totals) =
        (CacheCounts { misses: 1, ..CacheCounts::default() }, CacheCounts { misses: 1, ..totals });
    assert_eq!(cache.statistics(), CacheStatistics { counts, totals, ..empty });
}

#[test]
fn bytes_count_key_vector_and_overhead() {
    let model = "m".into();
    let one = (5 + 7 + 4 * 100 + ENTRY_OVERHEAD) as u64;
    let long = KeyRef { prompt: "prompt:", ..key("texts", &model) };
    let cache = cache(CacheSettings { max_bytes: Some(one), ..settings(10) });
    cache.insert(&long, vector(100));
    assert_eq!(cache.statistics().bytes, one);
    // One more value does not fit, and the vector that it was to replace is gone.
    cache.insert(&long, vector(101));
    let now = cache.statistics();
    let counts = CacheCounts { rejections: 1, insertions: 1, ..CacheCounts::default() };
    assert_eq!((now.counts, now.entries, now.bytes), (counts, 0, 0));
}

#[test]
fn policies_parse() {
    assert_eq!(Policy::parse("cache_policy", " LRU "), Ok(Policy::Lru));
    assert_eq!(Policy::parse("cache_policy", "lfu"), Ok(Policy::Lfu));
    assert_eq!(Policy::parse("cache_policy", "Arc"), Ok(Policy::Arc));
    let error = Policy::parse("cache_policy", "fifo").unwrap_err();
    assert_eq!(error.to_string(), "cache_policy=fifo: expected \"lru\", \"lfu\" or \"arc\"");
}

/// Racing threads: every answer is the asked key's own vector, both bounds always hold, and the counts add up.
#[test]
fn is_right_under_threads() {
    const THREADS: usize = 8;
    const ROUNDS: usize = if cfg!(miri) { 20 } else { 2000 };
    for policy in [Policy::Lru, Policy::Lfu, Policy::Arc] {
        let bytes = 20 * (ENTRY_OVERHEAD as u64 + 200);
        let cache = cache(CacheSettings { max_bytes: Some(bytes), policy, ..settings(16) });
        let model: Arc<str> = "m".into();
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (cache, model) = (&cache, &model);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let number = (thread * 31 + round * 17) % 40;
                        let text = number.to_string();
                        match cache.get(&key(&text, model)) {
                            Some(vector) => assert_eq!(vector.item().bytes(), 4 * (number + 1)),
                            None => cache.insert(&key(&text, model), vector(number + 1)),
                        }
                        let now = cache.statistics();
                        assert!(now.entries <= 16 && now.bytes <= bytes);
                    }
                });
            }
        });
        let end = cache.statistics();
        assert_eq!(end.counts.hits + end.counts.misses, (THREADS * ROUNDS) as u64);
        assert_eq!(end.counts.insertions, end.counts.misses);
        assert!(end.entries <= 16);
        cache.clear();
        assert_eq!((cache.statistics().entries, cache.statistics().bytes), (0, 0));
    }
}

/// What can be done to a cache.
#[derive(Debug, Clone)]
enum Step {
    Get(u8),
    Insert(u8, usize),
    Advance(u64),
    Purge,
    Clear,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..12_u8).prop_map(Step::Get),
        8 => (0..12_u8, 0..40_usize).prop_map(|(key, dimensions)| Step::Insert(key, dimensions)),
        2 => (0..4_u64).prop_map(Step::Advance),
        1 => Just(Step::Purge),
        1 => Just(Step::Clear),
    ];
    prop::collection::vec(step, 0..if cfg!(miri) { 40 } else { 120 })
}

struct NaiveEntry {
    key: u8,
    vector: CachedItem,
    bytes: u64,
    born: Instant,
    uses: u64,
    last_use: u64,
}

/// Entries in no order; every question looks at all of them.
struct Naive {
    limits: CacheSettings,
    entries: Vec<NaiveEntry>,
    uses: u64,
    counts: CacheCounts,
}

impl Naive {
    fn new(limits: CacheSettings) -> Self {
        Self { limits, entries: Vec::new(), uses: 0, counts: CacheCounts::default() }
    }

    fn rank(&self, entry: &NaiveEntry) -> (u64, u64) {
        (if self.limits.policy == Policy::Lfu { entry.uses } else { 0 }, entry.last_use)
    }

    fn order(&self) -> Vec<u8> {
        let mut all: Vec<_> = self.entries.iter().map(|entry| (self.rank(entry), entry.key)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, key)| key).collect()
    }

    fn remove(&mut self, key: u8) -> Option<NaiveEntry> {
        let index = self.entries.iter().position(|entry| entry.key == key)?;
        Some(self.entries.remove(index))
    }

    fn expired(&self, entry: &NaiveEntry, now: Instant) -> bool {
        self.limits.time_to_live.is_some_and(|age| now - entry.born >= age)
    }

    fn get(&mut self, key: u8, now: Instant) -> Option<CachedItem> {
        self.uses += 1;
        let Some(mut entry) = self.remove(key) else {
            self.counts.misses += 1;
            return None;
        };
        if self.expired(&entry, now) {
            self.counts.expirations += 1;
            self.counts.misses += 1;
            return None;
        }
        self.counts.hits += 1;
        (entry.uses, entry.last_use) = (entry.uses + 1, self.uses);
        let vector = entry.vector.clone();
        self.entries.push(entry);
        Some(vector)
    }

    fn insert(&mut self, key: u8, vector: CachedItem, bytes: u64, now: Instant) {
        if self.limits.max_entries == 0 {
            return;
        }
        self.uses += 1;
        let uses = self.remove(key).map_or(0, |entry| entry.uses) + 1;
        if self.limits.max_bytes.is_some_and(|max| bytes > max) {
            self.counts.rejections += 1;
            return;
        }
        self.counts.insertions += 1;
        while self.entries.len() + 1 > self.limits.max_entries
            || self.limits.max_bytes.is_some_and(|max| self.bytes() + bytes > max)
        {
            let first = self.order()[0];
            self.remove(first);
            self.counts.evictions += 1;
        }
        self.entries.push(NaiveEntry { key, vector, bytes, born: now, uses, last_use: self.uses });
    }

    fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// Without the totals, which outlive a clearing.
    fn statistics(&self) -> CacheStatistics {
        CacheStatistics {
            counts: self.counts,
            totals: CacheCounts::default(),
            entries: self.entries.len(),
            pinned: 0,
            bytes: self.bytes(),
            max_entries: self.limits.max_entries,
            max_bytes: self.limits.max_bytes,
        }
    }
}

fn same(limits: CacheSettings, steps: Vec<Step>) -> std::result::Result<(), TestCaseError> {
    let clock = Clock::manual();
    let cache = EmbeddingCache::new(limits, clock.clone());
    let mut naive = Naive::new(limits);
    let models: [Arc<str>; 2] = ["even".into(), "odd".into()];
    let texts: Vec<String> = (0..12).map(|number| "t".repeat(number)).collect();
    let key_of = |number: u8| key(&texts[usize::from(number)], &models[usize::from(number % 2)]);
    for step in steps {
        let now = clock.now();
        match step {
            Step::Get(number) => prop_assert_eq!(cache.get(&key_of(number)), naive.get(number, now)),
            Step::Insert(number, dimensions) => {
                let bytes = (usize::from(number) + 4 * dimensions + ENTRY_OVERHEAD) as u64;
                cache.insert(&key_of(number), vector(dimensions));
                naive.insert(number, vector(dimensions), bytes, now);
            }
            Step::Advance(seconds) => clock.advance(Duration::from_secs(seconds)),
            Step::Purge => {
                let expired: Vec<u8> = naive
                    .entries
                    .iter()
                    .filter(|entry| naive.expired(entry, now))
                    .map(|entry| entry.key)
                    .collect();
                for &number in &expired {
                    naive.remove(number);
                }
                naive.counts.expirations += expired.len() as u64;
                prop_assert_eq!(cache.purge_expired(), expired.len());
            }
            Step::Clear => {
                cache.clear();
                naive = Naive::new(limits);
            }
        }
        let found = CacheStatistics { totals: CacheCounts::default(), ..cache.statistics() };
        prop_assert_eq!(found, naive.statistics());
        let order: Vec<Key> = naive
            .order()
            .into_iter()
            .map(|number| Key::copy(&cache.hashed(&key_of(number))).unwrap())
            .collect();
        prop_assert_eq!(cache.state.lock().store.keys(), order);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 5 } else { 500 }))]

    /// Same answers, same contents, same order of leaving, same counts, after every step.
    #[test]
    fn does_what_the_naive_model_does(
        max_entries in 0..8_usize,
        spare_bytes in prop::option::of(0..600_u64),
        lfu in any::<bool>(),
        seconds in prop::option::of(1..8_u64),
        steps in steps(),
    ) {
        let limits = CacheSettings {
            max_entries,
            // From less than one entry to a few.
            max_bytes: spare_bytes.map(|spare| spare + ENTRY_OVERHEAD as u64 * (1 + spare % 4)),
            policy: if lfu { Policy::Lfu } else { Policy::Lru },
            time_to_live: seconds.map(Duration::from_secs),
        };
        same(limits, steps)?;
    }
}
