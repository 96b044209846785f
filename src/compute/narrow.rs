//! Numbers as bf16.

/// The bits of `x` in bf16, rounded to the nearest, ties to even; as `half::bf16::from_f32`, but without branches, so that the
/// compiler converts several at once.
fn rounded(x: f32) -> u16 {
    let bits = x.to_bits();
    let finite = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { finite }) as u16
}

/// Converts as many values as both have.
pub(crate) fn to_bf16(from: &[f32], to: &mut [u16]) {
    to.iter_mut().zip(from).for_each(|(to, &x)| *to = rounded(x));
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn bf16_is_rounded_as_half_does() {
        for high in 0..=u32::from(u16::MAX) {
            let lows = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
            let from = lows.map(|low| f32::from_bits(high << 16 | low));
            let mut to = [0; 6];
            to_bf16(&from, &mut to);
            assert_eq!(to, from.map(|x| bf16::from_f32(x).to_bits()), "{high:x}");
        }
    }
}
