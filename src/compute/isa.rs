//! The instruction sets of this CPU, and the number formats of computation.

use std::fmt;
use std::str::FromStr;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use std::sync::LazyLock;

use crate::{Error, Result};

/// The environment variable that forces a lower instruction set than the best available.
pub const ISA_VARIABLE: &str = "MODEL_MANAGER_ISA";

/// An instruction set that kernels are compiled for. It is detected at run time, so one binary runs on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust: any CPU.
    Portable,
    /// NEON: every aarch64.
    Neon,
    /// NEON with dot products of signed bytes, for quantized weights.
    Dotprod,
    /// NEON with dot products of unsigned by signed bytes as well.
    I8mm,
    /// AVX2 and FMA.
    Avx2,
    /// AVX2 with dot products of bytes (AVX-VNNI), for quantized weights.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX-512 with native f16 arithmetic.
    Avx512Fp16,
    /// AVX-512 with native bf16 dot products.
    Avx512Bf16,
    /// AVX-512 with bf16, and AMX for tiles of bf16.
    Amx,
}

impl Isa {
    /// Every instruction set, slowest first.
    pub const ALL: [Self; 10] = [
        Self::Portable,
        Self::Neon,
        Self::Dotprod,
        Self::I8mm,
        Self::Avx2,
        Self::AvxVnni,
        Self::Avx512,
        Self::Avx512Fp16,
        Self::Avx512Bf16,
        Self::Amx,
    ];

    /// Whether this machine has the instruction set.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::I8mm => Self::Dotprod.is_available() && std::arch::is_aarch64_feature_detected!("i8mm"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => Self::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Fp16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512fp16"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => Self::Avx512Bf16.is_available() && amx_is_available(),
            #[cfg(not(target_arch = "aarch64"))]
            Self::Dotprod | Self::I8mm => false,
            #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
            _ => false,
        }
    }

    /// The instruction sets of this machine, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The fastest instruction set of this machine: the last that is available, but not [`Avx512Bf16`](Self::Avx512Bf16) where
    /// products in f16 are faster.
    pub fn best() -> Self {
        Self::available()
            .filter(|&isa| isa != Self::Avx512Bf16 || !bf16_products_are_slow())
            .last()
            .unwrap_or(Self::Portable)
    }

    /// The instruction set to use: [`ISA_VARIABLE`] if set, otherwise the fastest.
    ///
    /// # Errors
    /// [`Error::Config`] if the variable names no instruction set, or one that this CPU lacks.
    pub fn from_env() -> Result<Self> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.trim().is_empty() => name.trim().parse(),
            _ => Ok(Self::best()),
        }
    }

    /// The name in [`ISA_VARIABLE`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Dotprod => "dotprod",
            Self::I8mm => "i8mm",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
            Self::Avx512Fp16 => "avx512fp16",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        }
    }

    /// Whether the CPU multiplies bf16 natively, faster than f32.
    pub fn native_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }

    /// Whether the CPU multiplies f16 natively, and bf16 no faster.
    pub fn native_f16(self) -> bool {
        self == Self::Avx512Fp16
    }
}

/// Whether this CPU multiplies more numbers a second in f32 than by the dot products of AVX-512 BF16. Intel's cores since
/// Sapphire Rapids do, whose fast products of bf16 are those of AMX: a core of an Emerald Rapids starts 1.33 of these
/// instructions a nanosecond and 5.5 fused multiply-adds, of f32 or of twice as many f16, so that it multiplies half or a
/// quarter as many numbers. AMX is hidden in many virtual machines. These are the CPUs of Intel with AVX-512 FP16, which
/// Cooper Lake lacks.
fn bf16_products_are_slow() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512fp16") && vendor() == *b"GenuineIntel"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The maker of this CPU: leaf 0 of CPUID.
#[cfg(target_arch = "x86_64")]
fn vendor() -> [u8; 12] {
    use std::arch::x86_64::__cpuid;
    // SAFETY: every x86-64 CPU has CPUID, with defined results for any leaf.
    #[allow(unused_unsafe, reason = "safe in newer compilers")]
    let leaf = unsafe { __cpuid(0) };
    let mut name = [0; 12];
    for (to, register) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
        to.copy_from_slice(&register.to_le_bytes());
    }
    name
}

/// Whether this process may use AMX on bf16. Requests permission from Linux, once: Linux saves the 8 kB of tiles only for
/// processes with permission. Tests install an emulator on a CPU without AMX.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_is_available() -> bool {
    #[cfg(not(test))]
    static AVAILABLE: LazyLock<bool> = LazyLock::new(amx_is_granted);
    #[cfg(test)]
    static AVAILABLE: LazyLock<bool> =
        LazyLock::new(|| amx_is_granted() || super::kernels::amx::emulator::install());
    *AVAILABLE
}

