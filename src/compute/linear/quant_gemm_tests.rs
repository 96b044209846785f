use half::f16;

use super::*;
use crate::compute::guarded::Guarded;
use crate::compute::kernels::quantize::ZERO;

const LAYOUTS: [QuantLayout; 7] = [
    QuantLayout { bits: 4, minimum: false, halves: false },
    QuantLayout { bits: 4, minimum: true, halves: false },
    QuantLayout { bits: 4, minimum: false, halves: true },
    QuantLayout { bits: 4, minimum: true, halves: true },
    QuantLayout { bits: 8, minimum: false, halves: false },
    QuantLayout { bits: 8, minimum: true, halves: false },
    QuantLayout { bits: 8, minimum: false, halves: true },
];

/// Pseudorandom numbers of 32 bits.
fn numbers(seed: u32) -> impl FnMut() -> u32 {
    let mut state = u64::from(seed) | 1 << 40;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as u32
    }
}

/// Panels of random quants, scales and minima, and activations. Each ends right before an inaccessible page.
struct Case {
    layout: QuantLayout,
    groups: usize,
    rows: usize,
    panels: usize,
    panel_bytes: usize,
    panel: Guarded<u8>,
    x: Guarded<u8>,
    flipped: Guarded<u32>,
    scales: Guarded<f32>,
    sums: Guarded<u32>,
    offsets: Guarded<f32>,
}

/// Where the values of a case come from.
#[derive(Clone, Copy)]
struct Source {
    /// Two quants of four bits, or one of eight.
    quants: fn(u32) -> u8,
    /// A scale or a minimum of weights.
    number: fn(u32) -> f32,
    /// An activation from -127 to 127.
    x: fn(u32) -> i8,
    /// A scale of activations.
    scale: fn(u32) -> f32,
}

const RANDOM: Source = Source {
    quants: |random| random as u8,
    number: |random| (random % 2001) as f32 / 1000.0 - 1.0,
    x: |random| ((random % 255) as i8).max(-127),
    scale: |random| (random % 1000) as f32 / 1e5,
};

/// Mostly the largest quants and activations, whose sums overflow 16 bits first, and scales that are powers of two, so that
/// every sum of floats is exact.
const EXTREME: Source = Source {
    quants: |random| if random % 4 == 0 { (random >> 8) as u8 } else { 0xff },
    number: |random| [1.0, -1.0, 0.5, 2.0][random as usize % 4],
    x: |random| [127, 127, -127, ((random >> 8) as i8).max(-127)][random as usize % 4],
    scale: |random| [1.0, 0.5][random as usize % 2],
};

/// The memory of a group, on a CPU that stores the lowest byte first.
fn words(group: FlippedGroup) -> impl Iterator<Item = u32> {
    let pairs = [group.pairs, group.flips].concat().into_iter().map(u32::from).collect::<Vec<_>>();
    let starts = [group.start, group.first_start].map(i32::cast_unsigned);
    pairs
        .as_chunks::<2>()
        .0
        .iter()
        .map(|[low, high]| low | high << 16)
        .chain(starts)
        .collect::<Vec<_>>()
        .into_iter()
}

impl Case {
    fn new(source: Source, layout: QuantLayout, rows: usize, panels: usize, groups: usize) -> Self {
        let mut next = numbers((rows * 100 + panels * 10 + groups) as u32);
        let panel_bytes = (groups * group_bytes(layout)).next_multiple_of(64);
        let mut panel: Vec<u8> = (0..panels * panel_bytes).map(|_| (source.quants)(next())).collect();
        for start in (0..panels).flat_map(|panel| (0..groups).map(move |group| (panel, group))) {
            let group = &mut panel[start.0 * panel_bytes + start.1 * group_bytes(layout)..];
            for number in group[..scale_numbers(layout) * 2].as_chunks_mut::<2>().0 {
                *number = f16::from_f32((source.number)(next())).to_le_bytes();
            }
        }
        panel.truncate(panels.saturating_sub(1) * panel_bytes + groups * group_bytes(layout));
        let x: Vec<i8> = (0..rows * groups * GROUP).map(|_| (source.x)(next())).collect();
        let scales: Vec<f32> = (0..rows * groups).map(|_| (source.scale)(next())).collect();
        let sum = |x: &[i8]| x.iter().map(|&x| i32::from(x)).sum::<i32>();
        let offset = |(x, scale): (&[i8; GROUP], &f32)| -ZERO * scale * sum(x) as f32;
        let offsets: Vec<f32> = x.as_chunks().0.iter().zip(&scales).map(offset).collect();
        let sums: Vec<u32> = x.chunks(GROUP / 2).map(|half| sum(half).cast_unsigned()).collect();
        let flipped: Vec<u32> = x.as_chunks().0.iter().flat_map(|x| words(FlippedGroup::new(x))).collect();
        let x: Vec<u8> = x.into_iter().map(i8::cast_unsigned).collect();
        Self {
            layout,
            groups,
            rows,
            panels,
            panel_bytes,
            panel: Guarded::new(&panel),
            x: Guarded::new(&x),
            flipped: Guarded::new(if layout.bits == 8 { &flipped } else { &[] }),
            scales: Guarded::new(&scales),
            sums: Guarded::new(if layout.halves { &sums } else { &[] }),
            offsets: Guarded::new(&offsets),
        }
    }

