//! Layers with a convolution in the place of attention, against candle, in windows, and over caches that were cut.

use super::*;
use crate::compute::KvCache;
use crate::models::architectures::lfm2::{AttentionForm, AttentionNames, Lfm2};

pub(super) fn model(taps: usize, causal: bool, attends: &[bool]) -> Lfm2 {
    let rotary = Rotary::new(10_000.0, 10, RopeStyle::Neox);
    Lfm2 {
        experts: None,
        hidden: 36,
        intermediate: 50,
        heads: Heads { heads: 4, kv_heads: 2, width: 10 },
        vocabulary: 40,
        context: 5000,
        epsilon: 1e-6,
        taps,
        conv_bias: taps == 3,
        conv_channels: false,
        tied: true,
        centered: !causal,
        attention: vec![
            LayerAttention::new(if causal { Mask::CAUSAL } else { Mask::FULL }).with_rotary(rotary),
        ],
        attends: attends.to_vec(),
        form: AttentionForm::LFM2,
        sandwich: false,
    }
}

/// With attention in windows and to all tokens, gates, and norms of what blocks give.
fn lfm3() -> Lfm2 {
    let plain = model(7, true, &[false, true, true, false]);
    let rotary = |base| Rotary::new(base, 10, RopeStyle::Neox);
    let sliding = LayerAttention::new(Mask::sliding(30)).with_rotary(rotary(500.0));
    let full = LayerAttention::new(Mask::CAUSAL).with_rotary(rotary(10_000.0));
    Lfm2 {
        attention: vec![LayerAttention::new(Mask::CAUSAL), sliding, full, LayerAttention::new(Mask::CAUSAL)],
        form: AttentionForm { names: AttentionNames::LFM3, bias: true, gates: true },
        sandwich: true,
        ..plain
    }
}

fn models() -> [Lfm2; 5] {
    [
        lfm3(),
        model(3, true, &[false, true, false]),
        model(2, true, &[true, false]),
        model(5, true, &[false]),
        model(64, true, &[false, false, true]),
    ]
}

#[test]
fn convolutions_agree_with_candle() {
    let texts = texts(&[1, 2, 0, 13, 70, 300, 5, 1100]);
    let centered = [
        model(3, false, &[false, true, false]),
        model(4, false, &[true, false]),
        // Attention in both directions, convolutions in one.
        Lfm2 { centered: false, ..model(3, false, &[false, true, false]) },
    ];
    for described in models().into_iter().chain(centered) {
        assert_agrees_with_candle(&described, &texts);
    }
}

/// What a text gives depends neither on the texts with it, nor on windows, nor on how it is cut into steps.
#[test]
fn a_text_has_the_same_states_however_it_is_read() {
    let texts = texts(&[600, 257, 64, 40, 1]);
    for described in models() {
        for dtype in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let model = Transformer::load(Cpu::new(Isa::best(), dtype), &described, &Made).unwrap();
            let whole = encode(&model, &texts, Pooling::Last);
            let mut with_empty = texts.clone();
            with_empty.splice(1..1, [vec![], vec![]]);
            let among_empty = encode(&model, &with_empty, Pooling::Last);
            assert!(among_empty[3 * 36..] == whole[36..], "{dtype:?} among empty texts");
            for (text, row) in texts.iter().zip(whole.chunks(36)) {
                assert_eq!(encode(&model, std::slice::from_ref(text), Pooling::Last), row, "{dtype:?}");
            }
            // Tiles of bfloat16 are emulated on many CPUs.
            let exact = dtype == WeightFormat::F32;
            for &chunk in if exact { &[600, 97, 64][..] } else { &[97] } {
                assert!(in_chunks(&model, &texts, chunk) == whole, "{dtype:?} {chunk} {described:?}");
            }
            assert!(in_chunks(&model, &texts[2..], 1) == whole[2 * 36..], "{dtype:?} {described:?}");
            if exact {
                let long = self::texts(&[2500, 1500]);
                let whole = encode(&model, &long, Pooling::Last);
                assert!(in_chunks(&model, &long, 1300) == whole, "{dtype:?} {described:?}");
            }
        }
        let plain = Transformer::load(Candle::new(Device::Cpu), &described, &Made).unwrap();
        let (whole, parts) = (encode(&plain, &texts, Pooling::Last), in_chunks(&plain, &texts, 97));
        assert!(furthest(&parts, &whole) < 1e-5);
    }
}

/// The last tokens of some texts are hidden from the others. Neither other texts of the batch nor windows change a state.
#[test]
fn hidden_tokens_are_zeros_for_convolutions() {
    let (texts, hidden) = (texts(&[40, 2600, 90, 6, 300]), [30, 0, 60, 5, 299]);
    let causal = models().map(|described| Lfm2 { conv_bias: false, ..described });
    let centered = Lfm2 { conv_bias: false, ..model(3, false, &[false, true, false]) };
    for described in causal.into_iter().chain([centered]) {
        let plain = Transformer::load(Candle::new(Device::Cpu), &described, &Made).unwrap();
        for (dtype, allowed) in [(WeightFormat::F32, 3e-5), (WeightFormat::Bf16, 0.25)] {
            let model = Transformer::load(Cpu::new(Isa::best(), dtype), &described, &Made).unwrap();
            // Tiles of bfloat16 are emulated on many CPUs.
            let poolings = match dtype {
                WeightFormat::F32 => &[Pooling::Mean, Pooling::Cls, Pooling::Last][..],
                _ => &[Pooling::Mean],
            };
            for &pooling in poolings {
                let all = encode_hiding(&model, &texts, &hidden, pooling);
                let error = furthest(&all, &encode_hiding(&plain, &texts, &hidden, pooling));
                assert!(error <= allowed, "{dtype:?} {pooling:?} {described:?}: {error}");
                for (index, row) in all.chunks(36).enumerate() {
                    let alone = encode_hiding(&model, &texts[index..=index], &hidden[index..=index], pooling);
                    assert_eq!(alone, row, "{dtype:?} {pooling:?} {index}");
                }
            }
            if dtype != WeightFormat::F32 {
                continue;
            }
            // What sees no hidden token is as it would be without them.
            let short: Vec<_> =
                texts.iter().zip(hidden).map(|(text, n)| text[..text.len() - n as usize].to_vec()).collect();
            let (one, other) = (
                encode_hiding(&model, &texts, &hidden, Pooling::Cls),
                encode_hiding(&model, &short, &[], Pooling::Cls),
            );
            assert!(furthest(&one, &other) <= allowed / 10.0, "{dtype:?} {described:?}");
        }
    }
}

