//! Evaluates expressions.

use std::cmp::Ordering;
use std::sync::Arc;

use super::ast::{Arguments, Comparison, Expr, ExprKind};
use super::call::ArgumentValues;
use super::limits::MAX_RANGE;
use super::problem::{Problem, TemplateResult};
use super::render::Renderer;
use super::value::{Value, range_length};
use super::{builtins, functions, methods, operators};

impl<'t> Renderer<'t> {
    pub(super) fn eval(&mut self, expr: &'t Expr) -> TemplateResult<Value> {
        self.budget.steps(1)?;
        self.deeper(|renderer| renderer.eval_inner(expr)).map_err(|problem| problem.on(expr.line))
    }

    fn eval_all(&mut self, exprs: &'t [Expr]) -> TemplateResult<Vec<Value>> {
        self.budget.memory(exprs.len() * 32)?;
        exprs.iter().map(|expr| self.eval(expr)).collect()
    }

    fn eval_inner(&mut self, expr: &'t Expr) -> TemplateResult<Value> {
        match &expr.kind {
            ExprKind::Const(value) => Ok(value.clone()),
            ExprKind::Name(name) => self.name(name),
            ExprKind::List(items) => Value::list(self.eval_all(items)?),
            ExprKind::Tuple(items) => Value::tuple(self.eval_all(items)?),
            ExprKind::Dict(pairs) => {
                self.budget.memory(pairs.len() * 96)?;
                let mut entries = Vec::new();
                for (key, value) in pairs {
                    entries.push((self.eval(key)?, self.eval(value)?));
                }
                Value::dict_within(entries, &mut self.budget)
            }
            ExprKind::Not(value) => Ok(Value::Bool(!self.eval(value)?.truth())),
            ExprKind::And(a, b) => {
                let value = self.eval(a)?;
                if value.truth() { self.eval(b) } else { Ok(value) }
            }
            ExprKind::Or(a, b) => {
                let value = self.eval(a)?;
                if value.truth() { Ok(value) } else { self.eval(b) }
            }
            ExprKind::Negative(value) | ExprKind::Positive(value) => {
                let negative = matches!(expr.kind, ExprKind::Negative(_));
                let value = self.eval(value)?;
                value.defined()?;
                match value {
                    Value::Float(number) => Ok(Value::Float(if negative { -number } else { number })),
                    value => match value.as_int() {
                        Some(number) if negative => Ok(Value::Int(number.saturating_neg())),
                        Some(number) => Ok(Value::Int(number)),
                        None => Err(Problem::failed(format!(
                            "bad operand type for unary -: '{}'",
                            value.type_name()
                        ))),
                    },
                }
            }
            ExprKind::Binary(operator, a, b) => {
                let (a, b) = (self.eval(a)?, self.eval(b)?);
                operators::binary(*operator, &a, &b, &mut self.budget)
            }
            ExprKind::Concat(parts) => {
                let mut out = String::new();
                for part in parts {
                    let value = self.eval(part)?;
                    let text = self.string(&value)?;
                    self.budget.memory(text.len())?;
                    out.push_str(&text);
                }
                Ok(Value::text(out))
            }
            ExprKind::Compare(first, rest) => {
                let mut left = self.eval(first)?;
                for (comparison, right) in rest {
                    let right = self.eval(right)?;
                    if !self.compare(*comparison, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            ExprKind::Condition { test, then, otherwise } => {
                if self.eval(test)?.truth() {
                    return self.eval(then);
                }
                match otherwise {
                    Some(otherwise) => self.eval(otherwise),
                    None => Ok(Value::undefined(
                        "the inline if-expression evaluated to false and no else section was defined.",
                    )),
                }
            }
            ExprKind::Attribute(of, name) => {
                if let ExprKind::Name(word) = &of.kind
                    && &**word == "self"
                    && self.lookup("self")?.is_none()
                    && let Some(block) = self.block(name)
                {
                    return Ok(block);
                }
                let value = self.eval(of)?;
                self.attribute(&value, name)
            }
            ExprKind::Item(of, key) => {
                let (value, key) = (self.eval(of)?, self.eval(key)?);
                self.item(&value, &key)
            }
            ExprKind::Slice(of, parts) => {
                let value = self.eval(of)?;
                let mut bounds = [None, None, None];
                for (bound, part) in bounds.iter_mut().zip(parts.iter()) {
                    if let Some(part) = part {
                        let part = self.eval(part)?;
                        *bound = match &part {
                            Value::None => None,
                            part => match part.as_int() {
                                Some(number) => Some(number),
                                None => {
                                    part.defined()?;
                                    return Err(Problem::failed("slice indices must be integers or None"));
                                }
                            },
                        };
                    }
                }
                self.slice(&value, bounds)
            }
            ExprKind::Call(..) => self.call_with(expr, None),
            ExprKind::Filter(..) => self.filter_expr(expr, None),
            ExprKind::Test(of, name, arguments) => {
                let value = self.eval(of)?;
                let given = self.arguments(arguments)?;
                builtins::test(self, name, &value, given).map(Value::Bool)
            }
        }
    }

    fn name(&mut self, name: &Arc<str>) -> TemplateResult<Value> {
        if let Some(value) = self.lookup(name)? {
            return Ok(value);
        }
        if let Some(function) = functions::named(name) {
            return Ok(function);
        }
        match &**name {
            "self" => Err(Problem::unsupported("'self' other than to call a block")),
            "super" => Err(Problem::unsupported("super()")),
            _ => Ok(Value::undefined(format!("'{name}' is undefined"))),
        }
    }

    fn compare(&mut self, comparison: Comparison, a: &Value, b: &Value) -> TemplateResult<bool> {
        let budget = &mut self.budget;
        let mut order = |symbol| operators::order(a, b, symbol, budget);
        Ok(match comparison {
            Comparison::Equal => operators::equal(a, b, budget)?,
            Comparison::NotEqual => !operators::equal(a, b, budget)?,
            Comparison::Less => order("<")? == Some(Ordering::Less),
            Comparison::Greater => order(">")? == Some(Ordering::Greater),
            Comparison::LessEqual => matches!(order("<=")?, Some(Ordering::Less | Ordering::Equal)),
            Comparison::GreaterEqual => matches!(order(">=")?, Some(Ordering::Greater | Ordering::Equal)),
            Comparison::In => operators::contains(b, a, budget)?,
            Comparison::NotIn => !operators::contains(b, a, budget)?,
        })
    }

    pub(super) fn arguments(&mut self, arguments: &'t Arguments) -> TemplateResult<ArgumentValues> {
        let mut given = ArgumentValues::of(self.eval_all(&arguments.positional)?);
        for (name, value) in &arguments.named {
            given.named.push((name.clone(), self.eval(value)?));
        }
        if let Some(rest) = &arguments.rest {
            let rest = self.eval(rest)?;
            given.positional.extend(rest.elements(&mut self.budget)?);
        }
        if let Some(rest) = &arguments.named_rest {
            let Value::Dict(dict) = self.eval(rest)? else {
                return Err(Problem::failed("argument after ** must be a mapping"));
            };
            self.budget.memory(dict.entries().len() * 64)?;
            self.budget.steps(dict.entries().len() * (1 + arguments.named.len() / 8))?;
            for (key, value) in dict.entries() {
                let Value::Text(key) = key else { return Err(Problem::failed("keywords must be strings")) };
                if arguments.named.iter().any(|(name, _)| name == key) {
                    return Err(Problem::failed(format!("got multiple values for keyword argument '{key}'")));
                }
                given.named.push((key.clone(), value.clone()));
            }
        }
        Ok(given)
    }

    /// A call, with the `caller` of its call block.
    pub(super) fn call_with(&mut self, call: &'t Expr, caller: Option<Value>) -> TemplateResult<Value> {
        let ExprKind::Call(of, arguments) = &call.kind else { return Err(Problem::failed("expected call")) };
        let callee = self.eval(of)?;
        let mut given = self.arguments(arguments)?;
        given.named.extend(caller.map(|caller| ("caller".into(), caller)));
        self.call(&callee, given)
    }

    pub(super) fn call(&mut self, callee: &Value, given: ArgumentValues) -> TemplateResult<Value> {
        match callee {
            Value::Object(at) => self.deeper(|renderer| renderer.call_object(*at, given)),
            Value::Function(name) => functions::call(self, name, given),
            Value::Method(method) => methods::call(self, &method.0, method.1, given),
            Value::Undefined(why) => Err(Problem::failed(&**why)),
            other => Err(Problem::failed(format!("'{}' object is not callable", other.type_name()))),
        }
    }

    /// A filter on `subject`, or on the value of its own expression.
    pub(super) fn filter_expr(&mut self, filter: &'t Expr, subject: Option<Value>) -> TemplateResult<Value> {
        let ExprKind::Filter(of, name, arguments) = &filter.kind else {
            return Err(Problem::failed("expected a filter"));
        };
        self.budget.steps(1)?;
        let value = match (of, subject) {
            (Some(of), Some(text)) => self.deeper(|renderer| renderer.filter_expr(of, Some(text)))?,
            (Some(of), None) => self.eval(of)?,
            (None, subject) => subject.unwrap_or(Value::None),
        };
        let given = self.arguments(arguments)?;
        builtins::filter(self, name, value, given).map_err(|problem| problem.on(filter.line))
    }

    /// `value.name`: an attribute, else an item.
    pub(super) fn attribute(&mut self, value: &Value, name: &Arc<str>) -> TemplateResult<Value> {
        value.defined()?;
        self.budget.text(name.len())?;
        if let Some(found) = functions::attribute(self, value, name)? {
            return Ok(found);
        }
        let missing =
            || Value::undefined(format!("'{} object' has no attribute '{name}'", value.type_name()));
        match value {
            Value::Dict(dict) => Ok(dict.get_text(name).cloned().unwrap_or_else(missing)),
            _ => Ok(missing()),
        }
    }

    /// `value[key]`: an item, else an attribute.
    pub(super) fn item(&mut self, value: &Value, key: &Value) -> TemplateResult<Value> {
        value.defined()?;
        let found = match (value, key.as_int()) {
            (Value::Dict(dict), _) => match dict.get(key, &mut self.budget) {
                Ok(found) => found.cloned(),
                Err(problem) if problem.kind == super::problem::ProblemKind::Failed => None,
                Err(problem) => return Err(problem),
            },
            (Value::List(items) | Value::Tuple(items), Some(index)) => {
                index_of(index, items.items.len()).map(|at| items.items[at].clone())
            }
            (Value::Text(text) | Value::Markup(text), Some(index)) => {
                self.budget.text(text.len())?;
                let found = index_of(index, text.chars().count()).and_then(|at| text.chars().nth(at));
                found.map(|c| Value::text(c.to_string()))
            }
            (Value::Range(start, stop, step), Some(index)) => {
                index_of(index, range_length(*start, *stop, *step))
                    .map(|at| Value::Int(start + step * at as i128))
            }
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        self.budget.text(key.as_text().map_or(0, |key| key.len()))?;
        if let Value::Text(name) = key
            && let Some(found) = functions::attribute(self, value, name)?
        {
            return Ok(found);
        }
        let key = self.string(key)?;
        Ok(Value::undefined(format!("'{} object' has no element '{key}'", value.type_name())))
    }

    fn slice(&mut self, value: &Value, [start, stop, step]: [Option<i128>; 3]) -> TemplateResult<Value> {
        value.defined()?;
        let step = step.unwrap_or(1);
        if step == 0 {
            return Err(Problem::failed("slice step cannot be zero"));
        }
        let length = match value {
            Value::Text(_) | Value::List(_) | Value::Tuple(_) | Value::Range(..) => {
                value.length(&mut self.budget)?
            }
            Value::Markup(_) => return Err(Problem::unsupported("a slice of a Markup")),
            other => {
                return Err(Problem::failed(format!("'{}' object is not subscriptable", other.type_name())));
            }
        } as i128;
        let place = |bound: Option<i128>, first: i128, last: i128, default: i128| match bound {
            None => default,
            Some(bound) if bound < 0 => (bound.saturating_add(length)).clamp(first, last),
            Some(bound) => bound.clamp(first, last),
        };
        let (start, stop) = if step > 0 {
            (place(start, 0, length, 0), place(stop, 0, length, length))
        } else {
            (place(start, -1, length - 1, length - 1), place(stop, -1, length - 1, -1))
        };
        let count = range_length(start, stop, step);
        let places = (0..count).map(|at| (start + step * at as i128) as usize);
        self.budget.memory(count * 32)?;
        match value {
            Value::Text(text) if step == 1 => {
                let mut bytes = text.char_indices().map(|(at, _)| at).chain([text.len()]);
                let from = bytes.nth(start as usize).unwrap_or(text.len());
                let to = if count == 0 { from } else { bytes.nth(count - 1).unwrap_or(text.len()) };
                Ok(Value::text(&text[from..to]))
            }
            Value::Text(text) => {
                self.budget.memory(text.len() * 4)?;
                let characters: Vec<char> = text.chars().collect();
                Ok(Value::text(places.map(|at| characters[at]).collect::<String>()))
            }
            Value::List(items) => Value::list(places.map(|at| items.items[at].clone()).collect()),
            Value::Tuple(items) => Value::tuple(places.map(|at| items.items[at].clone()).collect()),
            Value::Range(first, _, by) => {
                let at = |place: i128| by.checked_mul(place).and_then(|far| first.checked_add(far));
                let sliced = at(start).zip(at(stop)).zip(by.checked_mul(step));
                let ((from, to), by) = sliced.ok_or_else(operators::too_large)?;
                Ok(Value::Range(from, to, by))
            }
            _ => Err(Problem::failed("no sequence")),
        }
    }

    /// `range(…)`, bounded as in Jinja's sandbox.
    pub(super) fn range(&mut self, given: ArgumentValues) -> TemplateResult<Value> {
        let values = given.positional;
        if !given.named.is_empty() || values.is_empty() || values.len() > 3 {
            return Err(Problem::failed("range takes 1 to 3 integers"));
        }
        let mut numbers = Vec::new();
        for value in &values {
            value.defined()?;
            let number = value.as_int();
            numbers.push(number.ok_or_else(|| {
                Problem::failed(format!("'{}' object cannot be interpreted as an integer", value.type_name()))
            })?);
        }
        let (start, stop, step) = match numbers[..] {
            [stop] => (0, stop, 1),
            [start, stop] => (start, stop, 1),
            _ => (numbers[0], numbers[1], numbers[2]),
        };
        if step == 0 {
            return Err(Problem::failed("range() arg 3 must not be zero"));
        }
        if numbers.iter().any(|number| number.unsigned_abs() > 1 << 100) {
            return Err(Problem::unsupported("a range of such large numbers"));
        }
        if range_length(start, stop, step) as i128 > MAX_RANGE {
            return Err(Problem::limit(format!("a range of more than {MAX_RANGE} elements")));
        }
        Ok(Value::Range(start, stop, step))
    }
}

fn index_of(index: i128, length: usize) -> Option<usize> {
    let index = if index < 0 { index + length as i128 } else { index };
    usize::try_from(index).ok().filter(|at| *at < length)
}
