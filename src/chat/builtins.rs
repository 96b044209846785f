//! The filters and tests of Jinja by name, and those of them that take another one by its name.

use std::cmp::Ordering;

use super::call::{ArgumentValues, NamedCall};
use super::numbers::round;
use super::problem::{Problem, TemplateResult};
use super::render::Renderer;
use super::sorting::path;
use super::value::Value;
use super::{filters, strings, tests_of, text_filters};

type Filter = fn(&mut Renderer<'_>, NamedCall<'_, Value>) -> TemplateResult<Value>;
type Test = fn(&mut Renderer<'_>, NamedCall<'_, &Value>) -> TemplateResult<bool>;

const FILTERS: &[(&str, Filter)] = &[
    ("abs", filters::abs),
    ("attr", filters::attr),
    ("batch", filters::batch),
    ("capitalize", |r, call| text_filters::recased(r, call, strings::capitalize)),
    ("center", text_filters::center),
    ("count", filters::length),
    ("d", filters::default),
    ("default", filters::default),
    ("dictsort", filters::dictsort),
    ("e", text_filters::escape),
    ("escape", text_filters::escape),
    ("filesizeformat", text_filters::filesizeformat),
    ("first", filters::first),
    ("float", filters::float),
    ("forceescape", text_filters::forceescape),
    ("format", text_filters::format),
    ("groupby", filters::groupby),
    ("indent", text_filters::indent),
    ("int", filters::int),
    ("items", filters::items),
    ("join", text_filters::join),
    ("last", filters::last),
    ("length", filters::length),
    ("list", filters::list),
    ("lower", |r, call| text_filters::recased(r, call, |s| Ok(s.to_lowercase()))),
    ("map", map),
    ("max", |r, call| filters::extreme(r, call, ">", Ordering::Greater)),
    ("min", |r, call| filters::extreme(r, call, "<", Ordering::Less)),
    ("pprint", text_filters::pprint),
    ("reject", |r, call| select(r, call, false)),
    ("rejectattr", |r, call| selectattr(r, call, false)),
    ("replace", text_filters::replace),
    ("reverse", filters::reverse),
    ("round", |_, call| round(&call.subject, call.given)),
    ("safe", text_filters::safe),
    ("select", |r, call| select(r, call, true)),
    ("selectattr", |r, call| selectattr(r, call, true)),
    ("slice", filters::slice),
    ("sort", filters::sort),
    ("string", text_filters::string),
    ("striptags", text_filters::striptags),
    ("sum", filters::sum),
    ("title", text_filters::title),
    ("tojson", text_filters::tojson),
    ("trim", text_filters::trim),
    ("truncate", text_filters::truncate),
    ("unique", filters::unique),
    ("upper", |r, call| text_filters::recased(r, call, |s| Ok(s.to_uppercase()))),
    ("urlencode", text_filters::urlencode),
    ("wordcount", text_filters::wordcount),
    ("wordwrap", text_filters::wordwrap),
    ("xmlattr", text_filters::xmlattr),
];
/// Filters of Jinja that are refused by name.
const REFUSED_FILTERS: [&str; 2] = ["random", "urlize"];

const TESTS: &[(&str, Test)] = &[
    ("!=", tests_of::unequal),
    ("<", tests_of::less),
    ("<=", tests_of::at_most),
    ("==", tests_of::equal),
    (">", tests_of::greater),
    (">=", tests_of::at_least),
    ("boolean", |_, call| Ok(matches!(call.alone()?, Value::Bool(_)))),
    ("callable", tests_of::callable),
    ("defined", |_, call| Ok(!call.alone()?.is_undefined())),
    ("divisibleby", tests_of::divisibleby),
    ("eq", tests_of::equal),
    ("equalto", tests_of::equal),
    ("escaped", |_, call| Ok(matches!(call.alone()?, Value::Markup(_)))),
    ("even", |r, call| tests_of::parity(r, call, 0)),
    ("false", |_, call| Ok(matches!(call.alone()?, Value::Bool(false)))),
    ("filter", |_, call| {
        named(call, |name| find(FILTERS, name).is_some() || REFUSED_FILTERS.contains(&name))
    }),
    ("float", |_, call| Ok(matches!(call.alone()?, Value::Float(_)))),
    ("ge", tests_of::at_least),
    ("greaterthan", tests_of::greater),
    ("gt", tests_of::greater),
    ("in", tests_of::contained),
    ("integer", |_, call| Ok(matches!(call.alone()?, Value::Int(_)))),
    ("iterable", tests_of::iterable),
    ("le", tests_of::at_most),
    ("lessthan", tests_of::less),
    ("lower", |r, call| tests_of::cased(r, call, strings::islower)),
    ("lt", tests_of::less),
    ("mapping", |_, call| Ok(matches!(call.alone()?, Value::Dict(_)))),
    ("ne", tests_of::unequal),
    ("none", |_, call| Ok(matches!(call.alone()?, Value::None))),
    ("number", |_, call| Ok(matches!(call.alone()?, Value::Int(_) | Value::Float(_) | Value::Bool(_)))),
    ("odd", |r, call| tests_of::parity(r, call, 1)),
    ("sameas", tests_of::sameas),
    ("sequence", tests_of::sequence),
    ("string", |_, call| Ok(call.alone()?.as_text().is_some())),
    ("test", |_, call| named(call, |name| find(TESTS, name).is_some())),
    ("true", |_, call| Ok(matches!(call.alone()?, Value::Bool(true)))),
    ("undefined", |_, call| Ok(call.alone()?.is_undefined())),
    ("upper", |r, call| tests_of::cased(r, call, strings::isupper)),
];

