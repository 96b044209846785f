//! The tiny generators as converters write them into GGUF files: names and metadata by the `gguf` package.

use std::collections::BTreeMap;

use serde_json::json;

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
    /// The file's name → transformers' tensors that are its rows.
    #[serde(default)]
    stacked: BTreeMap<String, Vec<String>>,
    /// The file's name → transformers' matrices of experts that are its matrices.
    #[serde(default)]
    experts: BTreeMap<String, Vec<String>>,
    /// The file's name → transformers' tensor of matrices of experts, of whose rows it has this of so many parts.
    #[serde(default)]
    slices: BTreeMap<String, (String, usize, usize)>,
}

fn headers() -> BTreeMap<String, Header> {
    let of = |name: &str| -> BTreeMap<String, Header> {
        let json: Value = read_json(&folder(name)).unwrap();
        serde_json::from_value(json["families"].clone()).unwrap()
    };
    let mut all = of("gguf_headers.json");
    all.extend(of("gguf_form_headers.json"));
    all
}

/// Pairs `i` and `i + half` of each head become neighbors.
fn permuted(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let width = values.len() / columns / heads;
    let source = |row: usize| row / width * width + row % width % 2 * (width / 2) + row % width / 2;
    (0..values.len() / columns).flat_map(|row| &values[source(row) * columns..][..columns]).copied().collect()
}

/// Rows that are stored by heads of keys, each with its queries, keys and values, as converters sort them: all queries, all
/// keys, all values.
fn by_part(values: &[f32], rows: usize, [heads, kv_heads]: [usize; 2]) -> Vec<f32> {
    let (columns, group) = (values.len() / rows, heads / kv_heads + 2);
    let width = rows / (kv_heads * group);
    let members = |members: std::ops::Range<usize>| {
        (0..kv_heads).flat_map(move |head| members.clone().map(move |member| head * group + member))
    };
    let order = members(0..group - 2).chain(members(group - 2..group - 1)).chain(members(group - 1..group));
    order.flat_map(|head| &values[head * width * columns..][..width * columns]).copied().collect()
}

fn written(family: &str, header: &Header) -> Writer {
    with_metadata(with_tensors(family, header), &header.metadata)
}

fn with_metadata(mut writer: Writer, metadata: &BTreeMap<String, Value>) -> Writer {
    for (key, value) in metadata {
        writer = match value {
            Value::String(text) => writer.text(key, text),
            Value::Number(n) if n.is_u64() => writer.number(key, n.as_u64().unwrap() as u32),
            Value::Number(n) => writer.float(key, n.as_f64().unwrap() as f32),
            Value::Bool(flag) => writer.flag(key, *flag),
            Value::Array(list) if list.iter().all(Value::is_boolean) => {
                let flags: Vec<bool> = list.iter().filter_map(Value::as_bool).collect();
                writer.flags(key, &flags)
            }
            Value::Array(list) if list.iter().all(Value::is_f64) => {
                let numbers: Vec<f32> = list.iter().map(|number| number.as_f64().unwrap() as f32).collect();
                writer.floats(key, &numbers)
            }
            Value::Array(list) => {
                let numbers: Vec<i32> = list.iter().map(|number| number.as_i64().unwrap() as i32).collect();
                writer.integers(key, &numbers)
            }
            other => panic!("{key}: {other}"),
        };
    }
    writer
}

