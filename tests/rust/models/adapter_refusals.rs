//! Adapters that are easily mistaken: two at a time, next to weights, with heads and tables that are shared, with less in their
//! configuration than the present PEFT writes.

use std::fs;
use std::path::Path;

use model_manager::Error;
use model_manager::compute::{Isa, WeightFormat};
use model_manager::generation::{TextFiles, TextModel};
use model_manager::models::{
    Encoder, ModelFiles, ModelKind, Overrides, Source, kind_of_files, on_cpu, resolve,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::adapters::{
    adapter, cases, changed, encode, encoder, files_of, furthest, numbers, options, reference,
};
use crate::fixtures::fixture;

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// A file of tensors of small numbers.
fn write_tensors(path: &Path, tensors: &[(&str, &[usize])]) {
    let (mut header, mut numbers) = (Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = numbers.len();
        let count: usize = shape.iter().product();
        numbers.extend((0..count).flat_map(|i| ((i % 7) as f32 * 0.02 - 0.05).to_le_bytes()));
        let offsets = [start, numbers.len()];
        header.insert((*name).into(), json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}));
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(numbers);
    fs::write(path, bytes).unwrap();
}

/// An adapter of these tensors.
fn made(config: &Value, tensors: &[(&str, &[usize])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    write_tensors(&folder.path().join("adapter_model.safetensors"), tensors);
    folder
}

fn loaded(files: &ModelFiles, kind: Option<ModelKind>) -> Result<Encoder, Error> {
    Encoder::load(files, Overrides { kind, ..Overrides::default() }, &|config, weights| {
        on_cpu(config, weights, Isa::best(), WeightFormat::F32)
    })
}

fn refusal(base: &str, adapter: &Path, kind: Option<ModelKind>) -> String {
    let found = files_of(&fixture(base), adapter).and_then(|files| loaded(&files, kind));
    found.unwrap_err().to_string()
}

/// The furthest of the adapter's vectors or logits from those of `name`.
fn distance(files: &ModelFiles, name: &str) -> f32 {
    let (encoder, reference) = (encoder(files, WeightFormat::F32, Isa::best()).unwrap(), reference(name));
    let all = cases(&reference);
    let wanted = all.iter().flat_map(|case| {
        numbers([&case["embedding"], &case["logits"]].into_iter().find(|value| value.is_array()).unwrap())
    });
    furthest(&encode(&encoder, &all), &wanted.collect::<Vec<_>>())
}

#[test]
fn a_source_that_is_an_adapter_takes_no_other() {
    let base = fixture("bert_plain");
    let one = changed("bert_rslora", |config| {
        config["base_model_name_or_path"] = base.display().to_string().into();
    });
    let refused = files_of(one.path(), &adapter("bert_dora")).unwrap_err();
    assert!(matches!(&refused, Error::Argument { param: "adapter", .. }), "{refused}");
    assert!(refused.to_string().contains(&base.display().to_string()), "{refused}");
}

#[test]
fn what_a_configuration_leaves_out_is_as_in_peft() {
    let without = changed("bert_rslora", |config| {
        config.as_object_mut().unwrap().remove("lora_alpha");
    });
    let eight = changed("bert_rslora", |config| config["lora_alpha"] = 8.into());
    let all = reference("bert_rslora");
    let vectors = |folder: Option<&Path>| {
        let files = match folder {
            Some(folder) => files_of(&fixture("bert_plain"), folder).unwrap(),
            None => ModelFiles::open("m", &fixture("bert_plain")).unwrap(),
        };
        encode(&encoder(&files, WeightFormat::F32, Isa::best()).unwrap(), &cases(&all))
    };
    assert_eq!(vectors(Some(without.path())), vectors(Some(eight.path())));
    assert!(furthest(&vectors(Some(without.path())), &vectors(None)) > 1e-2);
    // PEFT adds its heads for classification to whatever the file names.
    for (name, saved) in [("bert_classes", json!(["pooler"])), ("qwen3_score", json!(null))] {
        let folder = changed(name, |config| config["modules_to_save"] = saved);
        let base = fixture(reference(name)["base"].as_str().unwrap());
        let error = distance(&files_of(&base, folder.path()).unwrap(), name);
        assert!(error <= 2e-5, "{name}: {error:e}");
    }
}

#[test]
fn an_adapter_next_to_weights_is_not_left_out_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture("bert_plain"), folder.path());
    copy(&adapter("bert_rslora"), folder.path());
    let source = Source::Directory(folder.path().to_path_buf());
    let refused = resolve(&source, &options(None), &mut |_| Ok(())).unwrap_err().to_string();
    assert!(refused.contains("adapter_config.json") && refused.contains("adapter="), "{refused}");
    let both = files_of(folder.path(), folder.path()).unwrap();
    assert!(distance(&both, "bert_rslora") <= 2e-5);
}

