//! Adapters of the hub over a model of this machine.

use std::fs;
use std::sync::Arc;

use model_manager::Error;
use model_manager::models::{ModelAdapter, ModelFiles, ResolveOptions, Source, resolve};

use super::{Environment, Setup};
use crate::fixtures::fixture;
use crate::server::{COMMIT, Hub};

fn find(setup: &Setup, source: &Source, adapter: Option<&str>, offline: bool) -> Result<ModelFiles, Error> {
    let mut options = ResolveOptions::new(Arc::new(Environment(setup.environment.clone())));
    (options.adapter, options.offline) = (adapter.map(str::to_owned), offline);
    resolve(source, &options, &mut |_| Ok(()))
}

fn base() -> Source {
    Source::Directory(fixture("bert_plain"))
}

fn files(inner: &str, config: &[u8]) -> Vec<(String, Vec<u8>)> {
    let weights = fixture("adapters/bert_rslora").join("adapter_model.safetensors");
    [
        ("README.md", b"# adapter".to_vec()),
        ("adapter_config.json", config.to_vec()),
        ("adapter_model.safetensors", fs::read(weights).unwrap()),
        ("optimizer.pt", b"pickle".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
    ]
    .map(|(name, content)| (format!("{inner}{name}"), content))
    .into()
}

fn hub(files: &[(String, Vec<u8>)]) -> Hub {
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, content)| (&**name, &**content)).collect();
    Hub::new(&files)
}

#[test]
fn an_adapter_is_fetched_once_and_only_what_it_needs() {
    let config = fs::read(fixture("adapters/bert_rslora").join("adapter_config.json")).unwrap();
    for inner in ["", "adapters/query/"] {
        let hub = hub(&files(inner, &config));
        let setup = Setup::new(&hub);
        let name = format!("org/model/{inner}").trim_end_matches('/').to_owned();
        assert!(find(&setup, &base(), Some(&name), true).is_err(), "offline");
        let found = find(&setup, &base(), Some(&name), false).unwrap();
        let Some(ModelAdapter::Peft { name: called, folder, weights }) = &found.adapter else {
            panic!("none")
        };
        assert_eq!((called, found.root.as_path()), (&name, &*fixture("bert_plain")));
        assert!(folder.starts_with(setup.repo()) && weights.paths()[0].is_file());
        let gets: Vec<_> = hub.requests().into_iter().filter(|one| one.method == "GET").collect();
        for unwanted in ["README", "optimizer", "tokenizer"] {
            assert!(!gets.iter().any(|one| one.path.contains(unwanted)), "{unwanted}");
        }
        let before = hub.requests().len();
        assert_eq!(find(&setup, &base(), Some(&name), false), Ok(found.clone()));
        assert_eq!(find(&setup, &base(), Some(&name), true), Ok(found));
        assert_eq!(hub.requests().len(), before, "from the cache");
    }
}

#[test]
fn a_folder_of_the_hub_without_an_adapter_is_named() {
    let hub = hub(&files("query/", b"{}"));
    let setup = Setup::new(&hub);
    let missing = find(&setup, &base(), Some("org/model/passage"), false).unwrap_err();
    assert!(missing.to_string().contains("passage/adapter_config.json"), "{missing}");
    for outside in ["org/model/../../x", "org/model//etc"] {
        let refused = find(&setup, &base(), Some(outside), false).unwrap_err();
        assert!(matches!(refused, Error::Argument { param: "adapter", .. }), "{outside}: {refused}");
    }
}

#[test]
fn files_of_the_hub_name_no_folder_as_their_base() {
    for (base, named) in
        [("/root/models/llama", "/root/models/llama"), ("pkg:os/path", "pkg:os"), ("", "name its base")]
    {
        let config = format!(r#"{{"peft_type": "LORA", "r": 4, "base_model_name_or_path": {base:?}}}"#);
        let hub = hub(&files("", config.as_bytes()));
        let setup = Setup::new(&hub);
        let refused = find(&setup, &Source::Hub("org/model".into()), None, false).unwrap_err().to_string();
        assert!(refused.contains(named) && refused.contains("adapter=\"org/model\""), "{refused}");
    }
}

#[test]
fn an_adapter_that_others_cached_is_looked_at_once_more() {
    let config = br#"{"peft_type": "LORA", "r": 4, "base_model_name_or_path": "org/base"}"#;
    let cache = |setup: &Setup| {
        let snapshot = setup.repo().join("snapshots").join(COMMIT);
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(setup.repo().join("refs")).unwrap();
        fs::write(setup.repo().join("refs/main"), COMMIT).unwrap();
        for (name, content) in files("", config) {
            if name.starts_with("adapter_") {
                fs::write(snapshot.join(name), content).unwrap();
            }
        }
    };
    let mut listed = files("", config);
    listed.push(("modules.json".into(), b"[]".to_vec()));
    let hub = hub(&listed);
    let setup = Setup::new(&hub);
    cache(&setup);
    let alone = Source::Hub("org/model".into());
    let refused = find(&setup, &alone, None, false).unwrap_err().to_string();
    assert!(refused.contains("modules.json"), "{refused}");
    assert!(find(&setup, &base(), Some("org/model"), true).is_ok(), "over a base of this machine");
}

#[test]
fn a_stop_of_the_download_of_an_adapter_is_a_stop() {
    let config = br#"{"peft_type": "LORA", "r": 4, "base_model_name_or_path": "org/base"}"#;
    let hub = hub(&files("", config));
    let setup = Setup::new(&hub);
    let options = ResolveOptions::new(Arc::new(Environment(setup.environment.clone())));
    let stopped = resolve(&Source::Hub("org/model".into()), &options, &mut |_| Err(Error::Closed));
    assert_eq!(stopped, Err(Error::Closed));
}
