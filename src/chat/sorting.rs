//! Attributes of items as keys: how filters look them up, and sort by them.

use std::cmp::Ordering;

use super::operators;
use super::problem::{Problem, TemplateResult};
use super::render::Renderer;
use super::value::Value;

/// `item.a.b` for the attribute `"a.b"`; a number is an index.
pub(super) fn path(
    r: &mut Renderer<'_>,
    mut item: Value,
    attribute: Option<&Value>,
    default: Option<&Value>,
) -> TemplateResult<Value> {
    let parts = match attribute {
        None | Some(Value::None) => return Ok(item),
        Some(Value::Text(attribute)) => attribute
            .split('.')
            .map(|part| match part.parse() {
                Ok(index) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(index),
                _ => Value::text(part),
            })
            .collect(),
        Some(other) => vec![other.clone()],
    };
    for part in parts {
        r.budget.memory(64)?;
        item = r.item(&item, &part)?;
        if let Some(default) = default.filter(|_| item.is_undefined()) {
            item = default.clone();
        }
    }
    Ok(item)
}

/// The key of an item for sorting and grouping.
pub(super) fn key_of(
    r: &mut Renderer<'_>,
    item: &Value,
    attribute: Option<&Value>,
    default: Option<&Value>,
    case: bool,
) -> TemplateResult<Value> {
    let value = path(r, item.clone(), attribute, default)?;
    folded(r, value, case)
}

/// `value`, in lower case if it is a text, unless `case` matters.
pub(super) fn folded(r: &mut Renderer<'_>, value: Value, case: bool) -> TemplateResult<Value> {
    match &value {
        Value::Text(text) if !case => {
            r.budget.memory(text.len())?;
            Ok(Value::text(text.to_lowercase()))
        }
        _ => Ok(value),
    }
}

/// Sorts by key; equal ones keep their order, also in reverse.
pub(super) fn sorted(
    r: &mut Renderer<'_>,
    mut keyed: Vec<(Value, Value)>,
    reverse: bool,
) -> TemplateResult<Vec<(Value, Value)>> {
    let mut failed = None;
    keyed.sort_by(|a, b| {
        if failed.is_some() {
            return Ordering::Equal;
        }
        let (x, y) = if reverse { (&b.0, &a.0) } else { (&a.0, &b.0) };
        match operators::order(x, y, "<", &mut r.budget) {
            Ok(Some(order)) => order,
            Ok(None) => {
                failed = Some(Problem::unsupported("sorting NaN"));
                Ordering::Equal
            }
            Err(problem) => {
                failed = Some(problem);
                Ordering::Equal
            }
        }
    });
    match failed {
        Some(problem) => Err(problem),
        None => Ok(keyed),
    }
}
