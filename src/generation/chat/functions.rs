//! The functions of templates, and the attributes and methods of values.

use std::sync::Arc;

use super::call::{ArgumentValues, int, text};
use super::clock;
use super::operators;
use super::percent;
use super::problem::{Problem, TemplateResult};
use super::render::{Object, Renderer};
use super::strings;
use super::value::{Dict, Value};

pub(super) const NAMES: [&str; 8] =
    ["range", "dict", "lipsum", "cycler", "joiner", "namespace", "raise_exception", "strftime_now"];

/// Calls a global function.
pub(super) fn call(renderer: &mut Renderer<'_>, name: &str, given: ArgumentValues) -> TemplateResult<Value> {
    match name {
        "range" => renderer.range(given),
        "dict" => Ok(Value::Dict(Arc::new(dict(renderer, given)?))),
        "namespace" => {
            let dict = dict(renderer, given)?;
            renderer.object(Object::Namespace(dict))
        }
        "cycler" => {
            if given.positional.is_empty() || !given.named.is_empty() {
                return Err(Problem::failed("at least one item has to be provided"));
            }
            renderer.object(Object::Cycler { items: given.positional, at: 0 })
        }
        "joiner" => {
            let [separator] = given.bind(name, ["sep"], 0)?;
            renderer.object(Object::Joiner { separator: separator.unwrap_or(Value::text(", ")), used: false })
        }
        "raise_exception" => {
            let [message] = given.bind(name, ["message"], 1)?;
            let message = renderer.string(&message.unwrap_or(Value::None))?;
            Err(Problem::raised(message))
        }
        "strftime_now" => {
            let [format] = given.bind(name, ["format"], 1)?;
            let format = text(format, "", "the format")?;
            renderer.budget.memory(format.len() * 32)?;
            Ok(Value::text(clock::strftime(&format, &clock::Moment::now())?))
        }
        other => Err(Problem::unsupported(format!("{other}()"))),
    }
}

fn dict(renderer: &mut Renderer<'_>, given: ArgumentValues) -> TemplateResult<Dict> {
    let mut dict = Dict::default();
    let mut positional = given.positional.into_iter();
    match positional.next() {
        None => {}
        Some(Value::Dict(other)) => {
            renderer.budget.memory(other.entries().len() * 96)?;
            for (key, value) in other.entries() {
                dict.insert(key.clone(), value.clone(), &mut renderer.budget)?;
            }
        }
        Some(pairs) => {
            for pair in pairs.elements(&mut renderer.budget)? {
                let pair = pair.elements(&mut renderer.budget)?;
                let [key, value] = &pair[..] else {
                    return Err(Problem::failed("dictionary update sequence element must have length 2"));
                };
                dict.insert(key.clone(), value.clone(), &mut renderer.budget)?;
            }
        }
    }
    if positional.next().is_some() {
        return Err(Problem::failed("dict expected at most 1 argument"));
    }
    renderer.budget.memory(given.named.len() * 96)?;
    for (key, value) in given.named {
        dict.insert(Value::Text(key), value, &mut renderer.budget)?;
    }
    Ok(dict)
}

const DICT: [&str; 5] = ["get", "items", "keys", "values", "copy"];
const LIST: [&str; 3] = ["count", "index", "copy"];
/// Methods that change a value: they are undefined in the sandbox.
const CHANGES_LIST: [&str; 8] = ["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"];
const CHANGES_DICT: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];

