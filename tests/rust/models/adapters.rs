//! Adapters of PEFT over the committed models, against what PEFT computes without merging them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model_manager::compute::{CandleDevice, Isa, PackedBatch, WeightFormat};
use model_manager::config::SystemHost;
use model_manager::generation::{GenerationParams, Generator, Network, Prompt, TextFiles, TextModel};
use model_manager::models::decoder::{Decoder, Step};
use model_manager::models::{
    Encoder, ModelFiles, ModelKind, Overrides, ResolveOptions, Source, kind_of_files, on_cpu, on_device,
    resolve,
};
use model_manager::{Error, Result};
use serde_json::{Value, json};

use crate::fixtures::fixture;

const VECTORS: [&str; 5] = ["bert_patterns", "bert_rslora", "bert_dora", "bert_biases", "bert_saved"];
const SCORES: [&str; 3] = ["bert_classes", "bert_rerank", "qwen3_score"];
const TEXTS: [&str; 10] = [
    "qwen3_layers",
    "qwen3_tied",
    "qwen3_words",
    "qwen3_saved",
    "llama_head",
    "gpt2_lora",
    "gpt2_dora",
    "phi_head",
    "gptj_head",
    "gpt_neox_head",
];

pub(crate) fn adapter(name: &str) -> PathBuf {
    fixture("adapters").join(name)
}

pub(crate) fn reference(name: &str) -> Value {
    serde_json::from_slice(&fs::read(adapter(name).join("reference.json")).unwrap()).unwrap()
}

pub(crate) fn options(adapter: Option<&Path>) -> ResolveOptions {
    let adapter = adapter.map(|folder| folder.display().to_string());
    ResolveOptions { offline: true, adapter, ..ResolveOptions::new(Arc::new(SystemHost)) }
}

pub(crate) fn files_of(base: &Path, adapter: &Path) -> Result<ModelFiles> {
    resolve(&Source::Directory(base.to_path_buf()), &options(Some(adapter)), &mut |_| Ok(()))
}

fn files(name: &str) -> ModelFiles {
    files_of(&fixture(reference(name)["base"].as_str().unwrap()), &adapter(name)).unwrap()
}

pub(crate) fn encoder(files: &ModelFiles, format: WeightFormat, isa: Isa) -> Result<Encoder> {
    Encoder::load(files, Overrides::default(), &|config, weights| on_cpu(config, weights, isa, format))
}

pub(crate) fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|id| id as u32).collect()
}

/// What the encoder makes of these cases in one batch.
pub(crate) fn encode(encoder: &Encoder, cases: &[&Value]) -> Vec<f32> {
    let (mut all, mut offsets, mut seconds) = (Vec::new(), vec![0], Vec::new());
    for case in cases {
        all.extend(ids(&case["ids"]));
        offsets.push(all.len() as u32);
        seconds.push(case["second"].as_u64().unwrap_or(0) as u32);
    }
    let types: &[u32] = if seconds.iter().any(|&second| second > 0) { &seconds } else { &[] };
    let batch = PackedBatch { second_starts: types, ..PackedBatch::new(&all, &offsets).unwrap() };
    let mut out = vec![0.0; cases.len() * encoder.width()];
    encoder.encode(&batch, &mut out).unwrap();
    out
}

pub(crate) fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Root of the mean square error over that of the values.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    (squares(&mut a.iter().zip(b).map(|(a, b)| a - b)) / squares(&mut b.iter().copied())).sqrt()
}

pub(crate) fn cases(reference: &Value) -> Vec<&Value> {
    reference["cases"].as_array().unwrap().iter().collect()
}

#[test]
fn vectors_and_scores_are_those_of_peft_on_every_instruction_set() {
    for name in VECTORS.into_iter().chain(SCORES) {
        let (files, reference) = (files(name), reference(name));
        let kind = if SCORES.contains(&name) { ModelKind::Classifier } else { ModelKind::Embedding };
        assert_eq!(kind_of_files(&files), Some(kind), "{name}");
        let bare = ModelFiles { adapter: None, ..files.clone() };
        for isa in Isa::available() {
            let encoder = encoder(&files, WeightFormat::F32, isa).unwrap();
            let cases = cases(&reference);
            let together = encode(&encoder, &cases);
            for (case, found) in cases.iter().zip(together.chunks(encoder.width())) {
                let expected =
                    [&case["embedding"], &case["logits"]].into_iter().find(|value| value.is_array());
                let error = furthest(found, &numbers(expected.unwrap()));
                assert!(error <= 2e-5, "{name} {isa}: {error:e}");
                assert_eq!(encode(&encoder, &[case]), found, "{name} {isa}: alone and in a batch");
            }
        }
        if kind == ModelKind::Embedding {
            let bare = encoder(&bare, WeightFormat::F32, Isa::best()).unwrap();
            let expected = numbers(&cases(&reference)[0]["embedding"]);
            assert!(furthest(&encode(&bare, &cases(&reference)[..1]), &expected) > 1e-2, "{name}");
        }
    }
}

