//! Tests the emulator against Intel's manual: encodings, results and faults of instructions.

use std::arch::asm;

use half::bf16;

use super::*;
use crate::compute::isa::{Isa, amx_is_granted};

/// The value of general register `i`.
fn registers() -> [u64; 16] {
    std::array::from_fn(|i| 0x1000 * (i as u64 + 1))
}

fn decoded(code: &[u8]) -> Option<(Instruction, usize)> {
    // SAFETY: `code` is a whole instruction, or starts with bytes that end the decoding.
    unsafe { decode(code.as_ptr(), &registers()) }
}

#[test]
fn instructions_are_those_of_the_manual() {
    use Instruction::*;
    let code = [0xc4, 0xe2, 0x78, 0x49, 0x05, 0xf0, 0xff, 0xff, 0xff];
    let cases: [(&[u8], Instruction); 17] = [
        // ldtilecfg [rax], [rsp + 8], [rcx + r9*2 - 128], [rip - 16]
        (&[0xc4, 0xe2, 0x78, 0x49, 0x00], Configure { from: 0x1000 }),
        (&[0xc4, 0xe2, 0x78, 0x49, 0x44, 0x24, 0x08], Configure { from: 0x5008 }),
        (&[0xc4, 0xa2, 0x78, 0x49, 0x44, 0x49, 0x80], Configure { from: 0x2000 + 0xa000 * 2 - 128 }),
        (&code, Configure { from: code.as_ptr() as u64 + 9 - 16 }),
        // tilerelease, tilezero tmm3
        (&[0xc4, 0xe2, 0x78, 0x49, 0xc0], Release),
        (&[0xc4, 0xe2, 0x7b, 0x49, 0xd8], Zero { tile: 3 }),
        // tileloadd tmm6, [rdx + rcx]; tmm7, [r13 + r14 + 64]; tmm5, [rsi + rdi*4 - 128]; tmm0, [0x100];
        // tmm4, [r12]; tmm1, [rbp + r12*8 + 0x1000]
        (&[0xc4, 0xe2, 0x7b, 0x4b, 0x34, 0x0a], Load { tile: 6, from: 0x3000, stride: 0x2000 }),
        (&[0xc4, 0x82, 0x7b, 0x4b, 0x7c, 0x35, 0x40], Load { tile: 7, from: 0xe040, stride: 0xf000 }),
        (
            &[0xc4, 0xe2, 0x7b, 0x4b, 0x6c, 0xbe, 0x80],
            Load { tile: 5, from: 0x7000 - 128, stride: 0x8000 * 4 },
        ),
        (
            &[0xc4, 0xe2, 0x7b, 0x4b, 0x04, 0x25, 0x00, 0x01, 0x00, 0x00],
            Load { tile: 0, from: 0x100, stride: 0 },
        ),
        (&[0xc4, 0xc2, 0x7b, 0x4b, 0x24, 0x24], Load { tile: 4, from: 0xd000, stride: 0 }),
        (
            &[0xc4, 0xa2, 0x7b, 0x4b, 0x8c, 0xe5, 0x00, 0x10, 0x00, 0x00],
            Load { tile: 1, from: 0x7000, stride: 0xd000 * 8 },
        ),
        // tileloaddt1 tmm6, [rdx + rcx]; tmm7, [r13 + r14 + 64]
        (&[0xc4, 0xe2, 0x79, 0x4b, 0x34, 0x0a], Load { tile: 6, from: 0x3000, stride: 0x2000 }),
        (&[0xc4, 0x82, 0x79, 0x4b, 0x7c, 0x35, 0x40], Load { tile: 7, from: 0xe040, stride: 0xf000 }),
        // tilestored [rdx + rcx - 2], tmm2
        (
            &[0xc4, 0xe2, 0x7a, 0x4b, 0x94, 0x0a, 0xfe, 0xff, 0xff, 0xff],
            Store { tile: 2, to: 0x2ffe, stride: 0x2000 },
        ),
        // tdpbf16ps tmm1, tmm4, tmm7; tmm6, tmm0, tmm2
        (&[0xc4, 0xe2, 0x42, 0x5c, 0xcc], Multiply { c: 1, a: 4, b: 7 }),
        (&[0xc4, 0xe2, 0x6a, 0x5c, 0xf0], Multiply { c: 6, a: 0, b: 2 }),
    ];
    for (code, instruction) in cases {
        assert_eq!(decoded(code), Some((instruction, code.len())), "{code:x?}");
    }
    // ud2; sttilecfg; tileloadd and tileloaddt1 without SIB; tdpbssd; W = 1; 256 bits; vvvv used; tmm8 in each place.
    for code in [
        &[0x0f, 0x0b][..],
        &[0xc4, 0xe2, 0x79, 0x49, 0x00],
        &[0xc4, 0xe2, 0x7b, 0x4b, 0x30],
        &[0xc4, 0xe2, 0x79, 0x4b, 0x30],
        &[0xc4, 0xe2, 0x43, 0x5e, 0xcc],
        &[0xc4, 0xe2, 0xf8, 0x49, 0x00],
        &[0xc4, 0xe2, 0x7c, 0x49, 0x00],
        &[0xc4, 0xe2, 0x70, 0x49, 0x00],
        &[0xc4, 0x62, 0x42, 0x5c, 0xcc],
        &[0xc4, 0xc2, 0x42, 0x5c, 0xcc],
        &[0xc4, 0xe2, 0x02, 0x5c, 0xcc],
    ] {
        assert_eq!(decoded(code), None, "{code:x?}");
    }
}

