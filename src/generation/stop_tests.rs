use std::collections::HashMap;

use proptest::prelude::*;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::Replace;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, PaddingParams, PaddingStrategy, TruncationParams};

use super::*;
use crate::models::tokenizers::model::TokenModel;

/// One token a byte, spelt as GPT-2 spells bytes, and a few words; the last id is special.
pub(crate) fn byte_level() -> TextTokens {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut vocabulary: HashMap<String, u32> =
        alphabet.iter().enumerate().map(|(id, c)| (c.to_string(), id as u32)).collect();
    for word in ["ĠMerhaba", "Ġdünya", "ÅŁ", "ĠÄ", "ı"] {
        vocabulary.insert(word.into(), vocabulary.len() as u32);
    }
    let model = BPE::builder().vocab_and_merges(Vocab::from_iter(vocabulary), vec![]);
    let mut tokenizer = Inner::new(TokenModel::of_crate(model.build().unwrap()));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.add_special_tokens([AddedToken::from("<end>", true)]).unwrap();
    TextTokens::new(tokenizer).unwrap()
}

/// SentencePiece as Llama's tokenizer.json spells it: bytes as `<0xE2>`, words with a leading `▁`.
fn sentence_piece() -> TextTokens {
    let bytes = (0..=255u32).map(|byte| (format!("<0x{byte:02X}>"), byte));
    let words = ["▁", "▁Merhaba", "▁dünya", "lar", "▁▁", "ş", ".", "\u{fffd}"];
    let words = words.iter().zip(256..).map(|(word, id)| (word.to_string(), id));
    let vocabulary: Vocab = bytes.chain(words).collect();
    let model = BPE::builder().vocab_and_merges(vocabulary, vec![]).byte_fallback(true);
    let mut tokenizer = Inner::new(TokenModel::of_crate(model.build().unwrap()));
    tokenizer.with_decoder(Some(Sequence::new(vec![
        Replace::new("▁", " ").unwrap().into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
        Strip::new(' ', 1, 0).into(),
    ])));
    tokenizer.add_special_tokens([AddedToken::from("<end>", true)]).unwrap();
    TextTokens::new(tokenizer).unwrap()
}

fn streamed(tokens: &TextTokens, ids: &[u32]) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(tokens, &[]);
    let mut pieces: Vec<_> = ids.iter().map(|&id| detokenizer.push(tokens, id).unwrap()).collect();
    pieces.push(detokenizer.finish(tokens).unwrap());
    pieces
}

proptest! {
    #[test]
    fn pieces_of_byte_level_tokens_are_the_whole(ids in prop::collection::vec(0u32..262, 0..40)) {
        let tokens = byte_level();
        prop_assert_eq!(streamed(&tokens, &ids).concat(), tokens.decode(&ids).unwrap());
    }

    /// Long runs of bytes that are no characters, and of tokens that begin in the middle of one.
    #[test]
    fn long_runs_of_incomplete_characters_are_the_whole(
        runs in prop::collection::vec((prop::collection::vec(0u32..262, 1..4), 1usize..120), 1..5)
    ) {
        let tokens = byte_level();
        let ids: Vec<u32> = runs.iter().flat_map(|(run, times)| run.repeat(*times)).collect();
        prop_assert_eq!(streamed(&tokens, &ids).concat(), tokens.decode(&ids).unwrap());
    }

    #[test]
    fn pieces_of_sentence_piece_tokens_are_the_whole(
        parts in prop::collection::vec(prop_oneof![(256u32..265).prop_map(Ok), any::<char>().prop_map(Err)], 0..20)
    ) {
        let tokens = sentence_piece();
        let bytes = |c: char| c.to_string().bytes().map(u32::from).collect::<Vec<_>>();
        let ids: Vec<u32> = parts.iter().flat_map(|part| part.map_or_else(bytes, |id| vec![id])).collect();
        prop_assert_eq!(streamed(&tokens, &ids).concat(), tokens.decode(&ids).unwrap());
    }

    #[test]
    fn characters_arrive_whole(text in "\\PC{0,20}") {
        let tokens = sentence_piece();
        let ids: Vec<u32> = text.bytes().map(u32::from).collect();
        for piece in streamed(&tokens, &ids).iter().filter(|piece| !piece.is_empty()) {
            prop_assert!(text.contains(piece.as_str()), "{piece:?} is not a part of {text:?}");
        }
    }

    #[test]
    fn stop_texts_cut_at_the_first(text in "[ab]{0,24}", stops in prop::collection::vec("[ab]{1,4}", 0..3),
                                   cuts in prop::collection::vec(1usize..4, 24)) {
        let first = stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
        let mut watch = StopTexts::new(stops.clone());
        let (mut shown, mut stopped, mut rest) = (String::new(), false, text.as_str());
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            rest = after;
            let released = watch.push(piece);
            shown.push_str(&released.text);
            stopped = released.stopped;
            if stopped || rest.is_empty() {
                break;
            }
        }
        if !stopped {
            shown.push_str(&watch.finish());
        }
        prop_assert_eq!(stopped, first.is_some());
        // A stop text is recognized when its last character comes; a longer one that began earlier may still have
        // been open then.
        let possible: Vec<&str> = stops.iter().filter_map(|stop| text.find(stop.as_str())).map(|at| &text[..at]).collect();
        let right = if stopped { possible.contains(&shown.as_str()) } else { shown == text };
        prop_assert!(right, "{} of {}", shown, text);
    }
}

