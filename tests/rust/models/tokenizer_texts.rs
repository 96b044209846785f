//! 1,000 odd texts, and what tokenizers of transformers make of them. The tests of GGUF files read this file too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

/// What tests/fixture_makers/tokenizer_kinds.py wrote.
#[derive(Deserialize)]
pub(crate) struct Reference {
    count: usize,
    odd: Vec<String>,
    parts: Vec<String>,
    /// Four hexadecimal digits for each text.
    pub(crate) digests: BTreeMap<String, String>,
}

impl Reference {
    pub(crate) fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/ids.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// The texts of the maker: its odd ones, then 1 to 12 parts, some of them hundreds of times.
    pub(crate) fn texts(&self) -> Vec<String> {
        let mut state = 42u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap()
        };
        let mut found = self.odd.clone();
        while found.len() < self.count {
            let mut text = String::new();
            for _ in 0..=draw() % 12 {
                let part = &self.parts[draw() % self.parts.len()];
                let times = if draw() % 64 == 0 { 1 + draw() % 300 } else { 1 };
                text.push_str(&part.repeat(times));
            }
            found.push(text);
        }
        found
    }
}

/// Sixteen bits of the ids.
pub(crate) fn digest(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    format!("{:04x}", crc32fast::hash(&bytes) & 0xFFFF)
}
