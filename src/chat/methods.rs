//! The methods of values: those of `str` are in `strings`.

use std::sync::Arc;

use super::call::{ArgumentValues, NamedCall};
use super::problem::{Problem, TemplateResult};
use super::render::{Method, Object, Renderer};
use super::value::{Dict, Items, Value};
use super::{operators, strings};

const DICT: &[(&str, Method<Arc<Dict>>)] = &[
    ("copy", |_, call| Ok(Value::Dict(call.alone()?.clone()))),
    ("get", get),
    ("items", items),
    ("keys", |r, call| view(r, call, "dict_keys", |(key, _)| Ok(key.clone()))),
    ("values", |r, call| view(r, call, "dict_values", |(_, value)| Ok(value.clone()))),
];
const LIST: &[(&str, Method<Arc<Items>>)] =
    &[("copy", |_, call| Ok(Value::List(call.alone()?.clone()))), ("count", count), ("index", index)];
const TUPLE: &[(&str, Method<Arc<Items>>)] = &[("count", count), ("index", index)];
const FLOAT: &[(&str, Method<f64>)] =
    &[("is_integer", |_, call| call.alone().map(|x| Value::Bool(x.is_finite() && x.fract() == 0.0)))];
const LOOP: &[(&str, Method<usize>)] = &[("changed", changed), ("cycle", cycle)];
const CYCLER: &[(&str, Method<usize>)] = &[("next", next), ("reset", reset)];

/// The place of a method in the table of the value's type, which [`Value::Method`] keeps.
pub(super) fn place(r: &Renderer<'_>, value: &Value, name: &str) -> Option<usize> {
    fn of<S: ?Sized>(methods: &[(&str, Method<S>)], name: &str) -> Option<usize> {
        methods.iter().position(|(known, _)| *known == name)
    }
    match value {
        Value::Text(_) => of(strings::METHODS, name),
        Value::Dict(_) => of(DICT, name),
        Value::List(_) => of(LIST, name),
        Value::Tuple(_) => of(TUPLE, name),
        Value::Float(_) => of(FLOAT, name),
        Value::Object(at) => match r.objects[*at] {
            Object::Loop { .. } => of(LOOP, name),
            Object::Cycler { .. } => of(CYCLER, name),
            _ => None,
        },
        _ => None,
    }
}

/// Calls the method at this place of the table of the subject's type.
pub(super) fn call(
    r: &mut Renderer<'_>,
    subject: &Value,
    place: usize,
    given: ArgumentValues,
) -> TemplateResult<Value> {
    fn run<S: ?Sized>(
        r: &mut Renderer<'_>,
        (name, method): (&str, Method<S>),
        subject: &S,
        given: ArgumentValues,
    ) -> TemplateResult<Value> {
        method(r, NamedCall { name, subject, given })
    }
    match subject {
        Value::Text(text) => {
            r.budget.memory(text.len())?;
            run(r, strings::METHODS[place], text, given)
        }
        Value::Dict(dict) => run(r, DICT[place], dict, given),
        Value::List(items) => run(r, LIST[place], items, given),
        Value::Tuple(items) => run(r, TUPLE[place], items, given),
        Value::Float(number) => run(r, FLOAT[place], number, given),
        Value::Object(at) => match r.objects[*at] {
            Object::Loop { .. } => run(r, LOOP[place], at, given),
            _ => run(r, CYCLER[place], at, given),
        },
        other => Err(Problem::unsupported(format!("a method of a {}", other.type_name()))),
    }
}

fn get(r: &mut Renderer<'_>, call: NamedCall<'_, &Arc<Dict>>) -> TemplateResult<Value> {
    let [key, default] = call.given.bind_positional(call.name, 1)?;
    let found = call.subject.get(&key.unwrap_or(Value::None), &mut r.budget)?.cloned();
    Ok(found.or(default).unwrap_or(Value::None))
}

