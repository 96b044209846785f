//! Tiny encoders as converters write them into GGUF files: names and metadata by the `gguf` package.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;
use serde_json::Value;

use crate::compute::{Activation, Isa, PackedBatch, WeightFormat};
use crate::models::formats::gguf::tests::{Writer, f32s};
use crate::models::json::read_json;
use crate::models::manifest::WeightFiles;
use crate::models::{Encoder, ModelConfig, ModelFiles, ModelKind, Overrides, Weights, on_cpu};

#[derive(Deserialize)]
struct Header {
    architecture: String,
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

/// Byte-level BPE, between the first and the last token.
fn byte_level(writer: Writer, tokenizer: &Value, pre: &str, [first, last]: [&str; 2]) -> Writer {
    let mut pieces: BTreeMap<u32, String> = BTreeMap::new();
    let vocabulary: BTreeMap<String, u32> =
        serde_json::from_value(tokenizer["model"]["vocab"].clone()).unwrap();
    pieces.extend(vocabulary.into_iter().map(|(piece, id)| (id, piece)));
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let added: BTreeMap<u32, String> = added
        .iter()
        .map(|token| (token["id"].as_u64().unwrap() as u32, token["content"].as_str().unwrap().to_owned()))
        .collect();
    let special = |token: &str| *added.iter().find(|(_, piece)| *piece == token).unwrap().0;
    pieces.extend(added.clone());
    let merges: Vec<(String, String)> = serde_json::from_value(tokenizer["model"]["merges"].clone()).unwrap();
    let merges: Vec<_> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    let types: Vec<_> = pieces.keys().map(|id| if added.contains_key(id) { 3 } else { 1 }).collect();
    writer
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre)
        .texts("tokenizer.ggml.tokens", &pieces.values().collect::<Vec<_>>())
        .texts("tokenizer.ggml.merges", &merges)
        .integers("tokenizer.ggml.token_type", &types)
        .number("tokenizer.ggml.bos_token_id", special(first))
        .number("tokenizer.ggml.eos_token_id", special(last))
        .flag("tokenizer.ggml.add_bos_token", true)
        .flag("tokenizer.ggml.add_eos_token", true)
        .flag("tokenizer.ggml.add_sep_token", true)
}

fn written(name: &str) -> Writer {
    written_with(name, &|_| true)
}

/// The file of a fixture, with the keys of metadata that `keeps` lets through.
fn written_with(name: &str, keeps: &dyn Fn(&str) -> bool) -> Writer {
    with_tensors(name, written_without_tensors(name, keeps))
}

fn with_tensors(name: &str, mut writer: Writer) -> Writer {
    let header = header(name);
    let xlmr = name == "xlmr";
    let files = ModelFiles::open(name, &fixture(name)).unwrap();
    let weights = Weights::open(&files.weights).unwrap();
    let fixture_name = name;
    for (name, renamed) in &header.names {
        let mut shape = weights.shape(name).unwrap().to_vec();
        let mut values = weights.get(name).unwrap().to_f32().unwrap();
        if xlmr && renamed == "position_embd.weight" {
            shape[0] -= 2;
            values.drain(..2 * shape[1]);
        }
        if fixture_name.starts_with("gemma") && renamed.ends_with("norm.weight") {
            values.iter_mut().for_each(|scale| *scale += 1.0);
        }
        writer = writer.tensor(renamed, &shape, 0, &f32s(&values));
    }
    for layer in ["2", "3"] {
        let path = fixture(fixture_name).join(format!("{layer}_Dense/model.safetensors"));
        if path.is_file() {
            let dense = Weights::open(&WeightFiles::Safetensors(vec![path])).unwrap();
            let weight = dense.get("linear.weight").unwrap();
            let values = weight.to_f32().unwrap();
            writer = writer.tensor(&format!("dense_{layer}.weight"), weight.shape(), 0, &f32s(&values));
        }
    }
    writer
}

fn header(name: &str) -> Header {
    json::<BTreeMap<String, Header>>("gguf_headers.json", "encoders").remove(name).unwrap()
}

