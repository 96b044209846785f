//! Every operation on a card against candle's on the CPU. Without a card, the tests do nothing.

use candle_core::Device;

use super::*;
use crate::compute::attention::heads::DistanceBias;
use crate::compute::attention::rope::Rotary;
use crate::compute::backend::candle::Candle;
use crate::compute::backend::candle::CandleDevice;
use crate::compute::backend::traits::{KvCache as _, Pass, Positions, Row, Rows};
use crate::compute::{Activation, DeltaRuleShape, Heads, LayerAttention, Mask, Pooling, RopeStyle};
use crate::sync::Mutex;

fn cuda(bf16: bool) -> Option<Cuda> {
    let device = Device::new_cuda_with_stream(0).ok()?;
    Some(Cuda::new(CandleDevice { bf16, ..device.into() }).unwrap())
}

/// Numbers between -1 and 1 that bfloat16 holds exactly.
fn random(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0).to_f32()
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn weight(values: &[f32], shape: &[usize]) -> Weight {
    Weight::from_f32(values, shape).unwrap()
}

fn linear<B: Backend>(backend: &B, outputs: usize, inputs: usize, bias: bool, seed: u32) -> B::Linear {
    let scale = 1.0 / (inputs as f32).sqrt();
    let values: Vec<f32> = random(outputs * inputs, seed).iter().map(|value| value * scale).collect();
    let bias = bias.then(|| weight(&random(outputs, seed + 1), &[outputs]));
    backend.linear(&[(weight(&values, &[outputs, inputs]).into(), bias)]).unwrap()
}

fn identity<B: Backend>(backend: &B, width: usize) -> B::Linear {
    let values: Vec<f32> =
        (0..width * width).map(|at| f32::from(u8::from(at / width == at % width))).collect();
    backend.linear(&[(weight(&values, &[width, width]).into(), None)]).unwrap()
}

/// The largest difference, of numbers above 1 relative to them.
fn furthest(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let each = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / b.abs().max(1.0));
    // A NaN must show.
    each.fold(0.0, |most, value| if value > most || value.is_nan() { value } else { most })
}

/// Computes states, and reads them.
type Forward<'f, B> =
    dyn for<'a> Fn(&mut <B as Backend>::Pass<'a>, &mut dyn FnMut(usize, Rows<'_>)) -> Result<()> + Sync + 'f;

/// Sequences of these lengths, whose token `i` has row `i` of a table.
struct Batch {
    ids: Vec<u32>,
    offsets: Vec<u32>,
    hidden: Vec<u32>,
    second_starts: Vec<u32>,
}

impl Batch {
    fn new(lengths: &[u32]) -> Self {
        let mut offsets = vec![0];
        lengths.iter().for_each(|length| offsets.push(offsets[offsets.len() - 1] + length));
        let ids = (0..offsets[lengths.len()]).collect();
        Self { ids, offsets, hidden: Vec::new(), second_starts: Vec::new() }
    }

    fn packed(&self) -> PackedBatch<'_> {
        PackedBatch {
            ids: &self.ids,
            offsets: &self.offsets,
            second_starts: &self.second_starts,
            hidden: &self.hidden,
        }
    }

    /// All rows of states of `width` that `forward` reads.
    fn rows<B: Backend>(&self, backend: &B, width: usize, forward: &Forward<'_, B>) -> Vec<f32> {
        let out = Mutex::new(vec![f32::NAN; self.ids.len() * width]);
        backend
            .run(&self.packed(), 0, &mut [], &|pass, _| {
                let indices = pass.sequence_indices();
                forward(pass, &mut |index, rows| {
                    let first = self.offsets[indices[index]] as usize;
                    for (row, values) in rows.iter().enumerate() {
                        out.lock()[(first + row) * width..][..width].copy_from_slice(values);
                    }
                })
            })
            .unwrap();
        out.into_inner()
    }
}

fn attended<B: Backend>(backend: &B, batch: &Batch, heads: Heads, layer: &LayerAttention) -> Vec<f32> {
    let width = (heads.heads + 2 * heads.kv_heads) * heads.width;
    // Scores far from zero, so that a wrong one shows.
    let rows: Vec<f32> = random(batch.ids.len() * width, 5).iter().map(|value| 2.0 * value).collect();
    let table = backend.table(weight(&rows, &[batch.ids.len(), width]).into()).unwrap();
    let same = identity(backend, width);
    batch.rows(backend, heads.heads * heads.width, &|pass, each| {
        let x = pass.embed(&table, None, None)?;
        let qkv = pass.norm_linear(&x, None, &same, Activation::Identity)?;
        let attended = pass.attention(0, qkv, heads, layer, None)?;
        pass.for_each_sequence(attended, None, each)
    })
}

