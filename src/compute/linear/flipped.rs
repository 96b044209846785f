//! Activations for AVX2 without VNNI, which multiplies unsigned by signed bytes, but adds two products in 16 bits, with
//! saturation.
//!
//! Two quants of eight bits times two activations can be as large as 2 · 255 · 127, twice what 16 bits hold. If the
//! activations have different signs, the products partly cancel, and the sum is at most 255 · 127, which fits. So in a pair
//! of equal signs the second activation `x` changes its sign and its quant `q` is flipped, to `255 - q`: an exclusive or with
//! 255. The product `(255 - q) · -x` is `q · x - 255 · x`, so the sum of a group starts with 255 times the sum of these
//! activations, and is exact.

use super::blocks::GROUP;

/// A group of activations, pairs of which have different signs.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no other architecture flips activations"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub(crate) struct FlippedGroup {
    /// Pairs of signed bytes, the first in the lower one.
    pub pairs: [u16; GROUP / 2],
    /// What an exclusive or flips in the quants of each pair.
    pub flips: [u16; GROUP / 2],
    /// What the sum of the group starts with.
    pub start: i32,
    /// What the sum of its first half starts with.
    pub first_start: i32,
}

#[cfg(test)]
impl FlippedGroup {
    /// The group of the activations `quants`, which are at least -127: the definition.
    pub(crate) fn new(quants: &[i8; GROUP]) -> Self {
        let mut group = Self::default();
        for (i, pair) in quants.as_chunks::<2>().0.iter().enumerate() {
            let pair = u16::from_le_bytes(pair.map(i8::cast_unsigned));
            // All bits, if the signs differ.
            let differ = ((pair ^ (pair << 8)).cast_signed() >> 15).cast_unsigned();
            let flip = !differ & 0xff00;
            // The upper byte becomes its negative where `flip` has bits.
            group.pairs[i] = (pair ^ flip).wrapping_add(flip & 0x0100);
            group.flips[i] = flip;
        }
        let mut sums = [0_i16; 2];
        for (i, (pair, flip)) in group.pairs.into_iter().zip(group.flips).enumerate() {
            sums[i / (GROUP / 4)] -= (pair & flip).cast_signed() >> 8;
        }
        let [first, second] = sums.map(|sum| 255 * i32::from(sum));
        (group.start, group.first_start) = (first + second, first);
        group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flipped_pairs_have_the_same_sums_and_fit_sixteen_bits() {
        let values = [-127_i8, -126, -1, 0, 1, 2, 127];
        for first in values {
            for second in values {
                let x: [i8; GROUP] = std::array::from_fn(|i| if i % 2 == 0 { first } else { second });
                let group = FlippedGroup::new(&x);
                for quants in [[0, 0], [255, 255], [0, 255], [255, 0], [128, 127]] {
                    let plain: i32 = quants.iter().zip([first, second]).map(|(&q, x)| q * i32::from(x)).sum();
                    for half in 0..2 {
                        let pair = group.pairs[half * 8].to_le_bytes().map(u8::cast_signed);
                        let flips = group.flips[half * 8].to_le_bytes();
                        let products = [0, 1].map(|i| (quants[i] ^ i32::from(flips[i])) * i32::from(pair[i]));
                        let sum = products[0] + products[1];
                        assert!(i16::try_from(sum).is_ok(), "{quants:?} {first} {second}");
                        let start = [group.first_start, group.start - group.first_start][half];
                        assert_eq!(8 * sum + start, 8 * plain, "{quants:?} {first} {second}");
                    }
                }
            }
        }
    }
}
