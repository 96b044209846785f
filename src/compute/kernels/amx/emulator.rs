//! AMX in software, for tests on CPUs without it. Such a CPU traps at each of these instructions; a handler of the
//! signal carries it out as Intel's Software Developer's Manual says, and goes on behind it. So the very code runs
//! that runs on AMX, and what a CPU would refuse ends the test.

use std::cell::RefCell;
use std::sync::OnceLock;

/// A tile register: 16 rows of 16 units.
#[derive(Clone, Copy)]
struct Register {
    rows: usize,
    /// Bytes of a row.
    bytes: usize,
    units: [[u32; 16]; 16],
}

/// What AMX adds to the state of a thread.
struct Tiles {
    configured: bool,
    registers: [Register; 8],
}

/// An instruction with the addresses that it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    /// LDTILECFG
    Configure { from: u64 },
    /// TILERELEASE
    Release,
    /// TILEZERO
    Zero { tile: usize },
    /// TILELOADD
    Load { tile: usize, from: u64, stride: u64 },
    /// TILESTORED
    Store { tile: usize, to: u64, stride: u64 },
    /// TDPBF16PS
    Multiply { c: usize, a: usize, b: usize },
}

thread_local! {
    static TILES: RefCell<Tiles> = const { RefCell::new(Tiles::INITIAL) };
}

/// Who was asked about illegal instructions before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Emulates AMX from now on.
pub(super) fn install() -> bool {
    // SAFETY: all zeros are a valid sigaction; both are this function's own, and the handler does what one may.
    PREVIOUS.get_or_init(|| unsafe {
        let mut previous: libc::sigaction = std::mem::zeroed();
        assert_eq!(libc::sigaction(libc::SIGILL, std::ptr::null(), &raw mut previous), 0);
        previous
    });
    // SAFETY: as above.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_illegal_instruction as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()), 0);
    }
    true
}

/// Whether this thread's tiles are configured.
pub(super) fn configured() -> bool {
    TILES.with_borrow(|tiles| tiles.configured)
}

/// Where the kernel keeps the general registers, in the order that instructions number them.
const REGISTERS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn on_illegal_instruction(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a context, and the code at its instruction pointer was being executed.
    unsafe {
        let saved = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let registers = REGISTERS.map(|register| saved[register as usize].cast_unsigned());
        let start = saved[libc::REG_RIP as usize].cast_unsigned();
        let mut at = start;
        // A trap is dear: what follows at once is carried out in the same one.
        while let Some((instruction, length)) = decode(at as *const u8, &registers) {
            if let Err(reason) = TILES.with_borrow_mut(|tiles| tiles.run(instruction)) {
                // Not a panic: it could not unwind from here, and its text would be lost.
                let text = format!("AMX: {instruction:?}: {reason}\n");
                libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
                std::process::abort();
            }
            at += length as u64;
        }
        saved[libc::REG_RIP as usize] = at.cast_signed();
        if at == start {
            pass_on(signal, info, context);
        }
    }
}

/// Another illegal instruction: for whoever was asked before.
///
/// # Safety
/// The arguments are those of a handler.
unsafe fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(previous) = PREVIOUS.get() else { return };
    // SAFETY: a handler of this form was installed with the flag that says so; otherwise the previous action is back
    // when the instruction is executed again.
    unsafe {
        if previous.sa_flags & libc::SA_SIGINFO != 0 {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            std::mem::transmute::<usize, Handler>(previous.sa_sigaction)(signal, info, context);
        } else {
            libc::sigaction(signal, previous, std::ptr::null_mut());
        }
    }
}

