//! The committed static models against model2vec and sentence-transformers, and damaged copies of them.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::batching::Encoded;
use crate::models::{Bounds, Encoder, ModelConfig, ModelKind, Overrides};

#[derive(Deserialize)]
struct Case {
    text: String,
    prompt_name: Option<String>,
    embedding: Vec<f32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn cases(name: &str) -> Vec<Case> {
    let json: Value = read_json(&fixture(name).join("reference.json")).unwrap();
    serde_json::from_value(json["cases"].clone()).unwrap()
}

fn load(folder: &Path, overrides: Overrides) -> Result<Encoder> {
    let files = ModelFiles::open("static", folder)?;
    let build = |_: &ModelConfig, _: &Weights| panic!("a static model has no transformer");
    Encoder::load(&files, overrides, &build)
}

fn vector(encoder: &Encoder, prompt: &str, text: &str) -> Vec<f32> {
    let ids = read(encoder, prompt, text).ids;
    let mut out = vec![f32::NAN; encoder.width()];
    encoder.encode(&PackedBatch::new(&ids, &[0, ids.len() as u32]).unwrap(), &mut out).unwrap();
    out
}

fn read(encoder: &Encoder, prompt: &str, text: &str) -> Encoded {
    encoder.tokenize(prompt, text, &mut Bounds { max_bytes: usize::MAX, check: &mut || Ok(()) }).unwrap()
}

#[test]
fn vectors_are_those_of_the_references() {
    for (name, dtype, architecture, max_length) in [
        ("model2vec", "int8", "model2vec", 512),
        ("model2vec_words", "float16", "model2vec", 6),
        ("model2vec_modules", "int8", "StaticEmbedding", 512),
        ("static_embedding", "float32", "StaticEmbedding", usize::MAX),
    ] {
        let encoder = load(&fixture(name), Overrides::default()).unwrap();
        assert_eq!((encoder.dtype(), &*encoder.architecture), (dtype, architecture), "{name}");
        assert_eq!((encoder.config.max_length, encoder.width()), (max_length, 12), "{name}");
        let cases = cases(name);
        let (mut ids, mut offsets) = (Vec::new(), vec![0]);
        for case in &cases {
            let prompt = encoder.config.prompt("m", case.prompt_name.as_deref(), None).unwrap();
            let own = vector(&encoder, prompt, &case.text);
            let worst = own.iter().zip(&case.embedding).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 3e-6 && own.len() == case.embedding.len(), "{name} {:?}: {worst}", case.text);
            ids.extend(read(&encoder, prompt, &case.text).ids);
            offsets.push(ids.len() as u32);
        }
        // All of them many times over, so that threads share the work.
        let (many, mut rows) = (ids.repeat(40), vec![0; 1]);
        for round in 0..40 {
            rows.extend(offsets[1..].iter().map(|end| end + round * ids.len() as u32));
        }
        let mut out = vec![f32::NAN; (rows.len() - 1) * 12];
        encoder.encode(&PackedBatch::new(&many, &rows).unwrap(), &mut out).unwrap();
        for (row, case) in out.chunks(12).zip(cases.iter().cycle()) {
            let prompt = encoder.config.prompt("m", case.prompt_name.as_deref(), None).unwrap();
            assert_eq!(row, vector(&encoder, prompt, &case.text), "{name} {:?}", case.text);
        }
    }
}

#[test]
fn a_text_without_known_tokens_is_zeros() {
    let encoder = load(&fixture("model2vec_words"), Overrides::default()).unwrap();
    assert_eq!(vector(&encoder, "", ""), [0.0; 12]);
    assert_eq!(vector(&encoder, "", "qqqq xxxx"), [0.0; 12], "unknown words do not count");
    let shapes = encoder.shapes();
    assert_eq!((shapes.dense, shapes.multi), (Some(12), None));
}

