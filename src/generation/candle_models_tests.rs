//! Generators that candle's tensors compute: transformers' logits and answers, in parts, together, with little memory.

use super::*;

const NAMES: [&str; 2] = ["lfm2", "lfm2_biased"];

fn model(name: &str) -> TextModel {
    load(name, WeightFormat::Bf16, Isa::best())
}

fn decoder(model: &TextModel) -> &CandleDecoder {
    match &model.network {
        Network::Tensors(decoder) => decoder,
        _ => unreachable!("candle's tensors compute it"),
    }
}

#[test]
fn logits_equal_transformers_whole_and_in_parts() {
    for name in NAMES {
        let model = model(name);
        assert_eq!((model.network.dtype(), model.engine), ("float32", ComputeEngine::Candle));
        for case in reference(name).cases {
            let whole = furthest(&logits(&model, &[&case.ids]), &case.logits);
            assert!(whole <= 2e-5, "{name}: {whole:e}");
            for size in [1, 2, 3] {
                let parts: Vec<&[u32]> = case.ids.chunks(size).collect();
                let error = furthest(&logits(&model, &parts), &case.logits);
                assert!(error <= 2e-5, "{name} in parts of {size}: {error:e}");
            }
        }
    }
}

fn step<'a, C>(cache: &'a mut C, tokens: &'a [u32]) -> Step<'a, C> {
    Step { cache, tokens, prompt: 4, length: 4, needs_logits: true }
}

#[test]
fn a_step_that_fails_changes_no_sequence() {
    for name in NAMES {
        let model = model(name);
        let decoder = decoder(&model);
        let (mut one, mut other) = (decoder.new_cache(8).unwrap(), decoder.new_cache(8).unwrap());
        let unknown = [u32::MAX];
        let mut rows = vec![0.0; 2 * decoder.vocabulary()];
        let mut steps = [step(&mut one, &[1, 2, 3]), step(&mut other, &unknown)];
        assert!(matches!(decoder.forward(&mut steps, &mut rows), Err(Error::Input(_))), "{name}");
        assert!(one.is_empty() && other.is_empty(), "{name}");
        let long = vec![1; decoder.context() + 1];
        assert!(decoder.forward(&mut [step(&mut one, &long)], &mut rows).is_err(), "{name}");
    }
}

#[test]
fn many_requests_at_once_get_the_answers_of_transformers() {
    for name in NAMES {
        for scarce in [false, true] {
            let (model, expected) = (model(name), reference(name));
            let few = decoder(&model).cache_bytes(64) + decoder(&model).cache_bytes(32);
            let generator = Generator::start(model, |settings| {
                settings.prefill_chunk = 5;
                settings.kv_bytes = if scarce { few } else { settings.kv_bytes };
            });
            let generator = generator.unwrap();
            std::thread::scope(|scope| {
                for index in 0..8 {
                    let (generator, case) = (&generator, &expected.cases[index % expected.cases.len()]);
                    scope.spawn(move || {
                        let tokens = Some(case.greedy.len());
                        let params = GenerationParams { max_new_tokens: tokens, ..Default::default() };
                        let prompt = Prompt::Text(&case.prompt);
                        let completion = generator.generate(prompt, params, &mut || Ok(())).unwrap();
                        assert_eq!(completion.tokens, case.greedy, "{name} {:?}", case.prompt);
                    });
                }
            });
            assert_eq!(generator.stats().completed, 8, "{name}");
        }
    }
}

#[test]
fn sizes_beyond_the_file_take_no_memory() {
    let keys = [
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "block_ff_dim",
        "block_multiple_of",
        "conv_L_cache",
    ];
    let config = read_json::<Value>(&folder("lfm2").join("config.json")).unwrap();
    for key in keys {
        for size in [0u64, 1 << 27, 1 << 40, u64::MAX] {
            let copy = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(folder("lfm2")).unwrap().flatten() {
                fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
            let mut config = config.clone();
            config[key] = size.into();
            fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
            let files = ModelFiles::open("lfm2", copy.path()).unwrap();
            let error = from_files(&files, WeightFormat::F32, Isa::best()).unwrap_err();
            assert!(
                matches!(error, Error::Unsupported { .. } | Error::InvalidFile { .. }),
                "{key}={size}: {error}"
            );
        }
    }
}
