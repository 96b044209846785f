//! Whether a model embeds text, scores it or writes it, judged by its local files.

use std::path::Path;

use serde_json::Value;

use super::adapters::config::{PeftConfig, is_adapter};
use super::architectures::{self, ModelKind};
use super::formats::gguf::Gguf;
use super::json::read_json;
use super::manifest::{ModelAdapter, ModelFiles, Module, WeightFiles, read_modules};
use super::resolve::{ResolveOptions, gguf_file, resolve};
use super::source::Source;
use super::text_part;
use crate::Error;

/// The kind of the model, from its files. `None` when they are not on this machine or do not show it; nothing is
/// downloaded.
///
/// A GGUF file that names a pooling embeds, and so does a folder with `modules.json`. Without these, a model for sequence
/// classification scores texts, and a language model writes them.
pub fn installed_kind(source: &Source, options: &ResolveOptions) -> Option<ModelKind> {
    let options = &ResolveOptions { offline: true, ..options.clone() };
    let found = || kind_of_files(&resolve(source, options, &mut |_| Err(Error::Closed)).ok()?);
    if options.adapter.is_some() {
        return found();
    }
    if let Ok(Some(path)) = gguf_file(source, options) {
        return of_gguf(&path);
    }
    match source {
        Source::Directory(folder) if is_adapter(folder) => found(),
        Source::Directory(folder) => of_folder(folder),
        Source::Package { package, inner } => of_folder(&options.host.package_dir(package)?.join(inner)),
        Source::Server(_) => Some(ModelKind::Embedding),
        Source::Hub(_) => found(),
        Source::Gguf(_) => None,
    }
}

fn of_gguf(path: &Path) -> Option<ModelKind> {
    let gguf = Gguf::open(path).ok()?;
    let architecture = gguf.text("general.architecture")?;
    let pooled = gguf.number(&format!("{architecture}.pooling_type")).is_some_and(|pooling| pooling > 0);
    if pooled || gguf.flag(&format!("{architecture}.attention.causal")) == Some(false) {
        return Some(ModelKind::Embedding);
    }
    architectures::find_gguf(architecture, ModelKind::Generator).map(|_| ModelKind::Generator)
}

/// The kind of the model of these files; `None` where they do not show it.
pub fn kind_of_files(files: &ModelFiles) -> Option<ModelKind> {
    match &files.weights {
        WeightFiles::Gguf(parts) => parts.first().and_then(|path| of_gguf(path)),
        _ => adapted(files, of_folder(&files.root)),
    }
}

/// The kind of a model with its adapter; without one it would be `own`.
fn adapted(files: &ModelFiles, own: Option<ModelKind>) -> Option<ModelKind> {
    match trained_for(files) {
        Some(ModelKind::Classifier) => Some(ModelKind::Classifier),
        Some(ModelKind::Embedding) if matches!(own, None | Some(ModelKind::Generator)) => {
            Some(ModelKind::Embedding)
        }
        _ => own,
    }
}

/// What the adapter of the files was trained for, where it says that.
pub(super) fn trained_for(files: &ModelFiles) -> Option<ModelKind> {
    let Some(ModelAdapter::Peft { folder, .. }) = &files.adapter else { return None };
    PeftConfig::read(&files.model, folder).ok()?.kind()
}

/// The kind of the model in a folder.
fn of_folder(folder: &Path) -> Option<ModelKind> {
    if folder.join("modules.json").is_file() {
        let saved: Value = read_json(&folder.join("config_sentence_transformers.json")).unwrap_or_default();
        let modules = read_modules(&folder.join("modules.json")).unwrap_or_default();
        return Some(match saved["model_type"].as_str() {
            Some("CrossEncoder") => ModelKind::Classifier,
            _ if modules.iter().any(|module| module.kind == "LogitScore") => ModelKind::Classifier,
            _ if modules.iter().any(|module| module.kind == "SpladePooling") => ModelKind::Sparse,
            _ => ModelKind::Embedding,
        });
    }
    let config: Value = read_json(&folder.join("config.json")).ok()?;
    if config.as_object().is_some_and(text_part::writes) {
        return Some(ModelKind::Generator);
    }
    if config["architectures"].as_array().is_some_and(|classes| classes.iter().any(classifies)) {
        return Some(ModelKind::Classifier);
    }
    let bidirectional = config["is_causal"] == false || config["use_bidirectional_attention"] == true;
    let family = architectures::find_config(&config);
    if family.is_some_and(|family| family.generates && !family.embeds) {
        return Some(ModelKind::Generator);
    }
    match config["architectures"].as_array() {
        Some(classes) if !bidirectional && classes.iter().any(writes) => Some(ModelKind::Generator),
        _ => family.map(|_| ModelKind::Embedding),
    }
}

/// Whether a class of transformers scores texts.
pub(super) fn classifies(class: &Value) -> bool {
    class.as_str().is_some_and(|class| class.ends_with("ForSequenceClassification"))
}

/// Whether a class of transformers is a masked language model.
pub(super) fn fills_gaps(class: &Value) -> bool {
    class.as_str().is_some_and(|class| class.ends_with("ForMaskedLM") || class.ends_with("ForPreTraining"))
}

fn writes(class: &Value) -> bool {
    class.as_str().is_some_and(|class| class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel"))
}

/// Whether a model that scores is a language model, whose logits of two tokens are its score: it has the module for it, or no
/// modules and the class of one.
pub(super) fn judges(modules: &[Module], config: &Value) -> bool {
    match modules {
        [] => config["architectures"].as_array().and_then(|classes| classes.first()).is_some_and(writes),
        modules => modules.iter().any(|module| module.kind == "LogitScore"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SystemHost;
    use crate::models::formats::gguf::tests::Writer;
    use std::fs;
    use std::sync::Arc;

    fn kind(path: &Path) -> Option<ModelKind> {
        let source = Source::parse(&path.display().to_string()).unwrap();
        installed_kind(&source, &ResolveOptions::new(Arc::new(SystemHost)))
    }

    #[test]
    fn folders_say_what_they_are() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        for name in ["bert_plain", "xlmr", "qwen3_embedding", "llama_embedding", "qwen3_bidirectional"] {
            assert_eq!(kind(&fixtures.join(name)), Some(ModelKind::Embedding), "{name}");
        }
        for name in ["gpt2", "gpt2_bin", "llama", "qwen2", "qwen3"] {
            assert_eq!(kind(&fixtures.join(name)), Some(ModelKind::Generator), "{name}");
        }
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(kind(folder.path()), None);
        let config = r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "is_causal": false}"#;
        fs::write(folder.path().join("config.json"), config).unwrap();
        assert_eq!(kind(folder.path()), Some(ModelKind::Embedding));
    }

    #[test]
    fn gguf_files_say_what_they_are() {
        let qwen3 = || Writer::default().text("general.architecture", "qwen3");
        for (writer, expected) in [
            (qwen3(), Some(ModelKind::Generator)),
            (qwen3().number("qwen3.pooling_type", 3), Some(ModelKind::Embedding)),
            (qwen3().number("qwen3.pooling_type", 0), Some(ModelKind::Generator)),
            (qwen3().flag("qwen3.attention.causal", false), Some(ModelKind::Embedding)),
            (Writer::default().text("general.architecture", "bert"), None),
        ] {
            let (_folder, path) = writer.write();
            assert_eq!(kind(&path), expected);
        }
        assert_eq!(kind(Path::new("/nowhere/m.gguf")), None);
        let options = ResolveOptions::new(Arc::new(SystemHost));
        assert_eq!(installed_kind(&Source::Hub("org/name".into()), &options), None);
    }
}
