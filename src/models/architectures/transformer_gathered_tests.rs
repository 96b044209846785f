//! Layers that only read the keys of earlier ones, on the rows that are wanted: the same numbers as on all rows. Experts next to
//! the perceptrons of layers.

use serde_json::json;

use super::shared_keys::{FULL, SLIDING, WIDTH, model, models};
use super::*;
use crate::models::architectures::Architecture;

/// Of models whose last layers use the keys of earlier ones, with the last layer that makes its own.
fn shared() -> Vec<(Box<dyn Architecture>, usize)> {
    let experts = json!({"layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL], "num_kv_shared_layers": 3,
        "enable_moe_block": true, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 13, "sliding_window": 40,
        "use_double_wide_mlp": true});
    let [one, none, two, three] = models();
    vec![(one, 1), (none, 2), (two, 2), (three, 0), (model(experts), 1)]
}

fn with_experts() -> Vec<Box<dyn Architecture>> {
    let sizes = |count: usize, used: usize, wide: usize| json!({"enable_moe_block": true, "num_experts": count, "top_k_experts": used, "moe_intermediate_size": wide});
    let of = |mut extra: serde_json::Value, sizes: serde_json::Value| {
        extra.as_object_mut().unwrap().extend(sizes.as_object().unwrap().clone());
        model(extra)
    };
    vec![
        of(
            json!({"layer_types": [SLIDING, FULL], "hidden_size_per_layer_input": 0, "attention_k_eq_v": true,
                "num_global_key_value_heads": 1, "sliding_window": 300}),
            sizes(16, 4, 13),
        ),
        of(json!({"layer_types": [SLIDING, FULL, FULL], "num_kv_shared_layers": 1}), sizes(5, 2, 40)),
        of(json!({"layer_types": [FULL], "hidden_size_per_layer_input": 0}), sizes(1, 1, 33)),
    ]
}

/// The rows of the states of each text at its beginning and end, of a pass that computes all rows.
fn ends(model: &dyn SentenceEncoder, texts: &[Vec<u32>], hidden: &[u32]) -> [Vec<f32>; 2] {
    let (ids, offsets) = packed(texts);
    let mut batch = PackedBatch::new(&ids, &offsets).unwrap();
    batch.hidden = hidden;
    let found = crate::sync::Mutex::new([(); 2].map(|()| vec![0.0; texts.len() * WIDTH]));
    model
        .states(&batch, &|index, _, rows| {
            let rows: Vec<_> = rows.iter().collect();
            let mut found = found.lock();
            for (to, from) in found.iter_mut().zip([rows.first(), rows.last()]) {
                if let Some(from) = from {
                    to[index * WIDTH..][..WIDTH].copy_from_slice(from);
                }
            }
        })
        .unwrap();
    found.into_inner()
}

#[test]
fn the_last_layer_with_keys_of_its_own_is_known() {
    for (described, last) in shared() {
        let model = Transformer::load(Cpu::new(Isa::best(), WeightFormat::F32), &*described, &Made).unwrap();
        assert_eq!(model.layers.last_of_all_rows, last, "{described:?}");
    }
}

/// In windows too, with texts that are empty, and with tokens that the others do not see.
#[test]
fn wanted_rows_are_those_of_all_rows() {
    let (texts, hidden) = (texts(&[300, 0, 40, 1, 7]), [5, 0, 39, 0, 1]);
    let (long, none) = (self::texts(&[900, 1200, 3]), [0; 3]);
    for (described, _) in shared() {
        let check = |model: &dyn SentenceEncoder, texts: &[Vec<u32>], hidden: &[u32], allowed: f32| {
            let [first, last] = ends(model, texts, hidden);
            for (pooling, expected) in [(Pooling::Cls, first), (Pooling::Last, last)] {
                let found = encode_hiding(model, texts, hidden, pooling);
                let error = furthest(&found, &expected);
                assert!(error <= allowed, "{pooling:?} {} {described:?}: {error}", model.dtype());
            }
        };
        for isa in Isa::available() {
            let model = Transformer::load(Cpu::new(isa, WeightFormat::F32), &*described, &Made).unwrap();
            check(&model, &texts[2..], &[0; 3], 0.0);
        }
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let model = Transformer::load(Cpu::new(Isa::best(), format), &*described, &Made).unwrap();
            check(&model, &texts, &hidden, 0.0);
            if format == WeightFormat::F32 {
                check(&model, &long, &none, 0.0);
            }
        }
        let plain = Transformer::load(Candle::new(Device::Cpu), &*described, &Made).unwrap();
        check(&plain, &texts, &hidden, 2e-5);
    }
}

