//! Python's operators.

use std::cmp::Ordering;

use super::ast::Binary;
use super::limits::RenderBudget;
use super::percent;
use super::problem::{Problem, TemplateResult};
use super::value::{Items, Value, range_length};

pub(super) fn too_large() -> Box<Problem> {
    Problem::unsupported("an integer of more than 127 bits")
}

fn mismatch(symbol: &str, a: &Value, b: &Value) -> Box<Problem> {
    Problem::failed(format!(
        "unsupported operand type(s) for {symbol}: '{}' and '{}'",
        a.type_name(),
        b.type_name()
    ))
}

/// `&`, `<`, `>` and quotes as HTML entities.
pub(super) fn escape(text: &str, budget: &mut RenderBudget) -> TemplateResult<String> {
    budget.memory(text.len() * 5)?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Ok(out)
}

pub(super) fn binary(
    operator: Binary,
    a: &Value,
    b: &Value,
    budget: &mut RenderBudget,
) -> TemplateResult<Value> {
    a.defined()?;
    b.defined()?;
    if let (Some(x), Some(y)) = (a.as_int(), b.as_int()) {
        return ints(operator, x, y);
    }
    if let (Some(x), Some(y)) = (a.as_float(), b.as_float()) {
        return floats(operator, x, y);
    }
    match (operator, a, b) {
        (Binary::Add, Value::Text(x), Value::Text(y)) => {
            budget.memory(x.len() + y.len())?;
            Ok(Value::text([&**x, &**y].concat()))
        }
        (Binary::Add, Value::Markup(_) | Value::Text(_), Value::Markup(_) | Value::Text(_)) => {
            let safe = |value: &Value, budget: &mut RenderBudget| match value {
                Value::Text(text) => escape(text, budget),
                other => super::text::string(other, budget),
            };
            Ok(Value::Markup((safe(a, budget)? + &safe(b, budget)?).into()))
        }
        (Binary::Add, Value::List(x), Value::List(y)) => Value::list(joined(x, y, budget)?),
        (Binary::Add, Value::Tuple(x), Value::Tuple(y)) => Value::tuple(joined(x, y, budget)?),
        (Binary::Mul, sequence @ (Value::Text(_) | Value::List(_) | Value::Tuple(_)), count)
        | (Binary::Mul, count, sequence @ (Value::Text(_) | Value::List(_) | Value::Tuple(_))) => {
            let Some(count) = count.as_int() else {
                return Err(Problem::failed(format!(
                    "can't multiply sequence by non-int of type '{}'",
                    count.type_name()
                )));
            };
            repeat(sequence, usize::try_from(count.max(0)).unwrap_or(usize::MAX), budget)
        }
        (Binary::Mod, Value::Text(format), values) => {
            Ok(Value::text(percent::format(format, values, budget)?))
        }
        (Binary::Mod, Value::Markup(_), _) => Err(Problem::unsupported("% on a Markup")),
        (Binary::Mul, Value::Markup(_), _) | (Binary::Mul, _, Value::Markup(_)) => {
            Err(Problem::unsupported("* on a Markup"))
        }
        (Binary::Sub, Value::View(..), Value::View(..)) => Err(Problem::unsupported("- on views of a dict")),
        _ => {
            let symbol = match operator {
                Binary::Add => "+",
                Binary::Sub => "-",
                Binary::Mul => "*",
                Binary::Div => "/",
                Binary::FloorDiv => "//",
                Binary::Mod => "%",
                Binary::Pow => "** or pow()",
            };
            Err(mismatch(symbol, a, b))
        }
    }
}

fn joined(x: &Items, y: &Items, budget: &mut RenderBudget) -> TemplateResult<Vec<Value>> {
    budget.memory((x.items.len() + y.items.len()) * 32)?;
    budget.steps(x.items.len() + y.items.len())?;
    Ok(x.items.iter().chain(&y.items).cloned().collect())
}

fn repeat(sequence: &Value, count: usize, budget: &mut RenderBudget) -> TemplateResult<Value> {
    let size = match sequence {
        Value::Text(text) => text.len(),
        Value::List(items) | Value::Tuple(items) => items.items.len() * 32,
        _ => 0,
    };
    budget.memory(size.saturating_mul(count))?;
    let count = if size == 0 { 0 } else { count };
    match sequence {
        Value::Text(text) => Ok(Value::text(text.repeat(count))),
        Value::List(items) => {
            budget.steps(items.items.len() * count)?;
            Value::list(std::iter::repeat_n(&items.items, count).flatten().cloned().collect())
        }
        Value::Tuple(items) => {
            budget.steps(items.items.len() * count)?;
            Value::tuple(std::iter::repeat_n(&items.items, count).flatten().cloned().collect())
        }
        _ => Err(Problem::failed("not a sequence")),
    }
}

