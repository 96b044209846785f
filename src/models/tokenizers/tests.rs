//! The small form gives what the tokenizers crate gives, or leaves the file to it.

use std::fs;
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use serde_json::{Value, json};
use tokenizers::{Model as _, Tokenizer};

use super::direct::Direct;
use super::unigram::Unigram;
use super::{Pipeline, Vocabulary as _, small};

/// Parts of texts: words, blanks, marks, scripts, control characters, and what looks like a special token.
const PARTS: &[&str] = &[
    "merhaba",
    "dünya",
    "İSTANBUL",
    "ıspanak",
    "Iğdır",
    "i̇",
    "ŞEHİR",
    "çağdaş",
    "güzel",
    "the",
    "The",
    "world",
    "a",
    "can't",
    "naïve",
    "ﬁne",
    "2024",
    "½",
    "№",
    "!",
    "?",
    "...",
    "…",
    "—",
    "'",
    "’",
    "(",
    "，",
    "。",
    "ＡＢＣ",
    "™",
    " ",
    " ",
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\r\n",
    "\t",
    "\u{a0}",
    "\u{3000}",
    "\u{2028}",
    "\u{85}",
    "\u{b}",
    "▁",
    "▁▁",
    "▁ ",
    " ▁",
    "\0",
    "\u{1}",
    "\u{7f}",
    "\u{ad}",
    "\u{200b}",
    "\u{200d}",
    "\u{feff}",
    "\u{fe0f}",
    "\u{fffd}",
    "\u{10ffff}",
    "\u{e000}",
    "你",
    "好",
    "世界",
    "東京",
    "カ\u{3099}",
    "ｶﾞ",
    "ไทย",
    "กำ",
    "한국어",
    "\u{1112}\u{1161}\u{11ab}",
    "العربية",
    "हिन्दी",
    "தமிழ்",
    "ελληνικά",
    "русский",
    "🙂",
    "👩‍👩‍👧",
    "🇹🇷",
    "👍🏽",
    "e\u{301}",
    "s\u{327}\u{307}",
    "=\u{338}",
    "\u{301}",
    "\u{345}",
    "\u{301}\u{302}\u{303}\u{304}\u{305}\u{306}",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<mask>",
    " <mask> ",
    "<mas",
    "k>",
    "<",
    ">",
    "<<mask>>",
    "<0x41>",
    "http://a.b/c?d=e&f",
    "foo_bar",
    "x\u{301}y",
];

struct RandomTexts(ChaCha8Rng);

impl RandomTexts {
    fn below(&mut self, limit: usize) -> usize {
        self.0.next_u32() as usize % limit
    }

    /// A text of parts, some of them many times, or any characters, or a piece of `real`.
    fn next(&mut self, real: &[char]) -> String {
        let mut text = String::new();
        for _ in 0..=self.below(12) {
            match self.below(16) {
                0 => {
                    let part = PARTS[self.below(PARTS.len())];
                    text.push_str(&part.repeat(1 + self.below(60)));
                }
                1 => text.extend(char::from_u32(self.0.next_u32() % 0x11_0000)),
                2 => text.extend(char::from_u32(self.0.next_u32() % 0x2000)),
                3 | 4 if !real.is_empty() => {
                    let (at, length) = (self.below(real.len()), self.below(80));
                    text.extend(&real[at..real.len().min(at + length)]);
                }
                5 if self.below(4) == 0 => text = text.to_uppercase(),
                _ => text.push_str(PARTS[self.below(PARTS.len())]),
            }
        }
        text
    }
}

