use std::path::Path;

use super::*;
use crate::chat::Conversation;
use crate::generation::{FinishReason, GenerationParams, Generator, Prompt};
use crate::models::architectures::{GgufTensors, Tensors as _};
use crate::models::decoder::{Decoder, KvCache, Step};
use crate::models::formats::gguf::Gguf;
use crate::models::formats::gguf::tests::{Writer, f32s};

#[derive(serde::Deserialize)]
struct Reference {
    penalties: Penalties,
    cases: Vec<Case>,
    chat: Option<Chat>,
}

#[derive(serde::Deserialize)]
struct Penalties {
    repetition_penalty: f32,
    no_repeat_ngram_size: usize,
}

#[derive(serde::Deserialize)]
struct Case {
    prompt: String,
    ids: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
    greedy_text: String,
    penalised: Vec<u32>,
}

#[derive(serde::Deserialize)]
struct Turn {
    role: String,
    content: String,
}

#[derive(serde::Deserialize)]
struct Chat {
    messages: Vec<Turn>,
    text: String,
    ids: Vec<u32>,
}

const NAMES: &str = "gpt2 gpt2_bin llama qwen2 qwen3 mistral ministral ministral3 smollm3 granite phi3 \
    gemma gemma2 gemma3_text glm4 olmo2 gemma3 mistral3 exaone4 helium gpt_neox phi phi_norms stablelm \
    stablelm_parallel starcoder2 falcon falcon_new falcon_serial gptj lfm2 lfm2_biased \
    qwen3_moe qwen3_moe_mixed mixtral olmoe lfm2_moe qwen2_moe granitemoe \
    cohere cohere2 olmo3 granitemoehybrid hunyuan_v1_dense ernie4_5 seed_oss apertus glm arcee nemotron \
    gpt_oss qwen3_5_text qwen3_5 qwen3_5_moe_text qwen3_next";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn reference(name: &str) -> Reference {
    read_json(&folder(name).join("reference.json")).unwrap()
}

fn from_files(files: &ModelFiles, format: WeightFormat, isa: Isa) -> Result<TextModel> {
    TextModel::open(&files.model, &TextFiles::Folder(files.clone()), format, isa)
}

fn from_gguf(name: &str, path: &Path, format: WeightFormat, isa: Isa) -> Result<TextModel> {
    TextModel::open(name, &TextFiles::Gguf(vec![path.to_path_buf()]), format, isa)
}

fn load(name: &str, format: WeightFormat, isa: Isa) -> TextModel {
    from_files(&ModelFiles::open(name, &folder(name)).unwrap(), format, isa).unwrap()
}

fn open_gguf(writer: &Writer) -> Result<TextModel> {
    let (_folder, path) = writer.clone().write();
    from_gguf("tiny", &path, WeightFormat::F32, Isa::best())
}

/// A file gives transformers' logits of `family`.
fn assert_gguf_is(family: &str, writer: &Writer) {
    let model = open_gguf(writer).unwrap();
    for case in reference(family).cases {
        let error = furthest(&logits(&model, &[&case.ids]), &case.logits);
        assert!(error < 1e-4, "{family} {:?}: {error}", case.prompt);
    }
}

fn logits(model: &TextModel, chunks: &[&[u32]]) -> Vec<f32> {
    match &model.network {
        Network::Cpu(decoder) => logits_of(&**decoder, chunks),
        Network::Candle(decoder) => logits_of(&**decoder, chunks),
        #[cfg(feature = "cuda")]
        Network::Cuda(decoder) => logits_of(&**decoder, chunks),
    }
}

