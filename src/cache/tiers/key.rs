//! The keys of lower tiers: equal in every process and on every machine.

use sha2::{Digest as _, Sha256};

use super::super::key::{Content, KeyRef};
use crate::output::OutputKind;

/// 128 bits of SHA-256 over everything that decides a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TierKey(pub [u8; 16]);

/// The part of a key that the model does not change. Known before the model's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputKey([u8; 32]);

/// The number of a kind in keys, which never changes.
fn kind_code(kind: OutputKind) -> u8 {
    match kind {
        OutputKind::Dense => 0,
        OutputKind::Scores => 1,
        OutputKind::Sparse => 2,
        OutputKind::Multi => 3,
        OutputKind::Queries => 4,
        OutputKind::All => 5,
        OutputKind::States => 6,
    }
}

impl InputKey {
    /// Of an input and the parameters of its call. Each part has its length before it, so that no two keys run together.
    pub(in super::super) fn of(key: &KeyRef<'_>) -> Self {
        let mut sum = Sha256::new();
        let mut part = |bytes: &[u8]| {
            sum.update((bytes.len() as u64).to_le_bytes());
            sum.update(bytes);
        };
        part(key.prompt.as_bytes());
        let dimensions = key.dimensions.map_or(u64::MAX, |dimensions| dimensions as u64);
        part(&dimensions.to_le_bytes());
        part(&[u8::from(key.normalized), kind_code(key.kind)]);
        match key.content {
            Content::Text(text) => {
                part(b"text");
                part(text.as_bytes());
            }
            Content::Pair(first, second) => {
                part(b"pair");
                part(first.as_bytes());
                part(second.as_bytes());
            }
            Content::Tokens(ids) => {
                part(b"tokens");
                let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                part(&bytes);
            }
        }
        Self(sum.finalize().into())
    }

    /// The key of the input's result by the model of this content.
    pub fn with_model(&self, content: &[u8; 32]) -> TierKey {
        let sum = Sha256::new().chain_update(content).chain_update(self.0).finalize();
        let mut key = [0; 16];
        key.copy_from_slice(&sum[..16]);
        TierKey(key)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn every_part_counts_and_none_run_together() {
        let model: Arc<str> = "only memory looks at this".into();
        let base = KeyRef {
            content: Content::Text("text"),
            prompt: "",
            model: &model,
            dimensions: None,
            normalized: true,
            kind: OutputKind::Dense,
        };
        let keys = [
            base,
            KeyRef { content: Content::Text("tex"), ..base },
            KeyRef { content: Content::Text("xt"), prompt: "te", ..base },
            KeyRef { content: Content::Text("ext"), prompt: "t", ..base },
            KeyRef { content: Content::Tokens(&[1, 2]), ..base },
            KeyRef { content: Content::Tokens(&[513]), ..base },
            KeyRef { dimensions: Some(0), ..base },
            KeyRef { dimensions: Some(1), ..base },
            KeyRef { normalized: false, ..base },
            KeyRef { kind: OutputKind::Scores, ..base },
            KeyRef { content: Content::Pair("te", "xt"), ..base },
            KeyRef { content: Content::Pair("tex", "t"), ..base },
        ];
        let distinct: HashSet<TierKey> = keys
            .iter()
            .flat_map(|key| [[0; 32], [1; 32]].map(|model| InputKey::of(key).with_model(&model)))
            .collect();
        assert_eq!(distinct.len(), 2 * keys.len());
        // The format of keys: changing it makes every stored result unreachable.
        let known = 0x24bb_9ffb_f33e_24be_82b8_ebda_03b9_7b0c_u128.to_be_bytes();
        assert_eq!(InputKey::of(&base).with_model(&[7; 32]).0, known);
    }
}
