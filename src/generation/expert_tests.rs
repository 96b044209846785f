//! Mixtures of experts in GGUF files: quantized ones, fused ones, and metadata that is not computed.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::*;
use crate::compute::linear::quant_unpack::everywhere;

const WIDTH: usize = 64;
/// Columns between the matrices of an expert.
const WIDE: usize = 32;
const EXPERTS: usize = 6;
const LAYERS: usize = 2;

fn metadata() -> Writer {
    with_tokenizer(Writer::default())
        .text("general.architecture", "qwen3moe")
        .number("qwen3moe.block_count", LAYERS as u32)
        .number("qwen3moe.context_length", 64)
        .number("qwen3moe.embedding_length", WIDTH as u32)
        .number("qwen3moe.feed_forward_length", 2 * WIDTH as u32)
        .number("qwen3moe.attention.head_count", 4)
        .number("qwen3moe.attention.head_count_kv", 2)
        .float("qwen3moe.attention.layer_norm_rms_epsilon", 1e-5)
        .number("qwen3moe.expert_feed_forward_length", WIDE as u32)
}

/// Its tensors, those of experts in a format, or as the numbers that it stands for, in F32.
fn with_experts(mut writer: Writer, format: GgmlDType, coded: bool, fused: bool) -> Writer {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut noise = |n: usize, deviation: f32| -> Vec<f32> {
        let mut uniform = || rng.next_u32() as f32 / u32::MAX as f32 - 0.5;
        (0..n).map(|_| (uniform() + uniform() + uniform()) * 2.0 * deviation).collect()
    };
    let kind = if format == GgmlDType::Q8_0 { 8 } else { 2 };
    let rows: [(&str, &[usize]); 8] = [
        ("attn_q", &[WIDTH, WIDTH]),
        ("attn_k", &[WIDTH / 2, WIDTH]),
        ("attn_v", &[WIDTH / 2, WIDTH]),
        ("attn_output", &[WIDTH, WIDTH]),
        ("ffn_gate_inp", &[EXPERTS, WIDTH]),
        ("ffn_gate_exps", &[EXPERTS, WIDE, WIDTH]),
        ("ffn_up_exps", &[EXPERTS, WIDE, WIDTH]),
        ("ffn_down_exps", &[EXPERTS, WIDTH, WIDE]),
    ];
    for layer in 0..LAYERS {
        let mut gates = Vec::new();
        for (name, shape) in rows {
            let (columns, count) = (shape[shape.len() - 1], shape.iter().product::<usize>());
            let values = noise(count, 1.5 / (columns as f32).sqrt());
            let mut put = |name: &str, shape: &[usize], values: Vec<f32>| {
                let name = format!("blk.{layer}.{name}.weight");
                if shape.len() < 3 {
                    writer = std::mem::take(&mut writer).tensor(&name, shape, 0, &f32s(&values));
                    return;
                }
                let values = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
                let blocks = QTensor::quantize(&values, format).unwrap();
                let plain: Vec<f32> =
                    blocks.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                let (kind, bytes) =
                    if coded { (kind, blocks.data().unwrap().to_vec()) } else { (0, f32s(&plain)) };
                writer = std::mem::take(&mut writer).tensor(&name, shape, kind, &bytes);
            };
            match name {
                "ffn_gate_exps" if fused => gates = values,
                "ffn_up_exps" if fused => {
                    let pairs = gates.chunks(WIDE * WIDTH).zip(values.chunks(WIDE * WIDTH));
                    let both = pairs.flat_map(|(gate, up)| [gate, up].concat()).collect();
                    put("ffn_gate_up_exps", &[EXPERTS, 2 * WIDE, WIDTH], both);
                }
                _ => put(name, shape, values),
            }
        }
        for name in ["attn_norm", "ffn_norm"] {
            let name = format!("blk.{layer}.{name}.weight");
            writer = writer.tensor(&name, &[WIDTH], 0, &f32s(&[1.0; WIDTH]));
        }
        for name in ["attn_q_norm", "attn_k_norm"] {
            let name = format!("blk.{layer}.{name}.weight");
            writer = writer.tensor(&name, &[WIDTH / 4], 0, &f32s(&[1.0; WIDTH / 4]));
        }
    }
    for name in ["token_embd.weight", "output.weight"] {
        writer = writer.tensor(name, &[319, WIDTH], 0, &f32s(&noise(319 * WIDTH, 0.3)));
    }
    writer.tensor("output_norm.weight", &[WIDTH], 0, &f32s(&[1.0; WIDTH]))
}

fn counted() -> Writer {
    metadata().number("qwen3moe.expert_count", EXPERTS as u32).number("qwen3moe.expert_used_count", 2)
}

fn open(writer: &Writer, isa: Isa) -> Result<TextModel> {
    let (_folder, path) = writer.clone().write();
    from_gguf("experts", &path, WeightFormat::F32, isa)
}

