//! Activations rounded to eight bits: the left operand of products with coded weights.

use crate::compute::isa::DType;
use crate::compute::simd::Simd;

/// Values that share a scale, and the least that a row of coded weights is cut into.
pub(crate) const GROUP: usize = 32;

/// The code of weight 0 in eight bits: products with codes are too large by so many times the sum of activations.
pub(crate) const ZERO: f32 = 128.0;

/// One row, and where its codes go: whole groups, the last padded with zeros.
#[derive(Debug)]
pub(crate) struct QuantizedRow<'a> {
    /// The values.
    pub x: *const u8,
    /// Their format.
    pub format: DType,
    /// Their number.
    pub length: usize,
    /// `GROUP` for each group.
    pub codes: &'a mut [i8],
    /// One for each group: a code times it is about the value.
    pub scales: &'a mut [f32],
    /// Two for each group, where they are wanted: the sums of the codes of its halves.
    pub sums: Option<&'a mut [i32]>,
    /// One for each group: the sum of its codes times its scale, times -[`ZERO`].
    pub offsets: &'a mut [f32],
}

/// A group's largest magnitude becomes 127, so the error is at most 1/254 of it. A number that is not finite makes the
/// first scale of its row NaN, so that it cannot vanish in the rounding.
///
/// # Safety
/// `length` values can be read.
#[inline(always)]
pub(crate) unsafe fn quantize<S: Simd>(s: S, row: &mut QuantizedRow<'_>) {
    let registers = GROUP / S::LANES;
    let zero = s.splat(0.0);
    let mut taint = zero;
    // For the last group, where it is not a whole one.
    let mut padded = [0_u32; GROUP];
    let groups = row.codes.as_chunks_mut::<GROUP>().0.iter_mut().zip((0..row.length).step_by(GROUP));
    for (group, (codes, first)) in groups.enumerate() {
        let left = GROUP.min(row.length - first);
        // SAFETY: the caller's: the row holds so many values from `first` on.
        let x = unsafe { row.x.add(first * row.format.bytes()) };
        let x = if left == GROUP {
            x
        } else {
            let padded = padded.as_mut_ptr().cast::<u8>();
            // SAFETY: as above; they fit, whatever their format.
            unsafe { x.copy_to_nonoverlapping(padded, left * row.format.bytes()) };
            padded.cast_const()
        };
        // The narrowest registers hold four lanes.
        let mut values = [zero; GROUP / 4];
        let mut largest = zero;
        for (i, value) in values.iter_mut().enumerate().take(registers) {
            // SAFETY: a group is `registers` registers.
            *value = unsafe {
                match row.format {
                    DType::F32 => s.load(x.cast::<f32>().add(i * S::LANES)),
                    DType::Bf16 => s.load_bf16(x.cast::<u16>().add(i * S::LANES)),
                }
            };
            largest = s.max(largest, s.max(*value, s.sub(zero, *value)));
            taint = s.mul_add(*value, zero, taint);
        }
        let most = s.largest(largest);
        let scale = most / 127.0;
        let inverse = s.splat(if most > 0.0 { 127.0 / most } else { 0.0 });
        let mut halves = [zero; 2];
        for (i, value) in values.iter().enumerate().take(registers) {
            let code = s.round(s.mul(*value, inverse));
            let half = &mut halves[i * S::LANES / (GROUP / 2)];
            *half = s.add(*half, code);
            // SAFETY: a group's codes are `registers` registers.
            unsafe { s.store_bytes(codes.as_mut_ptr().add(i * S::LANES), code) };
        }
        // Whole numbers below 2^24: their sums are exact.
        row.scales[group] = scale;
        row.offsets[group] = -ZERO * scale * s.sum(s.add(halves[0], halves[1]));
        if let Some(sums) = &mut row.sums {
            let sums = &mut sums[group * 2..group * 2 + 2];
            sums.iter_mut().zip(halves).for_each(|(sum, half)| *sum = s.sum(half) as i32);
        }
    }
    if let (Some(scale), Some(offset)) = (row.scales.first_mut(), row.offsets.first_mut()) {
        let taint = s.sum(taint); // zero, or NaN
        *scale += taint;
        *offset += taint;
    }
}