fn logits_of<D: Decoder>(decoder: &D, chunks: &[&[u32]]) -> Vec<f32> {
    let mut cache = decoder.new_cache(64).unwrap();
    let mut logits = vec![0.0; decoder.vocabulary()];
    let length = chunks.iter().map(|tokens| tokens.len()).sum();
    for (index, tokens) in chunks.iter().enumerate() {
        let needs_logits = index + 1 == chunks.len();
        let step =
            Step { cache: &mut cache, tokens, prompt: length, length, logits: usize::from(needs_logits) };
        decoder.forward(&mut [step], if needs_logits { &mut logits } else { &mut [] }).unwrap();
    }
    assert_eq!(cache.len(), chunks.iter().map(|tokens| tokens.len()).sum::<usize>());
    logits
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_equal_transformers_on_every_instruction_set() {
    for name in NAMES.split(' ') {
        for isa in Isa::available() {
            let (model, expected) = (load(name, WeightFormat::F32, isa), reference(name));
            // The reference of this one is itself 2.2e-5 away from the model in float64.
            let allowed = match name {
                "ministral3" | "mistral3" => 2.5e-5,
                // These are further: the norm of a state's outputs amplifies roundings.
                "qwen3_5_text" | "qwen3_5" | "qwen3_5_moe_text" | "qwen3_next" => 1e-4,
                _ => 2e-5,
            };
            let errors =
                expected.cases.iter().map(|case| furthest(&logits(&model, &[&case.ids]), &case.logits));
            let worst = errors.fold(0.0, f32::max);
            assert!(worst <= allowed, "{name} {isa}: {worst:e} of {allowed:e}");
        }
    }
}

#[test]
fn any_device_of_candle_writes_the_same_text() {
    let device = ComputeTarget::Device(candle_core::Device::Cpu.into());
    for name in NAMES.split(' ') {
        let files = TextFiles::Folder(ModelFiles::open(name, &folder(name)).unwrap());
        let load = || TextModel::open_on(name, &files, WeightFormat::F32, &device).unwrap();
        let (model, generator) = (load(), Generator::start(load(), |_| ()).unwrap());
        assert_eq!(model.network.dtype(), "float32");
        for case in reference(name).cases {
            let error = furthest(&logits(&model, &[&case.ids]), &case.logits);
            assert!(error < 1e-4, "{name} {:?}: {error}", case.prompt);
            let params = GenerationParams { max_new_tokens: Some(case.greedy.len()), ..Default::default() };
            let completion = generator.generate(Prompt::Text(&case.prompt), params, &mut || Ok(()));
            assert_eq!(completion.unwrap().tokens, case.greedy, "{name} {:?}", case.prompt);
        }
    }
}

/// Root of the mean square error over that of the values.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    (squares(&mut a.iter().zip(b).map(|(a, b)| a - b)) / squares(&mut b.iter().copied())).sqrt()
}

/// Random weights amplify every rounding; trained models are far more tolerant.
#[test]
fn narrower_weights_stay_close() {
    for (format, allowed) in [(WeightFormat::Bf16, 0.1), (WeightFormat::Int8, 0.4), (WeightFormat::Int4, 1.6)]
    {
        for name in NAMES.split(' ') {
            let model = load(name, format, Isa::best());
            for case in reference(name).cases {
                let error = distance(&logits(&model, &[&case.ids]), &case.logits);
                assert!(error > 0.0 && error < allowed, "{name} {format:?} {:?}: {error}", case.prompt);
            }
        }
    }
}

#[test]
fn greedy_answers_equal_transformers_token_for_token() {
    for name in NAMES.split(' ') {
        let expected = reference(name);
        let generator = Generator::start(load(name, WeightFormat::F32, Isa::best()), |_| ()).unwrap();
        for case in &expected.cases {
            let prompt = Prompt::Text(&case.prompt);
            assert_eq!(generator.tokens(prompt).unwrap(), case.ids, "{name}");
            let greedy = GenerationParams { max_new_tokens: Some(case.greedy.len()), ..Default::default() };
            let penalised = GenerationParams {
                repetition_penalty: expected.penalties.repetition_penalty,
                no_repeat_ngram_size: expected.penalties.no_repeat_ngram_size,
                max_length: Some(case.ids.len() + case.penalised.len()),
                max_new_tokens: None,
                ..greedy.clone()
            };
            for (params, expected) in [(greedy, &case.greedy), (penalised, &case.penalised)] {
                let completion = generator.generate(prompt, params, &mut || Ok(())).unwrap();
                assert_eq!(&completion.tokens, expected, "{name} {:?}", case.prompt);
                if *expected == case.greedy && completion.reason == FinishReason::Length {
                    let plain = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
                        .iter()
                        .fold(case.greedy_text.clone(), |text, special| text.replace(special, ""));
                    assert_eq!(completion.text, plain, "{name} {:?}", case.prompt);
                }
            }
        }
    }
}

