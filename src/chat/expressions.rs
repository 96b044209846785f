//! Tokens to expressions.

use std::sync::Arc;

use super::ast::{Arguments, Binary, Comparison, Expr, ExprKind};
use super::lexer::Token;
use super::limits::MAX_NESTING;
use super::parser::Parser;
use super::problem::{Problem, TemplateResult};
use super::value::Value;

impl Parser {
    fn make(&self, kind: ExprKind, line: u32) -> TemplateResult<Expr> {
        let height = 1 + kind.children().iter().map(|child| child.height).max().unwrap_or(0);
        if height > MAX_NESTING {
            return Err(Problem::limit(format!("it nests more than {MAX_NESTING} levels deep")).on(line));
        }
        Ok(Expr { kind, line, height })
    }

    pub(super) fn expression(&mut self) -> TemplateResult<Expr> {
        self.nested(Self::condition)
    }

    fn condition(&mut self) -> TemplateResult<Expr> {
        let mut line = self.line();
        let mut value = self.or()?;
        while self.skip_name("if") {
            let test = Box::new(self.or()?);
            let otherwise = if self.skip_name("else") { Some(Box::new(self.expression()?)) } else { None };
            value = self.make(ExprKind::Condition { test, then: Box::new(value), otherwise }, line)?;
            line = self.line();
        }
        Ok(value)
    }

    fn or(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let mut left = self.and()?;
        while self.skip_name("or") {
            let right = Box::new(self.and()?);
            left = self.make(ExprKind::Or(Box::new(left), right), line)?;
        }
        Ok(left)
    }

    fn and(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let mut left = self.not()?;
        while self.skip_name("and") {
            let right = Box::new(self.not()?);
            left = self.make(ExprKind::And(Box::new(left), right), line)?;
        }
        Ok(left)
    }

    fn not(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        if self.skip_name("not") {
            let value = self.nested(Self::not)?;
            return self.make(ExprKind::Not(Box::new(value)), line);
        }
        self.compare()
    }