fn layers(heads: usize) -> Vec<LayerAttention> {
    // As long as the longest text, which is no multiple of a tile's rows.
    let bias = DistanceBias::new(heads, 257, |head, distance| {
        (head as f32 + 1.0) * 0.1 * (distance as f32 * 0.3).sin() - 0.01 * distance.abs() as f32
    });
    let bias = Some(Arc::new(bias.unwrap()));
    vec![
        LayerAttention::new(Mask::FULL),
        LayerAttention::new(Mask::CAUSAL),
        LayerAttention { soft_cap: Some(3.0), ..LayerAttention::new(Mask::sliding(20)) },
        LayerAttention { scale: Some(0.3), ..LayerAttention::new(Mask::local(33)) },
        LayerAttention { bias: bias.clone(), ..LayerAttention::new(Mask::FULL) },
        LayerAttention { bias, soft_cap: Some(5.0), ..LayerAttention::new(Mask::CAUSAL) },
    ]
}

#[test]
fn attention_of_every_width_and_mask() {
    let (Some(exact), Some(rounded)) = (cuda(false), cuda(true)) else { return };
    let plain = Candle::new(Device::Cpu);
    let mut batch = Batch::new(&[1, 2, 15, 16, 0, 17, 63, 64, 65, 130, 257]);
    for width in [8, 16, 32, 40, 48, 64, 80, 96, 128, 160, 256, 264] {
        let heads = Heads { heads: 4, kv_heads: 2, width };
        for (number, layer) in layers(4).iter().enumerate() {
            // As queries of late interaction have them.
            batch.hidden = if number == 0 { vec![0, 1, 3, 0, 0, 16, 0, 10, 0, 100, 0] } else { Vec::new() };
            let expected = attended(&plain, &batch, heads, layer);
            let far = furthest(&attended(&exact, &batch, heads, layer), &expected);
            assert!(far <= 2e-5, "float32, {width}, {layer:?}: {far}");
            let far = furthest(&attended(&rounded, &batch, heads, layer), &expected);
            assert!(far <= 0.02, "bfloat16, {width}, {layer:?}: {far}");
        }
    }
}

/// The last rows of sequences whose tokens come in several passes of several sequences.
fn in_steps<B: Backend>(backend: &B, lengths: &[u32], heads: Heads, layer: &LayerAttention) -> Vec<f32> {
    let width = (heads.heads + 2 * heads.kv_heads) * heads.width;
    let wide = heads.heads * heads.width;
    let batch = Batch::new(lengths);
    let table = backend.table(weight(&random(batch.ids.len() * width, 6), &[batch.ids.len(), width]).into());
    let (table, same) = (table.unwrap(), identity(backend, width));
    let short_convolutions = Default::default();
    let shape = CacheShape {
        layers: 2,
        kv_heads: heads.kv_heads,
        width: heads.width,
        others: Default::default(),
        short_convolutions,
        delta_rules: DeltaRuleShape::NONE,
    };
    let mut caches: Vec<B::Cache> = lengths.iter().map(|_| backend.cache(shape)).collect();
    let mut found = vec![f32::NAN; lengths.len() * wide];
    for round in 0.. {
        // Each sequence goes on by other counts; a prompt comes in two parts.
        let mut members = Vec::new();
        let mut steps = Vec::new();
        for (number, cache) in caches.iter_mut().enumerate() {
            let (done, length) = (cache.len(), lengths[number] as usize);
            let count = [1, 100, 3, 64, 1][(round + number) % 5].min(length - done);
            if count > 0 {
                let tokens = &batch.ids[batch.offsets[number] as usize + done..][..count];
                members.push((number, done + count == length));
                let needs_logits = done + count == length;
                steps.push(Step { cache, tokens, prompt: length, length, logits: usize::from(needs_logits) });
            }
        }
        if steps.is_empty() {
            break;
        }
        let last: Vec<usize> = members.iter().filter(|member| member.1).map(|member| member.0).collect();
        let mut out = vec![0.0; last.len() * wide];
        backend
            .run_cached(&mut steps, wide, &mut out, &|pass, out| {
                let x = pass.embed(&table, None, None)?;
                for layer_number in 0..2 {
                    let qkv = pass.norm_linear(&x, None, &same, Activation::Identity)?;
                    let attended = pass.attention(layer_number, qkv, heads, layer, None)?;
                    if layer_number == 1 {
                        let gathered = pass.gather_rows(attended, Row::Last)?;
                        let mut next = 0;
                        pass.for_each_sequence(gathered, None, &mut |_, rows| {
                            rows.iter().for_each(|row| {
                                out[next * wide..][..wide].copy_from_slice(row);
                                next += 1;
                            });
                        })?;
                    }
                }
                Ok(())
            })
            .unwrap();
        for (row, number) in last.into_iter().enumerate() {
            found[number * wide..][..wide].copy_from_slice(&out[row * wide..][..wide]);
        }
    }
    found
}

