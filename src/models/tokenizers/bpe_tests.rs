//! The tokens of random vocabularies are the tokenizers crate's.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use serde_json::{Value, json};

use super::super::compact::CompactModel;
use super::super::tests::{RandomTexts, model_text, same_model};

const LETTERS: [&str; 9] = ["a", "b", "c", "ç", "ğ", "你", "🙂", "▁", "\u{301}"];

fn word(random: &mut RandomTexts, most: usize) -> String {
    (0..=random.below(most)).map(|_| LETTERS[random.below(LETTERS.len())]).collect()
}

/// Merges of random pieces that are already there, and a vocabulary with what they make.
fn vocabulary(random: &mut RandomTexts, merges: usize) -> (Vec<String>, Vec<(String, String)>) {
    let known = 1 + random.below(LETTERS.len());
    let mut pieces: Vec<String> = LETTERS[..known].iter().map(ToString::to_string).collect();
    let mut all = Vec::new();
    for _ in 0..merges {
        let (left, right) = (random.below(pieces.len()), random.below(pieces.len()));
        let joined = format!("{}{}", pieces[left], pieces[right]);
        all.push((pieces[left].clone(), pieces[right].clone()));
        if !pieces.contains(&joined) {
            pieces.push(joined);
        }
    }
    // Some pieces no merge makes.
    for _ in 0..random.below(4) {
        let more = word(random, 5);
        if !pieces.contains(&more) {
            pieces.push(more);
        }
    }
    (pieces, all)
}

#[test]
fn tokens_of_random_vocabularies_are_those_of_the_crate() {
    let mut random = RandomTexts(ChaCha8Rng::seed_from_u64(5));
    for round in 0..600 {
        let merges = [0, 3, 12, 60][round % 4];
        let (mut pieces, merges) = vocabulary(&mut random, merges);
        let unknown = (round % 3 != 0).then(|| "<unk>".to_owned());
        pieces.extend(unknown.clone());
        let fallback = round % 5 < 2;
        if fallback {
            // All bytes, or some.
            let some = |byte: &u8| round % 5 == 0 || !byte.is_multiple_of(3);
            pieces.extend((0..=255u8).filter(some).map(|byte| format!("<0x{byte:02X}>")));
        }
        // Ids in any order, with some left out.
        let mut ids: Vec<usize> = (0..pieces.len() + round % 7).collect();
        if round % 2 == 0 {
            ids.sort_by_key(|id| id.wrapping_mul(0x9e37_79b9) % 1009);
        }
        let vocabulary: serde_json::Map<String, Value> =
            pieces.iter().cloned().zip(ids.iter().map(|&id| json!(id))).collect();
        let merges: Vec<Value> = match round % 2 {
            0 => merges.iter().map(|(left, right)| json!([left, right])).collect(),
            _ => merges.iter().map(|(left, right)| json!(format!("{left} {right}"))).collect(),
        };
        let model = json!({"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": round % 4 < 2, "byte_fallback": fallback,
            "ignore_merges": round % 6 == 0, "vocab": vocabulary, "merges": merges});
        // Short words, and long ones, which are merged in another way.
        let words: Vec<String> =
            (0..40).map(|n| word(&mut random, if n % 4 == 0 { 400 } else { 20 })).collect();
        same_model(&model, words.into_iter().chain([String::new()]));
    }
}

#[test]
fn long_words_take_little_time() {
    let model = json!({"type": "BPE", "unk_token": null, "vocab": {"a": 0, "aa": 1, "aaaa": 2, "b": 3, "ab": 4},
        "merges": [["a", "a"], ["aa", "aa"], ["a", "b"]]});
    let words = ["a".repeat(200_001), format!("{}b", "a".repeat(100_000)), "ab".repeat(70_000)];
    same_model(&model, words.into_iter());
}

#[test]
fn what_is_not_understood_is_left_to_the_crate() {
    let good = json!({"type": "BPE", "dropout": null, "unk_token": "u", "continuing_subword_prefix": "",
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": {"a": 0, "b": 1, "ab": 2, "u": 3}, "merges": [["a", "b"]]});
    let read = |model: &str| serde_json::from_str::<CompactModel>(model).is_ok();
    assert!(read(&model_text(&good)));
    let with = |key: &str, value: Value| {
        let mut model = good.clone();
        model[key] = value;
        read(&model_text(&model))
    };
    assert!(!read(&good.to_string()), "the type is not first");
    assert!(
        !read(&model_text(&good).replacen("\"dropout\"", "\"fuse_unk\":true,\"dropout\"", 1)),
        "a key twice"
    );
    assert!(!with("dropout", json!(0.5)));
    assert!(!with("continuing_subword_prefix", json!("##")));
    assert!(!with("end_of_word_suffix", json!("</w>")));
    assert!(!with("unk_token", json!("x")), "no such piece");
    assert!(!with("cache_capacity", json!(5)), "an unknown key");
    assert!(!with("vocab", json!({"a": 0, "b": 1, "ab": 1, "u": 3})), "an id twice");
    assert!(!with("vocab", json!({"a": 0, "b": 1, "ab": 2, "u": 3, "": 4})), "an empty piece");
    assert!(!with("vocab", json!({"a": 0, "b": 1, "ab": -2, "u": 3})));
    assert!(!with("merges", json!([["a", "c"]])), "no such piece");
    assert!(!with("merges", json!([["b", "a"]])), "a merge that makes no piece");
    assert!(!with("merges", json!([["a", "b"], "a b"])), "two ways to write merges");
    assert!(!with("merges", json!([["a", "b", "c"]])));
    assert!(!with("merges", json!(["a b c"])));
    assert!(!with("merges", json!(["ab"])));
    assert!(with("merges", json!(["#version: 0.2", "a b"])), "a comment");
}
