//! The embedding cache: what a hit costs, by policy and by number of threads.
//!
//! `cargo bench --no-default-features --bench cache`

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use model_manager::cache::{CacheSettings, CachedItem, Content, EmbeddingCache, KeyRef, Policy};
use model_manager::clock::Clock;
use model_manager::output::{Item, OutputKind};

const ENTRIES: usize = 64;

fn cache(policy: Policy, time_to_live: Option<Duration>) -> EmbeddingCache {
    let settings = CacheSettings { max_entries: ENTRIES, max_bytes: None, policy, time_to_live };
    EmbeddingCache::new(settings, Clock::System)
}

fn key<'a>(model: &'a Arc<str>, text: &'a str) -> KeyRef<'a> {
    KeyRef {
        content: Content::Text(text),
        prompt: "",
        model,
        dimensions: None,
        normalized: true,
        kind: OutputKind::Dense,
    }
}

fn filled(
    policy: Policy,
    time_to_live: Option<Duration>,
    model: &Arc<str>,
    texts: &[String],
) -> EmbeddingCache {
    let cache = cache(policy, time_to_live);
    for text in texts {
        cache.insert(&key(model, text), CachedItem::new(Item::Dense(vec![0.5; 384].into()), 9));
    }
    cache
}

fn hits(criterion: &mut Criterion) {
    let model: Arc<str> = "all-MiniLM-L6-v2 F32".into();
    let texts: Vec<String> =
        (0..ENTRIES).map(|n| format!("a sentence of usual length, number {n}")).collect();
    let hour = Some(Duration::from_secs(3600));
    let mut group = criterion.benchmark_group("cache");
    for (name, policy, time_to_live) in
        [("hit, lru", Policy::Lru, None), ("hit, lfu", Policy::Lfu, None), ("hit, ttl", Policy::Lru, hour)]
    {
        let cache = filled(policy, time_to_live, &model, &texts);
        let mut next = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                next = (next + 1) % ENTRIES;
                black_box(cache.get(&key(&model, &texts[next])))
            });
        });
    }
    let cache = filled(Policy::Lru, None, &model, &texts);
    group.bench_function("hit, lru, two threads", |bencher| {
        bencher.iter_custom(|rounds| {
            let started = Instant::now();
            std::thread::scope(|scope| {
                for thread in 0..2 {
                    let (cache, model, texts) = (&cache, &model, &texts);
                    scope.spawn(move || {
                        for round in 0..rounds as usize {
                            black_box(cache.get(&key(model, &texts[(round + thread) % ENTRIES])));
                        }
                    });
                }
            });
            started.elapsed()
        });
    });
    group.finish();
}

criterion_group!(benches, hits);
criterion_main!(benches);