#[test]
fn a_long_text_is_cut_by_characters_and_by_tokens() {
    let encoder = load(&fixture("model2vec_words"), Overrides::default()).unwrap();
    let cut = |text: &str| {
        let found = read(&encoder, "", text);
        (found.ids.len(), found.truncated)
    };
    assert_eq!(cut(&"a ".repeat(6)), (6, false));
    assert_eq!(cut(&"a ".repeat(7)), (6, true));
    // Six times the median length of a token are read: a long word before them leaves nothing of what follows.
    assert_eq!(cut(&format!("{} the", "x".repeat(100))), (1, true));
    let longer = Overrides { max_length: Some(40), ..Overrides::default() };
    let encoder = load(&fixture("model2vec_words"), longer).unwrap();
    assert_eq!(read(&encoder, "", &"a ".repeat(30)).ids.len(), 30);
}

#[test]
fn what_a_static_model_does_not_have_is_refused() {
    let refused = |overrides| load(&fixture("model2vec"), overrides).map(drop).unwrap_err().to_string();
    let cls = Overrides { pooling: Some(Pooling::Cls), ..Overrides::default() };
    assert!(refused(cls).contains("\"cls\""));
    let scores = Overrides { kind: Some(ModelKind::Classifier), ..Overrides::default() };
    assert!(refused(scores).contains("no scores"));
}

/// A copy of a fixture, whose files `change` may replace.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "modules.json", "model.safetensors", "tokenizer.json"] {
        let _ = fs::copy(fixture(name).join(file), folder.path().join(file));
    }
    folder
}

fn refused(folder: &TempDir) -> String {
    load(folder.path(), Overrides::default()).map(drop).unwrap_err().to_string()
}

