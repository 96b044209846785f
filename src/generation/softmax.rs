//! The softmax of logits, before it is divided by its sum.
//!
//! The compiler turns it into vector instructions. It has no fused multiplications, so that its bits are the same on every
//! machine, and a seed gives one text; the exponentials of the systems' mathematical libraries differ.

/// Numbers that are computed side by side.
pub(super) const LANES: usize = 16;

/// The weight of a logit this far below the highest is zero: `exp` comes near the least normal number of f32.
const LEAST: f32 = -87.0;

/// The largest of `logits`; minus infinity without any.
pub(super) fn highest(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, logit);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// Writes `exp(logit - highest)` of each of `logits` to `weights`, within 1e-7 of its value.
pub(super) fn weights_into(logits: &[f32], highest: f32, weights: &mut Vec<f32>) {
    weights.clear();
    weights.resize(logits.len(), 0.0);
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let (written, last) = weights.as_chunks_mut::<LANES>();
    for (chunk, written) in chunks.iter().zip(written) {
        // Most are ruled out after a filter.
        if chunk.iter().fold(false, |any, &logit| any | (logit - highest > LEAST)) {
            for (weight, &logit) in written.iter_mut().zip(chunk) {
                *weight = exp(logit - highest);
            }
        }
    }
    for (weight, &logit) in last.iter_mut().zip(rest) {
        *weight = exp(logit - highest);
    }
}

/// The sum of `weights`.
pub(super) fn sum(weights: &[f32]) -> f64 {
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let mut lanes = [0.0f64; LANES];
    for chunk in chunks {
        for (lane, &weight) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(weight);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().copied().map(f64::from).sum::<f64>()
}

/// `exp(x)` for `x <= 0`: the exponential of the rest after the nearest multiple of ln 2, as a polynomial, times a power of
/// two. Constants and polynomial are those of Moshier, Cephes Math Library, `expf`.
#[inline]
fn exp(x: f32) -> f32 {
    /// Adding it leaves an integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let inside = if x > LEAST { x } else { LEAST };
    let shifted = inside * std::f32::consts::LOG2_E + ROUND;
    let powers = shifted - ROUND;
    let rest = (inside - powers * LN_2_HIGH) - powers * LN_2_LOW;
    let polynomial = 1.987_569_1e-4 * rest + 1.398_199_9e-3;
    let polynomial = polynomial * rest + 8.333_452e-3;
    let polynomial = polynomial * rest + 4.166_579_6e-2;
    let polynomial = polynomial * rest + 1.666_666_5e-1;
    let polynomial = polynomial * rest + 0.5;
    let fraction = polynomial * (rest * rest) + rest + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    if x > LEAST { fraction * f32::from_bits(exponent << 23) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_exponentials() {
        // Every length of the last lanes; from 0 to beyond the least.
        for len in [1, 15, 16, 17, 40_000] {
            let logits: Vec<f32> = (0..len).map(|i| 3.0 - i as f32 * (90.0 / len as f32)).collect();
            assert_eq!(highest(&logits), 3.0);
            let mut weights = vec![7.0; 3];
            weights_into(&logits, 3.0, &mut weights);
            assert_eq!((weights.len(), weights[0]), (len, 1.0));
            for (&weight, &logit) in weights.iter().zip(&logits) {
                let exact = f64::from(logit - 3.0).exp();
                let allowed = if logit - 3.0 > LEAST { 1e-7 * exact } else { exact };
                assert!((f64::from(weight) - exact).abs() <= allowed, "{logit}: {weight} {exact}");
            }
            let exact: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            assert!((sum(&weights) - exact).abs() <= 1e-12 * exact);
        }
    }

    #[test]
    fn what_is_ruled_out_weighs_nothing() {
        let mut logits = vec![f32::NEG_INFINITY; 70];
        (logits[3], logits[69]) = (1.0, 1.0);
        let mut weights = Vec::new();
        weights_into(&logits, highest(&logits), &mut weights);
        assert_eq!((weights[3], weights[69], sum(&weights)), (1.0, 1.0, 2.0));
        assert_eq!(highest(&[]), f32::NEG_INFINITY);
    }
}
