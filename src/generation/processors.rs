//! From raw logits to the logits that are chosen from: penalties, bans and filters.
//!
//! Order, meaning and ties are those of Hugging Face transformers' `LogitsProcessorList` for one sequence: repetition
//! penalty, repeated n-grams, minimal length; then, when sampling, temperature, top-k, top-p, min-p. A token that is
//! ruled out gets minus infinity. Reference values made with transformers are compared bit for bit.

use super::params::GenerationParams;

/// Applies the processors of one request. Holds scratch memory only: the history is given at each call.
#[derive(Debug, Default)]
pub struct Processors {
    penalized: Vec<u64>,
    sorted: Vec<u64>,
}

impl Processors {
    /// Processes `logits` (one value a token of the vocabulary) in place.
    ///
    /// `history` is the prompt followed by what was written so far, `written` the length of the latter, `ends` the
    /// tokens that end a text.
    pub fn apply(
        &mut self,
        params: &GenerationParams,
        history: &[u32],
        written: usize,
        ends: &[u32],
        logits: &mut [f32],
    ) {
        if params.repetition_penalty != 1.0 {
            self.penalize(params.repetition_penalty, history, logits);
        }
        if params.no_repeat_ngram_size > 0 {
            ban_repeated_ngrams(params.no_repeat_ngram_size, history, logits);
        }
        if written < params.min_new_tokens {
            for &end in ends {
                if let Some(logit) = logits.get_mut(end as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
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
            keep_min_p(params.min_p, logits);
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
        self.sorted.clear();
        self.sorted.extend(logits.iter().map(|&logit| u64::from(ordered(logit))));
        let from_below = logits.len() - k;
        let (_, &mut threshold, _) = self.sorted.select_nth_unstable(from_below);
        for logit in logits.iter_mut() {
            if u64::from(ordered(*logit)) < threshold {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    /// Walks the tokens from the least probable up and drops them while their sum stays within 1 - p; of equal ones
    /// the lower token comes first (a stable ascending sort; torch's default sort leaves the order to the machine). The most probable token always stays.
    fn keep_top_p(&mut self, p: f32, logits: &mut [f32]) {
        self.sorted.clear();
        let kept = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        self.sorted.extend(kept.map(|(token, &logit)| u64::from(ordered(logit)) << 32 | token as u64));
        self.sorted.sort_unstable();
        let Some(&most) = self.sorted.last() else { return };
        let token = |key: u64| (key & 0xffff_ffff) as usize;
        let highest = logits[token(most)];
        let sum: f32 = self.sorted.iter().map(|&key| (logits[token(key)] - highest).exp()).sum();
        let allowed = 1.0 - p;
        let mut dropped = 0.0f64;
        for &key in &self.sorted[..self.sorted.len() - 1] {
            dropped += f64::from((logits[token(key)] - highest).exp() / sum);
            if dropped as f32 > allowed {
                break;
            }
            logits[token(key)] = f32::NEG_INFINITY;
        }
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

/// The softmax's common divisor cancels, so probabilities relative to the highest are compared.
fn keep_min_p(min_p: f32, logits: &mut [f32]) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if highest == f32::NEG_INFINITY {
        return;
    }
    for logit in logits.iter_mut() {
        if (*logit - highest).exp() < min_p {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Maps a number to an integer of the same order (NaN aside; both zeros are equal).
fn ordered(value: f32) -> u32 {
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits }
}

#[cfg(test)]
mod tests {
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
