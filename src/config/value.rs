//! How one setting is written: as text in the environment, as a typed value by keyword.

use std::fmt;
use std::time::Duration;

use crate::Error;
use crate::lifecycle::{KeepAlive, MemoryLimit};
use crate::number::number_text;

/// A value as it crosses the boundary to the host.
#[derive(Debug, Clone, PartialEq)]
pub enum SettingValue {
    /// Nothing.
    None,
    /// true, false
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number of more than 64 bits: its digits. An `f64` holds it, roughly.
    Large(String),
    /// A number.
    Float(f64),
    /// Text.
    Text(String),
    /// Something that no setting takes, by the name of its type.
    Other(String),
}

impl SettingValue {
    /// As one writes it in the environment.
    #[must_use]
    pub fn plain(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Text(value) | Self::Large(value) | Self::Other(value) => value.clone(),
        }
    }

    /// The number, if it is a whole one.
    pub(super) fn whole(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Large(digits) => digits.parse().ok(),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub(super) fn number(&self) -> Option<f64> {
        if let Self::Float(number) = self { Some(*number) } else { self.whole() }
    }
}

impl fmt::Display for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::Other(kind) => write!(f, "<{kind}>"),
            Self::Float(value) => {
                let text = number_text(*value);
                // With its point: 1.0 is no whole number where one is asked for.
                let is_whole = text.chars().all(|c| c == '-' || c.is_ascii_digit());
                write!(f, "{text}{}", if is_whole { ".0" } else { "" })
            }
            _ => f.write_str(&self.plain()),
        }
    }
}

/// A type that a setting can have. Errors are what is allowed; the caller adds the setting's name and value.
pub trait Setting {
    /// What the setting holds: the type itself, or that which the type narrows.
    type Held;
    /// The type as Python annotates it.
    fn annotation() -> String;
    /// From a typed value.
    ///
    /// # Errors
    /// What is allowed.
    fn from_value(value: &SettingValue) -> Result<Self::Held, String>;
    /// From the text of an environment variable: trimmed, not empty.
    ///
    /// # Errors
    /// What is allowed.
    fn from_text(text: &str) -> Result<Self::Held, String> {
        Self::from_value(&SettingValue::Text(text.into()))
    }
    /// The typed value.
    fn to_value(held: &Self::Held) -> SettingValue;
}

impl Setting for bool {
    type Held = Self;

    fn annotation() -> String {
        "bool".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        match value {
            SettingValue::Bool(value) => Ok(*value),
            _ => Err("must be True or False".into()),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err("must be true or false".into()),
        }
    }

    fn to_value(held: &Self) -> SettingValue {
        SettingValue::Bool(*held)
    }
}

impl Setting for usize {
    type Held = Self;

    fn annotation() -> String {
        "int".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        match value {
            SettingValue::Int(value) => Self::try_from(*value).map_err(|_| "must not be negative".into()),
            SettingValue::Large(digits) if digits.starts_with('-') => Err("must not be negative".into()),
            SettingValue::Large(_) => Err("must be less than 2**63".into()),
            _ => Err("must be a whole number".into()),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "must be a whole number, not negative".into())
    }

    fn to_value(held: &Self) -> SettingValue {
        SettingValue::Int(i64::try_from(*held).unwrap_or(i64::MAX))
    }
}

impl Setting for f64 {
    type Held = Self;

    fn annotation() -> String {
        "float".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        value.number().ok_or_else(|| "must be a number".into())
    }

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "must be a number".into())
    }

    fn to_value(held: &Self) -> SettingValue {
        SettingValue::Float(*held)
    }
}

/// A span of time in seconds: finite, not negative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seconds(pub f64);

impl Seconds {
    /// The same as a [`Duration`].
    #[must_use]
    pub fn duration(self) -> Duration {
        // A century counts as unlimited; more would overflow deadlines.
        Duration::from_secs_f64(self.0.min(3.2e9))
    }
}

impl Setting for Seconds {
    type Held = Self;

    fn annotation() -> String {
        "float".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        let seconds = f64::from_value(value).map_err(|_| "must be a number of seconds")?;
        if seconds.is_finite() && seconds >= 0.0 {
            Ok(Self(seconds))
        } else {
            Err("must be a number of seconds, finite and not negative".into())
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        Self::from_value(&SettingValue::Float(
            f64::from_text(text).map_err(|_| "must be a number of seconds")?,
        ))
    }

    fn to_value(held: &Self) -> SettingValue {
        SettingValue::Float(held.0)
    }
}

/// Text that is not blank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NonEmpty(String);

impl NonEmpty {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for NonEmpty {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Setting for NonEmpty {
    type Held = Self;

    fn annotation() -> String {
        "str".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        match value {
            SettingValue::Text(text) if !text.trim().is_empty() => Ok(Self(text.trim().to_owned())),
            _ => Err("must be text that is not blank".into()),
        }
    }