/// The logits after `text`, of which `cache` has the first tokens.
fn logits_after<B: Backend>(model: &Transformer<B>, cache: &mut B::Cache, text: &[u32]) -> Vec<f32> {
    let mut logits = vec![f32::NAN; model.vocabulary()];
    let (tokens, length) = (&text[cache.len()..], text.len());
    let step = Step { cache, tokens, prompt: length, length, logits: 1 };
    Decoder::forward(model, &mut [step], &mut logits).unwrap();
    logits
}

/// A cache is cut where its rows are known; what follows is then as if it had never had more.
fn cut<B: Backend>(model: &Transformer<B>, text: &[u32], exact: bool) {
    let whole = logits_after(model, &mut model.new_cache(0).unwrap(), text);
    let same = |found: &[f32], what: &str| {
        let error = furthest(found, &whole);
        assert!(if exact { error == 0.0 } else { error < 1e-5 }, "{what}: {error}");
    };
    let mut full = model.new_cache(0).unwrap();
    // Another end, so that what is left of it is noticed.
    let mut other = text.to_vec();
    other[text.len() - 30..].fill(7);
    logits_after(model, &mut full, &other);
    for len in [0, 1, 63, 64, 65, 128, 200, 256, 270] {
        let mut fork = full.fork(len, text.len()).unwrap();
        assert!(fork.len() <= len && (!exact || fork.len() + 64 > len), "{} of {len}", fork.len());
        same(&logits_after(model, &mut fork, text), "a fork");
        fork.truncate(len);
        same(&logits_after(model, &mut fork, text), "a fork of a fork");
    }
    for len in [271, 270, 200, 130, 64, 10] {
        full.truncate(len.min(text.len() - 30));
        full.shrink().unwrap();
        same(&logits_after(model, &mut full, text), "a cache");
    }
}

#[test]
fn caches_of_convolutions_are_cut_where_their_rows_are_known() {
    let text = &texts(&[0, 300])[1];
    for described in models() {
        for dtype in [WeightFormat::F32, WeightFormat::Bf16] {
            let cpu = Cpu::new(Isa::best(), dtype);
            cut(&Transformer::load_decoder(cpu, &described, &Made).unwrap(), text, true);
        }
        let candle = Candle::new(Device::Cpu);
        cut(&Transformer::load_decoder(candle, &described, &Made).unwrap(), text, false);
    }
}

/// A pass fails in its middle, and the caches go on from where they were.
fn fails<B: Backend>(model: &Transformer<B>) {
    let text = &texts(&[0, 150])[1];
    let whole = logits_after(model, &mut model.new_cache(0).unwrap(), text);
    let (mut one, mut other) = (model.new_cache(0).unwrap(), model.new_cache(0).unwrap());
    logits_after(model, &mut one, &text[..90]);
    let step = |cache, tokens| Step { cache, tokens, prompt: 150, length: 150, logits: 0 };
    let tokens = &text[one.len()..];
    let mut steps = [step(&mut one, tokens), step(&mut other, &[u32::MAX])];
    assert!(Decoder::forward(model, &mut steps, &mut []).is_err());
    one.truncate(90);
    assert!(one.len() == 90 && other.is_empty());
    assert!(furthest(&logits_after(model, &mut one, text), &whole) < 1e-5);
}

#[test]
fn a_pass_that_fails_leaves_the_caches_of_convolutions() {
    let described = model(3, true, &[false, true, false]);
    let cpu = Cpu::new(Isa::best(), WeightFormat::F32);
    fails(&Transformer::load_decoder(cpu, &described, &Made).unwrap());
    fails(&Transformer::load_decoder(Candle::new(Device::Cpu), &described, &Made).unwrap());
}

#[test]
fn the_memory_of_a_cache_is_known_before() {
    let described = model(3, true, &[false, true, false]);
    let load = |isa| Transformer::load_decoder(Cpu::new(isa, WeightFormat::F32), &described, &Made).unwrap();
    for model in Isa::available().map(load) {
        let mut last = 0;
        // Of two convolutions, two rows before 16 drafts, which are there once a step has some.
        let drafts = 2 * (2 + 16) * 36 * 4;
        for tokens in [0, 1, 40, 64, 256, 300, 1000] {
            let bytes = model.cache_bytes(tokens);
            let own = model.new_cache(tokens).unwrap().bytes();
            assert_eq!(own + if tokens > 0 { drafts } else { 0 }, bytes, "{tokens}");
            assert!(bytes >= last);
            last = bytes;
        }
        assert_eq!(model.cache_bytes(usize::MAX), u64::MAX);
    }
}
