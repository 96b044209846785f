//! The block formats of ggml with one to three bits a weight: IQ1, IQ2 and IQ3, whose codes name vectors of a grid, and TQ1_0
//! and TQ2_0, whose weights are -1, 0 or 1 times a scale.
//!
//! The layouts are those of ggml (`ggml-common.h`). `grids.bin` has the vectors, which are a part of the formats:
//! `tests/make_fixtures.py gguf_grids` writes it.

use half::f16;

use crate::compute::kernels::quantize::GROUP;

/// All grids, one after the other.
static GRIDS: &[u8; 9216] = include_bytes!("grids.bin");

/// Vectors of `N` numbers. Each number is a code of `8 * BYTES / N` bits for one of `numbers`.
struct Grid<const N: usize> {
    /// Where it begins in [`GRIDS`].
    start: usize,
    numbers: &'static [i8],
}

const IQ2_NUMBERS: &[i8] = &[8, 25, 43];
const IQ2_XXS: Grid<8> = Grid { start: 0, numbers: IQ2_NUMBERS };
const IQ2_XS: Grid<8> = Grid { start: 512, numbers: IQ2_NUMBERS };
const IQ2_S: Grid<8> = Grid { start: 1536, numbers: IQ2_NUMBERS };
const IQ3_XXS: Grid<4> = Grid { start: 3584, numbers: &[4, 12, 20, 28, 36, 44, 52, 62] };
const IQ3_S: Grid<4> = Grid { start: 4096, numbers: &[1, 3, 5, 7, 9, 11, 13, 15] };
/// Eight times the numbers of the format, to which an eighth is added.
const IQ1: Grid<8> = Grid { start: 5120, numbers: &[-8, 0, 8] };

impl<const N: usize> Grid<N> {
    /// Vector `index`.
    fn at(&self, index: usize) -> [i8; N] {
        // Eight codes of two bits, or four of four.
        let codes = [0, 1].map(|byte| GRIDS[self.start + 2 * index + byte]);
        let bits = 16 / N;
        std::array::from_fn(|i| {
            let code = codes[i * bits / 8] >> (i * bits % 8) & ((1 << bits) - 1);
            self.numbers[code as usize]
        })
    }
}

/// A number as a quant of eight bits, whose zero is 128.
fn centered(number: i8) -> u8 {
    number.cast_unsigned() ^ 0x80
}

