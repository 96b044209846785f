use super::*;
use crate::compute::Isa;

const SHORT_CONVOLUTIONS: ShortConvolutionShape = ShortConvolutionShape { layers: 0, before: 0, columns: 0 };
const OTHERS: LayerShapes = LayerShapes { layers: 0, kv_heads: 0, width: 0 };
const SHAPE: CacheShape = CacheShape {
    layers: 2,
    kv_heads: 3,
    width: 40,
    others: OTHERS,
    short_convolutions: SHORT_CONVOLUTIONS,
    delta_rules: DeltaRuleShape::NONE,
};
const ROW: usize = 3 * 40;

fn kernels() -> impl Iterator<Item = (&'static Kernels, DType)> {
    Isa::available().flat_map(|isa| [DType::F32, DType::Bf16].map(|format| (Kernels::of(isa), format)))
}

/// The number at a position: a small integer, which bf16 represents exactly.
fn number(layer: usize, position: usize, column: usize) -> f32 {
    (layer * 60 + position * 7 % 32 + column) as f32
}

/// Appends positions up to `len`, `step` at a time.
fn fill(cache: &mut PagedKvCache, kernels: &Kernels, len: usize, step: usize) {
    let format = cache.layout.format;
    while cache.len() < len {
        let positions = cache.len()..len.min(cache.len() + step);
        cache.reserve(positions.end).unwrap();
        for layer in 0..SHAPE.layers {
            let mut rows = Vec::new();
            for position in positions.clone() {
                for sign in [1.0, -1.0] {
                    for column in 0..ROW {
                        let x = number(layer, position, column) * sign;
                        match format {
                            DType::F32 => rows.extend(x.to_ne_bytes()),
                            DType::Bf16 => rows.extend(half::bf16::from_f32(x).to_ne_bytes()),
                        }
                    }
                }
            }
            let stride = 2 * ROW * format.bytes();
            for mut head in cache.heads_mut(layer, positions.clone()).unwrap() {
                let start = head.offset * stride + head.kv_head * SHAPE.width * format.bytes();
                let (keys, values) = (&rows[start..], &rows[start + ROW * format.bytes()..]);
                // SAFETY: `rows` has a row of `ROW` keys and `ROW` values for each position, and `offset + len` is at most
                // their number. `SHAPE.width` is even.
                unsafe { head.write(kernels, keys.as_ptr(), values.as_ptr(), stride) };
            }
        }
        cache.extend_to(positions.end);
    }
}

fn at(format: DType, units: &[f32], unit: usize, half: usize) -> f32 {
    match format {
        DType::F32 => units[unit],
        DType::Bf16 => f32::from_bits((units[unit].to_bits() >> (16 * half)) << 16),
    }
}

fn check(cache: &PagedKvCache) {
    let (format, panel) = (cache.layout.format, cache.layout.panel);
    let pair = 4 / format.bytes();
    for position in 0..cache.len() {
        for (layer, head, i) in [(0, 0, 0), (1, 2, 39), (0, 1, 33), (1, 1, 16)] {
            let expected = number(layer, position, head * SHAPE.width + i);
            let panels = cache.panels(layer, head, position / BLOCK);
            let inside = position % BLOCK;
            let key = inside / panel * panel * cache.layout.of_layer(layer).key_units()
                + i / pair * panel
                + inside % panel;
            assert_eq!(at(format, panels.keys, key, i % pair), expected, "{format:?} {position}");
            let value = i / panel * panel * panels.value_units + inside / pair * panel + i % panel;
            assert_eq!(at(format, panels.values, value, inside % pair), -expected, "{format:?} {position}");
        }
    }
    // A sum over positions includes all positions of its last step.
    let last = cache.len() % BLOCK;
    if last > 0 {
        let panels = cache.panels(0, 0, cache.len() / BLOCK);
        for position in last..last.next_multiple_of(pair * cache.layout.depth) {
            assert_eq!(at(format, panels.values, position / pair * panel, position % pair), 0.0);
        }
    }
}

