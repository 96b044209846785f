//! Tokens to statements.

use std::collections::HashSet;
use std::sync::Arc;

use super::ast::{Arguments, AssignTarget, Body, Expr, ExprKind, For, Macro, Stmt, StmtKind};
use super::lexer::{Token, tokens};
use super::limits::{MAX_MACROS, MAX_NAMED, MAX_NESTING, MAX_SOURCE_BYTES};
use super::names;
use super::problem::{Problem, TemplateResult};

/// Parses a whole template.
pub(super) fn parse(source: &str) -> TemplateResult<Body> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(Problem::limit(format!("its source is longer than {MAX_SOURCE_BYTES} bytes")));
    }
    let mut parser =
        Parser { tokens: tokens(source)?, at: 0, level: 0, loops: 0, macros: 0, blocks: HashSet::new() };
    let stmts = parser.stmts(&[])?;
    let mut body = Body { stmts, unset: Vec::new() };
    names::resolve(&mut body)?;
    Ok(body)
}

pub(super) struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
    /// Expressions and statements that are being parsed.
    pub(super) level: usize,
    /// Loops around the present statement, within one macro.
    loops: usize,
    /// Macros around the present statement.
    macros: usize,
    blocks: HashSet<Arc<str>>,
}

impl Parser {
    pub(super) fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    pub(super) fn look(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0
    }

    pub(super) fn line(&self) -> u32 {
        self.tokens[self.at].1
    }

    pub(super) fn next(&mut self) -> Token {
        let end = self.tokens.len() - 1;
        let token = if self.at == end {
            Token::End
        } else {
            std::mem::replace(&mut self.tokens[self.at].0, Token::End)
        };
        self.at = (self.at + 1).min(end);
        token
    }

    pub(super) fn fail<T>(&self, message: impl Into<String>) -> TemplateResult<T> {
        Err(Problem::syntax(message, self.line()))
    }

