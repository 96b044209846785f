//! The small form gives what the tokenizers crate gives, or leaves the file to it.

use std::fs;
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use serde_json::{Value, json};
use tokenizers::{Model, Tokenizer};

use super::Pipeline;
use super::compact::CompactModel;
use super::direct::Direct;
use super::file::compact;
use super::model::TokenModel;

#[path = "kinds_tests.rs"]
mod kinds;

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

pub(super) struct RandomTexts(pub(super) ChaCha8Rng);

impl RandomTexts {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0.next_u32() as usize % limit
    }

    /// A text of parts, some of them many times, or any characters, or a piece of `real`.
    pub(super) fn next(&mut self, real: &[char]) -> String {
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

pub(super) fn fixture(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let mut json: Value = serde_json::from_slice(&fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;
    json
}

/// As the crate writes it: the type before all else, vocabulary and merges last.
pub(super) fn model_text(model: &Value) -> String {
    let mut rest = model.as_object().unwrap().clone();
    let mut fields = Vec::new();
    let mut move_field = |rest: &mut serde_json::Map<String, Value>, key: &str| {
        if let Some(value) = rest.remove(key) {
            fields.push(format!("{}:{value}", json!(key)));
        }
    };
    move_field(&mut rest, "type");
    let last: Vec<(&str, Option<Value>)> =
        ["vocab", "merges"].into_iter().map(|key| (key, rest.remove(key))).collect();
    let middle: Vec<String> = rest.keys().cloned().collect();
    middle.iter().for_each(|key| move_field(&mut rest, key));
    for (key, value) in last {
        rest.extend(value.map(|value| (key.to_owned(), value)));
        move_field(&mut rest, key);
    }
    format!("{{{}}}", fields.join(","))
}

pub(super) fn bytes(json: &Value) -> Vec<u8> {
    json.to_string().replacen(&json["model"].to_string(), &model_text(&json["model"]), 1).into_bytes()
}

/// The pipeline over a model of ours, and the crate's tokenizer of the same file.
fn both(json: &[u8]) -> (Pipeline, Tokenizer) {
    let inner = compact(json).expect("the model has a form of ours");
    assert!(!matches!(inner.get_model(), TokenModel::Crate(_)));
    (Pipeline::from(inner), Tokenizer::from_bytes(json).unwrap())
}

/// The tokens of a word by a model of ours are the crate's, and so is the vocabulary.
pub(super) fn same_model(model: &Value, words: impl Iterator<Item = String>) -> TokenModel {
    let text = model_text(model);
    let ours = serde_json::from_str::<CompactModel>(&text).unwrap_or_else(|e| panic!("{e}: {text}")).0;
    let other: tokenizers::models::ModelWrapper = serde_json::from_str(&text).unwrap();
    let tokens = |model: &dyn Fn(&str) -> tokenizers::Result<Vec<tokenizers::Token>>, word: &str| -> Vec<_> {
        model(word).unwrap().into_iter().map(|token| (token.id, token.value, token.offsets)).collect()
    };
    for word in words {
        let wanted = tokens(&|word| other.tokenize(word), &word);
        assert_eq!(tokens(&|word| ours.tokenize(word), &word), wanted, "{word:?} by {text}");
        assert_eq!(ours.token_to_id(&word), other.token_to_id(&word));
    }
    for id in 0..=other.get_vocab().into_values().max().map_or(0, |id| id + 1) {
        assert_eq!(ours.id_to_token(id), other.id_to_token(id));
    }
    assert_eq!(ours.get_vocab(), other.get_vocab());
    assert_eq!(ours.get_vocab_size(), other.get_vocab_size());
    ours
}

fn compare(small: &Pipeline, other: &Tokenizer, text: &str) {
    let wanted = other.encode_fast(text, false).unwrap();
    assert_eq!(small.ids(text).unwrap(), wanted.get_ids(), "{text:?}");
}

pub(super) fn real_text() -> Vec<char> {
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
            compare(&small, &other, &texts.next(&real));
        }
    }
}

#[test]
fn common_texts_go_the_short_way() {
    for name in ["xlmr", "bert_unigram"] {
        let mut json = fixture(name);
        let inner = compact(&bytes(&json)).unwrap();
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
        assert!(Direct::of(&compact(&bytes(&json)).unwrap()).is_none());
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
                compare(&small, &other, &format!("{around}{text}{around}"));
            }
        }
        for c in ('\0'..=char::MAX).step_by(if name == "xlmr" { 17 } else { 97 }) {
            compare(&small, &other, &format!("a{c}b {c}{c}ç{c}"));
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
        compare(&small, &other, &texts.next(&real));
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
        let model =
            json!({"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": fallback});
        let words: Vec<String> = (0..50).map(|_| word(&mut random, 30)).collect();
        same_model(&model, words.into_iter());
    }
}

/// Whatever is not known to the last key is the crate's.
#[test]
fn what_is_not_understood_is_left_to_the_crate() {
    let good = json!({"unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": false});
    let read = |model: &str| serde_json::from_str::<CompactModel>(model).is_ok();
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
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/xlmr");
    let whole = fs::read(folder.join("tokenizer.json")).unwrap();
    assert!(compact(&whole).is_some());
    assert!(compact(&whole[..whole.len() - 3]).is_none());
}
