//! Which of the caller's variables a template reads.
//!
//! A name is read from the caller where the template names it and no body around that place binds it: as a loop's target,
//! a parameter, or by a `{% set %}` that has run there in any case. A name that only some branches set is read behind
//! them, because the others leave it to the caller.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::ast::{AssignTarget, Body, Expr, ExprKind, Macro, Stmt, StmtKind};
use super::functions;

/// The names of a template that [`names::resolve`](super::names::resolve) has seen, without those of functions.
pub(super) fn variables(body: &Body) -> BTreeSet<Arc<str>> {
    let mut reads = Reads::default();
    reads.body(body, &[]);
    reads.found
}

#[derive(Default)]
struct Reads {
    found: BTreeSet<Arc<str>>,
    /// Names that have a value of the template's own here, in the order in which they got it.
    bound: Vec<Arc<str>>,
    /// How often each of them is in `bound`.
    counts: HashMap<Arc<str>, usize>,
}

impl Reads {
    fn bind(&mut self, name: &str) {
        let name: Arc<str> = name.into();
        *self.counts.entry(name.clone()).or_default() += 1;
        self.bound.push(name);
    }

    /// Forgets the names that were bound since there were `length` of them, and returns them.
    fn rewind(&mut self, length: usize) -> HashSet<Arc<str>> {
        let names = self.bound.split_off(length);
        for name in &names {
            if let Some(count) = self.counts.get_mut(name) {
                *count -= 1;
            }
        }
        names.into_iter().collect()
    }

    fn target(&mut self, target: &AssignTarget) {
        if let AssignTarget::Namespace(name, _) = target {
            self.name(name);
        }
        let mut names = Vec::new();
        target.names(&mut names);
        names.into_iter().for_each(|name| self.bind(name));
    }

    fn name(&mut self, name: &Arc<str>) {
        let own = matches!(&**name, "self" | "super") || functions::named(name).is_some();
        if !own && self.counts.get(name).is_none_or(|count| *count == 0) {
            self.found.insert(name.clone());
        }
    }

    fn expr(&mut self, expr: &Expr) {
        if let ExprKind::Name(name) = &expr.kind {
            self.name(name);
        }
        for child in expr.kind.children() {
            self.expr(child);
        }
    }

    /// A body with `names` of its own.
    fn body(&mut self, body: &Body, names: &[&str]) {
        let before = self.bound.len();
        body.unset.iter().for_each(|name| self.bind(name));
        names.iter().for_each(|name| self.bind(name));
        self.stmts(&body.stmts);
        self.rewind(before);
    }

    fn stmts(&mut self, stmts: &[Stmt]) {
        stmts.iter().for_each(|stmt| self.stmt(stmt));
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match &stmt.kind {
            StmtKind::Print(value) => self.expr(value),
            StmtKind::Set(target, value) => {
                self.expr(value);
                self.target(target);
            }
            StmtKind::SetBlock(target, filter, body) => {
                self.body(body, &[]);
                filter.iter().for_each(|filter| self.expr(filter));
                self.target(target);
            }
            StmtKind::If(branches, otherwise) => self.branches(branches, otherwise),
            StmtKind::For(node) => {
                self.expr(&node.iter);
                let mut names = vec!["loop"];
                node.target.names(&mut names);
                let before = self.bound.len();
                names.iter().for_each(|name| self.bind(name));
                node.test.iter().for_each(|test| self.expr(test));
                self.rewind(before);
                self.body(&node.body, &names);
                node.otherwise.iter().for_each(|body| self.body(body, &[]));
            }
            StmtKind::With(bindings, body) => {
                let mut names = Vec::new();
                for (target, value) in bindings {
                    self.expr(value);
                    target.names(&mut names);
                }
                self.body(body, &names);
            }
            StmtKind::Macro(node) => {
                self.function(node);
                self.bind(&node.name);
            }
            StmtKind::Call(node, call) => {
                self.expr(call);
                self.function(node);
            }
            StmtKind::Filter(filter, body) => {
                self.body(body, &[]);
                self.expr(filter);
            }
            StmtKind::Generation(body) => self.body(body, &[]),
            // A block sees the caller's variables, not those of the bodies around it.
            StmtKind::Block { body, .. } => {
                let outside = std::mem::take(&mut self.counts);
                self.body(body, &[]);
                self.counts = outside;
            }
            StmtKind::Text(_) | StmtKind::Break | StmtKind::Continue | StmtKind::Unsupported(_) => {}
        }
    }

    /// A name is bound behind the branches if each of them binds it.
    fn branches(&mut self, branches: &[(Expr, Vec<Stmt>)], otherwise: &[Stmt]) {
        let mut common: Option<HashSet<Arc<str>>> = None;
        let tests = branches.iter().map(|(test, stmts)| (Some(test), &stmts[..]));
        for (test, stmts) in tests.chain([(None, otherwise)]) {
            test.iter().for_each(|test| self.expr(test));
            let before = self.bound.len();
            self.stmts(stmts);
            let names = self.rewind(before);
            common = Some(match common {
                None => names,
                Some(common) => common.into_iter().filter(|name| names.contains(name)).collect(),
            });
        }
        common.iter().flatten().for_each(|name| self.bind(name));
    }

    fn function(&mut self, node: &Macro) {
        let mut names = vec!["varargs", "kwargs", "caller"];
        names.extend(node.params.iter().map(|(name, _)| &**name));
        let before = self.bound.len();
        names.iter().for_each(|name| self.bind(name));
        node.params.iter().filter_map(|(_, value)| value.as_ref()).for_each(|value| self.expr(value));
        self.rewind(before);
        self.body(&node.body, &names);
    }
}
