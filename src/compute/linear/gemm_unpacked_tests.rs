//! Products with unpacked weights, on the instruction sets of this CPU and on panels as wide as those of AVX-512.

use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::compute::Threads;
use crate::compute::isa::Isa;
use crate::compute::kernels::Activation;
use crate::compute::kernels::Kernels;
use crate::compute::linear::activations::{PlainRows, spread};
use crate::compute::linear::blocks::{BlockFormat, BlockTensor, tests as stored};
use crate::compute::linear::gemm::{Epilogue, GemmScratch};
use crate::compute::linear::layer::tests::{blocks, reference, wave};
use crate::compute::linear::layer::{Biased, KernelSet, Linear, Matrix, WeightFormat};
use crate::compute::linear::pack::Packer;
use crate::compute::linear::phases::RowPhases;
use crate::compute::linear::quant_unpack::everywhere;
use crate::compute::parallel::{Parallelism, Target};
use crate::compute::weight::Weight;

/// Packers whose kernels unpack weights: those of this CPU with whole panels of quantized weights, and wide ones.
fn packers(format: WeightFormat) -> Vec<Packer> {
    everywhere(|| {
        let mut all: Vec<Packer> = Isa::available().map(|isa| Packer::new(isa, format)).collect();
        let mut wide = Packer::new(Isa::best(), format);
        wide.kernel_set.kernels = Kernels::wide();
        all.push(wide);
        all.retain(|packer| packer.kernel_set.unpack.is_some());
        all
    })
}

fn name(packer: &Packer) -> String {
    let kernels = packer.kernel_set.kernels;
    format!("{} with panels of {}", kernels.isa(), kernels.width)
}

/// Products of rows in bf16.
fn apply(
    kernel_set: &KernelSet,
    linear: &Linear,
    x: &[f32],
    phases: &RowPhases,
    epilogue: Epilogue,
) -> Vec<f32> {
    let (rows, stride) = (x.len() / linear.inputs(), spread(DType::Bf16, linear.inputs()));
    let mut memory = Buffer::zeroed(rows * stride).unwrap();
    for (row, values) in x.chunks(linear.inputs()).enumerate() {
        let to = &mut memory.as_mut_slice::<u16>()[row * stride / 2..];
        to.iter_mut().zip(values).for_each(|(to, &x)| *to = bf16::from_f32(x).to_bits());
    }
    let x = PlainRows::new(memory.as_slice(), stride, rows, linear.inputs(), DType::Bf16);
    let mut out = vec![0.5; rows * linear.outputs()];
    let (threads, target) = (Threads::global(), Target::over(&mut out, linear.outputs()));
    let (all, scratch) = (Parallelism::All(&threads), &mut GemmScratch::default());
    linear.multiply(kernel_set, all, scratch, x, phases, epilogue, &target, 0).unwrap();
    out
}

const STORE: Epilogue = Epilogue::Store(Activation::Identity);

/// The values of rows, rounded to bf16.
fn narrow(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect()
}

/// The weights of blocks as panels have them, rounded to bf16, as plain weights.
fn dequantized(tensor: &BlockTensor) -> Matrix {
    let (format, columns) = (tensor.format(), tensor.columns());
    let (mut scratch, mut values) = (Vec::new(), Vec::new());
    let rows = tensor.rows_read(0..tensor.rows(), &mut scratch).unwrap();
    for row in rows.chunks(tensor.row_bytes()) {
        for index in 0..columns / GROUP {
            let mut group = format.group(row, index);
            let short = |x: f32| half::f16::from_f32(x).to_f32();
            (group.scales, group.minima) = (group.scales.map(short), group.minima.map(short));
            values.extend((0..GROUP).map(|i| group.weight(format.layout(), i)));
        }
    }
    Weight::from_f32(&values, &[tensor.rows(), columns]).unwrap().into()
}

