//! Numbers as bf16 and as f16.

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

/// The bits of `x` in f16, rounded to the nearest, ties to even; as `half::f16::from_f32`, but without branches. Of a number of
/// 65520 or more, or of one that is not finite, they are unspecified.
#[inline(always)]
pub(crate) fn f16_bits(x: f32) -> u16 {
    /// The least normal f16, and how much larger the exponent of an f32 is than that of an f16.
    const NORMAL: u32 = (127 - 14) << 23;
    const BIAS: u32 = (127 - 15) << 23;
    let bits = x.to_bits() & !(1 << 31);
    let normal = bits.wrapping_sub(BIAS).wrapping_add(0xfff + ((bits >> 13) & 1)) >> 13;
    // Numbers from one half on are as far apart in f32 as subnormal ones in f16, so the addition rounds.
    let subnormal = (f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let sign = x.to_bits() >> 16 & 0x8000;
    (sign | if bits < NORMAL { subnormal } else { normal }) as u16
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

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

    #[test]
    fn f16_is_rounded_as_half_does() {
        for high in 0..=u32::from(u16::MAX) {
            for low in [0, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000, 0x7fff, 0x8000, 0xffff] {
                let x = f32::from_bits(high << 16 | low);
                if x.abs() < 65520.0 {
                    assert_eq!(f16_bits(x), f16::from_f32(x).to_bits(), "{x:e}");
                }
            }
        }
    }
}
