//! Configurations whose values are wrong: each is refused or read, and none ends in a panic.

use std::fs;

use serde_json::json;

use super::*;
use crate::compute::{Cpu, Isa, WeightFormat};
use crate::models::architectures::Transformer;

/// What may stand in place of any value.
fn hostile() -> Vec<Value> {
    let mut values =
        vec![json!(true), json!(false), json!("x"), json!([]), json!(["full_attention"]), json!({})];
    values.extend([0, 1, 3, 1 << 28, 1 << 40, u64::MAX].map(|n| json!(n)));
    values.extend([-1.0, 0.5, 1e300].map(|x| json!(x)));
    values.push(json!({"rope_type": "yarn", "factor": 1e300}));
    values
}

/// The paths of all keys, those of objects inside of objects too.
fn keys(json: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    for (key, value) in json.as_object().into_iter().flatten() {
        path.push(key.clone());
        found.push(path.clone());
        keys(value, path, found);
        path.pop();
    }
}

/// `original` without one of its keys, and with each wrong value in its place.
fn changed(original: &Value, path: &[String]) -> Vec<Value> {
    let (last, parents) = path.split_last().unwrap();
    let with = |value: Option<Value>| {
        let mut changed = original.clone();
        let object = parents.iter().fold(&mut changed, |json, key| &mut json[key]).as_object_mut().unwrap();
        match value {
            Some(value) => object.insert(last.clone(), value),
            None => object.remove(last),
        };
        changed
    };
    [None].into_iter().chain(hostile().into_iter().map(Some)).map(with).collect()
}

fn read(json: &Value) -> Result<(Arc<dyn Architecture>, ModelKind)> {
    let (path, kinds) = (Path::new("config.json"), [ModelKind::Generator, ModelKind::Embedding]);
    let found =
        kinds.map(|kind| ModelConfig::family_of("m", path, json, kind).map(|(f, json)| (f, json, kind)));
    let [generator, embedding] = found;
    let (family, json, kind) = generator.or(embedding)?;
    Ok((family.read_config(&ConfigFile { model: "m", path, json: &json })?.into(), kind))
}

/// Tensors of wrong shapes are refused; what fits is loaded.
#[test]
fn wrong_values_in_every_key_of_every_family_end_in_no_panic() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut families = Vec::new();
    let (mut refused, mut loaded, mut unfit) = (0, 0, 0);
    for entry in fs::read_dir(fixtures).unwrap().flatten() {
        let Ok(original) = read_config(&entry.path().join("config.json")) else { continue };
        let Some(model_type) = original["model_type"].as_str().map(str::to_owned) else { continue };
        let Ok(files) = ModelFiles::open("m", &entry.path()) else { continue };
        if families.contains(&model_type) {
            continue;
        }
        let weights = Weights::open(&files.weights).unwrap();
        // Another kind of model.
        let Ok((unchanged, _)) = read(&original) else { continue };
        let unchanged = format!("{unchanged:?}");
        let mut paths = Vec::new();
        keys(&original, &mut Vec::new(), &mut paths);
        for json in paths.iter().flat_map(|path| changed(&original, path)) {
            let Ok((architecture, kind)) = read(&json) else {
                refused += 1;
                continue;
            };
            if format!("{architecture:?}") == unchanged {
                continue;
            }
            let backend = Cpu::new(Isa::Portable, WeightFormat::Bf16);
            let done = match kind {
                ModelKind::Generator => Transformer::load_decoder(backend, &*architecture, &weights),
                _ => Transformer::load(backend, &*architecture, &weights),
            };
            if done.is_ok() { loaded += 1 } else { unfit += 1 }
        }
        families.push(model_type);
    }
    let counts = format!("{refused} refused, {unfit} unfit, {loaded} loaded");
    assert!(refused > 1000 && unfit > 200 && loaded > 200, "{counts}");
    let names =
        ["bert", "llama", "gpt2", "exaone4", "helium", "gpt_neox", "phi", "stablelm", "starcoder2", "gemma3"];
    let missing: Vec<_> = names.iter().filter(|name| !families.contains(&(**name).to_owned())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// transformers reads of a family's file what its own configuration has: what related families have changes nothing.
#[test]
fn keys_of_related_families_change_nothing_where_they_are_not_set() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut families = Vec::new();
    for entry in fs::read_dir(fixtures).unwrap().flatten() {
        let Ok(original) = read_config(&entry.path().join("config.json")) else { continue };
        let Ok((unchanged, _)) = read(&original) else { continue };
        let Some(family) = architectures::find_config(&original) else { continue };
        // Those of experts are no keys of a family without them.
        let experts = ["num_experts", "norm_topk_prob", "use_expert_bias", "mlp_only_layers"];
        let unknown = experts.into_iter().filter(|key| !family.accepted_keys().contains(key));
        for key in family.foreign_keys().into_iter().chain(unknown) {
            for value in [json!(false), Value::Null, json!([])] {
                let mut changed = original.clone();
                changed[key] = value.clone();
                let (read, _) = read(&changed).unwrap_or_else(|error| panic!("{key} {value}: {error}"));
                assert_eq!(
                    format!("{read:?}"),
                    format!("{unchanged:?}"),
                    "{}: {key} {value}",
                    family.model_type
                );
            }
        }
        families.push(family.model_type);
    }
    for name in ["mixtral", "granitemoe", "qwen2", "lfm2_moe", "starcoder2", "modernbert"] {
        assert!(families.contains(&name), "{name}");
    }
}
