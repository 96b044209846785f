//! From raw logits to the logits that are chosen from: penalties, bans and filters.
//!
//! Order, meaning and ties are those of Hugging Face transformers' `LogitsProcessorList` for one sequence: repetition
//! penalty, repeated n-grams, minimal length; then, when sampling, temperature, top-k, top-p, min-p. A token that is
//! ruled out gets minus infinity. Reference values made with transformers are compared bit for bit.

use super::params::GenerationParams;
use super::softmax::{self, LANES};

/// Applies the processors of one request. Holds scratch memory only: the history is given at each call.
#[derive(Debug, Default)]
pub struct Processors {
    /// A bit for each token of the history.
    penalized: Vec<u64>,
    weights: Vec<f32>,
    largest: Vec<f32>,
    /// [`key`]s of tokens.
    keys: Vec<u64>,
}

impl Processors {
    /// Processes `logits` (one value a token of the vocabulary) in place.
    ///
    /// `history` is the prompt followed by what was written so far, `written` the length of the latter, `eos_ids` the
    /// tokens that end a text.
    pub fn apply(
        &mut self,
        params: &GenerationParams,
        history: &[u32],
        written: usize,
        eos_ids: &[u32],
        logits: &mut [f32],
    ) {
        if params.repetition_penalty != 1.0 {
            self.penalize(params.repetition_penalty, history, logits);
        }
        if params.no_repeat_ngram_size > 0 {
            ban_repeated_ngrams(params.no_repeat_ngram_size, history, logits);
        }
        if written < params.min_new_tokens {
            rule_out(eos_ids, logits);
        }
        if !params.samples() {
            return;
        }
        if params.temperature != 1.0 {
            for logit in logits.iter_mut() {
                *logit /= params.temperature;
            }
        }
        if params.top_k > 0 && params.top_k < logits.len() {
            self.keep_top_k(params.top_k, logits);
        }
        if params.top_p < 1.0 {
            self.keep_top_p(params.top_p, logits);
        }
        if params.min_p > 0.0 {
            self.keep_min_p(params.min_p, logits);
        }
    }

