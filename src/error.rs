//! What can go wrong, and what the user can do about it.
//!
//! One enum for the whole crate. Every message names the thing (model, path, setting, slot) and the remedy. The
//! binding maps each variant to one Python exception under `ModelManagerError` (`python/errors.rs`).
//!
//! Errors are `Clone`: the failure of one load or one batch is returned to every caller that waited for it.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::similar::similar;
use crate::size::size_text;

/// The result of every fallible call in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What code of the host raised. Only the host knows its type.
#[derive(Clone)]
pub struct HostCause(pub Arc<dyn Any + Send + Sync>);

impl fmt::Debug for HostCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostCause")
    }
}

impl PartialEq for HostCause {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting (keyword, environment variable) is out of range or does not parse.
    #[error("{setting}={value}: {reason}")]
    Config {
        /// The setting as the user wrote it: keyword or environment variable.
        setting: String,
        /// The offending value.
        value: String,
        /// What is allowed.
        reason: String,
    },
    /// The caller's argument has the wrong value (an empty prompt, a lone surrogate, a dimension out of range).
    #[error("{0}")]
    Input(String),
    /// The same, where one argument alone is to blame: programs read its name and `code`, people the message.
    #[error("{}{rest}", placed(param, place))]
    Argument {
        /// The argument as callers write it: `truncate_dim`, `prompt`.
        param: &'static str,
        /// Where in it: `[2, 0]` is the first item of the third.
        place: Vec<usize>,
        /// What is wrong, for programs that answer differently to different mistakes.
        code: Option<&'static str>,
        /// What is wrong and what is allowed: what follows name and place in the message. A host whose callers know the
        /// argument by another name can write that one.
        rest: String,
    },
    /// No slot has this name.
    #[error("no model is registered as {name:?}; {}", remedy(name, known))]
    UnknownModel {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// The model of a slot does something else than what was asked for.
    #[error("the model of {name:?} gives no {asked}; it gives {given}")]
    Task {
        /// The slot.
        name: String,
        /// What was asked for.
        asked: &'static str,
        /// What the model gives.
        given: String,
    },
    /// The model's source leads nowhere.
    #[error("model {model:?} was not found: {reason}")]
    ModelNotFound {
        /// The source as configured.
        model: String,
        /// Where we looked, and the remedy.
        reason: String,
    },
    /// A file that the model needs is missing.
    #[error("model {model:?} has no {file} in {}; {remedy}", folder.display())]
    MissingFile {
        /// The source as configured.
        model: String,
        /// The missing file's name.
        file: String,
        /// Where it was expected.
        folder: PathBuf,
        /// What to do.
        remedy: String,
    },
    /// A file exists but does not hold what it should.
    #[error("{} is not usable: {reason}", path.display())]
    InvalidFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the remedy.
        reason: String,
    },
    /// The files are sound, but describe a model that this package does not run.
    #[error("model {model:?} is not supported: {reason}")]
    Unsupported {
        /// The source as configured.
        model: String,
        /// What is unsupported, and what is supported.
        reason: String,
    },
    /// The operating system refused access.
    #[error("no permission to {action} {}; check the owner and mode of the file and of its folders", path.display())]
    Permission {
        /// "read", "write".
        action: &'static str,
        /// The path refused.
        path: PathBuf,
    },
    /// A download failed.
    #[error("download of {url} failed: {reason}")]
    Download {
        /// What was requested.
        url: String,
        /// Status or transport error, and the remedy.
        reason: String,
    },
    /// A server that runs a model for us failed, or cannot be reached.
    #[error("no vectors from {server}: {reason}")]
    Remote {
        /// Where they were asked for; never with a key.
        server: String,
        /// What it answered or why it did not, and the remedy.
        reason: String,
    },
    /// A server that runs a model for us will not do so until something is set right.
    #[error("no vectors from {server}: {reason}")]
    RemoteRefused {
        /// As for [`Self::Remote`].
        server: String,
        /// Why it refuses, or why it is not trusted, and the remedy.
        reason: String,
    },
    /// Any other failure of the operating system on a file.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's own words.
        reason: String,
        /// The system's number of the error, where it has one.
        code: Option<i32>,
    },
    /// A wait ended before the thing waited for.
    #[error("{what} was not ready within {:.3} s; raise the timeout or warm the model up first", after.as_secs_f64())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The queue of a model is full.
    #[error(
        "model {model:?} is overloaded: {queued} {} are waiting (limit {limit}); retry later or raise {setting}",
        if *setting == "max_queue" { "texts" } else { "requests" }
    )]
    Overloaded {
        /// The slot.
        model: String,
        /// Texts or requests waiting.
        queued: usize,
        /// How many may.
        limit: usize,
        /// The setting that says so.
        setting: &'static str,
    },
    /// The memory budget cannot hold the model.
    #[error("model {model:?} needs about {} but the memory budget is {} and {} are in use by models that cannot be evicted; raise memory_budget or unpin a model",
            size_text(*needed), size_text(*budget), size_text(*in_use))]
    Budget {
        /// The slot.
        model: String,
        /// Bytes the model is expected to take.
        needed: u64,
        /// Bytes allowed in all.
        budget: u64,
        /// Bytes that cannot be freed now.
        in_use: u64,
    },
    /// The system has no memory for something whose size the caller chooses.
    #[error("out of memory: {} could not be had ({what}); ask for less, or free memory", size_text(*bytes))]
    OutOfMemory {
        /// What it was for, or the system's own words. Making the error need not allocate.
        what: Cow<'static, str>,
        /// Bytes asked for.
        bytes: u64,
    },
    /// A device with a memory of its own has none left, after idle models were unloaded and batches halved.
    #[error(
        "out of memory on {device}: no room for {what}{}{}; unload a model, send shorter texts, or use device=\"cpu\"",
        needed.map_or_else(String::new, |bytes| format!(", which needs about {}", size_text(bytes))),
        free.map_or_else(String::new, |bytes| format!("; {} are free", size_text(bytes)))
    )]
    DeviceMemory {
        /// The device.
        device: String,
        /// What it was for.
        what: String,
        /// Bytes it needs, where that is known.
        needed: Option<u64>,
        /// Bytes that are free, where the device reports it.
        free: Option<u64>,
    },
    /// The numbers went wrong: NaN or infinity where a vector was due.
    #[error(
        "model {model:?} produced a vector that is not finite; its weights are damaged or overflow the format that they are \
         computed in: try dtype=\"float32\" or, for a model of a server, another format of it there"
    )]
    NotFinite {
        /// The slot or source.
        model: String,
    },
    /// The caller gave up (cancelled task, interrupt).
    #[error("the request was cancelled")]
    Cancelled,
    /// The caller is a child process, and its parent made the request before the fork.
    #[error(
        "the request was made before this process was forked and belongs to its parent; make it again in this process"
    )]
    Forked,
    /// The manager was closed.
    #[error("this ModelManager is closed; construct a new one")]
    Closed,
    /// A loader or a model object supplied by the host raised.
    #[error("the loader of {model:?} failed: {reason}")]
    Loader {
        /// The slot.
        model: String,
        /// The exception, as text.
        reason: String,
        /// The exception itself.
        cause: Option<HostCause>,
    },
    /// No text generator can be had.
    #[error("Text generator not available: {reason}")]
    NoGenerator {
        /// Why.
        reason: String,
    },
    /// A defect of ours: a panic caught at a boundary. The request failed, the manager lives on.
    #[error("internal error in {place}: {reason}; please report it")]
    Internal {
        /// Where it was caught.
        place: String,
        /// The panic's message.
        reason: String,
    },
}

