//! The tests: `value is name`.

use std::cmp::Ordering;

use super::ast::Binary;
use super::call::NamedCall;
use super::operators;
use super::problem::{Problem, TemplateResult};
use super::render::{Object, Renderer};
use super::value::Value;

type TestCall<'v> = NamedCall<'v, &'v Value>;

/// The value and the one that it is compared with.
fn both<'v>(call: TestCall<'v>) -> TemplateResult<(&'v Value, Value)> {
    let (value, [other]) = call.bind(["other"], 1)?;
    Ok((value, other.unwrap_or(Value::None)))
}

pub(super) fn equal(r: &mut Renderer<'_>, call: TestCall<'_>) -> TemplateResult<bool> {
    let (value, other) = both(call)?;
    r.equal(value, &other)
}

pub(super) fn unequal(r: &mut Renderer<'_>, call: TestCall<'_>) -> TemplateResult<bool> {
    equal(r, call).map(|same| !same)
}

fn ordered(
    r: &mut Renderer<'_>,
    call: TestCall<'_>,
    symbol: &str,
    fits: fn(Ordering) -> bool,
) -> TemplateResult<bool> {
    let (value, other) = both(call)?;
    let order = operators::order(value, &other, symbol, &mut r.budget)?;
    Ok(order.is_some_and(fits))
}

pub(super) fn less(r: &mut Renderer<'_>, call: TestCall<'_>) -> TemplateResult<bool> {
    ordered(r, call, "<", Ordering::is_lt)
}

pub(super) fn at_most(r: &mut Renderer<'_>, call: TestCall<'_>) -> TemplateResult<bool> {
    ordered(r, call, "<=", Ordering::is_le)
}

pub(super) fn greater(r: &mut Renderer<'_>, call: TestCall<'_>) -> TemplateResult<bool> {
    ordered(r, call, ">", Ordering::is_gt)
}

pub(super) fn at_least(r: &mut Renderer<'_>, call: TestCall<'_>) -> TemplateResult<bool> {
    ordered(r, call, ">=", Ordering::is_ge)
}

/// `in`.
pub(super) fn contained(r: &mut Renderer<'_>, call: TestCall<'_>) -> TemplateResult<bool> {
    let (value, container) = both(call)?;
    operators::contains(&container, value, &mut r.budget)
}

pub(super) fn divisibleby(r: &mut Renderer<'_>, call: TestCall<'_>) -> TemplateResult<bool> {
    let (value, other) = both(call)?;
    let rest = operators::binary(Binary::Mod, value, &other, &mut r.budget)?;
    r.equal(&rest, &Value::Int(0))
}

/// `even` and `odd`: whether the rest of a division by two is `rest`.
pub(super) fn parity(r: &mut Renderer<'_>, call: TestCall<'_>, rest: i128) -> TemplateResult<bool> {
    let found = operators::binary(Binary::Mod, call.alone()?, &Value::Int(2), &mut r.budget)?;
    r.equal(&found, &Value::Int(rest))
}

pub(super) fn sameas(_: &mut Renderer<'_>, call: TestCall<'_>) -> TemplateResult<bool> {
    let (value, other) = both(call)?;
    match (value, &other) {
        (Value::None, Value::None) => Ok(true),
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::None | Value::Bool(_), _) | (_, Value::None | Value::Bool(_)) => Ok(false),
        _ => Err(Problem::unsupported("'is sameas' of anything but none, true and false")),
    }
}

/// `lower` and `upper`.
pub(super) fn cased(
    r: &mut Renderer<'_>,
    call: TestCall<'_>,
    is_cased: fn(&str) -> bool,
) -> TemplateResult<bool> {
    let text = r.string(call.alone()?)?;
    r.budget.memory(text.len())?;
    Ok(is_cased(&text))
}

pub(super) fn iterable(r: &mut Renderer<'_>, call: TestCall<'_>) -> TemplateResult<bool> {
    Ok(match call.alone()? {
        Value::Object(at) => matches!(r.objects[*at], Object::Loop { .. }),
        value => !matches!(
            value,
            Value::None
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Float(_)
                | Value::Method(_)
                | Value::Function(_)
        ),
    })
}

/// Whether a value has a length and items by key.
pub(super) fn sequence(_: &mut Renderer<'_>, call: TestCall<'_>) -> TemplateResult<bool> {
    Ok(matches!(
        call.alone()?,
        Value::Undefined(_)
            | Value::Text(_)
            | Value::Markup(_)
            | Value::List(_)
            | Value::Tuple(_)
            | Value::Dict(_)
            | Value::Range(..)
    ))
}

pub(super) fn callable(r: &mut Renderer<'_>, call: TestCall<'_>) -> TemplateResult<bool> {
    Ok(match call.alone()? {
        Value::Object(at) => matches!(
            r.objects[*at],
            Object::Macro { .. } | Object::Joiner { .. } | Object::Loop { .. } | Object::Block { .. }
        ),
        Value::Undefined(_) => true,
        value => matches!(value, Value::Method(_) | Value::Function(_)),
    })
}
