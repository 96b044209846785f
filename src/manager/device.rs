//! Where models compute: which device is chosen, and what it reports.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use candle_core::Device;
use log::Level;

use crate::compute::cards::{self, Card, CardMemory};
use crate::config::DeviceChoice;
use crate::lifecycle::MemoryLimit;
use crate::size::size_text;
use crate::{Error, Result};

/// Bytes that a card must have free for `auto` to choose it: a large sentence model and its batches.
const ROOM: u64 = 1 << 30;

/// The process that first used a card; 0: none has. A driver's state does not survive a fork.
static USED_BY: AtomicU32 = AtomicU32::new(0);

/// A device that this build supports and this machine has.
#[derive(Debug, Clone)]
pub(super) enum ComputeDevice {
    /// This crate's own kernels.
    Cpu,
    /// A card: NVIDIA's with its own kernels, others through candle.
    Gpu(Device),
}

/// Makers of cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Maker {
    Nvidia,
    Apple,
}

/// What a choice comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Chosen {
    Cpu,
    CandleCpu,
    Card(Maker, usize),
}

/// What this build supports and what this machine has.
trait Cards {
    /// Whether this build has the code for the cards of `maker`.
    fn supports(&self, maker: Maker) -> bool;
    /// The cards of `maker`.
    ///
    /// # Errors
    /// The driver's own words.
    fn cards(&self, maker: Maker) -> Result<Vec<Card>, String>;
    /// How many there are. Opens none of them: on one that is not used here, another program may be at work.
    ///
    /// # Errors
    /// The driver's own words.
    fn count(&self, maker: Maker) -> Result<usize, String>;
    /// Whether a card was used before this process was forked.
    fn is_forked(&self) -> bool;
}

/// The machine that this process runs on.
struct SystemCards;

impl Cards for SystemCards {
    fn supports(&self, maker: Maker) -> bool {
        match maker {
            Maker::Nvidia => cfg!(feature = "cuda"),
            Maker::Apple => cfg!(feature = "metal"),
        }
    }

    fn cards(&self, maker: Maker) -> Result<Vec<Card>, String> {
        match maker {
            Maker::Nvidia if self.supports(maker) => {
                let _ = USED_BY.compare_exchange(0, process::id(), Ordering::AcqRel, Ordering::Acquire);
                cards::cuda()
            }
            Maker::Apple if self.supports(maker) => {
                Ok(vec![Card { ordinal: 0, memory: None, supported: true }])
            }
            Maker::Nvidia | Maker::Apple => Ok(Vec::new()),
        }
    }

    fn count(&self, maker: Maker) -> Result<usize, String> {
        match maker {
            Maker::Nvidia if self.supports(maker) => {
                let _ = USED_BY.compare_exchange(0, process::id(), Ordering::AcqRel, Ordering::Acquire);
                cards::count()
            }
            Maker::Apple if self.supports(maker) => Ok(1),
            Maker::Nvidia | Maker::Apple => Ok(0),
        }
    }

    fn is_forked(&self) -> bool {
        ![0, process::id()].contains(&USED_BY.load(Ordering::Acquire))
    }
}

impl ComputeDevice {
    /// The device chosen. `auto` without a card that can be used is the CPU.
    ///
    /// # Errors
    /// [`Error::Config`] when the device is not available.
    pub(super) fn of(choice: DeviceChoice) -> Result<Self> {
        let refused = |reason: String| Error::Config {
            setting: "device".into(),
            value: format!("{:?}", choice.to_string()),
            reason,
        };
        let (maker, ordinal) = match choose(choice, &SystemCards).map_err(refused)? {
            Chosen::Cpu => return Ok(Self::Cpu),
            Chosen::CandleCpu => return Ok(Self::Gpu(Device::Cpu)),
            Chosen::Card(maker, ordinal) => (maker, ordinal),
        };
        let opened = match maker {
            // One stream for all threads. `new_cuda` takes that of each calling thread, and a batch would not wait for the
            // weights that the loading thread copies.
            Maker::Nvidia => Device::new_cuda_with_stream(ordinal),
            Maker::Apple => Device::new_metal(ordinal),
        };
        match opened {
            Ok(device) => Ok(Self::Gpu(device)),
            Err(error) if choice == DeviceChoice::Auto => {
                say(Level::Warn, format_args!("the card cannot be opened: {error}"));
                Ok(Self::Cpu)
            }
            Err(error) => Err(refused(format!("the card cannot be opened: {error}; use device=\"cpu\""))),
        }
    }

    /// cpu, cuda:0, mps:0 or candle-cpu
    pub(super) fn name(&self) -> String {
        match self {
            Self::Gpu(device) => cards::name(device),
            Self::Cpu => "cpu".into(),
        }
    }

    /// Whether models compute on a card, or as on a card.
    pub(super) fn is_card(&self) -> bool {
        matches!(self, Self::Gpu(_))
    }

    /// Whether several batches of a model at a time are faster than one after the other: on NVIDIA's cards.
    pub(super) fn computes_at_once(&self) -> bool {
        matches!(self, Self::Gpu(device) if device.is_cuda())
    }