impl Error {
    /// The failure of an operation on `path`, by kind: missing and forbidden have variants of their own.
    pub fn io(path: &Path, action: &'static str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission { action, path: path.to_path_buf() },
            _ => {
                let (reason, code) = (system_words(error), error.raw_os_error());
                Self::Io { path: path.to_path_buf(), reason, code }
            }
        }
    }

    /// The file that an error of the operating system is about, and C's number of the error.
    #[cfg(feature = "python")]
    pub(crate) fn system(&self) -> Option<(PathBuf, Option<i32>)> {
        /// The same numbers on every system.
        const NO_ENTRY: i32 = 2;
        const NO_ACCESS: i32 = 13;
        match self {
            // Windows has numbers of its own.
            Self::Io { path, code, .. } => Some((path.clone(), code.filter(|_| cfg!(unix)))),
            Self::Permission { path, .. } => Some((path.clone(), Some(NO_ACCESS))),
            Self::MissingFile { file, folder, .. } => Some((folder.join(file), Some(NO_ENTRY))),
            _ => None,
        }
    }

    /// A file of a model that cannot be used.
    pub(crate) fn invalid_file(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::InvalidFile { path: path.into(), reason: reason.into() }
    }

    /// A defect of this crate, or a state that cannot be.
    pub(crate) fn internal(place: &str, reason: impl fmt::Display) -> Self {
        Self::Internal { place: place.to_owned(), reason: reason.to_string() }
    }

    /// The loader of a slot failed, for a reason of this crate's.
    pub(crate) fn loader(model: &str, reason: impl Into<String>) -> Self {
        Self::Loader { model: model.to_owned(), reason: reason.into(), cause: None }
    }

    /// A wrong value of the argument `param`. `rest` is what follows the name in the message: `=-1: must not be negative`.
    pub fn argument(param: &'static str, rest: impl Into<String>) -> Self {
        Self::item(param, &[], rest)
    }

    /// A wrong value of the item at `place` in the argument `param`. `rest` is what follows both: ` holds no token ids`.
    pub fn item(param: &'static str, place: &[usize], rest: impl Into<String>) -> Self {
        Self::Argument { param, place: place.to_vec(), code: None, rest: rest.into() }
    }

    /// The argument or setting to blame, where there is one.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::Argument { param, .. } => Some(param),
            Self::Config { setting, .. } => Some(setting),
            _ => None,
        }
    }

    /// Whether the same call may succeed later, where its kind does not say so: a model that fits into the budget once others
    /// are not in use.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Budget { needed, budget, .. } if needed <= budget)
    }

    /// Whether the system, the card or the budget is short of memory or of open files. That says nothing about the model.
    pub fn is_shortage(&self) -> bool {
        /// Numbers of Unix: no memory, too many open files in the system and in the process.
        const SHORT: [i32; 3] = [12, 23, 24];
        match self {
            Self::Budget { .. } | Self::OutOfMemory { .. } | Self::DeviceMemory { .. } => true,
            Self::Io { code, .. } => cfg!(unix) && code.is_some_and(|code| SHORT.contains(&code)),
            _ => false,
        }
    }

    /// The mistake's name for programs, where it has one.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Argument { code, .. } => *code,
            _ => None,
        }
    }

    /// The place in the argument, and what follows both in the message, where an argument is to blame.
    pub fn about(&self) -> Option<(&[usize], &str)> {
        match self {
            Self::Argument { place, rest, .. } => Some((place, rest)),
            _ => None,
        }
    }

    /// A caught panic. `payload` is what `catch_unwind` returned.
    pub fn panic(place: impl Into<String>, payload: &(dyn std::any::Any + Send)) -> Self {
        Self::Internal { place: place.into(), reason: panic_message(payload) }
    }
}