#[test]
fn tables_of_words_that_others_share_are_refused() {
    let config = json!({"peft_type": "LORA", "r": 2});
    let of_t5: [(&str, &[usize]); 2] =
        [("shared.lora_embedding_A", &[2, 241]), ("shared.lora_embedding_B", &[24, 2])];
    for base in ["t5", "mt5"] {
        let rows = ModelFiles::open("m", &fixture(base)).unwrap();
        let rows = model_manager::models::Weights::open(&rows.weights).unwrap();
        let shape = rows.shape("shared.weight").unwrap().to_vec();
        let (a, b) = ([2, shape[0]], [shape[1], 2]);
        let folder = made(&config, &[(of_t5[0].0, &a), (of_t5[1].0, &b)]);
        let refused = refusal(base, folder.path(), None);
        assert!(refused.contains("shared") && refused.contains("T5"), "{base}: {refused}");
    }
    let words = "bert.embeddings.word_embeddings";
    let (a, b) = (format!("{words}.lora_embedding_A"), format!("{words}.lora_embedding_B"));
    let folder = made(&config, &[(&a, &[2, 241]), (&b, &[24, 2])]);
    let refused = refusal("splade_bert", folder.path(), Some(ModelKind::Sparse));
    assert!(refused.contains("word_embeddings") && refused.contains("sparse"), "{refused}");
    assert!(!refused.contains("merge") && !refused.contains("  "), "{refused}");
    // The norm after the tables, and the table of positions, are none of words.
    let biases = json!({"peft_type": "LORA", "r": 2, "bias": "all"});
    for (name, shape) in [
        ("bert.embeddings.LayerNorm.bias", &[24][..]),
        ("bert.embeddings.position_embeddings.weight", &[32, 24]),
    ] {
        let folder = made(&biases, &[(name, shape)]);
        let files = files_of(&fixture("splade_bert"), folder.path()).unwrap();
        assert!(loaded(&files, Some(ModelKind::Sparse)).is_ok(), "{name}");
    }
}

#[test]
fn what_is_added_fits_the_saved_head_that_it_is_added_to() {
    for (tensors, named) in [
        ([("classifier.lora_A.weight", [3, 24]), ("classifier.lora_B.weight", [1, 3])], "classifier.weight"),
        ([("classifier.lora_A.weight", [3, 20]), ("classifier.lora_B.weight", [3, 3])], "classifier.weight"),
    ] {
        let config = json!({"peft_type": "LORA", "r": 3, "task_type": "SEQ_CLS"});
        let mut all: Vec<(&str, &[usize])> = vec![("classifier.weight", &[3, 24]), ("classifier.bias", &[3])];
        all.extend(tensors.iter().map(|(name, shape)| (*name, &shape[..])));
        let folder = made(&config, &all);
        let refused = refusal("rerank_bert", folder.path(), Some(ModelKind::Classifier));
        assert!(refused.contains(named) && refused.contains("shape"), "{refused}");
    }
    let config = json!({"peft_type": "LORA", "r": 3, "task_type": "SEQ_CLS", "lora_bias": true});
    let folder = made(
        &config,
        &[
            ("classifier.weight", &[3, 24]),
            ("classifier.bias", &[3]),
            ("classifier.lora_A.weight", &[3, 24]),
            ("classifier.lora_B.weight", &[3, 3]),
            ("classifier.lora_B.bias", &[1]),
        ],
    );
    let refused = refusal("rerank_bert", folder.path(), Some(ModelKind::Classifier));
    assert!(refused.contains("classifier.bias") && refused.contains("[3]"), "{refused}");
}

