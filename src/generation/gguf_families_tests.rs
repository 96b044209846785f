//! The tiny generators as converters write them into GGUF files: names and metadata by the `gguf` package.

use std::collections::BTreeMap;

use super::*;

#[derive(serde::Deserialize)]
struct Header {
    architecture: String,
    metadata: BTreeMap<String, Value>,
    /// transformers' name → the file's.
    names: BTreeMap<String, String>,
    /// Query heads and key heads whose pairs become neighbors.
    permuted: Option<BTreeMap<String, usize>>,
    /// Tensors of divisors of frequencies.
    factors: BTreeMap<String, Vec<f32>>,
}

fn headers() -> BTreeMap<String, Header> {
    let json: Value = read_json(&folder("gguf_headers.json")).unwrap();
    serde_json::from_value(json["families"].clone()).unwrap()
}

/// Pairs `i` and `i + half` of each head become neighbors.
fn permuted(values: &[f32], heads: usize) -> Vec<f32> {
    let columns = 32;
    let width = values.len() / columns / heads;
    let source = |row: usize| row / width * width + row % width % 2 * (width / 2) + row % width / 2;
    (0..values.len() / columns).flat_map(|row| &values[source(row) * columns..][..columns]).copied().collect()
}

fn written(family: &str, header: &Header) -> Writer {
    let mut writer = with_tokenizer(Writer::default().text("general.architecture", &header.architecture));
    for (key, value) in &header.metadata {
        writer = match value {
            Value::String(text) => writer.text(key, text),
            Value::Number(n) if n.is_u64() => writer.number(key, n.as_u64().unwrap() as u32),
            Value::Number(n) => writer.float(key, n.as_f64().unwrap() as f32),
            other => panic!("{key}: {other}"),
        };
    }
    let files = ModelFiles::open(family, &folder(family)).unwrap();
    let weights = Weights::open(&files.weights).unwrap();
    for (name, renamed) in &header.names {
        let mut shape = weights.shape(name).unwrap().to_vec();
        let mut values = weights.get(name).unwrap().to_f32().unwrap();
        if shape.len() == 1 && family.starts_with("gemma") {
            values.iter_mut().for_each(|x| *x += 1.0);
        }
        // Gemma's score scale is not in the file; the fixtures have another than the real models.
        let scaled = match family {
            "gemma2" => "q_proj",
            "gemma3_text" => "q_norm",
            _ => "none",
        };
        if name.contains(scaled) {
            values.iter_mut().for_each(|x| *x *= (12.0_f32 / 20.0).sqrt());
        }
        let heads = |part: &str| header.permuted.as_ref()?.get(part).copied();
        if let Some(heads) = heads("heads").filter(|_| name.contains("q_proj.weight")) {
            values = permuted(&values, heads);
        }
        if let Some(heads) = heads("kv_heads").filter(|_| name.contains("k_proj.weight")) {
            values = permuted(&values, heads);
        }
        if name.contains(".c_") && shape.len() == 2 {
            // GPT-2 stores matrices transposed.
            let (rows, columns) = (shape[0], shape[1]);
            values = (0..columns * rows).map(|i| values[i % rows * columns + i / rows]).collect();
            shape.reverse();
        }
        writer = writer.tensor(renamed, &shape, 0, &f32s(&values));
    }
    for (name, values) in &header.factors {
        writer = writer.tensor(name, &[values.len()], 0, &f32s(values));
    }
    writer
}

#[test]
fn families_in_gguf_files_compute_what_transformers_computes() {
    for (family, header) in headers() {
        let (_folder, path) = written(&family, &header).write();
        let model = from_gguf(&family, &path, WeightFormat::F32, Isa::best()).unwrap();
        let expected = reference(&family);
        for case in &expected.cases {
            let error = furthest(&logits(&model, &[&case.ids]), &case.logits);
            assert!(error < 1e-4, "{family} {:?}: {error}", case.prompt);
        }
    }
}

#[test]
fn metadata_that_no_family_reads_is_named() {
    let headers = headers();
    for (family, key) in [
        ("llama", "attention.sliding_window"),
        ("olmo2", "attention.sliding_window"),
        ("qwen3", "attention.scale"),
        ("gemma3_text", "attn_logit_softcapping"),
        ("gpt2", "attention.head_count_kv"),
        ("granite", "expert_count"),
    ] {
        let header = &headers[family];
        let key = format!("{}.{key}", header.architecture);
        let (_folder, path) = written(family, header).number(&key, 9).write();
        let error = from_gguf(family, &path, WeightFormat::F32, Isa::best()).unwrap_err().to_string();
        assert!(error.contains(&key) && error.contains("does not know"), "{error}");
    }
    let (_folder, path) =
        written("qwen3", &headers["qwen3"]).text("qwen3.rope.scaling.type", "klingon").write();
    let error = from_gguf("m", &path, WeightFormat::F32, Isa::best()).unwrap_err().to_string();
    assert!(error.contains("\"klingon\""), "{error}");
}

/// Each fourth layer of SmolLM3 has no rotary positions; the file does not say so.
#[test]
fn layers_without_positions_are_known() {
    let writer = Writer::default()
        .text("general.architecture", "smollm3")
        .number("smollm3.block_count", 5)
        .number("smollm3.context_length", 64)
        .number("smollm3.embedding_length", 32)
        .number("smollm3.feed_forward_length", 48)
        .number("smollm3.attention.head_count", 4);
    let (_folder, path) = writer.write();
    let files = ModelFiles::gguf("smollm3", path).unwrap();
    let config = ModelConfig::read(&files, ModelKind::Generator).unwrap();
    let rotated: Vec<bool> = config.describe().attention.iter().map(|layer| layer.rotary.is_some()).collect();
    assert_eq!(rotated, [true, true, true, false, true]);
}
