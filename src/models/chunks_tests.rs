use std::cell::Cell;
use std::path::Path;

use super::*;

fn tokenizer(fixture: &str) -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
    Tokenizer::of_file(&folder.join("tokenizer.json")).unwrap()
}

/// The chunks of `text`, and how many bytes were counted for them.
fn split(tokenizer: &Tokenizer, text: &str, max_tokens: usize, overlap: usize) -> (Vec<TextChunk>, usize) {
    let counted = Cell::new(0);
    let count = |piece: &str, bounds: &mut Bounds<'_>| {
        counted.set(counted.get() + piece.len());
        tokenizer.count_within(piece, bounds)
    };
    let bounds = &mut Bounds { max_bytes: usize::MAX, check: &mut || Ok(()) };
    let size = ChunkSize { max_tokens, overlap };
    let found = chunks_of_lines(tokenizer, text, &count, size, 1_000, bounds).unwrap();
    (found, counted.get())
}

/// Texts without a place to cut, or with none but spaces, of about `bytes` bytes.
fn monotonous(bytes: usize) -> [String; 4] {
    let of = |part: &str| part.repeat(bytes / part.len());
    [of("abcdefghij"), of("the cat sat on the mat "), of("Vana kapandı; "), of("机器维护和质量控制")]
}

#[test]
fn the_work_grows_with_the_text_alone() {
    for fixture in ["llama_embedding", "bert_wordpiece"] {
        let tokenizer = tokenizer(fixture);
        let counted = |bytes| monotonous(bytes).map(|text| split(&tokenizer, &text, 16, 4).1);
        let (short, long) = (counted(6_000), counted(18_000));
        for (text, (short, long)) in short.into_iter().zip(long).enumerate() {
            assert!(long <= 4 * short, "{fixture}, text {text}: {short} bytes, then {long}");
        }
    }
}

#[test]
fn texts_without_a_place_to_cut_are_whole_in_their_chunks() {
    for fixture in ["llama_embedding", "bert_wordpiece"] {
        let tokenizer = tokenizer(fixture);
        for text in monotonous(6_000) {
            let mut end = 0;
            for chunk in split(&tokenizer, &text, 16, 0).0 {
                assert!(text[end..chunk.bytes.start].trim().is_empty(), "{fixture}");
                let piece = &text[chunk.bytes.clone()];
                assert_eq!(tokenizer.count(piece).unwrap(), chunk.tokens, "{fixture}: {piece}");
                assert_eq!(text[..chunk.bytes.start].chars().count(), chunk.characters.start);
                assert_eq!(piece.chars().count(), chunk.characters.len());
                assert!(chunk.tokens <= 16);
                end = chunk.bytes.end;
            }
            assert!(text[end..].trim().is_empty(), "{fixture}");
        }
    }
}

#[test]
fn long_lines_are_cut_at_the_ends_of_sentences_then_of_words() {
    let line = |unit: &str| unit.repeat(3 * 1_000 / unit.len());
    let ends = |text: &str| stretches(text, 1_000).map(|part| part.end).collect::<Vec<_>>();
    // The characters that end the stretches, but for the last one.
    let last = |text: &str| {
        let ends = ends(text);
        ends[..ends.len() - 1].iter().filter_map(|&end| text[..end].chars().next_back()).collect::<String>()
    };
    let sentences = line("A pump ran hot. ");
    assert_eq!(last(&sentences), "...");
    assert_eq!(last(&line("vana pompa ")), "   ");
    assert_eq!(last(&line("机器维护。")), "。。。");
    let letters = "é".repeat(1_600);
    assert_eq!(ends(&letters), [1_000, 2_000, 3_000, 3_200]);
    // A text whose lines are short is one stretch, however long it is.
    let lines = "A line of usual length.\n".repeat(1_000);
    assert_eq!(ends(&lines), [lines.len()]);
    let mixed = format!("{lines}{letters}\r{lines}");
    let start = lines.len();
    assert_eq!(ends(&mixed), [start + 1_000, start + 2_000, start + 3_000, mixed.len()]);
    assert_eq!(ends(""), [0]);
}
