//! Parts together have the tokens of the whole text, whatever the text.

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::super::direct::Direct;
use super::super::model::Inner;
use super::super::{file, gguf};
use super::*;
use crate::models::formats::gguf::Gguf;
use crate::models::formats::gguf::tests::Writer;

type Named = (String, Pipeline, Cuts);

/// A tokenizer of every kind, with its cuts.
static TOKENIZERS: LazyLock<Vec<Named>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut all: Vec<(String, Pipeline)> = Vec::new();
    let mut add = |name: String, mut inner: Inner| {
        inner.with_truncation(None).unwrap();
        inner.with_padding(None);
        all.push((name, Pipeline::from(inner)));
    };
    for name in ["bert_wordpiece", "bert_unigram", "xlmr", "qwen3_embedding", "gpt2", "llama", "qwen2"] {
        let json = std::fs::read(folder.join(name).join("tokenizer.json")).unwrap();
        add(name.to_owned(), file::compact(&json).expect(name));
    }
    // A character that goes joins those around it.
    let json = std::fs::read(folder.join("bert_wordpiece").join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let without = serde_json::json!({"type": "Replace", "pattern": {"String": "'"}, "content": ""});
    json["normalizer"] =
        serde_json::json!({"type": "Sequence", "normalizers": [without, json["normalizer"].take()]});
    add("bert without apostrophes".to_owned(), serde_json::from_value(json.clone()).unwrap());
    // White space that is none for the pre-tokenizer.
    for (pattern, content) in [(" +", ""), (" ", "_"), ("\\n", "x")] {
        json["normalizer"] =
            serde_json::json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": content});
        json["pre_tokenizer"] = serde_json::json!({"type": "Whitespace"});
        add(format!("words with {content:?} for {pattern:?}"), serde_json::from_value(json.clone()).unwrap());
    }
    for pre in ["gpt-2", "smollm", "qwen2", "llama-bpe"] {
        add(pre.to_owned(), byte_level(pre));
    }
    add("sentencepiece".to_owned(), sentence_piece());
    for name in ["bert_wordpiece", "xlmr", "llama"] {
        let json = std::fs::read(folder.join(name).join("tokenizer.json")).unwrap();
        add(format!("{name} of the crate"), serde_json::from_slice(&json).unwrap());
    }
    let cuts = |(name, inner): (String, Pipeline)| {
        let cuts = Cuts::of(&inner);
        (name, inner, cuts)
    };
    all.into_iter().map(cuts).collect()
});

fn build(writer: &Writer) -> Inner {
    let (_folder, path) = writer.write();
    gguf::tokenizer(&Gguf::open(&path).unwrap()).unwrap().tokenizer
}

/// Byte-level BPE with merges of letters, spaces and punctuation.
fn byte_level(pre: &str) -> Inner {
    byte_level_without(pre, &[])
}

/// The same without the pieces of some bytes.
fn byte_level_without(pre: &str, lacking: &[char]) -> Inner {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    let known = ByteLevel::alphabet().into_iter().filter(|c| !lacking.contains(c));
    let mut pieces: Vec<String> = known.map(String::from).collect();
    pieces.sort_unstable();
    let merges =
        ["t h", "th e", "Ġ the", "! ?", "!? !?", "a a", "aa aa", "Ġ Ġ", "Ċ Ċ", "' r", "'r e", "Ġ a", "1 2"];
    pieces.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut types = vec![1; pieces.len()];
    pieces.push("<|im_end|>".into());
    types.push(3);
    build(
        &Writer::default()
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", pre)
            .texts("tokenizer.ggml.tokens", &pieces)
            .integers("tokenizer.ggml.token_type", &types)
            .texts("tokenizer.ggml.merges", &merges),
    )
}

fn sentence_piece() -> Inner {
    let mut pieces = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
    let mut types = vec![2, 3, 3];
    for byte in 0..=255u8 {
        pieces.push(format!("<0x{byte:02X}>"));
        types.push(6);
    }
    let words = [
        "▁the", "th", "▁t", "he", "aa", "aaaa", "!?", "▁▁", "你好", "▁", "t", "h", "e", "a", "!", "?", "你",
        "好",
    ];
    pieces.extend(words.map(String::from));
    types.resize(pieces.len(), 1);
    let scores: Vec<f32> = (0..pieces.len()).map(|id| -(id as f32)).collect();
    build(
        &Writer::default()
            .text("tokenizer.ggml.model", "llama")
            .texts("tokenizer.ggml.tokens", &pieces)
            .floats("tokenizer.ggml.scores", &scores)
            .integers("tokenizer.ggml.token_type", &types),
    )
}