    /// The product on `isa`. Checks that columns after those of the panels stay unchanged.
    fn run(&self, isa: Isa) -> Vec<f32> {
        let stride = self.panels * PANEL + 3;
        // The last row ends with the columns of its panels.
        let mut out = Guarded::new(&vec![f32::NAN; (self.rows * stride).saturating_sub(3)]);
        let product = Product {
            panel: self.panel.as_ptr(),
            panel_bytes: self.panel_bytes,
            panels: self.panels,
            groups: self.groups,
            x: self.x.as_ptr().cast(),
            x_flipped: self.flipped.as_ptr().cast(),
            x_scales: self.scales.as_ptr(),
            x_sums: self.sums.as_ptr().cast(),
            x_offsets: self.offsets.as_ptr(),
            rows: self.rows,
            out: out.as_mut_ptr(),
            out_stride: stride,
        };
        // SAFETY: `new` made `panels` panels of `groups` groups, and `rows` rows of activations with a scale, an offset,
        // a flipped group if the quants have eight bits, and two sums if the layout has halves, for each group. `out` has
        // `rows` rows of `panels * PANEL` values.
        unsafe { Dot::of(isa).run(&product, self.layout) };
        assert!(out.chunks(stride).all(|row| row[self.panels * PANEL..].iter().all(|x| x.is_nan())));
        out.chunks(stride).flat_map(|row| row[..self.panels * PANEL].to_vec()).collect()
    }

    /// Output `column` of row `row` by the definition, and the sum of the magnitudes of its terms.
    fn expected(&self, row: usize, column: usize) -> (f64, f64) {
        let (layout, panel, column) = (self.layout, column / PANEL, column % PANEL);
        let (mut sum, mut size) = (0.0, 0.0);
        for group in 0..self.groups {
            let bytes = &self.panel[panel * self.panel_bytes + group * group_bytes(layout)..];
            let number = |which: usize| {
                let at = (which * PANEL + column) * 2;
                f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f64()
            };
            for i in 0..GROUP {
                let (at, high) = quant_offset(layout, column, i);
                let quant = match (layout.bits, high) {
                    (4, true) => bytes[at] >> 4,
                    (4, false) => bytes[at] & 15,
                    _ => bytes[at],
                };
                let scale = number(if layout.halves { i / 16 } else { 0 });
                let first = if layout.halves { 2 + i / 16 } else { 1 };
                let (zero, minimum) =
                    if layout.minimum { (0, number(first)) } else { (zero(layout.bits), 0.0) };
                let weight = scale * (f64::from(quant) - f64::from(zero)) + minimum;
                let x = f64::from(self.x[(row * self.groups + group) * GROUP + i].cast_signed())
                    * f64::from(self.scales[row * self.groups + group]);
                sum += weight * x;
                // The kernel adds the product with the zero and subtracts it again, so its magnitude counts as well.
                size += (weight.abs() + scale.abs() * f64::from(zero)) * x.abs();
            }
        }
        (sum, size)
    }
}

/// Sizes below, at and above the heights and pairs of tiles: rows, panels and groups.
fn sizes() -> impl Iterator<Item = (usize, usize, usize)> {
    (0..=14).flat_map(|rows| [0, 1, 2, 3].map(|panels| (rows, panels, 2))).chain([
        (7, 2, 0),
        (13, 2, 1),
        (24, 5, 3),
    ])
}

