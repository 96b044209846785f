//! How long a prompt and its answer may be.

use super::settings::EngineSettings;
use crate::models::decoder::Decoder;
use crate::size::size_text;
use crate::{Error, Result};

/// Most tokens of a prompt and its answer, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) tokens: usize,
    /// The setting that allows more, and its present value in bytes where it counts bytes.
    setting: Option<(&'static str, Option<u64>)>,
}

impl Bound {
    pub(super) fn of<D: Decoder>(decoder: &D, settings: &EngineSettings) -> Self {
        let mut bound = Self { tokens: decoder.context(), setting: None };
        if let Some(tokens) = settings.max_context.filter(|&tokens| tokens < bound.tokens) {
            bound = Self { tokens, setting: Some(("max_context", None)) };
        }
        let fits = |tokens| decoder.cache_bytes(tokens) <= settings.kv_bytes;
        if !fits(bound.tokens) {
            let (mut fitting, mut large) = (0, bound.tokens);
            while large - fitting > 1 {
                let middle = fitting + (large - fitting) / 2;
                *if fits(middle) { &mut fitting } else { &mut large } = middle;
            }
            bound = Self { tokens: fitting, setting: Some((settings.kv_setting, Some(settings.kv_bytes))) };
        }
        bound
    }

    /// Refuses a prompt that no answer fits after, where a setting is the reason.
    pub(super) fn check(&self, prompt: usize) -> Result<()> {
        let Some((setting, bytes)) = self.setting.filter(|_| prompt >= self.tokens) else { return Ok(()) };
        let tokens = self.tokens;
        let limit = match bytes {
            Some(left) if setting == "memory_budget" => {
                let left = size_text(left);
                format!("the weights leave {left} of {setting}, which hold the keys and values of {tokens}")
            }
            Some(bytes) => format!("{setting} ({}) holds the keys and values of {tokens}", size_text(bytes)),
            None => format!("{setting} allows {tokens}"),
        };
        Err(Error::Argument {
            param: "prompt",
            place: Vec::new(),
            code: Some("context_length_exceeded"),
            rest: format!(
                ": the prompt has {prompt} tokens but {limit} including the answer; shorten it or raise {setting}"
            ),
        })
    }
}