#[test]
fn narrower_weights_and_other_backends_have_the_adapter_too() {
    for name in VECTORS {
        let (files, reference) = (files(name), reference(name));
        let cases = cases(&reference);
        let expected: Vec<f32> = cases.iter().flat_map(|case| numbers(&case["embedding"])).collect();
        // Random weights amplify every rounding.
        for (format, allowed) in [(WeightFormat::Bf16, 0.1), (WeightFormat::Int8, 0.4)] {
            let encoder = encoder(&files, format, Isa::best()).unwrap();
            let error = distance(&encode(&encoder, &cases), &expected);
            assert!(error < allowed, "{name} {format:?}: {error}");
        }
        let device = CandleDevice::from(candle_core::Device::Cpu);
        let encoder = Encoder::load(&files, Overrides::default(), &|config, weights| {
            on_device(config, weights, device.clone())
        });
        let error = furthest(&encode(&encoder.unwrap(), &cases), &expected);
        assert!(error < 1e-4, "{name}: {error}");
    }
}

fn logits(model: &TextModel, tokens: &[u32]) -> Vec<f32> {
    let Network::Cpu(decoder) = &model.network else { panic!("on the CPU") };
    let mut cache = decoder.new_cache(64).unwrap();
    let mut logits = vec![0.0; decoder.vocabulary()];
    let length = tokens.len();
    let step = Step { cache: &mut cache, tokens, prompt: length, length, logits: 1 };
    decoder.forward(&mut [step], &mut logits).unwrap();
    logits
}

#[test]
fn logits_and_greedy_texts_are_those_of_peft() {
    for name in TEXTS {
        let (files, reference) = (files(name), reference(name));
        assert_eq!(kind_of_files(&files), Some(ModelKind::Generator), "{name}");
        for isa in Isa::available() {
            let open =
                || TextModel::open(name, &TextFiles::Folder(files.clone()), WeightFormat::F32, isa).unwrap();
            let (model, generator) = (open(), Generator::start(open(), |_| ()).unwrap());
            assert_eq!(model.adapter.as_deref(), Some(&*adapter(name).display().to_string()));
            for case in cases(&reference) {
                let error = furthest(&logits(&model, &ids(&case["ids"])), &numbers(&case["logits"]));
                assert!(error <= 2e-5, "{name} {isa}: {error:e}");
                let mut greedy = ids(&case["greedy"]);
                let end = greedy.iter().position(|id| model.eos_ids.contains(id));
                greedy.truncate(end.map_or(greedy.len(), |end| end + 1));
                let params = GenerationParams { max_new_tokens: Some(greedy.len()), ..Default::default() };
                if !greedy.is_empty() {
                    let prompt = Prompt::Text(case["prompt"].as_str().unwrap());
                    let answer = generator.generate(prompt, params, &mut || Ok(())).unwrap();
                    assert_eq!(answer.tokens, greedy, "{name} {isa}");
                }
            }
        }
    }
}