/// Writes tensors of a name, a format, a shape and bytes.
fn write(folder: &TempDir, tensors: &[(&str, &str, &[usize], Vec<u8>)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        header.insert(
            (*name).into(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
}

fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

#[test]
fn wrong_tensors_are_named() {
    let folder = copy("model2vec");
    let tokens = load(folder.path(), Overrides::default()).unwrap().vocabulary;
    let mapped = |last: i64| {
        let rows = (0..tokens).map(|token| if token + 1 == tokens { last } else { 1 });
        rows.flat_map(i64::to_le_bytes).collect::<Vec<_>>()
    };
    let table = ("embeddings", "I8", &[3, 2][..], vec![1, 2, 3, 4, 5, 6]);
    for (tensors, expected) in [
        (vec![("vectors", "F32", &[1][..], f32s([1.0]))], "\"embeddings\" is missing among its 1 (vectors"),
        (vec![("embeddings", "F32", &[2][..], f32s([1.0; 2]))], "shape [2]; a row for each token"),
        (vec![("embeddings", "I16", &[1, 1][..], vec![0; 2])], "stored as I16"),
        (vec![table.clone()], "has 3 tokens, and the tokenizer has"),
        (vec![table.clone(), ("mapping", "I64", &[tokens][..], mapped(3))], "the row 3 of 3"),
        (vec![table.clone(), ("mapping", "I64", &[tokens][..], mapped(-1))], "the row -1 of 3"),
        (
            vec![table.clone(), ("mapping", "F32", &[1][..], f32s([1.0]))],
            "\"mapping\" holds no whole numbers",
        ),
        (
            vec![table.clone(), ("mapping", "I64", &[tokens, 1][..], mapped(1))],
            "one row number for each token",
        ),
        (
            vec![
                table.clone(),
                ("mapping", "I64", &[tokens], mapped(1)),
                ("weights", "F32", &[1], f32s([1.0])),
            ],
            "\"weights\" has shape [1]; the model has",
        ),
        (
            vec![
                table.clone(),
                ("mapping", "I64", &[tokens], mapped(1)),
                ("weights", "F32", &[tokens], f32s((0..tokens).map(|n| if n == 5 { f32::NAN } else { 1.0 }))),
            ],
            "\"weights\" gives token 5 the factor NaN",
        ),
    ] {
        write(&folder, &tensors);
        let found = refused(&folder);
        assert!(found.contains(expected) && found.contains("model.safetensors"), "{expected}: {found}");
    }
    write(&folder, &[table, ("mapping", "I64", &[tokens], mapped(2))]);
    let encoder = load(folder.path(), Overrides::default()).unwrap();
    let mut out = [0.0; 2];
    let last = tokens as u32 - 1;
    encoder.encode(&PackedBatch::new(&[last, 0], &[0, 2]).unwrap(), &mut out).unwrap();
    let length = 32.0_f32.hypot(40.0);
    assert!((out[0] - 32.0 / length).abs() < 1e-6, "the mean of (5, 6) and (3, 4), normalized: {out:?}");
    let error = encoder.encode(&PackedBatch::new(&[tokens as u32], &[0, 1]).unwrap(), &mut out).unwrap_err();
    assert!(error.to_string().contains("outside the model's vocabulary"), "{error}");
}

#[test]
fn wrong_settings_are_named() {
    let folder = copy("model2vec");
    let config = |json: Value| fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    for (key, value) in [
        ("max_length", json!(0)),
        ("max_length", json!("long")),
        ("normalize", json!(1)),
        ("head_config", json!({"labels": ["a", "b"]})),
    ] {
        let mut whole = json!({"model_type": "model2vec", "embedding_dtype": "int8"});
        whole[key] = value;
        config(whole);
        let found = refused(&folder);
        assert!(found.contains(&format!("{key:?}")), "{found}");
    }
    config(
        json!({"model_type": "model2vec", "max_length": null, "apply_zipf": true, "architectures": ["StaticModel"]}),
    );
    assert_eq!(load(folder.path(), Overrides::default()).unwrap().config.max_length, usize::MAX);
    config(json!({"apply_pca": 3}));
    assert!(refused(&folder).contains("no model_type"), "that of no static model");
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(refused(&folder).contains("tokenizer.json"));
}

#[test]
fn modules_that_do_not_follow_a_table_are_refused() {
    let folder = copy("model2vec_modules");
    let modules = |kinds: &[&str]| {
        let list: Vec<_> = kinds
            .iter()
            .enumerate()
            .map(|(idx, kind)| json!({"idx": idx, "path": if idx == 0 { "." } else { "1_x" }, "type": format!("sentence_transformers.models.{kind}")}))
            .collect();
        fs::write(folder.path().join("modules.json"), json!(list).to_string()).unwrap();
    };
    modules(&["StaticEmbedding", "Pooling"]);
    assert!(refused(&folder).contains("Pooling out of order"));
    modules(&["StaticEmbedding", "StaticEmbedding"]);
    assert!(refused(&folder).contains("StaticEmbedding"));
    modules(&["StaticEmbedding"]);
    assert!(!load(folder.path(), Overrides::default()).unwrap().config.normalize);
}

#[test]
fn rows_of_every_format_are_read() {
    let folder = copy("model2vec");
    let tokens = load(folder.path(), Overrides::default()).unwrap().vocabulary;
    fs::write(folder.path().join("config.json"), r#"{"model_type": "model2vec"}"#).unwrap();
    let values: Vec<f32> = (0..2 * tokens).map(|n| n as f32 / 8.0 - 3.0).collect();
    let each = |f: &dyn Fn(f32) -> Vec<u8>| values.iter().flat_map(|&x| f(x)).collect::<Vec<u8>>();
    for (dtype, bytes) in [
        ("F32", each(&|x| x.to_le_bytes().into())),
        ("F64", each(&|x| f64::from(x).to_le_bytes().into())),
        ("F16", each(&|x| half::f16::from_f32(x).to_le_bytes().into())),
        ("BF16", each(&|x| half::bf16::from_f32(x).to_le_bytes().into())),
    ] {
        let factors = (0..tokens).flat_map(|_| 0.5_f64.to_le_bytes()).collect();
        write(&folder, &[("embeddings", dtype, &[tokens, 2], bytes), ("weights", "F64", &[tokens], factors)]);
        let encoder = load(folder.path(), Overrides::default()).unwrap();
        let mut out = [0.0; 2];
        encoder.encode(&PackedBatch::new(&[4, 8], &[0, 2]).unwrap(), &mut out).unwrap();
        assert_eq!(out, [-0.75, -0.6875], "{dtype}");
    }
}