fn ints(operator: Binary, x: i128, y: i128) -> TemplateResult<Value> {
    let zero = || Problem::failed("division by zero");
    let value = match operator {
        Binary::Add => x.checked_add(y),
        Binary::Sub => x.checked_sub(y),
        Binary::Mul => x.checked_mul(y),
        Binary::Div if y == 0 => return Err(zero()),
        Binary::Div => {
            if x.unsigned_abs() > 1 << 53 || y.unsigned_abs() > 1 << 53 {
                return Err(Problem::unsupported("/ of integers beyond 2**53"));
            }
            return Ok(Value::Float(x as f64 / y as f64));
        }
        Binary::FloorDiv | Binary::Mod if y == 0 => return Err(zero()),
        Binary::FloorDiv => {
            let quotient = x.checked_div(y).ok_or_else(too_large)?;
            Some(if x % y != 0 && (x < 0) != (y < 0) { quotient - 1 } else { quotient })
        }
        Binary::Mod => {
            let rest = x.checked_rem(y).ok_or_else(too_large)?;
            Some(if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest })
        }
        Binary::Pow if y < 0 => return floats(operator, x as f64, y as f64),
        Binary::Pow => match x {
            0 | 1 => Some(if y == 0 { 1 } else { x }),
            -1 => Some(if y % 2 == 0 { 1 } else { -1 }),
            _ => u32::try_from(y).ok().and_then(|y| x.checked_pow(y)),
        },
    };
    value.map(Value::Int).ok_or_else(too_large)
}

fn floats(operator: Binary, x: f64, y: f64) -> TemplateResult<Value> {
    if y == 0.0 && matches!(operator, Binary::Div | Binary::FloorDiv | Binary::Mod) {
        return Err(Problem::failed("float division by zero"));
    }
    let modulo = || {
        let rest = x % y;
        if rest == 0.0 {
            0.0_f64.copysign(y)
        } else if (rest < 0.0) != (y < 0.0) {
            rest + y
        } else {
            rest
        }
    };
    Ok(Value::Float(match operator {
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::Div => x / y,
        Binary::Mod => modulo(),
        Binary::FloorDiv => {
            // As Python's `float_floor_div`.
            let rest = x % y;
            let quotient = (x - rest) / y - f64::from(rest != 0.0 && (rest < 0.0) != (y < 0.0));
            let floor = quotient.floor();
            match quotient {
                0.0 => 0.0_f64.copysign(x / y),
                _ if quotient - floor > 0.5 => floor + 1.0,
                _ => floor,
            }
        }
        Binary::Pow => {
            if x == 0.0 && y < 0.0 {
                return Err(Problem::failed("0.0 cannot be raised to a negative power"));
            }
            if x < 0.0 && y.fract() != 0.0 {
                return Err(Problem::unsupported("complex numbers"));
            }
            let value = x.powf(y);
            if value.is_infinite() && x.is_finite() && y.is_finite() {
                return Err(Problem::failed("Result too large"));
            }
            value
        }
    }))
}

/// `a == b`.
pub(super) fn equal(a: &Value, b: &Value, budget: &mut RenderBudget) -> TemplateResult<bool> {
    budget.steps(1)?;
    let items = |x: &[Value], y: &[Value], budget: &mut RenderBudget| -> TemplateResult<bool> {
        if x.len() != y.len() {
            return Ok(false);
        }
        for (x, y) in x.iter().zip(y) {
            if !equal(x, y, budget)? {
                return Ok(false);
            }
        }
        Ok(true)
    };
    Ok(match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Text(x) | Value::Markup(x), Value::Text(y) | Value::Markup(y)) => {
            budget.text(x.len().min(y.len()))?;
            x == y
        }
        (Value::List(x), Value::List(y)) | (Value::Tuple(x), Value::Tuple(y)) => {
            items(&x.items, &y.items, budget)?
        }
        (Value::Dict(x), Value::Dict(y)) => {
            if x.entries().len() != y.entries().len() {
                return Ok(false);
            }
            for (key, value) in x.entries() {
                match y.get(key, budget)? {
                    Some(other) if equal(value, other, budget)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Range(a, b, c), Value::Range(x, y, z)) => {
            let (one, two) = (range_length(*a, *b, *c), range_length(*x, *y, *z));
            one == two && (one == 0 || (a == x && (one == 1 || c == z)))
        }
        (Value::Object(x), Value::Object(y)) => x == y,
        (Value::Function(x), Value::Function(y)) => x == y,
        (Value::View(..), Value::View(..))
        | (Value::Method(_), Value::Method(_))
        | (Value::Iter(_), Value::Iter(_)) => {
            return Err(Problem::unsupported(format!("== of a {}", a.type_name())));
        }
        _ => match (number(a), number(b)) {
            (Some(x), Some(y)) => numbers(x, y) == Some(Ordering::Equal),
            _ => false,
        },
    })
}

