//! What a caller may ask of one generation, checked once, named in every complaint.

use crate::number::number_text;
use crate::{Error, Result};

/// How many tokens a generation may write when the caller gives neither `max_length` nor `max_new_tokens`.
pub const DEFAULT_NEW_TOKENS: usize = 256;

/// Stop texts of one request at most: each is compared with every character that is written.
pub const MAX_STOP_TEXTS: usize = 64;

/// Characters of a stop text at most: as many may be held back from the reader.
pub const MAX_STOP_CHARACTERS: usize = 1024;

/// The wishes of one request. Names, defaults and meanings are those of Hugging Face `generate`, unless stated.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationParams {
    /// Draw each token from the distribution (`true`) or take the most probable one (`false`, greedy).
    pub do_sample: bool,
    /// Divides the logits before sampling; below 1 sharpens, above 1 flattens. 0 means greedy.
    pub temperature: f32,
    /// Keep only this many most probable tokens; 0 keeps all. Ties with the last one stay.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens whose probabilities reach this; 1 keeps all, 0 means greedy.
    pub top_p: f32,
    /// Drop tokens less probable than this share of the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of every token of the prompt and the answer; 1 is off.
    pub repetition_penalty: f32,
    /// No run of this many tokens occurs twice in prompt and answer; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// The answer ends before the first of these texts; they are not part of it. An empty one is ignored. At most
    /// [`MAX_STOP_TEXTS`] of [`MAX_STOP_CHARACTERS`] characters.
    pub stop: Vec<String>,
    /// Most tokens in all, prompt included. `max_new_tokens` wins when both are given.
    pub max_length: Option<usize>,
    /// Most tokens to write.
    pub max_new_tokens: Option<usize>,
    /// No end-of-text before this many tokens are written.
    pub min_new_tokens: usize,
    /// Makes sampling repeatable: the same seed, model and prompt give the same text. `None` draws a fresh seed.
    pub seed: Option<u64>,
}

impl Default for GenerationParams {
    fn default() -> Self {
        Self {
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            stop: Vec::new(),
            max_length: None,
            max_new_tokens: None,
            min_new_tokens: 0,
            seed: None,
        }
    }
}

impl GenerationParams {
    /// Whether tokens are drawn; `do_sample` with a temperature or a `top_p` of 0 is greedy.
    pub fn samples(&self) -> bool {
        self.do_sample && self.temperature > 0.0 && self.top_p > 0.0
    }