/// A configuration of tiles 0, 1, 2 …: rows, and bytes of each.
fn configuration(tiles: &[(u8, u8)]) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    for (index, &(rows, columns)) in tiles.iter().enumerate() {
        (bytes[48 + index], bytes[16 + 2 * index]) = (rows, columns);
    }
    bytes
}

fn run(tiles: &mut Tiles, instruction: Instruction) -> Result<(), &'static str> {
    // SAFETY: the tests load and store only buffers of theirs, or tiles without rows, which access no memory.
    unsafe { tiles.run(instruction) }
}

#[test]
fn invalid_configurations_and_instructions_are_refused() {
    assert!(Tiles::configured_by(&configuration(&[(16, 64); 8])).is_ok());
    for (index, value) in [(0, 0), (0, 2), (1, 1), (2, 1), (15, 1), (32, 4), (47, 1), (56, 1), (63, 1)] {
        let mut bytes = configuration(&[(16, 64); 8]);
        bytes[index] = value;
        assert!(Tiles::configured_by(&bytes).is_err(), "{index}");
    }
    for tile in [(17, 64), (16, 65), (0, 4), (1, 0)] {
        assert!(Tiles::configured_by(&configuration(&[(1, 4), tile])).is_err(), "{tile:?}");
    }
    let mut wide = configuration(&[(16, 4)]);
    wide[17] = 1;
    assert!(Tiles::configured_by(&wide).is_err());

    use Instruction::*;
    let shapes = [(2, 12), (2, 8), (2, 12), (3, 12), (2, 4), (2, 8), (2, 6)];
    let mut tiles = Tiles::configured_by(&configuration(&shapes)).unwrap();
    assert_eq!(run(&mut tiles, Multiply { c: 0, a: 1, b: 2 }), Ok(()));
    for (c, a, b, reason) in [
        (0, 0, 2, "twice"),
        (0, 1, 1, "twice"),
        (0, 2, 0, "twice"),
        (3, 1, 2, "rows of the sums"),
        (0, 1, 5, "columns"),
        (0, 4, 2, "units to sum"),
        (0, 6, 2, "whole units"),
        (0, 7, 2, "not configured"),
    ] {
        let error = run(&mut tiles, Multiply { c, a, b }).unwrap_err();
        assert!(error.contains(reason), "{c} {a} {b}: {error}");
    }
    for gone in [false, true] {
        let tile = if gone { 0 } else { 7 };
        for instruction in
            [Zero { tile }, Load { tile, from: 0, stride: 0 }, Store { tile, to: 0, stride: 0 }]
        {
            assert!(run(&mut tiles, instruction).is_err(), "{instruction:?}");
        }
        assert_eq!(run(&mut tiles, Release), Ok(()));
    }
}

/// Units of two numbers each, as a tile of `columns` columns.
fn tile(columns: usize, units: &[(f32, f32)]) -> Register {
    let mut tile = Register { rows: units.len() / columns, bytes: columns * 4, ..Register::UNUSED };
    for (row, units) in tile.units.iter_mut().zip(units.chunks(columns)) {
        for (unit, (first, second)) in row.iter_mut().zip(units) {
            let bits = [first, second].map(|x| u32::from(bf16::from_f32(*x).to_bits()));
            *unit = bits[0] | bits[1] << 16;
        }
    }
    tile
}

