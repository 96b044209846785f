//! Layers with other forms of norms, perceptrons, blocks and attention than Llama's, against candle; and what a text gives
//! after a beginning that it shares with another one.

use serde_json::json;

use super::*;
use crate::compute::{ClampedSwish, Xielu};
use crate::models::architectures::experts::ExpertDefaults;
use crate::models::architectures::llama::{HeadNorms, NormForm, NormNames, XieluNumbers};

fn forms() -> Vec<Box<dyn Architecture>> {
    let llama = |variant| shape(2, 10, RopeStyle::Neox, variant);
    let parallel = Variant {
        parallel: true,
        norm_form: NormForm::Unshifted,
        norms: NormNames { mlp: None, ..NormNames::FIRST },
        head_norms: HeadNorms::Own,
        ..Variant::LLAMA
    };
    let ungated = Variant { gated: false, mlp_bias: true, norm_form: NormForm::Layer, ..Variant::LLAMA };
    let turned = Variant { rotates_first: true, head_norms: HeadNorms::Each, ..Variant::LLAMA };
    let of = |positive, cut| Xielu { positive, negative: 0.4, slope: 0.5, cut };
    let sunk = Variant { sinks: true, qkv_bias: true, output_bias: true, ..Variant::LLAMA };
    let defaults =
        ExpertDefaults { biased: true, normalized: true, intermediate: None, ..ExpertDefaults::QWEN3 };
    let config = serde_json::from_value(json!({"num_experts": 5, "num_experts_per_tok": 2})).unwrap();
    let clamped = ClampedSwish { steepness: 1.7, limit: 0.2 };
    let windows = [Mask::sliding(9), Mask::CAUSAL].map(|mask| attention(mask, 10, RopeStyle::Neox));
    vec![
        Box::new(llama(parallel)),
        Box::new(Llama { activation: Activation::ReluSquared, ..llama(ungated) }),
        Box::new(Llama {
            xielu: Some(XieluNumbers::Known(vec![of(0.8, -1e-6), of(0.1, 0.0)])),
            ..llama(Variant { gated: false, ..turned })
        }),
        Box::new(llama(Variant { sinks: true, ..Variant::LLAMA })),
        Box::new(Llama {
            activation: Activation::ClampedSwish(clamped),
            experts: Some(defaults.of_config(&config, 2, 22).unwrap()),
            attention: windows.concat(),
            ..llama(sunk)
        }),
    ]
}

#[test]
fn forms_agree_with_candle() {
    let texts = texts(&[1, 2, 13, 70, 300, 5, 1100]);
    for described in forms() {
        assert_agrees_within(&[(WeightFormat::F32, 3e-5)], &*described, &Made, &texts);
    }
}

/// To the bit: what a text gives depends neither on the texts with it nor on how it is cut into steps.
#[test]
fn a_text_has_the_same_states_in_any_company() {
    let texts = texts(&[300, 64, 40, 1]);
    for described in forms() {
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let model = Transformer::load(Cpu::new(Isa::best(), format), &*described, &Made).unwrap();
            let whole = encode(&model, &texts, Pooling::Last);
            for (text, row) in texts.iter().zip(whole.chunks(36)) {
                assert_eq!(encode(&model, std::slice::from_ref(text), Pooling::Last), row, "{described:?}");
            }
            assert!(in_chunks(&model, &texts, 97) == whole, "{} {described:?}", model.dtype());
        }
    }
}

/// To the bit: the logits after a copy of the cache of a beginning are those of the whole text.
#[test]
fn a_shared_beginning_gives_the_logits_of_a_fresh_computation() {
    let text = &texts(&[150])[0];
    for described in forms().into_iter().chain(super::experts::models()) {
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let cpu = Cpu::new(Isa::best(), format);
            let model = Transformer::load_decoder(cpu, &*described, &Made).unwrap();
            let run = |cache: &mut _, tokens: &[u32], length: usize| {
                let mut logits = vec![0.0; model.vocabulary()];
                let step = Step { cache, tokens, prompt: length, length, logits: 1 };
                Decoder::forward(&model, &mut [step], &mut logits).unwrap();
                logits
            };
            let mut first = model.new_cache(150).unwrap();
            run(&mut first, text, 150);
            for (shared, length) in [(1, 40), (64, 80), (100, 101), (128, 150)] {
                let mut other = first.fork(shared, length).unwrap();
                let kept = other.len();
                // The rest is that of another text.
                let rest: Vec<u32> = text[kept..length].iter().map(|id| (id + 7) % 40).collect();
                let whole = [&text[..kept], &rest].concat();
                let fresh = run(&mut model.new_cache(length).unwrap(), &whole, length);
                assert_eq!(run(&mut other, &rest, length), fresh, "{shared} {} {described:?}", model.dtype());
            }
        }
    }
}