#[test]
fn attention_in_steps_over_caches() {
    let (Some(exact), Some(rounded)) = (cuda(false), cuda(true)) else { return };
    let plain = Candle::new(Device::Cpu);
    for (width, kv_heads) in [(8, 1), (64, 2), (128, 4), (256, 2)] {
        let heads = Heads { heads: 4, kv_heads, width };
        for layer in layers(4).iter().filter(|layer| layer.mask.is_causal()) {
            let lengths = [1, 70, 200, 5, 131];
            let expected = in_steps(&plain, &lengths, heads, layer);
            let far = furthest(&in_steps(&exact, &lengths, heads, layer), &expected);
            assert!(far <= 2e-5, "float32, {width}, {layer:?}: {far}");
            let far = furthest(&in_steps(&rounded, &lengths, heads, layer), &expected);
            assert!(far <= 0.02, "bfloat16, {width}, {layer:?}: {far}");
        }
    }
}

#[test]
fn a_cache_forks_shrinks_and_is_shortened() {
    let Some(cuda) = cuda(false) else { return };
    let shape = CacheShape {
        layers: 3,
        kv_heads: 2,
        width: 8,
        others: Default::default(),
        short_convolutions: Default::default(),
        delta_rules: DeltaRuleShape::NONE,
    };
    let mut cache = cuda.cache(shape);
    assert!(cache.is_empty() && cache.bytes() == 0);
    cache.reserve(300).unwrap();
    assert_eq!(cache.bytes(), cuda.cache_bytes(shape, 300));
    cache.len = 70;
    let fork = cache.fork(60, 61).unwrap();
    assert_eq!((fork.len(), fork.bytes()), (60, cuda.cache_bytes(shape, 61)));
    cache.shrink().unwrap();
    assert_eq!((cache.len(), cache.bytes()), (70, cuda.cache_bytes(shape, 70)));
    cache.truncate(9);
    assert_eq!(cache.len(), 9);
}