/// Rows that are read have the bits of a layer with the same weights in bf16, and those that were written the bits of integers.
fn assert_phases_decide(
    packer: &Packer,
    quantized: &Linear,
    plain: &Linear,
    x: &[f32],
    phases: &RowPhases,
    what: &str,
) {
    let (set, inputs, outputs) = (&packer.kernel_set, quantized.inputs(), quantized.outputs());
    let integers = KernelSet { unpack: None, ..*set };
    for epilogue in [STORE, Epilogue::Store(Activation::Silu), Epilogue::Add] {
        let found = apply(set, quantized, x, phases, epilogue);
        let read = apply(set, plain, x, &RowPhases::PREFILL, epilogue);
        let written = apply(&integers, quantized, x, &RowPhases::PREFILL, epilogue);
        for row in 0..x.len() / inputs {
            let of = |all: &[f32]| all[row * outputs..][..outputs].to_vec();
            let expected =
                if phases.any(row..row + 1, TokenPhase::Decode) { of(&written) } else { of(&read) };
            assert_eq!(of(&found), expected, "{what} {} row {row} {phases:?}", name(packer));
            let alone =
                apply(set, quantized, &x[row * inputs..][..inputs], &phases.part(row..row + 1), epilogue);
            assert_eq!(alone, expected, "{what} {} row {row} alone", name(packer));
        }
    }
}

#[test]
fn every_block_format_is_multiplied_as_the_same_weights_in_bf16() {
    let x = wave(9 * stored::COLUMNS, 0.37);
    let phases = RowPhases::of([
        (1, TokenPhase::Decode),
        (5, TokenPhase::Prefill),
        (2, TokenPhase::Decode),
        (1, TokenPhase::Prefill),
    ]);
    for packer in packers(WeightFormat::Bf16) {
        for format in BlockFormat::ALL {
            let (tensor, exact) = stored::reference(format);
            let plain = packer.linear(&[(dequantized(&tensor), None)]).unwrap();
            let quantized = packer.linear(&[(Matrix::Blocks(tensor), None)]).unwrap();
            assert_phases_decide(&packer, &quantized, &plain, &x, &phases, format.name());
            // Against the file's weights, what is left is the rounding of both operands to eight bits of a mantissa, and of
            // scales to eleven.
            let rows = narrow(&x);
            let sums = reference(&rows, &exact, stored::COLUMNS);
            let found = apply(&packer.kernel_set, &quantized, &x, &RowPhases::PREFILL, STORE);
            for (ours, (sum, size)) in found.iter().zip(sums) {
                let error = (f64::from(*ours) - sum).abs() / size;
                assert!(error <= 1.0 / 256.0, "{} {}: {error}", name(&packer), format.name());
            }
        }
    }
}

/// Outputs around whole panels, several parts in formats of different layouts, and gates.
#[test]
fn layers_of_several_parts_and_gated_ones_are_unpacked() {
    let inputs = 512;
    let values = |outputs: usize, step: f32| wave(outputs * inputs, step);
    let formats =
        [BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::Q6K, BlockFormat::Q2K, BlockFormat::Q3K];
    let x = wave(40 * inputs, 0.7);
    let phases = RowPhases::of([
        (3, TokenPhase::Prefill),
        (1, TokenPhase::Decode),
        (34, TokenPhase::Prefill),
        (2, TokenPhase::Decode),
    ]);
    for outputs in [[1, 16, 17], [15, 33, 48], [300, 31, 64]] {
        let stored: Vec<_> = (outputs.iter().zip(formats).zip([0.013, 0.029, 0.031]))
            .map(|((&outputs, format), step)| blocks(&values(outputs, step), outputs, inputs, format))
            .collect();
        let bias = |outputs: usize| Some(Weight::from_f32(&wave(outputs, 0.5), &[outputs]).unwrap());
        let parts = |matrix: &dyn Fn(&BlockTensor) -> Matrix| -> Vec<Biased> {
            stored.iter().map(|(_, tensor)| (matrix(tensor), bias(tensor.rows()))).collect()
        };
        for packer in packers(WeightFormat::Bf16) {
            let quantized = packer.linear(&parts(&|tensor| Matrix::Blocks(tensor.clone()))).unwrap();
            let plain = packer.linear(&parts(&dequantized)).unwrap();
            assert_phases_decide(&packer, &quantized, &plain, &x, &phases, &format!("{outputs:?}"));
        }
    }
    for (outputs, gate, up) in [(1, 0, 1), (50, 1, 2), (200, 3, 4), (33, 2, 2)] {
        let [(_first, gate), (_second, up)] = [(gate, 0.013), (up, 0.029)]
            .map(|(format, step)| blocks(&values(outputs, step), outputs, inputs, formats[format]));
        let shift = || Some(Weight::from_f32(&wave(outputs, 0.3), &[outputs]).unwrap());
        for packer in packers(WeightFormat::Bf16) {
            let gated = |a, b| packer.gated((a, shift()), (b, shift())).unwrap();
            let quantized = gated(Matrix::Blocks(gate.clone()), Matrix::Blocks(up.clone()));
            let plain = gated(dequantized(&gate), dequantized(&up));
            assert_phases_decide(&packer, &quantized, &plain, &x, &phases, &format!("gated {outputs}"));
        }
    }
}

