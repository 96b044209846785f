//! Operations on whole matrices, compared with their definitions.

use super::Cpu;
use super::workspace::Workspace;
use crate::Error;
use crate::compute::attention::tiles::{Attention, KeyValues, Span};
use crate::compute::kernels::Kernels;
use crate::compute::linear::gemm::{Epilogue, GemmScratch};
use crate::compute::linear::phases::RowPhases;
use crate::compute::linear::{Packer, WeightFormat};
use crate::compute::matrix::StateMatrix;
use crate::compute::parallel::{Parallelism, Share};
use crate::compute::{
    Activation, Backend, CacheShape, Candle, DType, DeltaRuleShape, DistanceBias, Heads, Isa, LayerAttention,
    Mask, PackedBatch, Pass, Positions, Row, Step, Threads, Weight,
};

pub(super) fn random(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub(super) fn matrix(
    workspace: &mut Workspace,
    rows: usize,
    columns: usize,
    format: DType,
    values: &[f32],
) -> StateMatrix {
    let mut matrix = workspace.matrix(rows, columns, format).unwrap();
    let target = matrix.target();
    for (row, values) in values.chunks(columns.max(1)).enumerate().take(rows) {
        // SAFETY: no other thread accesses the matrix, and each row is borrowed once.
        unsafe {
            match format {
                DType::F32 => target.row_f32(row).copy_from_slice(values),
                DType::Bf16 => {
                    let narrow: Vec<u16> =
                        values.iter().map(|&x| half::bf16::from_f32(x).to_bits()).collect();
                    target.row_bf16(row).copy_from_slice(&narrow);
                }
            }
        }
    }
    matrix
}

pub(super) fn values(matrix: &mut StateMatrix) -> Vec<f32> {
    let (rows, format) = (matrix.rows(), matrix.format());
    let target = matrix.target();
    // SAFETY: no other thread accesses the matrix, and each row is borrowed once.
    let row = |row| unsafe {
        match format {
            DType::F32 => target.row_f32(row).to_vec(),
            DType::Bf16 => target.row_bf16(row).iter().map(|&x| half::bf16::from_bits(x).to_f32()).collect(),
        }
    };
    (0..rows).flat_map(row).collect()
}

#[test]
fn linear_layers_of_any_shape_multiply_alike_on_one_and_all_threads() {
    let threads = Threads::global();
    for isa in Isa::available() {
        for format in [DType::F32, DType::Bf16] {
            for (rows, inputs, outputs) in
                [(0, 3, 4), (1, 1, 1), (3, 7, 33), (15, 16, 32), (29, 40, 31), (64, 65, 100), (5, 3, 0)]
            {
                let mut workspace = Workspace::default();
                let (x, w) = (random(rows * inputs, 1), random(outputs * inputs, 2));
                let bias = random(outputs, 3);
                // Two parts, of which the first has no bias.
                let cut = outputs / 3;
                let part = |range: std::ops::Range<usize>| {
                    Weight::from_f32(&w[range.start * inputs..range.end * inputs], &[range.len(), inputs])
                        .unwrap()
                };
                let shift = Weight::from_f32(&bias[cut..], &[outputs - cut]).unwrap();
                let parts = [(part(0..cut).into(), None), (part(cut..outputs).into(), Some(shift))];
                let weight_format = if format == DType::F32 { WeightFormat::F32 } else { WeightFormat::Bf16 };
                let packer = Packer::new(isa, weight_format);
                let (kernel_set, linear) = (packer.kernel_set, packer.linear(&parts).unwrap());
                let a = matrix(&mut workspace, rows, inputs, format, &x);
                let mut run = |parallelism, epilogue: Epilogue| {
                    let ones = vec![1.0; rows * outputs];
                    let mut out = matrix(&mut workspace, rows, outputs, DType::F32, &ones);
                    let target = out.target();
                    let mut scratch = GemmScratch::default();
                    linear
                        .multiply(
                            &kernel_set,
                            parallelism,
                            &mut scratch,
                            a.plain(0..rows),
                            &RowPhases::PREFILL,
                            epilogue,
                            &target,
                            0,
                        )
                        .unwrap();
                    values(&mut out)
                };
                let relu = Epilogue::Store(Activation::Relu);
                let single = run(Parallelism::One, relu);
                assert!(single == run(Parallelism::All(&threads), relu), "{isa} {format:?}");
                let added = run(Parallelism::One, Epilogue::Add);
                for i in 0..rows * outputs {
                    let (row, column) = (i / outputs, i % outputs);
                    let product =
                        |k: usize| f64::from(x[row * inputs + k]) * f64::from(w[column * inputs + k]);
                    let sum: f64 = (0..inputs).map(product).sum();
                    let sum = sum + if column < cut { 0.0 } else { f64::from(bias[column]) };
                    let allowed =
                        if format == DType::F32 { 1e-5 } else { 5e-3 * (1.0 + inputs as f64).sqrt() };
                    assert!(
                        (f64::from(single[i]) - sum.max(0.0)).abs() < allowed
                            && (f64::from(added[i]) - sum - 1.0).abs() < allowed,
                        "{isa} {format:?} {rows}x{inputs}x{outputs} at {row},{column}"
                    );
                }
            }
        }
    }
}

/// Attention by its definition, in f64.
fn attention(qkv: &[f32], length: usize, heads: Heads, layer: &LayerAttention) -> Vec<f64> {
    attention_without(0, qkv, length, heads, layer)
}

/// The same, where no query sees the last `hidden` keys. One that sees none gets zeros.
fn attention_without(
    hidden: usize,
    qkv: &[f32],
    length: usize,
    heads: Heads,
    layer: &LayerAttention,
) -> Vec<f64> {
    let Heads { heads, kv_heads, width } = heads;
    let stride = (heads + 2 * kv_heads) * width;
    let at = |row: usize, column: usize| f64::from(qkv[row * stride + column]);
    let mut out = vec![0.0; length * heads * width];
    for (head, row) in (0..heads).flat_map(|head| (0..length).map(move |row| (head, row))) {
        let kv = head / (heads / kv_heads);
        let seen = row.saturating_sub(layer.mask.before)
            ..row.saturating_add(layer.mask.after).saturating_add(1).min(length - hidden);
        let score = |key: usize| {
            let dot: f64 =
                (0..width).map(|i| at(row, head * width + i) * at(key, (heads + kv) * width + i)).sum();
            let score = dot * layer.scale.map_or(1.0 / (width as f64).sqrt(), f64::from);
            let score = layer.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
            (score + layer.bias.as_ref().map_or(0.0, |_| bias(head, key as isize - row as isize))).exp()
        };
        let weights: Vec<f64> = seen.clone().map(score).collect();
        let total: f64 = weights.iter().sum();
        for i in 0..width {
            let value = |key: usize| at(key, (heads + kv_heads + kv) * width + i);
            let sum: f64 = seen.clone().zip(&weights).map(|(key, weight)| weight * value(key)).sum();
            out[(row * heads + head) * width + i] = if total == 0.0 { 0.0 } else { sum / total };
        }
    }
    out
}

fn bias(head: usize, distance: isize) -> f64 {
    (1 + head) as f64 * if distance < 0 { 0.01 } else { -0.02 } * distance as f64
}

/// Every kind of attention.
fn kinds(heads: usize) -> Vec<LayerAttention> {
    let bias = DistanceBias::new(heads, 601, |head, distance| bias(head, distance) as f32).unwrap();
    let biased = LayerAttention { bias: Some(bias.into()), ..LayerAttention::new(Mask::FULL) };
    let masks =
        [Mask::FULL, Mask::CAUSAL, Mask::sliding(1), Mask::sliding(40), Mask::local(64), Mask::local(300)];
    let masked = masks.map(LayerAttention::new);
    let capped = LayerAttention { soft_cap: Some(0.7), scale: Some(0.5), ..masked[1].clone() };
    let all = LayerAttention { soft_cap: Some(2.0), mask: Mask::sliding(257), ..biased.clone() };
    [&masked[..], &[biased, capped, all]].concat()
}

const SHAPES: [(usize, usize, usize, usize); 13] = [
    (1, 1, 1, 1),
    (2, 2, 2, 8),
    (17, 2, 1, 5),
    (33, 3, 3, 32),
    (31, 4, 2, 20),
    (77, 2, 2, 33),
    (256, 1, 1, 64),
    (257, 2, 1, 16),
    (301, 1, 1, 7),
    (600, 1, 1, 24),
    (19, 2, 1, 256),
    (70, 2, 1, 512),
    (261, 1, 1, 512),
];

pub(super) fn assert_close(got: &[f32], expected: &[f64], format: DType, what: &dyn std::fmt::Debug) {
    let allowed = if format == DType::F32 { 1e-5 } else { 3e-2 };
    assert_eq!(got.len(), expected.len(), "{what:?}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(error < allowed, "{format:?} {what:?} at {i}: {got} for {expected}");
    }
}

#[test]
fn attention_of_any_shape_and_kind_is_attention() {
    for (length, heads, kv_heads, width) in SHAPES {
        let heads = Heads { heads, kv_heads, width };
        let columns = (heads.heads + 2 * kv_heads) * width;
        let input: Vec<f32> = random(length * columns, 4).iter().map(|x| x * 2.0).collect();
        for layer in kinds(heads.heads) {
            let expected = attention(&input, length, heads, &layer);
            for (isa, format) in Isa::available().flat_map(|isa| [(isa, DType::F32), (isa, DType::Bf16)]) {
                let mut workspace = Workspace::default();
                let qkv = matrix(&mut workspace, length, columns, format, &input);
                let mut out = workspace.matrix(length, heads.heads * width, format).unwrap();
                let target = out.target();
                let kernels = Kernels::of(isa);
                let all = Attention::new(kernels, &qkv, KeyValues::Rows(&qkv), heads, &layer, &target);
                let span = Span { keys: 0, queries: 0, before: 0, rows: length, hidden: 0 };
                let mut scratch = Default::default();
                for kv_head in 0..kv_heads {
                    all.group(&mut scratch, span, kv_head, Share { index: 0, of: 1 }).unwrap();
                }
                let what = (isa, length, heads, &layer.mask, layer.soft_cap, layer.bias.is_some());
                assert_close(&values(&mut out), &expected, format, &what);
            }
        }
    }
}

#[test]
fn hidden_keys_are_seen_by_no_query() {
    for (length, hidden, width) in
        [(3, 1, 4), (20, 19, 8), (40, 7, 33), (300, 60, 16), (513, 257, 8), (600, 590, 4)]
    {
        let heads = Heads { heads: 2, kv_heads: 1, width };
        let mut input = random(length * 4 * width, 9);
        for layer in kinds(2) {
            let expected = attention_without(hidden, &input, length, heads, &layer);
            // What they are makes no difference, as long as it is finite.
            let mut results = Vec::new();
            for fill in [0.5, -30.0] {
                for row in input.chunks_mut(4 * width).skip(length - hidden) {
                    row[2 * width..].fill(fill);
                }
                for (isa, format) in Isa::available().flat_map(|isa| [(isa, DType::F32), (isa, DType::Bf16)])
                {
                    let mut workspace = Workspace::default();
                    let qkv = matrix(&mut workspace, length, 4 * width, format, &input);
                    let nothing = vec![f32::NAN; length * 2 * width];
                    let mut out = matrix(&mut workspace, length, 2 * width, format, &nothing);
                    let target = out.target();
                    let all =
                        Attention::new(Kernels::of(isa), &qkv, KeyValues::Rows(&qkv), heads, &layer, &target);
                    let span = Span { keys: 0, queries: 0, before: 0, rows: length, hidden };
                    all.group(&mut Default::default(), span, 0, Share { index: 0, of: 1 }).unwrap();
                    let found = values(&mut out);
                    assert_close(&found, &expected, format, &(isa, length, hidden, &layer.mask));
                    results.push((isa, format, found));
                }
            }
            let (one, other) = results.split_at(results.len() / 2);
            assert_eq!(one, other, "{length} {hidden}");
        }
    }
}

#[test]
fn an_infinity_in_one_head_does_not_reach_another() {
    for (length, width) in [(3, 1), (17, 5), (40, 33), (17, 8)] {
        let heads = Heads { heads: 2, kv_heads: 2, width };
        let columns = 6 * width;
        let finite = random(length * columns, 4);
        let mut infinite = finite.clone();
        // The first query, key and value of the second head.
        (0..3).for_each(|part| infinite[(2 * part + 1) * width] = f32::INFINITY);
        let layer = LayerAttention::new(Mask::FULL);
        for (isa, format) in Isa::available().flat_map(|isa| [(isa, DType::F32), (isa, DType::Bf16)]) {
            let [expected, got] = [&finite, &infinite].map(|input| {
                let mut workspace = Workspace::default();
                let qkv = matrix(&mut workspace, length, columns, format, input);
                let mut out = workspace.matrix(length, 2 * width, format).unwrap();
                let target = out.target();
                let rows = KeyValues::Rows(&qkv);
                let all = Attention::new(Kernels::of(isa), &qkv, rows, heads, &layer, &target);
                let span = Span { keys: 0, queries: 0, before: 0, rows: length, hidden: 0 };
                let mut scratch = Default::default();
                for kv_head in 0..2 {
                    all.group(&mut scratch, span, kv_head, Share { index: 0, of: 1 }).unwrap();
                }
                values(&mut out)
            });
            for (expected, got) in expected.chunks(2 * width).zip(got.chunks(2 * width)) {
                assert_eq!(got[..width], expected[..width], "{isa} {format:?} {length}x{width}");
            }
        }
    }
}

#[test]
fn attention_in_steps_over_caches_is_attention() {
    let heads = Heads { heads: 4, kv_heads: 2, width: 8 };
    // Token `i` has row `i` of the table. The norm before attention changes nothing.
    let mut input: Vec<f32> = random(600 * 64, 4);
    for row in input.chunks_mut(64) {
        let square: f32 = row.iter().map(|x| x * x).sum();
        row.iter_mut().for_each(|x| *x *= (64.0 / square).sqrt());
    }
    for layer in kinds(4).into_iter().filter(|layer| layer.mask.is_causal()) {
        let expected = attention(&input, 600, heads, &layer);
        for isa in Isa::available() {
            for format in [DType::F32, DType::Bf16] {
                check_steps(&Cpu::new(isa, format), &input, heads, &layer, &expected, format);
            }
        }
        let plain = Candle::new(candle_core::Device::Cpu);
        check_steps(&plain, &input, heads, &layer, &expected, DType::F32);
    }
}

/// Runs attention on a sequence with a cache, some tokens at a time, and compares the last row of each step.
fn check_steps<B: Backend>(
    backend: &B,
    input: &[f32],
    heads: Heads,
    layer: &LayerAttention,
    expected: &[f64],
    format: DType,
) {
    let table = backend.table(Weight::from_f32(input, &[input.len() / 64, 64]).unwrap().into()).unwrap();
    let norm = backend.norm(&Weight::from_f32(&[1.0; 64], &[64]).unwrap(), None, 0.0).unwrap();
    let unit = |columns: usize| {
        let values: Vec<f32> =
            (0..64 * columns).map(|i| f32::from(u8::from(i / columns == i % columns))).collect();
        backend.linear(&[(Weight::from_f32(&values, &[64, columns]).unwrap().into(), None)]).unwrap()
    };
    let (qkv, output) = (unit(64), unit(32));
    let mut cache = backend.cache(CacheShape {
        layers: 1,
        kv_heads: heads.kv_heads,
        width: heads.width,
        others: Default::default(),
        short_convolutions: Default::default(),
        delta_rules: DeltaRuleShape::NONE,
    });
    let mut first = 0;
    for count in [1, 2, 40, 1, 212, 1, 300, 43] {
        let tokens: Vec<u32> = (first..first + count).map(|token| token as u32).collect();
        first += count;
        let mut out = vec![0.0; 64];
        let (tokens, length) = (&tokens[..], first);
        let mut steps = [Step { cache: &mut cache, tokens, prompt: length, length, logits: 1 }];
        backend
            .run_cached(&mut steps, 64, &mut out, &|pass, out| {
                let mut x = pass.embed(&table, None, None)?;
                let qkv = pass.norm_linear(&x, Some(&norm), &qkv, Activation::Identity)?;
                let attended = pass.attention(0, qkv, heads, layer, None)?;
                pass.linear_add(attended, &output, None, 1.0, &mut x)?;
                let x = pass.gather_rows(x, Row::Last)?;
                pass.for_each_sequence(x, None, &mut |_, rows| {
                    rows.iter().for_each(|row| out.copy_from_slice(row));
                })
            })
            .unwrap();
        let attended: Vec<f32> = out.iter().zip(&input[(first - 1) * 64..]).map(|(x, y)| x - y).collect();
        let what = (first, layer.mask, layer.soft_cap, backend.dtype());
        assert_close(&attended[..32], &expected[(first - 1) * 32..][..32], format, &what);
    }
}

#[test]
fn a_workspace_reuses_its_buffers() {
    let mut workspace = Workspace::default();
    let first = workspace.matrix(100, 384, DType::F32).unwrap();
    let start = first.row_ptr(0);
    workspace.give(first);
    let bytes = workspace.bytes();
    let smaller = workspace.matrix(90, 384, DType::Bf16).unwrap();
    assert_eq!((smaller.row_ptr(0), workspace.bytes()), (start, 0));
    workspace.give(smaller);
    assert_eq!(workspace.bytes(), bytes);
}

#[test]
fn a_panic_anywhere_fails_its_call_only() {
    let cpu = Cpu::new(Isa::best(), DType::F32);
    let table = |rows| cpu.table(Weight::from_f32(&vec![1.0; rows * 4], &[rows, 4]).unwrap().into()).unwrap();
    let (words, positions) = (table(3), table(9));
    for offsets in [&[0, 8][..], &[0, 2, 4, 6, 8]] {
        let ids = [1, 2, 0, 1, 2, 0, 1, 2];
        let batch = PackedBatch::new(&ids, offsets).unwrap();
        let mut out = vec![0.0; batch.sequences()];
        let failed = cpu.run(&batch, 1, &mut out, &|pass, _| {
            let x = pass.embed(&words, Some((&positions, Positions::FromZero)), None)?;
            // Four columns cannot be divided into heads of this width.
            pass.attention(
                0,
                x,
                Heads { heads: 1, kv_heads: 1, width: 3 },
                &LayerAttention::new(Mask::FULL),
                None,
            )
            .map(|_| ())
        });
        assert!(matches!(failed, Err(Error::Internal { .. })), "{failed:?}");
        let sums = |pass: &mut super::CpuPass<'_>, out: &mut [f32]| {
            let x = pass.embed(&words, Some((&positions, Positions::FromZero)), None)?;
            pass.for_each_sequence(x, None, &mut |index, rows| out[index] = rows.iter().flatten().sum())
        };
        cpu.run(&batch, 1, &mut out, &sums).unwrap();
        assert_eq!(out.iter().sum::<f32>(), 64.0);
    }
}

