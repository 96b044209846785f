//! The committed Qwen3-Embedding against transformers, and random models of awkward shapes against candle.

use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QTensor};

use super::*;
use crate::compute::{
    Candle, Cpu, Heads, Isa, LayerAttention, Mask, RopeStyle, Rotary, Weight, WeightFormat,
};
use crate::models::architectures::llama::{HeadNorms, Llama, Variant};
use crate::models::architectures::{Factors, GgufTensors};
use crate::models::formats::gguf::tests::Writer;
use crate::models::{Encoder, ModelConfig, ModelFiles, ModelKind, Overrides, Weights, on_cpu, on_device};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/qwen3_embedding")
}

fn files() -> ModelFiles {
    ModelFiles::open("qwen", &folder()).unwrap()
}

/// Ids and expected vectors of every case.
fn cases() -> Vec<(Vec<u32>, Vec<f32>)> {
    #[derive(serde::Deserialize)]
    struct Case {
        ids: Vec<u32>,
        embedding: Vec<f32>,
    }
    let json: serde_json::Value = crate::models::json::read_json(&folder().join("reference.json")).unwrap();
    let mut all: Vec<Case> = serde_json::from_value(json["cases"].clone()).unwrap();
    all.extend(serde_json::from_value::<Vec<Case>>(json["prompted"].clone()).unwrap());
    assert!(all.len() > 20);
    all.into_iter().map(|case| (case.ids, case.embedding)).collect()
}

fn packed(texts: &[Vec<u32>]) -> (Vec<u32>, Vec<u32>) {
    let mut offsets = vec![0];
    for text in texts {
        offsets.push(offsets.last().unwrap() + text.len() as u32);
    }
    (texts.concat(), offsets)
}

fn encode(model: &dyn SentenceEncoder, texts: &[Vec<u32>], pooling: Pooling) -> Vec<f32> {
    encode_hiding(model, texts, &[], pooling)
}

/// The same, of texts whose last tokens, as many as `hidden` says, are hidden from the others.
fn encode_hiding(
    model: &dyn SentenceEncoder,
    texts: &[Vec<u32>],
    hidden: &[u32],
    pooling: Pooling,
) -> Vec<f32> {
    let (ids, offsets) = packed(texts);
    let mut out = vec![f32::NAN; texts.len() * model.width()];
    let batch = PackedBatch { hidden, ..PackedBatch::new(&ids, &offsets).unwrap() };
    model.encode(&batch, pooling, &mut out).unwrap();
    out
}

fn vectors(encoder: &Encoder, texts: &[Vec<u32>]) -> Vec<f32> {
    let (ids, offsets) = packed(texts);
    let mut out = vec![0.0; texts.len() * encoder.width()];
    encoder.encode(&PackedBatch::new(&ids, &offsets).unwrap(), &mut out).unwrap();
    out
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The least cosine between rows.
fn closest(a: &[f32], b: &[f32], width: usize) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let rows = a.chunks(width).zip(b.chunks(width));
    rows.map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).fold(1.0, f64::min)
}

fn load(files: &ModelFiles, isa: Isa, format: impl Into<WeightFormat>) -> Encoder {
    let format = format.into();
    let build = |config: &ModelConfig, weights: &Weights| on_cpu(config, weights, isa, format);
    Encoder::load(files, Overrides::default(), &build).unwrap()
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let (texts, expected): (Vec<_>, Vec<_>) = cases().into_iter().unzip();
    let expected = expected.concat();
    for isa in Isa::available() {
        let error = furthest(&vectors(&load(&files(), isa, WeightFormat::F32), &texts), &expected);
        assert!(error <= 1e-5, "{isa}: {error}");
        // Of 32 dimensions: in a model of the usual size the errors of codes average out.
        for (format, least) in [(WeightFormat::Bf16, 0.9998), (WeightFormat::Int8, 0.997)] {
            let cosine = closest(&vectors(&load(&files(), isa, format), &texts), &expected, 32);
            assert!(cosine >= least, "{isa} {format:?}: {cosine}");
        }
    }
    let build = |config: &ModelConfig, weights: &Weights| on_device(config, weights, Device::Cpu);
    let plain = Encoder::load(&files(), Overrides::default(), &build).unwrap();
    assert!(furthest(&vectors(&plain, &texts), &expected) <= 1e-5);
}