/// Whether the CPU has AMX and Linux lets this process use it.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) fn amx_is_granted() -> bool {
    use std::arch::x86_64::{__cpuid_count, _xgetbv};
    /// AMX-TILE and AMX-BF16, in EDX of CPUID leaf 7.
    const FEATURES: u32 = 1 << 24 | 1 << 22;
    /// The state component of the tiles' data. XCR0 must enable it and that of their configuration.
    const TILE_DATA: libc::c_long = 18;
    const SAVED: u64 = 1 << TILE_DATA | 1 << 17;
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    // SAFETY: every x86-64 CPU has CPUID, with defined results for any leaf. `_xgetbv` runs only if CPUID reports AMX: such a
    // CPU has XSAVE, and Linux enables it. The system call takes only numbers. Linux refuses a request that it does not
    // know, or if the signal stack of a thread is too small for the tiles.
    let granted = unsafe {
        if __cpuid_count(7, 0).edx & FEATURES != FEATURES || _xgetbv(0) & SAVED != SAVED {
            return false;
        }
        libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0
    };
    if !granted {
        let error = std::io::Error::last_os_error();
        log::info!("the CPU has AMX, and the system does not let this process use it: {error}");
    }
    granted
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    /// Parses the name of an instruction set. It is an error if this CPU lacks it.
    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name));
        found.filter(|isa| isa.is_available()).ok_or_else(|| Error::Config {
            setting: ISA_VARIABLE.into(),
            value: name.into(),
            reason: format!(
                "this CPU runs: {}",
                Self::available().map(Self::name).collect::<Vec<_>>().join(", ")
            ),
        })
    }
}

/// The number format of weights and of the operands of matrix products. Sums, normalization and the residual stream are
/// always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit floats: equal to the PyTorch reference within 1e-5.
    F32,
    /// bfloat16: half the memory, and twice the speed if the CPU multiplies it natively.
    Bf16,
}

impl DType {
    /// The default: bf16 if `isa` multiplies it natively, otherwise f32.
    pub fn auto(isa: Isa) -> Self {
        if isa.native_bf16() { Self::Bf16 } else { Self::F32 }
    }

    /// The name that users see: `float32`, `bfloat16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for isa in Isa::available() {
            assert_eq!(isa.name().to_uppercase().parse::<Isa>(), Ok(isa));
        }
    }

    /// Tests emulate AMX on a CPU with AVX-512 BF16 but without AMX, so that the AMX kernels are always tested there.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn amx_is_tested_on_every_cpu_with_avx512_bf16() {
        assert_eq!(Isa::Amx.is_available(), Isa::Avx512Bf16.is_available());
        assert!(!Isa::Amx.is_available() || Isa::best() == Isa::Amx);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn dot_products_of_bf16_are_left_out_on_intel_with_fp16() {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if !cpu.contains("flags") {
            return;
        }
        let slow = cpu.contains("GenuineIntel") && cpu.contains(" avx512_fp16");
        assert_eq!(bf16_products_are_slow(), slow);
        assert!(!slow || Isa::best() >= Isa::Avx512Fp16);
        assert_eq!(Isa::best() == Isa::Avx512Bf16, Isa::available().last() == Some(Isa::Avx512Bf16) && !slow);
    }

    /// Bit 4 of EAX, in CPUID leaf 7, subleaf 1.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn avx_vnni_is_available_where_the_cpu_reports_it() {
        use std::arch::x86_64::__cpuid_count;
        // SAFETY: every x86-64 CPU has CPUID; leaf 7 gives its last subleaf in EAX.
        #[allow(unused_unsafe, reason = "safe in newer compilers")]
        let reported = unsafe { __cpuid_count(7, 0).eax >= 1 && __cpuid_count(7, 1).eax & 1 << 4 != 0 };
        assert_eq!(Isa::AvxVnni.is_available(), Isa::Avx2.is_available() && reported);
    }

    #[test]
    fn sets_of_one_architecture_are_ordered_by_speed() {
        assert!(Isa::ALL.is_sorted());
        let both = |isa: &Isa| matches!(isa, Isa::Neon | Isa::Dotprod | Isa::I8mm);
        assert!(
            Isa::available().all(|isa| isa == Isa::Portable || both(&isa) == cfg!(target_arch = "aarch64"))
        );
    }

    #[test]
    fn unknown_and_unavailable_are_refused_with_the_choices() {
        let missing = Isa::ALL.into_iter().find(|isa| !isa.is_available()).map_or("avx10", Isa::name);
        for name in ["sse9", missing] {
            let error = name.parse::<Isa>().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("portable"), "{error}");
        }
    }
}
