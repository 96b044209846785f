use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::bf16;

use super::*;
use crate::compute::file::WeightFile;
use crate::compute::linear::activations::{PlainRows, spread};
use crate::compute::linear::blocks::BlockFormat;
use crate::compute::linear::blocks::tests::{COLUMNS, ROWS, reference as blocks_of_the_package};
use crate::compute::linear::gemm::{Epilogue, GemmScratch};
use crate::compute::linear::pack::Packer;
use crate::compute::linear::phases::RowPhases;
use crate::compute::memory::Buffer;
use crate::compute::parallel::{Parallelism, Target};
use crate::compute::{Activation, Threads};

pub(crate) fn wave(n: usize, step: f32) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * step).sin() * (1.0 + (i % 7) as f32 * 0.3)).collect()
}

/// The product in f64, and the sum of the magnitudes of its terms, to which errors are relative.
pub(crate) fn reference(x: &[f32], w: &[f32], inputs: usize) -> Vec<(f64, f64)> {
    let dot = |x: &[f32], w: &[f32]| {
        x.iter().zip(w).fold((0.0, 0.0), |(sum, all), (&x, &w)| {
            let term = f64::from(x) * f64::from(w);
            (sum + term, all + term.abs())
        })
    };
    x.chunks(inputs).flat_map(|x| w.chunks(inputs).map(move |w| dot(x, w))).collect()
}

pub(crate) fn blocks(
    values: &[f32],
    rows: usize,
    inputs: usize,
    format: BlockFormat,
) -> (tempfile::TempDir, BlockTensor) {
    let candle = match format {
        BlockFormat::Q4_0 => GgmlDType::Q4_0,
        BlockFormat::Q4_1 => GgmlDType::Q4_1,
        BlockFormat::Q5_0 => GgmlDType::Q5_0,
        BlockFormat::Q5_1 => GgmlDType::Q5_1,
        BlockFormat::Q8_0 => GgmlDType::Q8_0,
        BlockFormat::Q4K => GgmlDType::Q4K,
        BlockFormat::Q5K => GgmlDType::Q5K,
        BlockFormat::Q6K => GgmlDType::Q6K,
        BlockFormat::Q2K => GgmlDType::Q2K,
        BlockFormat::Q3K => GgmlDType::Q3K,
        other => panic!("candle cannot quantize to {}", other.name()),
    };
    let tensor = Tensor::from_slice(values, (rows, inputs), &Device::Cpu).unwrap();
    let bytes = QTensor::quantize(&tensor, candle).unwrap().data().unwrap().into_owned();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("w"), &bytes).unwrap();
    let file = WeightFile::open(&folder.path().join("w")).unwrap();
    (folder, BlockTensor::new(file, 0..bytes.len(), format, rows, inputs).unwrap())
}

/// The weights of the committed blocks, as the `gguf` package reads them; what differs is the rounding of activations to
/// eight bits, and of scales to f16.
#[test]
fn every_block_format_is_multiplied_as_its_weights_say() {
    let x: Vec<f32> = (0..7 * COLUMNS).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
    for format in BlockFormat::ALL {
        let (tensor, weights) = blocks_of_the_package(format);
        let exact = reference(&x, &weights, COLUMNS);
        let size = |row: usize, column: usize| {
            let terms = x[row * COLUMNS..].iter().zip(&weights[column * COLUMNS..]).take(COLUMNS);
            terms.map(|(x, w)| f64::from(x * w).powi(2)).sum::<f64>().sqrt()
        };
        for isa in Isa::available() {
            let packer = Packer::new(isa, WeightFormat::F32);
            let linear = packer.linear(&[(Matrix::Blocks(tensor.clone()), None)]).unwrap();
            for (index, (ours, (exact, _))) in apply(isa, &linear, &x).iter().zip(&exact).enumerate() {
                let error = (f64::from(*ours) - exact).abs() / size(index / ROWS, index % ROWS);
                assert!(error <= 0.02, "{isa} {}: {error}", format.name());
            }
        }
    }
}