/// Embeddings of three tables, both kinds of norms and blocks, gates, rotary positions with norms of heads.
fn blocks<B: Backend>(backend: &B, batch: &Batch, width: usize) -> Vec<f32> {
    let table = |rows: usize, seed| {
        backend.table(weight(&random(rows * width, seed), &[rows, width]).into()).unwrap()
    };
    let (words, positions, types) = (table(batch.ids.len(), 1), table(400, 2), table(2, 3));
    let norm = |length: usize, shift: bool, seed| {
        let shift = shift.then(|| weight(&random(length, seed + 1), &[length]));
        backend.norm(&weight(&random(length, seed), &[length]), shift.as_ref(), 1e-6).unwrap()
    };
    let heads = Heads { heads: 4, kv_heads: 2, width: width / 4 };
    let qkv = linear(backend, 2 * width, width, true, 10);
    let output = linear(backend, width, width, true, 12);
    let narrow = linear(backend, width, width, false, 14);
    let part = |seed| {
        let scaled: Vec<f32> = random(3 * width * width, seed).iter().map(|value| value / 8.0).collect();
        (
            weight(&scaled, &[3 * width, width]).into(),
            Some(weight(&random(3 * width, seed + 1), &[3 * width])),
        )
    };
    let gated = backend.gated(part(20), part(22)).unwrap();
    let down = linear(backend, width, 3 * width, true, 24);
    let (layer_norm, rms) = (norm(width, true, 30), norm(width, false, 32));
    let by_head = (norm(width / 4, false, 34), norm(width / 4, true, 36));
    let together = (norm(width, false, 38), norm(width / 2, false, 40));
    let rotary = Rotary::new(10_000.0, width / 8 / 2 * 2, RopeStyle::Neox);
    let mut other = Rotary::new(1000.0, width / 4 / 2 * 2, RopeStyle::Interleaved);
    other.query_growth = Some(crate::compute::QueryGrowth { rate: 0.3, length: 5 });
    let layer = LayerAttention::new(Mask::FULL);
    batch.rows(backend, width, &|pass, each| {
        let x = pass.embed(&words, Some((&positions, Positions::AfterPadding(1))), Some(&types))?;
        let x = pass.scale(x, 0.5)?;
        let mut x = pass.norm(x, &layer_norm)?;
        let ropes = [pass.rope(&rotary)?, pass.rope(&other)?];
        for (rope, norms) in [(&ropes[0], Some(&by_head)), (&ropes[1], Some(&together)), (&ropes[0], None)] {
            let states = pass.norm_linear(&x, Some(&rms), &qkv, Activation::Identity)?;
            let states = pass.rotate(states, heads, norms, rope)?;
            let attended = pass.attention(0, states, heads, &layer, None)?;
            pass.linear_add(attended, &output, None, 0.7, &mut x)?;
            let up = pass.norm_linear(&x, None, &gated, Activation::Silu)?;
            pass.linear_add(up, &down, Some(&layer_norm), 0.3, &mut x)?;
            let same = pass.linear(&x, &narrow, Activation::GeluTanh)?;
            pass.linear_add(same, &narrow, None, 0.5, &mut x)?;
        }
        for activation in [Activation::Gelu, Activation::Relu, Activation::Identity] {
            let up = pass.linear(&x, &narrow, activation)?;
            x = pass.linear_add_norm(up, &output, x, &layer_norm)?;
        }
        let x = pass.linear_norm(x, &narrow, Activation::Gelu, &layer_norm)?;
        let x = pass.project_embeddings(x, &output)?;
        pass.for_each_sequence(x, None, each)
    })
}

#[test]
fn blocks_of_every_kind() {
    let (Some(exact), Some(rounded)) = (cuda(false), cuda(true)) else { return };
    let plain = Candle::new(Device::Cpu);
    for width in [24, 64, 120, 256] {
        let mut batch = Batch::new(&[1, 9, 0, 40, 130]);
        batch.second_starts = vec![0, 4, 0, 40, 7];
        let expected = blocks(&plain, &batch, width);
        let far = furthest(&blocks(&exact, &batch, width), &expected);
        assert!(far <= 1e-4, "float32, {width}: {far}");
        let far = furthest(&blocks(&rounded, &batch, width), &expected);
        assert!(far <= 0.2, "bfloat16, {width}: {far}");
    }
}

/// Attention to rotated heads whose pairs are all of a head's halves, some with norms of heads.
fn rotated<B: Backend>(backend: &B, batch: &Batch, heads: Heads, normed: bool, growing: bool) -> Vec<f32> {
    let width = (heads.heads + 2 * heads.kv_heads) * heads.width;
    let table =
        backend.table(weight(&random(batch.ids.len() * width, 6), &[batch.ids.len(), width]).into()).unwrap();
    let same = identity(backend, width);
    let norm = |seed| backend.norm(&weight(&random(heads.width, seed), &[heads.width]), None, 1e-6).unwrap();
    let norms = normed.then(|| (norm(7), norm(8)));
    let mut rotary = Rotary::new(1000.0, heads.width, RopeStyle::Neox);
    rotary.query_growth = growing.then_some(crate::compute::QueryGrowth { rate: 0.3, length: 5 });
    let layer = LayerAttention::new(Mask::FULL);
    batch.rows(backend, heads.heads * heads.width, &|pass, each| {
        let x = pass.embed(&table, None, None)?;
        let qkv = pass.norm_linear(&x, None, &same, Activation::Identity)?;
        let rope = pass.rope(&rotary)?;
        let qkv = pass.rotate(qkv, heads, norms.as_ref(), &rope)?;
        let attended = pass.attention(0, qkv, heads, &layer, None)?;
        pass.for_each_sequence(attended, None, each)
    })
}