/// The AMX instruction at `code` and its length, if it is one of those here.
///
/// # Safety
/// `code` points to an instruction.
unsafe fn decode(code: *const u8, registers: &[u64; 16]) -> Option<(Instruction, usize)> {
    // SAFETY: bytes are asked for one after another, as far as those before say that the instruction goes.
    let byte = |i: usize| unsafe { *code.add(i) };
    // VEX in three bytes, map 0F 38, W = 0, 128 bits.
    if byte(0) != 0xc4 || byte(1) & 0x1f != 2 || byte(2) & 0x84 != 0 {
        return None;
    }
    // The fourth bits of three register numbers, inverted as all of VEX.
    let [reg_high, index_high, base_high] =
        [0x80, 0x40, 0x20].map(|bit| usize::from(byte(1) & bit == 0) << 3);
    let third = usize::from(!(byte(2) >> 3) & 15);
    let (prefix, opcode, modrm) = (byte(2) & 3, byte(3), byte(4));
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    if reg_high != 0 || (third != 0 && opcode != 0x5c) {
        return None;
    }
    const NONE: u8 = 0;
    const F3: u8 = 2;
    const F2: u8 = 3;
    if mode == 3 {
        let instruction = match (opcode, prefix) {
            (0x49, NONE) if (reg, rm) == (0, 0) => Instruction::Release,
            (0x49, F2) if rm == 0 => Instruction::Zero { tile: reg },
            (0x5c, F3) if base_high == 0 && third < 8 => Instruction::Multiply { c: reg, a: rm, b: third },
            _ => return None,
        };
        return Some((instruction, 5));
    }
    let mut length = 5;
    let number = |at: usize, bytes: usize| {
        let mut number = [0; 4];
        number.iter_mut().zip(at..).take(bytes).for_each(|(x, i)| *x = byte(i));
        // Sign-extended from one byte or from four.
        let shift = 32 - 8 * bytes as u32;
        i64::from(i32::from_le_bytes(number) << shift >> shift).cast_unsigned()
    };
    let mut base = Some(rm | base_high);
    let (mut stride, with_stride) = (0, rm == 4);
    if with_stride {
        let sib = byte(length);
        length += 1;
        base = Some(usize::from(sib & 7) | base_high);
        let index = usize::from(sib >> 3 & 7) | index_high;
        stride = if index == 4 { 0 } else { registers[index] << (sib >> 6) };
    }
    let low = base.map_or(0, |base| base & 7);
    let displaced = match mode {
        0 if low == 5 => {
            base = None;
            4
        }
        0 => 0,
        1 => 1,
        _ => 4,
    };
    let displacement = if displaced == 0 { 0 } else { number(length, displaced) };
    length += displaced;
    let start = match base {
        Some(base) => registers[base],
        None if with_stride => 0,
        // Relative to the next instruction.
        None => (code as u64).wrapping_add(length as u64),
    };
    let address = start.wrapping_add(displacement);
    let instruction = match (opcode, prefix) {
        (0x49, NONE) if reg == 0 => Instruction::Configure { from: address.wrapping_add(stride) },
        (0x4b, F2) if with_stride => Instruction::Load { tile: reg, from: address, stride },
        (0x4b, F3) if with_stride => Instruction::Store { tile: reg, to: address, stride },
        _ => return None,
    };
    Some((instruction, length))
}