#[test]
fn quantized_experts_compute_what_their_blocks_say() {
    let ids: Vec<u32> = (0..40).map(|i| i * 37 % 300).collect();
    for (format, allowed) in [(GgmlDType::Q8_0, 0.03), (GgmlDType::Q4_0, 0.03)] {
        let [plain, coded, fused] = [(false, false), (true, false), (true, true)]
            .map(|(coded, fused)| with_experts(counted(), format, coded, fused));
        let expected = logits(&open(&plain, Isa::best()).unwrap(), &[&ids]);
        for isa in Isa::available() {
            let found = logits(&open(&coded, isa).unwrap(), &[&ids]);
            let error = distance(&found, &expected);
            assert!(error > 0.0 && error < allowed, "{format:?} {isa}: {error}");
            assert_eq!(logits(&open(&fused, isa).unwrap(), &[&ids]), found, "{format:?} {isa}");
        }
    }
}

#[test]
fn metadata_of_experts_is_computed_or_refused_by_name() {
    let refusal = |writer: Writer| {
        open(&with_experts(writer, GgmlDType::Q8_0, false, false), Isa::best()).unwrap_err().to_string()
    };
    let ids: Vec<u32> = (0..20).map(|i| i * 37 % 300).collect();
    let of = |writer: Writer| {
        let model = open(&with_experts(writer, GgmlDType::Q8_0, false, false), Isa::best()).unwrap();
        logits(&model, &[&ids])
    };
    let usual = of(counted());
    assert_eq!(of(counted().flag("qwen3moe.expert_weights_norm", true)), usual);
    assert_eq!(of(counted().number("qwen3moe.expert_gating_func", 1)), usual);
    assert_eq!(of(counted().float("qwen3moe.expert_weights_scale", 0.0)), usual);
    let others = [
        counted().flag("qwen3moe.expert_weights_norm", false),
        counted().number("qwen3moe.expert_gating_func", 2),
        counted().float("qwen3moe.expert_weights_scale", 2.0),
    ];
    for other in others {
        assert!(distance(&of(other), &usual) > 0.01);
    }
    for (key, number, word) in [
        ("expert_gating_func", 3, "expert_gating_func is 3"),
        ("expert_group_count", 2, "expert_group_count"),
        ("expert_shared_count", 1, "expert_shared_count"),
        ("expert_shared_feed_forward_length", 32, "expert_shared_feed_forward_length"),
        ("leading_dense_block_count", 1, "leading_dense_block_count"),
    ] {
        let error = refusal(counted().number(&format!("qwen3moe.{key}"), number));
        assert!(error.contains(word), "{error}");
    }
    let count = |count: u32, used: u32| {
        metadata().number("qwen3moe.expert_count", count).number("qwen3moe.expert_used_count", used)
    };
    for (experts, used) in [(6, 0), (6, 7), (0, 0), (1 << 30, 2)] {
        assert!(refusal(count(experts, used)).contains("do not fit together"), "{used} of {experts}");
    }
    assert!(refusal(count(7, 2)).contains("ffn_gate_inp"));
    assert!(refusal(metadata()).contains("expert_count"));
}

/// Rows of a prompt and of an answer meet at the same experts, whose weights are unpacked for the former alone, as on AMX.
#[test]
fn rows_of_both_phases_use_experts_as_alone() {
    let (_folder, path) = with_experts(counted(), GgmlDType::Q8_0, true, false).write();
    let text: Vec<u32> = (0..40).map(|i| i * 37 % 300).collect();
    let mut unpacking = 0;
    for isa in Isa::available() {
        let model = everywhere(|| from_gguf("experts", &path, WeightFormat::Bf16, isa).unwrap());
        let Network::Cpu(decoder) = &model.network else { unreachable!("it was loaded onto the CPU") };
        let decoder: &Transformer<Cpu> = decoder;
        if !decoder.phases_differ() {
            continue;
        }
        unpacking += 1;
        let vocabulary = decoder.vocabulary();
        let step = |caches: &mut [_; 3], together: bool, prompt: usize| -> Vec<f32> {
            let mut logits = vec![0.0; 3 * vocabulary];
            let [first, second, third] = caches;
            let mut steps = [
                Step { cache: first, tokens: &text[9..10], prompt, length: 10, logits: 1 },
                Step { cache: second, tokens: &text[10..33], prompt: 23, length: 23, logits: 1 },
                Step { cache: third, tokens: &text[20..21], prompt: 1, length: 1, logits: 1 },
            ];
            if together {
                Decoder::forward(decoder, &mut steps, &mut logits).unwrap();
            } else {
                for (step, logits) in steps.into_iter().zip(logits.chunks_mut(vocabulary)) {
                    Decoder::forward(decoder, &mut [step], logits).unwrap();
                }
            }
            logits
        };
        // The first text has nine tokens in its cache.
        let run = |together: bool, prompt: usize| {
            let mut caches = [(); 3].map(|()| decoder.new_cache(64).unwrap());
            let begun = Step {
                cache: &mut caches[0],
                tokens: &text[..9],
                prompt: prompt.min(9),
                length: 9,
                logits: 0,
            };
            Decoder::forward(decoder, &mut [begun], &mut []).unwrap();
            step(&mut caches, together, prompt)
        };
        let (written, read) = (run(false, 9), run(false, 10));
        assert_ne!(written[..vocabulary], read[..vocabulary], "{isa}: the phases compute the same");
        assert_eq!(run(true, 9), written, "{isa}");
        assert_eq!(run(true, 10), read, "{isa}");
    }
    assert!(unpacking > 0 || !cfg!(target_arch = "x86_64"), "none unpacks");
}