/// The result of Python's `getattr(value, name)` in the sandbox; `None` without such an attribute.
pub(super) fn attribute(
    renderer: &mut Renderer<'_>,
    value: &Value,
    name: &Arc<str>,
) -> TemplateResult<Option<Value>> {
    let find = |names: &[&'static str]| names.iter().find(|known| ***known == **name).copied();
    let method = |name: &'static str| Ok(Some(Value::Method(Arc::new((value.clone(), name)))));
    let refused = || Err(Problem::unsupported(format!("the attribute {}.{name}", value.type_name())));
    let unsafe_ = || {
        Ok(Some(Value::undefined(format!(
            "access to attribute '{name}' of '{}' object is unsafe.",
            value.type_name()
        ))))
    };
    if name.starts_with("__") && name.ends_with("__") && name.len() > 4 {
        // Python's own attributes are undefined in the sandbox, whether they exist or not. A key may have such a name.
        let key = matches!(value, Value::Dict(dict) if dict.get_text(name).is_some());
        return if key { refused() } else { unsafe_() };
    }
    match value {
        Value::Dict(_) => match (find(&DICT), find(&CHANGES_DICT)) {
            (Some(name), _) => method(name),
            (_, Some(_)) => unsafe_(),
            _ if &**name == "fromkeys" => refused(),
            _ => Ok(None),
        },
        Value::List(_) => match (find(&LIST), find(&CHANGES_LIST)) {
            (Some(name), _) => method(name),
            (_, Some(_)) => unsafe_(),
            _ => Ok(None),
        },
        Value::Tuple(items) => match (find(&LIST[..2]), &**name) {
            (Some(name), _) => method(name),
            (_, "grouper") if items.group => Ok(items.items.first().cloned()),
            (_, "list") if items.group => Ok(items.items.get(1).cloned()),
            _ => Ok(None),
        },
        Value::Text(_) => match (find(&strings::METHODS), find(&strings::REFUSED)) {
            (Some(name), _) => method(name),
            (_, Some(_)) => refused(),
            _ => Ok(None),
        },
        Value::Markup(_) => {
            if find(&strings::METHODS).or(find(&strings::REFUSED)).is_some()
                || ["escape", "unescape", "striptags"].contains(&&**name)
            {
                refused()
            } else {
                Ok(None)
            }
        }
        Value::Int(_) | Value::Bool(_) => match &**name {
            "real" | "numerator" => Ok(value.as_int().map(Value::Int)),
            "imag" => Ok(Some(Value::Int(0))),
            "denominator" => Ok(Some(Value::Int(1))),
            "bit_length" | "bit_count" | "conjugate" | "as_integer_ratio" | "to_bytes" | "from_bytes"
            | "is_integer" => refused(),
            _ => Ok(None),
        },
        Value::Float(number) => match &**name {
            "real" => Ok(Some(Value::Float(*number))),
            "imag" => Ok(Some(Value::Float(0.0))),
            "is_integer" => method("is_integer"),
            "conjugate" | "as_integer_ratio" | "hex" | "fromhex" => refused(),
            _ => Ok(None),
        },
        Value::Range(start, stop, step) => match &**name {
            "start" => Ok(Some(Value::Int(*start))),
            "stop" => Ok(Some(Value::Int(*stop))),
            "step" => Ok(Some(Value::Int(*step))),
            "count" | "index" => refused(),
            _ => Ok(None),
        },
        Value::View(kind, _) => {
            if ["mapping", "isdisjoint"].contains(&&**name) {
                return Err(Problem::unsupported(format!("the attribute {kind}.{name}")));
            }
            Ok(None)
        }
        Value::Iter(_) if ["send", "throw", "close"].contains(&&**name) || name.starts_with("gi_") => {
            refused()
        }
        Value::Object(at) => object_attribute(renderer, *at, name),
        // Types are refused: they have the attributes of their values.
        Value::Function("range" | "dict" | "namespace" | "cycler" | "joiner") => refused(),
        _ => Ok(None),
    }
}

fn object_attribute(
    renderer: &mut Renderer<'_>,
    at: usize,
    name: &Arc<str>,
) -> TemplateResult<Option<Value>> {
    let method = |name: &'static str| Ok(Some(Value::Method(Arc::new((Value::Object(at), name)))));
    let number = |value: usize| Ok(Some(Value::Int(value as i128)));
    let refused = |what: &str| Err(Problem::unsupported(format!("the attribute {what}.{name}")));
    match &renderer.objects[at] {
        Object::Namespace(dict) => Ok(dict.get_text(name).cloned()),
        Object::Loop { state, .. } => {
            let (count, index) = (state.items.len(), state.at);
            match &**name {
                "index" => number(index + 1),
                "index0" => number(index),
                "revindex" => number(count - index),
                "revindex0" => number(count - index - 1),
                "length" => number(count),
                "depth" => number(state.depth + 1),
                "depth0" => number(state.depth),
                "first" => Ok(Some(Value::Bool(index == 0))),
                "last" => Ok(Some(Value::Bool(index + 1 == count))),
                "previtem" | "nextitem" => {
                    let item =
                        if &**name == "nextitem" { index.checked_add(1) } else { index.checked_sub(1) };
                    let item = item.and_then(|at| state.items.get(at)).cloned();
                    Ok(Some(item.unwrap_or_else(|| Value::undefined(format!("there is no {name} item")))))
                }
                "cycle" => method("cycle"),
                "changed" => method("changed"),
                _ => Ok(None),
            }
        }
        Object::Cycler { items, at } => match &**name {
            "next" => method("next"),
            "reset" => method("reset"),
            "current" => Ok(Some(items[*at].clone())),
            "pos" => number(*at),
            "items" => {
                renderer.budget.memory(items.len() * 32)?;
                Value::tuple(items.clone()).map(Some)
            }
            _ => Ok(None),
        },
        Object::Joiner { separator, used } => match &**name {
            "sep" => Ok(Some(separator.clone())),
            "used" => Ok(Some(Value::Bool(*used))),
            _ => Ok(None),
        },
        Object::Macro { node, .. } => match &**name {
            "name" => Ok(Some(Value::Text(node.name.clone()))),
            "catch_kwargs" => Ok(Some(Value::Bool(node.kwargs))),
            "catch_varargs" => Ok(Some(Value::Bool(node.varargs))),
            "caller" => Ok(Some(Value::Bool(node.caller))),
            "arguments" => {
                renderer.budget.memory(node.params.len() * 32)?;
                Value::tuple(node.params.iter().map(|(name, _)| Value::Text(name.clone())).collect())
                    .map(Some)
            }
            "explicit_caller" => refused("macro"),
            _ => Ok(None),
        },
        Object::Block { .. } => refused("block"),
    }
}

/// A method of a value that is neither a str nor an object.
pub(super) fn method(
    renderer: &mut Renderer<'_>,
    subject: &Value,
    name: &str,
    given: ArgumentValues,
) -> TemplateResult<Value> {
    match (subject, name) {
        (Value::Dict(dict), "get") => {
            let [key, default] = given.bind_positional("get", 1)?;
            let found = dict.get(&key.unwrap_or(Value::None), &mut renderer.budget)?.cloned();
            Ok(found.or(default).unwrap_or(Value::None))
        }
        (Value::Dict(dict), "items" | "keys" | "values") => {
            given.none(name)?;
            renderer.budget.memory(dict.entries().len() * 96)?;
            renderer.budget.steps(dict.entries().len())?;
            let entries = dict.entries().iter();
            match name {
                "keys" => Value::view("dict_keys", entries.map(|(key, _)| key.clone()).collect()),
                "values" => Value::view("dict_values", entries.map(|(_, value)| value.clone()).collect()),
                _ => {
                    let pairs = entries.map(|(key, value)| Value::tuple(vec![key.clone(), value.clone()]));
                    Value::view("dict_items", pairs.collect::<TemplateResult<_>>()?)
                }
            }
        }
        (Value::Dict(_) | Value::List(_), "copy") => {
            given.none(name)?;
            Ok(subject.clone())
        }
        (Value::List(items) | Value::Tuple(items), "count" | "index") => {
            let [item, start, stop] = given.bind_positional(name, 1)?;
            if start.is_some() || stop.is_some() {
                return Err(Problem::unsupported("index with a start"));
            }
            let item = item.unwrap_or(Value::None);
            let mut count = 0;
            for (at, element) in items.items.iter().enumerate() {
                if operators::equal(element, &item, &mut renderer.budget)? {
                    if name == "index" {
                        return Ok(Value::Int(at as i128));
                    }
                    count += 1;
                }
            }
            if name == "index" {
                Err(Problem::failed("the value is not in list"))
            } else {
                Ok(Value::Int(count))
            }
        }
        (Value::Float(number), "is_integer") => {
            given.none(name)?;
            Ok(Value::Bool(number.is_finite() && number.fract() == 0.0))
        }
        _ => Err(Problem::unsupported(format!("the method {}.{name}", subject.type_name()))),
    }
}

/// A method of a loop or cycler.
pub(super) fn method_of_object(
    renderer: &mut Renderer<'_>,
    at: usize,
    name: &str,
    given: ArgumentValues,
) -> TemplateResult<Value> {
    if !given.named.is_empty() {
        return Err(Problem::failed(format!("{name}() takes no keyword arguments")));
    }
    let values = given.positional;
    if name == "changed" {
        let before = match &mut renderer.objects[at] {
            Object::Loop { state, .. } => state.changed.replace(values.clone()),
            _ => None,
        };
        let Some(before) = before else { return Ok(Value::Bool(true)) };
        let same = renderer.equal(&Value::tuple(before)?, &Value::tuple(values)?)?;
        return Ok(Value::Bool(!same));
    }
    match (&mut renderer.objects[at], name) {
        (Object::Loop { state, .. }, "cycle") => {
            if values.is_empty() {
                return Err(Problem::failed("no items for cycling given"));
            }
            Ok(values[state.at % values.len()].clone())
        }
        (Object::Cycler { items, at }, "next") => {
            let value = items[*at].clone();
            *at = (*at + 1) % items.len();
            Ok(value)
        }
        (Object::Cycler { at, .. }, _) => {
            *at = 0;
            Ok(Value::None)
        }
        _ => Err(Problem::unsupported(format!("the method {name}"))),
    }
}

/// `str.format` and `str.format_map`, which look at attributes as the sandbox does.
pub(super) fn format(
    renderer: &mut Renderer<'_>,
    format: &Arc<str>,
    name: &str,
    given: ArgumentValues,
) -> TemplateResult<Value> {
    let given = if name == "format_map" {
        let [Some(Value::Dict(dict))] = given.bind("format_map", ["mapping"], 1)? else {
            return Err(Problem::unsupported("format_map without a dict"));
        };
        let named =
            dict.entries().iter().filter_map(|(key, value)| Some((key.as_text()?.clone(), value.clone())));
        ArgumentValues { positional: Vec::new(), named: named.collect() }
    } else {
        given
    };
    // The budget is in the renderer, which the fields need too.
    let mut budget = std::mem::replace(&mut renderer.budget, super::limits::RenderBudget::new());
    let mut field = |source: &str, budget: &mut super::limits::RenderBudget| {
        std::mem::swap(&mut renderer.budget, budget);
        let value = field(renderer, source, &given);
        std::mem::swap(&mut renderer.budget, budget);
        value
    };
    let text = percent::braces(format, &mut field, &mut budget);
    renderer.budget = budget;
    text.map(Value::text)
}

fn field(renderer: &mut Renderer<'_>, source: &str, given: &ArgumentValues) -> TemplateResult<Value> {
    let end = source.find(['.', '[']).unwrap_or(source.len());
    let (first, mut rest) = source.split_at(end);
    let missing = || Problem::failed(format!("no argument '{first}' to format"));
    let mut value = match first.parse::<usize>() {
        Ok(at) => given.positional.get(at).cloned().ok_or_else(missing)?,
        Err(_) => given
            .named
            .iter()
            .find(|(name, _)| **name == *first)
            .map(|(_, v)| v.clone())
            .ok_or_else(missing)?,
    };
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let (key, after) =
                after.split_once(']').ok_or_else(|| Problem::failed("Missing ']' in format string"))?;
            let key = key.parse().map_or_else(|_| Value::text(key), Value::Int);
            value = renderer.item(&value, &key)?;
            rest = after;
        } else {
            let after = rest
                .strip_prefix('.')
                .ok_or_else(|| Problem::failed("malformed field in a format string"))?;
            let end = after.find(['.', '[']).unwrap_or(after.len());
            value = renderer.attribute(&value, &after[..end].into())?;
            rest = &after[end..];
        }
    }
    Ok(value)
}

/// `base` of an `int` filter and similar arguments.
pub(super) fn small(value: Option<Value>, default: i128, what: &str) -> TemplateResult<u32> {
    u32::try_from(int(value, default, what)?).map_err(|_| Problem::failed(format!("{what} is out of range")))
}
