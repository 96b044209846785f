//! Tokenizers of all kinds: ids and places are the tokenizers crate's.

use super::super::wordpiece_model::WordPieces;
use super::*;

/// Tokenizers as libraries write them.
const KINDS: [&str; 16] = [
    "tokenizers/bytes_gpt2",
    "tokenizers/bytes_llama3",
    "tokenizers/bytes_modernbert",
    "tokenizers/bytes_qwen2",
    "tokenizers/bytes_roberta",
    "tokenizers/bytes_smollm",
    "tokenizers/sentencepiece_gemma",
    "tokenizers/sentencepiece_llama",
    "tokenizers/unigram_albert",
    "tokenizers/unigram_bytes",
    "tokenizers/unigram_t5",
    "tokenizers/unigram_xlmr",
    "tokenizers/wordpiece_accents_kept",
    "tokenizers/wordpiece_accents_stripped",
    "tokenizers/wordpiece_cased",
    "tokenizers/wordpiece_uncased",
];

/// Of which most texts go the short way.
const SHORT: [&str; 14] = [
    "tokenizers/bytes_gpt2",
    "tokenizers/bytes_llama3",
    "tokenizers/bytes_modernbert",
    "tokenizers/bytes_qwen2",
    "tokenizers/bytes_roberta",
    "tokenizers/bytes_smollm",
    "tokenizers/sentencepiece_gemma",
    "tokenizers/sentencepiece_llama",
    "tokenizers/unigram_t5",
    "tokenizers/unigram_xlmr",
    "tokenizers/wordpiece_accents_kept",
    "tokenizers/wordpiece_accents_stripped",
    "tokenizers/wordpiece_cased",
    "tokenizers/wordpiece_uncased",
];

fn same(ours: &Pipeline, other: &Tokenizer, text: &str) {
    compare(ours, other, text);
    let wanted = other.encode(text, false).unwrap();
    let (ids, places) = ours.places(text).unwrap();
    assert_eq!((&*ids, &*places), (wanted.get_ids(), wanted.get_offsets()), "{text:?}");
    let inner = ours.inner();
    let (own, whole) = (inner.encode(text, true).unwrap(), other.encode(text, true).unwrap());
    assert_eq!(own.get_tokens(), whole.get_tokens(), "{text:?}");
    assert_eq!(own.get_special_tokens_mask(), whole.get_special_tokens_mask(), "{text:?}");
    assert_eq!(inner.decode(&ids, true).unwrap(), other.decode(&ids, true).unwrap(), "{text:?}");
}

#[test]
fn ids_and_places_of_every_kind_are_those_of_the_crate() {
    let (real, mut texts) = (real_text(), RandomTexts(ChaCha8Rng::seed_from_u64(7)));
    for name in KINDS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let json = fs::read(path.join("tokenizer.json")).unwrap();
        let (ours, other) = both(&json);
        let (ours, other) = (without_limits(&ours), without_limits_of_crate(other));
        assert_eq!(
            ours.id_limit(),
            other.get_vocab(true).into_values().max().unwrap() as usize + 1,
            "{name}"
        );
        for _ in 0..60 {
            same(&ours, &other, &texts.next(&real));
        }
        for c in ('\0'..=char::MAX).step_by(1999) {
            same(&ours, &other, &format!("a{c}b {c}{c}ç{c}"));
        }
        let direct = Direct::of(ours.inner());
        assert_eq!(direct.is_some(), SHORT.contains(&name), "{name}");
        if let Some(direct) = direct {
            assert!(direct.ids(ours.inner(), "Bugün hava çok güzel, 2024!").is_some(), "{name}");
        }
    }
}

fn without_limits(ours: &Pipeline) -> Pipeline {
    let mut inner = ours.inner().clone();
    inner.with_truncation(None).unwrap();
    inner.with_padding(None);
    Pipeline::from(inner)
}

fn without_limits_of_crate(mut other: Tokenizer) -> Tokenizer {
    other.with_truncation(None).unwrap();
    other.with_padding(None);
    other
}

/// Every character that goes the short way of WordPiece, between all kinds of neighbors.
#[test]
fn latin_letters_of_word_pieces_have_the_ids_of_the_crate() {
    for name in &SHORT[10..] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let (ours, other) = both(&fs::read(path.join("tokenizer.json")).unwrap());
        let (ours, other) = (without_limits(&ours), without_limits_of_crate(other));
        for c in ('\0'..'\u{400}').chain('\u{2000}'..'\u{2030}') {
            for around in ["", "a", " ", "'", "\u{301}", "İ"] {
                compare(&ours, &other, &format!("{around}{c}{around}{c}{c} a{c}b"));
            }
        }
    }
}

