//! Models whose quantized weights are unpacked for the tokens that they read, as on AMX.

use super::*;
use crate::compute::linear::quant_unpack::everywhere;

/// The model of a file with quantized weights and activations in bf16, on the instruction sets of this CPU that unpack.
fn unpacking(path: &Path) -> Vec<(Isa, TextModel)> {
    let open = |isa| everywhere(|| from_gguf("m", path, WeightFormat::Bf16, isa).unwrap());
    let models = Isa::available().map(|isa| (isa, open(isa)));
    let all: Vec<_> = models.filter(|(_, model)| cpu(model).phases_differ()).collect();
    assert!(!all.is_empty() || !cfg!(target_arch = "x86_64"), "none unpacks");
    all
}

fn cpu(model: &TextModel) -> &Transformer<Cpu> {
    match &model.network {
        Network::Cpu(decoder) => decoder,
        _ => unreachable!("it was loaded onto the CPU"),
    }
}

/// The logits after the last token of a text whose first `prompt` tokens are read, in steps of so many tokens.
fn logits_in(model: &TextModel, text: &[u32], prompt: usize, steps: &[usize]) -> Vec<f32> {
    let (decoder, length) = (cpu(model), text.len());
    let (mut cache, mut logits) = (decoder.new_cache(64).unwrap(), vec![0.0; decoder.vocabulary()]);
    let mut first = 0;
    for count in steps.iter().cycle() {
        let tokens = &text[first..length.min(first + count)];
        first += tokens.len();
        let needs_logits = first == length;
        let step = Step { cache: &mut cache, tokens, prompt, length, logits: usize::from(needs_logits) };
        Decoder::forward(decoder, &mut [step], if needs_logits { &mut logits } else { &mut [] }).unwrap();
        if needs_logits {
            break;
        }
    }
    logits
}

/// Logits of the prompt and of the answer so far, as a prompt: those of the same weights in float32, with weights unpacked, and
/// with activations in eight bits. Rounding weights to bf16 is no worse than rounding activations to eight bits.
#[test]
fn prompts_are_read_no_worse_than_by_integers() {
    for (file, seed, choice) in FILES {
        let [(_coded, coded), (_plain, plain)] = pair(seed, choice).map(|writer| writer.write());
        let exact = from_gguf(file, &plain, WeightFormat::F32, Isa::best()).unwrap();
        let answer = greedy(from_gguf(file, &plain, WeightFormat::F32, Isa::best()).unwrap());
        let prompt = exact.tokens.encode(PROMPT, true).unwrap();
        let texts = (0..answer.len()).map(|count| [&prompt, &answer[..count]].concat());
        let texts: Vec<_> = texts.map(|text| (logits(&exact, &[&text]), text)).collect();
        for (isa, model) in unpacking(&coded) {
            let integers = from_gguf(file, &coded, WeightFormat::Bf16, isa.min(Isa::Avx512Bf16)).unwrap();
            let mean = |model: &TextModel| {
                let errors = texts.iter().map(|(exact, text)| distance(&logits(model, &[text]), exact));
                errors.sum::<f32>() / texts.len() as f32
            };
            let (read, as_before) = (mean(&model), mean(&integers));
            println!("{file} {isa}: {read:.5} unpacked, {as_before:.5} by integers");
            assert!(read < as_before && read < ROUNDING, "{file} {isa}: {read} and {as_before}");
            assert_eq!(greedy(model), answer, "{file} {isa}");
        }
    }
}