fn refuse_unless(fine: bool, reason: &'static str) -> Result<(), &'static str> {
    if fine { Ok(()) } else { Err(reason) }
}

impl Register {
    const UNUSED: Self = Self { rows: 0, bytes: 0, units: [[0; 16]; 16] };
}

impl Tiles {
    const INITIAL: Self = Self { configured: false, registers: [Register::UNUSED; 8] };

    /// # Safety
    /// Memory that the instruction names may be read or written.
    unsafe fn run(&mut self, instruction: Instruction) -> Result<(), &'static str> {
        match instruction {
            Instruction::Configure { from } => {
                // SAFETY: the caller's.
                *self = Self::configured_by(&unsafe { (from as *const [u8; 64]).read_unaligned() })?;
            }
            Instruction::Release => *self = Self::INITIAL,
            Instruction::Zero { tile } => self.tile(tile)?.units = [[0; 16]; 16],
            Instruction::Load { tile, from, stride } => {
                let tile = self.tile(tile)?;
                // What is beyond its rows and their bytes becomes zero.
                tile.units = [[0; 16]; 16];
                for (row, units) in (0..).zip(&mut tile.units[..tile.rows]) {
                    let from = from.wrapping_add(stride.wrapping_mul(row)) as *const u8;
                    // SAFETY: the caller's; a row of the register has 64 bytes.
                    unsafe { from.copy_to_nonoverlapping(units.as_mut_ptr().cast(), tile.bytes) };
                }
            }
            Instruction::Store { tile, to, stride } => {
                let tile = self.tile(tile)?;
                for (row, units) in (0..).zip(&tile.units[..tile.rows]) {
                    let to = to.wrapping_add(stride.wrapping_mul(row)) as *mut u8;
                    // SAFETY: as above.
                    unsafe { to.copy_from_nonoverlapping(units.as_ptr().cast(), tile.bytes) };
                }
            }
            Instruction::Multiply { c, a, b } => {
                refuse_unless(c != a && a != b && b != c, "a tile is used twice")?;
                let (mut sums, a, b) = (*self.tile(c)?, *self.tile(a)?, *self.tile(b)?);
                let units = [sums, a, b].iter().all(|tile| tile.bytes % 4 == 0);
                refuse_unless(units, "not of whole units")?;
                refuse_unless(sums.rows == a.rows, "rows of the sums and of the left operand")?;
                refuse_unless(sums.bytes == b.bytes, "columns of the sums and of the right operand")?;
                refuse_unless(a.bytes / 4 == b.rows, "units to sum over")?;
                multiply(&mut sums, &a, &b);
                self.registers[c] = sums;
            }
        }
        Ok(())
    }

    fn tile(&mut self, index: usize) -> Result<&mut Register, &'static str> {
        refuse_unless(self.configured, "tiles are not configured")?;
        refuse_unless(self.registers[index].rows > 0, "a tile is not configured")?;
        Ok(&mut self.registers[index])
    }

    fn configured_by(bytes: &[u8; 64]) -> Result<Self, &'static str> {
        refuse_unless(bytes[0] == 1, "palette")?;
        refuse_unless(bytes[1] == 0, "a first row")?;
        let reserved = [&bytes[2..16], &bytes[32..48], &bytes[56..]].concat();
        refuse_unless(reserved.iter().all(|&byte| byte == 0), "reserved bytes")?;
        let mut tiles = Self { configured: true, ..Self::INITIAL };
        for (index, tile) in tiles.registers.iter_mut().enumerate() {
            tile.rows = bytes[48 + index].into();
            tile.bytes = u16::from_le_bytes([bytes[16 + 2 * index], bytes[17 + 2 * index]]).into();
            refuse_unless(tile.rows <= 16, "rows of a tile")?;
            refuse_unless(tile.bytes <= 64, "bytes of a tile's rows")?;
            refuse_unless((tile.rows == 0) == (tile.bytes == 0), "a tile of rows or columns alone")?;
        }
        Ok(tiles)
    }
}

/// Denormals are zero, in operands and in results.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0_f32.copysign(x) } else { x }
}

/// The first element of a unit, and the second.
#[inline(always)]
fn elements(unit: u32) -> (f32, f32) {
    (flushed(f32::from_bits(unit << 16)), flushed(f32::from_bits(unit & 0xffff_0000)))
}

fn multiply(sums: &mut Register, a: &Register, b: &Register) {
    #[target_feature(enable = "avx2,fma")]
    fn fast(sums: &mut Register, a: &Register, b: &Register) {
        products(sums, a, b);
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the CPU has the instructions.
        unsafe { fast(sums, a, b) }
    } else {
        products(sums, a, b);
    }
}