fn fixture(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let mut json: Value = serde_json::from_slice(&fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;
    json
}

/// As the crate writes it: the type before all else.
fn bytes(json: &Value) -> Vec<u8> {
    let text = json.to_string();
    let model = json["model"].to_string();
    let rest = model.replacen(r#""type":"Unigram","#, "", 1).replacen(r#","type":"Unigram""#, "", 1);
    text.replacen(&model, &format!(r#"{{"type":"Unigram",{}"#, &rest[1..]), 1).into_bytes()
}

fn both(json: &[u8]) -> (Box<dyn Pipeline>, Tokenizer) {
    let small = small(json).expect("a Unigram model has a small form");
    (Unigram::ready(small), Tokenizer::from_bytes(json).unwrap())
}

fn compare(small: &dyn Pipeline, other: &Tokenizer, text: &str) {
    let wanted = other.encode_fast(text, false).unwrap();
    assert_eq!(small.ids(text).unwrap(), wanted.get_ids(), "{text:?}");
}

fn real_text() -> Vec<char> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["README.md", "docs/tr.md"].map(|file| fs::read_to_string(folder.join(file)).unwrap());
    files.concat().chars().collect()
}

/// Two tokenizers with their normalizers, pre-tokenizers and added tokens, and others: those that go the short way, those
/// that do not, and those that do for some texts.
#[test]
fn ids_are_those_of_the_crate() {
    let (real, mut texts) = (real_text(), RandomTexts(ChaCha8Rng::seed_from_u64(1)));
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
    let sequence = |all: Value| json!({"type": "Sequence", "pretokenizers": all});
    let pre_tokenizers = [
        metaspace("always", true),
        metaspace("first", true),
        metaspace("never", true),
        metaspace("always", false),
        json!({"type": "Metaspace", "replacement": "a", "prepend_scheme": "always", "split": true}),
        sequence(json!([{"type": "WhitespaceSplit"}, metaspace("always", true)])),
        sequence(json!([{"type": "Whitespace"}, metaspace("always", true)])),
        json!({"type": "WhitespaceSplit"}),
        Value::Null,
    ];
    let map = fixture("xlmr")["normalizer"].clone();
    let normalizers = |all: Value| json!({"type": "Sequence", "normalizers": all});
    let normalizers = [
        Value::Null,
        map.clone(),
        json!({"type": "NFC"}),
        normalizers(json!([])),
        normalizers(json!([map, {"type": "NFC"}])),
        normalizers(json!([{"type": "NFC"}, map])),
        normalizers(json!([map, {"type": "Lowercase"}])),
        json!({"type": "NFKC"}),
        json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}),
    ];
    let token = |content: &str, flag: &str| {
        let mut token = json!({"id": 9999, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false});
        token[flag] = true.into();
        token
    };
    let mut flag = ["single_word", "lstrip", "rstrip", "normalized", "special"].iter().cycle();
    let mut contents = ["the", "ğ", "▁", "İSTANBUL", "ＡＢＣ", " ", "e\u{301}"].iter().cycle();
    for (round, (normalizer, pre_tokenizer)) in
        normalizers.iter().flat_map(|n| pre_tokenizers.iter().map(move |p| (n, p))).enumerate()
    {
        let mut json = fixture(["xlmr", "bert_unigram"][round % 2]);
        json["normalizer"] = normalizer.clone();
        json["pre_tokenizer"] = pre_tokenizer.clone();
        if round % 3 == 1 {
            let token = token(contents.next().unwrap(), flag.next().unwrap());
            json["added_tokens"].as_array_mut().unwrap().push(token);
        }
        let (small, other) = both(&bytes(&json));
        let limit = other.get_vocab(true).into_values().max().unwrap() as usize + 1;
        assert_eq!(small.id_limit(), limit);
        for _ in 0..100 {
            compare(&*small, &other, &texts.next(&real));
        }
    }
}

#[test]
fn common_texts_go_the_short_way() {
    for name in ["xlmr", "bert_unigram"] {
        let mut json = fixture(name);
        let inner = small(&bytes(&json)).unwrap();
        let direct = Direct::of(&inner).expect(name);
        for text in [
            "Bugün hava çok güzel, sahile gidelim mi?",
            "İSTANBUL ＡＢＣ",
            "你好 🙂",
            "русский",
            "→ हिन्दी e\u{301}",
        ] {
            assert!(direct.ids(&inner, text).is_some(), "{name}: {text}");
        }
        assert_eq!(direct.ids(&inner, "an added <mask> token"), None);
        json["normalizer"] = json!({"type": "Lowercase"});
        assert!(Direct::of(&small(&bytes(&json)).unwrap()).is_none());
    }
}

#[test]
fn odd_texts_have_the_ids_of_the_crate() {
    for name in ["xlmr", "bert_unigram"] {
        let (small, other) = both(&bytes(&fixture(name)));
        for text in [
            "", " ", "\n", "▁", " ▁ ", "\u{200b}", "\u{ad}", "\0", "a\r\nb", "a\u{301}", "\u{600}a",
            "\u{301}a",
        ] {
            for around in ["", "a", " ", "ğ", "\u{600}", "\u{301}"] {
                compare(&*small, &other, &format!("{around}{text}{around}"));
            }
        }
        for c in ('\0'..=char::MAX).step_by(if name == "xlmr" { 17 } else { 97 }) {
            compare(&*small, &other, &format!("a{c}b {c}{c}ç{c}"));
        }
    }
}

/// Every letter of every script is in its vocabulary: other ways through a text than those of a small one. TOKENIZER_TEXTS
/// asks for more texts. Runs where `make models` has put the real models.
#[test]
fn ids_of_a_large_vocabulary_are_those_of_the_crate() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".models/multilingual-e5-small/tokenizer.json");
    let Ok(json) = fs::read(path) else { return };
    let wanted = std::env::var("TOKENIZER_TEXTS").map_or(1000, |texts| texts.parse().unwrap());
    let (small, other) = both(&json);
    let (real, mut texts) = (real_text(), RandomTexts(ChaCha8Rng::seed_from_u64(2)));
    for _ in 0..wanted {
        compare(&*small, &other, &texts.next(&real));
    }
}

