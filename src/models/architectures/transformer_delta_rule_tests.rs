//! Layers with a gated delta rule in the place of attention, and attention with gates: against candle, in windows, and over
//! caches that were cut.

use super::*;
use crate::compute::{DeltaHeads, KvCache};
use crate::models::architectures::qwen3_5::{Qwen35, TensorForm};

pub(super) fn model(attends: &[bool], delta: DeltaHeads, taps: usize) -> Qwen35 {
    Qwen35 {
        hidden: 36,
        intermediate: 50,
        heads: Heads { heads: 4, kv_heads: 2, width: 10 },
        vocabulary: 40,
        context: 5000,
        epsilon: 1e-3,
        tied: true,
        bias: taps == 2,
        rotary: Rotary::new(10_000.0, 4, RopeStyle::Neox),
        attends: attends.to_vec(),
        delta,
        taps,
        experts: None,
        form: TensorForm::Split,
    }
}

const HEADS: DeltaHeads = DeltaHeads { keys: 2, values: 4, key_width: 6, value_width: 9, in_turn: false };

fn models() -> [Qwen35; 4] {
    [
        model(&[false, true, false], HEADS, 4),
        // More than a block of columns.
        model(&[false, false], DeltaHeads { values: 2, value_width: 75, ..HEADS }, 2),
        model(&[true, false], DeltaHeads { key_width: 17, in_turn: true, ..HEADS }, 3),
        Qwen35 { form: TensorForm::Fused, ..model(&[false, true], HEADS, 4) },
    ]
}

#[test]
fn delta_rules_agree_with_candle() {
    let texts = texts(&[1, 2, 0, 13, 70, 300, 5, 1100]);
    for described in models() {
        assert_agrees_with_candle(&described, &texts);
    }
}

