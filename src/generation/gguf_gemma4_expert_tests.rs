//! The experts of Gemma 4 in GGUF files, whose gates and first matrices are one tensor or two.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::*;

const FAMILY: &str = "gemma4_moe";
const BOTH: &str = "ffn_gate_up_exps.weight";
const EXPERTS: usize = 6;
/// Columns between the matrices of an expert.
const WIDE: usize = 12;
const WIDTH: usize = 32;

fn refusal(writer: &Writer) -> String {
    open_gguf(writer).unwrap_err().to_string()
}

/// The numbers that have the name `name` in the file.
fn values(header: &Header, name: &str) -> Vec<f32> {
    let weights = Weights::open(&ModelFiles::open(FAMILY, &folder(FAMILY)).unwrap().weights).unwrap();
    let theirs = header.names.iter().find(|(_, own)| *own == name).unwrap().0;
    weights.get(theirs).unwrap().to_f32().unwrap()
}

/// The file with `tensor` in place of the gates and first matrices of each layer, which get a writer, the beginning of names,
/// and these matrices.
fn with_matrices(header: &Header, tensor: impl Fn(Writer, &str, Vec<f32>) -> Writer) -> Writer {
    let names: Vec<String> = (0..3).map(|layer| format!("blk.{layer}.{BOTH}")).collect();
    let left_out: Vec<&str> = names.iter().map(String::as_str).collect();
    names.iter().fold(file(FAMILY, header, &left_out), |writer, name| {
        tensor(writer, name.strip_suffix(BOTH).unwrap(), values(header, name))
    })
}

/// The gates, and the first matrices, of all experts.
fn parts(both: &[f32]) -> [Vec<f32>; 2] {
    let part = |part| both.chunks(WIDE * WIDTH).skip(part).step_by(2).flatten().copied().collect();
    [part(0), part(1)]
}

#[test]
fn experts_compute_what_transformers_computes() {
    let header = header(FAMILY);
    assert_gguf_is(FAMILY, &file(FAMILY, &header, &[]));
    let apart = |writer: Writer, start: &str, both: Vec<f32>| {
        let [gates, ups] = parts(&both);
        let writer =
            writer.tensor(&format!("{start}ffn_gate_exps.weight"), &[EXPERTS, WIDE, WIDTH], 0, &f32s(&gates));
        writer.tensor(&format!("{start}ffn_up_exps.weight"), &[EXPERTS, WIDE, WIDTH], 0, &f32s(&ups))
    };
    assert_gguf_is(FAMILY, &with_matrices(&header, apart));
}

/// Files need not say what all Gemma 4 models have in common.
#[test]
fn metadata_of_experts_may_say_what_is_known() {
    let header = header(FAMILY);
    assert_gguf_is(FAMILY, &file(FAMILY, &header, &["gemma4.expert_feed_forward_length"]));
    let said = file(FAMILY, &header, &[])
        .number("gemma4.expert_gating_func", 1)
        .flag("gemma4.expert_weights_norm", true)
        .float("gemma4.expert_weights_scale", 1.0);
    assert_gguf_is(FAMILY, &said);
}

