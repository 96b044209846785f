//! Online softmax.

use super::*;
use crate::compute::kernels::softmax::{Running, Softmax};

#[test]
fn softmax_in_blocks_is_softmax() {
    const ROWS: usize = 3;
    for kernels in all() {
        // The number of keys in each of two blocks, and the attention mask of the second.
        for (keys, visible, step) in (0..40).map(|n: usize| (n, 0..n as isize, 0)).chain([
            (40, isize::MIN..7, 1),
            (16, -50..-1, 1),
            (33, -1..32, 1),
            (256, isize::MIN..isize::MAX, 1),
            (40, 3..4, 1),
            (40, 9..31, 0),
            (40, 38..50, 1),
            (70, 13..isize::MAX, 1),
        ]) {
            let stride = keys.next_multiple_of(2) + 3;
            let scores: Vec<_> = (0..2).map(|block| random(ROWS * stride, 13 + block)).collect();
            let (mut running, mut factors) = ([Running::default(); ROWS], [0.0; ROWS]);
            let mut sums = vec![Vec::new(); ROWS];
            let end = ROWS * stride - 3;
            for (block, (visible, step)) in
                scores.iter().zip([(0..keys as isize, 0), (visible.clone(), step)])
            {
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
                        visible: visible.clone(),
                        step,
                        scale,
                        running,
                        factors,
                    });
                }
                for row in 0..ROWS {
                    let limit =
                        |key: isize| key.saturating_add(row as isize * step).clamp(0, keys as isize) as usize;
                    let valid = limit(visible.start)..limit(visible.end);
                    let part = row * stride..row * stride + keys.next_multiple_of(2);
                    let (p, narrow) = (&x[part.clone()], &narrow[part]);
                    // Half a unit in the last place of bf16, plus the error of the shorter polynomial.
                    let close = |p: f32, narrow| (bf16::from_bits(narrow).to_f32() - p).abs() <= p * 4.1e-3;
                    assert!(p.iter().zip(narrow).all(|(&p, &narrow)| close(p, narrow)), "{kernels:?} {keys}");
                    let hidden = p[..valid.start].iter().chain(&p[valid.end.max(valid.start)..]);
                    assert!(hidden.into_iter().all(|&p| p == 0.0), "{kernels:?} {keys} {visible:?}");
                    sums[row].iter_mut().for_each(|(p, _): &mut (f64, f64)| *p *= f64::from(factors[row]));
                    let score = |i: usize| 9.0 * f64::from(block[row * stride + i]);
                    sums[row].extend(valid.map(|i| (f64::from(p[i]), score(i))));
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
                visible: 0..40,
                step: 0,
                scale: 1.0,
                running: &mut running,
                factors: &mut [0.0],
            });
            assert!(running[0].sum.is_nan(), "{kernels:?} hides a NaN");
        }
    }
}

#[test]
fn scores_are_limited_and_biased() {
    for kernels in all() {
        for n in (0..40).chain([255]) {
            let (x, bias) = (random(n, 17), random(n, 18));
            for (cap, biased) in [(None, true), (Some(3.0), false), (Some(0.02), true)] {
                let mut scores = Guarded::new(&x);
                let bias = Guarded::new(if biased { &bias[..] } else { &[] });
                kernels.adjust_scores(&mut scores, 0.7, cap, &bias);
                for (i, (got, x)) in scores.iter().zip(&x).enumerate() {
                    let y = 0.7 * f64::from(*x);
                    let y = cap.map_or(y, |cap| f64::from(cap) * (y / f64::from(cap)).tanh());
                    let y = y + if biased { f64::from(bias[i]) } else { 0.0 };
                    assert!(
                        (f64::from(*got) - y).abs() <= 3e-7 * (1.0 + y.abs()),
                        "{kernels:?} {n} {cap:?} {i}"
                    );
                }
            }
        }
        for x in [1e-30_f32, 1e-4, 0.3, 9.0, 40.0, 1e30, f32::INFINITY] {
            let mut scores = [x, -x];
            kernels.adjust_scores(&mut scores, 1.0, Some(1.0), &[]);
            let exact = f64::from(x).tanh();
            let close = |got: f32, exact: f64| (f64::from(got) - exact).abs() <= exact.abs() * 6e-7;
            assert!(close(scores[0], exact) && close(scores[1], -exact), "{kernels:?} {x}: {scores:?}");
        }
        let mut scores = [f32::NAN; 3];
        kernels.adjust_scores(&mut scores, 1.0, Some(1.0), &[]);
        assert!(scores.iter().all(|x| x.is_nan()), "{kernels:?} hides a NaN");
    }
}
