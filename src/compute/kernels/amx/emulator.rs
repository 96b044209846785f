//! An emulator of AMX, for tests on CPUs without it. Such a CPU raises SIGILL at each AMX instruction. The signal handler
//! executes the instruction as Intel's Software Developer's Manual specifies, and resumes after it. So tests run the same
//! machine code as a CPU with AMX, and an instruction that a CPU would refuse ends the test.

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

/// The state that AMX adds to a thread.
struct Tiles {
    configured: bool,
    registers: [Register; 8],
}

/// A decoded instruction with its effective addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    /// LDTILECFG
    Configure { from: u64 },
    /// TILERELEASE
    Release,
    /// TILEZERO
    Zero { tile: usize },
    /// TILELOADD, or TILELOADDT1, which differs in what the caches keep.
    Load { tile: usize, from: u64, stride: u64 },
    /// TILESTORED
    Store { tile: usize, to: u64, stride: u64 },
    /// TDPBF16PS
    Multiply { c: usize, a: usize, b: usize },
}

thread_local! {
    static TILES: RefCell<Tiles> = const { RefCell::new(Tiles::INITIAL) };
}

/// An instruction that does nothing.
const NOP: u8 = 0x90;

/// The handler of SIGILL before the emulator was installed.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the emulator.
pub(crate) fn install() -> bool {
    // SAFETY: all zeros are a valid `sigaction`; `previous` is writable, and a null action changes nothing.
    PREVIOUS.get_or_init(|| unsafe {
        let mut previous: libc::sigaction = std::mem::zeroed();
        assert_eq!(libc::sigaction(libc::SIGILL, std::ptr::null(), &raw mut previous), 0);
        previous
    });
    // SAFETY: all zeros are a valid `sigaction`; `action` is initialized, and its handler has the signature that
    // SA_SIGINFO requires.
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

/// Indices of the general registers in a signal context, in the order in which instructions number them.
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
    // SAFETY: the kernel passes a valid `ucontext_t`, which this handler alone accesses. The instruction pointer points to
    // code that the CPU was executing. The addresses of an instruction are those that the CPU would have accessed.
    unsafe {
        let saved = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let registers = REGISTERS.map(|register| saved[register as usize].cast_unsigned());
        let start = saved[libc::REG_RIP as usize].cast_unsigned();
        let mut at = start;
        // A trap is slow, so AMX instructions that follow, with or without NOPs between them, are executed in the same one.
        while let Some((instruction, length)) = decode(at as *const u8, &registers) {
            if let Err(reason) = TILES.with_borrow_mut(|tiles| tiles.run(instruction)) {
                // A panic could not unwind from a signal handler, and its text would be lost.
                let text = format!("AMX: {instruction:?}: {reason}\n");
                libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
                std::process::abort();
            }
            at += length as u64;
            while (at as *const u8).read() == NOP {
                at += 1;
            }
        }
        saved[libc::REG_RIP as usize] = at.cast_signed();
        if at == start {
            pass_on(signal, info, context);
        }
    }
}

/// Passes another illegal instruction to the previous handler.
///
/// # Safety
///
/// - The arguments are those that the kernel passed to the handler.
unsafe fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(previous) = PREVIOUS.get() else { return };
    // SAFETY: with SA_SIGINFO, `sa_sigaction` is the address of a handler with this signature, and the arguments are those
    // of the kernel. Otherwise `previous` is a valid action, which handles the instruction when it runs again.
    unsafe {
        if previous.sa_flags & libc::SA_SIGINFO != 0 {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            std::mem::transmute::<usize, Handler>(previous.sa_sigaction)(signal, info, context);
        } else {
            libc::sigaction(signal, previous, std::ptr::null_mut());
        }
    }
}

/// Decodes the AMX instruction at `code`, and returns it with its length; `None` for any other instruction.
///
/// # Safety
///
/// - `code` points to a whole instruction.
unsafe fn decode(code: *const u8, registers: &[u64; 16]) -> Option<(Instruction, usize)> {
    // SAFETY: `code` points to a whole instruction. A byte is read only if the bytes before it say that the instruction
    // includes it.
    let byte = |i: usize| unsafe { *code.add(i) };
    // VEX in three bytes, map 0F 38, W = 0, 128 bits.
    if byte(0) != 0xc4 || byte(1) & 0x1f != 2 || byte(2) & 0x84 != 0 {
        return None;
    }
    // The fourth bits of three register numbers. VEX stores them inverted.
    let [reg_high, index_high, base_high] =
        [0x80, 0x40, 0x20].map(|bit| usize::from(byte(1) & bit == 0) << 3);
    let third = usize::from(!(byte(2) >> 3) & 15);
    let (prefix, opcode, modrm) = (byte(2) & 3, byte(3), byte(4));
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    if reg_high != 0 || (third != 0 && opcode != 0x5c) {
        return None;
    }
    const NONE: u8 = 0;
    const OPERAND_SIZE: u8 = 1;
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
        (0x4b, F2 | OPERAND_SIZE) if with_stride => Instruction::Load { tile: reg, from: address, stride },
        (0x4b, F3) if with_stride => Instruction::Store { tile: reg, to: address, stride },
        _ => return None,
    };
    Some((instruction, length))
}