#[test]
fn quantized_experts_compute_what_their_blocks_say() {
    let header = header(FAMILY);
    let quantized = |values: &[f32], shape: &[usize]| {
        let values = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        QTensor::quantize(&values, GgmlDType::Q8_0).unwrap()
    };
    let shape = [EXPERTS, 2 * WIDE, WIDTH];
    let plain = with_matrices(&header, |writer, start, both| {
        let blocks = quantized(&both, &shape).dequantize(&Device::Cpu).unwrap();
        let numbers: Vec<f32> = blocks.flatten_all().unwrap().to_vec1().unwrap();
        writer.tensor(&format!("{start}{BOTH}"), &shape, 0, &f32s(&numbers))
    });
    let coded = with_matrices(&header, |writer, start, both| {
        writer.tensor(&format!("{start}{BOTH}"), &shape, 8, &quantized(&both, &shape).data().unwrap())
    });
    let apart = with_matrices(&header, |writer, start, both| {
        let shape = [EXPERTS, WIDE, WIDTH];
        parts(&both).iter().zip(["ffn_gate_exps", "ffn_up_exps"]).fold(writer, |writer, (part, name)| {
            let blocks = quantized(part, &shape);
            writer.tensor(&format!("{start}{name}.weight"), &shape, 8, &blocks.data().unwrap())
        })
    });
    let ids: Vec<u32> = (0..40).map(|i| i * 37 % 300).collect();
    let open = |writer: &Writer, isa| {
        let (_folder, path) = writer.clone().write();
        from_gguf(FAMILY, &path, WeightFormat::F32, isa).unwrap()
    };
    let expected = logits(&open(&plain, Isa::best()), &[&ids]);
    for isa in Isa::available() {
        let found = logits(&open(&coded, isa), &[&ids]);
        let error = distance(&found, &expected);
        assert!(error > 0.0 && error < 0.03, "{isa}: {error}");
        assert_eq!(logits(&open(&apart, isa), &[&ids]), found, "{isa}");
    }
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let header = header(FAMILY);
    let changed = |key: &str| file(FAMILY, &header, &[&format!("gemma4.{key}")]);
    for (key, number, said) in [
        ("expert_count", 0, "expert_feed_forward_length"),
        ("expert_count", 5, "ffn_gate_up_exps.weight"),
        ("expert_count", u32::MAX, "expert_count"),
        ("expert_used_count", 0, "0 of 6"),
        ("expert_used_count", 7, "7 of 6"),
        ("expert_feed_forward_length", 0, "0 columns"),
        ("expert_feed_forward_length", 11, "ffn_gate_up_exps.weight"),
        ("expert_gating_func", 2, "expert_gating_func is 2"),
        ("expert_shared_feed_forward_length", 8, "expert_shared_feed_forward_length"),
        ("expert_group_count", 2, "expert_group_count"),
    ] {
        let error = refusal(&changed(key).number(&format!("gemma4.{key}"), number));
        assert!(error.contains(said), "{key} {number}: {error}");
    }
    let all = || file(FAMILY, &header, &[]);
    assert!(
        refusal(&all().flag("gemma4.expert_weights_norm", false)).contains("expert_weights_norm is false")
    );
    for scale in [2.5, f32::NAN] {
        let error = refusal(&all().float("gemma4.expert_weights_scale", scale));
        assert!(error.contains("expert_weights_scale is"), "{error}");
    }
    for missing in header.names.values().filter(|name| {
        name.starts_with("blk.1.")
            && ["exps", "gate_inp", "norm_1", "norm_2"].iter().any(|part| name.contains(part))
    }) {
        let error = refusal(&file(FAMILY, &header, &[missing]));
        assert!(error.contains(missing) && error.contains("missing"), "{missing}: {error}");
    }
    for name in ["gemma4.expert_used_count", "gemma4.expert_count"] {
        let error = refusal(&file(FAMILY, &header, &[name]));
        assert!(error.contains("gemma4.expert_"), "{name}: {error}");
    }
    // Scales of other matrices, and one half of the matrices that the other has too.
    for (name, shape) in
        [("ffn_up_exps.scale", &[EXPERTS][..]), ("ffn_up_exps.weight", &[EXPERTS, WIDE, WIDTH])]
    {
        let more = f32s(&vec![1.0; shape.iter().product()]);
        let error = refusal(&all().tensor(&format!("blk.0.{name}"), shape, 0, &more));
        assert!(error.contains(name), "{error}");
    }
    for number in [f32::NAN, f32::INFINITY] {
        let mut factors = [1.0; EXPERTS];
        factors[3] = number;
        let name = "blk.2.ffn_down_exps.scale";
        let error = refusal(&file(FAMILY, &header, &[name]).tensor(name, &[EXPERTS], 0, &f32s(&factors)));
        assert!(error.contains("a factor of its experts is"), "{error}");
    }
}