#[test]
fn memory_of_one_batch_serves_the_next() {
    let cpu = Cpu::new(Isa::best(), DType::Bf16);
    let table =
        |rows| cpu.table(Weight::from_f32(&vec![1.0; rows * 40], &[rows, 40]).unwrap().into()).unwrap();
    let (words, positions) = (table(2), table(300));
    let linear = cpu.linear(&[(Weight::from_f32(&[0.5; 4800], &[120, 40]).unwrap().into(), None)]).unwrap();
    let norm = Weight::from_f32(&[1.0; 40], &[40]).unwrap();
    let norm = cpu.norm(&norm, Some(&norm), 1e-5).unwrap();
    let sizes = || cpu.workspaces.lock().iter().map(Workspace::bytes).collect::<Vec<_>>();
    let encode = |length: u32| {
        let (ids, offsets) = (vec![1; length as usize], [0, length]);
        let batch = PackedBatch::new(&ids, &offsets).unwrap();
        cpu.run(&batch, 1, &mut [0.0], &|pass, _| {
            let x = pass.embed(&words, Some((&positions, Positions::FromZero)), None)?;
            let x = pass.norm(x, &norm)?;
            let qkv = pass.linear(&x, &linear, Activation::Gelu)?;
            let y = pass.attention(
                0,
                qkv,
                Heads { heads: 2, kv_heads: 2, width: 20 },
                &LayerAttention::new(Mask::CAUSAL),
                None,
            )?;
            pass.discard(y);
            pass.for_each_sequence(x, None, &mut |_, _| ())
        })
        .unwrap();
    };
    encode(100);
    let first = sizes();
    assert!(first.len() == 1 && first[0] > 0);
    for length in [100, 7, 250, 0, 100] {
        encode(length);
        assert_eq!(sizes(), first, "{length}");
    }
}