fn refuse_unless(valid: bool, reason: &'static str) -> Result<(), &'static str> {
    if valid { Ok(()) } else { Err(reason) }
}

impl Register {
    const UNUSED: Self = Self { rows: 0, bytes: 0, units: [[0; 16]; 16] };
}

impl Tiles {
    const INITIAL: Self = Self { configured: false, registers: [Register::UNUSED; 8] };

    /// Executes an instruction.
    ///
    /// # Safety
    ///
    /// - [`Configure`](Instruction::Configure) has 64 readable bytes at its address.
    /// - [`Load`](Instruction::Load) has readable bytes, and [`Store`](Instruction::Store) writable ones, for each row of
    ///   its tile, as many as the tile's rows are configured to have.
    unsafe fn run(&mut self, instruction: Instruction) -> Result<(), &'static str> {
        match instruction {
            Instruction::Configure { from } => {
                // SAFETY: 64 bytes are readable at `from`, and the read is unaligned.
                *self = Self::configured_by(&unsafe { (from as *const [u8; 64]).read_unaligned() })?;
            }
            Instruction::Release => *self = Self::INITIAL,
            Instruction::Zero { tile } => self.tile(tile)?.units = [[0; 16]; 16],
            Instruction::Load { tile, from, stride } => {
                let tile = self.tile(tile)?;
                // Units beyond the configured rows and bytes become zero.
                tile.units = [[0; 16]; 16];
                for (row, units) in (0..).zip(&mut tile.units[..tile.rows]) {
                    let from = from.wrapping_add(stride.wrapping_mul(row)) as *const u8;
                    // SAFETY: `tile.bytes` bytes are readable at each row; a row of the register has `64 >= tile.bytes`.
                    unsafe { from.copy_to_nonoverlapping(units.as_mut_ptr().cast(), tile.bytes) };
                }
            }
            Instruction::Store { tile, to, stride } => {
                let tile = self.tile(tile)?;
                for (row, units) in (0..).zip(&tile.units[..tile.rows]) {
                    let to = to.wrapping_add(stride.wrapping_mul(row)) as *mut u8;
                    // SAFETY: `tile.bytes` bytes are writable at each row; a row of the register has `64 >= tile.bytes`.
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

/// Replaces a denormal by zero, as AMX does in operands and results.
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
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has AVX-512F by the check above.
        unsafe { wide_products(sums, a, b) }
    } else {
        products(sums, a, b);
    }
}

/// [`products`] for sixteen columns at a time: tests spend their time here, and builds of tests vectorize no loops.
#[target_feature(enable = "avx512f")]
fn wide_products(sums: &mut Register, a: &Register, b: &Register) {
    use std::arch::x86_64::*;
    let (sign, smallest) = (_mm512_set1_epi32(i32::MIN), _mm512_set1_ps(f32::MIN_POSITIVE));
    let flushed = |x| {
        let denormal = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(x), smallest);
        let bits = _mm512_castps_si512(x);
        _mm512_castsi512_ps(_mm512_mask_and_epi32(bits, denormal, bits, sign))
    };
    // SAFETY: a row has sixteen units of four bytes, and the read is unaligned.
    let load = |units: &[u32; 16]| unsafe { _mm512_loadu_epi32(units.as_ptr().cast()) };
    let low = |units| flushed(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(units)));
    let high = |units| {
        flushed(_mm512_castsi512_ps(_mm512_and_epi32(
            units,
            _mm512_set1_epi32(0xffff_0000_u32.cast_signed()),
        )))
    };
    let right = b.units.each_ref().map(|units| (low(load(units)), high(load(units))));
    let columns = 0xffff_u16 >> (16 - sums.bytes / 4);
    for (sums, units) in sums.units.iter_mut().zip(&a.units).take(sums.rows) {
        let (mut first, mut second) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for (unit, (p, q)) in units.iter().zip(&right).take(b.rows) {
            let (x, y) = elements(*unit);
            first = flushed(_mm512_fmadd_ps(_mm512_set1_ps(x), *p, first));
            second = flushed(_mm512_fmadd_ps(_mm512_set1_ps(y), *q, second));
        }
        let both = flushed(_mm512_add_ps(first, second));
        let sum = flushed(_mm512_add_ps(flushed(_mm512_castsi512_ps(load(sums))), both));
        // SAFETY: a row has sixteen units of four bytes, of which the mask names some, and the write is unaligned.
        unsafe { _mm512_mask_storeu_epi32(sums.as_mut_ptr().cast(), columns, _mm512_castps_si512(sum)) };
    }
}

/// Sums the products of first and of second elements separately, and adds both sums to `sums`.
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
#[path = "emulator_tests.rs"]
mod tests;