/// Steps of several sequences in one pass, of which some need the logits of several tokens, and some need none.
#[test]
fn logits_of_steps_do_not_depend_on_those_of_others() {
    let texts = texts(&[70, 5, 300, 1, 40]);
    for (described, _) in shared() {
        for format in [WeightFormat::F32, WeightFormat::Bf16] {
            let cpu = Cpu::new(Isa::best(), format);
            let model = Transformer::load_decoder(cpu, &*described, &Made).unwrap();
            let vocabulary = model.vocabulary();
            // Reads a range of each of some texts, and returns the logits after its last tokens, as many as it says.
            let run = |caches: &mut [_], parts: &[(usize, std::ops::Range<usize>, usize)]| {
                let steps = caches.iter_mut().zip(parts).filter(|(_, (_, range, _))| !range.is_empty());
                let mut steps: Vec<_> = steps
                    .map(|(cache, (index, range, logits))| {
                        let (text, logits) = (&texts[*index], *logits);
                        let length = text.len();
                        Step { cache, tokens: &text[range.clone()], prompt: length, length, logits }
                    })
                    .collect();
                let count: usize = steps.iter().map(|step| step.logits).sum();
                let mut found = vec![f32::NAN; count * vocabulary];
                Decoder::forward(&model, &mut steps, &mut found).unwrap();
                found
            };
            let new = |count: usize| (0..count).map(|_| model.new_cache(0).unwrap()).collect::<Vec<_>>();
            let halves = |part: usize, logits: [usize; 5]| {
                let range = |index: usize| {
                    let length = texts[index].len();
                    if part == 0 { 0..length / 2 } else { length / 2..length }
                };
                let of = |index: usize| (index, range(index), logits[index]);
                (0..5).map(of).collect::<Vec<_>>()
            };
            let mut together = new(5);
            assert!(run(&mut together, &halves(0, [0; 5])).is_empty());
            let found = run(&mut together, &halves(1, [3, 0, 2, 1, 0]));
            let wanted = [(0, 68), (0, 69), (0, 70), (2, 299), (2, 300), (3, 1)];
            assert_eq!(found.len(), wanted.len() * vocabulary);
            for (row, (index, end)) in found.chunks(vocabulary).zip(wanted) {
                let alone = run(&mut new(1), &[(index, 0..end, 1)]);
                assert!(alone == row, "{format:?} {index} {end} {described:?}");
            }
        }
    }
}

#[test]
fn experts_next_to_perceptrons_agree_with_candle() {
    let texts = texts(&[1, 2, 0, 13, 70, 300, 5]);
    for described in with_experts() {
        assert_agrees_within(&[(WeightFormat::F32, 1e-4)], &*described, &Made, &texts);
    }
}

/// What a text gives depends neither on the texts with it, nor on how it is cut into steps: to the bit.
#[test]
fn a_text_has_the_same_states_with_experts_next_to_perceptrons() {
    let texts = texts(&[130, 64, 40, 1]);
    for described in with_experts() {
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4] {
            let model = Transformer::load(Cpu::new(Isa::best(), format), &*described, &Made).unwrap();
            let whole = encode(&model, &texts, Pooling::Last);
            assert!(whole.iter().all(|x| x.is_finite()));
            for (text, row) in texts.iter().zip(whole.chunks(WIDTH)) {
                assert_eq!(encode(&model, std::slice::from_ref(text), Pooling::Last), row, "{format:?}");
            }
            for chunk in [33, 130] {
                assert!(in_chunks(&model, &texts, chunk) == whole, "{format:?} {chunk} {described:?}");
            }
        }
    }
}
