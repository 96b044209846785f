//! Every kernel of every instruction set this machine has, against plain references in f64, at sizes around its
//! tile edges. All operands end right before a page that cannot be touched.

use candle_core::cpu::erf::erfc_f64;
use half::bf16;
use proptest::prelude::*;

use super::math::{activate, exp};
use super::rowwise::{RmsRow, RopeRow, Running, Softmax, TileEpilogue};
use super::tile::{Ahead, Tile};
use super::{Kernels, TALLEST_TILE, units};
use crate::compute::guarded::Guarded;
use crate::compute::simd::{Plain, Simd};
use crate::compute::{Activation, DType, Isa};

#[path = "quantize_tests.rs"]
mod quantize;

const FORMATS: [DType; 2] = [DType::F32, DType::Bf16];
const ACTIVATIONS: [Activation; 5] =
    [Activation::Identity, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu];

fn all() -> impl Iterator<Item = &'static Kernels> {
    Isa::available().map(Kernels::of)
}

/// Numbers in -1..1, the same for the same seed.
fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn rounded(x: f32) -> f64 {
    f64::from(bf16::from_f32(x).to_f32())
}

/// Values as an operand of `format`: the bytes, and what they stand for.
fn operand(format: DType, values: &[f32]) -> (Guarded<u8>, Vec<f64>) {
    match format {
        DType::F32 => {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_ne_bytes()).collect();
            (Guarded::new(&bytes), values.iter().map(|&x| f64::from(x)).collect())
        }
        DType::Bf16 => {
            let bytes: Vec<u8> = values.iter().flat_map(|&x| bf16::from_f32(x).to_ne_bytes()).collect();
            (Guarded::new(&bytes), values.iter().map(|&x| rounded(x)).collect())
        }
    }
}

/// The panel of `columns` rows of `k` elements, and the product of `a` with it by the definition.
fn check_tile(kernels: &Kernels, format: DType, rows: usize, k: usize, columns: usize, accumulate: bool) {
    let even = if format == DType::Bf16 { k.next_multiple_of(2) } else { k };
    let mut left = random(rows * even, 1);
    let mut right = random(columns * even, 2);
    // Beyond an odd end: on the left any number, on the right what must be cleared.
    for (i, x) in left.iter_mut().chain(&mut right).enumerate() {
        *x = if i % even.max(1) >= k { 3.0 } else { *x };
    }
    let ((a, a_values), (b, b_values)) = (operand(format, &left), operand(format, &right));
    let mut panel = Guarded::new(&vec![u32::MAX; units(format, k) * kernels.width]);
    // SAFETY: `b` holds `columns` rows of `even` elements.
    unsafe { kernels.pack_columns(format, b.as_ptr(), even * format.bytes(), columns, k, &mut panel) };
    let before = random(rows * kernels.width, 3);
    let mut c = Guarded::new(&before);
    let t = Tile {
        a: a.as_ptr(),
        a_stride: even * format.bytes(),
        panel: panel.as_ptr().cast(),
        k: units(format, k),
        c: c.as_mut_ptr(),
        c_stride: kernels.width,
        rows,
        accumulate,
        ahead: None,
    };
    // SAFETY: operands as described.
    unsafe { kernels.tile(format, &t) };
    let mut again = Guarded::new(&before);
    // What is fetched beside changes nothing, even where nothing can be read: right behind the panel.
    let ahead = Some(Ahead { from: panel.as_ptr().wrapping_add(panel.len()).cast(), step: 32 });
    // SAFETY: as above.
    unsafe { kernels.tile(format, &Tile { c: again.as_mut_ptr(), ahead, ..t }) };
    assert_eq!(again[..], c[..]);
    for (i, &got) in c.iter().enumerate() {
        let (row, column) = (i / kernels.width, i % kernels.width);
        let mut expected = if accumulate { f64::from(before[i]) } else { 0.0 };
        if column < columns {
            expected += (0..k).map(|u| a_values[row * even + u] * b_values[column * even + u]).sum::<f64>();
        }
        let error = (f64::from(got) - expected).abs();
        assert!(
            error <= 1e-6 * (k as f64).sqrt().max(1.0),
            "{kernels:?} {format:?} {rows}x{k}x{columns} at {row},{column}: {got} for {expected}"
        );
    }
}