fn written_without_tensors(name: &str, keeps: &dyn Fn(&str) -> bool) -> Writer {
    let writer = written_metadata(name, keeps);
    let tokenizer: Value = read_json(&fixture(name).join("tokenizer.json")).unwrap();
    match tokenizer["model"]["type"].as_str() {
        Some("Unigram") => unigram(writer, &tokenizer),
        Some("WordPiece") => word_piece(writer, &tokenizer["model"]),
        _ => byte_level(writer, &tokenizer, "gpt-2", ["[CLS]", "[SEP]"]),
    }
}

fn written_metadata(name: &str, keeps: &dyn Fn(&str) -> bool) -> Writer {
    let header = header(name);
    let mut writer = Writer::default().text("general.architecture", &header.architecture);
    for (key, value) in header.metadata.iter().filter(|(key, _)| keeps(key)) {
        writer = match value {
            Value::String(text) => writer.text(key, text),
            Value::Bool(flag) => writer.flag(key, *flag),
            Value::Number(n) if n.is_u64() => writer.number(key, n.as_u64().unwrap() as u32),
            other => writer.float(key, other.as_f64().unwrap() as f32),
        };
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
    for name in ["bert_wordpiece", "xlmr", "nomic_2048", "jina_v2", "modernbert", "gemma_embedding"] {
        let (_folder, path) = written(name).write();
        compare(name, path);
    }
}

/// Compares ids and vectors with those of sentence-transformers.
fn compare(name: &str, path: PathBuf) {
    let encoder = load(path).unwrap();
    for case in json::<Vec<Case>>(&format!("{name}/reference.json"), "cases") {
        let ids = encoder.tokenizer.encode(&case.text, 24).unwrap();
        assert_eq!(ids, case.ids, "{name} {:?}", case.text);
        let mut vector = vec![0.0; encoder.width()];
        encoder.encode(&PackedBatch::new(&ids, &[0, ids.len() as u32]).unwrap(), &mut vector).unwrap();
        let worst = vector.iter().zip(&case.embedding).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 2e-5 && vector.len() == case.embedding.len(), "{name} {:?}: {worst}", case.text);
    }
}

#[test]
fn what_a_gguf_encoder_does_not_have_is_named() {
    let refusal = |writer: Writer| load(writer.write().1).map(drop).unwrap_err().to_string();
    let causal = written("bert_wordpiece").number("bert.attention.head_count_kv", 4);
    assert!(refusal(causal).contains("bert.attention.head_count_kv"));
    let bare = Writer::default().text("general.architecture", "bert");
    assert!(refusal(bare).contains("bert.embedding_length"));
    for (name, key) in [
        ("nomic_2048", "nomic-bert.expert_count"),
        ("jina_v2", "jina-bert-v2.rope.freq_base"),
        ("modernbert", "modern-bert.embedding_length_out"),
    ] {
        let found = refusal(written(name).number(key, 8));
        assert!(found.contains(key) && found.contains("does not know"), "{found}");
    }
    for (name, key) in [
        ("modernbert", "modern-bert.attention.sliding_window"),
        ("nomic_2048", "nomic-bert.context_length"),
        ("jina_v2", "jina-bert-v2.attention.head_count"),
    ] {
        assert!(refusal(written_with(name, &|other| other != key)).contains(key), "{key}");
    }
    let causal = |name: &str, arch: &str| {
        let key = format!("{arch}.attention.causal");
        refusal(written_with(name, &|other| other != key).flag(&key, true))
    };
    assert!(causal("nomic_2048", "nomic-bert").contains("nomic-bert.attention.causal"));
    let key = "modern-bert.rope.scaling.type";
    let yarn = written_with("modernbert", &|other| other != key).text(key, "yarn");
    assert!(refusal(yarn).contains("\"yarn\""));
    let key = "modern-bert.hidden_activation";
    let with = |name: &str| written_with("modernbert", &|other| other != key).text(key, name);
    assert!(refusal(with("mish")).contains("\"mish\""));
    let (_folder, path) = with("silu").write();
    let config = ModelConfig::read(&ModelFiles::gguf("m", path).unwrap(), ModelKind::Embedding).unwrap();
    assert_eq!(config.describe().activation, Activation::Silu);
    let code = written("jina_v2").tensor("blk.0.attn_q_norm.weight", &[36], 0, &f32s(&[1.0; 36]));
    assert!(refusal(code).contains("blk.0.attn_q_norm.weight"));
    let wrong = written("nomic_2048").tensor("dense_2.weight", &[2, 5], 0, &f32s(&[1.0; 10]));
    assert!(refusal(wrong).contains("gets vectors of 24 dimensions"));
    let bias = written("gemma_embedding").tensor("dense_2.bias", &[40], 0, &f32s(&[1.0; 40]));
    assert!(refusal(bias).contains("dense_2 has a bias"));
}

