//! Which names a body gives a value, as Jinja decides when it compiles.
//!
//! In Jinja a body (of the template, a loop, a macro) has one variable a name. A name that a body gives a value before it
//! reads it, and that no body around it mentions, has no value until then: bodies inside do not see what the template
//! was called with. A name that is given a value in some branches of an `if` only keeps its outer value in the others.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::ast::{AssignTarget, Body, Expr, ExprKind, Macro, Stmt, StmtKind};
use super::problem::{Problem, TemplateResult};

/// Fills [`Body::unset`] everywhere, and what macros use of their special arguments.
pub(super) fn resolve(body: &mut Body) -> TemplateResult<()> {
    enter(body, &[], &mut Vec::new())
}

/// Names that may be copied for the branches of one body.
const MAX_WORK: usize = 2_000_000;

type Names = HashSet<Arc<str>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    Unset,
    Outer,
}

/// The names of one body, in the order of its statements.
#[derive(Clone, Default)]
struct Seen {
    loads: HashMap<Arc<str>, Load>,
    stored: Names,
    /// Names that were copied for branches so far.
    work: usize,
}

impl Seen {
    /// The names for a branch. Past the limit nothing more is looked at: the template is refused.
    fn copy(&mut self) -> Self {
        self.work += 1 + self.loads.len();
        if self.work > MAX_WORK {
            return Self { work: self.work, ..Self::default() };
        }
        self.clone()
    }

    fn load(&mut self, name: &Arc<str>) {
        self.loads.entry(name.clone()).or_insert(Load::Outer);
    }

    fn store(&mut self, name: &Arc<str>, outer: &[Names]) {
        self.stored.insert(name.clone());
        let load = if outer.iter().any(|names| names.contains(name)) { Load::Outer } else { Load::Unset };
        self.loads.entry(name.clone()).or_insert(load);
    }

    fn expr(&mut self, expr: &Expr) {
        if let ExprKind::Name(name) = &expr.kind {
            self.load(name);
        }
        for child in expr.kind.children() {
            self.expr(child);
        }
    }

    fn target(&mut self, target: &AssignTarget, outer: &[Names]) {
        match target {
            AssignTarget::Name(name) => self.store(name, outer),
            AssignTarget::Tuple(targets) => targets.iter().for_each(|target| self.target(target, outer)),
            AssignTarget::Namespace(name, _) => self.load(name),
        }
    }

    fn stmts(&mut self, stmts: &[Stmt], outer: &[Names]) {
        for stmt in stmts {
            if self.work <= MAX_WORK {
                self.stmt(stmt, outer);
            }
        }
    }

    /// What a statement does to the names of its own body; bodies inside it have theirs.
    fn stmt(&mut self, stmt: &Stmt, outer: &[Names]) {
        match &stmt.kind {
            StmtKind::Print(value) => self.expr(value),
            StmtKind::Set(target, value) => {
                self.expr(value);
                self.target(target, outer);
            }
            StmtKind::SetBlock(target, ..) => self.target(target, outer),
            StmtKind::If(branches, otherwise) => {
                self.branches(branches, otherwise, outer);
            }
            StmtKind::For(node) => self.expr(&node.iter),
            StmtKind::With(bindings, _) => bindings.iter().for_each(|(_, value)| self.expr(value)),
            StmtKind::Macro(node) => self.store(&node.name, outer),
            StmtKind::Call(_, call) => self.expr(call),
            StmtKind::Filter(filter, _) => self.expr(filter),
            StmtKind::Text(_)
            | StmtKind::Generation(_)
            | StmtKind::Block { .. }
            | StmtKind::Break
            | StmtKind::Continue
            | StmtKind::Unsupported(_) => {}
        }
    }

    fn branches(&mut self, branches: &[(Expr, Vec<Stmt>)], otherwise: &[Stmt], outer: &[Names]) {
        let Some(((test, first), rest)) = branches.split_first() else { return };
        self.expr(test);
        let mut then = self.copy();
        then.stmts(first, outer);
        self.work = then.work;
        // All `elif` together count as one branch.
        let mut middle = self.copy();
        for (test, stmts) in rest {
            middle.expr(test);
            let mut one = middle.copy();
            one.stmts(stmts, outer);
            middle.work = one.work;
            let none = middle.copy();
            middle.join(&[one, none]);
        }
        self.work = middle.work;
        let mut last = self.copy();
        last.stmts(otherwise, outer);
        self.join(&[then, middle, last]);
    }

    fn join(&mut self, branches: &[Self]) {
        let before = self.stored.clone();
        for branch in branches {
            self.work = self.work.max(branch.work);
            self.loads.extend(branch.loads.iter().map(|(name, load)| (name.clone(), *load)));
            self.stored.extend(branch.stored.iter().cloned());
        }
        for name in self.stored.difference(&before) {
            if !branches.iter().all(|branch| branch.stored.contains(name)) {
                self.loads.insert(name.clone(), Load::Outer);
            }
        }
    }
}