/// The signs of eight numbers. Seven are stored; an even number of all is negative.
fn signs_of(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

/// The group of four vectors of eight, or of eight vectors of four, with the signs of each eight.
fn signed<const N: usize>(vectors: impl Fn(usize) -> [i8; N], signs: impl Fn(usize) -> u8) -> [u8; GROUP] {
    let mut quants = [0; GROUP];
    for (index, quants) in quants.chunks_exact_mut(N).enumerate() {
        let signs = signs(index * N / 8) >> (index * N % 8);
        for (i, (quant, number)) in quants.iter_mut().zip(vectors(index)).enumerate() {
            *quant = centered(if signs >> i & 1 == 1 { -number } else { number });
        }
    }
    quants
}

/// 32 weights: `scales[i / 16] * (quants[i] - zero)`, where the zero of quants is that of their format in memory.
pub(super) struct LowGroup {
    pub quants: [u8; GROUP],
    pub scales: [f32; 2],
}

/// Two bytes of a block.
fn two(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Four bytes of a block.
fn four(block: &[u8], at: usize) -> u32 {
    u32::from(two(block, at)) | u32::from(two(block, at + 2)) << 16
}

/// A number in float16.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_bits(two(block, at)).to_f32()
}

/// Four bits of a byte.
fn nibble(byte: u8, index: usize) -> f32 {
    f32::from(byte >> (4 * index) & 15)
}

/// Group `part` of a block of 256 weights; so are the following functions.
pub(super) fn iq2_xxs(block: &[u8], part: usize) -> LowGroup {
    let (codes, rest) = (&block[2 + 8 * part..][..4], four(block, 6 + 8 * part));
    let scale = half(block, 0) * (0.5 + (rest >> 28) as f32) * 0.25;
    let quants = signed(|i| IQ2_XXS.at(codes[i].into()), |i| signs_of(rest >> (7 * i)));
    LowGroup { quants, scales: [scale; 2] }
}

pub(super) fn iq2_xs(block: &[u8], part: usize) -> LowGroup {
    let code = |i: usize| two(block, 2 + 8 * part + 2 * i);
    let scale = |index| half(block, 0) * (0.5 + nibble(block[66 + part], index)) * 0.25;
    let quants = signed(|i| IQ2_XS.at((code(i) & 511).into()), |i| signs_of(u32::from(code(i)) >> 9));
    LowGroup { quants, scales: [0, 1].map(scale) }
}

pub(super) fn iq2_s(block: &[u8], part: usize) -> LowGroup {
    let high = block[66 + part];
    let code = |i: usize| usize::from(block[2 + 4 * part + i]) | usize::from(high >> (2 * i) & 3) << 8;
    let scale = |index| half(block, 0) * (0.5 + nibble(block[74 + part], index)) * 0.25;
    let quants = signed(|i| IQ2_S.at(code(i)), |i| block[34 + 4 * part + i]);
    LowGroup { quants, scales: [0, 1].map(scale) }
}

pub(super) fn iq3_xxs(block: &[u8], part: usize) -> LowGroup {
    let rest = four(block, 66 + 4 * part);
    let scale = half(block, 0) * (0.5 + (rest >> 28) as f32) * 0.5;
    let code = |i: usize| block[2 + 8 * part + i].into();
    let quants = signed(|i| IQ3_XXS.at(code(i)), |i| signs_of(rest >> (7 * i)));
    LowGroup { quants, scales: [scale; 2] }
}

pub(super) fn iq3_s(block: &[u8], part: usize) -> LowGroup {
    let high = block[66 + part];
    let code = |i: usize| usize::from(block[2 + 8 * part + i]) | usize::from(high >> i & 1) << 8;
    let scale = half(block, 0) * (1.0 + 2.0 * nibble(block[106 + part / 2], part % 2));
    let quants = signed(|i| IQ3_S.at(code(i)), |i| block[74 + 4 * part + i]);
    LowGroup { quants, scales: [scale; 2] }
}

pub(super) fn iq1_s(block: &[u8], part: usize) -> LowGroup {
    let rest = usize::from(two(block, 34 + 2 * part));
    let code = |i: usize| usize::from(block[2 + 4 * part + i]) | (rest >> (3 * i) & 7) << 8;
    let scale = half(block, 0) * (2 * (rest >> 12 & 7) + 1) as f32 / 8.0;
    LowGroup { quants: shifted(code, |_| rest >> 15 == 1), scales: [scale; 2] }
}

pub(super) fn iq1_m(block: &[u8], part: usize) -> LowGroup {
    // The highest four bits of four numbers are a scale in float16, the others twelve scales of three bits.
    let scales = [0, 1, 2, 3].map(|i| two(block, 48 + 2 * i));
    let whole: u16 = (0..4).map(|i| scales[i] >> 12 << (4 * i)).sum();
    let scale = |index: usize| {
        let own = scales[part / 2] >> (3 * (part % 2 * 2 + index)) & 7;
        f16::from_bits(whole).to_f32() * f32::from(2 * own + 1) / 8.0
    };
    let high = |i: usize| usize::from(block[32 + 2 * part + i / 2] >> (4 * (i % 2)) & 15);
    let code = |i: usize| usize::from(block[4 * part + i]) | (high(i) & 7) << 8;
    LowGroup { quants: shifted(code, |i| high(i) & 8 != 0), scales: [0, 1].map(scale) }
}

pub(super) fn tq1_0(block: &[u8], part: usize) -> LowGroup {
    // Five weights are a byte, as the digits after the point of a number in base three.
    let trit = |i: usize| {
        let (byte, power) = match 32 * part + i {
            at @ 0..160 => (block[at % 32], at / 32),
            at @ 160..240 => (block[32 + (at - 160) % 16], (at - 160) / 16),
            at => (block[48 + (at - 240) % 4], (at - 240) / 4),
        };
        let rest = byte.wrapping_mul([1, 3, 9, 27, 81][power]);
        ((u16::from(rest) * 3) >> 8) as u8
    };
    trits(trit, half(block, 52))
}

pub(super) fn tq2_0(block: &[u8], part: usize) -> LowGroup {
    trits(|i| block[part / 4 * 32 + i] >> (2 * (part % 4)) & 3, half(block, 64))
}

/// Vectors of IQ1. An eighth is taken from the numbers of those that `shift` names, and added to the others.
fn shifted(code: impl Fn(usize) -> usize, shift: impl Fn(usize) -> bool) -> [u8; GROUP] {
    let vector = |i: usize| IQ1.at(code(i)).map(|number| if shift(i) { number - 1 } else { number + 1 });
    signed(vector, |_| 0)
}

/// Weights of which 0, 1 and 2 stand for -1, 0 and 1, as quants of four bits, whose zero is 8.
fn trits(weight: impl Fn(usize) -> u8, scale: f32) -> LowGroup {
    LowGroup { quants: std::array::from_fn(|i| weight(i) + 7), scales: [scale; 2] }
}