/// A copy of an adapter with another configuration.
pub(crate) fn changed(name: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let weights = "adapter_model.safetensors";
    fs::copy(adapter(name).join(weights), folder.path().join(weights)).unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(adapter(name).join("adapter_config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    folder
}

fn refusal(base: &str, adapter: &Path) -> String {
    let loaded =
        files_of(&fixture(base), adapter).and_then(|files| encoder(&files, WeightFormat::F32, Isa::best()));
    loaded.unwrap_err().to_string()
}

#[test]
fn what_is_not_understood_or_does_not_fit_is_refused_by_name() {
    for (change, named) in [
        (json!({"peft_type": "IA3"}), "peft_type"),
        (json!({"r": 8}), "rank 4, where adapter_config.json says 8"),
        (json!({"use_dora": true}), "lora_magnitude_vector"),
        (json!({"lora_bias": true}), "lora_B.bias"),
        (json!({"trainable_token_indices": [3]}), "trainable_token_indices"),
        (json!({"new_method": 3}), "new_method"),
        (json!({"init_lora_weights": "olora"}), "init_lora_weights"),
    ] {
        let folder = changed("bert_rslora", |config| {
            change.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        });
        let refusal = refusal("bert_plain", folder.path());
        assert!(refusal.contains(named), "{change}: {refusal}");
    }
    let folder = changed("bert_dora", |config| config["use_dora"] = false.into());
    assert!(refusal("bert_plain", folder.path()).contains("lora_magnitude_vector"));
    let folder = changed("bert_biases", |config| config["bias"] = "none".into());
    assert!(refusal("bert_plain", folder.path()).contains("bias"));
    // Of another model: shapes that differ, layers that it does not have, and none of its modules.
    let other = refusal("bert_wordpiece", &adapter("bert_rslora"));
    for part in ["word_embeddings.weight", "[24, 4]", "[32, 4]"] {
        assert!(other.contains(part), "{other}");
    }
    let other = refusal("qwen3_embedding", &adapter("bert_rslora"));
    assert!(other.contains("trained on another model"), "{other}");
}

#[test]
fn files_that_are_missing_or_damaged_are_named() {
    let folder = changed("bert_rslora", |_| ());
    let weights = folder.path().join("adapter_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 3]).unwrap();
    let damaged = refusal("bert_plain", folder.path());
    assert!(damaged.contains("adapter_model.safetensors") && damaged.contains("cut short"), "{damaged}");
    fs::remove_file(&weights).unwrap();
    let missing = files_of(&fixture("bert_plain"), folder.path());
    assert!(matches!(missing, Err(Error::MissingFile { file, .. }) if file == "adapter_model.safetensors"));
    fs::remove_file(folder.path().join("adapter_config.json")).unwrap();
    let missing = files_of(&fixture("bert_plain"), folder.path());
    assert!(matches!(missing, Err(Error::MissingFile { file, .. }) if file == "adapter_config.json"));
    let unknown = files_of(&fixture("bert_plain"), Path::new("query")).unwrap_err();
    assert!(unknown.to_string().contains("organization/name"), "{unknown}");
    let offline = files_of(&fixture("bert_plain"), Path::new("org/never-downloaded")).unwrap_err();
    assert!(matches!(offline, Error::ModelNotFound { .. }), "{offline}");
    let table = files_of(&fixture("static_embedding"), &adapter("bert_rslora")).unwrap_err();
    assert!(table.to_string().contains("static model"), "{table}");
}

#[test]
fn an_adapter_alone_is_its_base_with_it() {
    let bare = fixture("bert_plain");
    let local = |base: &str| changed("bert_rslora", |config| config["base_model_name_or_path"] = base.into());
    let find = |folder: &Path| {
        resolve(&Source::parse(&folder.display().to_string()).unwrap(), &options(None), &mut |_| Ok(()))
    };
    let folder = local(&bare.display().to_string());
    let found = find(folder.path()).unwrap();
    assert_eq!((found.model.as_str(), &found.root), (&*folder.path().display().to_string(), &bare));
    let (encoder, reference) =
        (encoder(&found, WeightFormat::F32, Isa::best()).unwrap(), reference("bert_rslora"));
    let case = cases(&reference)[0];
    assert!(furthest(&encode(&encoder, &[case]), &numbers(&case["embedding"])) <= 2e-5);
    for (base, named) in [
        ("", "does not name its base model"),
        ("/no/such/folder", "/no/such/folder"),
        ("ollama://127.0.0.1:1/m", "ollama"),
        ("../../no/such/folder", "../../no/such/folder"),
        ("pkg:os/path", "pkg:os/path"),
    ] {
        let folder = local(base);
        let error = find(folder.path()).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("adapter="), "{base}: {error}");
    }
}

#[test]
fn tasks_of_a_model_are_chosen_by_name() {
    let base = fixture("jina_v3_tasks");
    let of = |name: &str| {
        resolve(&Source::Directory(base.clone()), &options(Some(Path::new(name))), &mut |_| Ok(()))
    };
    let reference: Value = serde_json::from_slice(&fs::read(base.join("reference.json")).unwrap()).unwrap();
    for (task, prompt) in [
        ("retrieval.query", "Represent the query for retrieving evidence documents: "),
        ("retrieval.passage", "Represent the document for retrieval: "),
        ("separation", ""),
        ("classification", ""),
        ("text-matching", ""),
    ] {
        let files = of(task).unwrap();
        for isa in Isa::available() {
            let encoder = encoder(&files, WeightFormat::F32, isa).unwrap();
            assert_eq!(encoder.adapter.as_deref(), Some(task));
            assert_eq!(encoder.config.prompt("m", None, None), Ok(prompt), "{task}");
            let cases: Vec<&Value> = reference[&format!("task {task}")].as_array().unwrap().iter().collect();
            for (case, found) in cases.iter().zip(encode(&encoder, &cases).chunks(encoder.width())) {
                let error = furthest(found, &numbers(&case["embedding"]));
                assert!(error <= 2e-5, "{task} {isa}: {error:e}");
            }
        }
    }
    let bare = ModelFiles::open("m", &base).unwrap();
    assert_eq!(
        encoder(&bare, WeightFormat::F32, Isa::best()).unwrap().config.prompt("m", None, None),
        Ok("")
    );
    let unknown = of("retrieval.querry").unwrap_err();
    assert!(matches!(&unknown, Error::Argument { param: "adapter", .. }), "{unknown}");
    for part in ["retrieval.query", "text-matching", "did you mean"] {
        assert!(unknown.to_string().contains(part), "{unknown}");
    }
}
