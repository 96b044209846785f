//! How long a model stays in memory after its last use.

use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How long a model stays after its last use. Ordered: `Forever` outlasts every duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeepAlive {
    /// This long; zero unloads as soon as the use ends.
    For(Duration),
    /// Until it is unloaded by name or evicted by the memory budget.
    Forever,
}

const ALLOWED: &str = "expected seconds (300), a duration (\"5m\", \"1h30m\", \"300ms\"), \
                       0 to unload after use, or a negative number to keep the model without limit";

impl KeepAlive {
    /// Unload as soon as the use ends.
    pub const AFTER_USE: Self = Self::For(Duration::ZERO);

    /// From a number of seconds: 0 unloads after use, negative or infinite keeps the model without limit.
    ///
    /// # Errors
    /// [`Error::Config`] naming `setting` when `seconds` is not a number.
    pub fn from_seconds(setting: &str, seconds: f64) -> Result<Self> {
        if seconds.is_nan() {
            return Err(invalid(setting, "nan"));
        }
        if seconds < 0.0 {
            return Ok(Self::Forever);
        }
        // More seconds than a Duration can represent are without limit.
        Ok(Duration::try_from_secs_f64(seconds).map_or(Self::Forever, Self::For))
    }

    /// From text: a number of seconds, or Go's duration format as Ollama takes it: numbers with the units `ns`,
    /// `us`, `ms`, `s`, `m`, `h`, added up. A minus sign means without limit.
    ///
    /// # Errors
    /// [`Error::Config`] naming `setting` when `text` is neither.
    pub fn parse(setting: &str, text: &str) -> Result<Self> {
        let trimmed = text.trim();
        let magnitude = trimmed.strip_prefix(['-', '+']).unwrap_or(trimmed);
        let seconds = plain_number(magnitude)
            .or_else(|| sum_of_units(magnitude))
            .ok_or_else(|| invalid(setting, text))?;
        // "-0" and "-0s" are still zero, as in Go.
        let negative = trimmed.starts_with('-') && seconds > 0.0;
        Self::from_seconds(setting, if negative { -1.0 } else { seconds })
    }

    /// The error of a value where `"auto"` is allowed too.
    pub fn or_auto(error: Error) -> Error {
        match error {
            Error::Config { setting, value, reason } => {
                Error::Config { setting, value, reason: format!("{reason}, or \"auto\"") }
            }
            other => other,
        }
    }

    /// When a model that is idle since `since` is to be unloaded; `None`: never.
    #[must_use]
    pub fn deadline(self, since: Instant) -> Option<Instant> {
        match self {
            Self::For(duration) => since.checked_add(duration),
            Self::Forever => None,
        }
    }
}

fn invalid(setting: &str, value: &str) -> Error {
    Error::Config { setting: setting.into(), value: value.into(), reason: ALLOWED.into() }
}

/// Digits with at most one point; unlike `f64::from_str`, neither "inf", "nan" nor exponents.
fn plain_number(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if plain { text.parse().ok() } else { None }
}

/// "1h30m" → 5400.0
fn sum_of_units(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
        let number = plain_number(&rest[..unit_at])?;
        rest = &rest[unit_at..];
        let unit_end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..unit_end] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    if text.is_empty() { None } else { Some(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<KeepAlive> {
        KeepAlive::parse("keep_alive", text)
    }

    #[test]
    fn numbers_are_seconds_and_text_has_units() {
        for (text, seconds) in [
            ("300", 300.0),
            (" 0.5 ", 0.5),
            ("5m", 300.0),
            ("1h30m", 5400.0),
            ("300ms", 0.3),
            ("1.5h", 5400.0),
            ("+2s", 2.0),
            ("1m0.5s", 60.5),
            ("7us", 7e-6),
            ("7µs", 7e-6),
        ] {
            let KeepAlive::For(duration) = parse(text).unwrap() else { panic!("{text}: no limit") };
            assert!((duration.as_secs_f64() - seconds).abs() < 1e-9, "{text}: {duration:?}");
        }
    }

    #[test]
    fn zero_is_after_use_and_negative_is_without_limit() {
        for zero in ["0", "0s", "-0", "0h0m"] {
            assert_eq!(parse(zero), Ok(KeepAlive::AFTER_USE), "{zero}");
        }
        for forever in ["-1", "-5m", "-0.001", "99999999999999999999999"] {
            assert_eq!(parse(forever), Ok(KeepAlive::Forever), "{forever}");
        }
        assert_eq!(KeepAlive::from_seconds("x", f64::INFINITY), Ok(KeepAlive::Forever));
        assert_eq!(KeepAlive::from_seconds("x", -1.0), Ok(KeepAlive::Forever));
    }

    #[test]
    fn anything_else_is_an_error_that_names_the_setting() {
        for text in ["", "-", "m", "5 m", "5x", "1.2.3", "inf", "nan", "1e3", "5m3", "--1", "soon", "٥m"] {
            match parse(text) {
                Err(Error::Config { setting, value, reason }) => {
                    assert_eq!((setting.as_str(), value.as_str()), ("keep_alive", text));
                    assert!(reason.contains("5m"));
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
        assert!(KeepAlive::from_seconds("x", f64::NAN).is_err());
    }

    #[test]
    fn forever_outlasts_and_has_no_deadline() {
        assert!(KeepAlive::Forever > KeepAlive::For(Duration::MAX));
        let now = Instant::now();
        assert_eq!(KeepAlive::Forever.deadline(now), None);
        assert_eq!(KeepAlive::For(Duration::MAX).deadline(now), None);
        assert_eq!(KeepAlive::AFTER_USE.deadline(now), Some(now));
    }
}