    pub(super) fn unexpected<T>(&self, wanted: &str) -> TemplateResult<T> {
        self.fail(format!("expected {wanted}, got {}", self.peek().describe()))
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if **found == *name)
    }

    pub(super) fn is_operator(&self, operator: &str) -> bool {
        matches!(self.peek(), Token::Operator(found) if *found == operator)
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn expect_operator(&mut self, operator: &str) -> TemplateResult<()> {
        if self.skip_operator(operator) { Ok(()) } else { self.unexpected(&format!("'{operator}'")) }
    }

    pub(super) fn expect_name(&mut self) -> TemplateResult<Arc<str>> {
        match self.peek() {
            Token::Name(name) => {
                let name = name.clone();
                self.next();
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    /// Runs `parse` one level deeper.
    pub(super) fn nested<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> TemplateResult<T>,
    ) -> TemplateResult<T> {
        if self.level >= MAX_NESTING {
            return Err(
                Problem::limit(format!("it nests more than {MAX_NESTING} levels deep")).on(self.line())
            );
        }
        self.level += 1;
        let parsed = parse(self);
        self.level -= 1;
        parsed
    }

    /// Statements up to a tag of one of `ends`, which becomes the present token; without `ends`, up to the end.
    fn stmts(&mut self, ends: &[&str]) -> TemplateResult<Vec<Stmt>> {
        let mut stmts = Vec::new();
        loop {
            let line = self.line();
            match self.next() {
                Token::Data(text) => stmts.push(Stmt { kind: StmtKind::Text(text), line }),
                Token::VariableBegin => {
                    let value = self.tuple(true, false, &[])?;
                    stmts.push(Stmt { kind: StmtKind::Print(value), line });
                    if *self.peek() != Token::VariableEnd {
                        return self.unexpected("the end of the print statement");
                    }
                    self.next();
                }
                Token::BlockBegin => {
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(stmts);
                    }
                    let line = self.line();
                    self.nested(|parser| parser.stmt(line, &mut stmts))?;
                    self.block_end()?;
                }
                _ if ends.is_empty() => return Ok(stmts),
                _ => {
                    return self.fail(format!(
                        "the template ends where {} was expected",
                        ends.iter().map(|end| format!("'{end}'")).collect::<Vec<_>>().join(" or ")
                    ));
                }
            }
        }
    }

    fn block_end(&mut self) -> TemplateResult<()> {
        if *self.peek() != Token::BlockEnd {
            return self.unexpected("the end of the statement block");
        }
        self.next();
        Ok(())
    }

    /// The rest of a tag, then statements up to one of `ends`.
    fn block(&mut self, ends: &[&str]) -> TemplateResult<Vec<Stmt>> {
        self.skip_operator(":");
        self.block_end()?;
        self.stmts(ends)
    }

    /// [`Self::block`] with names of its own, its one end tag taken.
    fn body(&mut self, end: &str) -> TemplateResult<Body> {
        let stmts = self.block(&[end])?;
        self.next();
        Ok(Body { stmts, unset: Vec::new() })
    }

    /// [`Self::body`] in a function of its own: no loop around it can be left from inside.
    fn function(&mut self, end: &str) -> TemplateResult<Body> {
        let loops = std::mem::take(&mut self.loops);
        let body = self.body(end);
        self.loops = loops;
        body
    }

    fn stmt(&mut self, line: u32, stmts: &mut Vec<Stmt>) -> TemplateResult<()> {
        let Token::Name(name) = self.peek() else { return self.unexpected("the name of a tag") };
        let name = name.clone();
        self.next();
        let kind = match &*name {
            "set" => self.set()?,
            "if" => self.conditions()?,
            "for" => self.for_loop()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.expect_name()?;
                StmtKind::Macro(Box::new(self.signature(name, "endmacro", None)?.0))
            }
            "call" => {
                let (node, call) = self.signature("caller".into(), "endcall", Some(()))?;
                let Some(call) = call else { return self.fail("expected call") };
                StmtKind::Call(Box::new(node), call)
            }
            "filter" => {
                let Some(filter) = self.filters(None, true)? else { return self.unexpected("a filter") };
                StmtKind::Filter(filter, self.body("endfilter")?)
            }
            "generation" => StmtKind::Generation(self.function("endgeneration")?),
            "print" => {
                let mut first = true;
                while *self.peek() != Token::BlockEnd {
                    if !first {
                        self.expect_operator(",")?;
                    }
                    first = false;
                    let value = self.expression()?;
                    stmts.push(Stmt { kind: StmtKind::Print(value), line });
                }
                return Ok(());
            }
            "break" | "continue" if self.loops == 0 => return self.fail(format!("'{name}' outside a loop")),
            "break" => StmtKind::Break,
            "continue" => StmtKind::Continue,
            "block" => self.named_block()?,
            "include" | "import" | "from" | "extends" => {
                while !matches!(self.peek(), Token::BlockEnd | Token::End) {
                    self.next();
                }
                StmtKind::Unsupported(match &*name {
                    "include" => "{% include %}",
                    "import" => "{% import %}",
                    "from" => "{% from %}",
                    _ => "{% extends %}",
                })
            }
            "autoescape" => {
                self.expression()?;
                self.body("endautoescape")?;
                StmtKind::Unsupported("{% autoescape %}")
            }
            other => return Err(Problem::syntax(format!("encountered unknown tag '{other}'"), line)),
        };
        stmts.push(Stmt { kind, line });
        Ok(())
    }

    fn set(&mut self) -> TemplateResult<StmtKind> {
        let target = self.target(true, &[])?;
        if self.skip_operator("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, false, &[])?));
        }
        let filter = self.filters(None, false)?;
        Ok(StmtKind::SetBlock(target, filter, self.body("endset")?))
    }

    fn conditions(&mut self) -> TemplateResult<StmtKind> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, false, &[])?;
            branches.push((test, self.block(&["elif", "else", "endif"])?));
            let Token::Name(end) = self.next() else { return self.unexpected("'endif'") };
            match &*end {
                "elif" => {}
                "else" => {
                    let otherwise = self.block(&["endif"])?;
                    self.next();
                    return Ok(StmtKind::If(branches, otherwise));
                }
                _ => return Ok(StmtKind::If(branches, Vec::new())),
            }
        }
    }

    fn for_loop(&mut self) -> TemplateResult<StmtKind> {
        let target = self.target(false, &["in"])?;
        if !self.skip_name("in") {
            return self.unexpected("'in'");
        }
        let iter = self.tuple(false, false, &["recursive"])?;
        let test = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.loops += 1;
        let stmts = self.block(&["endfor", "else"]);
        self.loops -= 1;
        let body = Body { stmts: stmts?, unset: Vec::new() };
        let otherwise = match self.next() {
            Token::Name(end) if &*end == "else" => Some(self.body("endfor")?),
            _ => None,
        };
        Ok(StmtKind::For(Box::new(For { target, iter, test, recursive, body, otherwise })))
    }

    fn with(&mut self) -> TemplateResult<StmtKind> {
        let mut bindings = Vec::new();
        while !matches!(self.peek(), Token::BlockEnd | Token::End) {
            if !bindings.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target(false, &[])?;
            self.expect_operator("=")?;
            bindings.push((target, self.expression()?));
        }
        Ok(StmtKind::With(bindings, self.body("endwith")?))
    }

    fn named_block(&mut self) -> TemplateResult<StmtKind> {
        let name = self.expect_name()?;
        if !self.blocks.insert(name.clone()) {
            return self.fail(format!("block '{name}' defined twice"));
        }
        let scoped = self.skip_name("scoped");
        if self.is_name("required") {
            return Err(Problem::unsupported("{% block … required %}").on(self.line()));
        }
        let body = self.function("endblock")?;
        self.skip_name(&name);
        Ok(StmtKind::Block { name, scoped, body })
    }

    /// The parameters of a macro or call block, the called expression of the latter, and the body.
    fn signature(
        &mut self,
        name: Arc<str>,
        end: &str,
        call: Option<()>,
    ) -> TemplateResult<(Macro, Option<Expr>)> {
        let mut params: Vec<(Arc<str>, Option<Expr>)> = Vec::new();
        if call.is_none() || self.is_operator("(") {
            self.expect_operator("(")?;
            while !self.is_operator(")") {
                if !params.is_empty() {
                    self.expect_operator(",")?;
                }
                let param = self.assignable()?;
                if params.iter().any(|(known, _)| *known == param) {
                    return self.fail(format!("duplicate argument '{param}'"));
                }
                let default = if self.skip_operator("=") { Some(self.expression()?) } else { None };
                if default.is_none() && params.iter().any(|(_, default)| default.is_some()) {
                    return self.fail("non-default argument follows default argument");
                }
                params.push((param, default));
                self.few(params.len())?;
            }
            self.next();
        }
        let called = match call {
            None => None,
            Some(()) => {
                let called = self.expression()?;
                if !matches!(called.kind, ExprKind::Call(..)) {
                    return self.fail("expected call");
                }
                Some(called)
            }
        };
        if self.macros >= MAX_MACROS {
            let reason = format!("it nests macros more than {MAX_MACROS} levels deep");
            return Err(Problem::limit(reason).on(self.line()));
        }
        self.macros += 1;
        let body = self.function(end)?;
        self.macros -= 1;
        let node = Macro { name, params, body, varargs: false, kwargs: false, caller: false };
        Ok((node, called))
    }

    fn few(&self, named: usize) -> TemplateResult<()> {
        if named > MAX_NAMED {
            let reason = format!("it names more than {MAX_NAMED} arguments of one call");
            return Err(Problem::limit(reason).on(self.line()));
        }
        Ok(())
    }

    /// A name that may be given a value.
    fn assignable(&mut self) -> TemplateResult<Arc<str>> {
        let line = self.line();
        let name = self.expect_name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return Err(Problem::syntax(format!("can't assign to '{name}'"), line));
        }
        Ok(name)
    }

    /// What is assigned to: names, tuples of them and, with `namespace`, `namespace.attribute`.
    fn target(&mut self, namespace: bool, ends: &[&str]) -> TemplateResult<AssignTarget> {
        let mut targets = Vec::new();
        let mut tuple = false;
        loop {
            if !targets.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_tuple_end(ends) {
                break;
            }
            targets.push(self.nested(|parser| parser.one_target(namespace))?);
            if !self.is_operator(",") {
                break;
            }
            tuple = true;
        }
        match targets.pop() {
            Some(one) if !tuple => Ok(one),
            Some(last) => {
                targets.push(last);
                Ok(AssignTarget::Tuple(targets))
            }
            None => self.unexpected("a name to assign to"),
        }
    }

    fn one_target(&mut self, namespace: bool) -> TemplateResult<AssignTarget> {
        if self.skip_operator("(") {
            let target = self.target(false, &[])?;
            self.expect_operator(")")?;
            return Ok(target);
        }
        if !matches!(self.peek(), Token::Name(_)) {
            return self.fail(format!("can't assign to {}", self.peek().describe()));
        }
        let name = self.assignable()?;
        if namespace && self.skip_operator(".") {
            return Ok(AssignTarget::Namespace(name, self.expect_name()?));
        }
        Ok(AssignTarget::Name(name))
    }

    pub(super) fn is_tuple_end(&self, ends: &[&str]) -> bool {
        matches!(self.peek(), Token::VariableEnd | Token::BlockEnd | Token::End)
            || self.is_operator(")")
            || ends.iter().any(|end| self.is_name(end))
    }

    /// The arguments between parentheses.
    pub(super) fn arguments(&mut self) -> TemplateResult<Arguments> {
        let mut arguments = Arguments::default();
        self.expect_operator("(")?;
        let mut first = true;
        while !self.is_operator(")") {
            if !first {
                self.expect_operator(",")?;
                if self.is_operator(")") {
                    break;
                }
            }
            first = false;
            let (rest, named_rest) = (arguments.rest.is_some(), arguments.named_rest.is_some());
            let keyword = matches!(self.peek(), Token::Name(_)) && *self.look() == Token::Operator("=");
            let fits = if self.is_operator("*") {
                !rest && !named_rest
            } else if self.is_operator("**") || keyword {
                !named_rest
            } else {
                !rest && !named_rest && arguments.named.is_empty()
            };
            if !fits {
                return self.fail("invalid syntax for function call expression");
            }
            if self.skip_operator("*") {
                arguments.rest = Some(Box::new(self.expression()?));
            } else if self.skip_operator("**") {
                arguments.named_rest = Some(Box::new(self.expression()?));
            } else if keyword {
                let name = self.expect_name()?;
                self.next();
                if arguments.named.iter().any(|(known, _)| *known == name) {
                    return self.fail(format!("keyword argument repeated: {name}"));
                }
                arguments.named.push((name, self.expression()?));
                self.few(arguments.named.len())?;
            } else {
                arguments.positional.push(self.expression()?);
            }
        }
        self.next();
        Ok(arguments)
    }
}

impl Token {
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Data(_) => "text".into(),
            Self::VariableBegin => "the begin of a print statement".into(),
            Self::VariableEnd => "the end of the print statement".into(),
            Self::BlockBegin => "the begin of a statement block".into(),
            Self::BlockEnd => "the end of the statement block".into(),
            Self::Name(name) => format!("'{name}'"),
            Self::Text(text) => format!("the string {text:?}"),
            Self::Int(value) => format!("{value}"),
            Self::Float(value) => format!("{value:?}"),
            Self::Operator(operator) => format!("'{operator}'"),
            Self::End => "the end of the template".into(),
        }
    }
}
