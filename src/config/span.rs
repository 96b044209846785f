//! Settings of the cache tiers: sizes and spans of time.

use std::time::Duration;

use super::value::{Setting, SettingValue};
use crate::Error;
use crate::lifecycle::MemoryLimit;

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
    type Held = Self;

    fn annotation() -> String {
        "int | str".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        let limit = match (value, value.whole()) {
            (SettingValue::Text(text), _) => MemoryLimit::parse("", text),
            (_, Some(number)) => MemoryLimit::from_number("", number),
            _ => return Err(SIZES.into()),
        };
        match limit {
            Ok(MemoryLimit::Bytes(bytes)) if bytes >= 1_000_000 => Ok(Self { written: value.clone(), bytes }),
            _ => Err(SIZES.into()),
        }
    }

    fn to_value(held: &Self) -> SettingValue {
        held.written.clone()
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
    type Held = Self;

    fn annotation() -> String {
        "float | str".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        use crate::lifecycle::KeepAlive;
        let spans = || String::from(SPANS);
        let meant = match value {
            SettingValue::Text(text) => match text.trim().strip_suffix('d').map(str::parse::<f64>) {
                Some(Ok(days)) if days.is_finite() => KeepAlive::from_seconds("", days * 86_400.0),
                _ => KeepAlive::parse("", text),
            },
            other => KeepAlive::from_seconds("", other.number().ok_or_else(spans)?),
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

    fn to_value(held: &Self) -> SettingValue {
        held.written.clone()
    }
}
