//! Activations that grow with the square of a number, against plain references.

use super::activations::{activated, activated_narrow, reference};
use super::*;
use crate::compute::Xielu;

const SQUARES: [Activation; 3] = [
    Activation::ReluSquared,
    Activation::Xielu(Xielu { positive: 0.8, negative: 0.3, slope: 0.5, cut: -1e-6 }),
    Activation::Xielu(Xielu { positive: 0.1, negative: 2.5, slope: -0.25, cut: 0.0 }),
];

#[test]
fn squares_are_exact_in_both_formats() {
    let near = (-30..30).map(|i| i as f32 * 1e-7);
    let values: Vec<f32> = (-40_000..40_000)
        .map(|i| i as f32 * 1e-3)
        .chain(near)
        .chain([-1e-6, 1e-20, -1e-20, 1e-40, -80.0, -500.0, 1e15, -1e15])
        .collect();
    for kernels in all() {
        for activation in SQUARES {
            let (wide, narrow) =
                (activated(kernels, activation, &values), activated_narrow(kernels, activation, &values));
            for ((&x, wide), narrow) in values.iter().zip(wide).zip(narrow) {
                let exact = reference(activation, f64::from(x));
                // Where both sides of the sum are large, they cancel.
                let size = exact.abs() + 3.0 * f64::from(x).abs();
                let error = (f64::from(wide) - exact).abs();
                assert!(error <= 3e-7 * size + 1e-9, "{kernels:?} {activation:?}({x}) = {wide}, not {exact}");
                let error = (f64::from(narrow.to_f32()) - exact).abs();
                assert!(
                    error <= 4.3e-3 * size + 4e-5,
                    "{kernels:?} {activation:?}({x}) = {narrow}, not {exact}"
                );
            }
            assert_eq!(
                activated(kernels, activation, &[1e30]),
                [f32::INFINITY],
                "{kernels:?} {activation:?}"
            );
            assert!(activated(kernels, activation, &[f32::NAN])[0].is_nan(), "{kernels:?} {activation:?}");
            assert!(activated_narrow(kernels, activation, &[f32::NAN])[0].is_nan());
        }
    }
}
