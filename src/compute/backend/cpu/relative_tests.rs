//! Attention with relative positions, and convolutions, compared with their definitions.

use std::sync::Arc;

use super::Cpu;
use super::tests::{assert_close, matrix, random, values};
use super::workspace::Workspace;
use crate::Result;
use crate::compute::attention::relative::RelativePanels;
use crate::compute::attention::tiles::{Attention, KeyValues, Span};
use crate::compute::kernels::Kernels;
use crate::compute::parallel::Share;
use crate::compute::{
    Backend, Biased, Candle, DType, DistanceRows, Heads, Isa, LayerAttention, Mask, PackedBatch, Pass,
    RelativeLayers, RelativeTable, Weight,
};

/// Numbers of a row of the table.
const INPUTS: usize = 6;

/// Distances that have rows of their own, in each direction.
const NEAR: i64 = 20;

/// The row of a distance; `buckets` share rows of far ones.
fn row(distance: i64) -> i64 {
    distance.clamp(-NEAR, NEAR) + (distance - distance.clamp(-NEAR, NEAR)).div_euclid(7)
}

fn positions(heads: Heads, longest: usize, compared: [bool; 2]) -> (RelativeTable, RelativeLayers) {
    let first = row(1 - longest as i64);
    let count = (row(longest as i64 - 1) - first + 1) as usize;
    let outputs = heads.heads * heads.width;
    let layer = |seed: u32, bias: bool| -> Biased {
        let bias = bias.then(|| Weight::from_f32(&random(outputs, seed + 1), &[outputs]).unwrap());
        (Weight::from_f32(&random(outputs * INPUTS, seed), &[outputs, INPUTS]).unwrap().into(), bias)
    };
    let table = RelativeTable {
        rows: Arc::new(
            DistanceRows::new(longest, count, |distance| (row(distance) - first) as usize).unwrap(),
        ),
        values: random(count * INPUTS, 77),
    };
    let layers = RelativeLayers {
        content_to_position: compared[0].then(|| layer(5, true)),
        position_to_content: compared[1].then(|| layer(8, false)),
    };
    (table, layers)
}

/// Attention by its definition, in f64: `[length, heads * width]`.
fn expected(
    input: &[f32],
    length: usize,
    heads: Heads,
    scale: f64,
    (positions, layers): (&RelativeTable, &RelativeLayers),
    seen: usize,
) -> Vec<f64> {
    let Heads { heads, width, .. } = heads;
    let columns = heads * width;
    let made = |layer: &Option<Biased>| {
        layer.as_ref().map(|(matrix, bias)| {
            let (matrix, bias) = (matrix.to_f32().unwrap(), bias.as_ref().map(|bias| bias.to_f32().unwrap()));
            let value = |row: usize, column: usize| {
                let table = &positions.values[row * INPUTS..][..INPUTS];
                let products = table.iter().zip(&matrix[column * INPUTS..][..INPUTS]);
                let sum: f64 = products.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                sum + bias.as_ref().map_or(0.0, |bias| f64::from(bias[column]))
            };
            let rows = positions.values.len() / INPUTS;
            (0..rows * columns).map(|at| value(at / columns, at % columns)).collect::<Vec<f64>>()
        })
    };
    let tables = [made(&layers.content_to_position), made(&layers.position_to_content)];
    let at = |row: usize, part: usize, head: usize| {
        input[row * 3 * columns + part * columns + head * width..][..width].iter().map(|&x| f64::from(x))
    };
    let mut out = vec![0.0; length * columns];
    for (query, head) in (0..length).flat_map(|query| (0..heads).map(move |head| (query, head))) {
        let score = |key: usize| {
            let place = positions.rows.of_query(query, key, 1)[0] as usize;
            let mut sum: f64 = at(query, 0, head).zip(at(key, 1, head)).map(|(q, k)| q * k).sum();
            for (table, own) in tables.iter().zip([at(query, 0, head), at(key, 1, head)]) {
                if let Some(table) = table {
                    sum += own.zip(&table[place * columns + head * width..]).map(|(x, p)| x * p).sum::<f64>();
                }
            }
            sum * scale
        };
        let scores: Vec<f64> = (0..seen).map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (key, weight) in weights.iter().enumerate() {
            let to = out[query * columns + head * width..].iter_mut();
            to.zip(at(key, 2, head)).for_each(|(to, value)| *to += weight / total * value);
        }
    }
    out
}

