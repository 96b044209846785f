//! The tiny BERT and XLM-R as converters write them into GGUF files: names and metadata by the `gguf` package.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;
use serde_json::Value;

use crate::compute::{Isa, Packed, WeightFormat};
use crate::models::formats::gguf::tests::{Writer, f32s};
use crate::models::json::read_json;
use crate::models::{Encoder, ModelConfig, ModelFiles, Overrides, Weights, on_cpu};

#[derive(Deserialize)]
struct Header {
    metadata: BTreeMap<String, Value>,
    names: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    embedding: Vec<f32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn json<T: serde::de::DeserializeOwned>(name: &str, key: &str) -> T {
    let all: Value = read_json(&fixture(name)).unwrap();
    serde_json::from_value(all[key].clone()).unwrap()
}

/// WordPiece: a mark at the beginning of words, none inside of them.
fn word_piece(writer: Writer, model: &Value) -> Writer {
    let vocabulary: BTreeMap<String, u32> = serde_json::from_value(model["vocab"].clone()).unwrap();
    let mut pieces: Vec<_> = vocabulary.into_iter().map(|(piece, id)| (id, piece)).collect();
    pieces.sort_unstable();
    let phantom = |piece: &String| match piece.strip_prefix("##") {
        Some(inner) => inner.to_owned(),
        None if piece.starts_with('[') && piece.ends_with(']') => piece.clone(),
        None => format!("▁{piece}"),
    };
    let types: Vec<i32> = pieces.iter().map(|(id, _)| if *id < 5 { 3 } else { 1 }).collect();
    writer
        .text("tokenizer.ggml.model", "bert")
        .texts("tokenizer.ggml.tokens", &pieces.iter().map(|(_, piece)| phantom(piece)).collect::<Vec<_>>())
        .integers("tokenizer.ggml.token_type", &types)
        .number("tokenizer.ggml.unknown_token_id", 1)
        .number("tokenizer.ggml.bos_token_id", 2)
        .number("tokenizer.ggml.seperator_token_id", 3)
}

/// Unigram, with SentencePiece's normalization.
fn unigram(writer: Writer, tokenizer: &Value) -> Writer {
    let mut vocabulary: Vec<(String, f64)> =
        serde_json::from_value(tokenizer["model"]["vocab"].clone()).unwrap();
    // An added token after the others.
    vocabulary.push(("<mask>".into(), 0.0));
    let kind = |(id, piece): (usize, &(String, f64))| match (id, piece.0.as_str()) {
        (3, _) => 2,
        (0..3, _) | (_, "<mask>") => 3,
        _ => 1,
    };
    let map = tokenizer["normalizer"]["precompiled_charsmap"].as_str().unwrap();
    let map = base64::engine::general_purpose::STANDARD.decode(map).unwrap();
    writer
        .text("tokenizer.ggml.model", "t5")
        .texts("tokenizer.ggml.tokens", &vocabulary.iter().map(|(piece, _)| piece).collect::<Vec<_>>())
        .floats(
            "tokenizer.ggml.scores",
            &vocabulary.iter().map(|(_, score)| *score as f32).collect::<Vec<_>>(),
        )
        .integers("tokenizer.ggml.token_type", &vocabulary.iter().enumerate().map(kind).collect::<Vec<_>>())
        .integers("tokenizer.ggml.precompiled_charsmap", &map.into_iter().map(i32::from).collect::<Vec<_>>())
        .number("tokenizer.ggml.unknown_token_id", 3)
        .number("tokenizer.ggml.bos_token_id", 0)
        .number("tokenizer.ggml.eos_token_id", 2)
        .flag("tokenizer.ggml.add_bos_token", true)
        .flag("tokenizer.ggml.add_eos_token", true)
}

fn written(name: &str) -> Writer {
    let header: Header =
        json::<BTreeMap<String, Header>>("gguf_headers.json", "encoders").remove(name).unwrap();
    let mut writer = Writer::default().text("general.architecture", "bert");
    for (key, value) in &header.metadata {
        writer = match value {
            Value::Bool(flag) => writer.flag(key, *flag),
            Value::Number(n) if n.is_u64() => writer.number(key, n.as_u64().unwrap() as u32),
            other => writer.float(key, other.as_f64().unwrap() as f32),
        };
    }
    let tokenizer: Value = read_json(&fixture(name).join("tokenizer.json")).unwrap();
    let xlmr = tokenizer["model"]["type"] == "Unigram";
    writer = if xlmr { unigram(writer, &tokenizer) } else { word_piece(writer, &tokenizer["model"]) };
    let files = ModelFiles::open(name, &fixture(name)).unwrap();
    let weights = Weights::open(&files.weights).unwrap();
    for (name, renamed) in &header.names {
        let mut shape = weights.shape(name).unwrap().to_vec();
        let mut values = weights.get(name).unwrap().to_f32().unwrap();
        if xlmr && renamed == "position_embd.weight" {
            shape[0] -= 2;
            values.drain(..2 * shape[1]);
        }
        writer = writer.tensor(renamed, &shape, 0, &f32s(&values));
    }
    writer
}

fn load(path: PathBuf) -> crate::Result<Encoder> {
    let files = ModelFiles::gguf("m.gguf", path)?;
    let build =
        |config: &ModelConfig, weights: &Weights| on_cpu(config, weights, Isa::best(), WeightFormat::F32);
    Encoder::load(&files, Overrides::default(), &build)
}

#[test]
fn encoders_in_gguf_files_are_those_of_their_folders() {
    for name in ["bert_wordpiece", "xlmr"] {
        let (_folder, path) = written(name).write();
        let encoder = load(path).unwrap();
        for case in json::<Vec<Case>>(&format!("{name}/reference.json"), "cases") {
            let ids = encoder.tokenizer.encode(&case.text, 24).unwrap();
            assert_eq!(ids, case.ids, "{name} {:?}", case.text);
            let mut vector = vec![0.0; encoder.width()];
            encoder.encode(&Packed::new(&ids, &[0, ids.len() as u32]).unwrap(), &mut vector).unwrap();
            let worst = vector.iter().zip(&case.embedding).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-5 && vector.len() == case.embedding.len(), "{name} {:?}: {worst}", case.text);
        }
    }
}

#[test]
fn what_a_gguf_encoder_does_not_have_is_named() {
    let refusal = |writer: Writer| load(writer.write().1).map(drop).unwrap_err().to_string();
    let causal = written("bert_wordpiece").number("bert.attention.head_count_kv", 4);
    assert!(refusal(causal).contains("bert.attention.head_count_kv"));
    let bare = Writer::default().text("general.architecture", "bert");
    assert!(refusal(bare).contains("bert.embedding_length"));
}
