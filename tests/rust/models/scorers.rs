//! Classifiers and rerankers against sentence-transformers' `CrossEncoder`: ids, types and logits.

use std::path::Path;

use model_manager::batching::Encoded;
use model_manager::compute::{Isa, PackedBatch, WeightFormat};
use model_manager::models::{Bounds, Encoder, ModelFiles, Overrides, on_cpu};
use serde_json::Value;

const FIXTURES: &[&str] = &[
    "rerank_bert",
    "rerank_xlmr",
    "nli_bert",
    "rerank_qwen3",
    "rerank_distilbert",
    "rerank_electra",
    "rerank_modernbert",
    "nli_modernbert",
    "rerank_gte",
    "rerank_albert",
    "rerank_mpnet",
    "rerank_deberta",
    "nli_deberta",
    "rerank_convbert",
];

fn load(name: &str) -> (Encoder, Value) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let files = ModelFiles::open(name, &folder).unwrap();
    let encoder = Encoder::load(&files, Overrides::default(), &|config, weights| {
        on_cpu(config, weights, Isa::best(), WeightFormat::F32)
    });
    let reference = std::fs::read(folder.join("reference.json")).unwrap();
    (encoder.unwrap(), serde_json::from_slice(&reference).unwrap())
}

fn encode(encoder: &Encoder, case: &Value) -> Encoded {
    let mut bounds = Bounds { max_bytes: usize::MAX, check: &mut || Ok(()) };
    let longest = encoder.config.max_length;
    match case["text"].as_str() {
        Some(text) => encoder.tokenize("", text, &mut bounds).unwrap(),
        None => {
            let mut part = |number: usize| {
                encoder
                    .tokenizer
                    .pair_text(case["pair"][number].as_str().unwrap(), longest, &mut bounds)
                    .unwrap()
            };
            let (first, second) = (part(0), part(1));
            encoder.tokenizer.pair(&first, &second, longest, &mut bounds).unwrap()
        }
    }
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn logits(encoder: &Encoder, sequences: &[&Encoded]) -> Vec<f32> {
    let ids: Vec<u32> = sequences.iter().flat_map(|sequence| sequence.ids.clone()).collect();
    let mut offsets = vec![0];
    sequences.iter().for_each(|sequence| offsets.push(offsets.last().unwrap() + sequence.ids.len() as u32));
    let seconds: Vec<u32> = sequences.iter().map(|sequence| sequence.second).collect();
    let batch = PackedBatch { second_starts: &seconds, ..PackedBatch::new(&ids, &offsets).unwrap() };
    let mut out = vec![0.0; sequences.len() * encoder.width()];
    encoder.encode(&batch, &mut out).unwrap();
    out
}

#[test]
fn pairs_and_texts_have_the_ids_the_types_and_the_logits_of_transformers() {
    for name in FIXTURES {
        let (encoder, reference) = load(name);
        let cases: Vec<&Value> =
            ["pairs", "texts"].iter().flat_map(|key| reference[key].as_array().unwrap()).collect();
        assert_eq!(encoder.config.max_length as u64, reference["max_length"].as_u64().unwrap(), "{name}");
        let encoded: Vec<Encoded> = cases.iter().map(|case| encode(&encoder, case)).collect();
        for (case, encoded) in cases.iter().zip(&encoded) {
            let ids: Vec<u32> = numbers(&case["ids"]).iter().map(|&id| id as u32).collect();
            let given = format!("{name}: {} {}", case["pair"], case["text"]);
            assert_eq!(encoded.ids, ids, "{given}");
            assert_eq!(u64::from(encoded.second), case["second"].as_u64().unwrap(), "{given}");
        }
        let batch = logits(&encoder, &encoded.iter().collect::<Vec<_>>());
        let labels = reference["labels"].as_array().unwrap().len();
        assert_eq!(encoder.width(), labels);
        for ((case, encoded), together) in cases.iter().zip(&encoded).zip(batch.chunks(labels)) {
            // transformers gives no state to an empty sequence.
            let expected = numbers(&case["logits"]);
            let alone = logits(&encoder, &[encoded]);
            assert_eq!(alone, together, "{name}: {}", case["pair"]);
            for (found, expected) in alone.iter().zip(&expected) {
                assert!(
                    (found - expected).abs() <= 2e-5,
                    "{name}: {} {}: {found} {expected}",
                    case["pair"],
                    case["text"]
                );
            }
        }
        let labels: Vec<&str> =
            reference["labels"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
        assert_eq!(encoder.scores.unwrap().labels, labels);
    }
}
