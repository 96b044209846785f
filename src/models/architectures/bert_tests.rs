//! Random models of awkward shapes, on our kernels and on candle.

use std::collections::HashMap;

use candle_core::Device;
use proptest::prelude::*;

use super::*;
use crate::Error;
use crate::compute::{
    Backend, Candle, Cpu, DType, Isa, LONGEST_HEAD, Matrix, PackedBatch, Weight, WeightFormat,
};
use crate::models::architectures::LARGEST_SIZE;
use crate::models::architectures::{self, Transformer};
use crate::models::{Pooling, SentenceEncoder};

/// Tensors made up as they are asked for, all from their names.
struct Made {
    old_names: bool,
    prefix: &'static str,
    replaced: HashMap<&'static str, Weight>,
}

impl Made {
    fn new() -> Self {
        Self { old_names: false, prefix: "", replaced: HashMap::new() }
    }
}

impl Tensors for Made {
    fn contains(&self, name: &str) -> bool {
        let old = name.ends_with("gamma") || name.ends_with("beta");
        name.starts_with(self.prefix) && (!old || self.old_names)
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        self.made(name, &shape).map(Matrix::Plain)
    }

    fn vector(&self, name: &str, length: usize) -> Result<Weight> {
        self.made(name, &[length])
    }
}

impl Made {
    fn made(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        assert!(self.contains(name), "{name}");
        let name = name[self.prefix.len()..].replace("gamma", "weight").replace("beta", "bias");
        if let Some(weight) = self.replaced.get(name.as_str()) {
            return Ok(weight.clone());
        }
        let mut state = name
            .bytes()
            .fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619))
            | 1;
        let norm = name.contains("LayerNorm.weight");
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let x = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            if norm { 1.0 + 0.1 * x } else { 0.3 * x }
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
        Weight::from_f32(&values, shape)
    }
}

fn read(json: &str) -> Result<Box<dyn Architecture>> {
    let mut config = serde_json::json!({
        "model_type": "bert", "vocab_size": 50, "hidden_size": 36, "num_hidden_layers": 2,
        "num_attention_heads": 3, "intermediate_size": 70, "max_position_embeddings": 400,
    });
    let changes: serde_json::Value = serde_json::from_str(json).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let family = architectures::find(config["model_type"].as_str().unwrap()).unwrap();
    family.read_config(&ConfigFile { model: "made", path: "config.json".as_ref(), json: &config })
}

fn config(json: &str) -> Box<dyn Architecture> {
    read(json).unwrap()
}

fn load<B: Backend>(backend: B, config: &dyn Architecture) -> Transformer<B> {
    Transformer::load(backend, config, &Made::new()).unwrap()
}

fn encode(model: &impl SentenceEncoder, texts: &[Vec<u32>], pooling: Pooling) -> Vec<f32> {
    let (mut ids, mut offsets) = (Vec::new(), vec![0]);
    for text in texts {
        ids.extend(text);
        offsets.push(ids.len() as u32);
    }
    let mut out = vec![f32::NAN; texts.len() * model.width()];
    model.encode(&PackedBatch::new(&ids, &offsets).unwrap(), pooling, &mut out).unwrap();
    out
}

fn texts(lengths: &[usize]) -> Vec<Vec<u32>> {
    let text =
        |(i, &length): (usize, &usize)| (0..length).map(|j| ((i * 31 + j * 17 + 3) % 50) as u32).collect();
    lengths.iter().enumerate().map(text).collect()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn our_kernels_agree_with_candle() {
    let texts = texts(&[1, 2, 13, 0, 14, 33, 300, 15]);
    for json in [
        "{}",
        r#"{"hidden_act": "gelu_new", "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}"#,
        r#"{"hidden_act": "relu", "hidden_size": 21, "layer_norm_eps": 1e-3, "num_hidden_layers": 1}"#,
        r#"{"model_type": "xlm-roberta", "pad_token_id": 1, "type_vocab_size": 1, "num_hidden_layers": 3}"#,
        r#"{"type_vocab_size": 0, "num_hidden_layers": 0}"#,
    ] {
        let config = config(json);
        let plain = load(Candle::new(Device::Cpu), &*config);
        for isa in Isa::available() {
            for (dtype, allowed) in [(DType::F32, 1e-5), (DType::Bf16, 0.1)] {
                let model = load(Cpu::new(isa, dtype), &*config);
                for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Last] {
                    let error =
                        difference(&encode(&model, &texts, pooling), &encode(&plain, &texts, pooling));
                    assert!(error <= allowed, "{isa} {dtype:?} {pooling:?} {json}: {error}");
                }
            }
        }
    }
}

#[test]
fn a_text_does_not_depend_on_its_batch_mates_to_the_last_bit() {
    let texts = texts(&[5, 18, 1, 77, 300, 40, 14, 15, 16, 28]);
    for isa in Isa::available() {
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let model = load(Cpu::new(isa, format), &*config("{}"));
            for pooling in [Pooling::Mean, Pooling::Cls] {
                let together = encode(&model, &texts, pooling);
                for (text, row) in texts.iter().zip(together.chunks(36)) {
                    assert!(encode(&model, std::slice::from_ref(text), pooling) == row, "{isa} {format:?}");
                }
            }
        }
    }
}