#[test]
fn a_text_does_not_depend_on_its_batch_mates() {
    let (mut texts, _): (Vec<_>, Vec<_>) = cases().into_iter().unzip();
    texts.truncate(7);
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4] {
        let encoder = load(&files(), Isa::best(), format);
        let together = vectors(&encoder, &texts);
        for (text, row) in texts.iter().zip(together.chunks(32)) {
            assert_eq!(vectors(&encoder, std::slice::from_ref(text)), row, "{format:?}");
        }
    }
}

/// Tensors made up as they are asked for, all from their names.
struct Made;

fn made(name: &str, count: usize) -> Vec<f32> {
    let mut state =
        name.bytes().fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619))
            | 1;
    let norm = name.contains("norm");
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let x = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
        if norm { 1.0 + 0.1 * x } else { 0.3 * x }
    };
    (0..count).map(|_| next()).collect()
}

impl Tensors for Made {
    fn contains(&self, _name: &str) -> bool {
        true
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        Ok(Weight::from_f32(&made(name, shape[0] * shape[1]), &shape)?.into())
    }

    fn vector(&self, name: &str, length: usize) -> Result<Weight> {
        Weight::from_f32(&made(name, length), &[length])
    }

    fn stacked(&self, name: &str, shape: [usize; 3]) -> Result<Matrix> {
        self.matrix(name, [shape[0] * shape[1], shape[2]])
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        Weight::from_f32(&made(name, shape.iter().product()), shape)
    }
}

fn attention(mask: Mask, width: usize, style: RopeStyle) -> Vec<LayerAttention> {
    vec![LayerAttention::new(mask).with_rotary(Rotary::new(10_000.0, width, style))]
}

fn shape(kv_heads: usize, head: usize, style: RopeStyle, variant: Variant) -> Llama {
    Llama {
        experts: None,
        hidden: 36,
        intermediate: 50,
        layers: 2,
        heads: 4,
        kv_heads,
        head,
        vocabulary: 40,
        context: 5000,
        epsilon: 1e-6,
        tied: true,
        activation: Activation::Silu,
        xielu: None,
        factors: Factors::default(),
        attention: attention(Mask::CAUSAL, head, style),
        variant,
    }
}

fn texts(lengths: &[usize]) -> Vec<Vec<u32>> {
    let text = |(i, &length): (usize, &usize)| {
        (0..length).map(|j| ((i * 31 + j * j * 17 + 3) % 40) as u32).collect()
    };
    lengths.iter().enumerate().map(text).collect()
}

/// Vectors of our kernels are those of candle's operations, on every instruction set. Only the best one computes all texts,
/// the others the first five.
fn assert_agrees_with_candle(described: &dyn Architecture, texts: &[Vec<u32>]) {
    let formats = [(WeightFormat::F32, 3e-5), (WeightFormat::Bf16, 0.25)];
    assert_agrees_within(&formats, described, &Made, texts);
}

/// The same in these number formats, with the error that is allowed in each.
fn assert_agrees_within(
    formats: &[(WeightFormat, f32)],
    described: &dyn Architecture,
    tensors: &dyn Tensors,
    texts: &[Vec<u32>],
) {
    let plain = Transformer::load(Candle::new(Device::Cpu), described, tensors).unwrap();
    for isa in Isa::available() {
        for &(dtype, allowed) in formats {
            let model = Transformer::load(Cpu::new(isa, dtype), described, tensors).unwrap();
            let texts = if isa == Isa::best() { texts } else { &texts[..5] };
            for pooling in [Pooling::Last, Pooling::Cls, Pooling::Mean] {
                let ours = encode(&model, texts, pooling);
                let error = furthest(&ours, &encode(&plain, texts, pooling));
                assert!(error <= allowed, "{isa} {dtype:?} {pooling:?} {described:?}: {error}");
            }
        }
    }
}

