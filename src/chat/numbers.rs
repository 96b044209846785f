//! Numbers from texts, and rounding.

use std::sync::Arc;

use super::call::{ArgumentValues, int, text};
use super::lexer::is_space;
use super::problem::{Problem, TemplateResult};
use super::value::Value;

/// The filter `round`.
pub(super) fn round(value: &Value, given: ArgumentValues) -> TemplateResult<Value> {
    let [precision, method] = given.bind("round", ["precision", "method"], 0)?;
    let precision = int(precision, 0, "the precision")?;
    let method: Arc<str> = text(method, "common", "the method")?;
    if !["common", "ceil", "floor"].contains(&&*method) {
        return Err(Problem::failed("method must be common, ceil or floor"));
    }
    value.defined()?;
    let Some(number) = value.as_float() else {
        return Err(Problem::failed(format!("type {} doesn't define __round__ method", value.type_name())));
    };
    if !(0..=300).contains(&precision) {
        return Err(Problem::unsupported("round to a precision below 0 or above 300"));
    }
    let places = precision as usize;
    if &*method == "common" {
        return match value.as_int() {
            Some(number) => Ok(Value::Int(number)),
            None if !number.is_finite() => Ok(Value::Float(number)),
            None => Ok(Value::Float(format!("{number:.places$}").parse().unwrap_or(number))),
        };
    }
    let scale = 10_f64.powi(precision as i32);
    let scaled = number * scale;
    if !scaled.is_finite() || scaled.abs() > 1e15 {
        return Err(Problem::unsupported("rounding such a large number"));
    }
    let whole = if &*method == "ceil" { scaled.ceil() } else { scaled.floor() };
    // Python divides integers here: there is no negative zero.
    Ok(Value::Float((whole + 0.0) / scale))
}

/// Python's `int(text, base)`.
fn parse_int(text: &str, base: u32) -> TemplateResult<Option<i128>> {
    let text = text.trim_matches(is_space);
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    if !digits.is_ascii() {
        return if digits.chars().any(|c| c.is_numeric()) {
            Err(Problem::unsupported("numbers in other digits than 0 to 9"))
        } else {
            Ok(None)
        };
    }
    let lower = digits.to_ascii_lowercase();
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)]
        .into_iter()
        .find(|(p, b)| lower.starts_with(p) && [*b, 0].contains(&base));
    let (digits, base) = match prefixed {
        Some((_, of)) => (lower[2..].strip_prefix('_').unwrap_or(&lower[2..]), of),
        None if base == 0 => return Err(Problem::unsupported("int with the base 0")),
        None => (&lower[..], base),
    };
    if !(2..=36).contains(&base)
        || digits.is_empty()
        || digits.starts_with('_')
        || digits.ends_with('_')
        || digits.contains("__")
    {
        return Ok(None);
    }
    let digits = digits.replace('_', "");
    if !digits.chars().all(|c| c.is_digit(base)) {
        return Ok(None);
    }
    let value = i128::from_str_radix(&digits, base)
        .map_err(|_| Problem::unsupported("an integer of more than 127 bits"))?;
    Ok(Some(if negative { -value } else { value }))
}

pub(super) fn to_int(value: &Value, base: u32) -> TemplateResult<Option<i128>> {
    if let Value::Text(text) = value
        && let Some(number) = parse_int(text, base)?
    {
        return Ok(Some(number));
    }
    value.defined()?;
    if let Some(number) = value.as_int() {
        return Ok(Some(number));
    }
    match to_float(value) {
        Some(number) if number.is_finite() && number.abs() < 1e38 => Ok(Some(number.trunc() as i128)),
        Some(number) if number.is_finite() => Err(Problem::unsupported("an integer of more than 127 bits")),
        _ => Ok(None),
    }
}

/// Python's `float(value)`.
pub(super) fn to_float(value: &Value) -> Option<f64> {
    let Value::Text(text) = value else { return value.as_float() };
    let text = text.trim_matches(is_space);
    let bad = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    let plain = text.replace('_', "");
    if bad || plain.is_empty() { None } else { plain.parse().ok() }
}