/// First and second elements are summed up apart, then together, then added to what was there.
#[inline(always)]
fn products(sums: &mut Register, a: &Register, b: &Register) {
    let columns = sums.bytes / 4;
    for (sums, units) in sums.units.iter_mut().zip(&a.units).take(sums.rows) {
        let (mut first, mut second) = ([0.0_f32; 16], [0.0_f32; 16]);
        for (unit, row) in units.iter().zip(&b.units).take(b.rows) {
            let (x, y) = elements(*unit);
            for (column, unit) in row.iter().enumerate() {
                let (p, q) = elements(*unit);
                first[column] = flushed(x.mul_add(p, first[column]));
                second[column] = flushed(y.mul_add(q, second[column]));
            }
        }
        for (column, sum) in sums[..columns].iter_mut().enumerate() {
            let both = flushed(first[column] + second[column]);
            *sum = flushed(flushed(f32::from_bits(*sum)) + both).to_bits();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::arch::asm;

    use half::bf16;

    use super::*;
    use crate::compute::Isa;

    /// The value of general register `i`.
    fn registers() -> [u64; 16] {
        std::array::from_fn(|i| 0x1000 * (i as u64 + 1))
    }

    fn decoded(code: &[u8]) -> Option<(Instruction, usize)> {
        // SAFETY: whole instructions.
        unsafe { decode(code.as_ptr(), &registers()) }
    }

    #[test]
    fn instructions_are_those_of_the_manual() {
        use Instruction::*;
        let code = [0xc4, 0xe2, 0x78, 0x49, 0x05, 0xf0, 0xff, 0xff, 0xff];
        let cases: [(&[u8], Instruction); 15] = [
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
        // ud2; sttilecfg; tileloadd without SIB; tdpbssd; W = 1; 256 bits; vvvv used; tmm8 in each place.
        for code in [
            &[0x0f, 0x0b][..],
            &[0xc4, 0xe2, 0x79, 0x49, 0x00],
            &[0xc4, 0xe2, 0x7b, 0x4b, 0x30],
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
        // SAFETY: tests name memory of theirs.
        unsafe { tiles.run(instruction) }
    }

    #[test]
    fn what_a_cpu_refuses_is_refused() {
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
        sums.units[..a.rows]
            .iter()
            .flat_map(|row| row[..columns].iter().map(|&x| f32::from_bits(x)))
            .collect()
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
        // First elements lose a one beside 2^24; the second ones, apart from them, do not, nor what was there.
        let a = tile(3, &[(4096.0, 1.0), (1.0, 0.0), (-4096.0, 0.0)]);
        let b = tile(1, &[(4096.0, 1.0), (1.0, 0.0), (4096.0, 0.0)]);
        assert_eq!(product(&[0.5], &a, &b), [1.5]);
        // Ties go to even: 2^24 + 3 is halfway.
        let a = tile(2, &[(4096.0, 0.0), (3.0, 0.0)]);
        assert_eq!(product(&[0.0], &a, &tile(1, &[(4096.0, 0.0), (1.0, 0.0)])), [two(24) + 4.0]);
        // A product may be too large as long as the sum is not.
        let a = tile(2, &[(-two(127), 0.0), (two(100), 0.0)]);
        assert_eq!(product(&[0.0], &a, &tile(1, &[(1.0, 0.0), (two(28), 0.0)])), [two(127)]);
        // Denormals: a result, an operand of each side, what was there, what comes out.
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
        if !Isa::Amx.is_available() {
            return;
        }
        let bytes: Vec<u8> = (0..64).collect();
        let (configuration, mut stored) = (configuration(&[(3, 6)]), [0xee_u8; 64]);
        // SAFETY: rows of six bytes from 10 on, 16 apart, are read; at 0 and at 32, 8 apart, written.
        unsafe {
            asm!(
                "ldtilecfg [{configuration} + {step}*4 + 0x1000]",
                "tileloadd tmm0, [r13 + {step}*4 - 5]",
                "tilestored [r12 + {step}*2], tmm0",
                "tilezero tmm0",
                "tilestored [r12 + {step}*2 + 32], tmm0",
                "tilerelease",
                configuration = in(reg) configuration.as_ptr().wrapping_sub(16 + 0x1000),
                step = in(reg) 4_usize,
                in("r13") bytes.as_ptr().add(15),
                in("r12") stored.as_mut_ptr(),
                out("tmm0") _,
                options(nostack),
            );
        }
        let mut expected = [0xee; 64];
        for row in 0..3 {
            expected[8 * row..][..6].copy_from_slice(&bytes[10 + 16 * row..][..6]);
            expected[32 + 8 * row..][..6].fill(0);
        }
        assert_eq!(stored, expected);
    }

    #[test]
    fn what_is_illegal_still_ends_the_process() {
        install();
        let end = |code: fn()| {
            // SAFETY: the child runs `code` alone, which ends it, and glibc's allocator is usable after fork.
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
        // SAFETY: it gets no further.
        let illegal = end(|| unsafe { asm!("ud2") });
        assert_eq!(illegal, Some(libc::SIGILL));
        // SAFETY: nor does this: no tile is configured.
        let refused = end(|| unsafe { asm!("tilezero tmm0", out("tmm0") _) });
        assert!(matches!(refused, Some(libc::SIGABRT | libc::SIGILL)), "{refused:?}");
    }
}