    /// The memory of the card; `None` on the CPU, and where the driver does not report it.
    pub(super) fn memory(&self) -> Option<CardMemory> {
        match self {
            Self::Gpu(device) => cards::memory(device),
            Self::Cpu => None,
        }
    }

    /// `limit` in bytes: a fraction is one of the card's memory, or of the process's where the two are one.
    ///
    /// # Errors
    /// [`Error::Config`] naming `setting` for a fraction of a memory of unknown size.
    pub(super) fn share(&self, limit: MemoryLimit, setting: &str) -> Result<u64> {
        match self.memory() {
            Some(memory) => limit.bytes_of(setting, Some(memory.total)),
            None => limit.bytes(setting),
        }
    }

    /// Waits until the driver has taken back what was freed.
    pub(super) fn settle(&self) {
        if let Self::Gpu(device) = self {
            cards::settle(device);
        }
    }

    /// Whether it is used by the process that opened it: a forked one cannot use it.
    pub(super) fn survives_fork(&self) -> bool {
        match self {
            Self::Gpu(device) => device.is_cpu(),
            Self::Cpu => true,
        }
    }
}

/// What `choice` comes to on `machine`.
///
/// # Errors
/// Why it cannot be had, and the remedy.
fn choose(choice: DeviceChoice, machine: &dyn Cards) -> Result<Chosen, String> {
    match choice {
        DeviceChoice::Auto => Ok(automatic(machine)),
        DeviceChoice::Cpu => Ok(Chosen::Cpu),
        DeviceChoice::CandleCpu => Ok(Chosen::CandleCpu),
        DeviceChoice::Cuda(ordinal) => named(Maker::Nvidia, ordinal.unwrap_or(0), machine),
        DeviceChoice::Metal => named(Maker::Apple, 0, machine),
    }
}

/// Logs why `auto` is the CPU.
fn say(level: Level, reason: std::fmt::Arguments<'_>) {
    log::log!(level, "device auto: the CPU, because {reason}");
}

/// The card with the most free memory, if it has room; else the CPU, and one line in the log that says why.
fn automatic(machine: &dyn Cards) -> Chosen {
    let Some(maker) = [Maker::Nvidia, Maker::Apple].into_iter().find(|&maker| machine.supports(maker)) else {
        return Chosen::Cpu;
    };
    if machine.is_forked() {
        let reason = "a card cannot be used in a process that was forked after its first use";
        say(Level::Warn, format_args!("{reason}"));
        return Chosen::Cpu;
    }
    let found = match machine.cards(maker) {
        Ok(found) => found,
        Err(words) => {
            say(Level::Info, format_args!("the driver reports no card: {words}"));
            return Chosen::Cpu;
        }
    };
    // Apple's driver reports no memory; a card of NVIDIA without any is broken, or another process holds it alone.
    let unknown = if maker == Maker::Apple { u64::MAX } else { 0 };
    let free = |card: &Card| card.memory.map_or(unknown, |memory| memory.free);
    // Of equal ones, the first.
    let best = found.iter().rev().filter(|card| card.supported).max_by_key(|card| free(card));
    match best {
        Some(card) if free(card) >= ROOM => Chosen::Card(maker, card.ordinal),
        Some(card) => {
            let (wanted, most) = (size_text(ROOM), size_text(free(card)));
            say(Level::Warn, format_args!("no card has {wanted} free: at most {most}"));
            Chosen::Cpu
        }
        None if found.is_empty() => {
            say(Level::Info, format_args!("there is no card"));
            Chosen::Cpu
        }
        None => {
            let reason = "no card can be used: each is held by another process, or is older than compute capability 8.0, or \
                          has no memory pools";
            say(Level::Warn, format_args!("{reason}"));
            Chosen::Cpu
        }
    }
}