#[test]
fn awkward_shapes_agree_with_candle() {
    let norms = Variant { head_norms: HeadNorms::Each, ..Variant::LLAMA };
    let biases = Variant { qkv_bias: true, output_bias: true, mlp_bias: true, ..Variant::LLAMA };
    let texts = texts(&[1, 2, 0, 13, 77, 300, 5]);
    for shape in [
        shape(2, 10, RopeStyle::Neox, norms),
        shape(4, 16, RopeStyle::Interleaved, Variant::LLAMA),
        shape(1, 6, RopeStyle::Neox, biases),
        Llama {
            attention: attention(Mask::FULL, 10, RopeStyle::Neox),
            ..shape(2, 10, RopeStyle::Neox, norms)
        },
    ] {
        let plain = Transformer::load(Candle::new(Device::Cpu), &shape, &Made).unwrap();
        for isa in Isa::available() {
            for (dtype, allowed) in [(WeightFormat::F32, 2e-5), (WeightFormat::Bf16, 0.15)] {
                let model = Transformer::load(Cpu::new(isa, dtype), &shape, &Made).unwrap();
                for pooling in [Pooling::Last, Pooling::Mean] {
                    let error = furthest(&encode(&model, &texts, pooling), &encode(&plain, &texts, pooling));
                    assert!(error <= allowed, "{isa} {dtype:?} {pooling:?} {shape:?}: {error}");
                }
            }
        }
    }
}

/// 2,500 tokens cross the edges of windows; what they are worth does not depend on where those edges are.
#[test]
fn long_texts_are_taken_through_in_windows() {
    let norms = Variant { head_norms: HeadNorms::Each, ..Variant::LLAMA };
    let causal = Llama { layers: 1, ..shape(2, 10, RopeStyle::Neox, norms) };
    let texts = texts(&[30, 2500, 1100, 7]);
    // In both directions there are no windows, but the lengths are the same.
    let full = attention(Mask::FULL, 10, RopeStyle::Neox);
    for shape in [causal.clone(), Llama { attention: full, ..causal }] {
        long_texts(&shape, &texts);
    }
}

fn long_texts(shape: &Llama, texts: &[Vec<u32>]) {
    let plain = Transformer::load(Candle::new(Device::Cpu), shape, &Made).unwrap();
    let expected = encode(&plain, texts, Pooling::Last);
    for (dtype, allowed) in [(WeightFormat::F32, 2e-5), (WeightFormat::Bf16, 0.15)] {
        let model = Transformer::load(Cpu::new(Isa::best(), dtype), shape, &Made).unwrap();
        let together = encode(&model, texts, Pooling::Last);
        assert!(furthest(&together, &expected) <= allowed, "{dtype:?}");
        for (text, row) in texts.iter().zip(together.chunks(36)) {
            assert_eq!(encode(&model, std::slice::from_ref(text), Pooling::Last), row, "{dtype:?}");
        }
    }
}

/// The last states of `texts`, read into caches `chunk` tokens at a time, all texts in one pass.
fn in_chunks<B: Backend>(model: &Transformer<B>, texts: &[Vec<u32>], chunk: usize) -> Vec<f32> {
    let width = model.width();
    let mut caches: Vec<_> = texts.iter().map(|_| model.new_cache(0).unwrap()).collect();
    let mut states = vec![f32::NAN; texts.len() * width];
    for first in (0..texts.iter().map(Vec::len).max().unwrap()).step_by(chunk) {
        let (mut steps, mut ending) = (Vec::new(), Vec::new());
        for (index, (text, cache)) in texts.iter().zip(&mut caches).enumerate() {
            if first < text.len() {
                let tokens = &text[first..text.len().min(first + chunk)];
                let needs_logits = first + chunk >= text.len();
                ending.extend(needs_logits.then_some(index));
                let length = text.len();
                steps.push(Step { cache, tokens, prompt: length, length, logits: usize::from(needs_logits) });
            }
        }
        let mut out = vec![f32::NAN; ending.len() * width];
        let forward = |pass: &mut B::Pass<'_>, out: &mut [f32]| {
            let x = model.forward(pass, Some(Row::Last))?;
            pass.for_each_sequence(x, model.final_norm.as_ref(), &mut |index, rows| {
                if let (Some(out), Some(row)) = (out.chunks_mut(width).nth(index), rows.iter().next()) {
                    out.copy_from_slice(row);
                }
            })
        };
        // Without others that need none, rows are numbered as sequences are.
        if ending.len() == steps.len() {
            model.backend.run_cached(&mut steps, width, &mut out, &forward).unwrap();
        } else {
            for (step, row) in steps.iter_mut().zip(0..) {
                let mut state = vec![0.0; step.logits * width];
                model.backend.run_cached(std::slice::from_mut(step), width, &mut state, &forward).unwrap();
                if let Some(place) = ending.iter().position(|&index| index == row) {
                    out[place * width..][..width].copy_from_slice(&state);
                }
            }
        }
        for (index, row) in ending.into_iter().zip(out.chunks(width)) {
            states[index * width..][..width].copy_from_slice(row);
        }
    }
    assert!(caches.iter().zip(texts).all(|(cache, text)| cache.len() == text.len()));
    states
}

