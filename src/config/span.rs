//! Settings of the cache tiers: folders, sizes and spans of time.

use std::path::PathBuf;
use std::time::Duration;

use super::value::{Setting, SettingValue};
use crate::Error;
use crate::lifecycle::MemoryLimit;

/// A folder that may be left out, or be the usual one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FolderSetting {
    /// None.
    Off,
    /// The usual one.
    Usual,
    /// This one.
    Path(PathBuf),
}

impl FolderSetting {
    /// The folder, where `usual` is the usual one.
    pub fn folder(&self, usual: impl FnOnce() -> PathBuf) -> Option<PathBuf> {
        match self {
            Self::Off => None,
            Self::Usual => Some(usual()),
            Self::Path(path) => Some(path.clone()),
        }
    }
}

impl Setting for FolderSetting {
    fn annotation() -> String {
        "bool | str".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        match value {
            SettingValue::Bool(false) => Ok(Self::Off),
            SettingValue::Bool(true) => Ok(Self::Usual),
            SettingValue::Text(text) if !text.trim().is_empty() => Ok(Self::Path(text.trim().into())),
            _ => Err("must be True, False or a folder".into()),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        match bool::from_text(text) {
            Ok(value) => Self::from_value(&SettingValue::Bool(value)),
            Err(_) => Self::from_value(&SettingValue::Text(text.into())),
        }
    }

    fn to_value(&self) -> SettingValue {
        match self {
            Self::Off => SettingValue::Bool(false),
            Self::Usual => SettingValue::Bool(true),
            Self::Path(path) => SettingValue::Text(path.display().to_string()),
        }
    }
}

/// A number of bytes. Equal when written equally.
#[derive(Debug, Clone, PartialEq)]
pub struct ByteSize {
    written: SettingValue,
    /// What it means.
    pub bytes: u64,
}

impl ByteSize {
    pub(super) fn gigabyte() -> Self {
        Self { written: SettingValue::Text("1GB".into()), bytes: 1_000_000_000 }
    }
}

const SIZES: &str = "must be bytes or text such as \"500MB\", at least 1 MB";

impl Setting for ByteSize {
    fn annotation() -> String {
        "int | str".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        let limit = match value {
            SettingValue::Int(number) => MemoryLimit::from_number("", *number as f64),
            SettingValue::Text(text) => MemoryLimit::parse("", text),
            _ => return Err(SIZES.into()),
        };
        match limit {
            Ok(MemoryLimit::Bytes(bytes)) if bytes >= 1_000_000 => Ok(Self { written: value.clone(), bytes }),
            _ => Err(SIZES.into()),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        Self::from_value(&SettingValue::Text(text.into()))
    }

    fn to_value(&self) -> SettingValue {
        self.written.clone()
    }
}

/// A span of time: seconds, or text with units. Equal when written equally.
#[derive(Debug, Clone, PartialEq)]
pub struct TimeSpan {
    written: SettingValue,
    /// What it means.
    pub duration: Duration,
}

impl TimeSpan {
    pub(super) fn week() -> Self {
        Self { written: SettingValue::Text("7d".into()), duration: Duration::from_secs(7 * 86_400) }
    }

    /// From text such as "90", "1h30m" or "7d".
    ///
    /// # Errors
    /// [`Error::Config`] naming `setting`.
    pub fn parse(setting: &str, text: &str) -> crate::Result<Self> {
        Self::from_text(text.trim()).map_err(|reason| Error::Config {
            setting: setting.into(),
            value: text.into(),
            reason,
        })
    }
}

const SPANS: &str = "must be seconds greater than 0, or a duration such as \"1h30m\" or \"7d\"";

impl Setting for TimeSpan {
    fn annotation() -> String {
        "float | str".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        use crate::lifecycle::KeepAlive;
        let spans = || String::from(SPANS);
        let meant = match value {
            SettingValue::Int(seconds) => KeepAlive::from_seconds("", *seconds as f64),
            SettingValue::Float(seconds) => KeepAlive::from_seconds("", *seconds),
            SettingValue::Text(text) => match text.trim().strip_suffix('d').map(str::parse::<f64>) {
                Some(Ok(days)) if days.is_finite() => KeepAlive::from_seconds("", days * 86_400.0),
                _ => KeepAlive::parse("", text),
            },
            _ => return Err(spans()),
        };
        match meant {
            Ok(KeepAlive::For(duration)) if !duration.is_zero() => {
                // A century counts as unlimited; more would overflow deadlines.
                let duration = duration.min(Duration::from_secs(3_200_000_000));
                Ok(Self { written: value.clone(), duration })
            }
            _ => Err(spans()),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        Self::from_value(&SettingValue::Text(text.into()))
    }

    fn to_value(&self) -> SettingValue {
        self.written.clone()
    }
}
