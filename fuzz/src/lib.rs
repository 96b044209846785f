//! What is fuzzed, and from which seeds.
//!
//! A target takes any bytes and must return: with a typed error or with a result, never with a panic, an abort, a hang or
//! memory beyond the stated bounds. Each replaces one file of a committed tiny model and loads the model as a user would.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use model_manager::chat::{ChatTemplate, Conversation};
use model_manager::compute::{Isa, PackedBatch, WeightFormat};
use model_manager::generation::{TextFiles, TextModel};
use model_manager::models::{Bounds, Encoder, ModelFiles, Overrides, on_cpu};
use model_manager::remote;
use tempfile::TempDir;

mod arrow;
mod gguf;
mod segment;

/// Something that reads untrusted bytes.
pub struct Target {
    /// Its name, that of the file in `fuzz_targets/` too.
    pub name: &'static str,
    /// Reads the bytes.
    pub run: fn(&[u8]),
    /// Sound inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: [Target; 12] = [
    Target {
        name: "safetensors",
        run: |data| sentence("bert_bf16", "model.safetensors", data),
        seeds: || vec![file("bert_bf16", "model.safetensors")],
    },
    Target {
        name: "pickle",
        run: |data| sentence("bert_bin", "pytorch_model.bin", data),
        seeds: || vec![file("bert_bin", "pytorch_model.bin")],
    },
    Target { name: "gguf", run: gguf_file, seeds: || vec![gguf::llama()] },
    Target {
        name: "config",
        run: config,
        seeds: || {
            let first = SENTENCES.into_iter().chain(GENERATORS);
            first.map(|(model, _)| file(model, "config.json")).collect()
        },
    },
    Target {
        name: "modules",
        run: |data| {
            for name in [
                "modules.json",
                "1_Pooling/config.json",
                "2_Dense/config.json",
                "sentence_bert_config.json",
                "config_sentence_transformers.json",
            ] {
                sentence("bert_dense", name, data);
            }
        },
        seeds: || {
            ["modules.json", "1_Pooling/config.json", "2_Dense/config.json", "sentence_bert_config.json"]
                .map(|name| file("bert_dense", name))
                .into()
        },
    },
    Target {
        name: "tokenizer",
        run: |data| {
            sentence("bert_wordpiece", "tokenizer.json", data);
            generator("gpt2", "tokenizer.json", data);
        },
        seeds: || {
            ["bert_wordpiece", "bert_unigram", "gpt2"].map(|model| file(model, "tokenizer.json")).into()
        },
    },
    Target { name: "chat_template", run: chat_template, seeds: templates },
    Target {
        name: "vocabulary",
        run: |data| {
            sentence("bert_bin", "vocab.txt", data);
            sentence("bert_bin", "tokenizer_config.json", data);
            generator("gpt2_bin", "added_tokens.json", data);
        },
        seeds: || {
            vec![
                file("bert_bin", "vocab.txt"),
                file("bert_bin", "tokenizer_config.json"),
                file("gpt2_bin", "added_tokens.json"),
            ]
        },
    },
    Target {
        name: "http_body",
        run: http_body,
        seeds: || {
            [
                r#"{"model":"m","input":["one text","iki\n\u0130"],"dimensions":2,"encoding_format":null}"#,
                r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a\"b\\"}]}],"stop":[],"n":2,"temperature":1e-1}"#,
            ]
            .map(|text| text.as_bytes().to_vec())
            .into()
        },
    },
    Target { name: "arrow_column", run: arrow::run, seeds: arrow::seeds },
    Target { name: "cache_segment", run: segment::run, seeds: segment::seeds },
    Target {
        name: "remote_reply",
        run: remote::check_reply,
        seeds: || {
            [
                r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5,-1e-3]},{"index":1,"embedding":"AAAAPwAAgD8="}],"model":"m","usage":{"prompt_tokens":4,"total_tokens":4}}"#,
                r#"{"embeddings":[[0.1,0.2],[3e2,4]],"prompt_eval_count":7}"#,
                r#"{"error":{"message":"too long","type":"invalid_request_error","param":"input","code":null}}"#,
            ]
            .map(|text| text.as_bytes().to_vec())
            .into()
        },
    },
];

/// The target of this name.
pub fn target(name: &str) -> &'static Target {
    static ALL: [Target; 12] = TARGETS;
    ALL.iter().find(|target| target.name == name).expect("a target of this name")
}

/// Writes the seeds of a target into the folder that `FUZZ_CORPUS` names, where libFuzzer then finds them. A panic of a
/// library that this package turns into an error is no finding, so libFuzzer's own hook, which aborts at once, goes;
/// a panic that nothing catches still ends the run.
pub fn prepare(name: &str) {
    std::panic::set_hook(Box::new(|_| ()));
    if let Some(folder) = std::env::var_os("FUZZ_CORPUS") {
        for (index, seed) in (target(name).seeds)().iter().enumerate() {
            fs::write(Path::new(&folder).join(format!("seed-{index}")), seed).expect("a writable folder");
        }
    }
}

fn fixtures() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    [here.join("tests/fixtures"), here.join("../tests/fixtures")]
        .into_iter()
        .find(|path| path.is_dir())
        .expect("the fixtures of this checkout")
}

fn file(model: &str, name: &str) -> Vec<u8> {
    fs::read(fixtures().join(model).join(name)).expect("a file of a fixture")
}