#[test]
fn many_requests_at_once_get_the_same_answers() {
    for name in NAMES.split(' ') {
        for scarce in [false, true] {
            let expected = reference(name);
            let model = load(name, WeightFormat::F32, Isa::best());
            // A sequence and a half.
            let few = match &model.network {
                Network::Cpu(decoder) => decoder.cache_bytes(64) + decoder.cache_bytes(32),
                _ => unreachable!("it was loaded onto the CPU"),
            };
            let generator = Generator::start(model, |settings| {
                settings.prefill_chunk = 7;
                settings.kv_bytes = if scarce { few } else { settings.kv_bytes };
            });
            let generator = generator.unwrap();
            std::thread::scope(|scope| {
                for case in expected.cases.iter().cycle().take(12) {
                    let params =
                        GenerationParams { max_new_tokens: Some(case.greedy.len()), ..Default::default() };
                    scope.spawn(|| {
                        let completion =
                            generator.generate(Prompt::Text(&case.prompt), params, &mut || Ok(())).unwrap();
                        assert_eq!(completion.tokens, case.greedy, "{name} {:?}", case.prompt);
                    });
                }
            });
        }
    }
}

#[test]
fn a_prompt_in_parts_equals_a_prompt_at_once() {
    for name in NAMES.split(' ') {
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let model = load(name, format, Isa::best());
            let ids = &reference(name).cases[0].ids;
            let whole = logits(&model, &[ids]);
            let (first, second) = ids.split_at(13);
            let single: Vec<&[u32]> = ids.chunks(1).collect();
            assert_eq!(furthest(&whole, &logits(&model, &[first, second])), 0.0, "{name} {format:?}");
            assert_eq!(furthest(&whole, &logits(&model, &single)), 0.0, "{name} {format:?}");
        }
    }
}

#[test]
fn conversations_become_the_prompt_of_transformers() {
    for name in NAMES.split(' ') {
        let model = load(name, WeightFormat::F32, Isa::Portable);
        let template = model.templates.as_ref().unwrap().usual();
        match reference(name).chat {
            Some(chat) => {
                let turns: Vec<_> = chat.messages.iter().map(|turn| (&*turn.role, &*turn.content)).collect();
                let text = template.render(&Conversation::of(&turns).unwrap()).unwrap();
                assert_eq!(text, chat.text, "{name}");
                assert_eq!(model.tokens.encode(&text, false).unwrap(), chat.ids, "{name}");
            }
            None => {
                let text = template.render(&Conversation::of(&[("user", "a"), ("assistant", "b")]).unwrap());
                assert_eq!(text.unwrap(), "a<|endoftext|>b<|endoftext|>", "{name}");
            }
        }
    }
}

#[test]
fn tokens_that_end_a_text_are_found() {
    for name in NAMES.split(' ') {
        let model = load(name, WeightFormat::F32, Isa::Portable);
        // Gemma's `generation_config.json` names the end of a turn too.
        let eos_ids = if name.starts_with("gemma") { vec![316, 318] } else { vec![316] };
        assert_eq!((model.eos_id, model.eos_ids), (Some(316), eos_ids), "{name}");
    }
}

/// A copy of the Llama fixture with other settings in one of its files.
fn llama_with(file: &str, settings: &Value) -> Result<TextModel> {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder("llama")).unwrap().flatten() {
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let path = copy.path().join(file);
    let mut json: Value = if path.is_file() { read_json(&path).unwrap() } else { serde_json::json!({}) };
    json.as_object_mut().unwrap().extend(settings.as_object().cloned().unwrap());
    fs::write(path, json.to_string()).unwrap();
    from_files(&ModelFiles::open("m", copy.path()).unwrap(), WeightFormat::F32, Isa::Portable)
}

#[test]
fn the_token_of_the_tokenizer_ends_a_text_too() {
    for (file, settings, eos_ids) in [
        ("config.json", serde_json::json!({"eos_token_id": 318}), [318, 316].as_slice()),
        ("config.json", serde_json::json!({"eos_token_id": [318, 316]}), &[318, 316]),
        ("config.json", serde_json::json!({"eos_token_id": null}), &[316]),
        ("generation_config.json", serde_json::json!({"eos_token_id": [317, 318]}), &[317, 318, 316]),
    ] {
        let model = llama_with(file, &settings).unwrap();
        assert_eq!((model.eos_id, model.eos_ids.as_slice()), (Some(316), eos_ids), "{file}: {settings}");
    }
}