/// The halves of JinaBERT's gated layers, as the first converters stored them.
#[test]
fn gated_layers_may_lie_apart() {
    let header = header("jina_v2");
    let files = ModelFiles::open("jina_v2", &fixture("jina_v2")).unwrap();
    let weights = Weights::open(&files.weights).unwrap();
    let mut writer = written_without_tensors("jina_v2", &|_| true);
    for (name, renamed) in &header.names {
        let shape = weights.shape(name).unwrap().to_vec();
        let values = weights.get(name).unwrap().to_f32().unwrap();
        if renamed.ends_with("ffn_up.weight") {
            let (half, shape) = (values.len() / 2, [shape[0] / 2, shape[1]]);
            let gate = renamed.replace("ffn_up", "ffn_gate");
            writer = writer.tensor(&gate, &shape, 0, &f32s(&values[..half]));
            writer = writer.tensor(renamed, &shape, 0, &f32s(&values[half..]));
        } else {
            writer = writer.tensor(renamed, &shape, 0, &f32s(&values));
        }
    }
    let (_folder, path) = writer.write();
    compare("jina_v2", path);
}

/// The German and the Spanish JinaBERT split text into bytes.
#[test]
fn a_jina_bert_may_have_byte_level_tokens() {
    let specials = ["<s>", "</s>", "<unk>", "<mask>"];
    let letters: Vec<String> = ('a'..='z').chain(['Ġ']).map(String::from).collect();
    let pieces = letters.iter().map(String::as_str).chain(["me", "ha", "ba", "Ġd"]);
    let tokenizer = serde_json::json!({
        "model": {
            "vocab": pieces.zip(4..).collect::<BTreeMap<_, u32>>(),
            "merges": [["m", "e"], ["h", "a"], ["b", "a"], ["Ġ", "d"]],
        },
        "added_tokens": specials.iter().enumerate().map(|(id, token)| serde_json::json!({"id": id, "content": token}))
            .collect::<Vec<_>>(),
    });
    let load = |pre: &str| {
        let writer = byte_level(written_metadata("jina_v2", &|_| true), &tokenizer, pre, ["<s>", "</s>"]);
        let (_folder, path) = with_tensors("jina_v2", writer).write();
        load(path)
    };
    let (folder, build) =
        (ModelFiles::open("jina_v2", &fixture("jina_v2")).unwrap(), |config: &_, weights: &_| {
            on_cpu(config, weights, Isa::best(), WeightFormat::F32)
        });
    let original = Encoder::load(&folder, Overrides::default(), &build).unwrap();
    for pre in ["jina-v2-de", "jina-v2-es", "jina-v2-code"] {
        let encoder = load(pre).unwrap();
        let ids = encoder.tokenizer.encode("merhaba dunya <mask>", 24).unwrap();
        assert_eq!((ids[0], &ids[ids.len() - 2..]), (0, &[3, 1][..]), "the mask takes the space before it");
        let of = |encoder: &Encoder| {
            let mut vector = vec![0.0; encoder.width()];
            encoder.encode(&PackedBatch::new(&ids, &[0, ids.len() as u32]).unwrap(), &mut vector).unwrap();
            vector
        };
        assert!(ids.len() > 5 && of(&encoder) == of(&original), "{pre} {ids:?}");
    }
    assert!(load("jina-v2-zh").map(drop).unwrap_err().to_string().contains("\"jina-v2-zh\""));
}

#[path = "gguf_nomic_tests.rs"]
mod nomic;