#[test]
fn attention_adds_products_with_relative_positions() {
    // Around blocks of keys, tiles of queries, panels of rows; heads of odd width and of several steps.
    let shapes =
        [(1, 1, 4), (2, 2, 5), (9, 3, 8), (40, 1, 33), (60, 2, 1), (257, 2, 16), (300, 1, 40), (520, 1, 6)];
    for (length, heads, width) in shapes {
        let heads = Heads { heads, kv_heads: heads, width };
        let columns = heads.heads * width;
        let input = random(length * 3 * columns, 3);
        let layer = LayerAttention { scale: Some(0.3), ..LayerAttention::new(Mask::FULL) };
        for compared in [[true, true], [true, false], [false, true]] {
            // Tables may be longer than the text.
            let (table, layers) = positions(heads, length + 3, compared);
            for hidden in [0, length / 3] {
                let expected = expected(&input, length, heads, 0.3, (&table, &layers), length - hidden);
                for (isa, format) in Isa::available().flat_map(|isa| [(isa, DType::F32), (isa, DType::Bf16)])
                {
                    let kernels = Kernels::of(isa);
                    let panels = RelativePanels::new(kernels, format, heads, &table, &layers).unwrap();
                    let mut workspace = Workspace::default();
                    let qkv = matrix(&mut workspace, length, 3 * columns, format, &input);
                    let mut out = workspace.matrix(length, columns, format).unwrap();
                    let target = out.target();
                    let all = Attention::new(kernels, &qkv, KeyValues::Rows(&qkv), heads, &layer, &target);
                    let all = all.with_relative(Some(&panels));
                    let span = Span { keys: 0, queries: 0, before: 0, rows: length, hidden };
                    // The scratch of another text, whose scores were others.
                    let mut scratch = Default::default();
                    for head in (0..heads.heads).rev().chain(0..heads.heads) {
                        all.group(&mut scratch, span, head, Share { index: 0, of: 1 }).unwrap();
                    }
                    let what = (isa, length, heads, compared, hidden);
                    assert_close(&values(&mut out), &expected, format, &what);
                }
            }
        }
    }
}

/// Attention over a batch of texts on a backend, and a convolution of them.
fn run<B: Backend>(backend: &B, texts: &[&[u32]], table: &Weight, heads: Heads) -> Vec<Vec<f32>> {
    let columns = table.columns();
    let words = backend.table(table.clone().into()).unwrap();
    let ones = |count: usize| Weight::from_f32(&vec![1.0; count], &[count]).unwrap();
    let norm = backend.norm(&ones(columns), Some(&ones(columns)), 1e-6).unwrap();
    let last = backend.norm(&ones(columns / 3), None, 1e-6).unwrap();
    let weight = |outputs: usize, inputs: usize| -> Biased {
        (Weight::from_f32(&random(outputs * inputs, 21), &[outputs, inputs]).unwrap().into(), None)
    };
    let (qkv, narrow) = (weight(columns, columns), weight(columns / 3, columns));
    let kernel = weight(columns / 3, 5 * columns);
    let [qkv, narrow, kernel] = [qkv, narrow, kernel].map(|layer| backend.linear(&[layer]).unwrap());
    let (positions, layers) = positions(heads, 64, [true, true]);
    let relative = backend.relative(&positions, &layers, heads).unwrap();
    let layer = LayerAttention::new(Mask::FULL);
    let ids: Vec<u32> = texts.concat();
    let mut offsets = vec![0];
    texts.iter().for_each(|text| offsets.push(offsets.last().unwrap() + text.len() as u32));
    let batch = PackedBatch::new(&ids, &offsets).unwrap();
    let found = crate::sync::Mutex::new(vec![Vec::new(); texts.len()]);
    backend
        .run(&batch, 0, &mut [], &|pass, _| -> Result<()> {
            let indices = pass.sequence_indices();
            let x = pass.embed(&words, None, None)?;
            let x = pass.norm(x, &norm)?;
            let qkv = pass.linear(&x, &qkv, crate::compute::Activation::Identity)?;
            let attended = pass.attention(0, qkv, heads, &layer, Some(&relative))?;
            let rows = pass.im2col(&x, 5)?;
            let convolved = pass.linear(&rows, &kernel, crate::compute::Activation::Tanh)?;
            let x = pass.linear_norm(x, &narrow, crate::compute::Activation::Identity, &last)?;
            let x = pass.add_norm(attended, x, &last)?;
            let x = pass.add_norm(convolved, x, &last)?;
            pass.for_each_sequence(x, None, &mut |index, rows| {
                found.lock()[indices[index]] = rows.iter().flatten().copied().collect();
            })
        })
        .unwrap();
    found.into_inner()
}

#[test]
fn backends_agree_and_texts_do_not_depend_on_their_batch() {
    let heads = Heads { heads: 2, kv_heads: 2, width: 6 };
    let table = Weight::from_f32(&random(50 * 36, 2), &[50, 36]).unwrap();
    let long: Vec<u32> = (0..61).map(|i| i * 7 % 50).collect();
    let texts: [&[u32]; 5] = [&[3], &long, &[], &[7, 8, 9, 10], &long[..17]];
    let expected = run(&Candle::new(candle_core::Device::Cpu), &texts, &table, heads);
    assert_eq!(expected[1].len(), 61 * 12);
    for (isa, format) in Isa::available().flat_map(|isa| [(isa, DType::F32), (isa, DType::Bf16)]) {
        let cpu = Cpu::new(isa, format);
        let found = run(&cpu, &texts, &table, heads);
        for (index, text) in texts.iter().enumerate() {
            let expected: Vec<f64> = expected[index].iter().map(|&x| f64::from(x)).collect();
            let allowed = if format == DType::F32 { 2e-5 } else { 0.1 };
            let worst = found[index]
                .iter()
                .zip(&expected)
                .map(|(x, y)| (f64::from(*x) - y).abs())
                .fold(0.0, f64::max);
            assert!(
                found[index].len() == expected.len() && worst < allowed,
                "{isa} {format:?} {index}: {worst:e}"
            );
            assert_eq!(run(&cpu, &[text], &table, heads)[0], found[index], "{isa} {format:?} {index} alone");
        }
    }
}
