//! GPT-OSS: experts in four bits and in plain numbers, from folders and GGUF files.

use super::*;
use crate::models::formats::mxfp4;
use crate::models::weights::StoredTensor;

const LAYERS: usize = 2;
const HIDDEN: usize = 32;
/// Columns between the matrices of an expert.
const WIDE: usize = 64;
const EXPERTS: usize = 4;

/// The bytes of a tensor of bytes.
fn bytes(weights: &Weights, name: &str) -> Vec<u8> {
    let StoredTensor::Other { bytes, .. } = weights.stored(name).unwrap() else { panic!("{name}") };
    bytes.read(0..bytes.len(), &mut Vec::new()).unwrap().to_vec()
}

/// The blocks of each row of a matrix of all experts.
fn rows(weights: &Weights, name: &str, columns: usize) -> Vec<Vec<u8>> {
    let groups = columns / mxfp4::GROUP;
    let [codes, scales] = ["blocks", "scales"].map(|part| bytes(weights, &format!("{name}_{part}")));
    let each = codes.chunks(groups * mxfp4::CODES).zip(scales.chunks(groups));
    let blocks = |(codes, scales): (&[u8], &[u8])| {
        let mut blocks = vec![0; groups * mxfp4::BLOCK];
        mxfp4::write_blocks(codes, scales, &mut blocks).unwrap();
        blocks
    };
    each.map(blocks).collect()
}

/// The model as a converter writes it.
fn written() -> Writer {
    let files = ModelFiles::open("m", &folder("gpt_oss_mxfp4")).unwrap();
    let weights = Weights::open(&files.weights).unwrap();
    let mut writer = with_tokenizer(Writer::default())
        .text("general.architecture", "gpt-oss")
        .text("gpt-oss.rope.scaling.type", "yarn")
        .number("gpt-oss.block_count", LAYERS as u32)
        .number("gpt-oss.context_length", 64)
        .number("gpt-oss.embedding_length", HIDDEN as u32)
        .number("gpt-oss.feed_forward_length", WIDE as u32)
        .number("gpt-oss.expert_feed_forward_length", WIDE as u32)
        .number("gpt-oss.expert_count", EXPERTS as u32)
        .number("gpt-oss.expert_used_count", 2)
        .number("gpt-oss.attention.head_count", 4)
        .number("gpt-oss.attention.head_count_kv", 2)
        .number("gpt-oss.attention.key_length", 8)
        .number("gpt-oss.attention.value_length", 8)
        .number("gpt-oss.attention.sliding_window", 6)
        .number("gpt-oss.rope.scaling.original_context_length", 16)
        .float("gpt-oss.rope.scaling.factor", 4.0)
        .float("gpt-oss.rope.scaling.yarn_beta_fast", 32.0)
        .float("gpt-oss.rope.scaling.yarn_beta_slow", 1.0)
        .float("gpt-oss.rope.freq_base", 1000.0)
        .float("gpt-oss.attention.layer_norm_rms_epsilon", 1e-5);
    let mut put = |name: &str, renamed: &str| {
        let weight = weights.get(name).unwrap();
        let values = weight.to_f32().unwrap();
        writer = std::mem::take(&mut writer).tensor(renamed, weight.shape(), 0, &f32s(&values));
    };
    for (name, renamed) in
        [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")]
    {
        put(&format!("{name}.weight"), &format!("{renamed}.weight"));
    }
    for layer in 0..LAYERS {
        for (name, renamed) in [
            ("input_layernorm.weight", "attn_norm.weight"),
            ("post_attention_layernorm.weight", "post_attention_norm.weight"),
            ("self_attn.q_proj.weight", "attn_q.weight"),
            ("self_attn.k_proj.weight", "attn_k.weight"),
            ("self_attn.v_proj.weight", "attn_v.weight"),
            ("self_attn.o_proj.weight", "attn_output.weight"),
            ("self_attn.q_proj.bias", "attn_q.bias"),
            ("self_attn.k_proj.bias", "attn_k.bias"),
            ("self_attn.v_proj.bias", "attn_v.bias"),
            ("self_attn.o_proj.bias", "attn_output.bias"),
            ("self_attn.sinks", "attn_sinks.weight"),
            ("mlp.router.weight", "ffn_gate_inp.weight"),
            ("mlp.router.bias", "ffn_gate_inp.bias"),
            ("mlp.experts.down_proj_bias", "ffn_down_exps.bias"),
        ] {
            put(&format!("model.layers.{layer}.{name}"), &format!("blk.{layer}.{renamed}"));
        }
    }
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.mlp.experts.{part}");
        let biases = weights.get(&name("gate_up_proj_bias")).unwrap().to_f32().unwrap();
        let both = rows(&weights, &name("gate_up_proj"), HIDDEN);
        for (first, kind) in ["gate", "up"].into_iter().enumerate() {
            let bias: Vec<f32> = biases.iter().skip(first).step_by(2).copied().collect();
            let blocks: Vec<u8> = both.iter().skip(first).step_by(2).flatten().copied().collect();
            writer = writer
                .tensor(&format!("blk.{layer}.ffn_{kind}_exps.bias"), &[EXPERTS, WIDE], 0, &f32s(&bias))
                .tensor(
                    &format!("blk.{layer}.ffn_{kind}_exps.weight"),
                    &[EXPERTS, WIDE, HIDDEN],
                    39,
                    &blocks,
                );
        }
        let down = rows(&weights, &name("down_proj"), WIDE).concat();
        let shape = [EXPERTS, HIDDEN, WIDE];
        writer = writer.tensor(&format!("blk.{layer}.ffn_down_exps.weight"), &shape, 39, &down);
    }
    writer
}

