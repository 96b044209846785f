//! What the embedding process tells the core: environment, installed packages.

use std::path::PathBuf;

/// What the process that embeds this crate tells it.
pub trait Host: Send + Sync + 'static {
    /// An environment variable; `None` when unset.
    fn env(&self, name: &str) -> Option<String>;

    /// The folder of an installed package, found without importing it.
    fn package_dir(&self, name: &str) -> Option<PathBuf>;
}

/// The operating system's environment and no packages: a host that is not Python.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemHost;

impl Host for SystemHost {
    fn env(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn package_dir(&self, _name: &str) -> Option<PathBuf> {
        None
    }
}
