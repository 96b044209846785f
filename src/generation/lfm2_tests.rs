//! LFM2's generator: requests at once and with little memory, and files that say what cannot be.

use super::*;

const NAMES: [&str; 2] = ["lfm2", "lfm2_biased"];

fn model(name: &str) -> TextModel {
    load(name, WeightFormat::F32, Isa::best())
}

#[test]
fn many_requests_at_once_get_the_answers_of_transformers() {
    for name in NAMES {
        for scarce in [false, true] {
            let (model, expected) = (model(name), reference(name));
            let Network::Cpu(decoder) = &model.network else { unreachable!("it was loaded onto the CPU") };
            let few = decoder.cache_bytes(64) + decoder.cache_bytes(32);
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
            assert_eq!(generator.totals().completed, 8, "{name}");
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
    sizes_are_refused("lfm2", &keys, &[0, 1 << 27, 1 << 40, u64::MAX]);
}
