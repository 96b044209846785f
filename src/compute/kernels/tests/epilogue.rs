//! Epilogues of tiles.

use super::activations::reference;
use super::*;
use crate::compute::kernels::rowwise::{StoreMode, TileEpilogue};

#[test]
fn epilogues_compute_every_combination() {
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
                            store: if accumulate { StoreMode::AddF32 } else { to.into() },
                        };
                        // SAFETY: `tile` and `gate` have `rows` rows of `width` values, which is whole registers. The
                        // biases have `columns` values, `factors` has `rows`, and `out` has `rows` rows of `columns`
                        // initialized values in the format `to`; pointers of other cases are null.
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
