//! Tensors that nothing read, though they belong to parts of the model that were loaded.
//!
//! A bias that the configuration does not announce, an adapter, a layer more than it counts: a model without them gives
//! other results than the one that was trained. Parts that this use of a model does not need, such as the head of a language
//! model that embeds, have no tensor that was read.

use std::collections::HashSet;
use std::path::Path;

use crate::Error;
use crate::sync::Mutex;

/// Ends of names of what models of transformers compute anew: masks of causal attention and frequencies of positions.
const COMPUTED: [&str; 4] = ["inv_freq", ".masked_bias", ".attn.bias", ".attention.bias"];

/// The names of the tensors that were read.
#[derive(Debug, Default)]
pub(crate) struct ReadTensors(Mutex<HashSet<String>>);

impl ReadTensors {
    /// Notes that the tensor `name` is read.
    pub(crate) fn note(&self, name: &str) {
        self.0.lock().insert(name.to_owned());
    }

    /// Whether the tensor `name` was read.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.lock().contains(name)
    }

    /// Of `names`, the first in the order of the alphabet that was not read, though others of its [`part`] were.
    pub(crate) fn first_left<'a>(&self, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        let read = self.0.lock();
        let parts: HashSet<&str> = read.iter().filter_map(|name| part(name)).collect();
        let computed = |name: &str| COMPUTED.iter().any(|end| name.ends_with(end));
        names
            .filter(|name| !read.contains(*name) && !computed(name))
            .filter(|name| part(name).is_some_and(|part| parts.contains(part)))
            .min()
    }
}

/// The error for the tensor `name` of `path`, which the network that `description` describes does not have.
pub(crate) fn left(path: &Path, name: &str, description: &str) -> Error {
    Error::invalid_file(
        path,
        format!(
            "the tensor {name:?} is part of no network that {description} describes, so results without it would be wrong; \
             the weights belong to another model, or to a variant that this package does not know"
        ),
    )
}

/// The part of the model that a tensor belongs to, as its name says: all layers of one stack (`model.layers` of
/// `model.layers.3.mlp.up_proj.weight`), else its module (`lm_head` of `lm_head.bias`).
fn part(name: &str) -> Option<&str> {
    let mut start = 0;
    for word in name.split('.') {
        if start > 0 && word.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(&name[..start - 1]);
        }
        start += word.len() + 1;
    }
    name.rsplit_once('.').map(|(module, _)| module)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(read: &[&str], all: &[&str]) -> Option<String> {
        let log = ReadTensors::default();
        read.iter().for_each(|name| log.note(name));
        log.first_left(all.iter().copied()).map(str::to_owned)
    }

    #[test]
    fn names_say_which_part_they_belong_to() {
        for (name, expected) in [
            ("model.layers.3.mlp.experts.7.w1.weight", Some("model.layers")),
            ("encoder.layer.11.output.dense.bias", Some("encoder.layer")),
            ("blk.0.attn_q.bias", Some("blk")),
            ("lm_head.bias", Some("lm_head")),
            ("embeddings.LayerNorm.weight", Some("embeddings.LayerNorm")),
            ("0.weight", Some("0")),
            ("weight", None),
        ] {
            assert_eq!(part(name), expected, "{name}");
        }
    }

    #[test]
    fn what_is_left_of_a_part_that_was_read_is_named() {
        let read = ["h.0.q.weight", "h.1.q.weight", "head.weight"];
        assert_eq!(left(&read, &["h.0.q.weight", "h.1.q.weight", "head.weight"]), None);
        for unread in ["h.0.q.bias", "h.1.lora_A.weight", "h.2.q.weight", "head.bias"] {
            assert_eq!(left(&read, &["h.0.q.weight", unread]).as_deref(), Some(unread));
        }
        assert_eq!(
            left(&read, &["h.2.b", "h.0.z", "h.0.a"]).as_deref(),
            Some("h.0.a"),
            "always the same one"
        );
    }

    #[test]
    fn parts_of_other_uses_and_what_is_computed_anew_may_be_left() {
        let read = [
            "bert.encoder.layer.0.q.weight",
            "h.0.attn.c_attn.weight",
            "gpt_neox.layers.0.attention.q.weight",
        ];
        for unread in [
            "bert.pooler.dense.weight",
            "cls.predictions.bias",
            "decoder.block.0.layer.0.q.weight",
            "vision_tower.encoder.layers.0.q.weight",
            "embeddings.position_ids",
            "h.0.attn.bias",
            "h.0.attn.masked_bias",
            "gpt_neox.layers.0.attention.bias",
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
        ] {
            assert_eq!(left(&read, &[unread]), None, "{unread}");
        }
    }
}
