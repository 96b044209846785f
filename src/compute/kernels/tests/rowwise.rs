//! Normalization and rotary position embedding of rows.

use super::*;
use crate::compute::kernels::rowwise::{RmsRow, RopeRow};

#[test]
fn layer_norm_of_any_length() {
    for kernels in all() {
        for n in (1..70).chain([384, 1000]) {
            // The naive formula of the variance loses all digits with a mean far from zero.
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
fn rope_normalizes_and_rotates_heads() {
    for kernels in all() {
        for (format, allowed) in [(DType::F32, 1e-5), (DType::Bf16, 2e-2)] {
            for (width, pairs) in [(2, 1), (12, 6), (64, 32), (80, 20), (128, 64)] {
                // Without norms, with RMS norms of each head, with one of all query heads and one of all key heads; with layer
                // norms of each head with the same parameters, and with parameters for each.
                let cases = [
                    (false, 1),
                    (true, 1),
                    (false, 0),
                    (false, 2),
                    (true, 2),
                    (false, 3),
                    (true, 4),
                    (false, 4),
                ];
                for (interleaved, norms) in cases {
                    let (queries, heads, query_factor) = (3, 5, if norms == 1 { 1.0 } else { 1.5 });
                    let (mut row, before) = operand(format, &random(heads * width, 20));
                    let long = [2, 4].contains(&norms);
                    let normed = if long { [queries, heads - queries] } else { [1, 1] };
                    let scales = [random(normed[0] * width, 21), random(normed[1] * width, 22)];
                    let scales = scales.map(|scale| Guarded::new(&scale));
                    let shifts = [random(normed[0] * width, 24), random(normed[1] * width, 25)];
                    let shifts = shifts.map(|shift| Guarded::new(&shift));
                    let rotations: Vec<f32> = random(pairs, 23);
                    let angles: Vec<f32> =
                        rotations.iter().map(|x| x.cos()).chain(rotations.iter().map(|x| x.sin())).collect();
                    let angles = Guarded::new(&angles);
                    let rope = RopeRow {
                        row: row.as_mut_ptr(),
                        format,
                        heads,
                        queries,
                        width,
                        norms: (norms > 0).then_some((&scales[0], &scales[1], 1e-6)),
                        shifts: (norms > 2).then_some((&shifts[0], &shifts[1])),
                        angles: &angles,
                        query_factor,
                        interleaved,
                    };
                    // SAFETY: `row` has `heads * width` values in `format`, is aligned for it, and is not accessed
                    // elsewhere.
                    unsafe { kernels.apply_rope(&rope) };
                    for head in 0..heads {
                        let mut x = before[head * width..][..width].to_vec();
                        let part = usize::from(head >= queries);
                        if norms > 2 {
                            let mean = x.iter().sum::<f64>() / width as f64;
                            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                            let at = if long { (head - part * queries) * width } else { 0 };
                            let parameters = scales[part][at..].iter().zip(&shifts[part][at..]);
                            for (x, (scale, shift)) in x.iter_mut().zip(parameters) {
                                let normed = (*x - mean) / (variance + 1e-6).sqrt();
                                *x = normed * f64::from(*scale) + f64::from(*shift);
                            }
                        } else if norms > 0 {
                            let first = if norms == 1 { head } else { part * queries };
                            let all = &before[first * width..][..normed[part] * width];
                            let mean = all.iter().map(|x| x * x).sum::<f64>() / all.len() as f64;
                            for (x, scale) in x.iter_mut().zip(&scales[part][(head - first) * width..]) {
                                *x = *x / (mean + 1e-6).sqrt() * f64::from(*scale);
                            }
                        }
                        for (pair, angle) in rotations.iter().enumerate() {
                            let (i, j) =
                                if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + pairs) };
                            let (sine, cosine) = f64::from(*angle).sin_cos();
                            (x[i], x[j]) = (x[i] * cosine - x[j] * sine, x[j] * cosine + x[i] * sine);
                        }
                        let factor = if head < queries { f64::from(query_factor) } else { 1.0 };
                        for (i, x) in x.into_iter().map(|x| x * factor).enumerate() {
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
            // SAFETY: `x`, `scale` and `narrow` have `n` values each and do not overlap.
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