/// Where steps begin and end makes no difference, to the bit: in the prompt, in an answer that is computed again, and between.
#[test]
fn steps_of_any_size_compute_the_same() {
    for (file, seed, choice) in FILES {
        let [(_folder, path), _] = pair(seed, choice).map(|writer| writer.write());
        let text: Vec<u32> = (0..40).map(|i| (i * i * 17 + 3) % VOCABULARY as u32).collect();
        for (isa, model) in unpacking(&path) {
            let mut all = Vec::new();
            for prompt in [40, 13, 1] {
                let whole = logits_in(&model, &text, prompt, &[40]);
                for steps in [&[1][..], &[13, 27], &[39, 1], &[20, 3]] {
                    let parts = logits_in(&model, &text, prompt, steps);
                    assert_eq!(parts, whole, "{file} {isa} {prompt} {steps:?}");
                }
                all.push(whole);
            }
            // What was written is computed otherwise than what is read.
            assert!((1..all.len()).all(|index| all[index] != all[0]), "{file} {isa}");
        }
    }
}

/// Rows of both phases meet in the steps of an engine, and answers pause for want of memory and are computed again.
#[test]
fn answers_do_not_depend_on_other_requests() {
    let (file, seed, choice) = FILES[3];
    let [(_folder, path), _] = pair(seed, choice).map(|writer| writer.write());
    let prompts: Vec<String> =
        (0..6).map(|number| format!("{PROMPT} {number} {}", "ve ".repeat(number))).collect();
    let params = || GenerationParams { max_new_tokens: Some(TOKENS), ..Default::default() };
    let start = |isa, few: bool| {
        let model = unpacking(&path).into_iter().find(|(of, _)| *of == isa).unwrap().1;
        let bytes = cpu(&model).cache_bytes(64) + cpu(&model).cache_bytes(32);
        Generator::start(model, |settings| {
            settings.prefill_chunk = 7;
            settings.kv_bytes = if few { bytes } else { settings.kv_bytes };
        })
        .unwrap()
    };
    for isa in unpacking(&path).into_iter().map(|(isa, _)| isa) {
        let write = |generator: &Generator, prompt: &str| {
            generator.generate(Prompt::Text(prompt), params(), &mut || Ok(())).unwrap().tokens
        };
        let alone: Vec<_> = prompts.iter().map(|prompt| write(&start(isa, false), prompt)).collect();
        for few in [false, true] {
            let generator = start(isa, few);
            std::thread::scope(|scope| {
                for (prompt, alone) in prompts.iter().zip(&alone).cycle().take(12) {
                    let (generator, write) = (&generator, &write);
                    scope
                        .spawn(move || assert_eq!(&write(generator, prompt), alone, "{file} {isa} {prompt}"));
                }
            });
        }
    }
}

/// The next turn reads the answer itself: its keys and values as they were written are others.
#[test]
fn a_prompt_reuses_what_was_read_and_not_what_was_written() {
    let (file, seed, choice) = FILES[0];
    let [(_folder, path), _] = pair(seed, choice).map(|writer| writer.write());
    for (isa, model) in unpacking(&path) {
        let generator = Generator::start(model, |_| ()).unwrap();
        let params = || GenerationParams { max_new_tokens: Some(TOKENS), ..Default::default() };
        let write = |generator: &Generator, prompt: &str| {
            generator.generate(Prompt::Text(prompt), params(), &mut || Ok(())).unwrap()
        };
        let first = write(&generator, PROMPT);
        let next = format!("{PROMPT}{} Peki ya sonra?", first.text);
        let (tokens, before) =
            (generator.tokens(Prompt::Text(&next)).unwrap(), generator.tokens(Prompt::Text(PROMPT)).unwrap());
        let common = tokens.iter().zip(&before).take_while(|(a, b)| a == b).count();
        let second = write(&generator, &next);
        assert!((8..=before.len()).contains(&common), "{common} tokens in common");
        assert_eq!(second.reused_tokens, common, "{file} {isa}");
        let fresh = unpacking(&path).into_iter().find(|(of, _)| *of == isa).unwrap().1;
        let fresh = write(&Generator::start(fresh, |_| ()).unwrap(), &next);
        assert_eq!((fresh.reused_tokens, &fresh.tokens), (0, &second.tokens), "{file} {isa}");
    }
}