#[test]
fn a_model_that_does_not_write_is_refused_by_name() {
    for (settings, word) in [
        (serde_json::json!({"architectures": ["LlamaForSequenceClassification"]}), "SequenceClassification"),
        (serde_json::json!({"architectures": ["LlamaForQuestionAnswering"]}), "QuestionAnswering"),
        (serde_json::json!({"architectures": ["X", "LlamaRewardModel"]}), "Reward"),
        (serde_json::json!({"is_causal": false}), "is_causal"),
    ] {
        let error = llama_with("config.json", &settings).map(|model| model.name).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { model, .. } if model == "m"), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn prompts_that_cannot_be_continued_are_refused() {
    let generator = Generator::start(load("llama", WeightFormat::F32, Isa::best()), |_| ()).unwrap();
    let refusal = |text: &str, params| {
        generator.generate(Prompt::Text(text), params, &mut || Ok(())).unwrap_err().to_string()
    };
    assert_eq!(refusal("", GenerationParams::default()), "the prompt is empty");
    let long = refusal(&"uzun ".repeat(100), GenerationParams::default());
    assert!(long.contains("the model holds 64"), "{long}");
    let short = refusal("Merhaba", GenerationParams { max_length: Some(2), ..Default::default() });
    assert!(short.starts_with("max_length=2"), "{short}");
    assert_eq!(generator.context(), 64);
}

#[test]
fn damaged_weights_are_told() {
    let folder_of_copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder("llama")).unwrap().flatten() {
        fs::copy(entry.path(), folder_of_copy.path().join(entry.file_name())).unwrap();
    }
    let path = folder_of_copy.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let len = bytes.len();
    bytes[len - 4000..].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let files = ModelFiles::open("damaged", folder_of_copy.path()).unwrap();
    let model = from_files(&files, WeightFormat::F32, Isa::best()).unwrap();
    let generator = Generator::start(model, |_| ()).unwrap();
    for _ in 0..2 {
        let outcome =
            generator.generate(Prompt::Text("Merhaba dünya"), GenerationParams::default(), &mut || Ok(()));
        assert_eq!(outcome, Err(Error::NotFinite { model: "damaged".into() }));
    }
}

#[test]
fn a_post_processor_that_cannot_run_is_the_files_fault() {
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer_config.json"] {
        fs::copy(folder("gpt2").join(file), copy.path().join(file)).unwrap();
    }
    let mut words: Value = read_json(&folder("gpt2").join("tokenizer.json")).unwrap();
    // A special token that the template names and does not define.
    words["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {},
    });
    fs::write(copy.path().join("tokenizer.json"), words.to_string()).unwrap();
    let files = ModelFiles::open("m", copy.path()).unwrap();
    match from_files(&files, WeightFormat::F32, Isa::best()) {
        Err(Error::InvalidFile { path, reason }) => {
            assert!(path.ends_with("tokenizer.json") && reason.contains("damaged"), "{reason}");
        }
        other => panic!("{:?}", other.map(|model| model.name)),
    }
}

#[test]
fn an_unknown_architecture_is_named() {
    let folder = folder("bert_plain");
    let error = from_files(&ModelFiles::open("b", &folder).unwrap(), WeightFormat::F32, Isa::best());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("its model_type is \"bert\", whose models give vectors, scores or sparse vectors here, not text; register it \
                        with kind=\"embedding\", kind=\"reranker\" or kind=\"sparse\""),
        "{error}"
    );
}

/// The tokenizer and chat template of the Llama fixture as a GGUF file holds them.
fn with_tokenizer(writer: Writer) -> Writer {
    let json: Value = read_json(&folder("llama/tokenizer.json")).unwrap();
    let mut pieces: Vec<(u64, String, i32)> = json["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(piece, id)| (id.as_u64().unwrap(), piece.clone(), 1))
        .collect();
    for added in json["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap();
        pieces.retain(|piece| piece.0 != id);
        pieces.push((id, added["content"].as_str().unwrap().into(), 3));
    }
    pieces.sort_unstable();
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge {
            Value::String(merge) => merge.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        })
        .collect();
    writer
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .texts("tokenizer.ggml.tokens", &pieces.iter().map(|piece| piece.1.as_str()).collect::<Vec<_>>())
        .integers("tokenizer.ggml.token_type", &pieces.iter().map(|piece| piece.2).collect::<Vec<_>>())
        .texts("tokenizer.ggml.merges", &merges)
        .number("tokenizer.ggml.eos_token_id", 316)
        .text("tokenizer.chat_template", "{{ messages[0].content }}")
}

