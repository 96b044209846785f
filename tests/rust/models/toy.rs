//! A program adds an architecture of its own: Llama's attention, and a perceptron of ReLU without a gate.

use candle_core::Device;
use model_manager::Result;
use model_manager::compute::{
    Activation, Biased, Heads, Isa, LayerAttention, Mask, Matrix, PackedBatch, Positions, RopeStyle, Rotary,
    WeightFormat,
};
use model_manager::generation::{ComputeTarget, GenerationParams, Generator, Prompt, TextFiles, TextModel};
use model_manager::models::architectures::{
    Architecture, Description, EmbeddingTensors, Factors, Family, LayerTensors, MixerTensors, MlpTensors,
    NormTensors, Tensors, find, register,
};
use model_manager::models::{ModelConfig, ModelFiles, ModelKind, Pooling, Weights, on_cpu, on_device};

use super::faults::{copy, write};

static TOY: Family = Family::new("toy", "Toy", &["vocab_size"], |_| Ok(Box::new(Toy)));

#[derive(Debug)]
struct Toy;

fn norm(tensors: &dyn Tensors, name: &str) -> Result<NormTensors> {
    Ok(NormTensors { scale: tensors.vector(&format!("{name}.weight"), 32)?, shift: None, epsilon: 1e-5 })
}

impl Architecture for Toy {
    fn describe(&self) -> Description {
        let rotary = Rotary::new(10_000.0, 8, RopeStyle::Neox);
        Description {
            hidden: 32,
            layers: 2,
            heads: Heads { heads: 4, kv_heads: 2, width: 8 },
            attention: vec![LayerAttention::new(Mask::CAUSAL).with_rotary(rotary)],
            vocabulary: 319,
            context: 64,
            activation: Activation::Relu,
            norm_first: true,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }
    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        self.head(tensors).map(EmbeddingTensors::new)
    }
    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let name = |rest: &str| format!("model.layers.{index}.{rest}");
        let part = |rest: &str, rows, columns| -> Result<Biased> {
            Ok((tensors.matrix(&name(&format!("{rest}_proj.weight")), [rows, columns])?, None))
        };
        Ok(LayerTensors {
            attention_norm: Some(norm(tensors, &name("input_layernorm"))?),
            mixer: MixerTensors::attention(vec![
                part("self_attn.q", 32, 32)?,
                part("self_attn.k", 16, 32)?,
                part("self_attn.v", 16, 32)?,
            ]),
            output: part("self_attn.o", 32, 32)?,
            output_norm: None,
            mlp_norm: Some(norm(tensors, &name("post_attention_layernorm"))?),
            mlp: MlpTensors::gated(
                part("mlp.gate", 48, 32)?,
                part("mlp.up", 48, 32)?,
                part("mlp.down", 32, 48)?,
            ),
            down_norm: None,
        })
    }
    fn final_norm(&self, tensors: &dyn Tensors) -> Result<Option<NormTensors>> {
        norm(tensors, "model.norm").map(Some)
    }
    fn head(&self, tensors: &dyn Tensors) -> Result<Matrix> {
        tensors.matrix("model.embed_tokens.weight", [319, 32])
    }
}

#[test]
fn an_architecture_is_one_description_for_vectors_and_text() {
    let folder = copy("llama");
    write(&folder, "config.json", r#"{"model_type": "toy", "vocab_size": 319}"#);
    let files = ModelFiles::open("toy", folder.path()).unwrap();
    assert!(ModelConfig::read(&files, ModelKind::Embedding).unwrap_err().to_string().contains("\"toy\""));
    register(&TOY).unwrap();
    assert!(register(&TOY).is_err() && find("toy").is_some());
    let config = ModelConfig::read(&files, ModelKind::Embedding).unwrap();
    let weights = Weights::open(&files.weights).unwrap();
    let ours = on_cpu(&config, &weights, Isa::best(), WeightFormat::F32).unwrap();
    let plain = on_device(&config, &weights, Device::Cpu).unwrap();
    let batch = PackedBatch::new(&[5, 80, 17, 200, 3, 3, 9], &[0, 4, 7]).unwrap();
    let vectors = [&ours, &plain].map(|model| {
        let mut out = vec![0.0; 64];
        model.encode(&batch, Pooling::Last, &mut out).unwrap();
        out
    });
    assert!(vectors[0].iter().zip(&vectors[1]).all(|(a, b)| (a - b).abs() < 1e-5));
    let answers =
        [ComputeTarget::Cpu(Isa::best()), ComputeTarget::Device(Device::Cpu.into())].map(|target| {
            let text = TextFiles::Folder(files.clone());
            let model = TextModel::open_on("toy", &text, WeightFormat::F32, &target).unwrap();
            let params = GenerationParams { max_new_tokens: Some(12), ..Default::default() };
            let generator = Generator::start(model, |_| ()).unwrap();
            generator.generate(Prompt::Text("Bugün hava"), params, &mut || Ok(())).unwrap().tokens
        });
    assert!(answers[0] == answers[1] && !answers[0].is_empty(), "{answers:?}");
}
