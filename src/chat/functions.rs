//! The functions of templates, and the attributes of values.

use std::sync::Arc;

use super::call::{ArgumentValues, int, text};
use super::problem::{Problem, TemplateResult};
use super::render::{LoopState, Object, Renderer};
use super::value::{Dict, Value};
use super::{clock, methods, strings};

type Function = fn(&mut Renderer<'_>, &str, ArgumentValues) -> TemplateResult<Value>;

const FUNCTIONS: &[(&str, Function)] = &[
    ("cycler", cycler),
    ("dict", |r, _, given| Ok(Value::Dict(Arc::new(dict(r, given)?)))),
    ("joiner", joiner),
    ("lipsum", |_, name, _| Err(Problem::unsupported(format!("{name}()")))),
    ("namespace", namespace),
    ("raise_exception", raise_exception),
    ("range", |r, _, given| r.range(given)),
    ("strftime_now", strftime_now),
];

/// The global function of this name.
pub(super) fn named(name: &str) -> Option<Value> {
    FUNCTIONS.iter().find(|(known, _)| *known == name).map(|(name, _)| Value::Function(name))
}

/// Calls a global function.
pub(super) fn call(r: &mut Renderer<'_>, name: &str, given: ArgumentValues) -> TemplateResult<Value> {
    match FUNCTIONS.iter().find(|(known, _)| *known == name) {
        Some((_, function)) => function(r, name, given),
        None => Err(Problem::unsupported(format!("{name}()"))),
    }
}

fn cycler(r: &mut Renderer<'_>, _: &str, given: ArgumentValues) -> TemplateResult<Value> {
    if given.positional.is_empty() || !given.named.is_empty() {
        return Err(Problem::failed("at least one item has to be provided"));
    }
    r.object(Object::Cycler { items: given.positional, at: 0 })
}

fn joiner(r: &mut Renderer<'_>, name: &str, given: ArgumentValues) -> TemplateResult<Value> {
    let [separator] = given.bind(name, ["sep"], 0)?;
    r.object(Object::Joiner { separator: separator.unwrap_or(Value::text(", ")), used: false })
}

fn namespace(r: &mut Renderer<'_>, _: &str, given: ArgumentValues) -> TemplateResult<Value> {
    let dict = dict(r, given)?;
    r.object(Object::Namespace(dict))
}

fn raise_exception(r: &mut Renderer<'_>, name: &str, given: ArgumentValues) -> TemplateResult<Value> {
    let [message] = given.bind(name, ["message"], 1)?;
    let message = r.string(&message.unwrap_or(Value::None))?;
    Err(Problem::raised(message))
}

fn strftime_now(r: &mut Renderer<'_>, name: &str, given: ArgumentValues) -> TemplateResult<Value> {
    let [format] = given.bind(name, ["format"], 1)?;
    let format = text(format, "", "the format")?;
    r.budget.memory(format.len() * 32)?;
    Ok(Value::text(clock::strftime(&format, &clock::Moment::now())?))
}

fn dict(r: &mut Renderer<'_>, given: ArgumentValues) -> TemplateResult<Dict> {
    let mut dict = Dict::default();
    let mut positional = given.positional.into_iter();
    match positional.next() {
        None => {}
        Some(Value::Dict(other)) => {
            r.budget.memory(other.entries().len() * 96)?;
            for (key, value) in other.entries() {
                dict.insert(key.clone(), value.clone(), &mut r.budget)?;
            }
        }
        Some(pairs) => {
            for pair in pairs.elements(&mut r.budget)? {
                let pair = pair.elements(&mut r.budget)?;
                let [key, value] = &pair[..] else {
                    return Err(Problem::failed("dictionary update sequence element must have length 2"));
                };
                dict.insert(key.clone(), value.clone(), &mut r.budget)?;
            }
        }
    }
    if positional.next().is_some() {
        return Err(Problem::failed("dict expected at most 1 argument"));
    }
    r.budget.memory(given.named.len() * 96)?;
    for (key, value) in given.named {
        dict.insert(Value::Text(key), value, &mut r.budget)?;
    }
    Ok(dict)
}

/// Methods that change a value: they are undefined in the sandbox.
const CHANGES_LIST: [&str; 8] = ["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"];
const CHANGES_DICT: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];

/// Whether Python's values of this type have such an attribute, which is refused here.
fn is_refused(value: &Value, name: &str) -> bool {
    match value {
        Value::Dict(_) => name == "fromkeys",
        Value::Text(_) => strings::REFUSED.contains(&name),
        Value::Markup(_) => {
            strings::REFUSED.contains(&name)
                || strings::METHODS.iter().any(|(known, _)| *known == name)
                || ["escape", "unescape", "striptags"].contains(&name)
        }
        Value::Int(_) | Value::Bool(_) => [
            "bit_length",
            "bit_count",
            "conjugate",
            "as_integer_ratio",
            "to_bytes",
            "from_bytes",
            "is_integer",
        ]
        .contains(&name),
        Value::Float(_) => ["conjugate", "as_integer_ratio", "hex", "fromhex"].contains(&name),
        Value::Range(..) => ["count", "index"].contains(&name),
        Value::View(..) => ["mapping", "isdisjoint"].contains(&name),
        Value::Iter(_) => ["send", "throw", "close"].contains(&name) || name.starts_with("gi_"),
        // Types are refused: they have the attributes of their values.
        Value::Function(function) => ["range", "dict", "namespace", "cycler", "joiner"].contains(function),
        _ => false,
    }
}