/// What a text gives depends neither on the texts with it, nor on windows, nor on how it is cut into steps.
#[test]
fn a_text_has_the_same_states_however_it_is_read() {
    let texts = texts(&[600, 257, 64, 40, 1]);
    for (index, described) in models()[..3].iter().enumerate() {
        // Tiles of bfloat16 are emulated on many CPUs.
        let others = if index == 0 { &[WeightFormat::Bf16, WeightFormat::Int8][..] } else { &[] };
        for &dtype in [WeightFormat::F32].iter().chain(others) {
            let model = Transformer::load(Cpu::new(Isa::best(), dtype), described, &Made).unwrap();
            let whole = encode(&model, &texts, Pooling::Last);
            let mut with_empty = texts.clone();
            with_empty.splice(1..1, [vec![], vec![]]);
            let among_empty = encode(&model, &with_empty, Pooling::Last);
            assert!(among_empty[3 * 36..] == whole[36..], "{dtype:?} among empty texts");
            for (text, row) in texts.iter().zip(whole.chunks(36)) {
                assert_eq!(encode(&model, std::slice::from_ref(text), Pooling::Last), row, "{dtype:?}");
            }
            for chunk in [600, 97, 64] {
                assert!(in_chunks(&model, &texts, chunk) == whole, "{dtype:?} {chunk} {described:?}");
            }
            assert!(in_chunks(&model, &texts[2..], 1) == whole[2 * 36..], "{dtype:?} {described:?}");
            let long = self::texts(&[2500, 1500]);
            let whole = encode(&model, &long, Pooling::Last);
            assert!(in_chunks(&model, &long, 1300) == whole, "{dtype:?} {described:?}");
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_states() {
    let texts = texts(&[70, 3, 130]);
    for described in models() {
        let plain = Transformer::load(Candle::new(Device::Cpu), &described, &Made).unwrap();
        let expected = encode(&plain, &texts, Pooling::Mean);
        for isa in Isa::available() {
            let model = Transformer::load(Cpu::new(isa, WeightFormat::F32), &described, &Made).unwrap();
            let error = furthest(&encode(&model, &texts, Pooling::Mean), &expected);
            assert!(error < 1e-4, "{isa} {described:?}: {error}");
        }
    }
}

/// The last tokens of some texts are hidden from the others: what they give is zero.
#[test]
fn hidden_tokens_change_no_state_of_others() {
    let (texts, hidden) = (texts(&[40, 2600, 90, 6, 300]), [30, 0, 60, 5, 299]);
    for described in &models()[..3] {
        let plain = Transformer::load(Candle::new(Device::Cpu), described, &Made).unwrap();
        let model = Transformer::load(Cpu::new(Isa::best(), WeightFormat::F32), described, &Made).unwrap();
        for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Last] {
            let all = encode_hiding(&model, &texts, &hidden, pooling);
            let error = furthest(&all, &encode_hiding(&plain, &texts, &hidden, pooling));
            assert!(error <= 1e-4, "{pooling:?} {described:?}: {error}");
            for (index, row) in all.chunks(36).enumerate() {
                let alone = encode_hiding(&model, &texts[index..=index], &hidden[index..=index], pooling);
                assert_eq!(alone, row, "{pooling:?} {index}");
            }
        }
    }
}

/// The logits after `text`, of which `cache` has the first tokens and the model reads the first `prompt`.
fn logits_after<B: Backend>(
    model: &Transformer<B>,
    cache: &mut B::Cache,
    text: &[u32],
    prompt: usize,
) -> Vec<f32> {
    let mut logits = vec![f32::NAN; model.vocabulary()];
    let (tokens, length) = (&text[cache.len()..], text.len());
    let step = Step { cache, tokens, prompt, length, logits: 1 };
    Decoder::forward(model, &mut [step], &mut logits).unwrap();
    logits
}

/// A cache is cut where its states are known; what follows is then as if it had never had more.
fn cut<B: Backend>(model: &Transformer<B>, text: &[u32], exact: bool) {
    let whole = logits_after(model, &mut model.new_cache(0).unwrap(), text, text.len());
    let same = |found: &[f32], what: &str| {
        let error = furthest(found, &whole);
        assert!(if exact { error == 0.0 } else { error < 1e-4 }, "{what}: {error}");
    };
    let mut full = model.new_cache(0).unwrap();
    // Another end, so that what is left of it is noticed.
    let mut other = text.to_vec();
    other[text.len() - 30..].fill(7);
    logits_after(model, &mut full, &other, 500);
    for len in [0, 1, 255, 256, 300, 484, 500, 512, 570] {
        let mut fork = full.fork(len, text.len()).unwrap();
        assert!(fork.len() <= len && (!exact || len < 256 || fork.len() >= 256), "{} of {len}", fork.len());
        same(&logits_after(model, &mut fork, text, text.len()), "a fork");
        fork.truncate(len);
        same(&logits_after(model, &mut fork, text, text.len()), "a fork of a fork");
    }
    for len in [571, 570, 500, 490, 256, 10] {
        full.truncate(len.min(text.len() - 30));
        full.shrink().unwrap();
        same(&logits_after(model, &mut full, text, text.len()), "a cache");
    }
}

#[test]
fn caches_of_delta_rules_are_cut_where_their_states_are_known() {
    let text = &texts(&[0, 600])[1];
    for described in &models()[..3] {
        for dtype in [WeightFormat::F32, WeightFormat::Bf16] {
            let cpu = Cpu::new(Isa::best(), dtype);
            cut(&Transformer::load_decoder(cpu, described, &Made).unwrap(), text, true);
        }
    }
    let candle = Candle::new(Device::Cpu);
    cut(&Transformer::load_decoder(candle, &models()[0], &Made).unwrap(), text, false);
}

/// A pass fails in its middle, and the caches go on from where their states are known.
fn fails<B: Backend>(model: &Transformer<B>) {
    let text = &texts(&[0, 450])[1];
    let whole = logits_after(model, &mut model.new_cache(0).unwrap(), text, 450);
    let (mut one, mut other) = (model.new_cache(0).unwrap(), model.new_cache(0).unwrap());
    logits_after(model, &mut one, &text[..300], 450);
    let step = |cache, tokens| Step { cache, tokens, prompt: 450, length: 450, logits: 0 };
    let tokens = &text[one.len()..];
    let mut steps = [step(&mut one, tokens), step(&mut other, &[u32::MAX])];
    assert!(Decoder::forward(model, &mut steps, &mut []).is_err());
    one.truncate(300);
    assert!(one.len() <= 300 && other.is_empty());
    assert!(furthest(&logits_after(model, &mut one, text, 450), &whole) < 1e-4);
}

#[test]
fn a_pass_that_fails_leaves_the_caches_of_delta_rules() {
    let described = &models()[0];
    let cpu = Cpu::new(Isa::best(), WeightFormat::F32);
    fails(&Transformer::load_decoder(cpu, described, &Made).unwrap());
    fails(&Transformer::load_decoder(Candle::new(Device::Cpu), described, &Made).unwrap());
}

#[test]
fn the_memory_of_a_cache_is_bounded_before() {
    let described = &models()[0];
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, WeightFormat::F32);
        let model = Transformer::load_decoder(cpu, described, &Made).unwrap();
        let mut last = 0;
        for tokens in [0, 1, 40, 64, 256, 300, 1000] {
            let bytes = model.cache_bytes(tokens);
            let mut cache = model.new_cache(tokens).unwrap();
            assert!(cache.bytes() <= bytes, "{tokens}");
            if tokens > 0 {
                logits_after(&model, &mut cache, &texts(&[0, tokens])[1], tokens);
            }
            assert!(cache.bytes() <= bytes, "{tokens}");
            assert!(bytes >= last);
            last = bytes;
        }
        assert_eq!(model.cache_bytes(usize::MAX), u64::MAX);
    }
}

/// A head that grows without bound is none of a model.
#[test]
fn rates_that_let_a_state_grow_are_refused() {
    let described = Qwen35 { form: TensorForm::Gguf, ..models()[0].clone() };
    // What is made for `ssm_a` has numbers above zero too.
    let error = described.layer(&Made, 0).err().unwrap().to_string();
    assert!(error.contains("ssm_a") && error.contains("rate"), "{error}");
}
