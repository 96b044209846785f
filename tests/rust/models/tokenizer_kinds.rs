//! A tokenizer of every kind that models use gives transformers' ids for 1,000 odd texts.

use std::fs;
use std::path::Path;

use model_manager::models::manifest::WeightFiles;
use model_manager::models::{ModelFiles, Tokenizer};
use serde::Deserialize;
use std::collections::BTreeMap;

use super::fixtures::fixture;

/// What tests/fixture_makers/tokenizer_kinds.py wrote.
#[derive(Deserialize)]
struct Reference {
    count: usize,
    odd: Vec<String>,
    parts: Vec<String>,
    /// Four hexadecimal digits for each text.
    digests: BTreeMap<String, String>,
}

impl Reference {
    fn read() -> Self {
        serde_json::from_slice(&fs::read(fixture("tokenizers").join("ids.json")).unwrap()).unwrap()
    }

    /// The texts of the maker: its odd ones, then 1 to 12 parts, some of them hundreds of times.
    fn texts(&self) -> Vec<String> {
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

fn tokenizer(folder: &Path) -> Tokenizer {
    let files = ModelFiles {
        model: folder.display().to_string(),
        root: folder.to_path_buf(),
        transformer: folder.to_path_buf(),
        weights: WeightFiles::Safetensors(vec![folder.join("model.safetensors")]),
        modules: Vec::new(),
    };
    Tokenizer::load(&files, false).unwrap()
}

fn digest(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    format!("{:04x}", crc32fast::hash(&bytes) & 0xFFFF)
}

#[test]
fn every_kind_gives_the_ids_of_transformers() {
    let reference = Reference::read();
    let texts = reference.texts();
    assert!(texts.len() >= 1000 && reference.digests.len() >= 16);
    let mut wrong = Vec::new();
    for (kind, digests) in &reference.digests {
        let tokenizer = tokenizer(&fixture("tokenizers").join(kind));
        assert_eq!(digests.len(), 4 * texts.len(), "{kind}");
        for (number, text) in texts.iter().enumerate() {
            let ids = tokenizer.encode(text, usize::MAX).unwrap();
            if digest(&ids) != digests[4 * number..4 * number + 4] {
                let shown: String = text.chars().take(60).collect();
                wrong.push(format!("{kind}, text {number} {shown:?}: {:?}", &ids[..ids.len().min(12)]));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ, the first of them:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(30)].join("\n")
    );
}

#[test]
fn the_digest_tells_ids_apart() {
    assert_ne!(digest(&[1, 2]), digest(&[2, 1]));
    assert_ne!(digest(&[]), digest(&[0]));
}
