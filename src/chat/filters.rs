//! The filters on sequences and numbers; those on texts are in `text_filters`.

use std::cmp::Ordering;
use std::collections::HashSet;

use super::ast::Binary;
use super::call::{self, NamedCall};
use super::functions::{self, small};
use super::limits::width;
use super::numbers::{to_float, to_int};
use super::operators;
use super::problem::{Problem, TemplateResult};
use super::render::Renderer;
use super::sorting::{folded, key_of, path, sorted};
use super::value::{DictKey, Value};

type FilterCall<'n> = NamedCall<'n, Value>;

/// Whether an optional argument is given and true.
fn is_true(value: Option<Value>) -> bool {
    value.is_some_and(|value| value.truth())
}

pub(super) fn default(_: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let (value, [default, boolean]) = call.bind(["default_value", "boolean"], 0)?;
    let replaced = value.is_undefined() || (is_true(boolean) && !value.truth());
    Ok(if replaced { default.unwrap_or(Value::text("")) } else { value })
}

pub(super) fn length(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    call.alone()?.length(&mut r.budget).map(|length| Value::Int(length as i128))
}

pub(super) fn list(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    Value::list(call.alone()?.elements(&mut r.budget)?)
}

fn empty(what: &str) -> Value {
    Value::undefined(format!("No {what} item, sequence was empty."))
}

pub(super) fn first(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let first = match call.alone()? {
        Value::Iter(iter) => iter.items.lock().pop_front(),
        value => value.elements(&mut r.budget)?.into_iter().next(),
    };
    Ok(first.unwrap_or_else(|| empty("first")))
}

fn reversible(value: &Value) -> TemplateResult<()> {
    match value {
        Value::Undefined(_) => Err(Problem::unsupported("the end of an undefined value")),
        Value::Iter(_) => Err(Problem::failed("'generator' object is not reversible")),
        Value::Markup(_) => Err(Problem::unsupported("the end of a Markup")),
        _ => Ok(()),
    }
}

pub(super) fn last(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let value = call.alone()?;
    reversible(&value)?;
    Ok(value.elements(&mut r.budget)?.pop().unwrap_or_else(|| empty("last")))
}

pub(super) fn reverse(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let value = call.alone()?;
    if let Value::Text(text) = &value {
        r.budget.memory(text.len())?;
        return Ok(Value::text(text.chars().rev().collect::<String>()));
    }
    if !matches!(value, Value::Iter(_)) {
        reversible(&value)?;
    }
    let mut items = value.elements(&mut r.budget)?;
    items.reverse();
    Value::iter(items)
}

pub(super) fn items(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    match call.alone()? {
        Value::Undefined(_) => Value::iter(Vec::new()),
        Value::Dict(dict) => {
            r.budget.memory(dict.entries().len() * 96)?;
            let pairs =
                dict.entries().iter().map(|(key, item)| Value::tuple(vec![key.clone(), item.clone()]));
            Value::iter(pairs.collect::<TemplateResult<_>>()?)
        }
        _ => Err(Problem::failed("Can only get item pairs from a mapping.")),
    }
}

/// Looks up attributes only, not items.
pub(super) fn attr(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let (value, [key]) = call.bind(["name"], 1)?;
    let key = r.string(&key.unwrap_or(Value::None))?.into();
    value.defined()?;
    let found = functions::attribute(r, &value, &key)?;
    Ok(found.unwrap_or_else(|| {
        Value::undefined(format!("'{} object' has no attribute '{key}'", value.type_name()))
    }))
}

/// What `batch` and `slice` divide: the items, how many or by how many, and what fills the gaps.
struct Division {
    items: Vec<Value>,
    count: i128,
    size: usize,
    fill: Option<Value>,
}