/// Normalizers, pre-tokenizers and added tokens of BPE that go the short way, and others that must not.
#[test]
fn ids_of_bpe_with_other_parts_are_those_of_the_crate() {
    let (real, mut texts) = (real_text(), RandomTexts(ChaCha8Rng::seed_from_u64(8)));
    let bytes_level = |regex: bool, prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex});
    let sequence = |all: Value| json!({"type": "Sequence", "pretokenizers": all});
    let split = |pattern: Value, behavior: &str, invert: bool| json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert});
    let digits = |each: bool| json!({"type": "Digits", "individual_digits": each});
    let regex = json!({"Regex": crate::models::tokenizers::gguf::QWEN2});
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
    let pre_tokenizers = [
        Value::Null,
        bytes_level(true, false),
        bytes_level(true, true),
        bytes_level(false, false),
        bytes_level(false, true),
        sequence(json!([digits(true), bytes_level(true, false)])),
        sequence(json!([digits(false), bytes_level(true, false)])),
        sequence(json!([digits(true), bytes_level(true, true)])),
        sequence(json!([split(regex.clone(), "Isolated", false), bytes_level(false, false)])),
        sequence(json!([split(regex.clone(), "Isolated", true), bytes_level(false, false)])),
        sequence(json!([split(regex, "Removed", true), bytes_level(false, false)])),
        sequence(json!([
            split(json!({"String": "a"}), "Isolated", false),
            digits(true),
            bytes_level(false, false)
        ])),
        sequence(json!([split(json!({"String": "a"}), "Removed", false), bytes_level(false, false)])),
        sequence(json!([split(json!({"String": "a"}), "MergedWithNext", false), bytes_level(false, false)])),
        sequence(json!([split(json!({"Regex": "x*"}), "Isolated", false), bytes_level(true, false)])),
        sequence(json!([bytes_level(true, false), digits(true)])),
        split(json!({"String": " "}), "MergedWithPrevious", false),
        split(json!({"String": " "}), "Removed", true),
        split(json!({"String": "▁"}), "MergedWithNext", false),
        metaspace("first", false),
        metaspace("first", true),
        metaspace("always", true),
        metaspace("never", true),
        json!({"type": "WhitespaceSplit"}),
    ];
    let normalizers = |all: Value| json!({"type": "Sequence", "normalizers": all});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    let normalizers = [
        Value::Null,
        json!({"type": "NFC"}),
        json!({"type": "NFKC"}),
        normalizers(json!([])),
        normalizers(json!([prepend, replace])),
        normalizers(json!([replace, prepend])),
        replace,
        json!({"type": "Replace", "pattern": {"Regex": " "}, "content": "▁"}),
        json!({"type": "Lowercase"}),
    ];
    let mut contents = ["the", "ğ", "▁", "İSTANBUL", " ", "e\u{301}", "▁the", "a b", "\n"].iter().cycle();
    let flags = ["single_word", "lstrip", "rstrip", "normalized", "special"];
    for (round, (normalizer, pre_tokenizer)) in
        normalizers.iter().flat_map(|n| pre_tokenizers.iter().map(move |p| (n, p))).enumerate()
    {
        let mut json = fixture(["tokenizers/bytes_qwen2", "tokenizers/sentencepiece_llama"][round % 2]);
        json["normalizer"] = normalizer.clone();
        json["pre_tokenizer"] = pre_tokenizer.clone();
        if round % 3 == 1 {
            let mut token = json!({"id": 9999, "content": contents.next().unwrap(), "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": round % 2 == 0, "special": false});
            token[flags[round % flags.len()]] = true.into();
            json["added_tokens"].as_array_mut().unwrap().push(token);
        }
        let (ours, other) = both(&super::bytes(&json));
        for _ in 0..30 {
            compare(&ours, &other, &texts.next(&real));
        }
    }
}

#[test]
fn tokens_of_random_word_pieces_are_those_of_the_crate() {
    let mut random = RandomTexts(ChaCha8Rng::seed_from_u64(9));
    let letters = ["a", "b", "ç", "你", "#", "##", "🙂"];
    for round in 0..300 {
        let word = |random: &mut RandomTexts, most| -> String {
            (0..=random.below(most)).map(|_| letters[random.below(letters.len())]).collect()
        };
        let mut vocabulary = serde_json::Map::new();
        vocabulary.insert("[UNK]".into(), json!(random.below(3)));
        let prefix = ["##", "", "ç", "#"][round % 4];
        for _ in 0..random.below(40) {
            let inside = if random.below(2) == 0 { prefix } else { "" };
            // In half of the rounds some ids are left out.
            let id = 3 + vocabulary.len() * (1 + round % 2);
            vocabulary.entry(format!("{inside}{}", word(&mut random, 4))).or_insert(json!(id));
        }
        let most = [100, 5, 0][round % 3];
        let model = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": prefix,
            "max_input_chars_per_word": most, "vocab": vocabulary});
        let words: Vec<String> = (0..40).map(|_| word(&mut random, 12)).chain([String::new()]).collect();
        same_model(&model, words.into_iter());
    }
}

