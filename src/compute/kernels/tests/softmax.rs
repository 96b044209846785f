//! Online softmax.

use super::*;
use crate::compute::kernels::rowwise::{Running, Softmax};

#[test]
fn softmax_in_blocks_is_softmax() {
    const ROWS: usize = 3;
    for kernels in all() {
        // The number of keys in each of two blocks, and the attention mask of the second.
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
                    // Half a unit in the last place of bf16, plus the error of the shorter polynomial.
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