/// The tensors and the tokenizer.
fn with_tensors(family: &str, header: &Header) -> Writer {
    let mut writer = with_tokenizer(Writer::default().text("general.architecture", &header.architecture));
    let files = ModelFiles::open(family, &folder(family)).unwrap();
    let weights = Weights::open(&files.weights).unwrap();
    for (name, renamed) in &header.names {
        let mut shape = weights.shape(name).unwrap().to_vec();
        let mut values = weights.get(name).unwrap().to_f32().unwrap();
        if shape.len() == 1
            && (family.starts_with("gemma") || family == "nemotron" && name.ends_with("norm.weight"))
        {
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
        let columns = if shape.len() == 1 { 1 } else { shape[shape.len() - 1] };
        if let Some(heads) = heads("heads").filter(|_| name.contains("q_proj.")) {
            values = permuted(&values, heads, columns);
        }
        if let Some(heads) = heads("kv_heads").filter(|_| name.contains("k_proj.")) {
            values = permuted(&values, heads, columns);
        }
        if name.contains("query_key_value") {
            let known = |key: &str| header.metadata.get(&format!("{}.attention.{key}", header.architecture));
            let kv_heads = known("head_count_kv").map_or(4, |heads| heads.as_u64().unwrap() as usize);
            values = by_part(&values, shape[0], [4, kv_heads]);
        }
        if family == "gpt2" && name.contains(".c_") && shape.len() == 2 {
            // GPT-2 stores matrices transposed.
            let (rows, columns) = (shape[0], shape[1]);
            values = (0..columns * rows).map(|i| values[i % rows * columns + i / rows]).collect();
            shape.reverse();
        }
        if let [rows, 1, columns] = shape[..] {
            // Convolutions of one column each.
            shape = vec![rows, columns];
        }
        writer = writer.tensor(renamed, &shape, 0, &f32s(&values));
    }
    for (name, rows) in &header.stacked {
        let rows: Vec<Vec<f32>> =
            rows.iter().map(|name| weights.get(name).unwrap().to_f32().unwrap()).collect();
        writer = writer.tensor(name, &[rows.len(), rows[0].len()], 0, &f32s(&rows.concat()));
    }
    for (name, experts) in &header.experts {
        let shape = weights.shape(&experts[0]).unwrap();
        let values: Vec<_> =
            experts.iter().flat_map(|name| weights.get(name).unwrap().to_f32().unwrap()).collect();
        writer = writer.tensor(name, &[experts.len(), shape[0], shape[1]], 0, &f32s(&values));
    }
    for (name, (from, part, parts)) in &header.slices {
        let values = weights.get(from).unwrap().to_f32().unwrap();
        let (experts, rows, columns) = match *weights.shape(from).unwrap() {
            [experts, rows, columns] => (experts, rows, columns),
            [rows, columns] => (0, rows, columns),
            ref other => panic!("{from}: {other:?}"),
        };
        let own = rows / parts * columns;
        let values: Vec<f32> =
            values.chunks(rows * columns).flat_map(|expert| &expert[part * own..][..own]).copied().collect();
        let shape = [experts, rows / parts, columns];
        writer = writer.tensor(name, &shape[usize::from(experts == 0)..], 0, &f32s(&values));
    }
    for (name, values) in &header.factors {
        writer = writer.tensor(name, &[values.len()], 0, &f32s(values));
    }
    writer
}

/// The file of `family` as it is.
pub(super) fn plain(family: &str) -> Writer {
    written(family, &headers()[family])
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
        ("arcee", "attention.sliding_window"),
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

#[test]
fn a_gemma_2_that_does_not_say_its_window_has_the_usual_one() {
    let header = &headers()["gemma2"];
    let key = "gemma2.attention.sliding_window";
    let others = header.metadata.iter().filter(|(name, _)| *name != key);
    let others: BTreeMap<_, _> = others.map(|(name, value)| (name.clone(), value.clone())).collect();
    let model = |window: Option<u32>| {
        let mut writer = with_metadata(with_tensors("gemma2", header), &others);
        if let Some(window) = window {
            writer = writer.number(key, window);
        }
        let (_folder, path) = writer.write();
        let files = ModelFiles::gguf("m", path).unwrap();
        format!("{:?}", ModelConfig::read(&files, ModelKind::Generator).unwrap().architecture)
    };
    assert!(header.metadata.contains_key(key));
    assert_eq!(model(None), model(Some(4096)));
    assert_ne!(model(None), model(Some(0)));
}

/// What is no sound value is refused, or read as another model of the same tensors.
#[test]
fn wrong_metadata_of_every_family_ends_in_no_panic() {
    let (mut refused, mut read) = (0, 0);
    for (family, header) in headers() {
        let tensors = with_tensors(&family, &header);
        for key in header.metadata.keys() {
            for value in
                [json!(0), json!(1), json!(7), json!(u32::MAX), json!("x"), json!(-1.5), json!([true])]
            {
                let mut metadata = header.metadata.clone();
                metadata.insert(key.clone(), value);
                let (_folder, path) = with_metadata(tensors.clone(), &metadata).write();
                let load = || {
                    let files = ModelFiles::gguf("m", path)?;
                    let config = ModelConfig::read(&files, ModelKind::Generator)?;
                    let backend = Cpu::new(Isa::Portable, WeightFormat::F32);
                    Transformer::load_decoder(backend, &*config.architecture, &config.weights(&files)?)
                };
                let done = load().map(drop);
                if done.is_ok() { read += 1 } else { refused += 1 }
            }
        }
    }
    assert!(read > 100 && refused > 500, "{read} read, {refused} refused");
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

#[path = "gguf_mixtures_tests.rs"]
mod mixtures;

#[path = "gguf_gemma4_tests.rs"]
mod gemma4;
