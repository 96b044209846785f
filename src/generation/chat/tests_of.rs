//! The tests: `value is name`.

use std::cmp::Ordering;

use super::ast::Binary;
use super::builtins::{FILTERS, REFUSED_FILTERS, TESTS};
use super::call::ArgumentValues;
use super::problem::{Problem, TemplateResult};
use super::render::{Object, Renderer};
use super::value::Value;
use super::{operators, strings};

/// `value is name(given)`.
pub(super) fn test(
    r: &mut Renderer<'_>,
    name: &str,
    value: &Value,
    given: ArgumentValues,
) -> TemplateResult<bool> {
    r.budget.steps(1)?;
    let one =
        |given: ArgumentValues| given.bind(name, ["other"], 1).map(|[other]| other.unwrap_or(Value::None));
    match name {
        "eq" | "==" | "equalto" => {
            let other = one(given)?;
            return r.equal(value, &other);
        }
        "ne" | "!=" => {
            let other = one(given)?;
            return r.equal(value, &other).map(|same| !same);
        }
        "lt" | "<" | "lessthan" | "le" | "<=" | "gt" | ">" | "greaterthan" | "ge" | ">=" => {
            let other = one(given)?;
            let (symbol, fits): (_, &[Ordering]) = match name {
                "lt" | "<" | "lessthan" => ("<", &[Ordering::Less]),
                "le" | "<=" => ("<=", &[Ordering::Less, Ordering::Equal]),
                "gt" | ">" | "greaterthan" => (">", &[Ordering::Greater]),
                _ => (">=", &[Ordering::Greater, Ordering::Equal]),
            };
            let order = operators::order(value, &other, symbol, &mut r.budget)?;
            return Ok(order.is_some_and(|order| fits.contains(&order)));
        }
        "in" => {
            let container = one(given)?;
            return operators::contains(&container, value, &mut r.budget);
        }
        "divisibleby" => {
            let other = one(given)?;
            let rest = operators::binary(Binary::Mod, value, &other, &mut r.budget)?;
            return r.equal(&rest, &Value::Int(0));
        }
        "sameas" => {
            let other = one(given)?;
            return match (value, &other) {
                (Value::None, Value::None) => Ok(true),
                (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
                (Value::None | Value::Bool(_), _) | (_, Value::None | Value::Bool(_)) => Ok(false),
                _ => Err(Problem::unsupported("'is sameas' of anything but none, true and false")),
            };
        }
        "filter" | "test" => {
            given.none(name)?;
            let Some(of) = value.as_text() else {
                return Err(Problem::unsupported(format!("'is {name}' of no str")));
            };
            return Ok(if name == "filter" {
                FILTERS.contains(&&**of) || REFUSED_FILTERS.contains(&&**of)
            } else {
                TESTS.contains(&&**of)
            });
        }
        _ => given.none(name)?,
    }
    Ok(match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "string" => value.as_text().is_some(),
        "mapping" => matches!(value, Value::Dict(_)),
        "escaped" => matches!(value, Value::Markup(_)),
        "iterable" => match value {
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
        },
        // Values with a length and items by key.
        "sequence" => matches!(
            value,
            Value::Undefined(_)
                | Value::Text(_)
                | Value::Markup(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(..)
        ),
        "callable" => match value {
            Value::Object(at) => {
                matches!(
                    r.objects[*at],
                    Object::Macro { .. } | Object::Joiner { .. } | Object::Loop { .. } | Object::Block { .. }
                )
            }
            Value::Undefined(_) => true,
            value => matches!(value, Value::Method(_) | Value::Function(_)),
        },
        "even" | "odd" => {
            let rest = operators::binary(Binary::Mod, value, &Value::Int(2), &mut r.budget)?;
            r.equal(&rest, &Value::Int(i128::from(name == "odd")))?
        }
        "lower" | "upper" => {
            let text = r.string(value)?.into();
            let method = if name == "lower" { "islower" } else { "isupper" };
            strings::call(&text, method, ArgumentValues::default(), &mut r.budget)?.truth()
        }
        other => return Err(Problem::failed(format!("No test named '{other}'."))),
    })
}
