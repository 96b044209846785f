//! The operations of `compute` on one thread, in operations per second. `peak` is the throughput of the CPU's multipliers
//! alone. To run one group: `cargo bench --bench kernels -- gemm`.
#![allow(missing_docs, unsafe_code, clippy::unwrap_used)]

use std::sync::Mutex;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use model_manager::compute::backend::cpu::{CpuPass, States};
use model_manager::compute::linear::WeightFormat;
use model_manager::compute::{
    Activation, Backend, Cpu, DType, Heads, Isa, LayerAttention, Mask, PackedBatch, Pass, Positions, Threads,
    Weight,
};

const TOKENS: usize = 256;

/// The cases of this machine: each instruction set in f32, and in bf16 if that is native.
fn cases() -> impl Iterator<Item = (String, Isa, DType)> {
    let formats =
        |isa: Isa| [Some(DType::F32), isa.native_bf16().then_some(DType::Bf16)].into_iter().flatten();
    let name = |isa: Isa, dtype: DType| format!("{isa}-{}", dtype.name());
    Isa::available().flat_map(move |isa| formats(isa).map(move |dtype| (name(isa, dtype), isa, dtype)))
}

/// The cases of linear layers, which have quantized weights as well.
fn weight_formats() -> impl Iterator<Item = (String, Isa, WeightFormat)> {
    let quantized = Isa::available().map(|isa| (format!("{isa}-int8"), isa, WeightFormat::Int8));
    cases().map(|(name, isa, dtype)| (name, isa, dtype.into())).chain(quantized)
}

fn filled(rows: usize, columns: usize) -> Weight {
    let values: Vec<f32> = (0..rows * columns).map(|i| (i * 7919 % 1000) as f32 / 1000.0 - 0.5).collect();
    Weight::from_f32(&values, &[rows, columns]).unwrap()
}

fn vector(value: f32, n: usize) -> Weight {
    Weight::from_f32(&vec![value; n], &[n]).unwrap()
}

/// Runs `operation` on states of `width` columns, for sequences of `length` tokens, and returns the sum of its times.
fn time(
    cpu: &Cpu,
    width: usize,
    length: usize,
    runs: u64,
    operation: impl Fn(&mut CpuPass<'_>, States) -> (States, Duration) + Sync,
) -> Duration {
    Threads::set_count(1).unwrap();
    let tokens = TOKENS.max(length);
    let (words, positions) =
        (cpu.table(filled(2, width).into()).unwrap(), cpu.table(filled(tokens, width).into()).unwrap());
    let norm = cpu.norm(&vector(1.0, width), Some(&vector(0.0, width)), 1e-12).unwrap();
    let ids = vec![1; tokens - tokens % length];
    let offsets: Vec<u32> = (0..=ids.len()).step_by(length).map(|offset| offset as u32).collect();
    let batch = PackedBatch::new(&ids, &offsets).unwrap();
    let mut out = vec![0.0; batch.sequences()];
    let taken = Mutex::new(Duration::ZERO);
    cpu.run(&batch, 1, &mut out, &|pass, _| {
        let x = pass.embed(&words, Some((&positions, Positions::FromZero)), None)?;
        let mut x = pass.norm(x, &norm)?;
        let mut total = Duration::ZERO;
        for run in 0..=runs {
            let (next, taken) = operation(pass, x);
            x = next;
            total += if run == 0 { Duration::ZERO } else { taken };
        }
        *taken.lock().unwrap() = total;
        pass.for_each_sequence(x, None, &mut |_, _| ())
    })
    .unwrap();
    taken.into_inner().unwrap()
}

/// Linear layers of MiniLM, BERT-base and Qwen3, with and without GELU.
fn gemm(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    for (inputs, outputs) in
        [(384, 1152), (384, 1536), (1536, 384), (768, 3072), (3072, 768), (1024, 4096), (3072, 1024)]
    {
        group.throughput(Throughput::Elements((2 * TOKENS * inputs * outputs) as u64));
        for (name, isa, format) in weight_formats() {
            let cpu = Cpu::new(isa, format);
            let linear = cpu.linear(&[(filled(outputs, inputs).into(), Some(vector(0.1, outputs)))]).unwrap();
            for activation in [Activation::Identity, Activation::Gelu] {
                let id = BenchmarkId::new(format!("{name}-{activation:?}"), format!("{inputs}x{outputs}"));
                let run = |pass: &mut CpuPass<'_>, x: States| {
                    let start = Instant::now();
                    let y = pass.linear(&x, &linear, activation).unwrap();
                    let taken = start.elapsed();
                    pass.discard(y);
                    (x, taken)
                };
                group.bench_function(id, |b| b.iter_custom(|runs| time(&cpu, inputs, TOKENS, runs, run)));
            }
        }
    }
    group.finish();
}