#[test]
fn four_bits_compute_what_they_stand_for() {
    let expected = reference("gpt_oss");
    let files = TextFiles::Folder(ModelFiles::open("m", &folder("gpt_oss_mxfp4")).unwrap());
    let device = ComputeTarget::Device(candle_core::Device::Cpu.into());
    let exact = TextModel::open_on("m", &files, WeightFormat::F32, &device).unwrap();
    for case in &expected.cases {
        let error = furthest(&logits(&exact, &[&case.ids]), &case.logits);
        assert!(error < 1e-4, "{:?}: {error}", case.prompt);
        for isa in Isa::available() {
            let model = load("gpt_oss_mxfp4", WeightFormat::F32, isa);
            let found = logits(&model, &[&case.ids]);
            // Activations of eight bits, as for all weights in blocks.
            let error = distance(&found, &case.logits);
            assert!(error > 0.0 && error < 0.05, "{isa} {:?}: {error}", case.prompt);
            let (first, rest) = case.ids.split_at(case.ids.len() / 2);
            if !first.is_empty() {
                assert_eq!(logits(&model, &[first, rest]), found, "{isa} {:?}", case.prompt);
            }
        }
    }
}

#[test]
fn gguf_files_compute_the_same() {
    let (_folder, path) = written().write();
    for isa in Isa::available() {
        let own = from_gguf("m", &path, WeightFormat::F32, isa).unwrap();
        let model = load("gpt_oss_mxfp4", WeightFormat::F32, isa);
        for case in reference("gpt_oss").cases {
            let error = distance(&logits(&own, &[&case.ids]), &logits(&model, &[&case.ids]));
            assert!(error < 1e-5, "{isa} {:?}: {error}", case.prompt);
        }
    }
}

#[test]
fn metadata_that_is_not_computed_is_refused_by_name() {
    for (key, word) in [
        ("gpt-oss.attention.scale_of_sinks", "scale_of_sinks"),
        ("gpt-oss.expert_shared_count", "expert_shared_count"),
    ] {
        let (_folder, path) = written().number(key, 3).write();
        let error = from_gguf("m", &path, WeightFormat::F32, Isa::best()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