    fn compare(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let comparison = match self.peek() {
                Token::Operator("==") => Comparison::Equal,
                Token::Operator("!=") => Comparison::NotEqual,
                Token::Operator("<") => Comparison::Less,
                Token::Operator("<=") => Comparison::LessEqual,
                Token::Operator(">") => Comparison::Greater,
                Token::Operator(">=") => Comparison::GreaterEqual,
                Token::Name(name) if &**name == "in" => Comparison::In,
                Token::Name(name)
                    if &**name == "not" && matches!(self.look(), Token::Name(next) if &**next == "in") =>
                {
                    self.next();
                    Comparison::NotIn
                }
                _ => break,
            };
            self.next();
            rest.push((comparison, self.sum()?));
        }
        if rest.is_empty() { Ok(first) } else { self.make(ExprKind::Compare(Box::new(first), rest), line) }
    }

    fn sum(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let mut left = self.concat()?;
        loop {
            let operator = match self.peek() {
                Token::Operator("+") => Binary::Add,
                Token::Operator("-") => Binary::Sub,
                _ => return Ok(left),
            };
            self.next();
            let right = Box::new(self.concat()?);
            left = self.make(ExprKind::Binary(operator, Box::new(left), right), line)?;
        }
    }

    fn concat(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_operator("~") {
            parts.push(self.product()?);
        }
        self.make(ExprKind::Concat(parts), line)
    }

    fn product(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let mut left = self.power()?;
        loop {
            let operator = match self.peek() {
                Token::Operator("*") => Binary::Mul,
                Token::Operator("/") => Binary::Div,
                Token::Operator("//") => Binary::FloorDiv,
                Token::Operator("%") => Binary::Mod,
                _ => return Ok(left),
            };
            self.next();
            let right = Box::new(self.power()?);
            left = self.make(ExprKind::Binary(operator, Box::new(left), right), line)?;
        }
    }

    fn power(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let mut left = self.unary(true)?;
        while self.skip_operator("**") {
            let right = Box::new(self.unary(true)?);
            left = self.make(ExprKind::Binary(Binary::Pow, Box::new(left), right), line)?;
        }
        Ok(left)
    }

    fn unary(&mut self, filters: bool) -> TemplateResult<Expr> {
        let line = self.line();
        let value = if self.skip_operator("-") {
            let value = Box::new(self.nested(|parser| parser.unary(false))?);
            self.make(ExprKind::Negative(value), line)?
        } else if self.skip_operator("+") {
            let value = Box::new(self.nested(|parser| parser.unary(false))?);
            self.make(ExprKind::Positive(value), line)?
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if filters { self.filters_and_tests(value) } else { Ok(value) }
    }

    fn primary(&mut self) -> TemplateResult<Expr> {
        let line = self.line();
        let kind = match self.peek() {
            Token::Name(_) => {
                let name = self.expect_name()?;
                match &*name {
                    "true" | "True" => ExprKind::Const(Value::Bool(true)),
                    "false" | "False" => ExprKind::Const(Value::Bool(false)),
                    "none" | "None" => ExprKind::Const(Value::None),
                    _ => ExprKind::Name(name),
                }
            }
            Token::Text(_) => {
                let mut text = String::new();
                while let Token::Text(part) = self.peek() {
                    text.push_str(part);
                    self.next();
                }
                ExprKind::Const(Value::text(text))
            }
            Token::Int(value) => {
                let value = *value;
                self.next();
                ExprKind::Const(Value::Int(value))
            }
            Token::Float(value) => {
                let value = *value;
                self.next();
                ExprKind::Const(Value::Float(value))
            }
            Token::Operator("(") => {
                self.next();
                let value = self.tuple(true, true, &[])?;
                self.expect_operator(")")?;
                return Ok(value);
            }
            Token::Operator("[") => {
                self.next();
                let mut items = Vec::new();
                while !self.is_operator("]") {
                    if !items.is_empty() {
                        self.expect_operator(",")?;
                        if self.is_operator("]") {
                            break;
                        }
                    }
                    items.push(self.expression()?);
                }
                self.next();
                ExprKind::List(items)
            }
            Token::Operator("{") => {
                self.next();
                let mut pairs = Vec::new();
                while !self.is_operator("}") {
                    if !pairs.is_empty() {
                        self.expect_operator(",")?;
                        if self.is_operator("}") {
                            break;
                        }
                    }
                    let key = self.expression()?;
                    self.expect_operator(":")?;
                    pairs.push((key, self.expression()?));
                }
                self.next();
                ExprKind::Dict(pairs)
            }
            token => return self.fail(format!("unexpected {}", token.describe())),
        };
        self.make(kind, line)
    }

    /// An expression, or several with commas between them; inside parentheses also none.
    pub(super) fn tuple(
        &mut self,
        condition: bool,
        parentheses: bool,
        ends: &[&str],
    ) -> TemplateResult<Expr> {
        let line = self.line();
        let mut items = Vec::new();
        let mut tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_tuple_end(ends) {
                break;
            }
            items.push(if condition { self.expression()? } else { self.nested(Self::or)? });
            if !self.is_operator(",") {
                break;
            }
            tuple = true;
        }
        if !tuple {
            if let Some(one) = items.pop() {
                return Ok(one);
            }
            if !parentheses {
                return self.unexpected("an expression");
            }
        }
        self.make(ExprKind::Tuple(items), line)
    }

    fn postfix(&mut self, mut value: Expr) -> TemplateResult<Expr> {
        loop {
            let line = self.line();
            let kind = match self.peek() {
                Token::Operator(".") => {
                    self.next();
                    match self.peek() {
                        Token::Name(_) => ExprKind::Attribute(Box::new(value), self.expect_name()?),
                        Token::Int(index) => {
                            let index = *index;
                            self.next();
                            let index = self.make(ExprKind::Const(Value::Int(index)), line)?;
                            ExprKind::Item(Box::new(value), Box::new(index))
                        }
                        _ => return self.unexpected("a name or number"),
                    }
                }
                Token::Operator("[") => self.subscript(value)?,
                Token::Operator("(") => ExprKind::Call(Box::new(value), self.arguments()?),
                _ => return Ok(value),
            };
            value = self.make(kind, line)?;
        }
    }

    fn subscript(&mut self, value: Expr) -> TemplateResult<ExprKind> {
        let line = self.line();
        self.next();
        let mut items: Vec<TemplateResult<Expr, Box<[Option<Expr>; 3]>>> = Vec::new();
        while !self.is_operator("]") {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            items.push(self.subscribed()?);
        }
        self.next();
        if items.len() != 1 {
            let items: TemplateResult<Vec<Expr>, _> = items.into_iter().collect();
            let Ok(items) = items else {
                return Err(Problem::unsupported("several slices in one subscript").on(line));
            };
            let key = self.make(ExprKind::Tuple(items), line)?;
            return Ok(ExprKind::Item(Box::new(value), Box::new(key)));
        }
        Ok(match items.remove(0) {
            Ok(key) => ExprKind::Item(Box::new(value), Box::new(key)),
            Err(slice) => ExprKind::Slice(Box::new(value), slice),
        })
    }

    fn subscribed(&mut self) -> TemplateResult<TemplateResult<Expr, Box<[Option<Expr>; 3]>>> {
        let mut parts = [None, None, None];
        if !self.is_operator(":") {
            let value = self.expression()?;
            if !self.is_operator(":") {
                return Ok(Ok(value));
            }
            parts[0] = Some(value);
        }
        self.next();
        let ends = |parser: &Self| parser.is_operator("]") || parser.is_operator(",");
        if !self.is_operator(":") && !ends(self) {
            parts[1] = Some(self.expression()?);
        }
        if self.skip_operator(":") && !ends(self) {
            parts[2] = Some(self.expression()?);
        }
        Ok(Err(Box::new(parts)))
    }

    fn filters_and_tests(&mut self, mut value: Expr) -> TemplateResult<Expr> {
        loop {
            let line = self.line();
            if self.is_operator("|") {
                match self.filters(Some(value), false)? {
                    Some(filtered) => value = filtered,
                    None => return self.unexpected("a filter"),
                }
            } else if self.skip_name("is") {
                value = self.test(value, line)?;
            } else if self.is_operator("(") {
                let arguments = self.arguments()?;
                value = self.make(ExprKind::Call(Box::new(value), arguments), line)?;
            } else {
                return Ok(value);
            }
        }
    }

    /// `a.b.c`, the name of a filter or test.
    fn dotted(&mut self) -> TemplateResult<Arc<str>> {
        let mut name = self.expect_name()?;
        while self.skip_operator(".") {
            name = format!("{name}.{}", self.expect_name()?).into();
        }
        Ok(name)
    }

    /// Filters on `value`; `inline`: the first comes without its `|`.
    pub(super) fn filters(
        &mut self,
        mut value: Option<Expr>,
        mut inline: bool,
    ) -> TemplateResult<Option<Expr>> {
        while inline || self.is_operator("|") {
            if !inline {
                self.next();
            }
            inline = false;
            let line = self.line();
            let name = self.dotted()?;
            let arguments = if self.is_operator("(") { self.arguments()? } else { Arguments::default() };
            value = Some(self.make(ExprKind::Filter(value.map(Box::new), name, arguments), line)?);
        }
        Ok(value)
    }

    fn test(&mut self, value: Expr, line: u32) -> TemplateResult<Expr> {
        let negated = self.skip_name("not");
        let name = self.dotted()?;
        let takes_argument = match self.peek() {
            Token::Name(word) => !matches!(&**word, "else" | "or" | "and"),
            Token::Text(_) | Token::Int(_) | Token::Float(_) | Token::Operator("[" | "{") => true,
            _ => false,
        };
        let arguments = if self.is_operator("(") {
            self.arguments()?
        } else if takes_argument {
            if self.is_name("is") {
                return self.fail("You cannot chain multiple tests with is");
            }
            let argument = self.primary()?;
            let argument = self.nested(|parser| parser.postfix(argument))?;
            Arguments { positional: vec![argument], ..Arguments::default() }
        } else {
            Arguments::default()
        };
        let test = self.make(ExprKind::Test(Box::new(value), name, arguments), line)?;
        if negated { self.make(ExprKind::Not(Box::new(test)), line) } else { Ok(test) }
    }
}
