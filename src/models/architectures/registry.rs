//! The families that this process knows: those of this crate, and those that a program adds.

use serde_json::Value;

use super::family::{Family, GgufFamily, ModelKind, ReadGguf};
use super::{
    albert, bert, convbert, deberta_v2, distilbert, gemma4, gpt2, jina_bert, lfm2, llama, modernbert, mpnet,
    qwen3_5, rotary_bert, rotary_gpt, t5,
};
use crate::similar::nearest;
use crate::sync::Mutex;
use crate::{Error, Result};

/// The families of this crate.
static BUILT_IN: [&[Family]; 16] = [
    bert::FAMILIES,
    convbert::FAMILIES,
    modernbert::FAMILIES,
    rotary_bert::FAMILIES,
    jina_bert::FAMILIES,
    mpnet::FAMILIES,
    distilbert::FAMILIES,
    albert::FAMILIES,
    deberta_v2::FAMILIES,
    t5::FAMILIES,
    llama::FAMILIES,
    rotary_gpt::FAMILIES,
    gpt2::FAMILIES,
    lfm2::FAMILIES,
    gemma4::FAMILIES,
    qwen3_5::FAMILIES,
];

/// A well-known model of each of them.
const EXAMPLES: &[(&str, &str)] = &[
    ("bert", "emrecan/bert-base-turkish-cased-mean-nli-stsb-tr"),
    ("xlm-roberta", "intfloat/multilingual-e5-base"),
    ("roberta", "sentence-transformers/all-distilroberta-v1"),
    ("camembert", "dangvantuan/sentence-camembert-base"),
    ("electra", "dbmdz/electra-base-turkish-cased-discriminator"),
    ("convbert", "dbmdz/convbert-base-turkish-cased"),
    ("modernbert", "Alibaba-NLP/gte-modernbert-base"),
    ("new", "Alibaba-NLP/gte-multilingual-base"),
    ("gte", "a GTE model that transformers has saved"),
    ("nomic_bert", "nomic-ai/nomic-embed-text-v1.5"),
    ("jina_embeddings_v3", "jinaai/jina-embeddings-v3-hf"),
    ("xlm_roberta_lora", "jinaai/jina-embeddings-v3"),
    ("jina_bert", "jinaai/jina-embeddings-v2-base-en"),
    ("mpnet", "sentence-transformers/all-mpnet-base-v2"),
    ("distilbert", "sentence-transformers/distiluse-base-multilingual-cased-v2"),
    ("albert", "loodos/albert-base-turkish-uncased"),
    ("deberta-v2", "mixedbread-ai/mxbai-rerank-base-v1"),
    ("t5", "sentence-transformers/sentence-t5-base"),
    ("mt5", "google/mt5-small"),
    ("llama", "meta-llama/Llama-3.2-1B-Instruct"),
    ("qwen2", "Qwen/Qwen2.5-0.5B-Instruct"),
    ("qwen3", "Qwen/Qwen3-Embedding-0.6B"),
    ("eurobert", "EuroBERT/EuroBERT-210m"),
    ("mistral", "vngrs-ai/Kumru-2B"),
    ("ministral", "mistralai/Ministral-8B-Instruct-2410"),
    ("ministral3", "mistralai/Ministral-3-3B-Instruct-2512-BF16"),
    ("smollm3", "HuggingFaceTB/SmolLM3-3B"),
    ("granite", "ibm-granite/granite-3.3-2b-instruct"),
    ("phi3", "microsoft/Phi-4-mini-instruct"),
    ("gemma", "google/gemma-2b-it"),
    ("gemma2", "google/gemma-2-2b-it"),
    ("gemma3_text", "google/embeddinggemma-300m"),
    ("glm4", "zai-org/GLM-4-9B-0414"),
    ("olmo2", "allenai/OLMo-2-0425-1B-Instruct"),
    ("exaone4", "LGAI-EXAONE/EXAONE-4.0-1.2B"),
    ("helium", "kyutai/helium-1-preview-2b"),
    ("cohere", "CohereLabs/aya-23-8B"),
    ("cohere2", "CohereLabs/c4ai-command-r7b-12-2024"),
    ("olmo3", "allenai/Olmo-3-7B-Instruct"),
    ("granitemoehybrid", "ibm-granite/granite-4.0-350m"),
    ("hunyuan_v1_dense", "tencent/Hunyuan-0.5B-Instruct"),
    ("ernie4_5", "baidu/ERNIE-4.5-0.3B-PT"),
    ("seed_oss", "ByteDance-Seed/Seed-OSS-36B-Instruct"),
    ("apertus", "swiss-ai/Apertus-8B-Instruct-2509"),
    ("glm", "zai-org/glm-4-9b-chat-hf"),
    ("arcee", "arcee-ai/AFM-4.5B"),
    ("nemotron", "nvidia/Minitron-4B-Base"),
    ("qwen3_moe", "Qwen/Qwen3-30B-A3B"),
    ("mixtral", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    ("olmoe", "allenai/OLMoE-1B-7B-0125-Instruct"),
    ("qwen2_moe", "Qwen/Qwen1.5-MoE-A2.7B-Chat"),
    ("granitemoe", "ibm-granite/granite-3.1-1b-a400m-instruct"),
    ("gpt_oss", "openai/gpt-oss-20b"),
    ("gpt_neox", "EleutherAI/pythia-410m"),
    ("phi", "microsoft/phi-2"),
    ("stablelm", "stabilityai/stablelm-2-zephyr-1_6b"),
    ("starcoder2", "bigcode/starcoder2-3b"),
    ("falcon", "tiiuae/falcon-7b-instruct"),
    ("gptj", "asafaya/kanarya-750m"),
    ("gpt2", "ytu-ce-cosmos/turkish-gpt2-large"),
    ("lfm2", "LiquidAI/LFM2-350M"),
    ("lfm2_moe", "LiquidAI/LFM2-8B-A1B"),
    ("lfm3", "LiquidAI/LFM3-1.7B"),
    ("qwen3_5_text", "Qwen/Qwen3.5-0.8B"),
    ("qwen3_5_moe_text", "Qwen/Qwen3.5-35B-A3B"),
    ("qwen3_next", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    ("lfm2_bidirectional", "LiquidAI/LFM2.5-Embedding-350M"),
    ("embedding_gemma2_text", "google/embeddinggemma-2"),
    ("gemma4_text", "google/gemma-4-E2B-it"),
    ("gemma4_unified_text", "google/gemma-4-12B-it"),
];

/// Those that a program added.
static ADDED: Mutex<Vec<&'static Family>> = Mutex::new(Vec::new());

/// The families that this process knows.
pub fn families() -> Vec<&'static Family> {
    BUILT_IN.iter().copied().flatten().chain(ADDED.lock().iter().copied()).collect()
}

/// The family of a `model_type`.
pub fn find(model_type: &str) -> Option<&'static Family> {
    families().into_iter().find(|family| family.model_type == model_type)
}