/// The card that a person named.
fn named(maker: Maker, ordinal: usize, machine: &dyn Cards) -> Result<Chosen, String> {
    let (feature, name) = match maker {
        Maker::Nvidia => ("cuda", "cuda"),
        Maker::Apple => ("metal", "mps"),
    };
    if !machine.supports(maker) {
        return Err(format!(
            "this build has no code for it; build with `maturin build --features {feature}` (docs/gpu.md), or use \
             device=\"cpu\""
        ));
    }
    if machine.is_forked() {
        return Err("a card cannot be used in a process that was forked after its first use; start processes with \
                    multiprocessing's \"spawn\" or \"forkserver\", create the manager in each of them, or use \
                    device=\"cpu\""
            .into());
    }
    let count = machine.count(maker).map_err(|words| {
        format!("the driver reports no card: {words}; check that nvidia-smi lists one, or use device=\"cpu\"")
    })?;
    if ordinal < count {
        return Ok(Chosen::Card(maker, ordinal));
    }
    let names: Vec<_> = (0..count).map(|ordinal| format!("{name}:{ordinal}")).collect();
    let there = if names.is_empty() { "no card".into() } else { names.join(", ") };
    Err(format!("this machine has {there}; use one that is there, or device=\"cpu\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Setting as _;

    const GIB: u64 = 1 << 30;

    /// A machine with NVIDIA's cards that have so much memory free.
    struct Made {
        builds: Option<Maker>,
        free: Result<Vec<u64>, String>,
        /// Numbers of cards that the kernels do not run on.
        old: Vec<usize>,
        forked: bool,
    }

    impl Cards for Made {
        fn supports(&self, maker: Maker) -> bool {
            self.builds == Some(maker)
        }

        fn cards(&self, _: Maker) -> Result<Vec<Card>, String> {
            let card = |(ordinal, &free)| Card {
                ordinal,
                memory: Some(CardMemory { free, total: 80 * GIB }),
                supported: !self.old.contains(&ordinal),
            };
            self.free.as_ref().map(|free| free.iter().enumerate().map(card).collect()).map_err(Clone::clone)
        }

        fn count(&self, _: Maker) -> Result<usize, String> {
            self.free.as_ref().map(Vec::len).map_err(Clone::clone)
        }

        fn is_forked(&self) -> bool {
            self.forked
        }
    }

    fn nvidia(free: &[u64]) -> Made {
        Made { builds: Some(Maker::Nvidia), free: Ok(free.to_vec()), old: Vec::new(), forked: false }
    }

    fn chosen(choice: &str, machine: &Made) -> Result<Chosen, String> {
        choose(DeviceChoice::from_text(choice).unwrap(), machine)
    }

    fn card(ordinal: usize) -> Result<Chosen, String> {
        Ok(Chosen::Card(Maker::Nvidia, ordinal))
    }

    #[test]
    fn the_cpu_is_always_there() {
        assert_eq!(ComputeDevice::of(DeviceChoice::Cpu).unwrap().name(), "cpu");
        assert_eq!(ComputeDevice::of(DeviceChoice::CandleCpu).unwrap().name(), "candle-cpu");
    }

    #[test]
    fn auto_is_the_card_with_the_most_room() {
        assert_eq!(chosen("auto", &nvidia(&[2 * GIB, 70 * GIB, 9 * GIB])), card(1));
        assert_eq!(chosen("auto", &nvidia(&[9 * GIB, 9 * GIB])), card(0));
        assert_eq!(chosen("auto", &nvidia(&[GIB])), card(0));
        let old = Made { old: vec![1], ..nvidia(&[2 * GIB, 70 * GIB, 9 * GIB]) };
        assert_eq!(chosen("auto", &old), card(2));
    }

    #[test]
    fn auto_without_a_card_that_can_be_used_is_the_cpu() {
        let none = Made { builds: None, ..nvidia(&[70 * GIB]) };
        let broken = Made { free: Err("CUDA_ERROR_NO_DEVICE".into()), ..nvidia(&[]) };
        let forked = Made { forked: true, ..nvidia(&[70 * GIB]) };
        let old = Made { old: vec![0], ..nvidia(&[70 * GIB]) };
        for machine in [nvidia(&[]), nvidia(&[GIB - 1, 5]), none, broken, forked, old] {
            assert_eq!(chosen("auto", &machine), Ok(Chosen::Cpu));
        }
    }

    #[test]
    fn a_named_card_is_that_one_however_full() {
        let machine = nvidia(&[70 * GIB, 0]);
        assert_eq!(chosen("cuda", &machine), card(0));
        assert_eq!(chosen("cuda:1", &machine), card(1));
    }

    #[test]
    fn what_is_not_there_is_refused_with_what_is() {
        let reason = chosen("cuda:2", &nvidia(&[GIB, GIB])).unwrap_err();
        assert!(reason.contains("cuda:0, cuda:1"), "{reason}");
        let reason = chosen("cuda", &nvidia(&[])).unwrap_err();
        assert!(reason.contains("no card"), "{reason}");
        let broken = Made { free: Err("CUDA_ERROR_NO_DEVICE".into()), ..nvidia(&[]) };
        let reason = chosen("cuda", &broken).unwrap_err();
        assert!(reason.contains("CUDA_ERROR_NO_DEVICE") && reason.contains("nvidia-smi"), "{reason}");
    }

    #[test]
    fn a_build_without_the_feature_says_how_to_get_it() {
        for (choice, feature) in [("cuda", "cuda"), ("metal", "metal"), ("mps", "metal")] {
            let reason = chosen(choice, &Made { builds: None, ..nvidia(&[GIB]) }).unwrap_err();
            assert!(reason.contains(&format!("--features {feature}")), "{reason}");
        }
    }

    #[test]
    fn a_fork_is_refused_with_the_remedy() {
        let reason = chosen("cuda", &Made { forked: true, ..nvidia(&[GIB]) }).unwrap_err();
        assert!(reason.contains("spawn"), "{reason}");
    }

    #[test]
    fn the_error_names_setting_and_device() {
        if cfg!(any(feature = "cuda", feature = "metal")) {
            return;
        }
        for choice in [DeviceChoice::Cuda(Some(1)), DeviceChoice::Metal] {
            match ComputeDevice::of(choice) {
                Err(Error::Config { setting, value, .. }) => {
                    assert_eq!((setting.as_str(), value), ("device", format!("{:?}", choice.to_string())));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