/// Weights that are quantized when they are loaded, of any number of inputs.
#[test]
fn inputs_of_any_number_are_unpacked() {
    for (outputs, inputs) in [(1, 1), (5, 3), (33, 48), (70, 65), (20, 97)] {
        let weight = Weight::from_f32(&wave(outputs * inputs, 0.11), &[outputs, inputs]).unwrap();
        let x = wave(35 * inputs, 0.7);
        for format in [WeightFormat::Int8, WeightFormat::Int4] {
            for packer in packers(format) {
                let linear = packer.linear(&[(weight.clone().into(), None)]).unwrap();
                let found = apply(&packer.kernel_set, &linear, &x, &RowPhases::PREFILL, STORE);
                let allowed = if format == WeightFormat::Int8 { 2e-2 } else { 0.1 };
                let exact = reference(&narrow(&x), &weight.to_f32().unwrap(), inputs);
                for (row, (ours, (sum, size))) in found.iter().zip(exact).enumerate() {
                    let error = (f64::from(*ours) - sum).abs() / (size + 1e-9);
                    assert!(
                        error <= allowed,
                        "{} {format:?} {outputs}x{inputs} {row}: {error}",
                        name(&packer)
                    );
                }
                let last = apply(&packer.kernel_set, &linear, &x[34 * inputs..], &RowPhases::PREFILL, STORE);
                assert_eq!(last, found[34 * outputs..], "{} {format:?} {outputs}x{inputs}", name(&packer));
            }
        }
    }
}

/// Rows in f32 are multiplied as integers, whatever the CPU has.
#[test]
fn rows_in_f32_are_never_unpacked() {
    let (tensor, _) = stored::reference(BlockFormat::Q8_0);
    let x = wave(3 * stored::COLUMNS, 0.37);
    for packer in packers(WeightFormat::F32) {
        let linear = packer.linear(&[(Matrix::Blocks(tensor.clone()), None)]).unwrap();
        let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_ne_bytes()).collect();
        let found = [packer.kernel_set, KernelSet { unpack: None, ..packer.kernel_set }].map(|set| {
            let mut memory = Buffer::zeroed(bytes.len()).unwrap();
            memory.as_mut_slice().copy_from_slice(&bytes);
            let x = PlainRows::new(memory.as_slice(), 4 * stored::COLUMNS, 3, stored::COLUMNS, DType::F32);
            let mut out = vec![0.0; 3 * stored::ROWS];
            let (scratch, phases) = (&mut GemmScratch::default(), RowPhases::PREFILL);
            let target = Target::over(&mut out, stored::ROWS);
            linear.multiply(&set, Parallelism::One, scratch, x, &phases, STORE, &target, 0).unwrap();
            out
        });
        assert_eq!(found[0], found[1], "{}", name(&packer));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_row_depends_on_its_phase_and_on_no_other_row(
        runs in proptest::collection::vec((0_usize..40, any::<bool>()), 1..6),
        outputs in 1_usize..80,
        format in 0_usize..5,
    ) {
        let formats = [BlockFormat::Q4_0, BlockFormat::Q4K, BlockFormat::Q5_1, BlockFormat::Q6K, BlockFormat::Q2K];
        let (inputs, rows) = (256, runs.iter().map(|run| run.0).sum::<usize>());
        let phase = |read| if read { TokenPhase::Prefill } else { TokenPhase::Decode };
        let phases = RowPhases::of(runs.into_iter().map(|(rows, read)| (rows, phase(read))));
        let (_folder, tensor) = blocks(&wave(outputs * inputs, 0.017), outputs, inputs, formats[format]);
        let x = wave(rows * inputs, 0.43);
        for packer in packers(WeightFormat::Bf16) {
            let linear = packer.linear(&[(Matrix::Blocks(tensor.clone()), None)]).unwrap();
            let found = apply(&packer.kernel_set, &linear, &x, &phases, STORE);
            for row in 0..rows {
                let x = &x[row * inputs..][..inputs];
                let alone = apply(&packer.kernel_set, &linear, x, &phases.part(row..row + 1), STORE);
                prop_assert_eq!(&alone, &found[row * outputs..][..outputs], "{} {}", name(&packer), row);
            }
        }
    }
}
