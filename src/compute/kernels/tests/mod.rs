//! Every kernel of every instruction set of this machine, against plain references in f64, at sizes around the tile
//! edges. All operands end right before an inaccessible page.

use half::bf16;

use super::{Kernels, TALLEST_TILE, units};
use crate::compute::guarded::Guarded;
use crate::compute::{Activation, DType, Isa};

mod activations;
mod delta;
mod epilogue;
mod pack;
mod quantize;
mod rowwise;
mod scaled;
mod softmax;
mod squares;
mod tiles;

const FORMATS: [DType; 2] = [DType::F32, DType::Bf16];
const ACTIVATIONS: [Activation; 6] = [
    Activation::Identity,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Silu,
    Activation::Tanh,
];

fn all() -> impl Iterator<Item = &'static Kernels> {
    Isa::available().map(Kernels::of).chain([Kernels::wide()])
}

/// Pseudorandom numbers in -1..1.
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

/// Values as an operand in `format`: the bytes, and the values after rounding to the format.
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
