//! Runs the statements of a template.

use std::collections::HashMap;
use std::sync::Arc;

use super::ast::{AssignTarget, Body, Expr, For, Macro, Stmt, StmtKind};
use super::call::{ArgumentValues, NamedCall};
use super::limits::{MAX_CALL_LEVELS, MAX_OUTPUT_BYTES, RenderBudget};
use super::operators;
use super::problem::{Problem, TemplateResult};
use super::text::string;
use super::value::{Dict, Value};
use crate::size::size_text;

/// What a method of values of one type does.
pub(super) type Method<S> = for<'s> fn(&mut Renderer<'_>, NamedCall<'s, &'s S>) -> TemplateResult<Value>;

/// How rendering continues after a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

struct Scope<'t> {
    outer: Option<usize>,
    /// A name without a value here is not looked up outside.
    names: HashMap<&'t str, Option<Value>>,
}

/// A running loop.
pub(super) struct LoopState {
    pub(super) items: Vec<Value>,
    pub(super) at: usize,
    /// Loops around this one, by recursion.
    pub(super) depth: usize,
    /// The last arguments of `loop.changed`.
    pub(super) changed: Option<Vec<Value>>,
}

/// Objects that the rendering owns, so that values that refer to each other are freed with it.
pub(super) enum Object<'t> {
    Namespace(Dict),
    Loop { state: LoopState, node: &'t For, scope: usize },
    Cycler { items: Vec<Value>, at: usize },
    Joiner { separator: Value, used: bool },
    Macro { node: &'t Macro, scope: usize },
    Block { body: &'t Body },
}

/// One rendering.
pub(super) struct Renderer<'t> {
    variables: &'t Dict,
    pub(super) budget: RenderBudget,
    scopes: Vec<Scope<'t>>,
    scope: usize,
    /// Macros made so far: their scopes outlive the statement.
    closures: usize,
    pub(super) objects: Vec<Object<'t>>,
    out: String,
    level: usize,
    blocks: HashMap<&'t str, usize>,
}

/// Renders `body` with `variables`.
pub(super) fn render(body: &Body, variables: &Dict) -> TemplateResult<String> {
    let mut renderer = Renderer {
        variables,
        budget: RenderBudget::new(),
        scopes: Vec::new(),
        scope: 0,
        closures: 0,
        objects: Vec::new(),
        out: String::new(),
        level: 0,
        blocks: HashMap::new(),
    };
    renderer.push(None, body);
    renderer.find_blocks(&body.stmts)?;
    renderer.stmts(&body.stmts)?;
    Ok(renderer.out)
}

impl<'t> Renderer<'t> {
    /// Runs `run` one level deeper.
    pub(super) fn deeper<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> TemplateResult<T>,
    ) -> TemplateResult<T> {
        if self.level >= MAX_CALL_LEVELS {
            return Err(Problem::limit(format!("it calls itself more than {MAX_CALL_LEVELS} levels deep")));
        }
        self.level += 1;
        let done = run(self);
        self.level -= 1;
        done
    }

    pub(super) fn object(&mut self, object: Object<'t>) -> TemplateResult<Value> {
        self.budget.memory(256)?;
        self.objects.push(object);
        Ok(Value::Object(self.objects.len() - 1))
    }

    fn push(&mut self, outer: Option<usize>, body: &'t Body) {
        let names = body.unset.iter().map(|name| (&**name, None)).collect();
        self.scopes.push(Scope { outer, names });
        self.scope = self.scopes.len() - 1;
    }

    /// Runs `run` in a new scope inside `outer`.
    fn scoped<T>(
        &mut self,
        outer: usize,
        body: &'t Body,
        run: impl FnOnce(&mut Self) -> TemplateResult<T>,
    ) -> TemplateResult<T> {
        self.budget.memory(64 + body.unset.len() * 64)?;
        let (before, closures, length) = (self.scope, self.closures, self.scopes.len());
        self.push(Some(outer), body);
        let done = self.deeper(run);
        self.scope = before;
        if self.closures == closures {
            self.scopes.truncate(length);
        }
        done
    }

    /// The value of a name; `None` when it has none.
    pub(super) fn lookup(&mut self, name: &str) -> TemplateResult<Option<Value>> {
        let mut scope = Some(self.scope);
        while let Some(at) = scope {
            self.budget.steps(1)?;
            if let Some(found) = self.scopes[at].names.get(name) {
                return Ok(found.clone());
            }
            scope = self.scopes[at].outer;
        }
        Ok(self.variables.get_text(name).cloned())
    }

    fn bind(&mut self, name: &'t str, value: Value) -> TemplateResult<()> {
        self.budget.memory(64)?;
        self.scopes[self.scope].names.insert(name, Some(value));
        Ok(())
    }

    fn assign(&mut self, target: &'t AssignTarget, value: Value) -> TemplateResult<()> {
        match target {
            AssignTarget::Name(name) => self.bind(name, value),
            AssignTarget::Tuple(targets) => {
                let values = value.elements(&mut self.budget)?;
                if values.len() != targets.len() {
                    let problem = if values.len() > targets.len() { "too many" } else { "not enough" };
                    return Err(Problem::failed(format!(
                        "{problem} values to unpack (expected {})",
                        targets.len()
                    )));
                }
                targets.iter().zip(values).try_for_each(|(target, value)| self.assign(target, value))
            }
            AssignTarget::Namespace(name, attribute) => {
                let object = self.lookup(name)?;
                self.budget.memory(64)?;
                match object {
                    Some(Value::Object(at)) => match &mut self.objects[at] {
                        Object::Namespace(dict) => {
                            dict.insert(Value::Text(attribute.clone()), value, &mut self.budget)
                        }
                        _ => Err(Problem::failed("cannot assign attribute on non-namespace object")),
                    },
                    _ => Err(Problem::failed("cannot assign attribute on non-namespace object")),
                }
            }
        }
    }

    fn write(&mut self, text: &str) -> TemplateResult<()> {
        self.budget.memory(text.len())?;
        if self.out.len() + text.len() > MAX_OUTPUT_BYTES {
            return Err(Problem::limit(format!(
                "it writes more than {}",
                size_text(MAX_OUTPUT_BYTES as u64)
            )));
        }
        self.out.push_str(text);
        Ok(())
    }

    /// The output of `run`.
    fn captured(&mut self, run: impl FnOnce(&mut Self) -> TemplateResult<()>) -> TemplateResult<String> {
        let outside = std::mem::take(&mut self.out);
        let done = run(self);
        let text = std::mem::replace(&mut self.out, outside);
        done.map(|()| text)
    }

    /// The output of a body in a scope inside the current one.
    fn body_text(&mut self, body: &'t Body) -> TemplateResult<String> {
        let outer = self.scope;
        self.captured(|renderer| {
            renderer.scoped(outer, body, |renderer| renderer.stmts(&body.stmts).map(|_| ()))
        })
    }

    fn find_blocks(&mut self, stmts: &'t [Stmt]) -> TemplateResult<()> {
        for stmt in stmts {
            if let StmtKind::Block { name, body, .. } = &stmt.kind {
                let Value::Object(at) = self.object(Object::Block { body })? else { continue };
                self.blocks.insert(name, at);
            }
        }
        Ok(())
    }

    /// The block that `self.name` is.
    pub(super) fn block(&self, name: &str) -> Option<Value> {
        self.blocks.get(name).map(|at| Value::Object(*at))
    }

    fn stmts(&mut self, stmts: &'t [Stmt]) -> TemplateResult<Flow> {
        for stmt in stmts {
            self.budget.steps(1)?;
            let flow = self.stmt(stmt).map_err(|problem| problem.on(stmt.line))?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn stmt(&mut self, stmt: &'t Stmt) -> TemplateResult<Flow> {
        match &stmt.kind {
            StmtKind::Text(text) => self.write(text)?,
            StmtKind::Print(value) => {
                let value = self.eval(value)?;
                match value.as_text() {
                    Some(text) => self.write(text)?,
                    None => {
                        let text = self.string(&value)?;
                        self.write(&text)?;
                    }
                }
            }
            StmtKind::Set(target, value) => {
                let value = self.eval(value)?;
                self.assign(target, value)?;
            }
            StmtKind::SetBlock(target, filter, body) => {
                let text = Value::text(self.body_text(body)?);
                let value = match filter {
                    Some(filter) => self.filtered(filter, text)?,
                    None => text,
                };
                self.assign(target, value)?;
            }
            StmtKind::If(branches, otherwise) => {
                for (test, stmts) in branches {
                    self.budget.steps(1)?;
                    if self.eval(test)?.truth() {
                        return self.deeper(|renderer| renderer.stmts(stmts));
                    }
                }
                return self.deeper(|renderer| renderer.stmts(otherwise));
            }
            StmtKind::For(node) => {
                let items = self.eval(&node.iter)?;
                self.run_loop(node, &items, self.scope, 0)?;
            }
            StmtKind::With(bindings, body) => {
                let mut values = Vec::new();
                for (_, value) in bindings {
                    values.push(self.eval(value)?);
                }
                return self.scoped(self.scope, body, |renderer| {
                    for ((target, _), value) in bindings.iter().zip(values) {
                        renderer.assign(target, value)?;
                    }
                    renderer.stmts(&body.stmts)
                });
            }
            StmtKind::Macro(node) => {
                self.closures += 1;
                let scope = self.scope;
                let object = self.object(Object::Macro { node, scope })?;
                self.bind(&node.name, object)?;
            }
            StmtKind::Call(node, call) => {
                self.closures += 1;
                let scope = self.scope;
                let caller = self.object(Object::Macro { node, scope })?;
                let value = self.call_with(call, Some(caller))?;
                let text = self.string(&value)?;
                self.write(&text)?;
            }
            StmtKind::Filter(filter, body) => {
                let text = Value::text(self.body_text(body)?);
                let value = self.filtered(filter, text)?;
                let text = self.string(&value)?;
                self.write(&text)?;
            }
            StmtKind::Generation(body) => {
                let text = self.body_text(body)?;
                self.write(&text)?;
            }
            StmtKind::Block { scoped, body, .. } => {
                let outer = if *scoped { self.scope } else { 0 };
                self.scoped(outer, body, |renderer| renderer.stmts(&body.stmts))?;
            }
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
            StmtKind::Unsupported(what) => {
                return Err(Problem::unsupported(format!("{what}: a chat template is one template")));
            }
        }
        Ok(Flow::On)
    }

    /// `str(value)`.
    pub(super) fn string(&mut self, value: &Value) -> TemplateResult<String> {
        if let Value::Object(at) = value
            && let Object::Joiner { .. } | Object::Loop { .. } | Object::Namespace(_) = &self.objects[*at]
        {
            let what = match &self.objects[*at] {
                Object::Namespace(_) => "namespace",
                Object::Loop { .. } => "loop",
                _ => "joiner",
            };
            return Err(Problem::unsupported(format!("the text of a {what}")));
        }
        string(value, &mut self.budget)
    }

    /// A filter without a subject of its own, on `text`.
    fn filtered(&mut self, filter: &'t Expr, text: Value) -> TemplateResult<Value> {
        self.deeper(|renderer| renderer.filter_expr(filter, Some(text)))
    }

    fn run_loop(&mut self, node: &'t For, items: &Value, outer: usize, depth: usize) -> TemplateResult<()> {
        let mut items = items.elements(&mut self.budget)?;
        if let Some(test) = &node.test {
            let mut kept = Vec::new();
            for item in items {
                let body = Body::NONE;
                let keep = self.scoped(outer, body, |renderer| {
                    renderer.assign(&node.target, item.clone())?;
                    Ok(renderer.eval(test)?.truth())
                })?;
                if keep {
                    kept.push(item);
                }
            }
            items = kept;
        }
        let count = items.len();
        let state = LoopState { items, at: 0, depth, changed: None };
        let looping = self.object(Object::Loop { state, node, scope: outer })?;
        let Value::Object(handle) = looping else { return Ok(()) };
        let mut complete = false;
        for at in 0..count {
            let Object::Loop { state, .. } = &mut self.objects[handle] else { break };
            state.at = at;
            let item = state.items[at].clone();
            let flow = self.scoped(outer, &node.body, |renderer| {
                renderer.bind("loop", looping.clone())?;
                renderer.assign(&node.target, item)?;
                renderer.stmts(&node.body.stmts)
            })?;
            complete |= flow == Flow::On;
            if flow == Flow::Break {
                break;
            }
        }
        // As in Jinja, an iteration counts when it reaches the end of the body.
        if let Some(otherwise) = node.otherwise.as_ref().filter(|_| !complete) {
            self.scoped(outer, otherwise, |renderer| renderer.stmts(&otherwise.stmts))?;
        }
        if let Object::Loop { state, .. } = &mut self.objects[handle] {
            // Kept for a `loop` that was stored elsewhere; its elements are what takes memory.
            state.at = count.saturating_sub(1);
        }
        Ok(())
    }

    /// `loop(items)`, `caller()`, `self.block()` and calls of macros.
    pub(super) fn call_object(&mut self, at: usize, given: ArgumentValues) -> TemplateResult<Value> {
        match &mut self.objects[at] {
            Object::Macro { node, scope } => {
                let (node, scope) = (*node, *scope);
                self.call_macro(node, scope, given)
            }
            Object::Loop { state, node, scope } => {
                if !node.recursive {
                    return Err(Problem::failed(
                        "The loop must have the 'recursive' marker to be called recursively.",
                    ));
                }
                let (node, scope, depth) = (*node, *scope, state.depth + 1);
                let [items] = given.bind("loop", ["iterable"], 1)?;
                let items = items.unwrap_or(Value::None);
                let text = self.captured(|renderer| renderer.run_loop(node, &items, scope, depth))?;
                Ok(Value::text(text))
            }
            Object::Joiner { separator, used } => {
                given.none("joiner")?;
                let first = !std::mem::replace(used, true);
                Ok(if first { Value::text("") } else { separator.clone() })
            }
            Object::Block { body } => {
                let body = *body;
                given.none("a block")?;
                let text = self.captured(|renderer| {
                    renderer.scoped(0, body, |renderer| renderer.stmts(&body.stmts).map(|_| ()))
                })?;
                Ok(Value::text(text))
            }
            Object::Namespace(_) | Object::Cycler { .. } => Err(Problem::failed("object is not callable")),
        }
    }

    fn call_macro(&mut self, node: &'t Macro, scope: usize, given: ArgumentValues) -> TemplateResult<Value> {
        let name = &node.name;
        let ArgumentValues { positional, mut named } = given;
        let mut positional = positional.into_iter();
        let mut bound: Vec<(&'t Arc<str>, Option<Value>, Option<&'t Expr>)> = Vec::new();
        for (param, default) in &node.params {
            self.budget.steps(1 + named.len() / 8)?;
            let by_name = named.iter().position(|(name, _)| name == param);
            let value = match (positional.next(), by_name) {
                (Some(_), Some(_)) => {
                    return Err(Problem::failed(format!(
                        "macro '{name}' got multiple values for argument '{param}'"
                    )));
                }
                (Some(value), None) => Some(value),
                (None, Some(at)) => Some(named.remove(at).1),
                (None, None) => None,
            };
            bound.push((param, value, default.as_ref()));
        }
        let rest: Vec<Value> = positional.collect();
        let caller = named.iter().position(|(name, _)| &**name == "caller").filter(|_| node.caller);
        let caller = caller.map(|at| named.remove(at).1);
        if !rest.is_empty() && !node.varargs {
            return Err(Problem::failed(format!(
                "macro '{name}' takes not more than {} argument(s)",
                node.params.len()
            )));
        }
        if let Some((unknown, _)) = named.first()
            && !node.kwargs
        {
            return Err(Problem::failed(format!("macro '{name}' takes no keyword argument '{unknown}'")));
        }
        let text = self.captured(|renderer| {
            renderer.scoped(scope, &node.body, |renderer| {
                for (param, value, default) in bound {
                    let value = match (value, default) {
                        (Some(value), _) => value,
                        (None, Some(default)) => renderer.eval(default)?,
                        (None, None) => Value::undefined(format!("parameter '{param}' was not provided")),
                    };
                    renderer.bind(param, value)?;
                }
                if node.caller {
                    let none = || Value::undefined("No caller defined");
                    renderer.bind("caller", caller.unwrap_or_else(none))?;
                }
                if node.varargs {
                    renderer.bind("varargs", Value::tuple(rest)?)?;
                }
                if node.kwargs {
                    let entries = named.into_iter().map(|(name, value)| (Value::Text(name), value));
                    let kwargs = Value::dict_within(entries, &mut renderer.budget)?;
                    renderer.bind("kwargs", kwargs)?;
                }
                renderer.stmts(&node.body.stmts).map(|_| ())
            })
        })?;
        Ok(Value::text(text))
    }

    pub(super) fn equal(&mut self, a: &Value, b: &Value) -> TemplateResult<bool> {
        operators::equal(a, b, &mut self.budget)
    }
}