    /// Checks every field that is wrong for any model.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the parameter, its value and what is allowed.
    pub fn validate(&self) -> Result<()> {
        let wrong = |name: &'static str, value: &dyn std::fmt::Display, allowed: &str| {
            Err(Error::argument(name, format!("={value}: must be {allowed}")))
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong(
                "temperature",
                &number_text(self.temperature),
                "a finite number >= 0 (0 means greedy)",
            );
        }
        if !(0.0..=1.0).contains(&self.top_p) {
            return wrong("top_p", &number_text(self.top_p), "in [0, 1] (0 means greedy)");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return wrong("min_p", &number_text(self.min_p), "in [0, 1]");
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return wrong("repetition_penalty", &number_text(self.repetition_penalty), "a finite number > 0");
        }
        if self.max_new_tokens == Some(0) {
            return wrong("max_new_tokens", &0, "at least 1");
        }
        if self.max_length == Some(0) {
            return wrong("max_length", &0, "at least 1");
        }
        if let Some(most) = self.max_new_tokens.filter(|most| self.min_new_tokens > *most) {
            let allowed = format!("at most {most}, the most tokens of the answer");
            return wrong("min_new_tokens", &self.min_new_tokens, &allowed);
        }
        if self.stop.len() > MAX_STOP_TEXTS {
            let many = format!(" has {} texts: at most {MAX_STOP_TEXTS} are allowed", self.stop.len());
            return Err(Error::argument("stop", many));
        }
        if let Some(long) = self.stop.iter().find(|text| text.chars().count() > MAX_STOP_CHARACTERS) {
            let long = long.chars().count();
            let long = format!(" has a text of {long} characters: at most {MAX_STOP_CHARACTERS} are allowed");
            return Err(Error::argument("stop", long));
        }
        Ok(())
    }

    /// How many tokens may be written after a prompt of `prompt` tokens in a model that holds `context` tokens.
    ///
    /// # Errors
    /// [`Error::Input`] when the prompt is empty, [`Error::Argument`] when it does not fit the context, or leaves nothing
    /// of `max_length`.
    pub fn budget(&self, prompt: usize, context: usize) -> Result<usize> {
        if prompt == 0 {
            return Err(Error::Input("the prompt is empty: it must give at least one token".into()));
        }
        if prompt >= context {
            return Err(Error::Argument {
                param: "prompt",
                place: Vec::new(),
                code: Some("context_length_exceeded"),
                rest: format!(
                    ": the prompt has {prompt} tokens but the model holds {context} including the answer; shorten it"
                ),
            });
        }
        let wanted = match (self.max_new_tokens, self.max_length) {
            (Some(new), _) => new,
            (None, Some(length)) if length <= prompt => {
                return Err(Error::argument(
                    "max_length",
                    format!(
                        "={length}: must exceed the prompt's {prompt} tokens, which it includes; \
                         raise it or give max_new_tokens"
                    ),
                ));
            }
            (None, Some(length)) => length - prompt,
            (None, None) => DEFAULT_NEW_TOKENS,
        };
        Ok(wanted.min(context - prompt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(params: &GenerationParams) -> String {
        params.validate().unwrap_err().to_string()
    }

    #[test]
    fn every_wrong_value_is_named() {
        let base = GenerationParams::default();
        assert!(base.validate().is_ok());
        let cases = [
            ("temperature=-1", GenerationParams { temperature: -1.0, ..base.clone() }),
            ("temperature=nan", GenerationParams { temperature: f32::NAN, ..base.clone() }),
            ("temperature=inf", GenerationParams { temperature: f32::INFINITY, ..base.clone() }),
            ("top_p=-0.5", GenerationParams { top_p: -0.5, ..base.clone() }),
            ("top_p=nan", GenerationParams { top_p: f32::NAN, ..base.clone() }),
            ("top_p=1.5", GenerationParams { top_p: 1.5, ..base.clone() }),
            ("min_p=-0.1", GenerationParams { min_p: -0.1, ..base.clone() }),
            ("min_p=nan", GenerationParams { min_p: f32::NAN, ..base.clone() }),
            ("repetition_penalty=0", GenerationParams { repetition_penalty: 0.0, ..base.clone() }),
            (
                "repetition_penalty=inf",
                GenerationParams { repetition_penalty: f32::INFINITY, ..base.clone() },
            ),
            ("max_new_tokens=0", GenerationParams { max_new_tokens: Some(0), ..base.clone() }),
            (
                "min_new_tokens=8",
                GenerationParams { min_new_tokens: 8, max_new_tokens: Some(7), ..base.clone() },
            ),
            ("max_length=0", GenerationParams { max_length: Some(0), ..base }),
        ];
        for (start, params) in cases {
            assert!(message(&params).starts_with(&format!("{start}: must be")), "{}", message(&params));
        }
    }

    #[test]
    fn a_temperature_or_a_top_p_of_zero_is_greedy() {
        let base = GenerationParams { do_sample: true, ..Default::default() };
        assert!(base.samples());
        for params in
            [GenerationParams { temperature: 0.0, ..base.clone() }, GenerationParams { top_p: 0.0, ..base }]
        {
            assert!(params.validate().is_ok() && !params.samples());
        }
    }

    #[test]
    fn stop_texts_are_limited_in_count_and_length() {
        let of = |stop: Vec<String>| GenerationParams { stop, ..Default::default() };
        assert!(of(vec![String::new()]).validate().is_ok(), "an empty one is ignored");
        assert!(of(vec!["ş".repeat(MAX_STOP_CHARACTERS); MAX_STOP_TEXTS]).validate().is_ok());
        let many = message(&of(vec!["x".into(); MAX_STOP_TEXTS + 1]));
        assert_eq!(many, "stop has 65 texts: at most 64 are allowed");
        let long = message(&of(vec!["x".into(), "ş".repeat(MAX_STOP_CHARACTERS + 1)]));
        assert_eq!(long, "stop has a text of 1025 characters: at most 1024 are allowed");
    }

    #[test]
    fn the_budget_counts_the_prompt_and_the_context() {
        let length =
            |n| GenerationParams { max_length: Some(n), ..Default::default() }.budget(10, 100).unwrap();
        assert_eq!((length(11), length(60), length(500)), (1, 50, 90));
        let both = GenerationParams { max_length: Some(5), max_new_tokens: Some(7), ..Default::default() };
        assert_eq!(both.budget(10, 100), Ok(7));
        assert_eq!(GenerationParams::default().budget(10, 1000), Ok(DEFAULT_NEW_TOKENS));
    }

    #[test]
    fn prompts_that_cannot_be_answered_are_refused() {
        let params = GenerationParams { max_length: Some(10), ..Default::default() };
        let text = |prompt, context| params.budget(prompt, context).unwrap_err().to_string();
        assert!(text(0, 100).starts_with("the prompt is empty"));
        assert!(text(100, 100).starts_with("prompt: the prompt has 100 tokens but the model holds 100"));
        assert!(text(10, 100).starts_with("max_length=10: must exceed the prompt's 10 tokens"));
    }
}