fn apply(isa: Isa, linear: &Linear, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / linear.inputs() * linear.outputs()];
    multiply(&KernelSet::new(isa), linear, x, &mut out, Epilogue::Store(Activation::Identity));
    out
}

/// Multiplies rows of `x` in the format of the layer's plain parts.
fn multiply(kernel_set: &KernelSet, linear: &Linear, x: &[f32], out: &mut [f32], epilogue: Epilogue) {
    let narrow = linear.parts.iter().any(|part| part.form == PartFormat::Plain(DType::Bf16));
    let format = if narrow { DType::Bf16 } else { DType::F32 };
    let (rows, stride) = (x.len() / linear.inputs(), spread(format, linear.inputs()));
    let mut memory = Buffer::zeroed(rows * stride).unwrap();
    for (row, values) in x.chunks(linear.inputs()).enumerate() {
        let start = row * stride / format.bytes();
        match format {
            DType::F32 => memory.as_mut_slice()[start..][..values.len()].copy_from_slice(values),
            DType::Bf16 => {
                let to = &mut memory.as_mut_slice::<u16>()[start..];
                to.iter_mut().zip(values).for_each(|(to, &x)| *to = bf16::from_f32(x).to_bits());
            }
        }
    }
    let x = PlainRows::new(memory.as_slice(), stride, rows, linear.inputs(), format);
    let (threads, out) = (Threads::global(), Target::over(out, linear.outputs()));
    let (all, scratch) = (Parallelism::All(&threads), &mut GemmScratch::default());
    linear.multiply(kernel_set, all, scratch, x, &RowPhases::PREFILL, epilogue, &out, 0).unwrap();
}

#[test]
fn quantized_weights_are_multiplied_as_stored() {
    let (outputs, inputs) = (37, 512);
    let values = wave(outputs * inputs, 0.013);
    for format in [
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q5_0,
        BlockFormat::Q5_1,
        BlockFormat::Q8_0,
        BlockFormat::Q4K,
        BlockFormat::Q5K,
        BlockFormat::Q6K,
        BlockFormat::Q2K,
        BlockFormat::Q3K,
    ] {
        let (_folder, stored) = blocks(&values, outputs, inputs, format);
        let weights = stored.to_f32().unwrap();
        for isa in Isa::available() {
            let packer = Packer::new(isa, WeightFormat::F32);
            let linear = packer.linear(&[(Matrix::Blocks(stored.clone()), None)]).unwrap();
            for rows in [1, 2, 3, 8, 11, 30] {
                let x = wave(rows * inputs, 0.37);
                let out = apply(isa, &linear, &x);
                for (index, (ours, (exact, size))) in
                    out.iter().zip(reference(&x, &weights, inputs)).enumerate()
                {
                    // Eight-bit activations are off by 1/254 of their group's largest, and those errors average out.
                    let error = (f64::from(*ours) - exact).abs() / size;
                    assert!(error < 2e-3, "{isa} {} {rows} {index}: {ours} {exact}", format.name());
                }
                let row = rows / 2;
                let alone = apply(isa, &linear, &x[row * inputs..][..inputs]);
                assert_eq!(alone, out[row * outputs..][..outputs], "a row depends on other rows");
            }
        }
    }
}