/// PEFT adds a bias to a layer that has none, and cannot merge it either.
#[test]
fn a_bias_of_a_layer_without_one_is_refused_with_its_cause() {
    let refusal = |base: &str, adapter: &Path| {
        let files = files_of(&fixture(base), adapter).unwrap();
        let opened = TextModel::open(base, &TextFiles::Folder(files), WeightFormat::F32, Isa::best());
        opened.unwrap_err().to_string()
    };
    let config = json!({"peft_type": "LORA", "r": 2, "task_type": "CAUSAL_LM", "lora_bias": true});
    for (base, module, rows) in [
        ("gpt_neox", "embed_out", 319),
        ("gpt_neox", "lm_head", 319),
        ("llama", "lm_head", 319),
        ("llama", "model.layers.1.self_attn.q_proj", 32),
        // The head is the table of words.
        ("qwen3", "lm_head", 319),
    ] {
        let [a, b, bias] = ["lora_A.weight", "lora_B.weight", "lora_B.bias"]
            .map(|part| format!("base_model.model.{module}.{part}"));
        let folder = made(&config, &[(&a, &[2, 32]), (&b, &[rows, 2]), (&bias, &[rows])]);
        let refused = refusal(base, folder.path());
        for part in [&format!("{module}.bias"), "lora_bias", "has none", "train the adapter without"] {
            assert!(refused.contains(part), "{base} {module}: {refused}");
        }
        assert!(!refused.contains("another model"), "{refused}");
    }
    // Of no layer of the base.
    let names = ["other.lora_A.weight", "other.lora_B.weight", "other.lora_B.bias"];
    let folder = made(&config, &[(names[0], &[2, 32]), (names[1], &[32, 2]), (names[2], &[32])]);
    let refused = refusal("llama", folder.path());
    assert!(refused.contains("trained on another model"), "{refused}");
}

#[test]
fn a_head_of_an_adapter_takes_the_place_of_saved_modules() {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture("bert_plain"), folder.path());
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    for (name, content) in [
        (
            "modules.json",
            r#"[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#,
        ),
        ("1_Pooling/config.json", r#"{"word_embedding_dimension": 24, "pooling_mode_cls_token": true}"#),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let files = files_of(folder.path(), &adapter("bert_classes")).unwrap();
    assert_eq!(kind_of_files(&files), Some(ModelKind::Classifier));
    assert!(distance(&files, "bert_classes") <= 2e-5);
}

#[test]
fn a_name_of_two_tasks_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture("jina_v3_tasks"), folder.path());
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["lora_adaptations"][1] = config["lora_adaptations"][0].clone();
    config["task_instructions"] = json!({});
    fs::write(&path, config.to_string()).unwrap();
    let refused = files_of(folder.path(), Path::new("text-matching")).unwrap_err().to_string();
    assert!(refused.contains("lora_adaptations") && refused.contains("twice"), "{refused}");
}

#[test]
fn room_is_made_for_a_changed_table() {
    let bytes = |files: &ModelFiles| files.expected_bytes(WeightFormat::Int8).unwrap();
    let bare = ModelFiles::open("m", &fixture("bert_plain")).unwrap();
    let with = files_of(&fixture("bert_plain"), &adapter("bert_rslora")).unwrap();
    assert_eq!(bytes(&with) - bytes(&bare), 241 * 24 * 4);
    let other = files_of(&fixture("bert_plain"), &adapter("bert_classes")).unwrap();
    assert_eq!(bytes(&other), bytes(&bare));
}
