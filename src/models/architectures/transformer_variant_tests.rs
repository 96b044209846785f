//! Norms and factors at the places where families differ, against candle.

use super::*;
use crate::compute::QueryGrowth;
use crate::models::architectures::Factors;
use crate::models::architectures::llama::NormNames;

fn logits<B: Backend>(model: &Transformer<B>, text: &[u32]) -> Vec<f32> {
    let mut logits = vec![f32::NAN; model.vocabulary()];
    let mut cache = model.new_cache(0).unwrap();
    let length = text.len();
    let step = Step { cache: &mut cache, tokens: text, prompt: length, length, logits: 1 };
    Decoder::forward(model, &mut [step], &mut logits).unwrap();
    logits
}

#[test]
fn norms_and_factors_at_other_places_agree_with_candle() {
    let texts = texts(&[1, 2, 13, 70, 1100]);
    let factors = Factors { embedding: 6.0, residual: 0.7, logits: 0.25, logits_cap: Some(0.5) };
    let one = Factors::default();
    let (first, after) =
        (NormNames::FIRST, NormNames { output: Some("a"), down: Some("b"), ..NormNames::FIRST });
    let last = NormNames { attention: None, mlp: None, ..after };
    for (kv_heads, head, style, norms, head_norms, factors) in [
        (2, 10, RopeStyle::Neox, after, HeadNorms::Each, one),
        (2, 10, RopeStyle::Interleaved, last, HeadNorms::All, one),
        (4, 9, RopeStyle::Neox, first, HeadNorms::All, factors),
        (1, 16, RopeStyle::Neox, after, HeadNorms::None, factors),
    ] {
        let variant = Variant { head_norms, norms, norm_offset: 0.5, ..Variant::LLAMA };
        let growth = QueryGrowth { rate: 0.3, length: 5 };
        let mut attention = attention(Mask::CAUSAL, 6, style);
        attention.push(LayerAttention::new(Mask::sliding(7)));
        attention[0].rotary.as_mut().unwrap().query_growth = Some(growth);
        let moved = Llama { factors, attention, ..shape(kv_heads, head, style, variant) };
        let load = |candle| Transformer::load_decoder(candle, &moved, &Made).unwrap();
        let plain = load(Candle::new(Device::Cpu));
        for isa in Isa::available() {
            for (dtype, allowed) in [(WeightFormat::F32, 3e-5), (WeightFormat::Bf16, 0.25)] {
                let model = Transformer::load_decoder(Cpu::new(isa, dtype), &moved, &Made).unwrap();
                // The last text crosses the edge of a window.
                let texts = if isa == Isa::best() { &texts[..] } else { &texts[..4] };
                let (ours, theirs) =
                    (encode(&model, texts, Pooling::Last), encode(&plain, texts, Pooling::Last));
                assert!(furthest(&ours, &theirs) <= allowed, "{isa} {dtype:?} {moved:?}");
                let (ours, theirs) = (logits(&model, &texts[2]), logits(&plain, &texts[2]));
                assert!(furthest(&ours, &theirs) <= allowed, "{isa} {dtype:?} {moved:?}");
                let most = theirs.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
                assert!(factors.logits_cap.is_none_or(|cap| most <= cap && most > cap / 4.0), "{most}");
                let cached = in_chunks(&model, &texts[3..4], 33);
                assert!(cached == encode(&model, &texts[3..4], Pooling::Last), "{isa} {dtype:?} {moved:?}");
            }
        }
    }
}
