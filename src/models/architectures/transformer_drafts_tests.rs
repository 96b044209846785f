//! Drafts that are taken back, over states of convolutions and of delta rules: what follows is as if they had never been.

use super::*;
use crate::compute::{DeltaHeads, KvCache};
use crate::models::architectures::Architecture;

/// The drafts of a step, and how many of them stay. No more than a cache takes back.
const STEPS: [(usize, usize); 14] = [
    (4, 4),
    (4, 0),
    (0, 0),
    (8, 3),
    (16, 16),
    (1, 0),
    (1, 1),
    (16, 15),
    (7, 6),
    (0, 0),
    (12, 1),
    (2, 2),
    (3, 0),
    (16, 9),
];

fn models() -> Vec<Box<dyn Architecture>> {
    let heads = DeltaHeads { keys: 2, values: 4, key_width: 6, value_width: 9, in_turn: false };
    let wide = DeltaHeads { values: 2, value_width: 75, ..heads };
    vec![
        Box::new(super::short_convolutions::model(3, true, &[false, true, false])),
        Box::new(super::short_convolutions::model(64, true, &[true, false])),
        Box::new(super::delta_rules::model(&[false, true, false], heads, 4)),
        Box::new(super::delta_rules::model(&[false, false], wide, 2)),
    ]
}

/// The logits after each of the last `logits` tokens of steps: the rows of one after those of another.
fn run<B: Backend>(
    model: &Transformer<B>,
    steps: Vec<(&mut B::Cache, &[u32], usize)>,
    prompt: usize,
) -> Vec<f32> {
    let count: usize = steps.iter().map(|(.., logits)| logits).sum();
    let mut found = vec![f32::NAN; count * model.vocabulary()];
    let mut steps: Vec<_> = steps
        .into_iter()
        .map(|(cache, tokens, logits)| {
            let length = cache.len() + tokens.len();
            Step { cache, tokens, prompt, length, logits }
        })
        .collect();
    Decoder::forward(model, &mut steps, &mut found).unwrap();
    found
}

/// The logits after each token of `text` from `prompt` on, one step for each.
fn one_by_one<B: Backend>(model: &Transformer<B>, text: &[u32], prompt: usize) -> Vec<Vec<f32>> {
    let mut cache = model.new_cache(0).unwrap();
    run(model, vec![(&mut cache, &text[..prompt], 1)], prompt);
    let rest = prompt..text.len();
    rest.map(|at| run(model, vec![(&mut cache, &text[at..=at], 1)], prompt)).collect()
}

/// The tokens of a step from `at` on: one that stays, and drafts, of which the first `stay` are those of the text.
fn drafted(text: &[u32], at: usize, (drafts, stay): (usize, usize)) -> Vec<u32> {
    let wrong = (stay..drafts).map(|index| (text[(at + 1 + index) % text.len()] + 1) % 40);
    text[at..=at + stay].iter().copied().chain(wrong).collect()
}

/// Writes `text` after its first `prompt` tokens in steps with drafts, from the step `first` of [`STEPS`] on. `check` sees the
/// place, the logits of what stays, and the cache.
fn draft<B: Backend>(
    model: &Transformer<B>,
    text: &[u32],
    prompt: usize,
    first: usize,
    mut check: impl FnMut(usize, &[f32], &B::Cache),
) {
    let mut cache = model.new_cache(0).unwrap();
    run(model, vec![(&mut cache, &text[..prompt], 1)], prompt);
    for (drafts, stay) in STEPS.into_iter().cycle().skip(first) {
        let at = cache.len();
        let drafts = drafts.min(cache.most_drafted()).min((text.len() - at).saturating_sub(1));
        if at == text.len() {
            return;
        }
        let (tokens, stay) = (drafted(text, at, (drafts, stay.min(drafts))), stay.min(drafts));
        let rows = run(model, vec![(&mut cache, &tokens, tokens.len())], prompt);
        assert_eq!((cache.len(), cache.cut(at + 1 + stay)), (at + tokens.len(), at + 1 + stay));
        cache.truncate(at + 1 + stay);
        check(at, &rows[..(1 + stay) * model.vocabulary()], &cache);
    }
}

#[test]
fn drafts_that_are_taken_back_leave_nothing() {
    let text = &texts(&[0, 0, 320])[2];
    for described in models() {
        for (isa, dtype) in Isa::available()
            .map(|isa| (isa, WeightFormat::F32))
            .chain([(Isa::best(), WeightFormat::Bf16), (Isa::best(), WeightFormat::Int8)])
        {
            let model = Transformer::load_decoder(Cpu::new(isa, dtype), &*described, &Made).unwrap();
            let (prompt, vocabulary) = (90, model.vocabulary());
            let expected = one_by_one(&model, text, prompt);
            for first in [0, 5] {
                draft(&model, text, prompt, first, |at, rows, _| {
                    for (row, expected) in rows.chunks(vocabulary).zip(&expected[at - prompt..]) {
                        assert!(row == expected, "{isa} {dtype:?} at {at} {described:?}");
                    }
                });
            }
        }
    }
}

