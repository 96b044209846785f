//! Memory limits as users write them, and the machine's memory, of which they may be a fraction.

use std::fs;
use std::path::Path;

use crate::number::number_text;
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
        Self::from_f64(number).ok_or_else(|| invalid(setting, &number_text(number)))
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
    /// [`Error::Config`] naming `setting` for a fraction on a system that does not report its memory.
    pub fn bytes(self, setting: &str) -> Result<u64> {
        self.bytes_of(setting, usable_memory(Path::new("/")))
    }

    /// The same for a memory of `usable` bytes.
    ///
    /// # Errors
    /// [`Error::Config`] naming `setting` for a fraction of a memory of unknown size.
    pub(crate) fn bytes_of(self, setting: &str, usable: Option<u64>) -> Result<u64> {
        match (self, usable) {
            (Self::Bytes(bytes), _) => Ok(bytes),
            (Self::Fraction(fraction), Some(usable)) => Ok((fraction * usable as f64) as u64),
            (Self::Fraction(fraction), None) => Err(Error::Config {
                setting: setting.into(),
                value: number_text(fraction),
                reason:
                    "this system does not report how much memory it has; give the limit in bytes (\"2GiB\")"
                        .into(),
            }),
        }
    }
}

fn invalid(setting: &str, value: &str) -> Error {
    Error::Config { setting: setting.into(), value: value.into(), reason: ALLOWED.into() }
}

/// Bytes that this process may use: the machine's memory, or the limit of a cgroup (version 1 or 2) or one of its parents
/// if that is less. `None` where there is no `/proc`. `root` is the root of the file system.
fn usable_memory(root: &Path) -> Option<u64> {
    let machine = fs::read_to_string(root.join("proc/meminfo")).ok()?.lines().find_map(|line| {
        let kilobytes = line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?;
        Some(kilobytes.trim().parse::<u64>().ok()? * 1024)
    })?;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| cgroup_limit(root, line));
    limits.chain([machine]).min()
}

/// The least limit of the group in `line` of `/proc/self/cgroup` and of its parents.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MemoryLimit> {
        MemoryLimit::parse("memory_budget", text)
    }

    #[test]
    fn sizes_have_units_and_fractions_have_none() {
        for (text, bytes) in [
            ("512MB", 512_000_000),
            ("2GiB", 2 << 30),
            ("1.5 gib", 3 << 29),
            ("1kb", 1000),
            ("3KiB", 3072),
            ("1tb", 1_000_000_000_000),
            ("1TiB", 1 << 40),
            ("7MiB", 7 << 20),
            ("2GB", 2_000_000_000),
            ("10B", 10),
            ("800000000", 800_000_000),
        ] {
            assert_eq!(parse(text), Ok(MemoryLimit::Bytes(bytes)), "{text}");
        }
        assert_eq!(parse("0.5"), Ok(MemoryLimit::Fraction(0.5)));
        assert_eq!(parse(" 1 "), Ok(MemoryLimit::Fraction(1.0)));
        assert_eq!(MemoryLimit::from_number("x", 0.25), Ok(MemoryLimit::Fraction(0.25)));
        assert_eq!(MemoryLimit::from_number("x", 4096.0), Ok(MemoryLimit::Bytes(4096)));
    }

    #[test]
    fn anything_else_is_an_error_that_names_the_setting() {
        for text in [
            "",
            "0",
            "0.0",
            "-1",
            "-0.5",
            "1.5",
            "0MB",
            "5XB",
            "MB",
            "1e9",
            "nan",
            "inf",
            "1..2GB",
            "99999999TB",
        ] {
            match parse(text) {
                Err(Error::Config { setting, value, .. }) => {
                    assert_eq!((setting.as_str(), value.as_str()), ("memory_budget", text));
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
        for number in [0.0, -1.0, 1.5, f64::NAN, f64::INFINITY] {
            assert!(MemoryLimit::from_number("x", number).is_err(), "{number}");
        }
    }

    /// A file system with 8 GiB of memory, and these files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let meminfo = ("proc/meminfo", "MemTotal:        8388608 kB\nMemFree:         1048576 kB\n");
        for (path, text) in files.iter().chain([&meminfo]) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn usable_memory_is_the_least_limit_on_the_way_up() {
        let usable = |files: &[(&str, &str)]| usable_memory(machine(files).path());
        assert_eq!(usable(&[]), Some(8 << 30), "no cgroups");
        let v2 = ("proc/self/cgroup", "0::/user.slice/app\n");
        assert_eq!(usable(&[v2, ("sys/fs/cgroup/user.slice/app/memory.max", "max\n")]), Some(8 << 30));
        assert_eq!(usable(&[v2, ("sys/fs/cgroup/user.slice/app/memory.max", "1073741824\n")]), Some(1 << 30));
        assert_eq!(
            usable(&[
                v2,
                ("sys/fs/cgroup/user.slice/app/memory.max", "2147483648\n"),
                ("sys/fs/cgroup/user.slice/memory.max", "1073741824\n"),
            ]),
            Some(1 << 30),
            "a parent's limit binds too"
        );
        assert_eq!(
            usable(&[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "536870912\n")]),
            Some(1 << 29),
            "inside a container"
        );
        let v1 = ("proc/self/cgroup", "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n");
        let file = "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes";
        assert_eq!(usable(&[v1, (file, "268435456\n")]), Some(1 << 28));
        assert_eq!(usable(&[v1, (file, "9223372036854771712\n")]), Some(8 << 30), "version 1's \"no limit\"");
        assert_eq!(
            usable(&[v1, ("sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n")]),
            Some(1 << 28),
            "the host's path is not visible inside"
        );
    }

    #[test]
    fn a_fraction_is_of_what_is_usable() {
        let half = MemoryLimit::Fraction(0.5);
        assert_eq!(half.bytes_of("x", Some(8 << 30)), Ok(4 << 30));
        assert_eq!(MemoryLimit::Bytes(7).bytes_of("x", None), Ok(7));
        match half.bytes_of("memory_budget", usable_memory(Path::new("/nowhere"))) {
            Err(Error::Config { setting, value, .. }) => {
                assert_eq!((setting.as_str(), value.as_str()), ("memory_budget", "0.5"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_reports_its_memory() {
        assert!(MemoryLimit::Fraction(1.0).bytes("x").unwrap() > 1 << 20);
    }
}
