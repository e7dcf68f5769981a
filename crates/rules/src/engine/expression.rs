//! Expressions: CEL (<https://cel.dev>), read by the `cel` crate and evaluated here, because what an expression gives must
//! be the same on every machine, and what it costs must have an end: values are borrowed and kept in one order, every
//! step takes fuel, and nothing comes from outside.
//!
//! What differs from CEL: integers and other numbers can be calculated with each other (the result is a double), because
//! a device writes 21 today and 21.5 tomorrow; there are no unsigned integers, timestamps, durations and types; a pattern
//! is a literal, and is compiled with the expression.

mod evaluation;
mod functions;

use std::collections::BTreeMap;

use cel::common::ast::{CallExpr, EntryExpr, Expr, LiteralValue, operators as op};
use cel::parser::{Expression as Parsed, Parser};
use regex::Regex;

pub(crate) use evaluation::{Fuel, Scope, Value};
use functions::Function;

use super::pattern::{Patterns, with_ascii_classes};
use crate::error::RulesError;
use crate::limits::{EXPRESSION_BYTES_MAX, EXPRESSION_DEPTH_MAX, PATTERN_CACHE_BYTES};

/// Names that an expression can use.
pub(crate) const VARIABLES: [&str; 7] = ["message", "last", "device", "time", "data", "version", "nonce"];

