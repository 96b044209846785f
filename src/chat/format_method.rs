//! `str.format`, which looks at attributes as the sandbox does.

use super::call::{ArgumentValues, NamedCall};
use super::limits::RenderBudget;
use super::percent;
use super::problem::{Problem, TemplateResult};
use super::render::Renderer;
use super::value::Value;

pub(super) fn format(r: &mut Renderer<'_>, call: NamedCall<'_, &str>) -> TemplateResult<Value> {
    let NamedCall { subject, given, .. } = call;
    // The budget is in the renderer, which the fields need too.
    let mut budget = std::mem::replace(&mut r.budget, RenderBudget::new());
    let mut field = |source: &str, budget: &mut RenderBudget| {
        std::mem::swap(&mut r.budget, budget);
        let value = field(r, source, &given);
        std::mem::swap(&mut r.budget, budget);
        value
    };
    let text = percent::braces(subject, &mut field, &mut budget);
    r.budget = budget;
    text.map(Value::text)
}

pub(super) fn format_map(r: &mut Renderer<'_>, call: NamedCall<'_, &str>) -> TemplateResult<Value> {
    let name = call.name;
    let (subject, [Some(Value::Dict(dict))]) = call.bind(["mapping"], 1)? else {
        return Err(Problem::unsupported("format_map without a dict"));
    };
    let named =
        dict.entries().iter().filter_map(|(key, value)| Some((key.as_text()?.clone(), value.clone())));
    let given = ArgumentValues { positional: Vec::new(), named: named.collect() };
    format(r, NamedCall { name, subject, given })
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