/// A body with `bound` names (targets of a loop, parameters) inside the bodies of `outer`.
fn enter(body: &mut Body, bound: &[Arc<str>], outer: &mut Vec<Names>) -> TemplateResult<()> {
    let mut seen = Seen::default();
    for name in bound {
        seen.load(name);
    }
    seen.stmts(&body.stmts, outer);
    if seen.work > MAX_WORK {
        return Err(Problem::limit(format!("its branches name more than {MAX_WORK} variables")));
    }
    body.unset = seen
        .loads
        .iter()
        .filter(|(name, load)| **load == Load::Unset && !bound.contains(name))
        .map(|(name, _)| name.clone())
        .collect();
    body.unset.sort();
    outer.push(seen.loads.into_keys().collect());
    inner(&mut body.stmts, outer)?;
    outer.pop();
    Ok(())
}

/// Enters the bodies inside of `stmts`.
fn inner(stmts: &mut [Stmt], outer: &mut Vec<Names>) -> TemplateResult<()> {
    for stmt in stmts {
        match &mut stmt.kind {
            StmtKind::If(branches, otherwise) => {
                for (_, stmts) in branches {
                    inner(stmts, outer)?;
                }
                inner(otherwise, outer)?;
            }
            StmtKind::For(node) => {
                let mut bound = names(&node.target);
                bound.push("loop".into());
                enter(&mut node.body, &bound, outer)?;
                if let Some(otherwise) = &mut node.otherwise {
                    enter(otherwise, &[], outer)?;
                }
            }
            StmtKind::With(bindings, body) => {
                let bound: Vec<_> = bindings.iter().flat_map(|(target, _)| names(target)).collect();
                enter(body, &bound, outer)?;
            }
            StmtKind::Macro(node) | StmtKind::Call(node, _) => function(node, outer)?,
            StmtKind::SetBlock(_, _, body) | StmtKind::Filter(_, body) | StmtKind::Generation(body) => {
                enter(body, &[], outer)?;
            }
            StmtKind::Block { body, .. } => enter(body, &[], &mut Vec::new())?,
            _ => {}
        }
    }
    Ok(())
}

fn function(node: &mut Macro, outer: &mut Vec<Names>) -> TemplateResult<()> {
    let mut bound: Vec<Arc<str>> = node.params.iter().map(|(name, _)| name.clone()).collect();
    let mut used = Names::new();
    mentioned(&node.body.stmts, &mut used);
    let asks = |name: &str| used.contains(name) && !bound.iter().any(|known| **known == *name);
    (node.varargs, node.kwargs, node.caller) = (asks("varargs"), asks("kwargs"), asks("caller"));
    bound.extend(["varargs", "kwargs", "caller"].map(Arc::from));
    enter(&mut node.body, &bound, outer)
}

fn names(target: &AssignTarget) -> Vec<Arc<str>> {
    let mut found = Vec::new();
    target.names(&mut found);
    found.into_iter().map(Arc::from).collect()
}

/// All names that are read anywhere in `stmts`.
fn mentioned(stmts: &[Stmt], found: &mut Names) {
    fn expr(value: &Expr, found: &mut Names) {
        let mut seen = Seen::default();
        seen.expr(value);
        found.extend(seen.loads.into_keys());
    }
    for stmt in stmts {
        match &stmt.kind {
            StmtKind::Print(value) | StmtKind::Set(_, value) => expr(value, found),
            StmtKind::If(branches, otherwise) => {
                for (test, stmts) in branches {
                    expr(test, found);
                    mentioned(stmts, found);
                }
                mentioned(otherwise, found);
            }
            StmtKind::For(node) => {
                expr(&node.iter, found);
                node.test.iter().for_each(|test| expr(test, found));
                mentioned(&node.body.stmts, found);
                node.otherwise.iter().for_each(|body| mentioned(&body.stmts, found));
            }
            StmtKind::With(bindings, body) => {
                bindings.iter().for_each(|(_, value)| expr(value, found));
                mentioned(&body.stmts, found);
            }
            StmtKind::SetBlock(_, filter, body) => {
                filter.iter().for_each(|filter| expr(filter, found));
                mentioned(&body.stmts, found);
            }
            StmtKind::Macro(node) => {
                node.params
                    .iter()
                    .filter_map(|(_, default)| default.as_ref())
                    .for_each(|value| expr(value, found));
                mentioned(&node.body.stmts, found);
            }
            StmtKind::Call(node, value) => {
                expr(value, found);
                mentioned(&node.body.stmts, found);
            }
            StmtKind::Filter(value, body) => {
                expr(value, found);
                mentioned(&body.stmts, found);
            }
            StmtKind::Generation(body) => mentioned(&body.stmts, found),
            _ => {}
        }
    }
}