#[derive(Clone, Copy)]
enum Number {
    Int(i128),
    Float(f64),
}

fn number(value: &Value) -> Option<Number> {
    match value {
        Value::Float(value) => Some(Number::Float(*value)),
        other => other.as_int().map(Number::Int),
    }
}

fn numbers(x: Number, y: Number) -> Option<Ordering> {
    match (x, y) {
        (Number::Int(x), Number::Int(y)) => Some(x.cmp(&y)),
        (Number::Float(x), Number::Float(y)) => x.partial_cmp(&y),
        (Number::Float(x), Number::Int(y)) => {
            numbers(Number::Int(y), Number::Float(x)).map(Ordering::reverse)
        }
        (Number::Int(x), Number::Float(y)) => {
            if y.is_nan() {
                return None;
            }
            if y.abs() > 1e38 {
                return Some(if y > 0.0 { Ordering::Less } else { Ordering::Greater });
            }
            let whole = y.trunc();
            Some(
                x.cmp(&(whole as i128))
                    .then_with(|| 0.0_f64.partial_cmp(&(y - whole)).unwrap_or(Ordering::Equal)),
            )
        }
    }
}

/// The order of two values; `None` when it has none (NaN).
pub(super) fn order(
    a: &Value,
    b: &Value,
    symbol: &str,
    budget: &mut RenderBudget,
) -> TemplateResult<Option<Ordering>> {
    budget.steps(1)?;
    a.defined()?;
    b.defined()?;
    if let (Some(x), Some(y)) = (number(a), number(b)) {
        return Ok(numbers(x, y));
    }
    match (a, b) {
        (Value::Text(x) | Value::Markup(x), Value::Text(y) | Value::Markup(y)) => {
            budget.text(x.len().min(y.len()))?;
            // The order of UTF-8 is that of code points.
            Ok(Some(x.cmp(y)))
        }
        (Value::List(x), Value::List(y)) | (Value::Tuple(x), Value::Tuple(y)) => {
            for (x, y) in x.items.iter().zip(&y.items) {
                if !equal(x, y, budget)? {
                    return order(x, y, symbol, budget);
                }
            }
            Ok(Some(x.items.len().cmp(&y.items.len())))
        }
        (Value::View(..), Value::View(..)) => {
            Err(Problem::unsupported(format!("'{symbol}' of views of a dict")))
        }
        _ => Err(Problem::failed(format!(
            "'{symbol}' not supported between instances of '{}' and '{}'",
            a.type_name(),
            b.type_name()
        ))),
    }
}

/// `item in container`.
pub(super) fn contains(container: &Value, item: &Value, budget: &mut RenderBudget) -> TemplateResult<bool> {
    match container {
        Value::Text(text) | Value::Markup(text) => match item {
            Value::Text(part) | Value::Markup(part) => {
                budget.text(text.len() + part.len())?;
                Ok(text.contains(&**part))
            }
            other => Err(Problem::failed(format!(
                "'in <string>' requires string as left operand, not {}",
                other.type_name()
            ))),
        },
        Value::Dict(dict) => Ok(dict.get(item, budget)?.is_some()),
        Value::Range(start, stop, step) => match number(item) {
            Some(Number::Int(value)) => {
                let inside = if *step > 0 {
                    (*start..*stop).contains(&value)
                } else {
                    value <= *start && value > *stop
                };
                Ok(inside && (value - start) % step == 0)
            }
            _ => Err(Problem::unsupported("'in' of a range and no integer")),
        },
        Value::Iter(_) => Err(Problem::unsupported("'in' of a generator")),
        Value::List(items) | Value::Tuple(items) | Value::View(_, items) => {
            for element in &items.items {
                if equal(element, item, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Undefined(_) => Ok(false),
        other => Err(Problem::failed(format!("argument of type '{}' is not iterable", other.type_name()))),
    }
}