/// The family of a `config.json`: the one whose class `auto_map` names as the model's, for files that call their model by
/// the name of a family that it was derived from; else that of its `model_type`.
pub fn find_config(config: &Value) -> Option<&'static Family> {
    let class = config["auto_map"]["AutoModel"].as_str().and_then(|class| class.rsplit('.').next());
    let own = |family: &&Family| {
        class.is_some_and(|class| class.strip_suffix("Model").unwrap_or(class) == family.classes)
    };
    families().into_iter().find(own).or_else(|| find(config["model_type"].as_str()?))
}

/// The family of the GGUF files of an architecture that can be used so, and their reader.
pub fn find_gguf(architecture: &str, kind: ModelKind) -> Option<(&'static Family, ReadGguf)> {
    let is_one = |gguf: &GgufFamily| gguf.architecture == architecture && gguf.serves(kind);
    let family = families().into_iter().find(|family| family.gguf.iter().any(is_one))?;
    Some((family, family.read_gguf?))
}

/// A well-known model of the family of `model_type`, for lists.
pub fn example(model_type: &str) -> Option<&'static str> {
    EXAMPLES.iter().find(|(family, _)| *family == model_type).map(|(_, model)| *model)
}

/// Why a model of this `model_type` is not used so: there is no such family, or its models give something else. `family` is
/// that of its configuration; a model that `scores`, as its class says, does nothing else.
pub(crate) fn refusal(model_type: &str, family: Option<&Family>, kind: ModelKind, scores: bool) -> String {
    let all = families();
    let serving = all.iter().filter(|family| family.serves(kind)).map(|family| family.model_type);
    let gives = |kind: &ModelKind| {
        (!scores || *kind == ModelKind::Classifier) && family.is_some_and(|family| family.serves(*kind))
    };
    let kinds = ModelKind::ALL.into_iter().filter(gives);
    format!("its model_type is {model_type:?}, {}", not_so(kind, kinds, &nearest(model_type, serving), ""))
}