#[test]
fn heads_of_every_width_rotate() {
    let (Some(exact), Some(rounded)) = (cuda(false), cuda(true)) else { return };
    let plain = Candle::new(Device::Cpu);
    let batch = Batch::new(&[1, 9, 0, 40, 70]);
    for (width, number, kv_heads) in [(32, 4, 2), (64, 12, 1), (96, 2, 2), (128, 3, 1), (256, 2, 1)] {
        let heads = Heads { heads: number, kv_heads, width };
        for (normed, growing) in [(false, false), (true, false), (true, true)] {
            let expected = rotated(&plain, &batch, heads, normed, growing);
            let far = furthest(&rotated(&exact, &batch, heads, normed, growing), &expected);
            assert!(far <= 2e-5, "float32, {heads:?}, {normed} {growing}: {far}");
            let far = furthest(&rotated(&rounded, &batch, heads, normed, growing), &expected);
            assert!(far <= 0.03, "bfloat16, {heads:?}, {normed} {growing}: {far}");
        }
    }
}

#[test]
fn every_pooling_and_parts_of_a_batch() {
    let Some(cuda) = cuda(false) else { return };
    let plain = Candle::new(Device::Cpu);
    let (width, lengths) = (100, [3, 0, 700, 1, 40_000, 50]);
    let batch = Batch::new(&lengths);
    let rows = random(1000 * width, 9);
    fn pooled<B: Backend>(backend: &B, batch: &Batch, rows: &[f32], width: usize, kind: Pooling) -> Vec<f32> {
        let table = backend.table(weight(rows, &[1000, width]).into()).unwrap();
        let norm = backend.norm(&weight(&vec![2.0; width], &[width]), None, 1e-6).unwrap();
        let ids: Vec<u32> = batch.ids.iter().map(|id| id % 1000).collect();
        let packed = PackedBatch { ids: &ids, ..batch.packed() };
        let mut out = vec![f32::NAN; packed.sequences() * width];
        let done = backend.run(&packed, width, &mut out, &|pass, out| {
            let mut x = pass.embed(&table, None, None)?;
            if let Some(row) = kind.row() {
                x = pass.gather_rows(x, row)?;
            }
            pass.pool(x, Some(&norm), kind, out)
        });
        done.unwrap();
        out
    }
    for kind in Pooling::ALL {
        let (found, expected) =
            (pooled(&cuda, &batch, &rows, width, kind), pooled(&plain, &batch, &rows, width, kind));
        let far = furthest(&found, &expected);
        assert!(far <= 2e-4, "{kind:?}: {far}");
    }
}

#[test]
fn a_row_outside_of_a_table_is_refused() {
    let Some(cuda) = cuda(false) else { return };
    let table = cuda.table(weight(&random(40, 1), &[10, 4]).into()).unwrap();
    let (ids, offsets) = ([1, 10], [0, 2]);
    let batch = PackedBatch::new(&ids, &offsets).unwrap();
    let mut out = vec![0.0; 4];
    let done = cuda.run(&batch, 4, &mut out, &|pass, out| {
        let x = pass.embed(&table, None, None)?;
        pass.pool(x, None, Pooling::Mean, out)
    });
    assert!(
        matches!(&done, Err(Error::Input(reason)) if reason.contains("token 10 lies outside")),
        "{done:?}"
    );
}

#[test]
fn heads_that_no_kernel_computes_are_refused() {
    let Some(cuda) = cuda(false) else { return };
    let heads = Heads { heads: 1, kv_heads: 1, width: 520 };
    let table = cuda.table(weight(&random(3 * 520, 1), &[1, 3 * 520]).into()).unwrap();
    let same = identity(&cuda, 3 * 520);
    let batch = PackedBatch::new(&[0], &[0, 1]).unwrap();
    let done = cuda.run(&batch, 0, &mut [], &|pass, _| {
        let x = pass.embed(&table, None, None)?;
        let qkv = pass.norm_linear(&x, None, &same, Activation::Identity)?;
        pass.attention(0, qkv, heads, &LayerAttention::new(Mask::FULL), None).map(|_| ())
    });
    assert!(
        matches!(&done, Err(Error::Internal { reason, .. }) if reason.contains("512 columns")),
        "{done:?}"
    );
}

#[test]
fn memory_that_a_card_lacks_is_named() {
    let Some(cuda) = cuda(false) else { return };
    let found = cuda.lasting(1 << 50);
    assert!(matches!(found, Err(Error::DeviceMemory { .. })), "{found:?}");
    assert_eq!(cuda.device_bytes(), 0);
}
