//! The metadata of a GGUF file that describes its network: keys that begin with the name of its architecture.

use std::path::Path;

use serde_json::{Value, json};

use crate::models::formats::gguf::{Gguf, GgufValue};
use crate::{Error, Result};

/// What every family reads, or what the tensors say as well.
const COMMON: &[&str] = &[
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.causal",
    "pooling_type",
    "vocab_size",
    // A note of the first converters.
    "tensor_data_layout",
];

/// Whether a network can be computed with `number` as the metadata `name`.
fn is_in_range(name: &str, number: f64) -> bool {
    match name {
        _ if !number.is_finite() => false,
        _ if name.ends_with("epsilon") => (0.0..=1.0).contains(&number),
        "rope.freq_base" | "rope.freq_base_swa" => number > 1.0,
        "rope.dimension_count" | "rope.scaling.yarn_beta_fast" | "rope.scaling.yarn_beta_slow" => {
            number > 0.0
        }
        // In llama.cpp, a factor of 0 is none.
        "rope.scaling.factor" => number >= 0.0,
        "logit_scale" => number != 0.0,
        _ => true,
    }
}

/// The metadata of one architecture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metadata<'a> {
    pub gguf: &'a Gguf,
    pub architecture: &'a str,
}

impl<'a> Metadata<'a> {
    /// That of `general.architecture`.
    pub(super) fn of(gguf: &'a Gguf) -> Self {
        Self { gguf, architecture: gguf.text("general.architecture").unwrap_or_default() }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    pub(super) fn number(&self, name: &str) -> Option<usize> {
        self.gguf.number(&self.key(name))
    }

    pub(super) fn float(&self, name: &str) -> Option<f32> {
        self.gguf.float(&self.key(name))
    }

    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.gguf.flag(&self.key(name))
    }

    /// A list of truth values.
    pub(super) fn flags(&self, name: &str) -> Option<Vec<bool>> {
        let flag = |value: &GgufValue| if let GgufValue::Bool(flag) = value { Some(*flag) } else { None };
        self.gguf.understood(&self.key(name), "a list of true and false", |value| match value {
            GgufValue::Array(values) => values.iter().map(flag).collect(),
            _ => None,
        })
    }

    /// A number for each layer: a list of them, or one for all.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming what is missing or of another form.
    pub(super) fn numbers(&self, name: &str, layers: usize) -> Result<Vec<usize>> {
        let number = |value: &GgufValue| match value {
            GgufValue::Integer(number) => usize::try_from(*number).ok(),
            _ => None,
        };
        let found = match self.gguf.get(&self.key(name)) {
            Some(GgufValue::Array(values)) => values.iter().map(number).collect(),
            Some(one) => number(one).map(|number| vec![number; layers]),
            None => None,
        };
        found.filter(|numbers: &Vec<usize>| numbers.len() == layers).ok_or_else(|| {
            Error::invalid_file(self.path(), format!("its {} is not a number for each layer", self.key(name)))
        })
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.gguf.text(&self.key(name))
    }

    /// A number that the model cannot do without.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming it.
    pub(super) fn required(&self, name: &str) -> Result<usize> {
        self.gguf.required(&self.key(name))
    }

