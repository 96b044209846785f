//! A tokenizer of every kind that models use gives transformers' ids for 1,000 odd texts.

use std::path::Path;

use model_manager::models::manifest::WeightFiles;
use model_manager::models::{ModelFiles, Tokenizer};

use super::fixtures::fixture;
use super::tokenizer_texts::{Reference, digest};

fn tokenizer(folder: &Path) -> Tokenizer {
    let files = ModelFiles {
        model: folder.display().to_string(),
        root: folder.to_path_buf(),
        transformer: folder.to_path_buf(),
        weights: WeightFiles::Safetensors(vec![folder.join("model.safetensors")]),
        modules: Vec::new(),
        adapter: None,
    };
    Tokenizer::load(&files, false).unwrap()
}

#[test]
fn every_kind_gives_the_ids_of_transformers() {
    let reference = Reference::read();
    let texts = reference.texts();
    assert!(texts.len() >= 1000 && reference.digests.len() >= 20);
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