/// Pieces of odd texts, each of them some number of times.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "the", "The", "world", "a", "merhaba", "Şehir", "can't", "you're", "12", "2024", "foo_bar", "naïve",
        ]).prop_map(String::from),
        4 => Just(" ".to_owned()),
        2 => prop::sample::select(vec![
            "!", "?", "!?", "...", "…", "—", "'", "’", "\"", "-", "$", "，", "。", "！", "ＡＢＣ", "‼", "؟", "‗", "￣",
        ]).prop_map(String::from),
        1 => prop::sample::select(vec![
            "你", "好", "世界", "東京", "カ\u{3099}", "ｶﾞ", "ไทย", "กำ", "หนึ่ง", "한국어", "\u{1112}\u{1161}\u{11ab}", "العربية", "हिन्दी",
            "बंगाली", "தமிழ்",
        ]).prop_map(String::from),
        1 => prop::sample::select(vec![
            "🙂", "👩‍👩‍👧", "🇹🇷", "👍🏽", "e\u{301}", "=\u{338}", "\u{301}", "\u{345}", "\u{200d}", "\u{fe0f}", "x\u{85}y",
        ]).prop_map(String::from),
        1 => prop::sample::select(vec!["\n", "\r\n", "\t", "  ", "\n \n", "\u{a0}", "\u{3000}", "\0", "\u{200b}"])
            .prop_map(String::from),
        1 => prop::sample::select(vec!["[MASK]", "<mask>", "<|im_end|>", "</s>", "[UNK]", "<|endoftext|>", "[SEP", "im_end|>"])
            .prop_map(String::from),
        1 => any::<char>().prop_map(String::from),
    ];
    let times = prop_oneof![12 => 1usize..3, 1 => 20usize..200, 1 => 200usize..900];
    let run =
        (prop::collection::vec(piece, 1..4), times).prop_map(|(pieces, times)| pieces.concat().repeat(times));
    prop::collection::vec(run, 1..60).prop_map(|runs| runs.concat())
}

fn plain(inner: &Pipeline, text: &str) -> Vec<u32> {
    inner.ids(text).unwrap()
}

fn bounded(inner: &Pipeline, cuts: &Cuts, text: &str, keep: Keep) -> Result<Vec<u32>> {
    read(inner, cuts, text, keep, &mut Bounds { max_bytes: 1 << 20, check: &mut || Ok(()) })
}

#[test]
fn a_text_is_not_cut_where_a_character_goes() {
    compare(&"can't Şehir'in ".repeat(3_000));
}

fn compare(text: &str) {
    for (name, inner, cuts) in TOKENIZERS.iter() {
        let whole = plain(inner, text);
        assert_eq!(
            bounded(inner, cuts, text, Keep::Beginning(usize::MAX)).unwrap(),
            whole,
            "{name}: {text:?}"
        );
        for room in [1, 7, 30, 200] {
            let found = bounded(inner, cuts, text, Keep::Beginning(room)).unwrap();
            let room = room.min(whole.len());
            assert_eq!(found.get(..room), Some(&whole[..room]), "{name}: {room} of {text:?}");
            let found = bounded(inner, cuts, text, Keep::End(room)).unwrap();
            assert!(found.ends_with(&whole[whole.len() - room..]), "{name}: the last {room} of {text:?}");
        }
    }
}

/// A few in every run of the tests; PROPTEST_CASES asks for more.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]
    #[test]
    fn parts_have_the_tokens_of_the_whole(text in text()) {
        compare(&text);
    }
}

#[test]
fn runs_of_one_thing() {
    let words = [
        "!?",
        "你好世界",
        "a",
        "á",
        "the",
        " ",
        "\n",
        "\n ",
        "12",
        "🙂",
        "ไทย",
        "e\u{301}",
        "\u{301}",
        "[MASK]",
        "'re",
        "'",
        "x!",
        "! ",
    ];
    for word in words {
        compare(&word.repeat(3000 / word.len()));
        compare(&format!("the {} end", word.repeat(3000 / word.len())));
    }
}

