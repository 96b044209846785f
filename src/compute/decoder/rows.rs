//! What a decoder does to a row between products: RMS normalisation, rotary positions, gated activations.

use super::activations::split;
use super::linear::Machine;
use crate::Result;
use crate::compute::kernels::math::{exp, gelu_tanh};
use crate::compute::kernels::simd::{Plain, Simd};
use crate::compute::{Activation, Threads};

/// How a rotary embedding pairs the numbers of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `i` with `i + width / 2`: transformers, and GGUF files of Qwen.
    Halves,
    /// `2 i` with `2 i + 1`: GGUF files of Llama, whose matrices are permuted to suit.
    Neighbours,
}

/// Rotary positions: `θᵢ = frequencies[i] · position`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// One for each pair.
    pub frequencies: Vec<f32>,
    /// Which numbers form a pair.
    pub pairing: Pairing,
}

impl Rotary {
    /// The usual frequencies, `base^(-2i / width)`, for the first `width` numbers of a head.
    pub fn new(base: f32, width: usize, pairing: Pairing) -> Self {
        let frequencies = (0..width / 2).map(|i| 1.0 / base.powf((2 * i) as f32 / width as f32)).collect();
        Self { frequencies, pairing }
    }

    /// Cosines, then sines, of one position.
    pub(crate) fn angles(&self, position: usize, out: &mut [f32]) {
        let (cosines, sines) = out.split_at_mut(self.frequencies.len());
        for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&self.frequencies) {
            (*sine, *cosine) = (frequency * position as f32).sin_cos();
        }
    }

    /// Turns one head by `angles`.
    pub(crate) fn turn(&self, angles: &[f32], head: &mut [f32]) {
        let pairs = self.frequencies.len();
        let (cosines, sines) = angles.split_at(pairs);
        let place = |i: usize| match self.pairing {
            Pairing::Halves => (i, i + pairs),
            Pairing::Neighbours => (2 * i, 2 * i + 1),
        };
        for i in 0..pairs {
            let (first, second) = place(i);
            let (x, y) = (head[first], head[second]);
            head[first] = x * cosines[i] - y * sines[i];
            head[second] = y * cosines[i] + x * sines[i];
        }
    }
}

/// `x / √(mean(x²) + epsilon) · scale`. Sums run over eight lanes, in f32.
pub(crate) fn rms_norm(x: &[f32], scale: &[f32], epsilon: f32, out: &mut [f32]) {
    let inverse = inverse_rms(x, epsilon);
    for ((out, x), scale) in out.iter_mut().zip(x).zip(scale) {
        *out = x * inverse * scale;
    }
}

/// As [`rms_norm`], in place.
pub(crate) fn rms_norm_in_place(x: &mut [f32], scale: &[f32], epsilon: f32) {
    let inverse = inverse_rms(x, epsilon);
    for (x, scale) in x.iter_mut().zip(scale) {
        *x = *x * inverse * scale;
    }
}

fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    let sum = sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
    1.0 / (sum / x.len() as f32 + epsilon).sqrt()
}

/// How the two halves of a gated layer meet, or one wide row is bent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bend {
    /// `silu(gate) · up`, from rows of gate and up side by side.
    SwiGlu,
    /// An activation alone.
    Plain(Activation),
}

/// Applies `bend` to rows of `columns` numbers; rows of `out` are half as long for a gate.
pub(crate) fn bend(
    machine: &Machine,
    threads: &Threads,
    bend: Bend,
    x: &[f32],
    columns: usize,
    out: &mut [f32],
) -> Result<()> {
    let isa = machine.kernels.isa();
    let out_columns = if bend == Bend::SwiGlu { columns / 2 } else { columns };
    split(threads, x, columns, out, out_columns, |x, out| {
        #[cfg(target_arch = "x86_64")]
        {
            use crate::compute::Isa;
            if isa >= Isa::Avx512 {
                // SAFETY: the machine's kernels exist only where the CPU has their instructions.
                return unsafe { x86::bend_avx512(bend, x, out) };
            }
            if isa >= Isa::Avx2 {
                // SAFETY: as above.
                return unsafe { x86::bend_avx2(bend, x, out) };
            }
        }
        let _ = isa;
        // SAFETY: arrays need no instructions.
        bend_row(unsafe { Plain::permit() }, bend, x, out);
    })
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Bend, Simd, bend_row};
    use crate::compute::kernels::x86::{Avx2, Avx512};

    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ, VL.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn bend_avx512(bend: Bend, x: &[f32], out: &mut [f32]) {
        // SAFETY: the caller's.
        bend_row(unsafe { Avx512::<false>::permit() }, bend, x, out);
    }

    /// # Safety
    /// The CPU has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn bend_avx2(bend: Bend, x: &[f32], out: &mut [f32]) {
        // SAFETY: the caller's.
        bend_row(unsafe { Avx2::permit() }, bend, x, out);
    }
}

