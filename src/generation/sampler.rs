//! One token from processed logits.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::softmax;
use crate::{Error, Result};

/// Chooses tokens for one request: the first maximum (as `torch.argmax`) or a draw from the softmax.
///
/// Draws come from ChaCha8 (`rand_chacha`, seeded by `seed_from_u64`), whose stream is the same on every machine and
/// in every release: one 53-bit uniform number a token, turned into a token by the inverse of the cumulative
/// distribution in token order, summed in f64.
#[derive(Debug, Clone)]
pub struct Sampler {
    draws: Option<ChaCha8Rng>,
    seed: u64,
    weights: Vec<f32>,
    /// The sums of [`BLOCK`] weights each.
    sums: Vec<f64>,
}

/// Tokens that a draw passes at once where it does not end among them.
const BLOCK: usize = 256;

impl Sampler {
    /// Greedy choice.
    pub fn greedy() -> Self {
        Self { draws: None, seed: 0, weights: Vec::new(), sums: Vec::new() }
    }

    /// Draws by `seed`, or by a fresh one.
    pub fn seeded(seed: Option<u64>) -> Self {
        let seed = seed.unwrap_or_else(fresh_seed);
        let draws = Some(ChaCha8Rng::seed_from_u64(seed));
        Self { draws, seed, weights: Vec::new(), sums: Vec::new() }
    }

    /// What repeats this sampler's draws; 0 for a greedy one.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next token, from logits that [`check_finite`] passed before they were processed.
    ///
    /// # Errors
    /// [`Error::Input`] when the parameters have ruled out every token, or made a logit infinite.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        let highest = softmax::highest(logits);
        if highest.is_infinite() {
            let reason = if highest > 0.0 {
                "temperature or repetition_penalty is so small that probabilities are infinite; raise it"
            } else {
                "no_repeat_ngram_size, min_new_tokens or repetition_penalty have ruled out every token, or temperature is \
                 so small that no probability is left; lower the former, or raise the latter"
            };
            return Err(Error::Input(reason.into()));
        }
        let Some(draws) = &mut self.draws else {
            return Ok(logits.iter().position(|&logit| logit == highest).unwrap_or(0) as u32);
        };
        softmax::weights_into(logits, highest, &mut self.weights);
        self.sums.clear();
        self.sums.extend(self.weights.chunks(BLOCK).map(softmax::sum));
        let uniform = (draws.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        let mut left = uniform * self.sums.iter().sum::<f64>();
        let mut first = 0;
        for &sum in &self.sums[..self.sums.len() - 1] {
            if left < sum {
                break;
            }
            left -= sum;
            first += BLOCK;
        }
        for (token, &weight) in (first..).zip(&self.weights[first..]) {
            let weight = f64::from(weight);
            if left < weight {
                return Ok(token as u32);
            }
            left -= weight;
        }
        // Rounding alone can carry the walk past the end; it then ends on the last token that can be drawn at all.
        Ok(self.weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0) as u32)
    }
}

/// Refuses logits as the model gave them when one is not finite, before any processor can hide it.
///
/// # Errors
/// [`Error::NotFinite`].
pub fn check_finite(logits: &[f32], model: &str) -> Result<()> {
    // Whole chunks without an early end: the compiler turns each into a few vector instructions.
    let damaged = |chunk: &[f32]| chunk.iter().fold(false, |damaged, logit| damaged | !logit.is_finite());
    if logits.chunks(256).any(damaged) { Err(Error::NotFinite { model: model.into() }) } else { Ok(()) }
}

/// The standard library seeds its hash maps from the operating system: that entropy serves here too. 53 bits, so that
/// a seed survives JSON.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::time::Instant::now()) >> 11
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_maximum() {
        let mut sampler = Sampler::greedy();
        assert_eq!(sampler.choose(&[1.0, 3.0, 3.0, f32::NEG_INFINITY]), Ok(1));
        for (length, at) in [(16, 15), (17, 16), (100, 40), (1, 0)] {
            let mut logits = vec![-2.0; length];
            logits[at..].fill(7.0);
            assert_eq!(sampler.choose(&logits), Ok(at as u32));
        }
    }

    #[test]
    fn damaged_logits_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 15, 300, 511] {
                let mut logits = vec![0.0; 512];
                assert_eq!(check_finite(&logits, "m"), Ok(()));
                logits[at] = bad;
                assert_eq!(check_finite(&logits, "m"), Err(Error::NotFinite { model: "m".into() }));
            }
        }
        for (logits, named) in
            [([f32::NEG_INFINITY; 2], "no_repeat_ngram_size"), ([0.0, f32::INFINITY], "temperature")]
        {
            for mut sampler in [Sampler::greedy(), Sampler::seeded(Some(1))] {
                let error = sampler.choose(&logits).unwrap_err();
                assert!(matches!(&error, Error::Input(reason) if reason.contains(named)), "{error}");
            }
        }
    }

    #[test]
    fn one_seed_gives_one_text_for_ever() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let draw = |seed| {
            let mut sampler = Sampler::seeded(Some(seed));
            (0..12).map(|_| sampler.choose(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(42), draw(42));
        assert_ne!(draw(42), draw(43));
        assert_eq!(draw(42), PINNED);
        let mut fresh = Sampler::seeded(None);
        let first: Vec<_> = (0..12).map(|_| fresh.choose(&logits).unwrap()).collect();
        assert_eq!(draw(fresh.seed()), first);
        assert!(fresh.seed() < 1 << 53);
    }

    /// A draw passes whole blocks: each token of a long vocabulary is drawn as often as its weight says.
    #[test]
    fn every_block_is_drawn_from() {
        for vocabulary in [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5] {
            let mut logits = vec![f32::NEG_INFINITY; vocabulary];
            let kept = [0, vocabulary / 2, vocabulary - 1];
            for token in kept {
                logits[token] = 2.0;
            }
            let mut sampler = Sampler::seeded(Some(9));
            let mut counts = [0; 3];
            for _ in 0..3_000 {
                let token = sampler.choose(&logits).unwrap() as usize;
                counts[kept.iter().position(|&one| one == token).unwrap()] += 1;
            }
            assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{vocabulary}: {counts:?}");
        }
    }

    /// Changing the generator or the walk would silently change every seeded text: this pins both.
    const PINNED: [u32; 12] = [35, 48, 20, 30, 12, 5, 13, 39, 38, 11, 26, 46];

    /// Pearson's test at 20 degrees of freedom: the 99.9 % quantile is 45.3; three seeds are tried.
    #[test]
    fn frequencies_follow_the_distribution() {
        let logits: Vec<f32> =
            (0..24).map(|i| if i % 8 == 3 { f32::NEG_INFINITY } else { (i as f32).cos() * 1.5 }).collect();
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        for seed in [1, 2, 3] {
            let mut sampler = Sampler::seeded(Some(seed));
            let draws = 40_000;
            let mut counts = vec![0u32; logits.len()];
            for _ in 0..draws {
                counts[sampler.choose(&logits).unwrap() as usize] += 1;
            }
            let mut chi_square = 0.0;
            for (&count, &logit) in counts.iter().zip(&logits) {
                let expected = f64::from(logit).exp() / total * f64::from(draws);
                if expected == 0.0 {
                    assert_eq!(count, 0, "a ruled out token was drawn");
                } else {
                    chi_square += (f64::from(count) - expected).powi(2) / expected;
                }
            }
            assert!(chi_square < 45.3, "seed {seed}: {chi_square}");
        }
    }
}
