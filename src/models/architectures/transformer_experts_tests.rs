//! Layers with mixtures of experts, against candle, in windows, and over caches.

use serde_json::{Value, json};

use super::*;
use crate::compute::ExpertScores;
use crate::models::architectures::experts::{ExpertDefaults, Mixture};
use crate::models::architectures::lfm2::Lfm2;
use crate::models::architectures::{EmbeddingTensors, LayerTensors};

const SIGMOID: ExpertDefaults = ExpertDefaults {
    blocks: &["feed_forward"],
    scores: ExpertScores::Sigmoid,
    normalized: true,
    epsilon: 1e-6,
    choice_bias: true,
    ..ExpertDefaults::QWEN3
};
const SHARED: ExpertDefaults = ExpertDefaults { shared: Some(14), ..ExpertDefaults::QWEN3 };

fn mixture(defaults: &ExpertDefaults, layers: usize, config: Value) -> Option<Mixture> {
    Some(defaults.of_config(&serde_json::from_value(config).unwrap(), layers, 22).unwrap())
}

pub(super) fn models() -> Vec<Box<dyn Architecture>> {
    let llama = |experts| {
        let shape = shape(2, 10, RopeStyle::Neox, Variant::LLAMA);
        Box::new(Llama { experts, layers: 3, ..shape }) as Box<dyn Architecture>
    };
    let lfm2 = super::short_convolutions::model(3, true, &[false, true, false]);
    let sizes = json!({"num_experts": 9, "num_experts_per_tok": 3, "moe_intermediate_size": 22, "num_dense_layers": 1,
        "routed_scaling_factor": 1.5});
    vec![
        llama(mixture(
            &ExpertDefaults::QWEN3,
            3,
            json!({"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 13, "norm_topk_prob": true}),
        )),
        llama(mixture(
            &SHARED,
            3,
            json!({"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "mlp_only_layers": [1]}),
        )),
        llama(mixture(
            &ExpertDefaults::QWEN3,
            3,
            json!({"num_experts": 1, "num_experts_per_tok": 1, "moe_intermediate_size": 33}),
        )),
        Box::new(Lfm2 { experts: mixture(&SIGMOID, 3, sizes), ..lfm2 }),
    ]
}

#[test]
fn experts_agree_with_candle() {
    let texts = texts(&[1, 2, 0, 13, 70, 300, 5, 1100]);
    for described in models() {
        assert_agrees_within(&[(WeightFormat::F32, 3e-5)], &*described, &Made, &texts);
    }
}

/// What a text gives depends neither on the texts with it, nor on windows, nor on how it is cut into steps: to the bit.
#[test]
fn a_text_has_the_same_states_with_any_experts_at_work() {
    let (texts, short) = (texts(&[300, 257, 64, 40, 1]), self::texts(&[40, 5, 1]));
    // Tiles of bfloat16 are emulated on many CPUs, and weights of few bits are unpacked into them.
    let emulated = self::texts(&[130, 64, 40, 1]);
    let check = |model: &Transformer<Cpu>, texts: &[Vec<u32>], chunk: usize, of: &dyn Architecture| {
        let whole = encode(model, texts, Pooling::Last);
        for (text, row) in texts.iter().zip(whole.chunks(36)) {
            assert_eq!(encode(model, std::slice::from_ref(text), Pooling::Last), row, "{of:?}");
        }
        assert!(in_chunks(model, texts, chunk) == whole, "{} {chunk} {of:?}", model.dtype());
    };
    for described in models() {
        let load = |isa, format| Transformer::load(Cpu::new(isa, format), &*described, &Made).unwrap();
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4] {
            let model = load(Isa::best(), format);
            check(&model, if format == WeightFormat::F32 { &texts } else { &emulated }, 97, &*described);
            check(&model, &short, 1, &*described);
        }
        check(&load(Isa::Portable, WeightFormat::Int8), &short, 7, &*described);
        let model = load(Isa::best(), WeightFormat::F32);
        let long = self::texts(&[2500, 1500]);
        let whole = encode(&model, &long, Pooling::Last);
        assert!(in_chunks(&model, &long, 1300) == whole, "{described:?}");
    }
}

#[test]
fn experts_are_for_blocks_that_begin_with_their_norm() {
    #[derive(Debug)]
    struct ParallelExperts(Box<dyn Architecture>);
    impl Architecture for ParallelExperts {
        fn describe(&self) -> Description {
            self.0.describe()
        }
        fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
            self.0.embeddings(tensors)
        }
        fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
            self.0.layer(tensors, index)
        }
        fn has_parallel_blocks(&self) -> bool {
            true
        }
    }
    let described = ParallelExperts(models().remove(0));
    let cpu = Cpu::new(Isa::best(), WeightFormat::F32);
    let error = Transformer::load(cpu, &described, &Made).err().unwrap();
    assert!(matches!(&error, Error::Internal { .. }) && error.to_string().contains("experts"), "{error}");
}
