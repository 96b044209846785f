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