    /// Numbers of a small tensor, if the file has it.
    ///
    /// # Errors
    /// Those of reading the file.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Vec<f32>>> {
        if self.gguf.contains(name) { Ok(Some(self.gguf.matrix(name)?.to_f32()?)) } else { Ok(None) }
    }

    /// What a `config.json` says of an encoder, from the metadata and the shapes of tables.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] naming what is missing, [`Error::Unsupported`] for a causal model, for one with rotary
    /// scaling, and for metadata that is neither in `read` nor without effect.
    pub(super) fn encoder_config(&self, model_type: &str, read: &[&str]) -> Result<Value> {
        self.refuse_unknown(&[&["attention.layer_norm_epsilon", "rope.scaling.type"], read])?;
        if self.flag("attention.causal") == Some(true) {
            let reason = format!("its attention is causal ({})", self.key("attention.causal"));
            return Err(self.unsupported(reason));
        }
        if let Some(kind) = self.text("rope.scaling.type").filter(|kind| *kind != "none") {
            return Err(self.unsupported(format!("its rotary scaling is {kind:?}; supported is none")));
        }
        let rows = |name: &str| self.gguf.shape(name).and_then(<[usize]>::first).copied().unwrap_or(0);
        Ok(json!({
            "model_type": model_type,
            "vocab_size": rows("token_embd.weight"),
            "hidden_size": self.required("embedding_length")?,
            "num_hidden_layers": self.required("block_count")?,
            "num_attention_heads": self.required("attention.head_count")?,
            "intermediate_size": self.required("feed_forward_length")?,
            "max_position_embeddings": self.required("context_length")?,
            "type_vocab_size": rows("token_types.weight"),
            "layer_norm_eps": self.float("attention.layer_norm_epsilon").unwrap_or(1e-12),
        }))
    }

    /// The file, as messages name it.
    pub(super) fn model(&self) -> String {
        self.path().display().to_string()
    }

    pub(super) fn path(&self) -> &'a Path {
        self.gguf.path()
    }

    /// The error for what this crate cannot compute.
    pub(super) fn unsupported(&self, reason: impl Into<String>) -> Error {
        Error::Unsupported { model: self.model(), reason: reason.into() }
    }

    /// Refuses metadata that is neither in `read` nor without effect.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming it.
    pub(super) fn refuse_unknown(&self, read: &[&[&str]]) -> Result<()> {
        self.refuse_unknown_but(&[], read)
    }

    /// The same, with a number for each layer under the names of `lists`.
    ///
    /// # Errors
    /// As [`refuse_unknown`](Self::refuse_unknown).
    pub(super) fn refuse_unknown_but(&self, lists: &[&str], read: &[&[&str]]) -> Result<()> {
        let own = |key: &'_ str| key.strip_prefix(self.architecture)?.strip_prefix('.').map(str::to_owned);
        let mut names: Vec<String> = self.gguf.keys().filter_map(own).collect();
        names.sort_unstable();
        let known = |name: &str| COMMON.contains(&name) || read.iter().any(|read| read.contains(&name));
        if let Some(name) = names.iter().find(|name| !known(name) && !self.is_neutral(name)) {
            return Err(self.unsupported(format!(
                "its metadata has {}, which this package does not know and which may change results; choose another file \
                 of the model",
                self.key(name)
            )));
        }
        for name in &names {
            let number = match self.gguf.get(&self.key(name)) {
                Some(GgufValue::Float(x)) => *x,
                Some(GgufValue::Integer(n)) => *n as f64,
                _ => continue,
            };
            if !is_in_range(name, number) {
                return Err(self.unsupported(format!("its {} is {number}", self.key(name))));
            }
        }
        for name in ["attention.head_count", "attention.head_count_kv", "feed_forward_length"] {
            let given = self.gguf.get(&self.key(name)).is_some() && !lists.contains(&name);
            if given && self.number(name).is_none() {
                let reason = match self.gguf.get(&self.key(name)) {
                    Some(GgufValue::Array(_)) => "is a list: layers of different shapes are not supported",
                    _ => "is not a number of 0 or more",
                };
                return Err(self.unsupported(format!("its {} {reason}", self.key(name))));
            }
        }
        Ok(())
    }

    /// Metadata whose one supported value changes nothing.
    fn is_neutral(&self, name: &str) -> bool {
        match self.gguf.get(&self.key(name)) {
            Some(GgufValue::Bool(false)) => true,
            Some(GgufValue::Integer(0)) => {
                matches!(name, "expert_count" | "expert_used_count" | "attention.sliding_window")
            }
            Some(GgufValue::Integer(n)) if name == "attention.value_length" => {
                let heads = self.number("attention.head_count").unwrap_or(0).max(1);
                let hidden = self.number("embedding_length").unwrap_or(0);
                let head = self.number("attention.key_length").unwrap_or(hidden / heads);
                i128::try_from(head) == Ok(*n)
            }
            // What scales by one does not scale.
            Some(GgufValue::Float(x)) if name.starts_with("rope.scal") => *x == 1.0,
            Some(GgufValue::Bool(_)) => name == "rope.scaling.finetuned",
            _ => false,
        }
    }
}