/// A token that ends a character and begins the next one: the first is out at once, so that a stop text ends there.
#[test]
fn a_character_does_not_wait_for_the_next_one() {
    let tokens = byte_level();
    // "ş" and the first byte of "ı", as the tokens "Å", "Ł" and so on.
    let id = |spelt: &str| tokens.id(spelt).unwrap();
    let ids = [id("a"), id("ÅŁ"), id("Ä"), id("±"), id("b")];
    assert_eq!(streamed(&tokens, &ids), ["a", "ş", "", "ı", "b", ""]);
    let mixed = [id("ĠÄ"), id("±")];
    assert_eq!(streamed(&tokens, &mixed), [" ", "ı", ""]);
}

#[test]
fn the_answer_keeps_its_leading_space() {
    let tokens = sentence_piece();
    let mut continued = Detokenizer::new(&tokens, &[257]);
    assert_eq!(continued.push(&tokens, 258).unwrap(), " dünya");
    let mut fresh = Detokenizer::new(&tokens, &[]);
    assert_eq!(fresh.push(&tokens, 258).unwrap(), "dünya");
    assert_eq!(fresh.push(&tokens, 257).unwrap(), " Merhaba");
}

/// Special tokens show nothing, however many stand between the text of the prompt and the answer.
#[test]
fn special_tokens_before_the_answer_take_no_space_from_it() {
    let tokens = sentence_piece();
    let end = tokens.id("<end>").unwrap();
    let prompt: Vec<u32> = [257].into_iter().chain([end; 20]).collect();
    let mut continued = Detokenizer::new(&tokens, &prompt);
    assert_eq!(continued.push(&tokens, 258).unwrap(), " dünya");
    assert_eq!(tokens.decode(&[&*prompt, &[258]].concat()).unwrap(), "Merhaba dünya");
    let mut first = Detokenizer::new(&tokens, &[end; 20]);
    assert_eq!(first.push(&tokens, 258).unwrap(), "dünya");
}

#[test]
fn an_incomplete_character_waits_and_ends_as_a_replacement() {
    let tokens = sentence_piece();
    let mut detokenizer = Detokenizer::new(&tokens, &[]);
    assert_eq!(detokenizer.push(&tokens, 0xc5).unwrap(), "");
    assert_eq!(detokenizer.push(&tokens, 0x9f).unwrap(), "ş");
    assert_eq!(detokenizer.push(&tokens, 0xe2).unwrap(), "");
    assert_eq!(detokenizer.finish(&tokens).unwrap(), "\u{fffd}");
}

#[test]
fn wrong_bytes_do_not_hold_up_what_follows() {
    let tokens = sentence_piece();
    assert_eq!(streamed(&tokens, &[0x21, 0xc2, 257, 0x21]), ["!", "", "\u{fffd} Merhaba", "!", ""]);
}