/// The result of Python's `getattr(value, name)` in the sandbox; `None` without such an attribute.
pub(super) fn attribute(
    r: &mut Renderer<'_>,
    value: &Value,
    name: &Arc<str>,
) -> TemplateResult<Option<Value>> {
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
    if let Some(place) = methods::place(r, value, name) {
        return Ok(Some(Value::Method(Arc::new((value.clone(), place)))));
    }
    if is_refused(value, name) {
        return refused();
    }
    match (value, &**name) {
        (Value::Dict(_), name) if CHANGES_DICT.contains(&name) => unsafe_(),
        (Value::List(_), name) if CHANGES_LIST.contains(&name) => unsafe_(),
        (Value::Tuple(items), "grouper") if items.group => Ok(items.items.first().cloned()),
        (Value::Tuple(items), "list") if items.group => Ok(items.items.get(1).cloned()),
        (Value::Int(_) | Value::Bool(_), "real" | "numerator") => Ok(value.as_int().map(Value::Int)),
        (Value::Int(_) | Value::Bool(_), "imag") => Ok(Some(Value::Int(0))),
        (Value::Int(_) | Value::Bool(_), "denominator") => Ok(Some(Value::Int(1))),
        (Value::Float(number), "real") => Ok(Some(Value::Float(*number))),
        (Value::Float(_), "imag") => Ok(Some(Value::Float(0.0))),
        (Value::Range(start, ..), "start") => Ok(Some(Value::Int(*start))),
        (Value::Range(_, stop, _), "stop") => Ok(Some(Value::Int(*stop))),
        (Value::Range(.., step), "step") => Ok(Some(Value::Int(*step))),
        (Value::Object(at), _) => object_attribute(r, *at, name),
        _ => Ok(None),
    }
}

fn object_attribute(r: &mut Renderer<'_>, at: usize, name: &str) -> TemplateResult<Option<Value>> {
    let refused = |what: &str| Err(Problem::unsupported(format!("the attribute {what}.{name}")));
    let tuple = |items: Vec<Value>| Value::tuple(items).map(Some);
    match (&r.objects[at], name) {
        (Object::Namespace(dict), _) => Ok(dict.get_text(name).cloned()),
        (Object::Loop { state, .. }, _) => Ok(loop_attribute(state, name)),
        (Object::Cycler { items, at }, "current") => Ok(Some(items[*at].clone())),
        (Object::Cycler { at, .. }, "pos") => Ok(Some(Value::Int(*at as i128))),
        (Object::Cycler { items, .. }, "items") => {
            r.budget.memory(items.len() * 32)?;
            tuple(items.clone())
        }
        (Object::Joiner { separator, .. }, "sep") => Ok(Some(separator.clone())),
        (Object::Joiner { used, .. }, "used") => Ok(Some(Value::Bool(*used))),
        (Object::Macro { node, .. }, "name") => Ok(Some(Value::Text(node.name.clone()))),
        (Object::Macro { node, .. }, "catch_kwargs") => Ok(Some(Value::Bool(node.kwargs))),
        (Object::Macro { node, .. }, "catch_varargs") => Ok(Some(Value::Bool(node.varargs))),
        (Object::Macro { node, .. }, "caller") => Ok(Some(Value::Bool(node.caller))),
        (Object::Macro { node, .. }, "arguments") => {
            r.budget.memory(node.params.len() * 32)?;
            tuple(node.params.iter().map(|(name, _)| Value::Text(name.clone())).collect())
        }
        (Object::Macro { .. }, "explicit_caller") => refused("macro"),
        (Object::Block { .. }, _) => refused("block"),
        _ => Ok(None),
    }
}

fn loop_attribute(state: &LoopState, name: &str) -> Option<Value> {
    let (count, index) = (state.items.len(), state.at);
    let number = |value: usize| Some(Value::Int(value as i128));
    let item = |at: Option<usize>| {
        let item = at.and_then(|at| state.items.get(at)).cloned();
        Some(item.unwrap_or_else(|| Value::undefined(format!("there is no {name} item"))))
    };
    match name {
        "index" => number(index + 1),
        "index0" => number(index),
        "revindex" => number(count - index),
        "revindex0" => number(count - index - 1),
        "length" => number(count),
        "depth" => number(state.depth + 1),
        "depth0" => number(state.depth),
        "first" => Some(Value::Bool(index == 0)),
        "last" => Some(Value::Bool(index + 1 == count)),
        "previtem" => item(index.checked_sub(1)),
        "nextitem" => item(index.checked_add(1)),
        _ => None,
    }
}

/// `base` of an `int` filter and similar arguments.
pub(super) fn small(value: Option<Value>, default: i128, what: &str) -> TemplateResult<u32> {
    u32::try_from(int(value, default, what)?).map_err(|_| Problem::failed(format!("{what} is out of range")))
}
