//! The options of one call, and how they turn a model's output into the result.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::{CachedItem, Content, EmbeddingCache, KeyRef};
use crate::lifecycle::KeepAlive;
use crate::models::SentenceConfig;
use crate::output::{Combined, Output, OutputKind, Shape, View};
use crate::trace::Trace;
use crate::{Error, Result};

/// Called about every 50 ms of a wait; its error ends the wait. The Python binding checks for signals.
pub type Check<'a> = &'a mut dyn FnMut() -> Result<()>;

/// Parameters of one embedding call.
#[derive(Debug, Clone)]
pub struct EmbedOptions {
    /// Slot; `None`: by the language of each text.
    pub model: Option<String>,
    /// Text that is put before every text.
    pub prompt: Option<String>,
    /// The same by name, from the model's prompts.
    pub prompt_name: Option<String>,
    /// Scale to length 1.
    pub normalize: bool,
    /// Keep the first dimensions, before normalizing.
    pub truncate_dim: Option<usize>,
    /// Cut inputs that are longer than the model reads; otherwise they are refused.
    pub truncate: bool,
    /// For everything, loading included; `None`: as configured.
    pub timeout: Option<Duration>,
    /// Replaces the slot's for this use.
    pub keep_alive: Option<KeepAlive>,
    /// What is asked for.
    pub kind: OutputKind,
    /// On whose behalf: habits of this user's go first when a model is loaded ahead of its use. Only a hash is kept.
    pub user: Option<String>,
    /// What the call spends its time on, if its caller wants to know.
    pub trace: Option<Arc<Trace>>,
    /// Results do not leave the cache because it is full.
    pub pin: bool,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self {
            model: None,
            prompt: None,
            prompt_name: None,
            normalize: true,
            truncate_dim: None,
            truncate: true,
            timeout: None,
            keep_alive: None,
            kind: OutputKind::Dense,
            user: None,
            trace: None,
            pin: false,
        }
    }
}

impl EmbedOptions {
    /// Refuses a prompt that is given twice.
    pub(super) fn one_prompt(&self) -> Result<()> {
        match (&self.prompt, &self.prompt_name) {
            (Some(_), Some(name)) => Err(Error::argument(
                "prompt_name",
                format!("={name:?}: prompt is given too; give one of both"),
            )),
            _ => Ok(()),
        }
    }

    /// Keeps a result.
    pub(super) fn keep(&self, cache: &EmbeddingCache, key: &KeyRef<'_>, item: CachedItem) {
        if self.pin {
            cache.pin(key, item);
        } else {
            cache.insert(key, item);
        }
    }

    /// The cache key of `content` under these options: everything that changes the result.
    pub(super) fn key<'a>(&self, model: &'a Arc<str>, prompt: &'a str, content: Content<'a>) -> KeyRef<'a> {
        KeyRef {
            model,
            content,
            prompt,
            normalized: self.normalize,
            dimensions: self.truncate_dim,
            kind: self.kind,
        }
    }
}

impl EmbedOptions {
    /// The shape of the results of a call to a model of this shape and these settings.
    pub(super) fn shape(&self, model: Shape, config: &SentenceConfig) -> Result<Shape> {
        match model {
            Shape::Dense { width } => Ok(Shape::Dense {
                width: match self.truncate_dim {
                    None => config.kept(width),
                    Some(asked) => dimensions(width, asked)?,
                },
            }),
            Shape::All { width } => Ok(Shape::All { width: config.kept(width) }),
            other => Ok(other),
        }
    }

    /// Makes result number `row` of what the model computed for it.
    pub(super) fn finish(&self, computed: View<'_>, out: &mut Output, row: usize) {
        match (computed, out) {
            (View::Dense(vector), Output::Dense(out)) => finish(vector, self.normalize, out.row_mut(row)),
            (View::All(item), Output::All(out)) => {
                let mut vector = item.dense[..out.width].to_vec();
                finish(&item.dense, self.normalize, &mut vector);
                out.items[row] = Combined { dense: vector.into(), ..item.clone() };
            }
            (item, out) => out.put(row, item),
        }
    }
}

/// The length of vectors that a call asks a model of `width` for.
fn dimensions(width: usize, asked: usize) -> Result<usize> {
    if (1..=width).contains(&asked) {
        return Ok(asked);
    }
    let range =
        format!("={asked} is out of range: the model has {width} dimensions, so it must be 1 to {width}");
    Err(Error::argument("truncate_dim", range))
}

/// Truncates `vector` to `out.len()` and, if asked, scales it to length 1. A vector of zeros stays zeros.
fn finish(vector: &[f32], normalize: bool, out: &mut [f32]) {
    out.copy_from_slice(&vector[..out.len()]);
    if normalize {
        crate::models::normalize(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncates_before_normalizing() {
        let mut out = [0.0; 2];
        finish(&[3.0, 4.0, 100.0], true, &mut out);
        assert_eq!(out, [0.6, 0.8]);
        finish(&[3.0, 4.0, 100.0], false, &mut out);
        assert_eq!(out, [3.0, 4.0]);
    }

    #[test]
    fn zeros_stay_zeros() {
        let mut out = [1.0; 2];
        finish(&[0.0, 0.0], true, &mut out);
        assert_eq!(out, [0.0, 0.0]);
    }

    #[test]
    fn dimensions_out_of_range_are_refused() {
        assert_eq!(dimensions(384, 384), Ok(384));
        for wrong in [0, 385] {
            let error = dimensions(384, wrong).unwrap_err();
            assert!(error.to_string().contains(&format!("truncate_dim={wrong}")), "{error}");
        }
    }
}