/// A copy of a cache of which drafts stay, and of one that ends before some of them, goes on alike.
#[test]
fn caches_with_drafts_are_copied_and_cut() {
    let text = &texts(&[0, 0, 300])[2];
    for described in models() {
        let cpu = Cpu::new(Isa::best(), WeightFormat::F32);
        let model = Transformer::load_decoder(cpu, &*described, &Made).unwrap();
        let prompt = 70;
        let whole = one_by_one(&model, text, prompt).pop().unwrap();
        let last = |mut cache: <Cpu as Backend>::Cache| {
            let tokens = &text[cache.len()..];
            run(&model, vec![(&mut cache, tokens, 1)], prompt)
        };
        let mut checked = 0;
        draft(&model, &text[..290], prompt, 0, |at, _, cache| {
            assert!(cache.bytes() <= model.cache_bytes(cache.len().max(290)));
            let mut shrunk = cache.fork(cache.len(), 300).unwrap();
            shrunk.shrink().unwrap();
            assert!(shrunk.bytes() <= model.cache_bytes(cache.len()), "at {at}");
            for copy in [shrunk, cache.fork(at + 1, 300).unwrap(), cache.fork(at.max(80) - 10, 300).unwrap()]
            {
                checked += copy.len();
                assert!(last(copy) == whole, "at {at} {described:?}");
            }
        });
        assert!(checked > 0);
    }
}

/// Sequences of one pass have drafts of their own, and others read long texts, so that windows divide the pass.
#[test]
fn sequences_of_a_pass_have_drafts_of_their_own() {
    let texts = texts(&[200, 150, 2000]);
    for described in models() {
        for dtype in [WeightFormat::F32, WeightFormat::Bf16] {
            let model = Transformer::load_decoder(Cpu::new(Isa::best(), dtype), &*described, &Made).unwrap();
            let (prompt, vocabulary) = (60, model.vocabulary());
            let expected: Vec<_> = texts[..2].iter().map(|text| one_by_one(&model, text, prompt)).collect();
            // The windows end in the middle of drafts, between them, and nowhere near.
            for long in [1005, 1019, 1023, 1024, 500] {
                let mut caches: Vec<_> = (0..3).map(|_| model.new_cache(0).unwrap()).collect();
                for (cache, text) in caches.iter_mut().zip(&texts[..2]) {
                    run(&model, vec![(cache, &text[..prompt], 1)], prompt);
                }
                for (number, (drafts, stay)) in [(9, 4), (12, 12), (3, 0), (0, 0)].into_iter().enumerate() {
                    let [one, two, other] = &mut caches[..] else { unreachable!("there are three") };
                    let (at, next) = ([one.len(), two.len()], other.len());
                    let tokens =
                        [drafted(&texts[0], at[0], (drafts, stay)), drafted(&texts[1], at[1], (4, 2))];
                    let reads = &texts[2][next..next + if number == 0 { long } else { 7 }];
                    // In the order of arrival.
                    let steps = vec![(&mut *other, reads, 0), (&mut *one, &tokens[0][..], tokens[0].len())];
                    let steps = steps.into_iter().chain([(&mut *two, &tokens[1][..], tokens[1].len())]);
                    let rows = run(&model, steps.collect(), prompt);
                    let (first, second) = rows.split_at(tokens[0].len() * vocabulary);
                    for (index, (rows, stay)) in [(first, stay), (second, 2)].into_iter().enumerate() {
                        let wanted = &expected[index][at[index] - prompt..][..=stay];
                        for (row, wanted) in rows.chunks(vocabulary).zip(wanted) {
                            assert!(row == wanted, "{dtype:?} {long} {number} {index} {described:?}");
                        }
                    }
                    one.truncate(at[0] + 1 + stay);
                    two.truncate(at[1] + 3);
                    // Where a window divides drafts, the cache may have fewer tokens; they are read again.
                    for (cache, text, end) in
                        [(&mut *one, &texts[0], at[0] + 1 + stay), (two, &texts[1], at[1] + 3)]
                    {
                        if cache.len() < end {
                            assert_eq!(number, 0);
                            let tokens = &text[cache.len()..end];
                            run(&model, vec![(cache, tokens, 1)], prompt);
                        }
                    }
                }
            }
        }
    }
}

/// A pass with drafts that fails is done again without.
#[test]
fn a_pass_with_drafts_that_fails_leaves_the_caches() {
    let text = &texts(&[0, 0, 150])[2];
    for described in models() {
        let cpu = Cpu::new(Isa::best(), WeightFormat::F32);
        let model = Transformer::load_decoder(cpu, &*described, &Made).unwrap();
        let expected = one_by_one(&model, text, 70);
        let mut cache = model.new_cache(0).unwrap();
        run(&model, vec![(&mut cache, &text[..70], 1)], 70);
        run(&model, vec![(&mut cache, &drafted(text, 70, (6, 4)), 7)], 70);
        cache.truncate(75);
        let mut other = model.new_cache(0).unwrap();
        let step = |cache, tokens, logits| Step { cache, tokens, prompt: 70, length: 90, logits };
        let mut steps = [step(&mut cache, &text[75..80], 5), step(&mut other, &[u32::MAX][..], 0)];
        assert!(Decoder::forward(&model, &mut steps, &mut vec![0.0; 5 * model.vocabulary()]).is_err());
        cache.truncate(75);
        let tokens = &text[cache.len()..=80];
        let found = run(&model, vec![(&mut cache, tokens, 1)], 70);
        assert!(found == expected[10], "{described:?}");
    }
}