/// The Llama fixture as llama.cpp's converter writes it: heads of queries and keys permuted for neighboring pairs.
fn as_gguf(change: impl Fn(&str, &[usize], Vec<f32>) -> Option<(Vec<usize>, Vec<f32>)>) -> Writer {
    let files = ModelFiles::open("llama", &folder("llama")).unwrap();
    let weights = Weights::open(&files.weights).unwrap();
    let mut writer = Writer::default()
        .text("general.architecture", "llama")
        .number("llama.block_count", 2)
        .number("llama.context_length", 64)
        .number("llama.embedding_length", 32)
        .number("llama.feed_forward_length", 48)
        .number("llama.attention.head_count", 4)
        .number("llama.attention.head_count_kv", 2)
        .number("llama.rope.dimension_count", 8)
        .float("llama.rope.freq_base", 10_000.0)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    writer = with_tokenizer(writer);
    let mut names: Vec<&str> = weights.names().collect();
    names.sort_unstable();
    for name in names {
        let shape = weights.shape(name).unwrap().to_vec();
        let mut values = weights.get(name).unwrap().to_f32().unwrap();
        if name.contains("q_proj") || name.contains("k_proj") {
            let from = values.clone();
            for (row, to) in values.chunks_mut(32).enumerate() {
                let (head, i) = (row / 8, row % 8);
                let source = head * 8 + i % 2 * 4 + i / 2;
                to.copy_from_slice(&from[source * 32..][..32]);
            }
        }
        let renamed = GgufTensors::renamed(name);
        if let Some((shape, values)) = change(&renamed, &shape, values) {
            writer = writer.tensor(&renamed, &shape, 0, &f32s(&values));
        }
    }
    writer
}

fn keep(_: &str, shape: &[usize], values: Vec<f32>) -> Option<(Vec<usize>, Vec<f32>)> {
    Some((shape.to_vec(), values))
}

#[test]
fn a_gguf_file_is_the_same_model() {
    let (_folder, path) = as_gguf(keep).write();
    let model = from_gguf("tiny", &path, WeightFormat::F32, Isa::best()).unwrap();
    for case in reference("llama").cases {
        assert_eq!(model.tokens.encode(&case.prompt, true).unwrap(), case.ids);
        let error = furthest(&logits(&model, &[&case.ids]), &case.logits);
        assert!(error < 1e-4, "{:?}: {error}", case.prompt);
    }
    assert_eq!((model.eos_id, model.eos_ids.as_slice()), (Some(316), &[316, 318][..]));
    assert_eq!(
        model.templates.unwrap().usual().render(&Conversation::of(&[("user", "x")]).unwrap()).unwrap(),
        "x"
    );
}

#[test]
fn a_gguf_file_of_another_model_is_refused_by_name() {
    let refusal = |writer: Writer| {
        let (_folder, path) = writer.write();
        from_gguf("tiny", &path, WeightFormat::F32, Isa::best()).unwrap_err().to_string()
    };
    let without =
        |name: &'static str| as_gguf(move |of, shape, values| keep(of, shape, values).filter(|_| of != name));
    assert!(refusal(without("blk.1.ffn_up.weight")).contains("\"blk.1.ffn_up.weight\" is missing"));
    let cut = as_gguf(|name, shape, mut values| {
        if name != "blk.0.attn_v.weight" {
            return keep(name, shape, values);
        }
        values.truncate(8 * 32);
        Some((vec![8, 32], values))
    });
    let refused = refusal(cut);
    assert!(refused.contains("\"blk.0.attn_v.weight\" has shape [8, 32]"), "{refused}");
    // What the network has no place for would change its answers.
    for name in ["blk.0.attn_norm.bias", "blk.2.attn_norm.weight", "scale"] {
        let refused = refusal(as_gguf(keep).tensor(name, &[32], 0, &f32s(&[0.5; 32])));
        assert!(refused.contains(&format!("{name:?}")), "{refused}");
    }
    let other = refusal(Writer::default().text("general.architecture", "mamba"));
    assert!(other.contains("\"mamba\"") && other.contains("models --known"), "{other}");
    let bare = refusal(Writer::default().text("general.architecture", "llama"));
    assert!(bare.contains("llama.embedding_length"), "{bare}");
}