/// Why a message's expression gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// It took too long.
    #[error("an expression took more fuel than it has")]
    Fuel,
    /// There is no such member.
    #[error("there is no {0:?}")]
    Missing(String),
    /// The operation does not exist for these values.
    #[error("{0} is not for these values")]
    Types(&'static str),
    /// The result does not fit 64 bits, or is not finite, or is divided by zero.
    #[error("{0} has no result that fits")]
    Range(&'static str),
    /// The result is not what is wanted.
    #[error("it gives no {0}")]
    Wanted(&'static str),
}

/// An operator of two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    Index,
}

/// A node of an expression, with names resolved.
#[derive(Debug)]
enum Node {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// A name given by the rules' host.
    Variable(usize),
    /// A name that a macro binds, counted from the outermost.
    Bound(usize),
    Member(Box<Node>, String),
    Has(Box<Node>, String),
    List(Vec<Node>),
    Object(Vec<(Node, Node)>),
    Not(Box<Node>),
    Negate(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Choose(Box<[Node; 3]>),
    Operate(Binary, Box<[Node; 2]>),
    Call(Function, Vec<Node>),
    Matches(Box<Node>, Regex),
    /// What macros over lists and objects become.
    Fold(Box<Fold>),
    /// An error in it counts as true: macros use it to go on past errors.
    NotStrictlyFalse(Box<Node>),
}

/// Goes through a list or the names of an object, in order.
#[derive(Debug)]
struct Fold {
    range: Node,
    start: Node,
    go_on: Node,
    step: Node,
    result: Node,
}

/// An expression that can be evaluated.
#[derive(Debug)]
pub(crate) struct Expression {
    root: Node,
    /// Whether it looks at the device's last accepted message.
    pub uses_last: bool,
    /// Whether it looks at the time of the message's batch.
    pub uses_time: bool,
}

impl Expression {
    /// Reads an expression; `place` says where it stands. It may have so many `patterns`, and leaves the rest.
    pub fn compile(place: &str, text: &str, patterns: &mut Patterns) -> Result<Self, RulesError> {
        let wrong = |error: String| RulesError::Expression {
            place: place.to_owned(),
            error,
            expression: text.chars().take(80).collect(),
        };
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err(wrong(format!("it is longer than {EXPRESSION_BYTES_MAX} bytes")));
        }
        // Before the parser, which calls itself for each of them.
        let mut depth = 0_usize;
        for byte in text.bytes() {
            match byte {
                b'(' | b'[' | b'{' | b'?' | b'!' | b'-' => depth += 1,
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > EXPRESSION_DEPTH_MAX {
                return Err(wrong(format!("it has more than {EXPRESSION_DEPTH_MAX} levels")));
            }
        }
        let depth_max = u16::try_from(EXPRESSION_DEPTH_MAX).unwrap_or(u16::MAX);
        let parser = Parser::new().max_recursion_depth(depth_max).error_recovery_limit(1);
        let parsed = parser.parse(text).map_err(|errors| {
            let first = errors.errors.first().map(|error| error.msg.clone());
            wrong(first.unwrap_or_else(|| "it cannot be read".into()))
        })?;
        let mut compiler = Compiler { bound: Vec::new(), uses_last: false, uses_time: false, patterns };
        let root = compiler.node(&parsed, 0).map_err(wrong)?;
        Ok(Self { root, uses_last: compiler.uses_last, uses_time: compiler.uses_time })
    }

    /// The value for one message.
    pub fn evaluate<'a>(&'a self, scope: &Scope<'a>, fuel: &mut Fuel) -> Result<Value<'a>, ExpressionError> {
        evaluation::evaluate(&self.root, scope, &mut Vec::new(), fuel)
    }

    /// Whether it holds.
    pub fn holds(&self, scope: &Scope<'_>, fuel: &mut Fuel) -> Result<bool, ExpressionError> {
        match self.evaluate(scope, fuel)? {
            Value::Bool(value) => Ok(value),
            _ => Err(ExpressionError::Wanted("true or false")),
        }
    }
}

struct Compiler<'a> {
    bound: Vec<String>,
    uses_last: bool,
    uses_time: bool,
    /// Patterns that are left.
    patterns: &'a mut Patterns,
}

/// Levels of an expression after macros became what they stand for.
const NODE_DEPTH_MAX: usize = 4 * EXPRESSION_DEPTH_MAX;

impl Compiler<'_> {
    fn node(&mut self, parsed: &Parsed, depth: usize) -> Result<Node, String> {
        if depth > NODE_DEPTH_MAX {
            return Err(format!("it has more than {NODE_DEPTH_MAX} levels"));
        }
        let depth = depth + 1;
        Ok(match &parsed.expr {
            Expr::Literal(literal) => constant(literal)?,
            Expr::Ident(name) => self.name(name)?,
            Expr::Select(select) => {
                let of = Box::new(self.node(&select.operand, depth)?);
                if select.test { Node::Has(of, select.field.clone()) } else { Node::Member(of, select.field.clone()) }
            }
            Expr::List(list) if list.optional_indices.is_empty() => {
                Node::List(list.elements.iter().map(|element| self.node(element, depth)).collect::<Result<_, _>>()?)
            }
            Expr::Map(map) => {
                let entry = |entry: &cel::common::ast::IdedEntryExpr| match &entry.expr {
                    EntryExpr::MapEntry(entry) => Ok((self.node(&entry.key, depth)?, self.node(&entry.value, depth)?)),
                    EntryExpr::StructField(_) => Err("there are no types".to_owned()),
                };
                Node::Object(map.entries.iter().map(entry).collect::<Result<_, _>>()?)
            }
            Expr::Call(call) => self.call(call, depth)?,
            Expr::Comprehension(fold) => {
                if fold.iter_var2.is_some() {
                    return Err("macros with two variables are not supported".into());
                }
                let (range, start) = (self.node(&fold.iter_range, depth)?, self.node(&fold.accu_init, depth)?);
                let outer = self.bound.len();
                self.bound.extend([fold.accu_var.clone(), fold.iter_var.clone()]);
                let (go_on, step) = (self.node(&fold.loop_cond, depth)?, self.node(&fold.loop_step, depth)?);
                self.bound.truncate(outer + 1);
                let result = self.node(&fold.result, depth)?;
                self.bound.truncate(outer);
                Node::Fold(Box::new(Fold { range, start, go_on, step, result }))
            }
            Expr::List(_) | Expr::Struct(_) | Expr::Unspecified => return Err("this is not supported".into()),
        })
    }

    fn name(&mut self, name: &str) -> Result<Node, String> {
        if let Some(place) = self.bound.iter().rposition(|bound| bound == name) {
            return Ok(Node::Bound(place));
        }
        self.uses_last |= name == "last";
        self.uses_time |= name == "time";
        let found = VARIABLES.iter().position(|known| *known == name);
        found.map(Node::Variable).ok_or_else(|| format!("there is no {name}; there are {}", VARIABLES.join(", ")))
    }

    fn call(&mut self, call: &CallExpr, depth: usize) -> Result<Node, String> {
        let mut nodes = Vec::with_capacity(call.args.len() + 1);
        for argument in call.target.as_deref().into_iter().chain(&call.args) {
            nodes.push(self.node(argument, depth)?);
        }
        let name = call.func_name.as_str();
        let binary = match name {
            op::ADD => Some(Binary::Add),
            op::SUBSTRACT => Some(Binary::Subtract),
            op::MULTIPLY => Some(Binary::Multiply),
            op::DIVIDE => Some(Binary::Divide),
            op::MODULO => Some(Binary::Modulo),
            op::EQUALS => Some(Binary::Equal),
            op::NOT_EQUALS => Some(Binary::NotEqual),
            op::LESS => Some(Binary::Less),
            op::LESS_EQUALS => Some(Binary::LessEqual),
            op::GREATER => Some(Binary::Greater),
            op::GREATER_EQUALS => Some(Binary::GreaterEqual),
            op::IN => Some(Binary::In),
            op::INDEX => Some(Binary::Index),
            _ => None,
        };
        let count = nodes.len();
        let mut nodes = nodes.into_iter();
        let mut next = || nodes.next().map(Box::new).ok_or_else(|| format!("{name} lacks a value"));
        Ok(match (name, count) {
            (op::LOGICAL_NOT, 1) => Node::Not(next()?),
            (op::NEGATE, 1) => Node::Negate(next()?),
            (op::NOT_STRICTLY_FALSE, 1) => Node::NotStrictlyFalse(next()?),
            (op::LOGICAL_AND, 2) => Node::And(next()?, next()?),
            (op::LOGICAL_OR, 2) => Node::Or(next()?, next()?),
            (op::CONDITIONAL, 3) => Node::Choose(Box::new([*next()?, *next()?, *next()?])),
            ("matches", 2) => {
                let text = next()?;
                let Node::Text(literal) = *next()? else { return Err("the pattern of matches is a literal".into()) };
                let literal = with_ascii_classes(&literal);
                self.patterns.take(&literal)?;
                let mut builder = regex::RegexBuilder::new(&literal);
                let built = builder.size_limit(PATTERN_CACHE_BYTES).dfa_size_limit(PATTERN_CACHE_BYTES).build();
                Node::Matches(text, built.map_err(|e| format!("the pattern cannot be used: {e}"))?)
            }
            (_, 2) if let Some(binary) = binary => Node::Operate(binary, Box::new([*next()?, *next()?])),
            _ => {
                let function = Function::find(name, count)
                    .ok_or_else(|| format!("there is no function {name} of {count} values; see docs/projects.md"))?;
                Node::Call(function, nodes.collect())
            }
        })
    }
}

fn constant(literal: &LiteralValue) -> Result<Node, String> {
    Ok(match literal {
        LiteralValue::Boolean(value) => Node::Bool(*value.inner()),
        LiteralValue::Bytes(value) => Node::Bytes(value.inner().to_vec()),
        LiteralValue::Double(value) => Node::Double(*value.inner()),
        LiteralValue::Int(value) => Node::Int(*value.inner()),
        LiteralValue::Null => Node::Null,
        LiteralValue::String(value) => Node::Text(value.inner().to_owned()),
        LiteralValue::UInt(_) => return Err("there are no unsigned integers".into()),
    })
}

/// Members of an object that an expression made.
type Members<'a> = BTreeMap<String, Value<'a>>;

#[cfg(test)]
#[path = "expression/tests.rs"]
mod tests;