fn product(before: &[f32], a: &Register, b: &Register) -> Vec<f32> {
    let columns = b.bytes / 4;
    let mut sums = Register { rows: a.rows, bytes: b.bytes, ..Register::UNUSED };
    for (row, before) in sums.units.iter_mut().zip(before.chunks(columns)) {
        row.iter_mut().zip(before).for_each(|(sum, before)| *sum = before.to_bits());
    }
    multiply(&mut sums, a, b);
    assert!(sums.units[a.rows..].iter().flatten().all(|&sum| sum == 0));
    assert!(sums.units.iter().all(|row| row[columns..].iter().all(|&sum| sum == 0)));
    sums.units[..a.rows].iter().flat_map(|row| row[..columns].iter().map(|&x| f32::from_bits(x))).collect()
}

#[test]
fn sums_are_those_of_the_manual() {
    let two = |exponent: i32| 2.0_f32.powi(exponent);
    let one = |unit| tile(1, &[unit]);
    assert_eq!(product(&[1.0], &one((2.0, 3.0)), &one((5.0, -7.0))), [1.0 + 10.0 - 21.0]);
    let a = tile(2, &[(1.0, 2.0), (3.0, 4.0), (5.0, 6.0), (7.0, 8.0)]);
    let b = tile(3, &[(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (2.0, 0.0), (0.0, 2.0), (-1.0, 1.0)]);
    let before = [0.0, 0.25, 0.5, 1.0, 2.0, 4.0];
    assert_eq!(product(&before, &a, &b), [7.0, 10.25, 4.5, 20.0, 24.0, 16.0]);
    // A sum of first elements loses a 1 next to 2^24. The sum of second elements is separate and keeps it.
    let a = tile(3, &[(4096.0, 1.0), (1.0, 0.0), (-4096.0, 0.0)]);
    let b = tile(1, &[(4096.0, 1.0), (1.0, 0.0), (4096.0, 0.0)]);
    assert_eq!(product(&[0.5], &a, &b), [1.5]);
    // Ties go to even: 2^24 + 3 is halfway.
    let a = tile(2, &[(4096.0, 0.0), (3.0, 0.0)]);
    assert_eq!(product(&[0.0], &a, &tile(1, &[(4096.0, 0.0), (1.0, 0.0)])), [two(24) + 4.0]);
    // A product may be too large as long as the sum is not.
    let a = tile(2, &[(-two(127), 0.0), (two(100), 0.0)]);
    assert_eq!(product(&[0.0], &a, &tile(1, &[(1.0, 0.0), (two(28), 0.0)])), [two(127)]);
    // Denormals: a product, an operand of each side, the initial sum, the result.
    for (before, a, b) in [
        (0.0, (two(-126), 0.0), (0.5, 0.0)),
        (0.0, (two(-130), 0.0), (two(100), 0.0)),
        (0.0, (0.0, two(100)), (0.0, two(-130))),
        (two(-130), (0.0, 0.0), (0.0, 0.0)),
        (1.5 * two(-126), (-1.0, 0.0), (two(-126), 0.0)),
    ] {
        assert_eq!(product(&[before], &one(a), &one(b)), [0.0], "{before} {a:?} {b:?}");
    }
    assert!(product(&[0.0], &one((f32::NAN, 0.0)), &one((1.0, 0.0)))[0].is_nan());
    assert!(product(&[f32::INFINITY], &one((1.0, 0.0)), &one((1.0, 0.0)))[0].is_infinite());
}

#[test]
fn wide_products_are_those_of_the_plain_loops() {
    if !is_x86_feature_detected!("avx512f") {
        return;
    }
    let mut state = 7_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    for (rows, columns, depth) in [(16, 16, 16), (1, 1, 1), (5, 16, 3), (16, 7, 16), (12, 2, 9)] {
        // Elements from the smallest denormal to those whose products are too large, none of them a NaN.
        let mut element = || {
            let bits = random();
            u32::from(f32::from_bits(bits).is_finite()) * bits
        };
        let mut register = |rows: usize, columns: usize| {
            let mut units = [[0; 16]; 16];
            units.iter_mut().flatten().for_each(|unit| *unit = element() & 0xffff_0000 | element() >> 16);
            units
                .iter_mut()
                .flatten()
                .filter(|unit| **unit as u16 & 0x7f80 == 0x7f80)
                .for_each(|unit| *unit = 0);
            Register { rows, bytes: 4 * columns, units }
        };
        let (a, b) = (register(rows, depth), register(depth, columns));
        let mut sums = register(rows, columns);
        sums.units
            .iter_mut()
            .flatten()
            .filter(|unit| !f32::from_bits(**unit).is_finite())
            .for_each(|u| *u = 0);
        let mut plain = sums;
        products(&mut plain, &a, &b);
        // SAFETY: the CPU has AVX-512F by the check above.
        unsafe { wide_products(&mut sums, &a, &b) };
        for (wide, plain) in sums.units.iter().flatten().zip(plain.units.iter().flatten()) {
            let nan = f32::from_bits(*wide).is_nan() && f32::from_bits(*plain).is_nan();
            assert!(nan || wide == plain, "{rows} {columns} {depth}: {wide:x} {plain:x}");
        }
    }
}

#[test]
fn a_load_clears_what_it_does_not_fill() {
    let bytes: Vec<u8> = (1..=64).collect();
    let mut tiles = Tiles::configured_by(&configuration(&[(3, 8)])).unwrap();
    tiles.registers[0].units = [[u32::MAX; 16]; 16];
    let from = bytes.as_ptr() as u64;
    run(&mut tiles, Instruction::Load { tile: 0, from, stride: 20 }).unwrap();
    let units = &mut tiles.registers[0].units;
    for (row, first) in [1, 21, 41].into_iter().enumerate() {
        let expected: [u8; 8] = std::array::from_fn(|i| first + i as u8);
        assert_eq!([units[row][0].to_le_bytes(), units[row][1].to_le_bytes()].concat(), expected);
        units[row][..2].fill(0);
    }
    assert!(units.iter().flatten().all(|&unit| unit == 0));
}

#[test]
fn code_runs_with_addresses_of_every_form() {
    // A CPU with AMX does not use the emulator, and may refuse addressing forms that this test uses.
    if amx_is_granted() || !Isa::Amx.is_available() {
        return;
    }
    let bytes: Vec<u8> = (0..64).collect();
    let (configuration, mut stored) = (configuration(&[(3, 8)]), [0xee_u8; 96]);
    // SAFETY: `ldtilecfg` reads the 64 bytes of `configuration`, and its other operands cancel out: the pointer starts
    // 16 + 0x1000 bytes earlier. Three rows of 8 bytes are read from `bytes` at 10, 26 and 42, and at 1, 17 and 33,
    // which has 64. Three rows of 8 bytes are written to `stored` at 0, 8, 16, at 32, 40, 48 and at 64, 72, 80, which has 96.
    // `tmm0` is declared as clobbered.
    unsafe {
        asm!(
            "ldtilecfg [{configuration} + {step}*4 + 0x1000]",
            "tileloadd tmm0, [r13 + {step}*4 - 5]",
            "tilestored [r12 + {step}*2], tmm0",
            "tilezero tmm0",
            "tilestored [r12 + {step}*2 + 32], tmm0",
            "tileloaddt1 tmm0, [r13 + {step}*4 - 14]",
            "tilestored [r12 + {step}*2 + 64], tmm0",
            "tilerelease",
            configuration = in(reg) configuration.as_ptr().wrapping_sub(16 + 0x1000),
            step = in(reg) 4_usize,
            in("r13") bytes.as_ptr().add(15),
            in("r12") stored.as_mut_ptr(),
            out("tmm0") _,
            options(nostack),
        );
    }
    let mut expected = [0xee; 96];
    for row in 0..3 {
        expected[8 * row..][..8].copy_from_slice(&bytes[10 + 16 * row..][..8]);
        expected[32 + 8 * row..][..8].fill(0);
        expected[64 + 8 * row..][..8].copy_from_slice(&bytes[1 + 16 * row..][..8]);
    }
    assert_eq!(stored, expected);
}

#[test]
fn other_illegal_instructions_end_the_process() {
    install();
    let end = |code: fn()| {
        // SAFETY: the child runs only `code` and `_exit`, and glibc's allocator is usable after fork. `status` is
        // writable.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::close(libc::STDERR_FILENO);
                code();
                libc::_exit(0);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
        }
    };
    // SAFETY: `ud2` raises SIGILL, which ends the child.
    let illegal = end(|| unsafe { asm!("ud2") });
    assert_eq!(illegal, Some(libc::SIGILL));
    // SAFETY: no tile is configured, so the instruction faults and ends the child; `tmm0` is declared as clobbered.
    let refused = end(|| unsafe { asm!("tilezero tmm0", out("tmm0") _) });
    assert!(matches!(refused, Some(libc::SIGABRT | libc::SIGILL)), "{refused:?}");
}
