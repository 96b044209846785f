//! The merges of the BPE tokenizers in GGUF files.

use std::collections::{HashMap, HashSet};

use tokenizers::models::bpe::{self, BPE};

use super::bpe::{Bpe, BpeOptions, MergeList};
use super::gguf_words::{table, vocabulary};
use super::model::TokenModel;
use super::pieces::Pieces;

/// BPE with the merges that the file lists. Those whose parts or whole are no pieces, which some files carry, are left out.
///
/// # Errors
/// Those of the tokenizers crate.
pub(super) fn given(
    pieces: &[String],
    merges: &[(&str, &str)],
    options: &BpeOptions,
) -> tokenizers::Result<TokenModel> {
    match small_given(pieces, merges, options) {
        Some(model) => Ok(TokenModel::Bpe(Box::new(model))),
        None => Ok(TokenModel::of_crate(crate_given(pieces, merges, options)?)),
    }
}

/// The options of SentencePiece's BPE: bytes stand for characters that are no pieces.
pub(super) fn with_bytes(unknown: Option<String>) -> BpeOptions {
    BpeOptions { unknown, fuse_unknown: true, byte_fallback: true, ignore_merges: false }
}

/// `None` for a vocabulary that only the crate takes.
fn small_given(pieces: &[String], merges: &[(&str, &str)], options: &BpeOptions) -> Option<Bpe> {
    let all = Pieces::new(table(pieces)?, None)?;
    let mut ranked = MergeList::default();
    let ids: Vec<_> = merges.iter().map(|(left, right)| all.id(left).zip(all.id(right))).collect();
    for (left, right) in ids.into_iter().flatten() {
        ranked.add(&all, left, right);
    }
    Bpe::new(all, &ranked, options)
}

fn crate_given(pieces: &[String], merges: &[(&str, &str)], options: &BpeOptions) -> tokenizers::Result<BPE> {
    let known: HashSet<&str> = pieces.iter().map(String::as_str).collect();
    let all = |left: &str, right: &str| {
        [left, right, &format!("{left}{right}")].iter().all(|part| known.contains(part))
    };
    let merges = merges.iter().filter(|(left, right)| all(left, right));
    let merges = merges.map(|(left, right)| ((*left).to_owned(), (*right).to_owned())).collect();
    built(vocabulary(pieces), merges, options)
}

fn built(vocabulary: bpe::Vocab, merges: bpe::Merges, options: &BpeOptions) -> tokenizers::Result<BPE> {
    let model = BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(options.ignore_merges);
    let model = model.byte_fallback(options.byte_fallback).fuse_unk(options.fuse_unknown);
    match &options.unknown {
        Some(unknown) => model.unk_token(unknown.clone()).build(),
        None => model.build(),
    }
}

/// BPE of SentencePiece, which joins the neighbors whose joint piece scores highest: every way to cut a piece in two known
/// ones is a merge, in the order of the pieces' scores.
///
/// # Errors
/// Those of the tokenizers crate.
pub(super) fn by_score(
    pieces: &[String],
    scores: &[f64],
    unknown: Option<String>,
) -> tokenizers::Result<TokenModel> {
    match small_by_score(pieces, scores, unknown.as_ref()) {
        Some(model) => Ok(TokenModel::Bpe(Box::new(model))),
        None => Ok(TokenModel::of_crate(crate_by_score(pieces, scores, unknown)?)),
    }
}

/// `None` for a vocabulary that only the crate takes.
fn small_by_score(pieces: &[String], scores: &[f64], unknown: Option<&String>) -> Option<Bpe> {
    let all = Pieces::new(table(pieces)?, None)?;
    let mut ranked = MergeList::default();
    let mut own = Vec::new();
    for id in by_rank(scores) {
        own.clear();
        own.extend(cuts(&pieces[id as usize]).filter_map(|(left, right)| all.id(left).zip(all.id(right))));
        own.sort_unstable();
        own.iter().for_each(|&(left, right)| ranked.push(left, right, id));
    }
    Bpe::new(all, &ranked, &with_bytes(unknown.cloned()))
}

