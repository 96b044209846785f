use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::compute::guarded::Guarded;
use crate::compute::linear::blocks::tests::{COLUMNS, ROWS, reference};
use crate::compute::linear::blocks::{BlockFormat, QuantGroup};
use crate::compute::linear::layer::{Matrix, WeightFormat};
use crate::compute::linear::pack::Packer;
use crate::compute::linear::quant_gemm::quant_offset;

/// The unpacking of this CPU: in plain Rust, and that of AVX-512 where it has BF16.
fn all() -> Vec<(&'static str, Unpack)> {
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, reason = "only x86-64 has another"))]
    let mut all = vec![("portable", Unpack(portable::portable))];
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx512Bf16.is_available() {
        all.push(("avx512_bf16", Unpack(x86::avx512_bf16)));
    }
    all
}

/// The bits of bf16, with one zero.
fn bits(x: f32) -> u16 {
    bf16::from_f32(x + 0.0).to_bits()
}

/// Unpacks a panel that ends at an inaccessible page into rows of `stride` pairs that end at another one. Returns the pairs of
/// each row, of which there are two inputs each. Checks that memory between the rows stays unchanged.
fn unpacked(
    unpack: Unpack,
    layout: QuantLayout,
    panel: &[u8],
    groups: usize,
    stride: usize,
) -> Vec<[u16; 2]> {
    const UNTOUCHED: u32 = 0x7fc1_7fc1;
    let (panel, rows) = (Guarded::new(&panel[..groups * group_bytes(layout)]), groups * PAIRS);
    let mut out = Guarded::new(&vec![UNTOUCHED; (rows * stride).saturating_sub(stride - PANEL)]);
    let packed = PackedPanel { panel: panel.as_ptr(), groups, out: out.as_mut_ptr(), out_stride: stride };
    // SAFETY: `panel` has `groups` groups, and `out` as many rows of pairs, `stride` values apart.
    unsafe { unpack.run(&packed, layout) };
    assert!(out.chunks(stride).all(|row| row[PANEL..].iter().all(|&pair| pair == UNTOUCHED)));
    let halves = |pair: &u32| [*pair as u16, (*pair >> 16) as u16];
    out.chunks(stride).flat_map(|row| row[..PANEL].iter().map(halves)).collect()
}

/// Weight `i` of a group of a panel, by the definition.
fn weight(layout: QuantLayout, group: &[u8], column: usize, i: usize) -> f32 {
    let number = |which: usize| {
        let at = (which * PANEL + column) * 2;
        f16::from_le_bytes([group[at], group[at + 1]]).to_f32()
    };
    let (half, second) = (i / 16, usize::from(layout.halves));
    let (at, high) = quant_offset(layout, column, i);
    let quant = match (layout.bits, high) {
        (4, true) => group[at] >> 4,
        (4, false) => group[at] & 15,
        _ => group[at],
    };
    let minimum = if layout.minimum { number(1 + second + half * second) } else { 0.0 };
    let quants = [quant; GROUP];
    QuantGroup { quants, scales: [number(half * second); 2], minima: [minimum; 2] }.weight(layout, i)
}

fn layouts() -> impl Strategy<Value = QuantLayout> {
    let all = BlockFormat::ALL.map(BlockFormat::layout);
    (0..all.len()).prop_map(move |index| all[index])
}

proptest! {
    #[test]
    fn unpacked_weights_are_dequantized_ones_in_bf16(
        layout in layouts(),
        groups in 0_usize..4,
        stride in PANEL..3 * PANEL,
        seed in any::<u64>(),
    ) {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 20) as u32
        };
        let mut panel: Vec<u8> = (0..groups * group_bytes(layout)).map(|_| next() as u8).collect();
        for group in panel.chunks_mut(group_bytes(layout)) {
            for number in group[..scale_numbers(layout) * 2].as_chunks_mut::<2>().0 {
                // Any finite number, denormals and both signs among them.
                let bits = next() as u16;
                let finite = if bits & 0x7c00 == 0x7c00 { bits & 0xbfff } else { bits };
                *number = finite.to_le_bytes();
            }
        }
        for (name, unpack) in all() {
            let found = unpacked(unpack, layout, &panel, groups, stride);
            for (index, pair) in found.iter().enumerate() {
                let (row, column) = (index / PANEL, index % PANEL);
                let group = &panel[row / PAIRS * group_bytes(layout)..][..group_bytes(layout)];
                let inputs = [2 * (row % PAIRS), 2 * (row % PAIRS) + 1];
                let expected = inputs.map(|i| bits(weight(layout, group, column, i)));
                let found = pair.map(|half| bits(bf16::from_bits(half).to_f32()));
                prop_assert_eq!(found, expected, "{} {:?} {}", name, layout, index);
            }
        }
    }
}

/// Scales and minima lie in panels as f16, which those of K-quants and MXFP4 are rounded to.
#[test]
fn panels_of_every_block_format_are_its_dequantized_weights() {
    for format in BlockFormat::ALL {
        let (tensor, exact) = reference(format);
        let layout = format.layout();
        let packer = Packer::new(Isa::Portable, WeightFormat::F32);
        let linear = packer.linear(&[(Matrix::Blocks(tensor.clone()), None)]).unwrap();
        let (groups, memory) = (COLUMNS / GROUP, linear.parts[0].memory.as_slice::<u8>());
        let mut scratch = Vec::new();
        let blocks = tensor.rows_read(0..ROWS, &mut scratch).unwrap();
        for (name, unpack) in all() {
            let found = unpacked(unpack, layout, memory, groups, PANEL);
            for (row, i) in (0..ROWS).flat_map(|row| (0..COLUMNS).map(move |i| (row, i))) {
                let mut group = format.group(&blocks[row * tensor.row_bytes()..], i / GROUP);
                let exact_weight = exact[row * COLUMNS + i];
                let narrow = |x: f32| f16::from_f32(x).to_f32();
                (group.scales, group.minima) = (group.scales.map(narrow), group.minima.map(narrow));
                let expected = group.weight(layout, i % GROUP);
                let found = bf16::from_bits(found[i / 2 * PANEL + row][i % 2]).to_f32();
                assert_eq!(bits(found), bits(expected), "{name} {} {row} {i}", format.name());
                // What is rounded: the scale and the minimum in 11 bits, and the weight in 8.
                let size = group.scales[i % GROUP / 16].abs() * f32::from(group.quants[i % GROUP]) / 2048.0
                    + group.minima[i % GROUP / 16].abs() / 2048.0
                    + exact_weight.abs() / 256.0;
                assert!((found - exact_weight).abs() <= size, "{name} {} {row} {i}", format.name());
            }
        }
    }
}

#[test]
fn only_amx_unpacks() {
    for isa in Isa::available() {
        assert_eq!(Unpack::of(isa).is_some(), isa == Isa::Amx, "{isa}");
    }
}