/// The same for a GGUF file of this architecture.
pub(crate) fn gguf_refusal(architecture: &str, kind: ModelKind) -> String {
    let all = families();
    let serving = all.iter().flat_map(|family| family.gguf).filter(|gguf| gguf.serves(kind));
    let near = nearest(architecture, serving.map(|gguf| gguf.architecture));
    let kinds = ModelKind::ALL.into_iter().filter(|kind| find_gguf(architecture, *kind).is_some());
    format!("its architecture is {architecture:?}, {}", not_so(kind, kinds, &near, " in GGUF files"))
}

/// What a family gives in place of `kind`, with the remedy; if it gives nothing, those with a similar name.
fn not_so(kind: ModelKind, kinds: impl Iterator<Item = ModelKind>, near: &[&str], stored: &str) -> String {
    let quoted = |names: Vec<String>| match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    };
    let others: Vec<_> = kinds.collect();
    if !others.is_empty() {
        let gives = quoted(others.iter().map(|other| other.result().to_owned()).collect());
        let names = quoted(others.iter().map(|other| format!("kind={:?}", other.name())).collect());
        return format!(
            "whose models{stored} give {gives} here, not {}; register it with {names}, or choose another model",
            kind.result()
        );
    }
    let similar = match near.is_empty() {
        true => String::new(),
        false => format!(" (similar names: {})", near.join(", ")),
    };
    format!(
        "which is no family whose models{stored} give {} here{similar}; `model-manager models --known` lists those that run",
        kind.result()
    )
}

/// Adds a family for the rest of the process.
///
/// # Errors
/// [`Error::Argument`] when there is one of this `model_type`.
pub fn register(family: &'static Family) -> Result<()> {
    let mut added = ADDED.lock();
    let known = BUILT_IN.iter().copied().flatten().chain(added.iter().copied());
    if known.into_iter().any(|known| known.model_type == family.model_type) {
        return Err(Error::argument(
            "model_type",
            format!(": there is an architecture {:?} already", family.model_type),
        ));
    }
    added.push(family);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::family::ConfigFields;
    use super::*;

    #[test]
    fn every_family_has_an_example_and_every_example_a_family() {
        let known: Vec<_> = BUILT_IN.iter().copied().flatten().map(|family| family.model_type).collect();
        let without: Vec<_> = known.iter().filter(|family| example(family).is_none()).collect();
        assert!(without.is_empty(), "EXAMPLES lacks {without:?}");
        for (family, _) in EXAMPLES {
            assert!(known.contains(family), "{family}");
        }
    }

    #[test]
    fn keys_that_families_read_are_fields_and_each_is_accepted_once() {
        for family in BUILT_IN.iter().copied().flatten() {
            for fields in family.fields {
                let (ConfigFields::All(of) | ConfigFields::But(of, _) | ConfigFields::Only(of, _)) = fields;
                assert!(!of().is_empty(), "{}: a struct names no fields", family.model_type);
                if let ConfigFields::But(_, chosen) | ConfigFields::Only(_, chosen) = fields {
                    let unknown: Vec<_> = chosen.iter().filter(|key| !of().contains(key)).collect();
                    assert!(unknown.is_empty(), "{}: no fields are {unknown:?}", family.model_type);
                }
            }
            let mut accepted = HashSet::new();
            for key in family.accepted_keys() {
                assert!(accepted.insert(key), "{}: {key} twice", family.model_type);
            }
        }
    }
}