/// A step takes the same time however long nothing becomes complete.
#[test]
fn what_is_decoded_again_is_bounded() {
    let (bytes, words) = (byte_level(), sentence_piece());
    let lone = bytes.id("ÿ").unwrap();
    let (first, second) = (bytes.id("Å").unwrap(), bytes.id("Ł").unwrap());
    let end = bytes.id("<end>").unwrap();
    for (tokens, run, exact) in [
        (&bytes, vec![lone], true),
        (&bytes, vec![lone, first], true),
        (&bytes, vec![end, 100_000], true),
        (&words, vec![0xff], true),
        (&words, vec![0xff, 0xc5, 0x9f], false),
        (&words, vec![256, 256, 0xc5], true),
    ] {
        let ids = run.repeat(600 / run.len());
        let mut detokenizer = Detokenizer::new(tokens, &[]);
        let mut text = String::new();
        for &id in &ids {
            text += &detokenizer.push(tokens, id).unwrap();
            assert!(detokenizer.ids.len() <= 2 * MOST_HELD + 2, "{run:?}");
        }
        let shown = text.chars().count();
        text += &detokenizer.finish(tokens).unwrap();
        assert!(text.chars().count() - shown <= MOST_HELD, "{run:?}: it is shown as it comes");
        assert!(!exact || text == tokens.decode(&ids).unwrap(), "{run:?}");
    }
    // Characters of several bytes after all that are whole, however many tokens came before.
    let unknown = words.id("\u{fffd}").unwrap();
    for count in 0..200 {
        for character in ["ş", "€", "👨"] {
            let bytes = character.bytes().chain([b'a']).map(u32::from);
            let ids: Vec<u32> = std::iter::repeat_n(unknown, count).chain(bytes).collect();
            assert_eq!(streamed(&words, &ids).concat(), "\u{fffd}".repeat(count) + character + "a");
        }
    }
    let mut ids = vec![lone; 200];
    ids.extend([first, second]);
    assert_eq!(streamed(&bytes, &ids).concat(), "\u{fffd}".repeat(200) + "ş");
}

#[test]
fn a_possible_beginning_of_a_stop_text_is_held_back() {
    let mut watch = StopTexts::new(vec!["\nSoru:".into()]);
    assert_eq!(watch.push("Ankara.\n"), Released { text: "Ankara.".into(), stopped: false });
    assert_eq!(watch.push("So"), Released { text: String::new(), stopped: false });
    assert_eq!(watch.push("n."), Released { text: "\nSon.".into(), stopped: false });
    assert_eq!(watch.push("Evet\nSoru: x"), Released { text: "Evet".into(), stopped: true });
}

#[test]
fn empty_stop_texts_are_ignored() {
    let mut watch = StopTexts::new(vec![String::new(), "x".into()]);
    assert_eq!(watch.push("abc"), Released { text: "abc".into(), stopped: false });
    assert_eq!(watch.push("dxe"), Released { text: "d".into(), stopped: true });
}

#[test]
fn many_long_stop_texts_cost_little_a_character() {
    use crate::generation::params::{MAX_STOP_CHARACTERS, MAX_STOP_TEXTS};

    // The answer is always just about to complete every one of them.
    let stops = (0..MAX_STOP_TEXTS).map(|index| "a".repeat(MAX_STOP_CHARACTERS - 2 - index) + "b").collect();
    let mut watch = StopTexts::new(stops);
    let mut shown = 0;
    for _ in 0..5_000 {
        shown += watch.push("aaaa").text.len();
    }
    assert_eq!(shown + watch.finish().len(), 20_000);
}

#[test]
fn truncation_and_padding_of_the_file_are_switched_off() {
    let mut tokenizer = byte_level().tokenizer.inner().clone();
    tokenizer.with_truncation(Some(TruncationParams { max_length: 3, ..Default::default() })).unwrap();
    let fixed = PaddingParams { strategy: PaddingStrategy::Fixed(9), ..Default::default() };
    tokenizer.with_padding(Some(fixed));
    let tokens = TextTokens::new(tokenizer).unwrap();
    for special in [false, true] {
        let ids = tokens.encode("abcdef", special).unwrap();
        assert_eq!((ids.len(), &ids), (6, &byte_level().encode("abcdef", special).unwrap()));
    }
}