#[test]
fn natural_text_is_cut() {
    let texts = ["Hello world, it is fine. ", "你好世界，今天天气很好。", "!?", "merhaba dünya "];
    for (name, inner, cuts) in TOKENIZERS.iter() {
        for text in texts {
            let long = text.repeat(2000);
            let found = bounded(inner, cuts, &long, Keep::Beginning(50)).unwrap();
            assert!(found.len() <= 50 + 8 * MARGIN, "{name}: {} of {text:?}", found.len());
        }
    }
}

#[test]
fn what_cannot_be_cut_is_refused_by_name() {
    let (_, inner, cuts) = &TOKENIZERS[1];
    let mut bounds = Bounds { max_bytes: 1000, check: &mut || Ok(()) };
    let whole = read(inner, cuts, &"a b ".repeat(300), Keep::Beginning(usize::MAX), &mut bounds)
        .unwrap_err()
        .to_string();
    assert!(
        whole.contains("1200 bytes") && whole.contains("1000") && whole.contains("max_text_bytes"),
        "{whole}"
    );
    let stretch = " ".repeat(40_000);
    let stretch = read(inner, cuts, &stretch, Keep::Beginning(5000), &mut bounds).unwrap_err().to_string();
    assert!(stretch.contains("5000 tokens") && stretch.contains("max_text_bytes"), "{stretch}");
}

#[test]
fn the_check_ends_the_work_between_two_parts() {
    let (_, inner, cuts) = &TOKENIZERS[0];
    let text = "the world ".repeat(10_000);
    let mut asked = 0;
    let mut check = || {
        asked += 1;
        if asked > 3 { Err(Error::Cancelled) } else { Ok(()) }
    };
    let mut bounds = Bounds { max_bytes: 1 << 20, check: &mut check };
    assert_eq!(read(inner, cuts, &text, Keep::Beginning(usize::MAX), &mut bounds), Err(Error::Cancelled));
    assert_eq!(asked, 4);
}

#[test]
fn a_stretch_without_a_cut_is_given_up_while_it_is_read() {
    let named = |name: &&str| TOKENIZERS.iter().find(|(known, ..)| known == name).unwrap();
    for (name, inner, cuts) in ["gpt-2", "smollm", "llama-bpe"].iter().map(named) {
        for stretch in ["a", " ", "\n", "e\u{301}"] {
            let text = stretch.repeat(1 << 14);
            // More than where a place to cut is looked for.
            let (mut asked, enough) = (0, 20);
            let mut check = || {
                asked += 1;
                if asked < enough { Ok(()) } else { Err(Error::Cancelled) }
            };
            let mut bounds = Bounds { max_bytes: usize::MAX, check: &mut check };
            let read =
                each_part(inner, cuts, &text, &mut bounds, &mut |_| panic!("{name}: {stretch:?} is read"));
            assert_eq!(read, Err(Error::Cancelled), "{name}: {stretch:?}");
            assert_eq!(asked, enough, "{name}: {stretch:?}: it was asked on");
            let whole = bounded(inner, cuts, &text, Keep::Beginning(usize::MAX));
            assert_eq!(whole, Ok(plain(inner, &text)), "{name}: {stretch:?}");
        }
    }
}

#[test]
fn texts_with_a_byte_that_has_no_piece_are_left_to_the_crate() {
    // Bytes 0x04 and 0xF0, with which most emoji begin.
    let inner = byte_level_without("smollm", &['\u{104}', '\u{f0}']);
    let direct = Direct::of(&inner).unwrap();
    let pipeline = Pipeline::from(inner.clone());
    for (text, is_short) in [
        ("the theme, aaaa 12!?", true),
        ("Bugün hava çok güzel", true),
        ("a\u{4}b", false),
        ("the 🙂", false),
    ] {
        assert_eq!(direct.ids(&inner, text).is_some(), is_short, "{text:?}");
        let wanted = inner.encode_fast(text, false).unwrap();
        assert_eq!(plain(&pipeline, text), wanted.get_ids(), "{text:?}");
    }
}