#[test]
fn word_pieces_that_are_not_understood_are_left_to_the_crate() {
    let good = json!({"type": "WordPiece", "unk_token": "u", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"a": 0, "##b": 1, "u": 2}});
    let read = |model: &Value| serde_json::from_str::<CompactModel>(&model_text(model)).is_ok();
    assert!(read(&good));
    for (key, value) in [
        ("unk_token", json!("x")),
        ("max_input_chars_per_word", json!(-1)),
        ("vocab", json!({"a": 0, "##b": 0, "u": 2})),
        ("vocab", json!({"": 0, "##b": 1, "u": 2})),
        ("other", json!(1)),
    ] {
        let mut model = good.clone();
        model[key] = value;
        assert!(!read(&model), "{key}");
    }
    for key in ["unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab"] {
        let mut model = good.clone();
        model.as_object_mut().unwrap().remove(key);
        assert!(!read(&model), "{key}");
    }
    let longest = serde_json::from_str::<CompactModel>(&model_text(&good)).unwrap().0;
    let TokenModel::WordPiece(model) = longest else { panic!("it is WordPiece") };
    assert_eq!(WordPieces::most_characters(&model), 100);
}

/// A file whose outer form is not understood is read by the crate alone, and refused where the crate refuses it.
#[test]
fn files_of_another_form_are_left_to_the_crate() {
    let json = fixture("tokenizers/bytes_gpt2");
    let good = String::from_utf8(super::bytes(&json)).unwrap();
    assert!(compact(good.as_bytes()).is_some());
    assert!(compact(format!(" \n{good}\t").as_bytes()).is_some());
    let inside = &good[1..good.len() - 1];
    for bad in [
        format!("{{{inside},}}"),
        format!("{{{inside}}}x"),
        format!("{{{inside},\"other\":1}}"),
        format!("{{{inside},\"decoder\":null}}"),
        format!("{{{inside},\"model\":{{}}}}"),
        format!("{{\"version\":null,{inside}}}").replacen(r#","version":"1.0""#, "", 1),
        good.replacen(r#""version":"1.0""#, r#""version":"2.0""#, 1),
        good.replacen(r#""normalizer":null"#, r#""normalizer":{"type":"Nothing"}"#, 1),
        good.replacen(r#""normalizer":null"#, r#""normalizer":nul"#, 1),
        inside.to_owned(),
        String::new(),
        "{}".to_owned(),
        "[]".to_owned(),
    ] {
        assert!(compact(bad.as_bytes()).is_none(), "{}", &bad[..bad.len().min(80)]);
    }
    assert!(compact(&[b"{\"\xff\":1,", inside.as_bytes(), b"}"].concat()).is_none());
    let deep = format!(
        "{}{{\"type\":\"NFC\"}}{}",
        "{\"type\":\"Sequence\",\"normalizers\":[".repeat(9),
        "]}".repeat(9)
    );
    assert!(
        compact(good.replacen(r#""normalizer":null"#, &format!("\"normalizer\":{deep}"), 1).as_bytes())
            .is_none()
    );
}

/// Pre-tokenizers and normalizers of Unigram that go the short way, and others that must not.
#[test]
fn ids_of_unigram_with_other_parts_are_those_of_the_crate() {
    let (real, mut texts) = (real_text(), RandomTexts(ChaCha8Rng::seed_from_u64(10)));
    let metaspace = |replacement: &str, scheme: &str, split: bool| {
        json!({"type": "Metaspace",
        "replacement": replacement, "prepend_scheme": scheme, "split": split})
    };
    let sequence = |all: Value| json!({"type": "Sequence", "pretokenizers": all});
    let white = json!({"type": "WhitespaceSplit"});
    let pre_tokenizers = [
        metaspace("▁", "always", true),
        metaspace("▁", "always", false),
        metaspace("▁", "first", true),
        metaspace("▁", "never", true),
        metaspace("_", "always", true),
        sequence(json!([white, metaspace("▁", "always", true)])),
        sequence(json!([white, metaspace("▁", "always", false)])),
        sequence(json!([white, metaspace("▁", "never", true)])),
        sequence(json!([metaspace("▁", "always", true), white])),
        white,
    ];
    for (round, pre_tokenizer) in pre_tokenizers.iter().enumerate() {
        let mut json = fixture(["tokenizers/unigram_t5", "tokenizers/unigram_xlmr"][round % 2]);
        json["pre_tokenizer"] = pre_tokenizer.clone();
        for normalizer in
            [json["normalizer"].clone(), Value::Null, json!({"type": "NFC"}), json!({"type": "Lowercase"})]
        {
            json["normalizer"] = normalizer;
            let (ours, other) = both(&super::bytes(&json));
            for text in ["  a  b ", "the_end", "a▁b", "", " "] {
                compare(&ours, &other, text);
            }
            for _ in 0..10 {
                compare(&ours, &other, &texts.next(&real));
            }
        }
    }
}
