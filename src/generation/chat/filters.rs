//! The filters on sequences and numbers; those on texts are in `text_filters`.

use std::cmp::Ordering;

use super::ast::Binary;
use super::builtins::{FILTERS, REFUSED_FILTERS};
use super::call::{ArgumentValues, int};
use super::functions::small;
use super::limits::width;
use super::numbers::{round, to_float, to_int};
use super::problem::{Problem, TemplateResult};
use super::render::Renderer;
use super::sorting::{folded, key_of, path, sorted};
use super::value::{DictKey, Value};
use super::{operators, tests_of, text_filters};

/// `value | name(given)`.
pub(super) fn filter(
    r: &mut Renderer<'_>,
    name: &str,
    value: Value,
    given: ArgumentValues,
) -> TemplateResult<Value> {
    r.budget.steps(1)?;
    match name {
        "default" | "d" => {
            let [default, boolean] = given.bind(name, ["default_value", "boolean"], 0)?;
            let replaced = value.is_undefined() || (boolean.is_some_and(|b| b.truth()) && !value.truth());
            Ok(if replaced { default.unwrap_or(Value::text("")) } else { value })
        }
        "length" | "count" => {
            given.none(name)?;
            value.length(&mut r.budget).map(|length| Value::Int(length as i128))
        }
        "list" => {
            given.none(name)?;
            Value::list(value.elements(&mut r.budget)?)
        }
        "first" => {
            given.none(name)?;
            if let Value::Iter(iter) = &value {
                let first = iter.items.lock().pop_front();
                return Ok(first.unwrap_or_else(|| empty("first")));
            }
            let first = value.elements(&mut r.budget)?.into_iter().next();
            Ok(first.unwrap_or_else(|| empty("first")))
        }
        "last" => {
            given.none(name)?;
            reversible(&value)?;
            Ok(value.elements(&mut r.budget)?.pop().unwrap_or_else(|| empty("last")))
        }
        "reverse" => {
            given.none(name)?;
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
        "items" => {
            given.none(name)?;
            match &value {
                Value::Undefined(_) => Value::iter(Vec::new()),
                Value::Dict(dict) => {
                    r.budget.memory(dict.entries().len() * 96)?;
                    let pairs = dict
                        .entries()
                        .iter()
                        .map(|(key, item)| Value::tuple(vec![key.clone(), item.clone()]));
                    Value::iter(pairs.collect::<TemplateResult<_>>()?)
                }
                _ => Err(Problem::failed("Can only get item pairs from a mapping.")),
            }
        }
        "attr" => {
            let [key] = given.bind(name, ["name"], 1)?;
            let key = r.string(&key.unwrap_or(Value::None))?.into();
            value.defined()?;
            // Looks up attributes only, not items.
            let found = super::functions::attribute(r, &value, &key)?;
            Ok(found.unwrap_or_else(|| {
                Value::undefined(format!("'{} object' has no attribute '{key}'", value.type_name()))
            }))
        }
        "batch" | "slice" => batches(r, name, &value, given),
        "map" => map(r, &value, given),
        "select" | "reject" | "selectattr" | "rejectattr" => select(r, name, &value, given),
        "sort" => {
            let [reverse, case, attribute] =
                given.bind(name, ["reverse", "case_sensitive", "attribute"], 0)?;
            let keys: Vec<Option<Value>> = match attribute {
                Some(Value::Text(list)) => list.split(',').map(|key| Some(Value::text(key))).collect(),
                other => vec![other],
            };
            let items = value.elements(&mut r.budget)?;
            let case = case.is_some_and(|case| case.truth());
            let mut keyed = Vec::new();
            for item in items {
                let mut parts = Vec::new();
                for key in &keys {
                    parts.push(key_of(r, &item, key.as_ref(), None, case)?);
                }
                keyed.push((Value::tuple(parts)?, item));
            }
            let sorted = sorted(r, keyed, reverse.is_some_and(|b| b.truth()))?;
            Value::list(sorted.into_iter().map(|(_, item)| item).collect())
        }
        "dictsort" => {
            let [case, by, reverse] = given.bind(name, ["case_sensitive", "by", "reverse"], 0)?;
            let by = match by.as_ref().map_or(Some("key"), |by| by.as_text().map(|t| &**t)) {
                Some("key") => 0,
                Some("value") => 1,
                _ => return Err(Problem::failed("You can only sort by either \"key\" or \"value\"")),
            };
            let Value::Dict(dict) = &value else { return Err(Problem::failed("dictsort of no mapping")) };
            let case = case.is_some_and(|case| case.truth());
            r.budget.memory(dict.entries().len() * 128)?;
            let mut keyed = Vec::new();
            for (key, item) in dict.entries() {
                let by = if by == 0 { key } else { item };
                keyed.push((folded(r, by.clone(), case)?, Value::tuple(vec![key.clone(), item.clone()])?));
            }
            let sorted = sorted(r, keyed, reverse.is_some_and(|b| b.truth()))?;
            Value::list(sorted.into_iter().map(|(_, item)| item).collect())
        }
        "groupby" => {
            let [attribute, default, case] =
                given.bind(name, ["attribute", "default", "case_sensitive"], 1)?;
            let case = case.is_some_and(|case| case.truth());
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
        "unique" => {
            let [case, attribute] = given.bind(name, ["case_sensitive", "attribute"], 0)?;
            let case = case.is_some_and(|case| case.truth());
            let (mut seen, mut kept) = (std::collections::HashSet::new(), Vec::new());
            for item in value.elements(&mut r.budget)? {
                let key = key_of(r, &item, attribute.as_ref(), None, case)?;
                if seen.insert(DictKey::of(&key, &mut r.budget)?) {
                    kept.push(item);
                }
            }
            Value::iter(kept)
        }
        "min" | "max" => {
            let [case, attribute] = given.bind(name, ["case_sensitive", "attribute"], 0)?;
            let case = case.is_some_and(|case| case.truth());
            let mut best: Option<(Value, Value)> = None;
            for item in value.elements(&mut r.budget)? {
                let key = key_of(r, &item, attribute.as_ref(), None, case)?;
                let better = match &best {
                    None => true,
                    Some((than, _)) if name == "min" => {
                        operators::order(&key, than, "<", &mut r.budget)? == Some(Ordering::Less)
                    }
                    Some((than, _)) => {
                        operators::order(&key, than, ">", &mut r.budget)? == Some(Ordering::Greater)
                    }
                };
                if better {
                    best = Some((key, item));
                }
            }
            Ok(best.map_or_else(
                || Value::undefined("No aggregated item, sequence was empty."),
                |(_, item)| item,
            ))
        }
        "sum" => {
            let [attribute, start] = given.bind(name, ["attribute", "start"], 0)?;
            let mut total = start.unwrap_or(Value::Int(0));
            if total.as_text().is_some() {
                return Err(Problem::failed("sum() can't sum strings [use ''.join(seq) instead]"));
            }
            for item in value.elements(&mut r.budget)? {
                let item = match &attribute {
                    None | Some(Value::None) => item,
                    attribute => path(r, item, attribute.as_ref(), None)?,
                };
                total = operators::binary(Binary::Add, &total, &item, &mut r.budget)?;
            }
            Ok(total)
        }
        "abs" => {
            given.none(name)?;
            value.defined()?;
            match (&value, value.as_int()) {
                (Value::Float(number), _) => Ok(Value::Float(number.abs())),
                (_, Some(number)) => Ok(Value::Int(number.saturating_abs())),
                _ => Err(Problem::failed(format!("bad operand type for abs(): '{}'", value.type_name()))),
            }
        }
        "round" => round(&value, given),
        "int" => {
            let [default, base] = given.bind(name, ["default", "base"], 0)?;
            let base = small(base, 10, "the base")?;
            to_int(&value, base)?
                .map_or_else(|| Ok(default.unwrap_or(Value::Int(0))), |number| Ok(Value::Int(number)))
        }
        "float" => {
            let [default] = given.bind(name, ["default"], 0)?;
            Ok(to_float(&value).map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
        }
        other if REFUSED_FILTERS.contains(&other) => {
            Err(Problem::unsupported(format!("the filter '{other}'")))
        }
        other if FILTERS.contains(&other) => text_filters::filter(r, other, value, given),
        other => Err(Problem::failed(format!("No filter named '{other}'."))),
    }
}

fn empty(what: &str) -> Value {
    Value::undefined(format!("No {what} item, sequence was empty."))
}

fn reversible(value: &Value) -> TemplateResult<()> {
    match value {
        Value::Undefined(_) => Err(Problem::unsupported("the end of an undefined value")),
        Value::Iter(_) => Err(Problem::failed("'generator' object is not reversible")),
        Value::Markup(_) => Err(Problem::unsupported("the end of a Markup")),
        _ => Ok(()),
    }
}

fn batches(r: &mut Renderer<'_>, name: &str, value: &Value, given: ArgumentValues) -> TemplateResult<Value> {
    let [count, fill] = given.bind(name, ["linecount", "fill_with"], 1)?;
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let count = int(count, 0, "the number")?;
    let items = value.elements(&mut r.budget)?;
    let size = width(count, "number of elements")?;
    let mut out = Vec::new();
    if name == "batch" {
        if count < 1 {
            return Err(Problem::unsupported("batch of less than 1"));
        }
        for chunk in items.chunks(size) {
            let mut batch = chunk.to_vec();
            if let Some(fill) = &fill {
                r.budget.memory(32 * (size - batch.len()))?;
                batch.resize(size, fill.clone());
            }
            out.push(Value::list(batch)?);
        }
        return Value::iter(out);
    }
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
    for at in 0..size {
        let mut part: Vec<Value> = items.by_ref().take(each + usize::from(at < more)).collect();
        if let Some(fill) = fill.as_ref().filter(|_| at >= more) {
            part.push(fill.clone());
        }
        out.push(Value::list(part)?);
    }
    Value::iter(out)
}

fn map(r: &mut Renderer<'_>, value: &Value, mut given: ArgumentValues) -> TemplateResult<Value> {
    if !value.truth() {
        return Value::iter(Vec::new());
    }
    let items = value.elements(&mut r.budget)?;
    let mut out = Vec::new();
    if given.positional.is_empty() && given.named.iter().any(|(name, _)| &**name == "attribute") {
        let [attribute, default] = given.bind("map", ["attribute", "default"], 1)?;
        let default = default.filter(|default| !matches!(default, Value::None));
        for item in items {
            out.push(path(r, item, attribute.as_ref(), default.as_ref())?);
        }
        return Value::iter(out);
    }
    if given.positional.is_empty() {
        return Err(Problem::failed("map requires a filter argument"));
    }
    let name = given.positional.remove(0);
    let Some(name) = name.as_text() else { return Err(Problem::failed("map requires the name of a filter")) };
    for item in items {
        r.budget.memory(64 * (given.positional.len() + given.named.len()))?;
        let given = given.clone();
        out.push(r.deeper(|r| filter(r, name, item, given))?);
    }
    Value::iter(out)
}

fn select(
    r: &mut Renderer<'_>,
    name: &str,
    value: &Value,
    mut given: ArgumentValues,
) -> TemplateResult<Value> {
    if !value.truth() {
        return Value::iter(Vec::new());
    }
    let attribute = if name.ends_with("attr") {
        if given.positional.is_empty() {
            return Err(Problem::failed("Missing parameter for attribute name"));
        }
        Some(given.positional.remove(0))
    } else {
        None
    };
    let test = if given.positional.is_empty() { None } else { Some(given.positional.remove(0)) };
    let wanted = name.starts_with("select");
    let mut out = Vec::new();
    for item in value.elements(&mut r.budget)? {
        let subject = match &attribute {
            None => item.clone(),
            attribute => path(r, item.clone(), attribute.as_ref(), None)?,
        };
        let found = match &test {
            None => subject.truth(),
            Some(test) => {
                let Some(test) = test.as_text() else {
                    return Err(Problem::failed("a test is named by a str"));
                };
                r.budget.memory(64 * (given.positional.len() + given.named.len()))?;
                let given = given.clone();
                tests_of::test(r, test, &subject, given)?
            }
        };
        if found == wanted {
            out.push(item);
        }
    }
    Value::iter(out)
}
