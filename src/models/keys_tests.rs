use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::models::architectures::{self, ConfigFile, ModelKind};
use crate::models::json::{read_json, without_nulls};

const BERT: &str = "bert";
const QWEN3: &str = "qwen3";

fn check(config: Value, model_type: &str) -> Result<(), String> {
    let (family, json) = (architectures::find(model_type).unwrap(), without_nulls(config));
    check_config(
        "m",
        Path::new("/m/config.json"),
        &json,
        (family.classes, family.code),
        &family.accepted_keys(),
    )
    .map_err(|error| error.to_string())
}

#[derive(Deserialize)]
struct Known {
    embedding: BTreeMap<String, Value>,
    generator: BTreeMap<String, Value>,
}

/// The files of the models that people use, as their pages have them.
fn known() -> Known {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/configs/known.json");
    read_json(&path).unwrap()
}

#[test]
fn configurations_of_well_known_models_are_accepted() {
    let known = known();
    assert!(known.embedding.len() >= 20 && known.generator.len() >= 12);
    for (kind, models) in [(ModelKind::Embedding, known.embedding), (ModelKind::Generator, known.generator)] {
        for (name, config) in models {
            let json = without_nulls(config);
            let model_type = json["model_type"].as_str().unwrap();
            check(json.clone(), model_type).unwrap_or_else(|error| panic!("{name}: {error}"));
            let family = architectures::find(model_type).filter(|family| family.serves(kind)).unwrap();
            let file = ConfigFile { model: &name, path: Path::new("/m/config.json"), json: &json };
            let described = family.read_config(&file).unwrap().describe();
            assert!(described.is_causal() || kind == ModelKind::Embedding, "{name}");
        }
    }
}

#[test]
fn what_could_change_a_vector_is_refused_by_key_file_and_remedy() {
    for (family, config, key) in [
        (BERT, json!({"is_decoder": true}), "is_decoder"),
        (BERT, json!({"is_causal": true}), "is_causal"),
        (BERT, json!({"add_cross_attention": true}), "add_cross_attention"),
        (BERT, json!({"pruned_heads": {"0": [1]}}), "pruned_heads"),
        (BERT, json!({"embedding_size": 128}), "embedding_size"),
        (QWEN3, json!({"attn_logit_softcapping": 50.0}), "attn_logit_softcapping"),
        (QWEN3, json!({"num_experts": 8}), "num_experts"),
        (QWEN3, json!({"rope_interleaved": true}), "rope_interleaved"),
    ] {
        let error = check(config, family).unwrap_err();
        assert!(error.contains(&format!("{key:?}")), "{error}");
        assert!(error.contains("/m/config.json") && error.contains("remove the key"), "{error}");
    }
}

#[test]
fn quantized_weights_are_refused_with_what_to_take() {
    let config = json!({"quantization_config": {"quant_method": "fp8", "bits": 8}});
    let error = check(config, QWEN3).unwrap_err();
    for part in [
        "/m/config.json",
        "\"quantization_config\"",
        "by \"fp8\"",
        "GGUF",
        "the same name that is not quantized",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // Without the key, the tensors would not be understood.
    assert!(!error.contains("remove the key"), "{error}");
}

#[test]
fn what_is_not_set_and_what_changes_nothing_is_accepted() {
    let config = json!({
        "unheard_of": null, "is_decoder": false, "pruned_heads": {}, "some_list": [], "some_text": "",
        "new_dropout": 0.3, "head_pdrop": 0.1, "_name_or_path": "x", "transformers_version": "9", "auto_map": {},
    });
    assert_eq!(check(config.clone(), BERT), Ok(()));
    assert_eq!(check(config, QWEN3), Ok(()));
}

#[test]
fn code_of_its_own_is_refused_unless_its_classes_are_known() {
    for auto_map in [
        json!({"AutoModel": "modeling_qwen3.Qwen3Model"}),
        json!({"AutoConfig": "org/model--configuration_qwen3.Qwen3Config", "AutoModelForCausalLM": null}),
        json!({"AutoTokenizer": [null, "tokenization_qwen3.Qwen3TokenizerFast"]}),
    ] {
        assert_eq!(check(json!({"auto_map": auto_map}), QWEN3), Ok(()));
    }
    for auto_map in [
        json!({"AutoModel": "modeling.Qwen3BidirectionalModel"}),
        json!({"AutoModel": "modeling.NewModel"}),
        json!({"AutoConfig": "configuration.Qwen3Config", "AutoModel": "modeling.MyQwen3Model"}),
        json!({"AutoModel": 5}),
        json!("modeling.Qwen3Model"),
    ] {
        let error = check(json!({"auto_map": auto_map}), QWEN3).unwrap_err();
        assert!(error.contains("\"auto_map\"") && error.contains("code of its own is not run"), "{error}");
    }
}

#[test]
fn nulls_are_absent_at_the_top_and_in_lists() {
    assert_eq!(without_nulls(json!({"a": null, "b": {"c": null}})), json!({"b": {"c": null}}));
    assert_eq!(without_nulls(json!([{"a": null, "b": 1}, null])), json!([{"b": 1}, null]));
}

proptest! {
    /// Whatever a number or a true flag is called, it is read, known to be harmless, or refused by that name.
    #[test]
    fn no_unknown_key_passes_in_silence(key in "[a-z_]{1,24}") {
        prop_assume!(!HARMLESS.contains(&key.as_str()) && !architectures::find(BERT).unwrap().accepted_keys().contains(&key.as_str()));
        prop_assume!(!CHECKED.contains(&key.as_str()) && !is_dropout(&key));
        for value in [json!(1), json!(true), json!("x"), json!(0.5)] {
            let error = check(json!({key.clone(): value}), BERT).unwrap_err();
            let named = format!("{key:?}");
            prop_assert!(error.contains(&named));
        }
    }
}
