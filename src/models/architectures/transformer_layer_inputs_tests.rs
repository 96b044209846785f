//! Layers with inputs of their own, heads by layer and norms of values, against candle, alone and in batches.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::models::architectures::{Architecture, ConfigFile, find};

const WIDTH: usize = 44;

fn model(extra: impl Into<Value>) -> Box<dyn Architecture> {
    let mut json = json!({"model_type": "embedding_gemma2_text", "vocab_size": 40, "hidden_size": 36,
        "intermediate_size": 50, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 10, "global_head_dim": 24, "sliding_window_pattern": 2, "sliding_window": 5,
        "hidden_size_per_layer_input": 20, "embedding_dim": WIDTH, "max_position_embeddings": 1200});
    if let Value::Object(extra) = extra.into() {
        json.as_object_mut().unwrap().extend(extra);
    }
    let file = ConfigFile { model: "m", path: Path::new("config.json"), json: &json };
    (find("embedding_gemma2_text").unwrap().read)(&file).unwrap()
}

fn models() -> [Box<dyn Architecture>; 3] {
    [
        model(json!({})),
        model(json!({"hidden_size_per_layer_input": 7, "attention_bias": true, "sliding_window": 300})),
        model(json!({"num_hidden_layers": 1, "num_global_key_value_heads": 4, "global_head_dim": 6})),
    ]
}

/// Vectors are those of candle's operations, on every instruction set. Scores are not divided by the root of a head's length,
/// so that bfloat16 rounds them far more than those of other families.
fn assert_agrees(described: &dyn Architecture, texts: &[Vec<u32>]) {
    let plain = Transformer::load(Candle::new(Device::Cpu), described, &Made).unwrap();
    for isa in Isa::available() {
        let texts = if isa == Isa::best() { texts } else { &texts[..5] };
        for pooling in [Pooling::Last, Pooling::Mean] {
            let expected = encode(&plain, texts, pooling);
            let model = |dtype| Transformer::load(Cpu::new(isa, dtype), described, &Made).unwrap();
            let error = furthest(&encode(&model(WeightFormat::F32), texts, pooling), &expected);
            assert!(error <= 3e-5, "{isa} {pooling:?} {described:?}: {error}");
            // An empty text has no direction.
            let given = |all: Vec<f32>| [&all[..2 * WIDTH], &all[3 * WIDTH..]].concat();
            let narrow = given(encode(&model(WeightFormat::Bf16), texts, pooling));
            let cosine = closest(&narrow, &given(expected), WIDTH);
            assert!(cosine >= 0.97, "{isa} {pooling:?} {described:?}: {cosine}");
        }
    }
}

#[test]
fn inputs_of_layers_agree_with_candle() {
    let texts = texts(&[1, 2, 0, 13, 70, 5, 300]);
    for described in models() {
        assert_agrees(&*described, &texts);
    }
}

/// The widths of the published model, whose scores are sharp with norms of 1.
#[test]
fn the_widest_heads_agree_with_candle() {
    let described = model(json!({"head_dim": 256, "global_head_dim": 512, "num_hidden_layers": 2}));
    let texts = texts(&[3, 40, 0, 17, 300]);
    let expected = Transformer::load(Candle::new(Device::Cpu), &*described, &Made).unwrap();
    let expected = encode(&expected, &texts, Pooling::Mean);
    for isa in Isa::available() {
        let model = Transformer::load(Cpu::new(isa, WeightFormat::F32), &*described, &Made).unwrap();
        let error = furthest(&encode(&model, &texts, Pooling::Mean), &expected);
        assert!(error <= 1e-4, "{isa}: {error}");
    }
}

#[test]
fn inputs_of_layers_do_not_depend_on_other_texts() {
    let texts = texts(&[0, 270, 64, 1, 40]);
    for described in models() {
        for dtype in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let model = Transformer::load(Cpu::new(Isa::best(), dtype), &*described, &Made).unwrap();
            // Tiles of bfloat16 are emulated on many CPUs.
            let poolings = if dtype == WeightFormat::F32 {
                &[Pooling::Mean, Pooling::Cls][..]
            } else {
                &[Pooling::Mean]
            };
            for &pooling in poolings {
                let together = encode(&model, &texts, pooling);
                for (text, row) in texts.iter().zip(together.chunks(WIDTH)) {
                    let alone = encode(&model, std::slice::from_ref(text), pooling);
                    assert!(alone == row, "{dtype:?} {} tokens {described:?}", text.len());
                }
            }
        }
    }
}

/// A token that stands for an image has the embedding of padding.
#[test]
fn placeholders_have_the_embedding_of_padding() {
    let described = model(json!({"placeholder_token_ids": [7, 9], "pad_token_id": 3}));
    let load = |described: &dyn Architecture| {
        Transformer::load(Cpu::new(Isa::best(), WeightFormat::F32), described, &Made).unwrap()
    };
    let (model, plain) = (load(&*described), load(&*self::model(json!({}))));
    let texts = [vec![1, 7, 2, 9, 9], vec![4, 5]];
    let padded = [vec![1, 3, 2, 3, 3], vec![4, 5]];
    assert_eq!(encode(&model, &texts, Pooling::Mean), encode(&plain, &padded, Pooling::Mean));
    assert_ne!(encode(&plain, &texts, Pooling::Mean), encode(&plain, &padded, Pooling::Mean));
    let states = |texts: &[Vec<u32>], model: &Transformer<Cpu>| {
        let (ids, offsets) = packed(texts);
        let rows = std::sync::Mutex::new(Vec::new());
        let batch = PackedBatch::new(&ids, &offsets).unwrap();
        let each = |index: usize, _: usize, states: crate::compute::Rows<'_>| {
            let values = states.iter().flatten().copied().collect::<Vec<f32>>();
            rows.lock().unwrap().push((index, values));
        };
        model.states(&batch, &each).unwrap();
        let mut rows = rows.into_inner().unwrap();
        rows.sort_by_key(|(index, _)| *index);
        rows
    };
    let found = states(&texts, &model);
    assert_eq!(found, states(&padded, &plain));
    assert_eq!(found[0].1.len(), 5 * WIDTH, "rows of the embedding's width");
}