#[test]
fn sizes_beyond_the_file_take_no_memory() {
    let shape = |extra: Writer| {
        let (_folder, path) = with_tokenizer(extra).write();
        from_gguf("tiny", &path, WeightFormat::F32, Isa::best()).unwrap_err()
    };
    for key in ["attention.key_length", "block_count", "embedding_length", "feed_forward_length"] {
        let mut writer = Writer::default().text("general.architecture", "llama");
        for other in ["block_count", "context_length", "embedding_length", "feed_forward_length"] {
            if other != key {
                writer = writer.number(&format!("llama.{other}"), 32);
            }
        }
        writer = writer.number("llama.attention.head_count", 4).number(&format!("llama.{key}"), 0xffff_fff0);
        let error = shape(writer);
        assert!(matches!(error, Error::Unsupported { .. }), "{key}: {error}");
    }
    for (name, keys) in [
        ("llama", ["head_dim", "hidden_size", "num_hidden_layers", "vocab_size"]),
        ("gpt2", ["n_embd", "n_layer", "n_inner", "n_positions"]),
        ("falcon_new", ["hidden_size", "num_kv_heads", "vocab_size", "ffn_hidden_size"]),
        ("gptj", ["n_embd", "rotary_dim", "n_inner", "vocab_size"]),
    ] {
        sizes_are_refused(name, &keys, &[1 << 27, 1 << 40, 1 << 62, u64::MAX]);
    }
}

/// Each of `sizes` in the place of each key of a configuration is an error, before memory is taken for it.
fn sizes_are_refused(name: &str, keys: &[&str], sizes: &[u64]) {
    for (key, size) in keys.iter().flat_map(|key| sizes.iter().map(move |size| (*key, *size))) {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(folder(name)).unwrap().flatten() {
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        let mut config: Value = read_json(&folder(name).join("config.json")).unwrap();
        config[key] = size.into();
        fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
        let files = ModelFiles::open(name, copy.path()).unwrap();
        let error = from_files(&files, WeightFormat::F32, Isa::best()).unwrap_err();
        assert!(
            matches!(error, Error::Unsupported { .. } | Error::InvalidFile { .. }),
            "{name} {key}={size}: {error}"
        );
    }
}

#[test]
fn further_templates_of_gguf_files_have_the_names_that_they_list() {
    let writer = Writer::default()
        .texts("tokenizer.chat_templates", &["short", "tool_use", "lost"].map(str::to_owned))
        .text("tokenizer.chat_template.short", "a")
        .text("tokenizer.chat_template.tool_use", "b")
        .text("tokenizer.chat_template.rag", "c");
    let (_folder, path) = writer.write();
    let expected = [("tool_use", "b"), ("rag", "c"), ("short", "a")];
    let expected = expected.map(|(name, source)| (name.to_owned(), source.to_owned()));
    assert_eq!(further_templates(&Gguf::open(&path).unwrap()), expected);
}

#[test]
fn gguf_names_are_transformers_names() {
    let (_folder, path) = as_gguf(keep).write();
    let gguf = Gguf::open(&path).unwrap();
    let source = GgufTensors(&gguf);
    assert!(source.contains("model.layers.1.mlp.down_proj.weight") && source.contains("model.norm.weight"));
    assert!(source.contains("lm_head.weight") && !source.contains("model.layers.2.mlp.down_proj.weight"));
}

#[path = "gguf_families_tests.rs"]
mod gguf_families;

#[path = "coded_tests.rs"]
mod coded;

#[path = "expert_tests.rs"]
mod experts;

#[path = "lfm2_tests.rs"]
mod lfm2;

#[path = "gpt_oss_tests.rs"]
mod gpt_oss;

#[path = "suppressed_tests.rs"]
mod suppressed;

#[path = "qwen3_5_tests.rs"]
mod qwen3_5;
