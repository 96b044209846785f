//! The syntax tree of a template.

use std::sync::Arc;

use super::value::Value;

/// An expression.
#[derive(Debug)]
pub(super) struct Expr {
    pub(super) kind: ExprKind,
    pub(super) line: u32,
    /// Levels of expressions in it, itself included.
    pub(super) height: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
}

#[derive(Debug)]
pub(super) enum ExprKind {
    Const(Value),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    Condition {
        test: Box<Expr>,
        then: Box<Expr>,
        otherwise: Option<Box<Expr>>,
    },
    Attribute(Box<Expr>, Arc<str>),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Arguments),
    /// Without a subject: inside `{% filter %}` and `{% set x | … %}`, where it is the captured text.
    Filter(Option<Box<Expr>>, Arc<str>, Arguments),
    Test(Box<Expr>, Arc<str>, Arguments),
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(Arc<str>, Expr)>,
    pub(super) rest: Option<Box<Expr>>,
    pub(super) named_rest: Option<Box<Expr>>,
}

impl Arguments {
    pub(super) fn each(&self) -> impl Iterator<Item = &Expr> {
        let named = self.named.iter().map(|(_, value)| value);
        self.positional.iter().chain(named).chain(self.rest.as_deref()).chain(self.named_rest.as_deref())
    }
}

impl ExprKind {
    /// The expressions directly in this one.
    pub(super) fn children(&self) -> Vec<&Expr> {
        match self {
            Self::Const(_) | Self::Name(_) => Vec::new(),
            Self::List(items) | Self::Tuple(items) | Self::Concat(items) => items.iter().collect(),
            Self::Dict(pairs) => pairs.iter().flat_map(|(key, value)| [key, value]).collect(),
            Self::Not(one) | Self::Negative(one) | Self::Positive(one) | Self::Attribute(one, _) => vec![one],
            Self::And(a, b) | Self::Or(a, b) | Self::Binary(_, a, b) | Self::Item(a, b) => vec![a, b],
            Self::Compare(first, rest) => {
                std::iter::once(&**first).chain(rest.iter().map(|(_, e)| e)).collect()
            }
            Self::Condition { test, then, otherwise } => {
                [&**test, &**then].into_iter().chain(otherwise.as_deref()).collect()
            }
            Self::Slice(of, parts) => std::iter::once(&**of).chain(parts.iter().flatten()).collect(),
            Self::Call(of, arguments) | Self::Test(of, _, arguments) => {
                std::iter::once(&**of).chain(arguments.each()).collect()
            }
            Self::Filter(of, _, arguments) => of.as_deref().into_iter().chain(arguments.each()).collect(),
        }
    }
}

/// What a value is assigned to.
#[derive(Debug)]
pub(super) enum AssignTarget {
    Name(Arc<str>),
    Tuple(Vec<AssignTarget>),
    Namespace(Arc<str>, Arc<str>),
}

impl AssignTarget {
    /// The names that it binds.
    pub(super) fn names<'t>(&'t self, found: &mut Vec<&'t str>) {
        match self {
            Self::Name(name) => found.push(name),
            Self::Tuple(targets) => targets.iter().for_each(|target| target.names(found)),
            Self::Namespace(..) => {}
        }
    }
}

/// A statement.
#[derive(Debug)]
pub(super) struct Stmt {
    pub(super) kind: StmtKind,
    pub(super) line: u32,
}

/// Statements with names of their own.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) stmts: Vec<Stmt>,
    /// Names that have no value until a statement of this body gives them one, whatever they are outside.
    pub(super) unset: Vec<Arc<str>>,
}

impl Body {
    /// No statements.
    pub(super) const NONE: &'static Self = &Self { stmts: Vec::new(), unset: Vec::new() };
}

#[derive(Debug)]
pub(super) enum StmtKind {
    Text(String),
    Print(Expr),
    Set(AssignTarget, Expr),
    SetBlock(AssignTarget, Option<Expr>, Body),
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    For(Box<For>),
    With(Vec<(AssignTarget, Expr)>, Body),
    Macro(Box<Macro>),
    Call(Box<Macro>, Expr),
    Filter(Expr, Body),
    /// `{% generation %}`: the assistant's part of a training text. It prints what it holds.
    Generation(Body),
    Block {
        name: Arc<str>,
        scoped: bool,
        body: Body,
    },
    Break,
    Continue,
    /// A statement that fails when it runs.
    Unsupported(&'static str),
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: AssignTarget,
    pub(super) iter: Expr,
    pub(super) test: Option<Expr>,
    pub(super) recursive: bool,
    pub(super) body: Body,
    pub(super) otherwise: Option<Body>,
}

#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: Arc<str>,
    pub(super) params: Vec<(Arc<str>, Option<Expr>)>,
    pub(super) body: Body,
    pub(super) varargs: bool,
    pub(super) kwargs: bool,
    pub(super) caller: bool,
}