/// Vocabularies in which many ways through a text have the same sum.
#[test]
fn tokens_of_random_vocabularies_are_those_of_the_crate() {
    let mut random = RandomTexts(ChaCha8Rng::seed_from_u64(3));
    let letters = ['a', 'b', 'c', 'ç', '你', '🙂', '▁'];
    for round in 0..400 {
        let word = |random: &mut RandomTexts, most| -> String {
            (0..=random.below(most)).map(|_| letters[random.below(letters.len())]).collect()
        };
        let scale = [0.25, 1.0, 0.1, 100.0][round % 4];
        let mut vocabulary = vec![json!(["<unk>", 0.0])];
        for _ in 0..random.below(40) {
            let score = (random.below(9) as f64 - if round % 8 < 4 { 8.0 } else { 0.0 }) * scale;
            vocabulary.push(json!([word(&mut random, 4), score]));
        }
        let fallback = round % 3 == 0;
        if fallback {
            vocabulary.extend((0..=255u8).map(|byte| json!([format!("<0x{byte:02X}>"), -5.0])));
        }
        let unknown = random.below(vocabulary.len());
        let model = json!({"unk_id": unknown, "vocab": vocabulary, "byte_fallback": fallback});
        let text = format!(r#"{{"type":"Unigram",{}"#, &model.to_string()[1..]);
        let small: Unigram = serde_json::from_str(&text).unwrap();
        let other: tokenizers::models::unigram::Unigram = serde_json::from_str(&text).unwrap();
        for _ in 0..50 {
            let text = word(&mut random, 30);
            let tokens = |tokens: Vec<tokenizers::Token>| -> Vec<_> {
                tokens.into_iter().map(|token| (token.id, token.value, token.offsets)).collect()
            };
            let wanted = tokens(other.tokenize(&text).unwrap());
            assert_eq!(tokens(small.tokenize(&text).unwrap()), wanted, "{text:?} by {model}");
            assert_eq!(small.token_to_id(&text), other.token_to_id(&text));
        }
        for id in 0..=vocabulary.len() as u32 {
            assert_eq!(small.id_to_token(id), other.id_to_token(id));
        }
        assert_eq!(small.get_vocab(), other.get_vocab());
    }
}

/// Whatever is not known to the last key is the crate's.
#[test]
fn what_is_not_understood_is_left_to_the_crate() {
    let good = json!({"unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": false});
    let read = |model: &str| serde_json::from_str::<Unigram>(model).is_ok();
    let typed = |model: &Value| format!(r#"{{"type":"Unigram",{}"#, &model.to_string()[1..]);
    assert!(read(&typed(&good)));
    let with = |key: &str, value: Value| {
        let mut model = good.clone();
        model[key] = value;
        typed(&model)
    };
    assert!(!read(&good.to_string()), "no type");
    assert!(
        !read(&format!(r#"{},"type":"Unigram"}}"#, good.to_string().trim_end_matches('}'))),
        "the type last"
    );
    assert!(!read(&typed(&good).replace("Unigram", "BPE")));
    assert!(!read(&with("unk_id", Value::Null)));
    assert!(!read(&with("unk_id", json!(2))), "no such piece");
    assert!(!read(&with("vocab", json!([["<unk>", 0.0], ["", 0.0]]))), "an empty piece");
    assert!(!read(&with("vocab", json!([["<unk>", 0.0, 1]]))));
    assert!(!read(&with("vocab", json!([["<unk>"]]))));
    assert!(!read(&with("vocab", json!({"<unk>": 0}))));
    assert!(!read(&with("byte_fallback", json!(true))), "no pieces of bytes");
    assert!(!read(&with("alpha", json!(0.1))), "an unknown key");
    assert!(!read(&typed(&good).replace("}", r#","unk_id":1}"#)), "a key that is there twice");
    for name in ["bert_wordpiece", "qwen3_embedding", "gpt2", "llama"] {
        assert!(small(fixture(name).to_string().as_bytes()).is_none(), "{name}");
    }
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/xlmr");
    let whole = fs::read(folder.join("tokenizer.json")).unwrap();
    assert!(small(&whole).is_some());
    assert!(small(&whole[..whole.len() - 3]).is_none());
}