/// A view of a dict, with what `part` takes of each entry.
fn view(
    r: &mut Renderer<'_>,
    call: NamedCall<'_, &Arc<Dict>>,
    kind: &'static str,
    part: fn(&(Value, Value)) -> TemplateResult<Value>,
) -> TemplateResult<Value> {
    let entries = call.alone()?.entries();
    r.budget.memory(entries.len() * 96)?;
    r.budget.steps(entries.len())?;
    Value::view(kind, entries.iter().map(part).collect::<TemplateResult<_>>()?)
}

fn items(r: &mut Renderer<'_>, call: NamedCall<'_, &Arc<Dict>>) -> TemplateResult<Value> {
    view(r, call, "dict_items", |(key, value)| Value::tuple(vec![key.clone(), value.clone()]))
}

/// The elements, and the one that `count` and `index` look for.
fn sought<'s>(call: NamedCall<'s, &'s Arc<Items>>) -> TemplateResult<(&'s [Value], Value)> {
    let [item, start, stop] = call.given.bind_positional(call.name, 1)?;
    if start.is_some() || stop.is_some() {
        return Err(Problem::unsupported("index with a start"));
    }
    Ok((&call.subject.items, item.unwrap_or(Value::None)))
}

fn count(r: &mut Renderer<'_>, call: NamedCall<'_, &Arc<Items>>) -> TemplateResult<Value> {
    let (elements, item) = sought(call)?;
    let mut count = 0;
    for element in elements {
        count += i128::from(operators::equal(element, &item, &mut r.budget)?);
    }
    Ok(Value::Int(count))
}

fn index(r: &mut Renderer<'_>, call: NamedCall<'_, &Arc<Items>>) -> TemplateResult<Value> {
    let (elements, item) = sought(call)?;
    for (at, element) in elements.iter().enumerate() {
        if operators::equal(element, &item, &mut r.budget)? {
            return Ok(Value::Int(at as i128));
        }
    }
    Err(Problem::failed("the value is not in list"))
}

/// The arguments of a method of an object, which have no names.
fn unnamed(call: NamedCall<'_, &usize>) -> TemplateResult<Vec<Value>> {
    if !call.given.named.is_empty() {
        return Err(Problem::failed(format!("{}() takes no keyword arguments", call.name)));
    }
    Ok(call.given.positional)
}

fn changed(r: &mut Renderer<'_>, call: NamedCall<'_, &usize>) -> TemplateResult<Value> {
    let at = *call.subject;
    let values = unnamed(call)?;
    let before = match &mut r.objects[at] {
        Object::Loop { state, .. } => state.changed.replace(values.clone()),
        _ => None,
    };
    let Some(before) = before else { return Ok(Value::Bool(true)) };
    let same = r.equal(&Value::tuple(before)?, &Value::tuple(values)?)?;
    Ok(Value::Bool(!same))
}

fn cycle(r: &mut Renderer<'_>, call: NamedCall<'_, &usize>) -> TemplateResult<Value> {
    let at = *call.subject;
    let values = unnamed(call)?;
    match &r.objects[at] {
        Object::Loop { state, .. } if !values.is_empty() => Ok(values[state.at % values.len()].clone()),
        _ => Err(Problem::failed("no items for cycling given")),
    }
}

fn next(r: &mut Renderer<'_>, call: NamedCall<'_, &usize>) -> TemplateResult<Value> {
    let object = *call.subject;
    unnamed(call)?;
    let Object::Cycler { items, at } = &mut r.objects[object] else { return Ok(Value::None) };
    let value = items[*at].clone();
    *at = (*at + 1) % items.len();
    Ok(value)
}

fn reset(r: &mut Renderer<'_>, call: NamedCall<'_, &usize>) -> TemplateResult<Value> {
    let object = *call.subject;
    unnamed(call)?;
    if let Object::Cycler { at, .. } = &mut r.objects[object] {
        *at = 0;
    }
    Ok(Value::None)
}
