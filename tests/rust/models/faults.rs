//! Broken models: every fault has its error, which names the file and the remedy.

use std::fs;
use std::path::Path;

use model_manager::Error;
use model_manager::models::{
    Encoder, ModelConfig, ModelFiles, ModelKind, Overrides, Pooling, SentenceConfig, SentenceEncoder,
    Similarity, Tokenizer, Weights,
};
use tempfile::TempDir;

use crate::fixtures::fixture;

/// A copy of a fixture, to be damaged.
pub(super) fn copy(name: &str) -> TempDir {
    fn copy_all(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy_all(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy_all(&fixture(name), folder.path());
    folder
}

/// Loads as a user would. The transformer itself is left out.
fn load(folder: &Path) -> Result<SentenceConfig, Error> {
    let files = ModelFiles::open("m", folder)?;
    let build = |_: &ModelConfig, _: &Weights| -> Result<Box<dyn SentenceEncoder>, Error> {
        Err(Error::Closed) // reached: all files were sound
    };
    match Encoder::load(&files, Overrides::default(), &build).unwrap_err() {
        Error::Closed => {
            SentenceConfig::load(&files, ModelConfig::read(&files, ModelKind::Embedding)?.positions()?)
        }
        error => Err(error),
    }
}

pub(super) fn write(folder: &TempDir, file: &str, content: &str) {
    fs::write(folder.path().join(file), content).unwrap();
}

#[test]
fn a_folder_that_is_not_there_or_no_folder() {
    let error = load(Path::new("/nowhere/model")).unwrap_err();
    assert!(
        matches!(&error, Error::ModelNotFound { model, reason } if model == "m" && reason.contains("/nowhere/model"))
    );
    let folder = copy("bert_plain");
    let error = load(&folder.path().join("config.json")).unwrap_err();
    assert!(matches!(&error, Error::InvalidFile { reason, .. } if reason.contains("is a file")), "{error}");
    let error = load(&folder.path().join("config.json/x")).unwrap_err();
    assert!(matches!(&error, Error::ModelNotFound { .. }), "{error}");
}

#[test]
fn missing_files_are_named_with_a_remedy() {
    for (removed, named, remedy) in [
        (&["config.json"][..], "config.json", "sentence-transformers saved"),
        (&["tokenizer.json", "vocab.txt"], "tokenizer.json", "vocab.txt"),
        (&["model.safetensors"], "model.safetensors", "PyTorch weights"),
        (&["1_Pooling/config.json"], "config.json", "copy its folder"),
    ] {
        let folder = copy("bert_wordpiece");
        for file in removed {
            let _ = fs::remove_file(folder.path().join(file));
        }
        match load(folder.path()).unwrap_err() {
            Error::MissingFile { model, file, remedy: said, .. } => {
                assert_eq!((model.as_str(), file.as_str()), ("m", named));
                assert!(said.contains(remedy), "{said}");
            }
            other => panic!("{removed:?}: {other}"),
        }
    }
    let folder = copy("xlmr");
    fs::rename(folder.path().join("tokenizer.json"), folder.path().join("sentencepiece.bpe.model")).unwrap();
    assert!(load(folder.path()).unwrap_err().to_string().contains("save_pretrained"));
    let folder = copy("bert_sharded");
    fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(
        matches!(&error, Error::MissingFile { file, .. } if file == "model-00002-of-00002.safetensors"),
        "{error}"
    );
}

#[test]
fn config_json_of_every_wrong_kind() {
    for (content, part) in [
        ("not json", "does not read"),
        ("", "does not read"),
        ("[]", "no model_type"),
        (r#"{"model_type": 3}"#, "no model_type"),
        (r#"{"model_type": "bert"}"#, "missing field `vocab_size`"),
        (
            r#"{"model_type": "xlm-roberta", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1,
                "num_attention_heads": 1, "intermediate_size": 4, "max_position_embeddings": 2, "pad_token_id": 1}"#,
            "too small",
        ),
    ] {
        let folder = copy("bert_plain");
        write(&folder, "config.json", content);
        match load(folder.path()).unwrap_err() {
            Error::InvalidFile { path, reason } => {
                assert!(path.ends_with("config.json") && reason.contains(part), "{content}: {reason}");
            }
            other => panic!("{content}: {other}"),
        }
    }
    let folder = copy("bert_plain");
    write(&folder, "config.json", r#"{"model_type": "mamba"}"#);
    let error = load(folder.path()).unwrap_err();
    assert!(
        matches!(&error, Error::Unsupported { reason, .. } if reason.contains("mamba") && reason.contains("models --known"))
    );
}

#[test]
fn a_post_processor_that_names_an_unknown_token_is_the_files_fault() {
    let folder = copy("bert_wordpiece");
    let path = folder.path().join("tokenizer.json");
    let mut words: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    words["post_processor"]["special_tokens"] = serde_json::json!({});
    fs::write(&path, words.to_string()).unwrap();
    match load(folder.path()).unwrap_err() {
        Error::InvalidFile { path: named, reason } => {
            assert!(named == path && reason.contains("damaged"), "{reason}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn damaged_files_are_named() {
    for (fixture, file) in [
        ("bert_wordpiece", "tokenizer.json"),
        ("bert_wordpiece", "tokenizer_config.json"),
        ("bert_wordpiece", "modules.json"),
        ("bert_wordpiece", "1_Pooling/config.json"),
        ("bert_wordpiece", "sentence_bert_config.json"),
        ("bert_wordpiece", "config_sentence_transformers.json"),
        ("bert_wordpiece", "model.safetensors"),
        ("bert_sharded", "model.safetensors.index.json"),
        ("bert_sharded", "model-00001-of-00002.safetensors"),
        ("bert_bin", "pytorch_model.bin"),
        ("bert_bin", "vocab.txt"),
        ("bert_dense", "2_Dense/config.json"),
    ] {
        let folder = copy(fixture);
        let path = folder.path().join(file);
        let whole = fs::read(&path).unwrap();
        // Half a vocabulary is still one: the model has rows for ids that no text gets.
        let half = if file == "vocab.txt" { &whole[..8] } else { &whole[..whole.len() / 2] };
        for damaged in [half, b"\xff\xfe garbage", b""] {
            fs::write(&path, damaged).unwrap();
            match load(folder.path()).unwrap_err() {
                Error::InvalidFile { path: named, reason } => {
                    assert_eq!(named, path);
                    assert!(!reason.is_empty());
                }
                other => panic!("{fixture}/{file}: {other}"),
            }
        }
    }
}

#[test]
fn a_truncated_pickle_fails_at_every_length() {
    let folder = copy("bert_bin");
    let path = folder.path().join("pytorch_model.bin");
    let whole = fs::read(&path).unwrap();
    for part in 0..64 {
        fs::write(&path, &whole[..whole.len() * part / 64]).unwrap();
        assert!(matches!(load(folder.path()), Err(Error::InvalidFile { .. })), "{part}/64");
    }
}

#[test]
fn stages_that_cannot_be_run() {
    let stage = |kind: &str, path: &str| {
        format!(r#"{{"idx":0,"path":"{path}","type":"sentence_transformers.models.{kind}"}}"#)
    };
    let transformer = stage("Transformer", "");
    let pooling = stage("Pooling", "1_Pooling");
    let dense = stage("Dense", "2_Dense");
    let normalize = stage("Normalize", "3_Normalize");
    for (stages, part) in [
        (vec![&transformer, &pooling, &stage("LSTM", "x")], "LSTM"),
        (vec![&transformer], "no Pooling"),
        (vec![&transformer, &pooling, &normalize, &dense], "out of order"),
        (vec![&transformer, &pooling, &pooling], "out of order"),
        (vec![&pooling, &transformer], "out of order"),
        (vec![&transformer, &dense, &pooling], "out of order"),
        (vec![&stage("StaticEmbedding", ""), &pooling], "out of order"),
    ] {
        let folder = copy("bert_dense");
        let stages: Vec<_> = stages.into_iter().map(String::as_str).collect();
        write(&folder, "modules.json", &format!("[{}]", stages.join(",")));
        let error = load(folder.path()).unwrap_err();
        assert!(
            matches!(&error, Error::Unsupported { reason, .. } if reason.contains(part)),
            "{stages:?}: {error}"
        );
    }
}

#[test]
fn poolings() {
    let folder = copy("bert_wordpiece");
    for (config, expected) in [
        (r"{}", Pooling::Mean),
        (r#"{"pooling_mode_cls_token":true}"#, Pooling::Cls),
        (r#"{"pooling_mode":"lasttoken","pooling_mode_cls_token":true}"#, Pooling::Last),
        (r#"{"pooling_mode":["max"]}"#, Pooling::Max),
    ] {
        write(&folder, "1_Pooling/config.json", config);
        assert_eq!(load(folder.path()).unwrap().pooling, expected, "{config}");
    }
    write(
        &folder,
        "1_Pooling/config.json",
        r#"{"pooling_mode_cls_token":true,"pooling_mode_max_tokens":true}"#,
    );
    let error = load(folder.path()).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { reason, .. } if reason.contains("cls, max")), "{error}");
    write(&folder, "1_Pooling/config.json", r#"{"pooling_mode":"attention"}"#);
    assert!(matches!(load(folder.path()), Err(Error::InvalidFile { .. })));
}

#[test]
fn prompts() {
    let folder = copy("bert_wordpiece");
    let file = "config_sentence_transformers.json";
    write(
        &folder,
        file,
        r#"{"prompts":{"query":"q: ","none":null},"default_prompt_name":"query","similarity_fn_name":"dot"}"#,
    );
    let mut config = load(folder.path()).unwrap();
    assert_eq!(config.similarity, Similarity::Dot);
    assert_eq!(config.prompt("m", None, None).unwrap(), "q: ");
    assert_eq!(config.prompt("m", Some("none"), None).unwrap(), "");
    assert_eq!(config.prompt("m", Some("query"), Some("own ")).unwrap(), "own ");
    let unknown = config.prompt("m", Some("x"), None).unwrap_err();
    assert!(
        matches!(&unknown, Error::Argument { param: "prompt_name", rest, .. } if rest.contains("none, query")),
        "{unknown}"
    );
    config.include_prompt = false;
    assert!(matches!(config.prompt("m", None, None), Err(Error::Unsupported { .. })));
    assert_eq!(config.prompt("m", None, Some("")).unwrap(), "");
    write(&folder, file, r#"{"prompts":{},"default_prompt_name":"query"}"#);
    assert!(matches!(load(folder.path()), Err(Error::InvalidFile { .. })));
}

#[test]
fn a_transformer_in_a_folder_of_its_own() {
    let folder = copy("bert_wordpiece");
    let inner = folder.path().join("0_Transformer");
    fs::create_dir(&inner).unwrap();
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        "sentence_bert_config.json",
    ] {
        fs::rename(folder.path().join(file), inner.join(file)).unwrap();
    }
    let modules = fs::read_to_string(folder.path().join("modules.json")).unwrap();
    write(&folder, "modules.json", &modules.replacen(r#""path": """#, r#""path": "0_Transformer""#, 1));
    let files = ModelFiles::open("m", folder.path()).unwrap();
    assert_eq!(files.transformer, inner);
    assert_eq!(load(folder.path()).unwrap(), load(&fixture("bert_wordpiece")).unwrap());
}

#[test]
fn the_tokenizer_refuses_a_length_without_room() {
    let files = ModelFiles::open("m", &fixture("bert_wordpiece")).unwrap();
    let tokenizer = Tokenizer::load(&files, false).unwrap();
    for length in [0, 1, 2] {
        assert!(matches!(tokenizer.encode("text", length), Err(Error::Input(_))), "{length}");
    }
    assert_eq!(tokenizer.encode("text and more", 3).unwrap().len(), 3);
}

#[test]
fn truncation_from_the_left_and_generic_classes() {
    let folder = copy("bert_wordpiece");
    let id = |folder: &TempDir, text: &str| {
        let files = ModelFiles::open("m", folder.path()).unwrap();
        Tokenizer::load(&files, false).unwrap().encode(text, 4).unwrap()
    };
    write(&folder, "tokenizer_config.json", r#"{"truncation_side":"left"}"#);
    assert_eq!(id(&folder, "a b c d"), id(&folder, "c d"));
    write(
        &folder,
        "tokenizer_config.json",
        r#"{"do_lower_case":false,"tokenizer_class":"PreTrainedTokenizerFast"}"#,
    );
    assert_eq!(id(&folder, "A"), id(&folder, "a"), "the class that takes tokenizer.json as it is");
    write(&folder, "tokenizer_config.json", r#"{"do_lower_case":false,"tokenizer_class":"BertTokenizer"}"#);
    assert_ne!(id(&folder, "A"), id(&folder, "a"), "the class whose settings win");
}

#[cfg(unix)]
#[test]
fn closed_files_and_folders() {
    use std::os::unix::fs::PermissionsExt;
    let folder = copy("bert_wordpiece");
    let set = |file: &str, mode: u32| {
        fs::set_permissions(folder.path().join(file), fs::Permissions::from_mode(mode)).unwrap();
    };
    set("model.safetensors", 0);
    if fs::File::open(folder.path().join("model.safetensors")).is_ok() {
        return; // root may read everything
    }
    assert!(matches!(load(folder.path()), Err(Error::Permission { action: "read", .. })));
    set("model.safetensors", 0o644);
    set("tokenizer.json", 0);
    assert!(matches!(load(folder.path()), Err(Error::Permission { .. })));
    set("tokenizer.json", 0o644);
    set("", 0);
    let closed = load(folder.path());
    set("", 0o755);
    assert!(matches!(closed, Err(Error::Permission { .. })), "{closed:?}");
}

/// A `tokenizer.json` whose parts lie deep inside each other would keep its reader busy without end.
#[test]
fn parts_of_a_tokenizer_that_lie_too_deep_are_refused() {
    let wrap = |levels: usize, list: &str, inner: serde_json::Value| {
        (0..levels).fold(inner, |inner, _| serde_json::json!({"type": "Sequence", list: [inner]}))
    };
    let parts = [
        ("normalizer", "normalizers", serde_json::json!({"type": "Lowercase"})),
        ("pre_tokenizer", "pretokenizers", serde_json::json!({"type": "BertPreTokenizer"})),
        (
            "post_processor",
            "processors",
            serde_json::json!({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}),
        ),
        ("decoder", "decoders", serde_json::json!({"type": "Fuse"})),
    ];
    for (part, list, inner) in parts {
        for levels in [2, 5, 8, 40, 20_000] {
            let folder = copy("bert_cls");
            let path = folder.path().join("tokenizer.json");
            let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            json[part] = serde_json::Value::Null;
            let hole = serde_json::to_string(&json).unwrap();
            // Not through serde_json, which has a limit of its own.
            let (open, close) = (format!("{{\"type\":\"Sequence\",\"{list}\":["), "]}");
            let deep = if levels > 100 {
                format!("{}{}{}", open.repeat(levels), inner, close.repeat(levels))
            } else {
                wrap(levels, list, inner.clone()).to_string()
            };
            let wanted = hole.replacen(&format!("\"{part}\":null"), &format!("\"{part}\":{deep}"), 1);
            assert_ne!(wanted, hole);
            fs::write(&path, wanted).unwrap();
            let files = ModelFiles::open("deep", folder.path()).unwrap();
            match Tokenizer::load(&files, false) {
                Ok(_) => assert!(levels <= 5, "{part} {levels}"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(levels > 5, "{part} {levels}: {text}");
                    assert!(text.contains("tokenizer.json") && text.contains("16 levels"), "{text}");
                }
            }
        }
    }
}