fn find<F: Copy>(table: &[(&str, F)], name: &str) -> Option<F> {
    table.iter().find(|(known, _)| *known == name).map(|(_, function)| *function)
}

/// `value | name(given)`.
pub(super) fn filter(
    r: &mut Renderer<'_>,
    name: &str,
    value: Value,
    given: ArgumentValues,
) -> TemplateResult<Value> {
    r.budget.steps(1)?;
    match find(FILTERS, name) {
        Some(filter) => filter(r, NamedCall { name, subject: value, given }),
        None if REFUSED_FILTERS.contains(&name) => Err(Problem::unsupported(format!("the filter '{name}'"))),
        None => Err(Problem::failed(format!("No filter named '{name}'."))),
    }
}

/// `value is name(given)`.
pub(super) fn test(
    r: &mut Renderer<'_>,
    name: &str,
    value: &Value,
    given: ArgumentValues,
) -> TemplateResult<bool> {
    r.budget.steps(1)?;
    match find(TESTS, name) {
        Some(test) => test(r, NamedCall { name, subject: value, given }),
        None => Err(Problem::failed(format!("No test named '{name}'."))),
    }
}

/// `value is filter` and `value is test`.
fn named(call: NamedCall<'_, &Value>, is_known: fn(&str) -> bool) -> TemplateResult<bool> {
    let name = call.name;
    match call.alone()?.as_text() {
        Some(text) => Ok(is_known(text)),
        None => Err(Problem::unsupported(format!("'is {name}' of no str"))),
    }
}

fn map(r: &mut Renderer<'_>, call: NamedCall<'_, Value>) -> TemplateResult<Value> {
    let NamedCall { subject: value, mut given, .. } = call;
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

/// `select` and `reject`: the items whose test gives `wanted`.
fn select(r: &mut Renderer<'_>, call: NamedCall<'_, Value>, wanted: bool) -> TemplateResult<Value> {
    selected(r, call, None, wanted)
}

/// The same by an attribute of the items.
fn selectattr(r: &mut Renderer<'_>, mut call: NamedCall<'_, Value>, wanted: bool) -> TemplateResult<Value> {
    if !call.subject.truth() {
        return Value::iter(Vec::new());
    }
    if call.given.positional.is_empty() {
        return Err(Problem::failed("Missing parameter for attribute name"));
    }
    let attribute = call.given.positional.remove(0);
    selected(r, call, Some(&attribute), wanted)
}

fn selected(
    r: &mut Renderer<'_>,
    call: NamedCall<'_, Value>,
    attribute: Option<&Value>,
    wanted: bool,
) -> TemplateResult<Value> {
    let NamedCall { subject: value, mut given, .. } = call;
    if !value.truth() {
        return Value::iter(Vec::new());
    }
    let name = if given.positional.is_empty() { None } else { Some(given.positional.remove(0)) };
    let mut out = Vec::new();
    for item in value.elements(&mut r.budget)? {
        let subject = path(r, item.clone(), attribute, None)?;
        let found = match &name {
            None => subject.truth(),
            Some(name) => {
                let name = name.as_text().ok_or_else(|| Problem::failed("a test is named by a str"))?;
                r.budget.memory(64 * (given.positional.len() + given.named.len()))?;
                test(r, name, &subject, given.clone())?
            }
        };
        if found == wanted {
            out.push(item);
        }
    }
    Value::iter(out)
}
