//! Vocabularies of GGUF files: tokens of their own, bytes, and what is damaged.

use crate::models::formats::gguf::Gguf;
use crate::models::formats::gguf::tests::Writer;
use crate::models::tokenizers::gguf::{GgufTokenizer, tokenizer};
use crate::{Error, Result};

fn build(writer: &Writer) -> Result<GgufTokenizer> {
    let (_folder, path) = writer.write();
    tokenizer(&Gguf::open(&path).unwrap())
}

fn ids(writer: &Writer, text: &str) -> Vec<u32> {
    build(writer).unwrap().tokenizer.encode(text, false).unwrap().get_ids().to_vec()
}

fn refusal(writer: &Writer) -> String {
    match build(writer).map(|_| ()).unwrap_err() {
        Error::InvalidFile { reason, .. } | Error::Unsupported { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

/// `<unk>`, letters, bytes of 龍, and the mark of a space.
fn unigram(pieces: &[&str], types: &[i32]) -> Writer {
    Writer::default()
        .text("tokenizer.ggml.model", "t5")
        .texts("tokenizer.ggml.tokens", &pieces.iter().map(|piece| (*piece).to_owned()).collect::<Vec<_>>())
        .integers("tokenizer.ggml.token_type", types)
        .floats("tokenizer.ggml.scores", &vec![-1.0; pieces.len()])
}

#[test]
fn word_piece_has_tokens_of_its_own_under_their_ids() {
    let pieces = ["[UNK]", "[CLS]", "[SEP]", "▁a", "▁<doc>", "b"].map(str::to_owned);
    let writer = Writer::default()
        .text("tokenizer.ggml.model", "bert")
        .texts("tokenizer.ggml.tokens", &pieces)
        .integers("tokenizer.ggml.token_type", &[3, 3, 3, 1, 4, 1]);
    assert_eq!(ids(&writer, "a <doc> ab"), [3, 4, 3, 5]);
    // The mark is not part of the token.
    assert!(ids(&writer, "▁<doc>").iter().all(|id| (*id as usize) < pieces.len()));
}

/// Turkish: `ç` is a letter, not a `c` with a mark.
#[test]
fn word_piece_keeps_marks_and_case_as_the_file_says() {
    let pieces = ["[UNK]", "[CLS]", "[SEP]", "▁çal", "▁cal", "▁Çal"].map(str::to_owned);
    let file = || {
        Writer::default()
            .text("tokenizer.ggml.model", "bert")
            .texts("tokenizer.ggml.tokens", &pieces)
            .integers("tokenizer.ggml.token_type", &[3, 3, 3, 1, 1, 1])
    };
    let (lowercase, strips) =
        ("tokenizer.ggml.normalizer.lowercase", "tokenizer.ggml.normalizer.strip_accents");
    assert_eq!(ids(&file(), "Çal"), [5], "a word has a capital");
    assert_eq!(ids(&file().flag(lowercase, true), "Çal"), [4]);
    assert_eq!(ids(&file().flag(lowercase, true).flag(strips, false), "Çal"), [3]);
    assert_eq!(ids(&file().flag(lowercase, false).flag(strips, true), "Çal çal"), [0, 4]);
}

/// As llama.cpp has it: the tokens of a turn take the blanks after them.
#[test]
fn special_tokens_of_phi3_take_the_blanks_after_them() {
    let pieces = ["<unk>", "<s>", "<|user|>", "▁", "a", "<0x0A>"].map(str::to_owned);
    let file = |architecture: &str| {
        Writer::default()
            .text("general.architecture", architecture)
            .text("tokenizer.ggml.model", "llama")
            .texts("tokenizer.ggml.tokens", &pieces)
            .floats("tokenizer.ggml.scores", &[0.0; 6])
            .integers("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 6])
    };
    assert_eq!(ids(&file("phi3"), "<|user|>\n a"), [2, 3, 4]);
    assert_eq!(ids(&file("phi3"), "<s> a"), [1, 3, 3, 4]);
    assert_eq!(ids(&file("llama"), "<|user|>\na"), [2, 3, 5, 4]);
}

#[test]
fn bytes_stand_for_what_unigram_does_not_know() {
    let pieces = ["<unk>", "▁", "a", "<0xE9>", "<0xBE>", "<0x8D>"];
    assert_eq!(ids(&unigram(&pieces, &[2, 1, 1, 6, 6, 6]), "a龍"), [1, 2, 3, 4, 5]);
    assert_eq!(ids(&unigram(&pieces, &[2, 1, 1, 1, 1, 1]), "a龍"), [1, 2, 0]);
}

#[test]
fn unigram_needs_a_token_for_what_it_does_not_know() {
    assert!(refusal(&unigram(&["▁", "a"], &[1, 1])).contains("tokenizer.ggml.unknown_token_id"));
}

#[test]
fn spaces_are_removed_only_where_one_is_put_first() {
    let file = unigram(&["<unk>", "▁", "a"], &[2, 1, 1]).flag("tokenizer.ggml.add_space_prefix", false);
    assert!(refusal(&file).contains("remove_extra_whitespaces"));
    assert_eq!(ids(&file.flag("tokenizer.ggml.remove_extra_whitespaces", false), "a a"), [2, 1, 2]);
}

/// As in SentencePiece: other blanks are characters.
#[test]
fn unigram_splits_at_spaces_alone() {
    let blanks = unigram(&["<unk>", "▁", "a", "b", "\n"], &[2, 1, 1, 1, 1]);
    assert_eq!(ids(&blanks, "a\nb"), [1, 2, 4, 3]);
    assert_eq!(ids(&blanks, " a  b "), [1, 2, 1, 3]);
}

/// Types: unknown 2, control 3, defined by the user 4, unused 5, byte 6.
#[test]
fn pieces_that_are_not_normal_are_not_found_in_texts() {
    let pieces = ["<unk>", "▁", "a", "b", "ab", "<0x41>", "[PAD0]"];
    let file = |types: &[i32], scores: &[f32]| {
        Writer::default()
            .text("tokenizer.ggml.model", "t5")
            .texts("tokenizer.ggml.tokens", &pieces.map(str::to_owned))
            .integers("tokenizer.ggml.token_type", types)
            .floats("tokenizer.ggml.scores", scores)
    };
    let scores = [0.0, -1.0, -2.0, -2.0, -3.0, -1.0, -9.0];
    assert_eq!(ids(&file(&[2, 1, 1, 1, 1, 1, 1], &scores), "ab<0x41>"), [1, 4, 5]);
    assert_eq!(ids(&file(&[2, 1, 1, 1, 5, 1, 1], &scores), "ab"), [1, 2, 3], "unused");
    assert_eq!(ids(&file(&[2, 1, 1, 1, 1, 5, 5], &scores), "<0x41>"), [1, 0], "unused, too");
}

#[test]
fn an_unknown_character_costs_more_than_the_lowest_of_the_normal_pieces() {
    let pieces = ["<unk>", "▁", "ab", "cd", "abc", "[PAD0]"].map(str::to_owned);
    let file = |types: &[i32]| {
        Writer::default()
            .text("tokenizer.ggml.model", "t5")
            .texts("tokenizer.ggml.tokens", &pieces)
            .integers("tokenizer.ggml.token_type", types)
            .floats("tokenizer.ggml.scores", &[0.0, -1.0, -100.0, -100.0, -1.0, -9000.0])
    };
    // `abc` and an unknown `d` cost 1 + 110, `ab` and `cd` 200. A normal piece of -9000 makes the unknown one cost 9010.
    assert_eq!(ids(&file(&[2, 1, 1, 1, 1, 5]), "abcd"), [1, 4, 0]);
    assert_eq!(ids(&file(&[2, 1, 1, 1, 1, 1]), "abcd"), [1, 2, 3]);
}

#[test]
fn a_damaged_map_of_characters_is_refused() {
    let file = || unigram(&["<unk>", "▁", "a"], &[2, 1, 1]);
    for map in [
        &[][..],
        &[0, 0, 0, 0],
        // More than there is, and more than any memory.
        &[4, 0, 0, 0],
        &[255, 255, 255, 255, 0, 0, 0, 0],
        // A trie whose first unit points outside of it.
        &[4, 0, 0, 0, 0, 255, 255, 127],
    ] {
        let reason = refusal(&file().integers("tokenizer.ggml.precompiled_charsmap", map));
        assert!(reason.contains("precompiled_charsmap is damaged"), "{map:?}: {reason}");
    }
}

#[test]
fn gpt_neox_composes_letters_and_their_marks() {
    let letters = ["é", "Ã", "©", "e", "Ì", "ģ"].map(str::to_owned);
    let file = |architecture: &str, pre: &str| {
        Writer::default()
            .text("general.architecture", architecture)
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", pre)
            .texts("tokenizer.ggml.tokens", &letters)
            .integers("tokenizer.ggml.token_type", &[1; 6])
            .texts::<String>("tokenizer.ggml.merges", &[])
    };
    // `e` and U+0301, whose two bytes are the letters `Ì` and `ģ`; the two bytes of `é` are `Ã` and `©`.
    for (architecture, pre, expected) in [
        ("gptneox", "gpt-2", &[1, 2][..]),
        ("llama", "olmo", &[1, 2]),
        ("llama", "mpt", &[1, 2]),
        ("llama", "gpt-2", &[3, 4, 5]),
    ] {
        assert_eq!(ids(&file(architecture, pre), "e\u{301}"), expected, "{architecture} {pre}");
    }
}

/// What would change ids, or lose the first or the last token, in silence.
#[test]
fn damaged_metadata_is_named() {
    let pieces = ["a", "b", "ab", "<end>"].map(str::to_owned);
    let file = || {
        Writer::default()
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", "gpt-2")
            .texts("tokenizer.ggml.tokens", &pieces)
    };
    let merged = |merges: &[&str]| file().texts("tokenizer.ggml.merges", merges);
    assert_eq!(ids(&merged(&["a b"]), "ab"), [2]);
    assert_eq!(refusal(&merged(&["ab"])), "its merge \"ab\" has no space between its parts");
    for key in ["bos", "eos", "eot"] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        let outside = merged(&["a b"]).number(&key, 4);
        assert_eq!(refusal(&outside), format!("{key} is 4, but it has 4 tokens"));
        assert!(build(&merged(&["a b"]).number(&key, 3)).is_ok());
    }
    let begins = merged(&["a b"]).flag("tokenizer.ggml.add_bos_token", true);
    assert_eq!(
        refusal(&begins),
        "it adds a first token (add_bos_token) that it does not name (bos_token_id)"
    );
    let types = merged(&["a b"]).texts("tokenizer.ggml.token_type", &["1", "1", "1", "3"]);
    assert_eq!(refusal(&types), "tokenizer.ggml.token_type holds something else than integers");
}
