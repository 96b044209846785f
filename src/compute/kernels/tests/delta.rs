//! Steps of a delta rule, and gates.

use super::*;
use crate::compute::kernels::delta::{BLOCK, DeltaStep, stride_of};

#[test]
fn steps_are_those_of_the_definition() {
    for kernels in all() {
        for (keys, columns) in
            [(1, 1), (2, 4), (3, 5), (8, 15), (7, 16), (16, 17), (5, 33), (20, 48), (9, 63), (128, BLOCK)]
        {
            let (stride, steps) = (stride_of(columns), 5);
            let mut state = vec![0.0; keys * stride];
            let mut exact = vec![0.0_f64; keys * columns];
            for step in 0..steps {
                let [key, query] = [1, 2].map(|seed| Guarded::new(&random(keys, seed + 10 * step)));
                let value = Guarded::new(&random(columns, 3 + 10 * step));
                let (kept, stored) = (0.9 - 0.1 * step as f32, 0.3 + 0.1 * step as f32);
                let (mut whole, mut out) = (Guarded::new(&state), Guarded::new(&vec![f32::NAN; columns]));
                kernels.delta_step(&mut DeltaStep {
                    state: &mut whole,
                    query: &query,
                    key: &key,
                    value: &value,
                    kept,
                    stored,
                    out: &mut out,
                });
                state.copy_from_slice(&whole);
                for column in 0..columns {
                    let of = |row: usize| row * columns + column;
                    let mut known = 0.0;
                    for (row, key) in key.iter().enumerate() {
                        exact[of(row)] *= f64::from(kept);
                        known += exact[of(row)] * f64::from(*key);
                    }
                    let change = f64::from(stored) * (f64::from(value[column]) - known);
                    let mut sum = 0.0;
                    for row in 0..keys {
                        exact[of(row)] += f64::from(key[row]) * change;
                        sum += exact[of(row)] * f64::from(query[row]);
                        let error = (f64::from(state[row * stride + column]) - exact[of(row)]).abs();
                        assert!(error < 2e-4, "{kernels:?} {keys} {columns}: {error}");
                    }
                    let error = (f64::from(out[column]) - sum).abs();
                    assert!(error < 1e-3 * (1.0 + sum.abs()), "{kernels:?} {keys} {columns}: {error}");
                }
                for row in state.chunks(stride) {
                    assert!(row[columns..].iter().all(|&x| x == 0.0), "{kernels:?}: padding is not zero");
                }
            }
        }
    }
}

#[test]
fn gates_multiply_by_their_sigmoid() {
    for kernels in all() {
        for n in (0..40).chain([255]) {
            let (x, gates) = (random(n, 5), random(n, 6));
            let (mut found, by) = (Guarded::new(&x), gates.iter().map(|x| 20.0 * x).collect::<Vec<_>>());
            kernels.multiply_sigmoid(&mut found, &Guarded::new(&by));
            for ((found, x), gate) in found.iter().zip(&x).zip(&by) {
                let expected = f64::from(*x) / (1.0 + (-f64::from(*gate)).exp());
                let error = (f64::from(*found) - expected).abs();
                assert!(error <= 3e-6 * expected.abs() + 1e-12, "{kernels:?} {n}: {error}");
            }
        }
        for gate in [f32::NEG_INFINITY, -1000.0, -90.0, 90.0, 1000.0, f32::INFINITY] {
            let mut found = [2.0];
            kernels.multiply_sigmoid(&mut found, &[gate]);
            assert!((found[0] - if gate > 0.0 { 2.0 } else { 0.0 }).abs() < 1e-30, "{kernels:?} {gate}");
        }
        let (mut nan, mut other) = ([f32::NAN], [1.0]);
        kernels.multiply_sigmoid(&mut nan, &[0.0]);
        kernels.multiply_sigmoid(&mut other, &[f32::NAN]);
        assert!(nan[0].is_nan() && other[0].is_nan(), "{kernels:?} hides a NaN");
    }
}