#[inline(always)]
fn bend_row<S: Simd>(s: S, bend: Bend, x: &[f32], out: &mut [f32]) {
    let n = out.len();
    let gated = bend == Bend::SwiGlu;
    assert_eq!(x.len(), if gated { 2 * n } else { n }, "row of an activation");
    let (from, to) = (x.as_ptr(), out.as_mut_ptr());
    for i in (0..n).step_by(S::LANES) {
        let m = S::LANES.min(n - i);
        // SAFETY: `i + m <= n`, and a gated row is twice as long.
        unsafe {
            let x = s.load_first(from.add(i), m);
            let y = match bend {
                Bend::SwiGlu => {
                    let up = s.load_first(from.add(n + i), m);
                    let one = s.splat(1.0);
                    let below = s.add(one, exp(s, s.sub(s.splat(0.0), x)));
                    s.mul(s.div(x, below), up)
                }
                Bend::Plain(Activation::GeluTanh) => gelu_tanh(s, x),
                Bend::Plain(activation) => crate::compute::kernels::math::activate(s, activation, x),
            };
            s.store_first(to.add(i), y, m);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Isa;

    #[test]
    fn bends_follow_their_formulas() {
        for isa in Isa::available() {
            let machine = Machine::new(isa);
            for n in [1, 7, 16, 50] {
                let x: Vec<f32> = (0..6 * n).map(|i| (i as f32 * 0.77).sin() * 8.0).collect();
                let mut out = vec![0.0; 3 * n];
                bend(&machine, &Threads::global(), Bend::SwiGlu, &x, 2 * n, &mut out).unwrap();
                for (row, (x, out)) in x.chunks(2 * n).zip(out.chunks(n)).enumerate() {
                    for i in 0..n {
                        let gate = f64::from(x[i]);
                        let exact = gate / (1.0 + (-gate).exp()) * f64::from(x[n + i]);
                        assert!((f64::from(out[i]) - exact).abs() <= 1e-5, "{isa} {n} {row} {i}");
                    }
                }
                let mut out = vec![0.0; 6 * n];
                let gelu = Bend::Plain(Activation::GeluTanh);
                bend(&machine, &Threads::global(), gelu, &x, 2 * n, &mut out).unwrap();
                for (x, out) in x.iter().zip(&out) {
                    let x = f64::from(*x);
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                    assert!((f64::from(*out) - 0.5 * x * (1.0 + inner.tanh())).abs() <= 2e-6);
                }
            }
        }
    }

    #[test]
    fn rms_norm_follows_its_formula() {
        let x: Vec<f32> = (0..37).map(|i| i as f32 * 0.1 - 1.0).collect();
        let scale: Vec<f32> = (0..37).map(|i| 1.0 + i as f32 * 0.01).collect();
        let mut out = vec![0.0; 37];
        rms_norm(&x, &scale, 1e-5, &mut out);
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 37.0;
        for i in 0..37 {
            let exact = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(scale[i]);
            assert!((f64::from(out[i]) - exact).abs() < 1e-6);
        }
        let mut again = x;
        rms_norm_in_place(&mut again, &scale, 1e-5);
        assert_eq!(again, out);
    }

    #[test]
    fn turning_keeps_lengths_and_adds_up() {
        for pairing in [Pairing::Halves, Pairing::Neighbours] {
            let rotary = Rotary::new(10_000.0, 8, pairing);
            let head: Vec<f32> = (0..8).map(|i| i as f32 - 3.0).collect();
            let turned = |head: &[f32], position| {
                let (mut angles, mut head) = (vec![0.0; 8], head.to_vec());
                rotary.angles(position, &mut angles);
                rotary.turn(&angles, &mut head);
                head
            };
            assert_eq!(turned(&head, 0), head);
            let (once, twice) = (turned(&head, 12), turned(&turned(&head, 5), 7));
            assert!(once.iter().zip(&twice).all(|(a, b)| (a - b).abs() < 1e-5));
            let partner = if pairing == Pairing::Halves { 4 } else { 1 };
            let expected = head[0] * 12f32.cos() - head[partner] * 12f32.sin();
            assert!((once[0] - expected).abs() < 1e-5);
        }
    }
}