/// Attention with MiniLM's heads, at the lengths of short texts, passages and long texts, and with Qwen3's heads, at the
/// length of a document. Causal attention counts half of the operations.
fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    let minilm = (Heads { heads: 12, kv_heads: 12, width: 32 }, LayerAttention::new(Mask::FULL));
    let qwen3 = (Heads { heads: 16, kv_heads: 8, width: 128 }, LayerAttention::new(Mask::CAUSAL));
    for (length, (heads, layer)) in
        [(16, &minilm), (77, &minilm), (256, &minilm), (256, &qwen3), (2048, &qwen3)]
    {
        let pairs = TOKENS.max(length) / length * length * length / (1 + usize::from(layer.mask.is_causal()));
        group.throughput(Throughput::Elements((4 * pairs * heads.heads * heads.width) as u64));
        for (name, isa, dtype) in cases() {
            let cpu = Cpu::new(isa, dtype);
            let columns = (heads.heads + 2 * heads.kv_heads) * heads.width;
            let qkv = cpu.linear(&[(filled(columns, 384).into(), None)]).unwrap();
            let run = |pass: &mut CpuPass<'_>, x: States| {
                let y = pass.linear(&x, &qkv, Activation::Identity).unwrap();
                let start = Instant::now();
                let y = pass.attention(0, y, *heads, layer, None).unwrap();
                let taken = start.elapsed();
                pass.discard(y);
                (x, taken)
            };
            let id = BenchmarkId::new(name, format!("{length}x{}", heads.width));
            group.bench_function(id, |b| b.iter_custom(|runs| time(&cpu, 384, length, runs, run)));
        }
    }
    group.finish();
}

/// Layer normalization, in values per second.
fn norm(c: &mut Criterion) {
    let mut group = c.benchmark_group("norm");
    group.throughput(Throughput::Elements((TOKENS * 384) as u64));
    for (name, isa, dtype) in cases() {
        let cpu = Cpu::new(isa, dtype);
        let norm = cpu.norm(&vector(1.0, 384), Some(&vector(0.0, 384)), 1e-12).unwrap();
        let run = |pass: &mut CpuPass<'_>, x: States| {
            let start = Instant::now();
            let x = pass.norm(x, &norm).unwrap();
            (x, start.elapsed())
        };
        group.bench_function(name, |b| b.iter_custom(|runs| time(&cpu, 384, TOKENS, runs, run)));
    }
    group.finish();
}

/// The multipliers alone: sums in registers, without memory accesses.
fn peak(c: &mut Criterion) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        const STEPS: usize = 100_000;
        /// Independent sums, enough to fill the pipelines.
        const SUMS: usize = 12;

        #[target_feature(enable = "avx2,fma")]
        fn avx2(x: f32) -> f32 {
            let (a, mut sums) = (_mm256_set1_ps(x), [_mm256_setzero_ps(); SUMS]);
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = _mm256_fmadd_ps(a, a, *sum);
                }
            }
            _mm256_cvtss_f32(sums.into_iter().reduce(|x, y| _mm256_add_ps(x, y)).unwrap())
        }
        #[target_feature(enable = "avx512f")]
        fn avx512(x: f32) -> f32 {
            let (a, mut sums) = (_mm512_set1_ps(x), [_mm512_setzero_ps(); SUMS]);
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(a, a, *sum);
                }
            }
            _mm512_cvtss_f32(sums.into_iter().reduce(|x, y| _mm512_add_ps(x, y)).unwrap())
        }
        #[target_feature(enable = "avx512f,avx512bf16")]
        fn bf16(x: f32) -> f32 {
            let (a, mut sums) = (_mm512_set1_ps(x), [_mm512_setzero_ps(); SUMS]);
            for _ in 0..STEPS {
                for sum in &mut sums {
                    // SAFETY: both types have 64 bytes, and every bit pattern is valid.
                    let a = unsafe { std::mem::transmute::<__m512, __m512bh>(a) };
                    *sum = _mm512_dpbf16_ps(*sum, a, a);
                }
            }
            _mm512_cvtss_f32(sums.into_iter().reduce(|x, y| _mm512_add_ps(x, y)).unwrap())
        }
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn int8(x: f32) -> f32 {
            let (a, mut sums) = (_mm512_set1_epi32(x.to_bits() as i32), [_mm512_setzero_si512(); SUMS]);
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = _mm512_dpbusd_epi32(*sum, a, a);
                }
            }
            let sum = sums.into_iter().reduce(|x, y| _mm512_add_epi32(x, y)).unwrap();
            _mm512_cvtss_f32(_mm512_cvtepi32_ps(sum))
        }
        #[target_feature(enable = "avx2,avxvnni")]
        fn avx_vnni(x: f32) -> f32 {
            let (a, mut sums) = (_mm256_set1_epi32(x.to_bits() as i32), [_mm256_setzero_si256(); SUMS]);
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = _mm256_dpbusd_avx_epi32(*sum, a, a);
                }
            }
            let sum = sums.into_iter().reduce(|x, y| _mm256_add_epi32(x, y)).unwrap();
            _mm256_cvtss_f32(_mm256_cvtepi32_ps(sum))
        }
        let mut group = c.benchmark_group("peak");
        let mut one = |name: &str, available: bool, multiplied: usize, run: unsafe fn(f32) -> f32| {
            if available {
                group.throughput(Throughput::Elements((2 * multiplied * SUMS * STEPS) as u64));
                let run = || {
                    // SAFETY: `available` says that the CPU has the instructions.
                    unsafe { run(std::hint::black_box(0.1)) }
                };
                group.bench_function(name, |b| b.iter(run));
            }
        };
        one("avx2-float32", Isa::Avx2.is_available(), 8, avx2);
        one("avxvnni-int8", Isa::AvxVnni.is_available(), 32, avx_vnni);
        one("avx512-float32", Isa::Avx512.is_available(), 16, avx512);
        one("avx512bf16-bfloat16", Isa::Avx512Bf16.is_available(), 32, bf16);
        one("avx512vnni-int8", is_x86_feature_detected!("avx512vnni"), 64, int8);
        group.finish();
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = c;
}

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .sample_size(10)
        .measurement_time(Duration::from_millis(500))
        .warm_up_time(Duration::from_millis(100));
    targets = peak, gemm, attention, norm
}
criterion_main!(kernels);