    fn to_value(held: &Self) -> SettingValue {
        SettingValue::Text(held.0.clone())
    }
}

impl<T: Setting> Setting for Option<T> {
    type Held = Option<T::Held>;

    fn annotation() -> String {
        format!("{} | None", T::annotation())
    }

    fn from_value(value: &SettingValue) -> Result<Self::Held, String> {
        if *value == SettingValue::None { Ok(None) } else { T::from_value(value).map(Some) }
    }

    fn from_text(text: &str) -> Result<Self::Held, String> {
        if text.eq_ignore_ascii_case("none") { Ok(None) } else { T::from_text(text).map(Some) }
    }

    fn to_value(held: &Self::Held) -> SettingValue {
        held.as_ref().map_or(SettingValue::None, T::to_value)
    }
}

/// How long a model stays after its latest use. Equal when written equally.
#[derive(Debug, Clone, PartialEq)]
pub struct KeepAliveSetting {
    written: SettingValue,
    /// What it means; `None`: as long as its use has shown.
    pub keep_alive: Option<KeepAlive>,
}

impl Setting for KeepAliveSetting {
    type Held = Self;

    fn annotation() -> String {
        "float | str".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        let keep_alive = match value {
            SettingValue::Text(text) if text.trim().eq_ignore_ascii_case("auto") => {
                return Ok(Self { written: value.clone(), keep_alive: None });
            }
            SettingValue::Text(text) => KeepAlive::parse("", text),
            other => match other.number() {
                Some(seconds) => KeepAlive::from_seconds("", seconds),
                None => return Err("must be \"auto\", seconds or a duration such as \"5m\"".into()),
            },
        }
        .map_err(|error| reason(KeepAlive::or_auto(error)))?;
        Ok(Self { written: value.clone(), keep_alive: Some(keep_alive) })
    }

    fn to_value(held: &Self) -> SettingValue {
        held.written.clone()
    }
}

/// Memory that all models may take. Equal when written equally.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryBudget {
    written: SettingValue,
    /// What it means.
    pub limit: MemoryLimit,
}

impl MemoryBudget {
    /// A quarter of the memory that the process may use.
    pub(super) fn quarter() -> Self {
        Self { written: SettingValue::Float(0.25), limit: MemoryLimit::Fraction(0.25) }
    }
}

/// Bytes that a number without a unit must have.
const SMALLEST_NUMBER: f64 = 65_536.0;
const MEMORY: &str =
    "is no fraction of memory and too few bytes; write a fraction up to 1 (0.5), or the unit (\"2GB\")";

impl Setting for MemoryBudget {
    type Held = Self;

    fn annotation() -> String {
        "int | float | str".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        let number = match value {
            SettingValue::Text(text) => text.trim().parse().ok(),
            other => other.number(),
        };
        // Who writes 2 means gigabytes, and 4096 megabytes; no model is that small.
        if number.is_some_and(|number| number > 1.0 && number < SMALLEST_NUMBER) {
            return Err(MEMORY.into());
        }
        let limit = match (value, number) {
            (SettingValue::Text(text), _) => MemoryLimit::parse("", text),
            (_, Some(number)) => MemoryLimit::from_number("", number),
            _ => return Err("must be bytes, a fraction of memory, or text such as \"2GB\"".into()),
        }
        .map_err(reason)?;
        Ok(Self { written: value.clone(), limit })
    }

    fn to_value(held: &Self) -> SettingValue {
        held.written.clone()
    }
}

/// What is allowed, out of an error that also names the setting.
fn reason(error: Error) -> String {
    match error {
        Error::Config { reason, .. } => reason,
        other => other.to_string(),
    }
}

/// A setting that is one of a few words.
pub trait Choice: Sized + Copy + 'static {
    /// Every choice with its word.
    const ALL: &'static [(Self, &'static str)];

    /// The word.
    fn as_str(self) -> &'static str;
}

impl<T: Choice> Setting for T {
    type Held = Self;

    fn annotation() -> String {
        "str".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        let SettingValue::Text(text) = value else { return Err(allowed::<T>()) };
        T::ALL
            .iter()
            .find(|(_, word)| word.eq_ignore_ascii_case(text))
            .map(|(choice, _)| *choice)
            .ok_or_else(allowed::<T>)
    }

    fn to_value(held: &Self) -> SettingValue {
        SettingValue::Text(held.as_str().into())
    }
}

fn allowed<T: Choice>() -> String {
    let words: Vec<_> = T::ALL.iter().map(|(_, word)| format!("{word:?}")).collect();
    format!("must be one of {}", words.join(", "))
}

macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$about])* $variant,)+
        }

        impl $crate::config::Choice for $name {
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $word)),+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }
    };
}
pub(super) use choice;
