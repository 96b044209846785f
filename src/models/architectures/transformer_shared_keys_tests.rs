//! Layers with the keys and values of earlier ones, and heads by layer, over caches, in windows, and against candle.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::compute::KvCache;
use crate::models::architectures::{Architecture, ConfigFile, find};

pub(super) const WIDTH: usize = 36;
pub(super) const SLIDING: &str = "sliding_attention";
pub(super) const FULL: &str = "full_attention";

pub(super) fn model(extra: impl Into<Value>) -> Box<dyn Architecture> {
    let mut json = json!({"model_type": "gemma4_text", "vocab_size": 40, "hidden_size": WIDTH,
        "intermediate_size": 50, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
        "global_head_dim": 24, "sliding_window": 5, "hidden_size_per_layer_input": 20,
        "vocab_size_per_layer_input": 40, "max_position_embeddings": 5000});
    if let Value::Object(extra) = extra.into() {
        json.as_object_mut().unwrap().extend(extra);
    }
    let layers = json["layer_types"].as_array().unwrap().len();
    json["num_hidden_layers"] = layers.into();
    let file = ConfigFile { model: "m", path: Path::new("config.json"), json: &json };
    (find("gemma4_text").unwrap().read)(&file).unwrap()
}

pub(super) fn models() -> [Box<dyn Architecture>; 4] {
    [
        model(json!({"layer_types": [SLIDING, FULL, SLIDING, FULL], "num_kv_shared_layers": 2,
            "use_double_wide_mlp": true})),
        model(json!({"layer_types": [SLIDING, FULL, FULL], "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": true, "num_global_key_value_heads": 1, "sliding_window": 300})),
        model(json!({"layer_types": [FULL, SLIDING, SLIDING, FULL], "num_kv_shared_layers": 1,
            "attention_bias": true, "global_head_dim": 10, "sliding_window": 40})),
        model(json!({"layer_types": [FULL, FULL, FULL], "num_kv_shared_layers": 2, "global_head_dim": 6})),
    ]
}

/// Scores are sharp, which amplifies roundings: bfloat16 says little, and its states are compared with those of caches instead.
#[test]
fn keys_of_earlier_layers_agree_with_candle() {
    let texts = texts(&[1, 2, 0, 13, 70, 300, 5, 1100]);
    for described in models() {
        assert_agrees_within(&[(WeightFormat::F32, 1e-4)], &*described, &Made, &texts);
    }
}

/// What a text gives depends neither on the texts with it, nor on windows, nor on how it is cut into steps.
#[test]
fn a_text_has_the_same_states_however_it_is_read() {
    let texts = texts(&[600, 257, 64, 40, 1]);
    for described in models() {
        for dtype in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let model = Transformer::load(Cpu::new(Isa::best(), dtype), &*described, &Made).unwrap();
            let whole = encode(&model, &texts, Pooling::Last);
            for (text, row) in texts.iter().zip(whole.chunks(WIDTH)) {
                assert_eq!(encode(&model, std::slice::from_ref(text), Pooling::Last), row, "{dtype:?}");
            }
            // Tiles of bfloat16 are emulated on many CPUs.
            let exact = dtype == WeightFormat::F32;
            for &chunk in if exact { &[600, 97][..] } else { &[97] } {
                assert!(in_chunks(&model, &texts, chunk) == whole, "{dtype:?} {chunk} {described:?}");
            }
            assert!(in_chunks(&model, &texts[2..], 1) == whole[2 * WIDTH..], "{dtype:?} {described:?}");
            if exact {
                let long = self::texts(&[2500, 1500]);
                let whole = encode(&model, &long, Pooling::Last);
                assert!(in_chunks(&model, &long, 1300) == whole, "{dtype:?} {described:?}");
            }
        }
        let plain = Transformer::load(Candle::new(Device::Cpu), &*described, &Made).unwrap();
        let (whole, parts) = (encode(&plain, &texts, Pooling::Last), in_chunks(&plain, &texts, 97));
        assert!(furthest(&parts, &whole) < 2e-5, "{}", furthest(&parts, &whole));
    }
}

/// The logits after `text`, of which `cache` has the first tokens.
fn logits_after<B: Backend>(model: &Transformer<B>, cache: &mut B::Cache, text: &[u32]) -> Vec<f32> {
    let mut logits = vec![f32::NAN; model.vocabulary()];
    let (tokens, length) = (&text[cache.len()..], text.len());
    let step = Step { cache, tokens, prompt: length, length, logits: 1 };
    Decoder::forward(model, &mut [step], &mut logits).unwrap();
    logits
}

#[test]
fn caches_with_two_kinds_of_heads_are_forked_cut_and_counted() {
    let text = &texts(&[0, 300])[1];
    for described in models() {
        for (isa, dtype) in [(Isa::best(), WeightFormat::F32), (Isa::best(), WeightFormat::Bf16)] {
            let model = Transformer::load_decoder(Cpu::new(isa, dtype), &*described, &Made).unwrap();
            let whole = logits_after(&model, &mut model.new_cache(0).unwrap(), text);
            assert!(whole.iter().all(|x| x.is_finite()));
            let mut full = model.new_cache(0).unwrap();
            // Another end, so that what is left of it is noticed.
            let mut other = text.clone();
            other[text.len() - 30..].fill(7);
            logits_after(&model, &mut full, &other);
            for len in [1, 31, 64, 200, 256, 270] {
                let mut fork = full.fork(len, text.len()).unwrap();
                assert_eq!(fork.len(), len);
                assert!(logits_after(&model, &mut fork, text) == whole, "{dtype:?} {len}");
            }
            full.truncate(130);
            full.shrink().unwrap();
            assert!(logits_after(&model, &mut full, text) == whole, "{dtype:?}");
            let mut last = 0;
            for tokens in [0, 1, 40, 256, 300, 1000] {
                let bytes = model.cache_bytes(tokens);
                assert_eq!(model.new_cache(tokens).unwrap().bytes(), bytes, "{tokens}");
                assert!(bytes >= last);
                last = bytes;
            }
            assert_eq!(model.cache_bytes(usize::MAX), u64::MAX);
        }
    }
    // Layers with the keys of others take no memory for their own.
    let load = |shared: usize| {
        let types = [SLIDING, FULL, SLIDING, FULL];
        let described = model(json!({"layer_types": types, "num_kv_shared_layers": shared}));
        Transformer::load_decoder(Cpu::new(Isa::best(), WeightFormat::F32), &*described, &Made).unwrap()
    };
    assert_eq!(2 * load(2).cache_bytes(256), load(0).cache_bytes(256));
}

/// A token without a row in the table of layers is an error of the input, not a panic.
#[test]
fn a_token_outside_of_the_table_of_layers_is_named() {
    let described = model(json!({"layer_types": [SLIDING, FULL], "vocab_size_per_layer_input": 30}));
    let refused = |error: Error| {
        assert!(matches!(error, Error::Input(_)) && error.to_string().contains("35"), "{error}");
    };
    let (ids, offsets) = packed(&[vec![1, 35, 2]]);
    let batch = PackedBatch::new(&ids, &offsets).unwrap();
    let mut out = vec![0.0; WIDTH];
    let cpu = Transformer::load(Cpu::new(Isa::best(), WeightFormat::F32), &*described, &Made).unwrap();
    refused(cpu.encode(&batch, Pooling::Mean, &mut out).unwrap_err());
    let candle = Transformer::load(Candle::new(Device::Cpu), &*described, &Made).unwrap();
    refused(candle.encode(&batch, Pooling::Mean, &mut out).unwrap_err());
}