#[test]
fn all_instruction_sets_agree_on_quantized_weights() {
    let (_folder, stored) = blocks(&wave(20 * 256, 0.05), 20, 256, BlockFormat::Q4_1);
    let x = wave(5 * 256, 0.21);
    let mut results = Isa::available().map(|isa| {
        let matrix = (Matrix::Blocks(stored.clone()), None);
        apply(isa, &Packer::new(isa, WeightFormat::F32).linear(&[matrix]).unwrap(), &x)
    });
    let first = results.next().unwrap();
    for other in results {
        assert!(first.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}

#[test]
fn plain_weights_in_every_format() {
    for (outputs, inputs) in [(1, 1), (5, 3), (33, 48), (70, 65)] {
        let w = wave(outputs * inputs, 0.11);
        let bias = wave(outputs, 0.5);
        let weight = |values: &[f32], shape: &[usize]| Weight::from_f32(values, shape).unwrap();
        for isa in Isa::available() {
            for (format, allowed) in [
                (WeightFormat::F32, 1e-6),
                (WeightFormat::Bf16, 8e-3),
                (WeightFormat::F16, 2e-3),
                (WeightFormat::Int8, 4e-2),
                (WeightFormat::Int4, 0.1),
            ] {
                let part = (Matrix::Plain(weight(&w, &[outputs, inputs])), Some(weight(&bias, &[outputs])));
                let packer = Packer::new(isa, format);
                let linear = packer.linear(&[part]).unwrap();
                for rows in [1, 15, 300] {
                    let x = wave(rows * inputs, 0.7);
                    let out = apply(isa, &linear, &x);
                    for (i, (ours, (exact, size))) in out.iter().zip(reference(&x, &w, inputs)).enumerate() {
                        let shift = f64::from(bias[i % outputs]);
                        let error = (f64::from(*ours) - exact - shift).abs() / (size + shift.abs() + 1e-9);
                        assert!(error <= allowed, "{isa} {format:?} {outputs}x{inputs} {rows} {i}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn parts_of_different_forms_lie_side_by_side_and_add_up() {
    let inputs = 256;
    let (first, second) = (wave(20 * inputs, 0.01), wave(9 * inputs, 0.02));
    let (_folder, quantized) = blocks(&first, 20, inputs, BlockFormat::Q8_0);
    let plain = Weight::from_f32(&second, &[9, inputs]).unwrap();
    let shift = Weight::from_f32(&[1.0; 9], &[9]).unwrap();
    let parts = [(Matrix::Blocks(quantized), None), (Matrix::Plain(plain), Some(shift))];
    for (format, allowed) in [(WeightFormat::F32, 1e-3), (WeightFormat::F16, 0.1)] {
        let packer = Packer::new(Isa::best(), format);
        let linear = packer.linear(&parts).unwrap();
        let x = wave(2 * inputs, 0.3);
        let once = apply(Isa::best(), &linear, &x);
        assert!((once[20] - 1.0 - reference(&x, &second, inputs)[0].0 as f32).abs() < allowed);
        let mut twice = once.clone();
        multiply(&packer.kernel_set, &linear, &x, &mut twice, Epilogue::Add);
        assert!(once.iter().zip(&twice).all(|(once, twice)| *twice == once + once));
    }
}

#[test]
fn gated_layers_multiply_in_every_form() {
    let (outputs, inputs, rows) = (50, 64, 31);
    let (gate, up) = (wave(outputs * inputs, 0.013), wave(outputs * inputs, 0.029));
    let (shift, x) = (wave(outputs, 0.5), wave(rows * inputs, 0.7));
    let (_first, gate_blocks) = blocks(&gate, outputs, inputs, BlockFormat::Q8_0);
    let (_second, up_blocks) = blocks(&up, outputs, inputs, BlockFormat::Q5_1);
    let plain = |values: &[f32]| Matrix::Plain(Weight::from_f32(values, &[outputs, inputs]).unwrap());
    for isa in Isa::available() {
        for (gate_of, up_of, format, allowed) in [
            (plain(&gate), plain(&up), WeightFormat::F32, 1e-4),
            (plain(&gate), plain(&up), WeightFormat::F16, 1.0),
            (Matrix::Blocks(gate_blocks.clone()), plain(&up), WeightFormat::F32, 0.5),
            (Matrix::Blocks(gate_blocks.clone()), plain(&up), WeightFormat::F16, 1.0),
            (Matrix::Blocks(gate_blocks.clone()), Matrix::Blocks(up_blocks.clone()), WeightFormat::F32, 20.0),
        ] {
            let packer = Packer::new(isa, format);
            let bias = || Some(Weight::from_f32(&shift, &[outputs]).unwrap());
            let (exact_gate, exact_up) = (gate_of.to_f32().unwrap(), up_of.to_f32().unwrap());
            let linear = packer.gated((gate_of, bias()), (up_of, bias())).unwrap();
            assert_eq!(linear.outputs(), outputs);
            let mut out = vec![0.0; rows * outputs];
            multiply(&packer.kernel_set, &linear, &x, &mut out, Epilogue::Store(Activation::Silu));
            let gates = reference(&x, &exact_gate, inputs);
            let ups = reference(&x, &exact_up, inputs);
            for (i, ((gate, _), (up, _))) in gates.iter().zip(&ups).enumerate() {
                let shift = f64::from(shift[i % outputs]);
                let (gate, up) = (gate + shift, up + shift);
                let exact = gate / (1.0 + (-gate).exp()) * up;
                assert!((f64::from(out[i]) - exact).abs() <= allowed, "{isa} {i}: {} for {exact}", out[i]);
            }
        }
    }
    let packer = Packer::new(Isa::Portable, WeightFormat::F32);
    let short = Matrix::Plain(Weight::from_f32(&[0.0; 64], &[1, 64]).unwrap());
    assert!(packer.gated((plain(&gate), None), (short, None)).is_err());
}

/// On AMX, a product is finished during the next one: of other rows, other panels, or the second part of a gated layer.
#[test]
fn a_row_does_not_depend_on_overlapping_products() {
    let store = [Activation::Identity, Activation::Gelu, Activation::Silu].map(Epilogue::Store);
    let both = [WeightFormat::Bf16, WeightFormat::F16];
    for (isa, format) in Isa::available().flat_map(|isa| both.map(|format| (isa, format))) {
        let packer = Packer::new(isa, format);
        for (outputs, inputs) in [(33, 15), (300, 48), (70, 400)] {
            let part = |step| {
                let plain = Weight::from_f32(&wave(outputs * inputs, step), &[outputs, inputs]).unwrap();
                (Matrix::Plain(plain), Some(Weight::from_f32(&wave(outputs, 0.5), &[outputs]).unwrap()))
            };
            for linear in [packer.linear(&[part(0.11)]), packer.gated(part(0.11), part(0.29))] {
                let linear = linear.unwrap();
                for epilogue in [Epilogue::Add].into_iter().chain(store) {
                    for rows in [2, 18, 33, 100] {
                        let x = wave(rows * inputs, 0.7);
                        let mut together = wave(rows * outputs, 0.3);
                        let mut alone = together.clone();
                        multiply(&packer.kernel_set, &linear, &x, &mut together, epilogue);
                        for (x, out) in x.chunks(inputs).zip(alone.chunks_mut(outputs)) {
                            multiply(&packer.kernel_set, &linear, x, out, epilogue);
                        }
                        assert!(together == alone, "{isa} {format:?} {outputs}x{inputs} {epilogue:?} {rows}");
                    }
                }
            }
        }
    }
}

#[test]
fn layers_of_one_arena_compute_as_layers_of_their_own() {
    let x = wave(3 * 40, 0.9);
    for format in
        [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16, WeightFormat::Int8, WeightFormat::Int4]
    {
        let layer = |packer: &Packer, outputs: usize| {
            let weight = Weight::from_f32(&wave(outputs * 40, 0.1), &[outputs, 40]).unwrap();
            packer.linear(&[(weight.into(), None)]).unwrap()
        };
        let packer = Packer::new(Isa::best(), format);
        let layers = [5, 70, 1, 33].map(|outputs| layer(&packer, outputs));
        drop(packer);
        for layer_of_arena in &layers {
            let alone = layer(&Packer::new(Isa::best(), format), layer_of_arena.outputs());
            assert_eq!(alone.bytes(), layer_of_arena.bytes());
            assert_eq!(apply(Isa::best(), &alone, &x), apply(Isa::best(), layer_of_arena, &x), "{format:?}");
        }
    }
}

#[test]
fn matrices_that_do_not_fit_are_refused() {
    let matrix = |rows, columns| {
        Matrix::Plain(Weight::from_f32(&vec![0.0; rows * columns], &[rows, columns]).unwrap())
    };
    let packer = Packer::new(Isa::Portable, WeightFormat::F32);
    assert!(packer.linear(&[(matrix(2, 3), None), (matrix(2, 4), None)]).is_err());
    let bias = Weight::from_f32(&[0.0; 3], &[3]).unwrap();
    assert!(packer.linear(&[(matrix(2, 3), Some(bias))]).is_err());
}
