//! Whether the system is short of memory, as the kernel sees it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Share of the latest ten seconds, in percent, in which some task waited for memory.
const STALLED: f64 = 10.0;
/// Share of `memory.high` from which the kernel will soon slow the process down.
const NEARLY_HIGH: f64 = 0.95;
/// By how much stays are shortened.
const SHORTENED: u32 = 4;

/// Whether memory is short. Read from `/proc` and the cgroup; never short where these do not exist.
pub struct MemoryPressure {
    root: PathBuf,
    pressed: AtomicBool,
}

impl Default for MemoryPressure {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

impl MemoryPressure {
    /// `root` is the root of the file system.
    pub(super) fn below(root: &Path) -> Self {
        Self { root: root.to_path_buf(), pressed: AtomicBool::new(false) }
    }

    /// Reads it again.
    pub fn refresh(&self) {
        let pressed = self.is_stalled() || self.is_nearly_high();
        if pressed != self.pressed.swap(pressed, Ordering::Relaxed) && pressed {
            log::info!("the system is short of memory: idle models leave sooner");
        }
    }

    /// What the latest reading was.
    pub fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }

    /// A stay, as it is under this pressure.
    pub(super) fn shorten(&self, stay: Duration) -> Duration {
        if self.is_pressed() { stay / SHORTENED } else { stay }
    }

    fn is_stalled(&self) -> bool {
        let Ok(text) = fs::read_to_string(self.root.join("proc/pressure/memory")) else { return false };
        let average = text.lines().find(|line| line.starts_with("some ")).and_then(|line| {
            line.split(' ').find_map(|field| field.strip_prefix("avg10=")?.parse::<f64>().ok())
        });
        average.is_some_and(|average| average >= STALLED)
    }

    fn is_nearly_high(&self) -> bool {
        let groups = fs::read_to_string(self.root.join("proc/self/cgroup")).unwrap_or_default();
        let Some(path) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return false };
        let group = self.root.join("sys/fs/cgroup").join(path);
        let number = |name| fs::read_to_string(group.join(name)).ok()?.trim().parse::<f64>().ok();
        // "max" is no number, and no limit.
        number("memory.current")
            .zip(number("memory.high"))
            .is_some_and(|(now, high)| now >= NEARLY_HIGH * high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_signs_shorten_stays_until_they_are_gone() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let pressure = MemoryPressure::below(root.path());
        let is_pressed = || {
            pressure.refresh();
            pressure.is_pressed()
        };
        assert!(!is_pressed());
        write("proc/pressure/memory", "some avg10=12.50 avg60=1.00 avg300=0.10 total=1\nfull avg10=0.00\n");
        assert!(is_pressed());
        assert_eq!(pressure.shorten(Duration::from_secs(400)), Duration::from_secs(100));
        write("proc/pressure/memory", "some avg10=0.50 avg60=90.00 avg300=0.10 total=1\n");
        assert!(!is_pressed());
        write("proc/self/cgroup", "0::/app\n");
        write("sys/fs/cgroup/app/memory.current", "960\n");
        write("sys/fs/cgroup/app/memory.high", "max\n");
        assert!(!is_pressed());
        write("sys/fs/cgroup/app/memory.high", "1000\n");
        assert!(is_pressed());
        assert_eq!(pressure.shorten(Duration::from_secs(400)), Duration::from_secs(100));
    }
}
