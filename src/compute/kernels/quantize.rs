//! Quantizes activations to eight bits: the left operand of products with quantized weights.
//!
//! A *quant* is the small integer that stands for a value: the value is about the quant times the scale of its group.

use crate::compute::isa::DType;
use crate::compute::simd::Simd;

/// Values that share a scale. Rows of quantized weights consist of whole groups.
pub(crate) const GROUP: usize = 32;

/// The quant of weight 0 in eight bits. A product with unsigned quants is too large by this times the sum of the
/// activations.
pub(crate) const ZERO: f32 = 128.0;

/// A row to quantize, and its output: whole groups, the last one padded with zeros.
#[derive(Debug)]
pub(crate) struct QuantizedRow<'a> {
    /// The values.
    pub x: *const u8,
    /// Their format.
    pub format: DType,
    /// Their number.
    pub length: usize,
    /// Quants: [`GROUP`] for each group.
    pub quants: &'a mut [i8],
    /// The scale of each group: a quant times its scale is about the value.
    pub scales: &'a mut [f32],
    /// The sums of the quants of each half group, if requested: two for each group.
    pub sums: Option<&'a mut [i32]>,
    /// For each group, the sum of its quants, times its scale, times -[`ZERO`].
    pub offsets: &'a mut [f32],
}

/// Quantizes a row. The largest magnitude of a group becomes 127, so the error is at most 1/254 of it. If a value is not
/// finite, the first scale of its row becomes NaN, so that the rounding does not hide it.
///
/// # Safety
///
/// - `row.x` is aligned for `row.format` and points to `row.length` readable values.
///
/// # Panics
///
/// If `row` has fewer scales, sums or offsets than groups.
#[inline(always)]
pub(crate) unsafe fn quantize<S: Simd>(s: S, row: &mut QuantizedRow<'_>) {
    let registers = GROUP / S::LANES;
    let zero = s.splat(0.0);
    let mut taint = zero;
    // The last group, if it is not whole.
    let mut padded = [0_u32; GROUP];
    let groups = row.quants.as_chunks_mut::<GROUP>().0.iter_mut().zip((0..row.length).step_by(GROUP));
    for (group, (quants, first)) in groups.enumerate() {
        let left = GROUP.min(row.length - first);
        // SAFETY: `first < row.length`, so the row has a value there.
        let x = unsafe { row.x.add(first * row.format.bytes()) };
        let x = if left == GROUP {
            x
        } else {
            let padded = padded.as_mut_ptr().cast::<u8>();
            // SAFETY: the row has `left` values from `first` on; `padded` has `GROUP * 4` bytes, and `left < GROUP` values
            // have at most 4 bytes each.
            unsafe { x.copy_to_nonoverlapping(padded, left * row.format.bytes()) };
            padded.cast_const()
        };
        // The narrowest registers have four lanes.
        let mut values = [zero; GROUP / 4];
        let mut largest = zero;
        for (i, value) in values.iter_mut().enumerate().take(registers) {
            // SAFETY: `x` is aligned and points to `GROUP` values, of the row or in `padded`; `registers` registers are
            // `GROUP` values.
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
        // Of zeros, and of numbers so small that they are zeros here, it is not finite.
        let inverse = Some(127.0 / most).filter(|inverse| inverse.is_finite());
        let inverse = s.splat(inverse.unwrap_or(0.0));
        let mut halves = [zero; 2];
        for (i, value) in values.iter().enumerate().take(registers) {
            let quant = s.round(s.mul(*value, inverse));
            let half = &mut halves[i * S::LANES / (GROUP / 2)];
            *half = s.add(*half, quant);
            // SAFETY: `quants` has `GROUP` bytes, which are `registers` registers of `LANES` bytes each.
            unsafe { s.store_bytes(quants.as_mut_ptr().add(i * S::LANES), quant) };
        }
        // The sums are exact: they are whole numbers below 2^24.
        row.scales[group] = scale;
        row.offsets[group] = -ZERO * scale * s.sum(s.add(halves[0], halves[1]));
        if let Some(sums) = &mut row.sums {
            let sums = &mut sums[group * 2..group * 2 + 2];
            sums.iter_mut().zip(halves).for_each(|(sum, half)| *sum = s.sum(half) as i32);
        }
    }
    if let (Some(scale), Some(offset)) = (row.scales.first_mut(), row.offsets.first_mut()) {
        let taint = s.sum(taint); // Zero or NaN.
        *scale += taint;
        *offset += taint;
    }
}