fn crate_by_score(pieces: &[String], scores: &[f64], unknown: Option<String>) -> tokenizers::Result<BPE> {
    let ids: HashMap<&str, usize> =
        pieces.iter().enumerate().map(|(id, piece)| (piece.as_str(), id)).collect();
    let mut merges = bpe::Merges::new();
    for id in by_rank(scores) {
        let known = cuts(&pieces[id as usize])
            .filter_map(|(left, right)| Some((ids.get(left)?, ids.get(right)?, left, right)));
        let mut own: Vec<_> = known.collect();
        own.sort_unstable();
        merges.extend(own.into_iter().map(|(_, _, left, right)| (left.to_owned(), right.to_owned())));
    }
    built(vocabulary(pieces), merges, &with_bytes(unknown))
}

/// Ids, those of the highest scores first.
fn by_rank(scores: &[f64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
    order
}

/// The ways to cut a piece in two.
fn cuts(piece: &str) -> impl Iterator<Item = (&str, &str)> {
    piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at))
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng as _;
    use tokenizers::{Model, Token};

    use super::super::tests::RandomTexts;
    use super::*;

    const LETTERS: [&str; 6] = ["a", "b", "▁", "ş", "你", "\u{301}"];

    fn word(random: &mut RandomTexts, most: usize) -> String {
        (0..=random.below(most)).map(|_| LETTERS[random.below(LETTERS.len())]).collect()
    }

    fn pieces(random: &mut RandomTexts) -> Vec<String> {
        let mut pieces: Vec<String> = vec!["<unk>".into(), "a".into(), "b".into(), "▁".into()];
        for _ in 0..random.below(40) {
            let piece = word(random, 4);
            if !pieces.contains(&piece) {
                pieces.push(piece);
            }
        }
        pieces
    }

    fn same(ours: &Bpe, other: &BPE, random: &mut RandomTexts) {
        let parts = |tokens: Vec<Token>| -> Vec<_> {
            tokens.into_iter().map(|token| (token.id, token.value, token.offsets)).collect()
        };
        for _ in 0..30 {
            let word = word(random, 60);
            assert_eq!(parts(ours.tokens(&word).unwrap()), parts(other.tokenize(&word).unwrap()), "{word:?}");
        }
    }

    #[test]
    fn tokens_are_those_of_the_crate() {
        let mut random = RandomTexts(ChaCha8Rng::seed_from_u64(11));
        for round in 0..300 {
            let mut pieces = pieces(&mut random);
            if round % 3 == 0 {
                pieces.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
            }
            // Many equal scores, and some that are no numbers.
            let score = |random: &mut RandomTexts| [-1.0, -2.0, 0.5, 0.0, f64::NAN][random.below(5)];
            let scores: Vec<f64> = pieces.iter().map(|_| score(&mut random)).collect();
            let unknown = (round % 2 == 0).then(|| "<unk>".to_owned());
            let ours = small_by_score(&pieces, &scores, unknown.as_ref()).unwrap();
            same(&ours, &crate_by_score(&pieces, &scores, unknown).unwrap(), &mut random);
            let listed: Vec<(String, String)> =
                (0..30).map(|_| (word(&mut random, 2), word(&mut random, 2))).collect();
            let merges: Vec<(&str, &str)> =
                listed.iter().map(|(left, right)| (left.as_str(), right.as_str())).collect();
            let options = match round % 5 {
                0 => BpeOptions { ignore_merges: true, ..BpeOptions::default() },
                1 => BpeOptions::default(),
                _ => with_bytes((round % 2 == 0).then(|| "<unk>".to_owned())),
            };
            let ours = small_given(&pieces, &merges, &options).unwrap();
            same(&ours, &crate_given(&pieces, &merges, &options).unwrap(), &mut random);
        }
    }

    #[test]
    fn what_the_small_form_does_not_hold_is_the_crates() {
        let twice: Vec<String> = ["a", "b", "a"].map(String::from).to_vec();
        for model in
            [given(&twice, &[], &BpeOptions::default()).unwrap(), by_score(&twice, &[0.0; 3], None).unwrap()]
        {
            assert!(matches!(model, TokenModel::Crate(_)));
            assert_eq!(model.token_to_id("a"), Some(2));
        }
    }
}