#[test]
fn tiles_multiply() {
    for kernels in all() {
        for format in FORMATS {
            for rows in 0..=kernels.rows(format) {
                for k in [0, 1, 2, 3, 8, 31, 32, 65, 100] {
                    check_tile(kernels, format, rows, k, kernels.width, k % 2 == 0);
                }
            }
            for columns in 0..=kernels.width {
                check_tile(kernels, format, 3, 17, columns, false);
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    for kernels in all() {
        for format in FORMATS {
            let (k, height) = (77_usize, kernels.rows(format));
            let (a, _) = operand(format, &random(height * 78, 4));
            let (panel, _) = operand(format, &random(kernels.width * k.next_multiple_of(2), 5));
            let product = |first: usize, rows: usize| {
                let mut c = vec![0.0; rows * kernels.width];
                let t = Tile {
                    a: a[first * 78 * format.bytes()..].as_ptr(),
                    a_stride: 78 * format.bytes(),
                    panel: panel.as_ptr().cast(),
                    k: units(format, k),
                    c: c.as_mut_ptr(),
                    c_stride: kernels.width,
                    rows,
                    accumulate: false,
                    ahead: None,
                };
                // SAFETY: operands as described.
                unsafe { kernels.tile(format, &t) };
                c
            };
            let whole = product(0, height);
            for rows in 1..height {
                let apart = [product(0, rows), product(rows, height - rows)].concat();
                assert!(whole == apart, "{kernels:?} {format:?} {rows}");
            }
        }
    }
}

fn reference(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Gelu => x * 0.5 * erfc_f64(-x / 2.0_f64.sqrt()),
        Activation::GeluTanh => {
            let y = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x / (1.0 + (-2.0 * y).exp())
        }
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

#[test]
fn tiles_finish_in_every_way() {
    for kernels in all() {
        let rows = kernels.rows(DType::F32);
        let tile = Guarded::new(&random(rows * kernels.width, 6).iter().map(|x| x * 4.0).collect::<Vec<_>>());
        let gate = Guarded::new(&random(rows * kernels.width, 17));
        let factors = Guarded::new(&random(rows, 7));
        for columns in 0..=kernels.width {
            for (case, activation) in ACTIVATIONS.into_iter().enumerate() {
                for to in FORMATS {
                    for accumulate in [false, to == DType::F32] {
                        let (with_bias, with_factors) = (case % 2 == 0, columns % 2 == 0);
                        let bias = Guarded::new(&random(columns, 8));
                        let (mut out, before) = operand(to, &random(rows * columns, 9));
                        let with_gate = columns % 3 == 0;
                        let f = TileEpilogue {
                            tile: tile.as_ptr(),
                            tile_stride: kernels.width,
                            rows,
                            columns,
                            bias: if with_bias { bias.as_ptr() } else { std::ptr::null() },
                            activation,
                            gated: if with_gate { gate.as_ptr() } else { std::ptr::null() },
                            gated_bias: if with_gate && with_bias { bias.as_ptr() } else { std::ptr::null() },
                            factors: if with_factors { factors.as_ptr() } else { std::ptr::null() },
                            out: out.as_mut_ptr(),
                            out_stride: columns * to.bytes(),
                            to,
                            accumulate,
                        };
                        // SAFETY: all as described.
                        unsafe { kernels.finish(&f) };
                        for (i, &before) in before.iter().enumerate() {
                            let (row, column) = (i / columns, i % columns);
                            let mut x = f64::from(tile[row * kernels.width + column]);
                            x *= if with_factors { f64::from(factors[row]) } else { 1.0 };
                            x += if with_bias { f64::from(bias[column]) } else { 0.0 };
                            x = reference(activation, x);
                            if with_gate {
                                let shift = if with_bias { f64::from(bias[column]) } else { 0.0 };
                                x *= f64::from(gate[row * kernels.width + column]) + shift;
                            }
                            x += if accumulate { before } else { 0.0 };
                            let got = match to {
                                DType::F32 => f32::from_ne_bytes(*out[i * 4..].first_chunk().unwrap()),
                                DType::Bf16 => {
                                    bf16::from_ne_bytes(*out[i * 2..].first_chunk().unwrap()).to_f32()
                                }
                            };
                            let allowed = if to == DType::F32 { 1e-6 } else { x.abs() * 4.3e-3 + 8e-5 };
                            assert!((f64::from(got) - x).abs() <= allowed, "{f:?} {i}: {got} for {x}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn rows_are_normalised() {
    for kernels in all() {
        for n in (1..70).chain([384, 1000]) {
            // A mean far from zero, where the naive formula of the variance has no digits left.
            let before: Vec<f32> = random(n, 10).iter().map(|x| x + 100.0).collect();
            let (mut x, scale, shift) =
                (Guarded::new(&before), Guarded::new(&random(n, 11)), Guarded::new(&random(n, 12)));
            let mut narrow = Guarded::new(&vec![0_u16; n]);
            kernels.norm(&mut x, &scale, &shift, 1e-5, Some(&mut narrow));
            let mean = before.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
            let variance = before.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
            for i in 0..n {
                let y = (f64::from(before[i]) - mean) / (variance + 1e-5).sqrt() * f64::from(scale[i])
                    + f64::from(shift[i]);
                assert!((f64::from(x[i]) - y).abs() < 1e-4, "{kernels:?} {n} {i}: {} for {y}", x[i]);
                assert_eq!(narrow[i], bf16::from_f32(x[i]).to_bits());
            }
            let mut alone = Guarded::new(&before);
            kernels.norm(&mut alone, &scale, &shift, 1e-5, None);
            assert!(*alone == *x);
        }
        kernels.norm(&mut [], &[], &[], 1e-5, None);
    }
}

#[test]
fn heads_are_normalised_and_turned() {
    for kernels in all() {
        for (format, allowed) in [(DType::F32, 1e-5), (DType::Bf16, 2e-2)] {
            for (width, pairs) in [(2, 1), (12, 6), (64, 32), (80, 20), (128, 64)] {
                for (interleaved, normalised) in [(false, true), (true, true), (false, false)] {
                    let (queries, heads) = (3, 5);
                    let (mut row, before) = operand(format, &random(heads * width, 20));
                    let scales = [random(width, 21), random(width, 22)].map(|scale| Guarded::new(&scale));
                    let turns: Vec<f32> = random(pairs, 23);
                    let angles: Vec<f32> =
                        turns.iter().map(|x| x.cos()).chain(turns.iter().map(|x| x.sin())).collect();
                    let angles = Guarded::new(&angles);
                    let turn = RopeRow {
                        row: row.as_mut_ptr(),
                        format,
                        heads,
                        queries,
                        width,
                        norms: normalised.then_some((&scales[0], &scales[1], 1e-6)),
                        angles: &angles,
                        interleaved,
                    };
                    // SAFETY: the row holds so many heads.
                    unsafe { kernels.apply_rope(&turn) };
                    for head in 0..heads {
                        let mut x = before[head * width..][..width].to_vec();
                        if normalised {
                            let mean = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
                            let scale = &scales[usize::from(head >= queries)];
                            for (x, scale) in x.iter_mut().zip(&scale[..]) {
                                *x = *x / (mean + 1e-6).sqrt() * f64::from(*scale);
                            }
                        }
                        for (pair, angle) in turns.iter().enumerate() {
                            let (i, j) =
                                if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + pairs) };
                            let (sine, cosine) = f64::from(*angle).sin_cos();
                            (x[i], x[j]) = (x[i] * cosine - x[j] * sine, x[j] * cosine + x[i] * sine);
                        }
                        for (i, x) in x.into_iter().enumerate() {
                            let at = head * width + i;
                            let got = match format {
                                DType::F32 => f32::from_ne_bytes(*row[at * 4..].first_chunk().unwrap()),
                                DType::Bf16 => {
                                    bf16::from_ne_bytes(*row[at * 2..].first_chunk().unwrap()).to_f32()
                                }
                            };
                            assert!(
                                (f64::from(got) - x).abs() <= allowed,
                                "{kernels:?} {format:?} {width} {pairs} {interleaved} {head} {i}: {got} for {x}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn rms_of_any_length_in_both_formats() {
    for kernels in all() {
        for n in (1..40).chain([128, 1000]) {
            let (x, scale) = (Guarded::new(&random(n, 24)), Guarded::new(&random(n, 25)));
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64;
            let mut narrow = Guarded::new(&vec![0_u16; n]);
            let out = narrow.as_mut_ptr().cast();
            // SAFETY: all of one length.
            unsafe {
                kernels.rms(&RmsRow { x: x.as_ptr(), scale: &scale, epsilon: 1e-5, out, to: DType::Bf16 });
            };
            let mut wide = Guarded::new(&x);
            kernels.rms_in_place(&mut wide, &scale, 1e-5);
            for i in 0..n {
                let exact = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(scale[i]);
                assert!((f64::from(wide[i]) - exact).abs() < 1e-6, "{kernels:?} {n} {i}");
                assert_eq!(narrow[i], bf16::from_f32(wide[i]).to_bits());
            }
        }
    }
}

#[test]
fn softmax_in_blocks_is_softmax() {
    const ROWS: usize = 3;
    for kernels in all() {
        // Keys of each of two blocks, and what the first row sees of the second: all, or ever more from row to row.
        for (keys, visible) in (0..40).map(|n: usize| (n, (n as isize, 0))).chain([
            (40, (7, 1)),
            (16, (-1, 1)),
            (33, (32, 1)),
            (256, (256, 0)),
        ]) {
            let stride = keys.next_multiple_of(2) + 3;
            let scores: Vec<_> = (0..2).map(|block| random(ROWS * stride, 13 + block)).collect();
            let (mut running, mut factors) = ([Running::default(); ROWS], [0.0; ROWS]);
            let mut sums = vec![Vec::new(); ROWS];
            let end = ROWS * stride - 3;
            for (block, visible) in scores.iter().zip([(keys as isize, 0), visible]) {
                let (mut x, mut y) = (Guarded::new(&block[..end]), Guarded::new(&block[..end]));
                let mut narrow = Guarded::new(&vec![1_u16; end]);
                let mut again = running;
                for (scores, narrow, running) in
                    [(&mut y, Some(&mut narrow[..]), &mut again), (&mut x, None, &mut running)]
                {
                    let factors = &mut factors;
                    let scale = 9.0;
                    kernels.softmax(&mut Softmax {
                        scores,
                        narrow,
                        stride,
                        keys,
                        padded: keys.next_multiple_of(2),
                        visible,
                        scale,
                        running,
                        factors,
                    });
                }
                for row in 0..ROWS {
                    let valid = (visible.0 + row as isize * visible.1).clamp(0, keys as isize) as usize;
                    let part = row * stride..row * stride + keys.next_multiple_of(2);
                    let (p, narrow) = (&x[part.clone()], &narrow[part]);
                    // Half a unit of bf16's last place, and what the shorter exponential may be off by.
                    let close = |p: f32, narrow| (bf16::from_bits(narrow).to_f32() - p).abs() <= p * 4.1e-3;
                    assert!(p.iter().zip(narrow).all(|(&p, &narrow)| close(p, narrow)), "{kernels:?} {keys}");
                    assert!(p[valid..].iter().all(|&p| p == 0.0), "{kernels:?} {keys} {visible:?}");
                    sums[row].iter_mut().for_each(|(p, _): &mut (f64, f64)| *p *= f64::from(factors[row]));
                    let score = |i: usize| 9.0 * f64::from(block[row * stride + i]);
                    sums[row].extend((0..valid).map(|i| (f64::from(p[i]), score(i))));
                }
            }
            for (row, seen) in sums.iter().enumerate() {
                let largest = seen.iter().map(|seen| seen.1).fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = seen.iter().map(|seen| (seen.1 - largest).exp()).sum();
                for (p, score) in seen {
                    let error = p / f64::from(running[row].sum) - (score - largest).exp() / total;
                    assert!(error.abs() < 1e-6, "{kernels:?} {keys} {visible:?} {row}");
                }
            }
        }
        for place in 0..40 {
            let mut scores = random(40, 16);
            scores[place] = f32::NAN;
            let mut running = [Running::default()];
            kernels.softmax(&mut Softmax {
                scores: &mut scores,
                narrow: None,
                stride: 40,
                keys: 40,
                padded: 40,
                visible: (40, 0),
                scale: 1.0,
                running: &mut running,
                factors: &mut [0.0],
            });
            assert!(running[0].sum.is_nan(), "{kernels:?} hides a NaN");
        }
    }
}

#[test]
fn values_become_panel_rows() {
    for kernels in all() {
        for (rows, columns) in [(0, 3), (1, 1), (2, kernels.width), (7, 5), (8, kernels.width - 1)] {
            let source = random(rows * columns, 14);
            for format in FORMATS {
                let (bytes, values) = operand(format, &source);
                let mut panel = Guarded::new(&vec![u32::MAX; units(format, rows) * kernels.width]);
                // SAFETY: `bytes` holds the rows.
                unsafe {
                    kernels.pack_rows(
                        format,
                        bytes.as_ptr(),
                        columns * format.bytes(),
                        rows,
                        columns,
                        &mut panel,
                    );
                }
                let read = |row: usize, column: usize| match format {
                    DType::F32 => f64::from(f32::from_bits(panel[row * kernels.width + column])),
                    DType::Bf16 => {
                        let unit = panel[row / 2 * kernels.width + column];
                        f64::from(bf16::from_bits((unit >> (16 * (row % 2))) as u16).to_f32())
                    }
                };
                let whole = units(format, rows) * 4 / format.bytes();
                for (row, column) in
                    (0..whole).flat_map(|row| (0..kernels.width).map(move |column| (row, column)))
                {
                    let inside = row < rows && column < columns;
                    let expected = if inside { values[row * columns + column] } else { 0.0 };
                    assert_eq!(read(row, column), expected, "{kernels:?} {format:?} {rows}x{columns}");
                }
            }
        }
    }
}

/// Distance in units of the last place of `expected`, as f32.
fn ulps(got: f32, expected: f64) -> f64 {
    let exponent = (expected.abs().max(f64::from(f32::MIN_POSITIVE))).log2().floor();
    (f64::from(got) - expected).abs() / 2.0_f64.powf(exponent - 23.0)
}

/// `activation` of each value, on `kernels`.
fn activated(kernels: &Kernels, activation: Activation, values: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for (x, y) in values.chunks(kernels.width).zip(out.chunks_mut(kernels.width)) {
        finish_row(kernels, activation, x, y.as_mut_ptr().cast(), DType::F32);
    }
    out
}

/// The same, rounded to bf16.
fn activated_narrow(kernels: &Kernels, activation: Activation, values: &[f32]) -> Vec<bf16> {
    let mut out = vec![bf16::ZERO; values.len()];
    for (x, y) in values.chunks(kernels.width).zip(out.chunks_mut(kernels.width)) {
        finish_row(kernels, activation, x, y.as_mut_ptr().cast(), DType::Bf16);
    }
    out
}

/// One row of at most a tile's width, whose output has as many values.
fn finish_row(kernels: &Kernels, activation: Activation, x: &[f32], out: *mut u8, to: DType) {
    let mut tile = vec![0.0; kernels.width];
    tile[..x.len()].copy_from_slice(x);
    let f = TileEpilogue {
        tile: tile.as_ptr(),
        tile_stride: kernels.width,
        gated: std::ptr::null(),
        gated_bias: std::ptr::null(),
        rows: 1,
        columns: x.len(),
        bias: std::ptr::null(),
        activation,
        factors: std::ptr::null(),
        out,
        out_stride: 0,
        to,
        accumulate: false,
    };
    // SAFETY: one row of a tile, and as many values of output.
    unsafe { kernels.finish(&f) };
}

#[test]
fn activations_for_bf16_are_as_exact_as_it_can_show() {
    let values: Vec<f32> = (-20_000..20_000).map(|i| i as f32 * 5e-4).chain([-80.0, 80.0, 1e30]).collect();
    for kernels in all() {
        for activation in ACTIVATIONS {
            for (&x, got) in values.iter().zip(activated_narrow(kernels, activation, &values)) {
                let exact = reference(activation, f64::from(x));
                // Half a unit of the last place, and a tenth of that; near zero, 4e-5.
                let allowed = (exact.abs() * 4.3e-3).max(4e-5);
                let error = (f64::from(got.to_f32()) - exact).abs();
                assert!(error <= allowed, "{kernels:?} {activation:?}({x}) = {got}, not {exact}");
            }
            assert!(activated_narrow(kernels, activation, &[f32::NAN])[0].is_nan());
        }
    }
}

#[test]
fn gelu_is_exact_to_the_last_places() {
    let values: Vec<f32> =
        (-1_000_000..1_000_000).map(|i| i as f32 * 1e-5).chain([-100.0, 100.0, 1e30]).collect();
    for kernels in all() {
        for (&x, got) in values.iter().zip(activated(kernels, Activation::Gelu, &values)) {
            let expected = reference(Activation::Gelu, f64::from(x));
            let error = (f64::from(got) - expected).abs();
            assert!(
                error < 1e-7 || ulps(got, expected) < 2.0,
                "{kernels:?} gelu({x}) = {got}, not {expected}"
            );
        }
        for activation in ACTIVATIONS {
            assert!(activated(kernels, activation, &[f32::NAN])[0].is_nan(), "{kernels:?} {activation:?}");
        }
    }
}

#[test]
fn tanh_gelu_is_close() {
    let values: Vec<f32> = (-10_000..10_000).map(|i| i as f32 * 1e-3).collect();
    for kernels in all() {
        for (&x, got) in values.iter().zip(activated(kernels, Activation::GeluTanh, &values)) {
            assert!(
                (f64::from(got) - reference(Activation::GeluTanh, f64::from(x))).abs()
                    < 5e-7 + 2e-7 * f64::from(x.abs())
            );
        }
    }
}

#[test]
fn exponentials_are_exact() {
    // Softmax above covers the registers of the other sets.
    for i in -86_999..88_000 {
        let x = i as f32 * 1e-3;
        let got = exp::<_, false>(Plain, [x; 4])[0];
        // The two roundings of a product and a sum show in the exponent.
        assert!(ulps(got, f64::from(x).exp()) < 2.0 + f64::from(x.abs()), "exp({x}) = {got}");
        let narrow = exp::<_, true>(Plain, [x; 4])[0];
        assert!((narrow / got - 1.0).abs() < 1.3e-4, "exp({x}) = {narrow} for bf16");
    }
    let s = Plain;
    for wrong in [exp::<Plain, false>, exp::<Plain, true>] {
        assert!(wrong(s, s.splat(f32::NAN))[0].is_nan());
        assert!(wrong(s, s.splat(f32::NEG_INFINITY))[0] < 2e-38);
    }
    assert_eq!(activate::<_, false>(s, Activation::Relu, s.splat(-1.0))[0], 0.0);
}

#[test]
fn bf16_rounds_as_the_reference_does() {
    let mut values = random(1000, 15);
    values.extend([
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::from_bits(0x7fff_ffff),
        f32::MAX,
    ]);
    values.extend([1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.0 - 1.0 / 256.0]);
    for kernels in all() {
        for (&x, got) in values.iter().zip(activated_narrow(kernels, Activation::Identity, &values)) {
            let expected = bf16::from_f32(x + 0.0);
            assert!(got == expected || (got.is_nan() && x.is_nan()), "{kernels:?} {x}: {got} for {expected}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn tiles_of_any_size_multiply(rows in 0_usize..=TALLEST_TILE, k in 0_usize..200, columns in 0_usize..=32, accumulate: bool) {
        for kernels in all() {
            for format in FORMATS {
                check_tile(kernels, format, rows.min(kernels.rows(format)), k, columns.min(kernels.width), accumulate);
            }
        }
    }
}