    /// Each token of the history is penalized once, however often it occurs. Tokens past the logits (padding of the
    /// embedding table) cannot be written and are skipped.
    fn penalize(&mut self, penalty: f32, history: &[u32], logits: &mut [f32]) {
        self.penalized.clear();
        self.penalized.resize(logits.len().div_ceil(64), 0);
        for &token in history {
            let token = token as usize;
            let Some(logit) = logits.get_mut(token) else { continue };
            let (word, bit) = (&mut self.penalized[token / 64], 1 << (token % 64));
            if *word & bit == 0 {
                *word |= bit;
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
        }
    }

    fn keep_top_k(&mut self, k: usize, logits: &mut [f32]) {
        // Few logits of a chunk are among the largest so far: most chunks are passed with one comparison.
        let most = 2 * k + 1024;
        self.largest.clear();
        let mut threshold = f32::NEG_INFINITY;
        for chunk in logits.chunks(LANES) {
            if chunk.iter().fold(false, |any, &logit| any | (logit > threshold)) {
                self.largest.extend(chunk.iter().copied().filter(|&logit| logit > threshold));
            }
            if self.largest.len() >= most {
                threshold = lowest_of_largest(k, &mut self.largest);
                self.largest.truncate(k);
            }
        }
        if self.largest.len() >= k {
            rule_out_below(lowest_of_largest(k, &mut self.largest), logits);
        }
    }

    /// Drops the least probable tokens while their sum stays within 1 - p; of equal ones the lower token goes first (a
    /// stable ascending sort; torch's default sort leaves the order to the machine). The most probable token always stays.
    fn keep_top_p(&mut self, p: f32, logits: &mut [f32]) {
        let highest = softmax::highest(logits);
        softmax::weights_into(logits, highest, &mut self.weights);
        let (total, allowed) = (softmax::sum(&self.weights), 1.0 - p);
        let is_over = |dropped: f64| (dropped / total) as f32 > allowed;
        // However many there are, tokens of this weight are dropped; the margin covers the rounding of sums.
        let surely = (f64::from(allowed) * total / logits.len() as f64) as f32 * 0.999;
        let mut dropped = 0.0;
        self.keys.clear();
        let chunks = self.weights.chunks(LANES).zip(logits.chunks(LANES));
        for ((weights, logits), first) in chunks.zip((0..).step_by(LANES)) {
            let mut below = [0.0; LANES];
            for (below, &weight) in below.iter_mut().zip(weights) {
                *below = if weight <= surely { weight } else { 0.0 };
            }
            dropped += f64::from(below.iter().sum::<f32>());
            if weights.iter().fold(false, |any, &weight| any | (weight > surely)) {
                let open =
                    weights.iter().zip(logits).zip(first..).filter(|((weight, _), _)| **weight > surely);
                self.keys.extend(open.map(|((_, &logit), token)| key(logit, token)));
            }
        }
        // By halves: the lower half is dropped, or the rest stays.
        let weight = |key: u64| f64::from(self.weights[token_of(key)]);
        let mut keys = self.keys.as_mut_slice();
        while keys.len() > 1 {
            let middle = (keys.len() - 1) / 2;
            let (lower, &mut last, _) = keys.select_nth_unstable(middle);
            let sum = dropped + lower.iter().map(|&key| weight(key)).sum::<f64>() + weight(last);
            if !is_over(sum) {
                dropped = sum;
                keys = &mut keys[middle + 1..];
            } else if middle > 0 {
                keys = &mut keys[..=middle];
            } else {
                break;
            }
        }
        // The least that stays. What is equal to it and stands before it was dropped.
        let Some(least) = keys.iter().copied().min().map(token_of) else { return };
        let logit = logits[least];
        rule_out_below(logit, logits);
        logits[..least]
            .iter_mut()
            .filter(|other| **other == logit)
            .for_each(|other| *other = f32::NEG_INFINITY);
    }

    /// Drops what is less probable than this share of the most probable: the softmax's common divisor cancels.
    fn keep_min_p(&mut self, min_p: f32, logits: &mut [f32]) {
        softmax::weights_into(logits, softmax::highest(logits), &mut self.weights);
        for (logit, &weight) in logits.iter_mut().zip(&self.weights) {
            *logit = if weight < min_p { f32::NEG_INFINITY } else { *logit };
        }
    }
}

/// Rules out these tokens. Those past the logits cannot be written and are skipped.
pub(super) fn rule_out(tokens: &[u32], logits: &mut [f32]) {
    for &token in tokens {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// The lowest of the `k` largest logits.
fn lowest_of_largest(k: usize, logits: &mut [f32]) -> f32 {
    *logits.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

fn rule_out_below(threshold: f32, logits: &mut [f32]) {
    for logit in logits {
        *logit = if *logit < threshold { f32::NEG_INFINITY } else { *logit };
    }
}

/// Rules out every token that would complete a run of `size` tokens that the history already holds.
fn ban_repeated_ngrams(size: usize, history: &[u32], logits: &mut [f32]) {
    if history.len() < size {
        return;
    }
    let current = &history[history.len() + 1 - size..];
    for window in history.windows(size) {
        if window[..size - 1] == *current
            && let Some(logit) = logits.get_mut(window[size - 1] as usize)
        {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Maps a number to an integer of the same order (NaN aside; both zeros are equal).
fn ordered(value: f32) -> u32 {
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits }
}

/// Orders tokens by their logits, and equal ones by their numbers.
fn key(logit: f32, token: u32) -> u64 {
    u64::from(ordered(logit)) << 32 | u64::from(token)
}

fn token_of(key: u64) -> usize {
    (key & 0xffff_ffff) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        params: serde_json::Map<String, serde_json::Value>,
        history: Vec<u32>,
        prompt: usize,
        logits: Vec<f32>,
        /// `null` stands for minus infinity.
        processed: Vec<Option<f32>>,
    }

    fn params(given: &serde_json::Map<String, serde_json::Value>) -> GenerationParams {
        let mut params = GenerationParams { top_k: 0, ..Default::default() };
        for (name, value) in given {
            let number = value.as_f64().unwrap_or_default();
            match name.as_str() {
                "do_sample" => params.do_sample = value.as_bool().unwrap(),
                "temperature" => params.temperature = number as f32,
                "top_k" => params.top_k = number as usize,
                "top_p" => params.top_p = number as f32,
                "min_p" => params.min_p = number as f32,
                "repetition_penalty" => params.repetition_penalty = number as f32,
                "no_repeat_ngram_size" => params.no_repeat_ngram_size = number as usize,
                "min_new_tokens" => params.min_new_tokens = number as usize,
                other => panic!("the reference uses {other}, which this test does not know"),
            }
        }
        params
    }

    #[test]
    fn equal_to_transformers_bit_for_bit() {
        let text = include_str!("../../tests/fixtures/generation/processors.json");
        let cases: Vec<Case> = serde_json::from_str(text).unwrap();
        assert!(cases.len() >= 30);
        for case in cases {
            let mut logits = case.logits.clone();
            let written = case.history.len() - case.prompt;
            let mut processors = Processors::default();
            processors.apply(&params(&case.params), &case.history, written, &[2], &mut logits);
            for (token, (&ours, theirs)) in logits.iter().zip(&case.processed).enumerate() {
                let theirs = theirs.unwrap_or(f32::NEG_INFINITY);
                assert_eq!(ours.to_bits(), theirs.to_bits(), "{}: token {token}: {ours} {theirs}", case.name);
            }
        }
    }

    /// Top-k and top-p as they are defined: by sorting all tokens.
    fn by_sorting(top_k: usize, top_p: f32, logits: &mut [f32]) {
        let mut sorted: Vec<usize> = (0..logits.len()).collect();
        sorted.sort_by(|&a, &b| ordered(logits[a]).cmp(&ordered(logits[b])));
        let threshold = logits[sorted[logits.len() - top_k]];
        rule_out_below(threshold, logits);
        let highest = logits[*sorted.last().unwrap()];
        let weight = |token: usize| f64::from(logits[token] - highest).exp();
        let total: f64 = sorted.iter().map(|&token| weight(token)).sum();
        let mut sum = 0.0;
        let dropped = sorted[..sorted.len() - 1].iter().take_while(|&&token| {
            sum += weight(token);
            (sum / total) as f32 <= 1.0 - top_p
        });
        for token in dropped.copied().collect::<Vec<_>>() {
            logits[token] = f32::NEG_INFINITY;
        }
    }

    proptest! {
        /// With equal logits, some ruled out before, and vocabularies of any length. The cut is nowhere near a rounding.
        #[test]
        fn filters_are_equal_to_sorting(
            levels in prop::collection::vec(-40..40_i16, 1..3_000), some in 1..4_usize, part in 0.0..1.0_f64,
            top_p in prop::sample::select(vec![0.013_f32, 0.31, 0.5003, 0.87, 0.9501, 0.999, 1.0]),
        ) {
            let rule_out = |(token, &level): (usize, &i16)| {
                if token % (some + 1) == 1 { f32::NEG_INFINITY } else { f32::from(level) * 0.37 }
            };
            let mut logits: Vec<f32> = levels.iter().enumerate().map(rule_out).collect();
            let top_k = 1 + ((logits.len() - 1) as f64 * part * part) as usize;
            let mut expected = logits.clone();
            by_sorting(top_k, top_p, &mut expected);
            let params = GenerationParams { do_sample: true, top_k, top_p, ..Default::default() };
            Processors::default().apply(&params, &[], 0, &[], &mut logits);
            prop_assert_eq!(logits, expected);
        }
    }

    #[test]
    fn nothing_is_left_of_the_logits_before() {
        let filters = [
            GenerationParams { do_sample: true, top_k: 3, top_p: 1.0, ..Default::default() },
            GenerationParams { do_sample: true, top_k: 0, top_p: 0.6, ..Default::default() },
            GenerationParams { do_sample: true, top_k: 0, top_p: 1.0, min_p: 0.3, ..Default::default() },
            GenerationParams { repetition_penalty: 1.5, ..Default::default() },
        ];
        // The second vocabulary is shorter, and its largest logits are elsewhere and smaller.
        let long: Vec<f32> = (0..90).map(|token| (token * 37 % 90) as f32 * 0.1 + 4.0).collect();
        let short: Vec<f32> = (0..50).map(|token| (token * 29 % 50) as f32 * 0.1).collect();
        let mut used = Processors::default();
        for params in filters {
            for (logits, history) in [(&long, [1, 40, 80]), (&short, [2, 40, 3]), (&long, [5, 6, 7])] {
                let (mut found, mut expected) = (logits.clone(), logits.clone());
                used.apply(&params, &history, 0, &[], &mut found);
                Processors::default().apply(&params, &history, 0, &[], &mut expected);
                assert_eq!(found, expected, "{params:?}");
                assert_ne!(found, *logits, "{params:?}");
            }
        }
    }

    #[test]
    fn a_prompt_token_outside_the_vocabulary_is_skipped() {
        let mut logits = [1.0, 2.0];
        let params =
            GenerationParams { repetition_penalty: 2.0, no_repeat_ngram_size: 1, ..Default::default() };
        Processors::default().apply(&params, &[7, 1], 0, &[9], &mut logits);
        assert_eq!(logits, [1.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn order_survives_the_mapping_to_integers() {
        let values = [f32::NEG_INFINITY, -3.5, -1e-30, 0.0, 1e-30, 2.0, f32::INFINITY];
        assert!(values.windows(2).all(|pair| ordered(pair[0]) < ordered(pair[1])));
        assert_eq!(ordered(-0.0), ordered(0.0));
    }
}