fn division(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Division> {
    let (value, [count, fill]) = call.bind(["linecount", "fill_with"], 1)?;
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let count = call::int(count, 0, "the number")?;
    let items = value.elements(&mut r.budget)?;
    Ok(Division { items, count, size: width(count, "number of elements")?, fill })
}

pub(super) fn batch(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let Division { items, count, size, fill } = division(r, call)?;
    if count < 1 {
        return Err(Problem::unsupported("batch of less than 1"));
    }
    let mut out = Vec::new();
    for chunk in items.chunks(size) {
        let mut batch = chunk.to_vec();
        if let Some(fill) = &fill {
            r.budget.memory(32 * (size - batch.len()))?;
            batch.resize(size, fill.clone());
        }
        out.push(Value::list(batch)?);
    }
    Value::iter(out)
}

pub(super) fn slice(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let Division { items, count, size, fill } = division(r, call)?;
    if count == 0 {
        return Err(Problem::failed("integer division or modulo by zero"));
    }
    if count < 0 {
        return Err(Problem::unsupported("slice of less than 1"));
    }
    r.budget.memory(size * 64)?;
    r.budget.steps(size)?;
    let (each, more) = (items.len() / size, items.len() % size);
    let mut items = items.into_iter();
    let mut out = Vec::new();
    for at in 0..size {
        let mut part: Vec<Value> = items.by_ref().take(each + usize::from(at < more)).collect();
        part.extend(fill.clone().filter(|_| at >= more));
        out.push(Value::list(part)?);
    }
    Value::iter(out)
}

/// The items in the order of their keys.
fn in_order(r: &mut Renderer<'_>, keyed: Vec<(Value, Value)>, reverse: bool) -> TemplateResult<Value> {
    let sorted = sorted(r, keyed, reverse)?;
    Value::list(sorted.into_iter().map(|(_, item)| item).collect())
}

pub(super) fn sort(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let (value, [reverse, case, attribute]) = call.bind(["reverse", "case_sensitive", "attribute"], 0)?;
    let keys: Vec<Option<Value>> = match attribute {
        Some(Value::Text(list)) => list.split(',').map(|key| Some(Value::text(key))).collect(),
        other => vec![other],
    };
    let items = value.elements(&mut r.budget)?;
    let case = is_true(case);
    let mut keyed = Vec::new();
    for item in items {
        let mut parts = Vec::new();
        for key in &keys {
            parts.push(key_of(r, &item, key.as_ref(), None, case)?);
        }
        keyed.push((Value::tuple(parts)?, item));
    }
    in_order(r, keyed, is_true(reverse))
}

pub(super) fn dictsort(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let (value, [case, by, reverse]) = call.bind(["case_sensitive", "by", "reverse"], 0)?;
    let by_key = match by.as_ref().map_or(Some("key"), |by| by.as_text().map(|text| &**text)) {
        Some("key") => true,
        Some("value") => false,
        _ => return Err(Problem::failed("You can only sort by either \"key\" or \"value\"")),
    };
    let Value::Dict(dict) = &value else { return Err(Problem::failed("dictsort of no mapping")) };
    let case = is_true(case);
    r.budget.memory(dict.entries().len() * 128)?;
    let mut keyed = Vec::new();
    for (key, item) in dict.entries() {
        let by = if by_key { key } else { item };
        keyed.push((folded(r, by.clone(), case)?, Value::tuple(vec![key.clone(), item.clone()])?));
    }
    in_order(r, keyed, is_true(reverse))
}

pub(super) fn groupby(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let (value, [attribute, default, case]) = call.bind(["attribute", "default", "case_sensitive"], 1)?;
    let case = is_true(case);
    let mut keyed = Vec::new();
    for item in value.elements(&mut r.budget)? {
        keyed.push((key_of(r, &item, attribute.as_ref(), default.as_ref(), case)?, item));
    }
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in sorted(r, keyed, false)? {
        match groups.last_mut() {
            Some((last, items)) if r.equal(last, &key)? => items.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let mut out = Vec::new();
    for (_, items) in groups {
        let key = key_of(r, &items[0], attribute.as_ref(), default.as_ref(), true)?;
        out.push(Value::group(vec![key, Value::list(items)?])?);
    }
    Value::list(out)
}

pub(super) fn unique(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let (value, [case, attribute]) = call.bind(["case_sensitive", "attribute"], 0)?;
    let case = is_true(case);
    let (mut seen, mut kept) = (HashSet::new(), Vec::new());
    for item in value.elements(&mut r.budget)? {
        let key = key_of(r, &item, attribute.as_ref(), None, case)?;
        if seen.insert(DictKey::of(&key, &mut r.budget)?) {
            kept.push(item);
        }
    }
    Value::iter(kept)
}

/// `min` and `max`: the first item whose key stands to those of all others as `wanted`, which is called `symbol`.
pub(super) fn extreme(
    r: &mut Renderer<'_>,
    call: FilterCall<'_>,
    symbol: &str,
    wanted: Ordering,
) -> TemplateResult<Value> {
    let (value, [case, attribute]) = call.bind(["case_sensitive", "attribute"], 0)?;
    let case = is_true(case);
    let mut best: Option<(Value, Value)> = None;
    for item in value.elements(&mut r.budget)? {
        let key = key_of(r, &item, attribute.as_ref(), None, case)?;
        let better = match &best {
            None => true,
            Some((than, _)) => operators::order(&key, than, symbol, &mut r.budget)? == Some(wanted),
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or_else(|| Value::undefined("No aggregated item, sequence was empty."), |(_, item)| item))
}

pub(super) fn sum(r: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let (value, [attribute, start]) = call.bind(["attribute", "start"], 0)?;
    let mut total = start.unwrap_or(Value::Int(0));
    if total.as_text().is_some() {
        return Err(Problem::failed("sum() can't sum strings [use ''.join(seq) instead]"));
    }
    for item in value.elements(&mut r.budget)? {
        let item = path(r, item, attribute.as_ref(), None)?;
        total = operators::binary(Binary::Add, &total, &item, &mut r.budget)?;
    }
    Ok(total)
}

pub(super) fn abs(_: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let value = call.alone()?;
    value.defined()?;
    match (&value, value.as_int()) {
        (Value::Float(number), _) => Ok(Value::Float(number.abs())),
        (_, Some(number)) => Ok(Value::Int(number.saturating_abs())),
        _ => Err(Problem::failed(format!("bad operand type for abs(): '{}'", value.type_name()))),
    }
}

pub(super) fn int(_: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let (value, [default, base]) = call.bind(["default", "base"], 0)?;
    let number = to_int(&value, small(base, 10, "the base")?)?;
    Ok(number.map_or_else(|| default.unwrap_or(Value::Int(0)), Value::Int))
}

pub(super) fn float(_: &mut Renderer<'_>, call: FilterCall<'_>) -> TemplateResult<Value> {
    let (value, [default]) = call.bind(["default"], 0)?;
    value.defined()?;
    Ok(to_float(&value).map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
}
