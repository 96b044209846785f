//! The body of an embeddings response: what a vector costs as JSON numbers and as base64, in values a second.
//!
//! `cargo bench --no-default-features --bench wire`
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use model_manager::wire::{Encoding, VectorBody};

/// Unit vectors have values of this size, no two alike.
fn values(count: usize, width: usize) -> Vec<f32> {
    let scale = 1.0 / (width as f32).sqrt();
    (0..count * width).map(|n| ((n as f32 * 0.754_877_7).fract() * 2.0 - 1.0) * scale).collect()
}

fn bodies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    for (rows, width) in [(1, 384), (1, 1024), (256, 1024)] {
        let values = values(rows, width);
        group.throughput(Throughput::Elements(values.len() as u64));
        for encoding in [Encoding::Float, Encoding::Base64] {
            let id = BenchmarkId::new(format!("{encoding:?}"), format!("{rows} x {width}"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| {
                    let mut body = VectorBody::new(encoding, rows, width).expect("memory");
                    black_box(&values).chunks_exact(width).for_each(|vector| body.push(vector));
                    body.finish("a-model", 9)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bodies);
criterion_main!(benches);