/// A cache changes nothing, to the last bit: across the edges of blocks, of pages and of windows.
#[test]
fn states_after_a_cache_are_those_of_the_whole_text() {
    let norms = Variant { head_norms: HeadNorms::Each, ..Variant::LLAMA };
    let texts = texts(&[600, 257, 40, 1]);
    for shape in [shape(2, 10, RopeStyle::Neox, norms), shape(1, 6, RopeStyle::Interleaved, norms)] {
        for isa in Isa::available() {
            for dtype in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
                let model = Transformer::load(Cpu::new(isa, dtype), &shape, &Made).unwrap();
                let whole = encode(&model, &texts, Pooling::Last);
                for chunk in [600, 97, 3] {
                    assert!(in_chunks(&model, &texts, chunk) == whole, "{isa} {dtype:?} {chunk}");
                }
            }
        }
        let plain = Transformer::load(Candle::new(Device::Cpu), &shape, &Made).unwrap();
        let (whole, parts) = (encode(&plain, &texts, Pooling::Last), in_chunks(&plain, &texts, 97));
        assert!(furthest(&parts, &whole) < 1e-5);
    }
    let one = Llama { layers: 1, ..shape(2, 10, RopeStyle::Neox, norms) };
    let model = Transformer::load(Cpu::new(Isa::best(), WeightFormat::Bf16), &one, &Made).unwrap();
    let long = self::texts(&[2500]);
    assert!(in_chunks(&model, &long, 1300) == encode(&model, &long, Pooling::Last));
}

#[test]
fn bad_requests_are_refused() {
    let shape = Llama { context: 10, ..shape(2, 10, RopeStyle::Neox, Variant::LLAMA) };
    let model = Transformer::load(Cpu::new(Isa::best(), WeightFormat::F32), &shape, &Made).unwrap();
    assert_eq!((model.width(), model.dtype()), (36, "float32"));
    for (ids, room) in [(vec![3; 11], 36), (vec![40], 36), (vec![3], 35)] {
        let offsets = [0, ids.len() as u32];
        let result =
            model.encode(&PackedBatch::new(&ids, &offsets).unwrap(), Pooling::Last, &mut vec![0.0; room]);
        assert!(matches!(result, Err(Error::Input(_))), "{result:?}");
    }
}