/// A copy of the fixture `model` in which the file `name` holds `data`.
fn folder(model: &str, name: &str, data: &[u8]) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("a folder");
        for entry in fs::read_dir(from).expect("a fixture") {
            let path = entry.expect("a fixture").path();
            let target = to.join(path.file_name().expect("a name"));
            if path.is_dir() {
                copy(&path, &target);
            } else if path.file_name() != Some("reference.json".as_ref()) {
                // Unlike `fs::copy`, these go on after a signal, such as the timer of libFuzzer.
                fs::write(target, fs::read(&path).expect("a file")).expect("a copy");
            }
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures().join(model), folder.path());
    fs::write(folder.path().join(name), data).expect("a file");
    folder
}

fn sentence(model: &str, name: &str, data: &[u8]) {
    let folder = folder(model, name, data);
    let load = || {
        let files = ModelFiles::open("m", folder.path())?;
        let build = |config: &_, weights: &_| on_cpu(config, weights, Isa::best(), WeightFormat::F32);
        let encoder = Encoder::load(&files, Overrides::default(), &build)?;
        let read = encoder.tokenize(
            "",
            "Merhaba dünya, the 2nd text: \u{0130}I",
            &mut Bounds { max_bytes: 1 << 20, check: &mut || Ok(()) },
        )?;
        let mut out = vec![0.0; encoder.width()];
        encoder.encode(&PackedBatch::new(&read.ids, &[0, read.ids.len() as u32])?, &mut out)
    };
    let _: Result<(), model_manager::Error> = load();
}

/// Sentence models, and their families.
const SENTENCES: [(&str, &str); 6] = [
    ("bert_plain", "bert"),
    ("qwen3_embedding", "qwen3"),
    ("deberta_v2", "deberta-v2"),
    ("t5", "t5"),
    ("convbert_grouped", "convbert"),
    ("embedding_gemma2_text", "embedding_gemma2_text"),
];

/// Generators, and their families.
const GENERATORS: [(&str, &str); 23] = [
    ("gpt2", "gpt2"),
    ("llama", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("mistral", "mistral"),
    ("ministral", "ministral"),
    ("smollm3", "smollm3"),
    ("granite", "granite"),
    ("phi3", "phi3"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3_text", "gemma3_text"),
    ("glm4", "glm4"),
    ("olmo2", "olmo2"),
    ("exaone4", "exaone4"),
    ("helium", "helium"),
    ("gpt_neox", "gpt_neox"),
    ("phi", "phi"),
    ("stablelm", "stablelm"),
    ("starcoder2", "starcoder2"),
    ("lfm2", "lfm2"),
    ("falcon", "falcon"),
    ("gptj", "gptj"),
];

/// A configuration as that of the models of the family that it names, or of two models if it names none.
fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let named = |(_, family): &&(&str, &str)| text.contains(&format!("\"model_type\": \"{family}\""));
    let (embeds, writes) = (SENTENCES.iter().find(named), GENERATORS.iter().find(named));
    if let Some((model, _)) = embeds {
        sentence(model, "config.json", data);
    }
    if let Some((model, _)) = writes {
        generator(model, "config.json", data);
    }
    if embeds.is_none() && writes.is_none() {
        sentence("bert_plain", "config.json", data);
        generator("llama", "config.json", data);
    }
}

fn generator(model: &str, name: &str, data: &[u8]) {
    let folder = folder(model, name, data);
    let load = || {
        let files = TextFiles::Folder(ModelFiles::open("m", folder.path())?);
        TextModel::open("m", &files, WeightFormat::F32, Isa::best()).map(drop)
    };
    let _: Result<(), model_manager::Error> = load();
}

fn gguf_file(data: &[u8]) {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a temporary folder"));
    let path = folder.path().join(format!("{:?}.gguf", std::thread::current().id()));
    fs::write(&path, data).expect("a file");
    let _ = TextModel::open("m", &TextFiles::Gguf(vec![path]), WeightFormat::F32, Isa::best());
}

fn templates() -> Vec<Vec<u8>> {
    [
        "{%- for m in messages %}{{ '<|' + m['role'] + '|>' + m.content | trim }}{% endfor %}{{ bos_token }}",
        "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% else %}{% set s = '' %}{% endif %}\n{{ s | upper }}",
        "{% set ns = namespace(x=0) %}{% for i in range(10) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x | tojson(indent=2) }}",
        "{% macro f(a, b=1) %}{{ a ~ b }}{% endmacro %}{{ f([1, {'k': none}]) }}{{ raise_exception('no') }}",
        "{% generation %}{{ messages[-1].content.split(' ')[0].strip() }}{% endgeneration %}{{ strftime_now('%Y') }}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

fn chat_template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let template = ChatTemplate::new("m", source, Vec::new());
    let turns = [("system", "Kısa yaz."), ("user", "Merhaba <b>dünya</b>\n")];
    let _ = Conversation::of(&turns).and_then(|conversation| template.render(&conversation));
}

/// The server refuses a body by this count before it parses it, so it must not be lower than what a parser makes.
fn http_body(data: &[u8]) {
    fn count(value: &serde_json::Value) -> usize {
        match value {
            serde_json::Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
            serde_json::Value::Object(items) => {
                1 + items.values().map(|value| 1 + count(value)).sum::<usize>()
            }
            _ => 1,
        }
    }
    let counted = model_manager::json::values(data);
    if let Ok(value) = serde_json::from_slice(data) {
        assert!(counted >= count(&value), "{counted} of {}", count(&value));
    }
}