/// An argument, or an item of it, as it is written in a message: `texts[2][0]`.
pub(crate) fn placed(param: &str, place: &[usize]) -> String {
    let mut written = param.to_owned();
    for number in place {
        written.push_str(&format!("[{number}]"));
    }
    written
}

/// The slot that was meant, or all that there are.
fn remedy(name: &str, known: &[String]) -> String {
    match similar(name, known.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean {meant:?}? slots() lists all"),
        None => {
            format!("known names: {}. Register it first: register({name:?}, source=...)", known.join(", "))
        }
    }
}

/// What the system says, without the number of its error.
pub(crate) fn system_words(error: &io::Error) -> String {
    let said = error.to_string();
    match said.split_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => said,
    }
}

/// What a panic said.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_thing_and_the_remedy() {
        let error = Error::UnknownModel { name: "x".into(), known: vec!["a".into(), "b".into()] };
        assert_eq!(
            error.to_string(),
            "no model is registered as \"x\"; known names: a, b. Register it first: register(\"x\", source=...)"
        );
        let error =
            Error::UnknownModel { name: "rerankr".into(), known: vec!["a".into(), "reranker".into()] };
        assert_eq!(
            error.to_string(),
            "no model is registered as \"rerankr\"; did you mean \"reranker\"? slots() lists all"
        );
    }

    #[test]
    fn a_message_about_an_item_begins_with_its_place() {
        let error = Error::item("texts", &[2, 0], " is -1");
        assert_eq!(error.to_string(), "texts[2][0] is -1");
        assert_eq!(error.about(), Some((&[2, 0][..], " is -1")));
        assert_eq!(
            Error::argument("top_p", "=2: must be in [0, 1]").to_string(),
            "top_p=2: must be in [0, 1]"
        );
    }

    #[test]
    fn io_errors_keep_their_kind() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(matches!(
            Error::io(Path::new("/x"), "read", &denied),
            Error::Permission { action: "read", .. }
        ));
        let full = Error::io(Path::new("/x"), "write", &io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(!full.to_string().contains("os error"), "{full}");
        let other = io::Error::other("disk on fire");
        assert!(matches!(Error::io(Path::new("/x"), "read", &other), Error::Io { .. }));
    }

    #[test]
    fn a_panic_keeps_its_message() {
        let payload = std::panic::catch_unwind(|| panic!("row {}", 7)).unwrap_err();
        assert_eq!(
            Error::panic("test", payload.as_ref()),
            Error::Internal { place: "test".into(), reason: "row 7".into() }
        );
    }
}
