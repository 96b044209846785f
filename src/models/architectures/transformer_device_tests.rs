//! The path of a card, on candle's CPU device: batches, bfloat16, and what happens when the device's memory is full.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::compute::{CandleDevice, Relief};

fn on(device: CandleDevice) -> Transformer<Candle> {
    let norms = Variant { head_norms: HeadNorms::Each, ..Variant::LLAMA };
    Transformer::load_decoder(Candle::new(device), &shape(2, 10, RopeStyle::Neox, norms), &Made).unwrap()
}

fn plain() -> Transformer<Candle> {
    on(Device::Cpu.into())
}

/// A device from which `relief` can free memory so many times, and how often it was asked.
fn relieved(times: usize) -> (CandleDevice, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let relief = Relief(Arc::new(move || counted.fetch_add(1, Ordering::Relaxed) < times));
    (CandleDevice { relief: Some(relief), name: "cuda:3".into(), ..Device::Cpu.into() }, asked)
}

fn attempt(model: &Transformer<Candle>, texts: &[Vec<u32>]) -> Result<Vec<f32>> {
    let (ids, offsets) = packed(texts);
    let mut out = vec![f32::NAN; texts.len() * model.width()];
    model.encode(&PackedBatch::new(&ids, &offsets).unwrap(), Pooling::Mean, &mut out)?;
    Ok(out)
}

#[test]
fn a_text_alone_is_what_it_is_in_a_batch() {
    let norms = Variant { head_norms: HeadNorms::Each, ..Variant::LLAMA };
    let texts = texts(&[1, 40, 0, 7, 33, 300, 39, 12, 8, 1100, 2]);
    for (mask, bf16, allowed) in [
        (Mask::FULL, false, 1e-5),
        (Mask::CAUSAL, false, 1e-5),
        (Mask::local(5), false, 1e-5),
        (Mask::sliding(9), false, 1e-5),
        (Mask::FULL, true, 2e-2),
    ] {
        let attention = attention(mask, 10, RopeStyle::Neox);
        let shape = Llama { attention, ..shape(2, 10, RopeStyle::Neox, norms) };
        let device = CandleDevice { bf16, ..Device::Cpu.into() };
        let model = Transformer::load(Candle::new(device), &shape, &Made).unwrap();
        for pooling in [Pooling::Mean, Pooling::Last] {
            let together = encode(&model, &texts, pooling);
            for (text, row) in texts.iter().zip(together.chunks(36)) {
                let error = furthest(&encode(&model, std::slice::from_ref(text), pooling), row);
                assert!(error <= allowed, "{mask:?} {bf16} {pooling:?} {}: {error}", text.len());
            }
        }
    }
}

#[test]
fn bfloat16_halves_the_weights_of_layers() {
    let texts = texts(&[5, 60, 13]);
    let (exact, rounded) = (plain(), on(CandleDevice { bf16: true, ..Device::Cpu.into() }));
    assert_eq!((exact.dtype(), rounded.dtype()), ("float32", "bfloat16"));
    assert_eq!(exact.device_bytes(), exact.memory_bytes());
    assert!(rounded.device_bytes() < exact.device_bytes() * 3 / 4);
    let error = furthest(&encode(&rounded, &texts, Pooling::Mean), &encode(&exact, &texts, Pooling::Mean));
    assert!(error > 0.0 && error <= 0.15, "{error}");
}

#[test]
fn a_batch_without_memory_is_halved() {
    let texts = texts(&[30, 60, 20, 0, 90, 5, 70]);
    let model = plain();
    let expected = encode(&model, &texts, Pooling::Mean);
    model.backend.faults.most_tokens.store(95, Ordering::Relaxed);
    model.backend.faults.passes.store(0, Ordering::Relaxed);
    let halved = attempt(&model, &texts).unwrap();
    assert!(furthest(&halved, &expected) <= 1e-5);
    assert!(model.backend.faults.passes.load(Ordering::Relaxed) > 3);
}

#[test]
fn idle_models_are_unloaded_before_a_batch_is_halved() {
    let texts = texts(&[30, 60]);
    let expected = encode(&plain(), &texts, Pooling::Mean);
    let (device, asked) = relieved(2);
    let model = on(device);
    model.backend.faults.next.store(2, Ordering::Relaxed);
    assert!(furthest(&attempt(&model, &texts).unwrap(), &expected) <= 1e-5);
    let passes = model.backend.faults.passes.load(Ordering::Relaxed);
    assert_eq!((asked.load(Ordering::Relaxed), passes), (2, 3), "the whole batch, three times");
}

#[test]
fn a_text_without_memory_fails_and_the_next_does_not() {
    let texts = texts(&[30, 60, 8]);
    let (device, _) = relieved(0);
    let model = on(device);
    let expected = attempt(&model, &texts).unwrap();
    model.backend.faults.most_tokens.store(40, Ordering::Relaxed);
    match attempt(&model, &texts) {
        Err(error @ Error::DeviceMemory { .. }) => assert!(error.to_string().contains("cuda:3"), "{error}"),
        other => panic!("{other:?}"),
    }
    model.backend.faults.most_tokens.store(usize::MAX, Ordering::Relaxed);
    assert_eq!(attempt(&model, &texts).unwrap(), expected);
}

#[test]
fn a_cache_is_as_before_after_a_pass_without_memory() {
    let (device, asked) = relieved(1);
    let model = on(device);
    let text: Vec<u32> = (1..20).collect();
    let mut cache = model.new_cache(0).unwrap();
    let mut write = |tokens: &[u32]| {
        let mut logits = vec![f32::NAN; model.vocabulary()];
        let length = text.len();
        let step = Step { cache: &mut cache, tokens, prompt: length, length, logits: 1 };
        Decoder::forward(&model, &mut [step], &mut logits).map(|()| logits)
    };
    write(&text[..7]).unwrap();
    // The second fault finds nothing more to free.
    model.backend.faults.next.store(2, Ordering::Relaxed);
    assert!(matches!(write(&text[7..]), Err(Error::DeviceMemory { .. })));
    let after = write(&text[7..]).unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    let (mut whole, whole_model) = (vec![f32::NAN; model.vocabulary()], plain());
    let mut fresh = whole_model.new_cache(0).unwrap();
    let length = text.len();
    let step = Step { cache: &mut fresh, tokens: &text, prompt: length, length, logits: 1 };
    Decoder::forward(&whole_model, &mut [step], &mut whole).unwrap();
    assert!(furthest(&after, &whole) <= 1e-5);
}