/// The instruction sets of this machine. Names those of its architecture that the CPU lacks, whose products are not tested.
fn tested() -> Vec<Isa> {
    let architecture =
        |isa: &Isa| matches!(isa, Isa::Neon | Isa::Dotprod | Isa::I8mm) == cfg!(target_arch = "aarch64");
    for isa in Isa::ALL.into_iter().filter(|isa| architecture(isa) && !isa.is_available()) {
        println!("{isa}: skipped, this CPU lacks it");
    }
    Isa::available().collect()
}

#[test]
fn products_are_exact_and_access_no_other_memory() {
    let sets = tested();
    for layout in LAYOUTS {
        for (rows, panels, groups) in sizes() {
            let case = Case::new(RANDOM, layout, rows, panels, groups);
            for &isa in &sets {
                for (index, ours) in case.run(isa).into_iter().enumerate() {
                    let (exact, size) = case.expected(index / (panels * PANEL), index % (panels * PANEL));
                    let error = (f64::from(ours) - exact).abs();
                    assert!(
                        error <= 1e-6 * size + 1e-12,
                        "{isa} {layout:?} {rows}x{panels}x{groups}: {ours} {exact}"
                    );
                }
            }
        }
    }
}

#[test]
fn integer_sums_equal_the_reference_at_the_largest_values() {
    let sets = tested();
    for layout in LAYOUTS {
        for (rows, panels, groups) in sizes() {
            let case = Case::new(EXTREME, layout, rows, panels, groups);
            for &isa in &sets {
                for (index, ours) in case.run(isa).into_iter().enumerate() {
                    let (exact, size) = case.expected(index / (panels * PANEL), index % (panels * PANEL));
                    assert!(size < f64::from(1 << 23), "sums of floats are exact");
                    assert_eq!(f64::from(ours), exact, "{isa} {layout:?} {rows}x{panels}x{groups}");
                }
            }
        }
    }
}

/// All sets but the portable one multiply and add in one rounding, in the same order.
#[test]
fn sets_of_an_architecture_agree_to_the_bit() {
    let mut sets = tested();
    sets.retain(|isa| *isa != Isa::Portable);
    for layout in LAYOUTS {
        for (rows, panels, groups) in sizes() {
            let case = Case::new(RANDOM, layout, rows, panels, groups);
            let bits = |isa: Isa| case.run(isa).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            for pair in sets.windows(2) {
                assert_eq!(bits(pair[0]), bits(pair[1]), "{pair:?} {layout:?} {rows}x{panels}x{groups}");
            }
        }
    }
}

/// Tiles of any height give a row the same bits.
#[test]
fn a_row_does_not_depend_on_the_number_of_rows() {
    for layout in LAYOUTS {
        for isa in tested() {
            let mut case = Case::new(RANDOM, layout, 13, 3, 2);
            let bits = |case: &Case| case.run(isa).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let all = bits(&case);
            for rows in 1..13 {
                case.rows = rows;
                assert_eq!(bits(&case), all[..rows * 3 * PANEL], "{isa} {layout:?} {rows}");
            }
        }
    }
}

#[test]
fn activations_are_flipped_as_defined() {
    let mut next = numbers(1);
    for groups in 0..4 {
        let x: Vec<i8> = (0..groups * GROUP).map(|_| (RANDOM.x)(next())).collect();
        let expected: Vec<_> = x.as_chunks().0.iter().map(FlippedGroup::new).collect();
        for dot in tested().into_iter().map(Dot::of).filter(|dot| dot.flips()) {
            let mut flipped = vec![FlippedGroup::default(); groups];
            dot.flip(&x, &mut flipped);
            assert_eq!(flipped, expected);
        }
    }
}

#[test]
fn sets_with_dot_products_use_them() {
    let same = |a: Isa, b: Isa| std::ptr::fn_addr_eq(Dot::of(a).product, Dot::of(b).product);
    for (plain, better) in [
        (Isa::Avx2, Isa::AvxVnni),
        (Isa::Portable, Isa::Neon),
        (Isa::Neon, Isa::Dotprod),
        (Isa::Dotprod, Isa::I8mm),
    ] {
        if better.is_available() {
            assert!(!same(plain, better), "{better}");
        } else {
            assert!(same(Isa::Portable, better), "{better}");
        }
    }
}
