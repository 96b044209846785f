//! The memory budget as users write it, and the machine's memory that fractions are of.

use std::fs;
use std::path::Path;

use crate::{Error, Result};

const ALLOWED: &str = "expected bytes (800000000), a size (\"512MB\", \"2GiB\"), or a fraction of the memory that this \
                       process may use, above 0 and up to 1 (0.5)";

/// A memory limit as written in the configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MemoryLimit {
    /// This many bytes.
    Bytes(u64),
    /// This part of the memory that the process may use: the machine's, or its cgroup's if that is less.
    Fraction(f64),
}

impl MemoryLimit {
    /// From a number: up to 1 a fraction, above it bytes.
    ///
    /// # Errors
    /// [`Error::Config`] naming `setting` when the number is not above 0, or not a whole number of bytes.
    pub fn from_number(setting: &str, number: f64) -> Result<Self> {
        Self::from_f64(number).ok_or_else(|| invalid(setting, &number.to_string()))
    }

    /// From text: a number as in [`MemoryLimit::from_number`], or a number with a unit: `kB`, `MB`, `GB`, `TB` are powers
    /// of 1000, `KiB`, `MiB`, `GiB`, `TiB` powers of 1024, in any case.
    ///
    /// # Errors
    /// [`Error::Config`] naming `setting` when `text` is neither.
    pub fn parse(setting: &str, text: &str) -> Result<Self> {
        let trimmed = text.trim();
        let unit_at = trimmed.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(unit_at);
        let scale: Option<u64> = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" => None,
            "b" => Some(1),
            "kb" => Some(1000),
            "mb" => Some(1000_u64.pow(2)),
            "gb" => Some(1000_u64.pow(3)),
            "tb" => Some(1000_u64.pow(4)),
            "kib" => Some(1 << 10),
            "mib" => Some(1 << 20),
            "gib" => Some(1 << 30),
            "tib" => Some(1 << 40),
            _ => return Err(invalid(setting, text)),
        };
        let limit = number.parse::<f64>().ok().and_then(|number| match scale {
            None => Self::from_f64(number),
            Some(scale) => Self::whole_bytes((number * scale as f64).round()),
        });
        limit.ok_or_else(|| invalid(setting, text))
    }

    fn from_f64(number: f64) -> Option<Self> {
        if number > 0.0 && number <= 1.0 { Some(Self::Fraction(number)) } else { Self::whole_bytes(number) }
    }

    fn whole_bytes(number: f64) -> Option<Self> {
        // Beyond 2⁶³ there is no memory, and below 1 no byte; NaN is neither.
        let whole = (1.0..=9.2e18).contains(&number) && number.fract() == 0.0;
        whole.then_some(Self::Bytes(number as u64))
    }

    /// The limit in bytes.
    ///
    /// # Errors
    /// [`Error::Config`] naming `setting` for a fraction where the system does not tell its memory.
    pub fn bytes(self, setting: &str) -> Result<u64> {
        self.bytes_of(setting, usable_memory(Path::new("/")))
    }

    fn bytes_of(self, setting: &str, usable: Option<u64>) -> Result<u64> {
        match (self, usable) {
            (Self::Bytes(bytes), _) => Ok(bytes),
            (Self::Fraction(fraction), Some(usable)) => Ok((fraction * usable as f64) as u64),
            (Self::Fraction(fraction), None) => Err(Error::Config {
                setting: setting.into(),
                value: fraction.to_string(),
                reason:
                    "this system does not tell how much memory it has; give the limit in bytes (\"2GiB\")"
                        .into(),
            }),
        }
    }
}

fn invalid(setting: &str, value: &str) -> Error {
    Error::Config { setting: setting.into(), value: value.into(), reason: ALLOWED.into() }
}

/// Bytes that this process may use: the machine's memory, or less if a cgroup (version 1 or 2) or one of its parents
/// says so. `None` where there is no `/proc`. `root` is the root of the file system.
fn usable_memory(root: &Path) -> Option<u64> {
    let machine = fs::read_to_string(root.join("proc/meminfo")).ok()?.lines().find_map(|line| {
        let kilobytes = line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?;
        Some(kilobytes.trim().parse::<u64>().ok()? * 1024)
    })?;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| cgroup_limit(root, line));
    limits.chain([machine]).min()
}

/// The least limit on the way from the group that `line` of `/proc/self/cgroup` names up to the root of its hierarchy.
fn cgroup_limit(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (hierarchy, file) = if controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return None;
    };
    // Inside a container the path may be the host's and not exist here; its root is then the container's own group.
    let hierarchy = root.join(hierarchy);
    Path::new(path.trim_start_matches('/'))
        .ancestors()
        // No limit is written as "max", or as a number beyond any machine.
        .filter_map(|group| fs::read_to_string(hierarchy.join(group).join(file)).ok()?.trim().parse().ok())
        .min()
}