#[test]
fn positions_survive_growth_forks_and_truncation() {
    for (kernels, format) in kernels() {
        for step in [1, 3, 40, 700] {
            let mut cache = PagedKvCache::new(kernels, SHAPE, format);
            fill(&mut cache, kernels, 571, step);
            check(&cache);
            let mut fork = cache.fork(301, 310).unwrap();
            assert_eq!(fork.len(), 301);
            assert!(
                Arc::ptr_eq(&fork.pages[0], &cache.pages[0]) && !Arc::ptr_eq(&fork.pages[1], &cache.pages[1])
            );
            check(&fork);
            fill(&mut fork, kernels, 590, step);
            check(&fork);
            // In the middle of a page that both caches have.
            cache.truncate(133);
            check(&cache.fork(133, 133).unwrap());
            fill(&mut cache, kernels, 300, step);
            check(&cache);
            check(&fork);
        }
    }
}

#[test]
fn its_size_is_predictable_and_grows_with_its_positions() {
    for (kernels, format) in kernels() {
        let mut before = 0;
        for capacity in [0, 1, 32, 33, 75, 96, 256, 257, 500, 1000] {
            let mut cache = PagedKvCache::new(kernels, SHAPE, format);
            cache.reserve(capacity).unwrap();
            let bytes = PagedKvCache::bytes_for(kernels, SHAPE, format, capacity);
            assert_eq!(cache.bytes(), bytes, "{capacity}");
            assert!(bytes >= before && bytes >= (capacity * 2 * 3 * 80 * format.bytes()) as u64);
            before = bytes;
        }
    }
    let (kernels, format) = kernels().last().unwrap();
    let mut cache = PagedKvCache::new(kernels, SHAPE, format);
    fill(&mut cache, kernels, 40, 40);
    cache.reserve(900).unwrap();
    cache.shrink().unwrap();
    assert_eq!(cache.bytes(), PagedKvCache::bytes_for(kernels, SHAPE, format, 40));
    check(&cache);
}

#[test]
fn positions_of_a_failed_pass_are_cleared() {
    for (kernels, format) in kernels() {
        let mut cache = PagedKvCache::new(kernels, SHAPE, format);
        fill(&mut cache, kernels, 33, 33);
        // Written, but the cache was not extended to them.
        cache.reserve(300).unwrap();
        for mut head in cache.heads_mut(0, 33..300).unwrap() {
            let rows = vec![0xff_u8; 267 * SHAPE.width * 4];
            // SAFETY: with a stride of 0, each row is the first one, which has more than `SHAPE.width` elements.
            unsafe { head.write(kernels, rows.as_ptr(), rows.as_ptr(), 0) };
        }
        cache.truncate(33);
        cache.reserve(34).unwrap();
        check(&cache);
        fill(&mut cache, kernels, 36, 1);
        check(&cache);
    }
}

#[test]
fn memory_that_no_machine_has_is_an_error() {
    let kernels = Kernels::of(Isa::best());
    let mut cache = PagedKvCache::new(kernels, SHAPE, DType::F32);
    fill(&mut cache, kernels, 70, 70);
    for capacity in [1 << 50, usize::MAX] {
        assert!(matches!(cache.reserve(capacity), Err(Error::OutOfMemory { .. })));
        assert_eq!(PagedKvCache::bytes_for(kernels, SHAPE, DType::F32, usize::MAX), u64::MAX);
    }
    check(&cache);
}

#[test]
fn positions_that_were_not_reserved_are_an_error() {
    let mut cache = PagedKvCache::new(Kernels::of(Isa::best()), SHAPE, DType::F32);
    cache.reserve(32).unwrap();
    for positions in [0..33, 256..257] {
        assert!(matches!(cache.heads_mut(0, positions).map(|_| ()), Err(Error::Internal { .. })));
    }
}
