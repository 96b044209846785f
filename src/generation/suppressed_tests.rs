//! Tokens that a model is never to write.

use serde_json::json;

use super::*;
use crate::models::json::read_json;

const FAMILY: &str = "qwen2";

/// A copy of the fixture whose `generation_config.json` has this value.
fn changed(value: &Value) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder(FAMILY)).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let path = copy.path().join(GENERATION);
    let mut generation = if path.is_file() { read_json::<Value>(&path).unwrap() } else { json!({}) };
    generation["suppress_tokens"] = value.clone();
    fs::write(path, generation.to_string()).unwrap();
    copy
}

fn open(value: &Value) -> Result<TextModel> {
    let folder = changed(value);
    from_files(&ModelFiles::open(FAMILY, folder.path()).unwrap(), WeightFormat::F32, Isa::best())
}

/// The first token of an answer, and the whole text with drafts or without.
fn written(model: TextModel, prompt: &[u32], drafts: usize) -> Vec<u32> {
    let generator = Generator::start(model, |engine| engine.prompt_lookup_tokens = drafts).unwrap();
    let params = GenerationParams { max_new_tokens: Some(24), ..Default::default() };
    generator.generate(Prompt::Tokens(prompt), params, &mut || Ok(())).unwrap().tokens
}

/// transformers' logits without the suppressed tokens say what comes in their place.
#[test]
fn suppressed_tokens_are_never_written() {
    for case in reference(FAMILY).cases {
        let mut order: Vec<u32> = (0..case.logits.len() as u32).collect();
        order.sort_by(|&a, &b| case.logits[b as usize].total_cmp(&case.logits[a as usize]));
        let suppressed = [&order[..2], &case.greedy[1..3]].concat();
        let rest = order.iter().find(|token| !suppressed.contains(token)).unwrap();
        let value = json!([&suppressed[..], &[100_000]].concat());
        for drafts in [0, 8] {
            let answer = written(open(&value).unwrap(), &case.ids, drafts);
            assert_eq!(answer[0], *rest, "{}", case.prompt);
            assert!(answer.iter().all(|token| !suppressed.contains(token)), "{}", case.prompt);
        }
        for value in [json!(null), json!([]), json!([-1, 100_000])] {
            let answer = written(open(&value).unwrap(), &case.ids, 8);
            assert_eq!(answer[..3], case.greedy[..3], "{value}");
        }
    }
}

#[test]
fn what_is_no_list_of_tokens_is_refused_by_name() {
    for value in [json!(5), json!("5"), json!([1.5]), json!([[5]]), json!({"5": 1}), json!(true)] {
        let error = open(&value).unwrap_err().to_string();
        assert!(error.contains("suppress_tokens") && error.contains(GENERATION), "{value}: {error}");
    }
}

#[test]
fn gguf_files_name_them_too() {
    let key = "tokenizer.ggml.suppress_tokens";
    let writer = gguf_families::plain("qwen2");
    let case = &reference("qwen2").cases[0];
    let mut order: Vec<u32> = (0..case.logits.len() as u32).collect();
    order.sort_by(|&a, &b| case.logits[b as usize].total_cmp(&case.logits[a as usize]));
    let suppressed = [order[0] as i32, order[1] as i32, -1];
    let model = open_gguf(&writer.clone().integers(key, &suppressed)).unwrap();
    assert_eq!(written(model, &case.ids, 8)[0], order[2]);
    let error = open_gguf(&writer.number(key, 5)).unwrap_err().to_string();
    assert!(error.contains(key), "{error}");
}