#[test]
fn a_padding_id_inside_a_text_has_its_own_position() {
    assert_eq!(Positions::AfterPadding(1).of(&[0, 5, 1, 6]).collect::<Vec<_>>(), [2, 3, 1, 4]);
    assert_eq!(Positions::FromZero.of(&[0, 5, 1, 6]).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn all_names_of_the_same_tensors_are_found() {
    let config = config("{}");
    let plain = encode(&load(Cpu::new(Isa::Portable, DType::F32), &*config), &texts(&[9]), Pooling::Max);
    for (old_names, prefix) in [(true, ""), (false, "bert."), (true, "roberta.")] {
        let made = Made { old_names, prefix, ..Made::new() };
        let model = Transformer::load(Cpu::new(Isa::Portable, DType::F32), &*config, &made).unwrap();
        assert!(encode(&model, &texts(&[9]), Pooling::Max) == plain);
    }
}

#[test]
fn what_is_not_supported_is_said() {
    for (json, word) in [
        (r#"{"hidden_act": "quick_gelu"}"#, "gelu_new"),
        (r#"{"position_embedding_type": "relative_key"}"#, "absolute"),
        (r#"{"num_attention_heads": 5}"#, "heads"),
        (r#"{"num_attention_heads": 0}"#, "heads"),
    ] {
        let error = read(json).err().unwrap();
        assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains(word), "{error}");
    }
}

#[test]
fn sizes_are_bounded_before_any_tensor_is_asked_for() {
    let sizes = |json: &str| match read(json) {
        Ok(_) => String::new(),
        Err(Error::Unsupported { reason, .. }) => reason,
        Err(other) => panic!("{json}: {other}"),
    };
    let most = LARGEST_SIZE;
    for (key, zero) in [
        ("vocab_size", false),
        ("hidden_size", false),
        ("num_hidden_layers", true),
        ("intermediate_size", false),
        ("max_position_embeddings", false),
        ("type_vocab_size", true),
    ] {
        let bounded = &format!("its {key} is ");
        let of = |n: usize| sizes(&format!(r#"{{"{key}": {n}, "num_attention_heads": {}}}"#, n.max(1)));
        assert_eq!(of(0).contains(bounded), !zero, "{key}");
        assert!(of(most + 1).contains(bounded) && of(usize::MAX).contains(bounded), "{key}");
        assert!(!of(most).contains(bounded), "{key}");
    }
    let of = |width: usize| sizes(&format!(r#"{{"hidden_size": {}, "num_attention_heads": 3}}"#, 3 * width));
    assert_eq!(of(LONGEST_HEAD), "");
    assert!(of(LONGEST_HEAD + 1).contains("513 wide"), "{}", of(LONGEST_HEAD + 1));
}

#[test]
fn bad_requests_are_refused_and_change_nothing() {
    let config = config(r#"{"model_type": "roberta", "max_position_embeddings": 12}"#);
    let model = load(Cpu::new(Isa::best(), DType::F32), &*config);
    assert_eq!((model.width(), model.dtype()), (36, "float32"));
    assert!(model.memory_bytes() > 4 * 36 * 36 * 8);
    let before = encode(&model, &texts(&[10, 3]), Pooling::Mean);
    let refused = |ids: &[u32], room: usize| {
        let offsets = [0, ids.len() as u32];
        let mut out = vec![0.0; room];
        let result = model.encode(&PackedBatch::new(ids, &offsets).unwrap(), Pooling::Mean, &mut out);
        assert!(matches!(result, Err(Error::Input(_))), "{result:?}");
    };
    refused(&[3; 11], 36);
    refused(&[50], 36);
    refused(&[3], 35);
    assert!(encode(&model, &texts(&[10, 3]), Pooling::Mean) == before);
    let mut nothing = [];
    model.encode(&PackedBatch::new(&[], &[0]).unwrap(), Pooling::Mean, &mut nothing).unwrap();
}

#[test]
fn damaged_weights_show_in_every_vector() {
    for dtype in [DType::F32, DType::Bf16] {
        let mut made = Made::new();
        let damaged = Weight::from_f32(&[f32::NAN; 70], &[70]).unwrap();
        made.replaced.insert("encoder.layer.0.intermediate.dense.bias", damaged);
        let model = Transformer::load(Cpu::new(Isa::best(), dtype), &*config("{}"), &made).unwrap();
        assert!(encode(&model, &texts(&[4, 20]), Pooling::Mean).iter().all(|x| x.is_nan()), "{dtype:?}");
    }
}

#[test]
fn many_callers_at_once_get_their_own_vectors() {
    let model = load(Cpu::new(Isa::best(), DType::F32), &*config("{}"));
    let texts = texts(&[5, 18, 1, 77, 30, 40, 14, 15]);
    let expected = encode(&model, &texts, Pooling::Mean);
    std::thread::scope(|scope| {
        for (text, row) in texts.iter().zip(expected.chunks(36)).cycle().take(24) {
            let model = &model;
            scope.spawn(move || {
                for _ in 0..10 {
                    assert!(encode(model, std::slice::from_ref(text), Pooling::Mean) == row);
                }
            });
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn models_of_any_shape_agree_with_candle(
        heads in 1_usize..5, width in 1_usize..20, wide in 1_usize..90,
        lengths in proptest::collection::vec(0_usize..60, 0..9),
    ) {
        let json = format!(r#"{{"hidden_size": {}, "num_attention_heads": {heads}, "intermediate_size": {wide}}}"#, heads * width);
        let config = config(&json);
        let texts = texts(&lengths);
        let plain = encode(&load(Candle::new(Device::Cpu), &*config), &texts, Pooling::Mean);
        for isa in Isa::available() {
            let ours = encode(&load(Cpu::new(isa, DType::F32), &*config), &texts, Pooling::Mean);
            // A width of 1 or 2 normalizes differences of rounding up to anything.
            prop_assert!(heads * width < 4 || difference(&ours, &plain) <= 2e-5, "{isa} {json} {lengths:?}");
        }
    }
}
