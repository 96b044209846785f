//! Convolutions with factors of each row next to attention, against candle, alone and in batches.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::models::architectures::{Architecture, ConfigFile, find};

const WIDTH: usize = 36;

fn model(extra: impl Into<Value>) -> Box<dyn Architecture> {
    let mut json = json!({"model_type": "convbert", "vocab_size": 40, "hidden_size": WIDTH, "embedding_size": WIDTH,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 50, "max_position_embeddings": 1200});
    if let Value::Object(extra) = extra.into() {
        json.as_object_mut().unwrap().extend(extra);
    }
    let file = ConfigFile { model: "m", path: Path::new("config.json"), json: &json };
    (find("convbert").unwrap().read)(&file).unwrap()
}

fn models() -> [Box<dyn Architecture>; 4] {
    [
        model(json!({})),
        model(json!({"conv_kernel_size": 1, "head_ratio": 9})),
        model(json!({"conv_kernel_size": 63, "num_attention_heads": 6, "num_groups": 2})),
        model(
            json!({"conv_kernel_size": 5, "embedding_size": 20, "num_attention_heads": 3, "head_ratio": 1}),
        ),
    ]
}

#[test]
fn convolutions_next_to_attention_agree_with_candle() {
    let texts = texts(&[1, 2, 0, 13, 70, 300, 5, 1100]);
    for described in models() {
        assert_agrees_with_candle(&*described, &texts);
    }
}

#[test]
fn convolutions_do_not_see_other_texts() {
    let texts = texts(&[600, 0, 257, 64, 1, 40]);
    for described in models() {
        for dtype in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let model = Transformer::load(Cpu::new(Isa::best(), dtype), &*described, &Made).unwrap();
            let together = encode(&model, &texts, Pooling::Mean);
            for (text, row) in texts.iter().zip(together.chunks(WIDTH)) {
                let alone = encode(&model, std::slice::from_ref(text), Pooling::Mean);
                assert!(alone == row, "{dtype:?} {} tokens {described:?}", text.len());
            }
        }
    }
}
