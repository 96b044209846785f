//! Numbers of which a setting takes only some.

use std::marker::PhantomData;

use super::value::{Setting, SettingValue};

/// A `T` within the range `R`. The setting holds the plain `T`.
#[derive(Debug)]
pub struct Bounded<T, R>(PhantomData<(T, R)>);

/// Which numbers a setting takes.
pub trait NumberRange {
    /// Whether it takes `number`.
    fn contains(number: f64) -> bool;

    /// The range, as errors state it.
    fn allowed() -> String;
}

/// More than 0.
#[derive(Debug)]
pub struct Positive;

impl NumberRange for Positive {
    fn contains(number: f64) -> bool {
        number > 0.0
    }

    fn allowed() -> String {
        "must be greater than 0".into()
    }
}

/// This and more.
#[derive(Debug)]
pub struct AtLeast<const LEAST: u32>;

impl<const LEAST: u32> NumberRange for AtLeast<LEAST> {
    fn contains(number: f64) -> bool {
        number >= f64::from(LEAST)
    }

    fn allowed() -> String {
        format!("must be at least {LEAST}")
    }
}

/// From the first to the second, both included.
#[derive(Debug)]
pub struct Between<const LEAST: u32, const MOST: u32>;

impl<const LEAST: u32, const MOST: u32> NumberRange for Between<LEAST, MOST> {
    fn contains(number: f64) -> bool {
        (f64::from(LEAST)..=f64::from(MOST)).contains(&number)
    }

    fn allowed() -> String {
        format!("must lie between {LEAST} and {MOST}")
    }
}

impl<T: Setting, R: NumberRange> Bounded<T, R> {
    fn within(held: T::Held) -> Result<T::Held, String> {
        let number = f64::from_value(&T::to_value(&held))?;
        if R::contains(number) { Ok(held) } else { Err(R::allowed()) }
    }
}

impl<T: Setting, R: NumberRange> Setting for Bounded<T, R> {
    type Held = T::Held;

    fn annotation() -> String {
        T::annotation()
    }

    fn from_value(value: &SettingValue) -> Result<T::Held, String> {
        T::from_value(value).and_then(Self::within)
    }

    fn from_text(text: &str) -> Result<T::Held, String> {
        T::from_text(text).and_then(Self::within)
    }

    fn to_value(held: &T::Held) -> SettingValue {
        T::to_value(held)
    }
}