/// The fixture as a GGUF file: matrices whose rows are whole blocks in Q8_0, as converters write them.
fn gguf(change: impl FnOnce(Writer) -> Writer) -> (tempfile::TempDir, PathBuf) {
    let weights = Weights::open(&files().weights).unwrap();
    let config: serde_json::Value = crate::models::json::read_json(&folder().join("config.json")).unwrap();
    let tokenizer: serde_json::Value =
        crate::models::json::read_json(&folder().join("tokenizer.json")).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap() as u32;
    let size = number("vocab_size") as usize;
    let (mut pieces, mut types) = (vec![String::new(); size], vec![1; size]);
    for (piece, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        pieces[id.as_u64().unwrap() as usize] = piece.clone();
    }
    for token in tokenizer["added_tokens"].as_array().unwrap() {
        let id = token["id"].as_u64().unwrap() as usize;
        pieces[id] = token["content"].as_str().unwrap().into();
        types[id] = 3;
    }
    let merge = |merge: &serde_json::Value| match merge {
        serde_json::Value::Array(pair) => {
            format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())
        }
        text => text.as_str().unwrap().to_owned(),
    };
    let merges: Vec<String> = tokenizer["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    let mut writer = Writer::default()
        .text("general.architecture", "qwen3")
        .number("qwen3.embedding_length", number("hidden_size"))
        .number("qwen3.feed_forward_length", number("intermediate_size"))
        .number("qwen3.block_count", number("num_hidden_layers"))
        .number("qwen3.attention.head_count", number("num_attention_heads"))
        .number("qwen3.attention.head_count_kv", number("num_key_value_heads"))
        .number("qwen3.attention.key_length", number("head_dim"))
        .number("qwen3.context_length", number("max_position_embeddings"))
        .float("qwen3.rope.freq_base", 1_000_000.0)
        .float("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "qwen2")
        .texts("tokenizer.ggml.tokens", &pieces)
        .integers("tokenizer.ggml.token_type", &types)
        .texts("tokenizer.ggml.merges", &merges);
    let mut names: Vec<&str> = weights.names().collect();
    names.sort_unstable();
    for name in names {
        let (weight, shape) = (weights.get(name).unwrap(), weights.shape(name).unwrap().to_vec());
        let name = GgufTensors::renamed(&format!("model.{name}"));
        let values = weight.to_f32().unwrap();
        let (kind, bytes) = if shape.len() == 2 && shape[1].is_multiple_of(32) {
            let tensor = candle_core::Tensor::from_slice(&values, &shape[..], &Device::Cpu).unwrap();
            let coded = QTensor::quantize(&tensor, GgmlDType::Q8_0).unwrap();
            (8, coded.data().unwrap().into_owned())
        } else {
            (0, values.iter().flat_map(|x| x.to_le_bytes()).collect())
        };
        writer = writer.tensor(&name, &shape, kind, &bytes);
    }
    change(writer).write()
}

fn whole(writer: Writer) -> Writer {
    writer
        .number("qwen3.pooling_type", 3)
        .number("tokenizer.ggml.eos_token_id", 316)
        .flag("tokenizer.ggml.add_eos_token", true)
}

#[test]
fn a_gguf_file_is_a_whole_sentence_model() {
    let (_folder, path) = gguf(whole);
    let files = ModelFiles::gguf("m.gguf", path).unwrap();
    let (texts, expected): (Vec<_>, Vec<_>) = cases().into_iter().unzip();
    let weights = Weights::open(&files.weights).unwrap();
    let config = ModelConfig::read(&files, ModelKind::Embedding).unwrap();
    let exact = Transformer::load(Candle::new(Device::Cpu), &*config.architecture, &weights).unwrap();
    let mut exact = encode(&exact, &texts, Pooling::Last);
    exact.chunks_mut(32).for_each(crate::models::normalize);
    for isa in Isa::available() {
        for dtype in [WeightFormat::F32, WeightFormat::Bf16] {
            let encoder = load(&files, isa, dtype);
            assert_eq!((encoder.config.pooling, encoder.config.normalize), (Pooling::Last, true));
            assert_eq!((encoder.config.max_length, encoder.architecture.as_str()), (64, "qwen3"));
            let ours = vectors(&encoder, &texts);
            // Against the same weights, what is left is the rounding of activations; to the model, that of weights too.
            assert!(closest(&ours, &exact, 32) >= 0.999, "{isa} {dtype:?}: {}", closest(&ours, &exact, 32));
            let cosine = closest(&ours, &expected.concat(), 32);
            assert!(cosine >= 0.99, "{isa} {dtype:?}: {cosine}");
            assert!(ours.chunks(32).all(|row| (row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5));
        }
    }
    let encoder = load(&files, Isa::best(), WeightFormat::F32);
    let folder = load(&self::files(), Isa::best(), WeightFormat::F32);
    for text in ["Merhaba dünya, bugün hava çok güzel.", "a", "", "  iki  boşluk 123"] {
        let ids = encoder.tokenizer.encode(text, 24).unwrap();
        assert_eq!(ids, folder.tokenizer.encode(text, 24).unwrap(), "{text:?}");
        assert_eq!(ids.last(), Some(&316));
    }
}

#[test]
fn gguf_files_that_do_not_embed_are_refused() {
    let refused = |change: &dyn Fn(Writer) -> Writer| {
        let (_folder, path) = gguf(change);
        let files = ModelFiles::gguf("m.gguf", path).unwrap();
        let build =
            |config: &ModelConfig, weights: &Weights| on_cpu(config, weights, Isa::best(), WeightFormat::F32);
        Encoder::load(&files, Overrides::default(), &build).map(drop).unwrap_err().to_string()
    };
    let writes_text = refused(&|writer| writer);
    assert!(writes_text.contains("qwen3.pooling_type") && writes_text.contains("pooling="), "{writes_text}");
    let unknown = refused(&|writer| writer.number("qwen3.pooling_type", 4));
    assert!(unknown.contains("pooling_type is 4"), "{unknown}");
    let endless =
        |writer: Writer| writer.number("qwen3.pooling_type", 3).flag("tokenizer.ggml.add_eos_token", true);
    assert!(refused(&endless).contains("end token"));
    let outside = refused(&|writer| endless(writer).number("tokenizer.ggml.eos_token_id", 999));
    assert!(outside.contains("eos_token_id is 999, but it has"), "{outside}");
    let other = Writer::default().text("general.architecture", "mamba").write();
    let files = ModelFiles::gguf("m.gguf", other.1).unwrap();
    assert!(ModelConfig::read(&files, ModelKind::Embedding).unwrap_err().to_string().contains("\"mamba\""));
    assert!(ModelFiles::gguf("m.gguf", "/nowhere/m.gguf".into()).is_err());
}

#[test]
fn a_gguf_file_is_opened_once() {
    let (_folder, path) = gguf(whole);
    let files = ModelFiles::gguf("m", path.clone()).unwrap();
    let config = ModelConfig::read(&files, ModelKind::Embedding).unwrap();
    std::fs::remove_file(path).unwrap();
    let weights = config.weights(&files).unwrap();
    assert!(
        Transformer::load(Cpu::new(Isa::best(), WeightFormat::F32), &*config.architecture, &weights).is_ok()
    );
}

#[test]
fn every_truncation_of_a_gguf_file_is_an_error() {
    let (folder, path) = gguf(whole);
    let bytes = std::fs::read(&path).unwrap();
    let cut = folder.path().join("cut.gguf");
    for length in (1..bytes.len() - 32).step_by(997) {
        std::fs::write(&cut, &bytes[..length]).unwrap();
        let files = ModelFiles::gguf("cut", cut.clone()).unwrap();
        assert!(ModelConfig::read(&files, ModelKind::Embedding).is_err(), "{length} of {}", bytes.len());
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let weights = Weights::open(&files().weights).unwrap();
    let mut shape = shape(2, 12, RopeStyle::Neox, Variant { head_norms: HeadNorms::Each, ..Variant::LLAMA });
    (shape.hidden, shape.intermediate, shape.vocabulary, shape.layers) = (32, 48, 319, 3);
    let error = Transformer::load(Cpu::new(Isa::best(), WeightFormat::F32), &shape, &weights).err().unwrap();
    assert!(error.to_string().contains("layers.2."), "{error}");
    assert!(Tensors::contains(&weights, "layers.1.self_attn.q_proj.weight"));
}

#[path = "transformer_variant_tests.rs"]
mod variants;

#[path = "transformer_short_convolution_tests.rs"]
mod short_convolutions;

#[path = "transformer_experts_tests.rs"]
mod experts;

#[path = "transformer_post_norm_experts_tests.rs"]
mod post_norm_experts;

#[path = "transformer_form_tests.rs"]
mod forms;

#[path = "transformer_dynamic_convolution_tests.rs"]
mod dynamic_convolutions;

#[path = "transformer_layer_inputs_tests.rs"]
mod layer_inputs;

#[path = "transformer_shared_keys_tests.rs"]
mod shared_keys;

#[path = "transformer_gathered_tests.rs"]
mod gathered;

#[path = "transformer_device_tests.rs"]
mod devices;

#[path = "transformer_delta_rule_tests.rs"]
mod delta_rules;

#[path = "transformer_drafts_tests.rs"]
mod drafts;
