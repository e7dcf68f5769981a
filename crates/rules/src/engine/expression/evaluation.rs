//! Evaluation: a walk over the nodes, which pays for each.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::rc::Rc;

use serde_json::{Map, Number, Value as Json};

use super::{Binary, ExpressionError, Fold, Members, Node};
use crate::limits::{FUEL_FOR_STEP, PATTERN_BYTES_FOR_FUEL};

/// What is left to be spent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fuel(u64);

impl Fuel {
    pub fn new(fuel: u64) -> Self {
        Self(fuel)
    }

    pub fn left(self) -> u64 {
        self.0
    }

    pub fn take(&mut self, fuel: u64) -> Result<(), ExpressionError> {
        self.0 = self.0.checked_sub(fuel).ok_or(ExpressionError::Fuel)?;
        Ok(())
    }

    /// For something done to so many bytes.
    pub fn take_bytes(&mut self, bytes: usize) -> Result<(), ExpressionError> {
        self.take(bytes as u64 / 32)
    }
}

/// A value: of the message, borrowed, or made by the expression.
#[derive(Debug, Clone)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    /// A list of the message.
    Values(&'a [Json]),
    List(Rc<Vec<Value<'a>>>),
    /// An object of the message.
    Object(&'a Map<String, Json>),
    Made(Rc<Members<'a>>),
    /// The device's last accepted message.
    Last {
        message: &'a Json,
        time: i64,
    },
}

impl<'a> Value<'a> {
    pub fn of(json: &'a Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => Self::number(number),
            Json::String(text) => Self::Text(Cow::Borrowed(text)),
            Json::Array(values) => Self::Values(values),
            Json::Object(members) => Self::Object(members),
        }
    }

    fn number(number: &Number) -> Self {
        number.as_i64().map_or_else(|| Self::Double(number.as_f64().unwrap_or_default()), Self::Int)
    }

    /// A number, whatever its kind.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "as CEL converts")]
            Self::Int(number) => Some(*number as f64),
            Self::Double(number) => Some(*number),
            _ => None,
        }
    }

    /// As JSON; nothing where a number is not finite.
    pub fn to_json(&self, fuel: &mut Fuel) -> Result<Json, ExpressionError> {
        fuel.take(1)?;
        Ok(match self {
            Self::Null => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(number) => (*number).into(),
            Self::Double(number) => {
                // Minus zero is zero.
                let number = Number::from_f64(if *number == 0.0 { 0.0 } else { *number });
                Json::Number(number.ok_or(ExpressionError::Range("a number"))?)
            }
            Self::Text(text) => {
                fuel.take_bytes(text.len())?;
                Json::String(text.clone().into_owned())
            }
            Self::Bytes(_) | Self::Last { .. } => return Err(ExpressionError::Wanted("value that JSON has")),
            Self::Values(values) => {
                Json::Array(values.iter().map(|value| Value::of(value).to_json(fuel)).collect::<Result<_, _>>()?)
            }
            Self::List(values) => {
                Json::Array(values.iter().map(|value| value.to_json(fuel)).collect::<Result<_, _>>()?)
            }
            Self::Object(members) => {
                let entry = |(name, value): (&String, &'a Json)| Ok((name.clone(), Value::of(value).to_json(fuel)?));
                Json::Object(members.iter().map(entry).collect::<Result<_, ExpressionError>>()?)
            }
            Self::Made(members) => {
                let entry = |(name, value): (&String, &Value<'a>)| Ok((name.clone(), value.to_json(fuel)?));
                Json::Object(members.iter().map(entry).collect::<Result<_, ExpressionError>>()?)
            }
        })
    }

    fn member(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Self::Object(members) => members.get(name).map(Value::of),
            Self::Made(members) => members.get(name).cloned(),
            Self::Last { message, .. } if name == "message" => Some(Value::of(message)),
            Self::Last { time, .. } if name == "time" => Some(Value::Int(*time)),
            _ => None,
        }
    }

    fn has_members(&self) -> bool {
        matches!(self, Self::Object(_) | Self::Made(_) | Self::Last { .. })
    }

    fn element(&self, index: usize) -> Option<Value<'a>> {
        match self {
            Self::Values(values) => values.get(index).map(Value::of),
            Self::List(values) => values.get(index).cloned(),
            _ => None,
        }
    }

    /// Elements of a list, or names of an object, in order.
    fn items(&self) -> Result<Vec<Value<'a>>, ExpressionError> {
        Ok(match self {
            Self::Values(values) => values.iter().map(Value::of).collect(),
            Self::List(values) => values.to_vec(),
            Self::Object(members) => {
                let mut names: Vec<&'a String> = members.keys().collect();
                names.sort_unstable();
                names.into_iter().map(|name| Value::Text(Cow::Borrowed(name.as_str()))).collect()
            }
            Self::Made(members) => members.keys().map(|name| Value::Text(Cow::Owned(name.clone()))).collect(),
            _ => return Err(ExpressionError::Types("a macro")),
        })
    }

    /// How many elements, members, characters or bytes.
    pub fn size(&self, fuel: &mut Fuel) -> Result<usize, ExpressionError> {
        Ok(match self {
            Self::Text(text) => {
                fuel.take_bytes(text.len())?;
                text.chars().count()
            }
            Self::Bytes(bytes) => bytes.len(),
            Self::Values(values) => values.len(),
            Self::List(values) => values.len(),
            Self::Object(members) => members.len(),
            Self::Made(members) => members.len(),
            _ => return Err(ExpressionError::Types("size")),
        })
    }
}

/// What a message's expressions can see, by the order of [`super::VARIABLES`].
#[derive(Debug)]
pub(crate) struct Scope<'a> {
    pub variables: [Value<'a>; super::VARIABLES.len()],
}

type Bound<'a> = Vec<Value<'a>>;
type Result<T, E = ExpressionError> = std::result::Result<T, E>;

pub(super) fn evaluate<'a>(
    node: &'a Node,
    scope: &Scope<'a>,
    bound: &mut Bound<'a>,
    fuel: &mut Fuel,
) -> Result<Value<'a>> {
    fuel.take(1)?;
    Ok(match node {
        Node::Null => Value::Null,
        Node::Bool(value) => Value::Bool(*value),
        Node::Int(number) => Value::Int(*number),
        Node::Double(number) => Value::Double(*number),
        Node::Text(text) => Value::Text(Cow::Borrowed(text)),
        Node::Bytes(bytes) => Value::Bytes(Cow::Borrowed(bytes)),
        Node::Variable(place) => scope.variables[*place].clone(),
        Node::Bound(place) => {
            bound.get(*place).cloned().ok_or_else(|| ExpressionError::Missing("a bound name".into()))?
        }
        Node::Member(of, name) => {
            let of = evaluate(of, scope, bound, fuel)?;
            of.member(name).ok_or_else(|| ExpressionError::Missing(name.clone()))?
        }
        Node::Has(of, name) => {
            let of = evaluate(of, scope, bound, fuel)?;
            if !of.has_members() {
                return Err(ExpressionError::Types("has"));
            }
            Value::Bool(of.member(name).is_some())
        }
        Node::List(nodes) => {
            let values = nodes.iter().map(|node| evaluate(node, scope, bound, fuel));
            Value::List(Rc::new(values.collect::<Result<_>>()?))
        }
        Node::Object(entries) => {
            let mut members = Members::new();
            for (name, value) in entries {
                let Value::Text(name) = evaluate(name, scope, bound, fuel)? else {
                    return Err(ExpressionError::Types("an object"));
                };
                members.insert(name.into_owned(), evaluate(value, scope, bound, fuel)?);
            }
            Value::Made(Rc::new(members))
        }
        Node::Not(of) => Value::Bool(!truth(evaluate(of, scope, bound, fuel)?, "!")?),
        Node::Negate(of) => match evaluate(of, scope, bound, fuel)? {
            Value::Int(number) => Value::Int(number.checked_neg().ok_or(ExpressionError::Range("-"))?),
            Value::Double(number) => Value::Double(-number),
            _ => return Err(ExpressionError::Types("-")),
        },
        Node::And(a, b) => either(a, b, false, scope, bound, fuel)?,
        Node::Or(a, b) => either(a, b, true, scope, bound, fuel)?,
        Node::Choose(nodes) => {
            let [when, then, otherwise] = &**nodes;
            let chosen = truth(evaluate(when, scope, bound, fuel)?, "?:")?;
            evaluate(if chosen { then } else { otherwise }, scope, bound, fuel)?
        }
        Node::Operate(operator, nodes) => {
            let [a, b] = &**nodes;
            let (a, b) = (evaluate(a, scope, bound, fuel)?, evaluate(b, scope, bound, fuel)?);
            operate(*operator, a, b, fuel)?
        }
        Node::Call(function, nodes) => {
            let values = nodes.iter().map(|node| evaluate(node, scope, bound, fuel)).collect::<Result<Vec<_>>>()?;
            function.call(values, fuel)?
        }
        Node::Matches(of, pattern) => match evaluate(of, scope, bound, fuel)? {
            Value::Text(text) => {
                // Time grows with the text, and with nothing else: see [`crate::engine::pattern`].
                fuel.take(1 + text.len() as u64 / (FUEL_FOR_STEP * PATTERN_BYTES_FOR_FUEL))?;
                Value::Bool(pattern.is_match(&text))
            }
            _ => return Err(ExpressionError::Types("matches")),
        },
        Node::NotStrictlyFalse(of) => match evaluate(of, scope, bound, fuel) {
            Err(ExpressionError::Fuel) => return Err(ExpressionError::Fuel),
            Ok(Value::Bool(value)) => Value::Bool(value),
            _ => Value::Bool(true),
        },
        Node::Fold(fold) => go_through(fold, scope, bound, fuel)?,
    })
}

fn truth(value: Value<'_>, operator: &'static str) -> Result<bool> {
    match value {
        Value::Bool(value) => Ok(value),
        _ => Err(ExpressionError::Types(operator)),
    }
}

/// `&&` and `||`: the value that decides wins over an error on the other side.
fn either<'a>(
    a: &'a Node,
    b: &'a Node,
    decides: bool,
    scope: &Scope<'a>,
    bound: &mut Bound<'a>,
    fuel: &mut Fuel,
) -> Result<Value<'a>> {
    let name = if decides { "||" } else { "&&" };
    let mut side = |node, fuel: &mut Fuel| evaluate(node, scope, bound, fuel).and_then(|value| truth(value, name));
    let first = side(a, fuel);
    if first == Ok(decides) || first == Err(ExpressionError::Fuel) {
        return first.map(Value::Bool);
    }
    let second = side(b, fuel);
    if second == Ok(decides) || second == Err(ExpressionError::Fuel) {
        return second.map(Value::Bool);
    }
    Ok(Value::Bool(first.and(second)?))
}

fn go_through<'a>(fold: &'a Fold, scope: &Scope<'a>, bound: &mut Bound<'a>, fuel: &mut Fuel) -> Result<Value<'a>> {
    let items = evaluate(&fold.range, scope, bound, fuel)?.items()?;
    fuel.take(items.len() as u64)?;
    let start = evaluate(&fold.start, scope, bound, fuel)?;
    let outer = bound.len();
    bound.push(start);
    let done = (|| {
        // Of `all` and `exists`: an error counts unless another element decides.
        let mut failed = None;
        for item in items {
            bound.truncate(outer + 1);
            bound.push(item);
            if !truth(evaluate(&fold.go_on, scope, bound, fuel)?, "a macro")? {
                break;
            }
            match evaluate(&fold.step, scope, bound, fuel) {
                Ok(value) => bound[outer] = value,
                Err(ExpressionError::Fuel) => return Err(ExpressionError::Fuel),
                Err(error) if matches!(fold.step, Node::And(..) | Node::Or(..)) => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        bound.truncate(outer + 1);
        let result = evaluate(&fold.result, scope, bound, fuel)?;
        match (failed, &fold.step, &result) {
            (Some(error), Node::And(..), Value::Bool(true)) | (Some(error), Node::Or(..), Value::Bool(false)) => {
                Err(error)
            }
            _ => Ok(result),
        }
    })();
    bound.truncate(outer);
    done
}

fn operate<'a>(operator: Binary, a: Value<'a>, b: Value<'a>, fuel: &mut Fuel) -> Result<Value<'a>> {
    use Binary as Op;
    Ok(match operator {
        Op::Equal => Value::Bool(equal(&a, &b, fuel)?),
        Op::NotEqual => Value::Bool(!equal(&a, &b, fuel)?),
        Op::Less => Value::Bool(order(&a, &b, fuel)? == Some(Ordering::Less)),
        Op::Greater => Value::Bool(order(&a, &b, fuel)? == Some(Ordering::Greater)),
        Op::LessEqual => Value::Bool(order(&a, &b, fuel)?.is_some_and(Ordering::is_le)),
        Op::GreaterEqual => Value::Bool(order(&a, &b, fuel)?.is_some_and(Ordering::is_ge)),
        Op::In => {
            let found = match (&a, &b) {
                (Value::Text(name), Value::Object(_) | Value::Made(_)) => b.member(name).is_some(),
                _ => {
                    let mut found = false;
                    for item in b.items()? {
                        fuel.take(1)?;
                        found |= equal(&a, &item, fuel)?;
                    }
                    found
                }
            };
            Value::Bool(found)
        }
        Op::Index => match (&a, &b) {
            (_, Value::Text(name)) if a.has_members() => {
                a.member(name).ok_or_else(|| ExpressionError::Missing(name.to_string()))?
            }
            (Value::Values(_) | Value::List(_), Value::Int(index)) => {
                let element = usize::try_from(*index).ok().and_then(|index| a.element(index));
                element.ok_or_else(|| ExpressionError::Missing(format!("[{index}]")))?
            }
            _ => return Err(ExpressionError::Types("[]")),
        },
        Op::Add => match (a, b) {
            (Value::Text(a), Value::Text(b)) => {
                fuel.take_bytes(a.len() + b.len())?;
                Value::Text(Cow::Owned(a.into_owned() + &b))
            }
            (a @ (Value::Values(_) | Value::List(_)), b @ (Value::Values(_) | Value::List(_))) => join(a, b, fuel)?,
            (a, b) => calculate("+", a, b, i64::checked_add, |a, b| a + b)?,
        },
        Op::Subtract => calculate("-", a, b, i64::checked_sub, |a, b| a - b)?,
        Op::Multiply => calculate("*", a, b, i64::checked_mul, |a, b| a * b)?,
        Op::Divide => calculate("/", a, b, i64::checked_div, |a, b| a / b)?,
        Op::Modulo => match (a, b) {
            (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_rem(b).ok_or(ExpressionError::Range("%"))?),
            _ => return Err(ExpressionError::Types("%")),
        },
    })
}

/// `map` and `filter` put one element after the other into a list: nobody else has it, and it grows in place.
fn join<'a>(a: Value<'a>, b: Value<'a>, fuel: &mut Fuel) -> Result<Value<'a>> {
    let added = b.items()?;
    fuel.take(added.len() as u64)?;
    let mut list = match a {
        Value::List(list) => list,
        other => Rc::new(other.items()?),
    };
    if Rc::strong_count(&list) > 1 {
        // It will be copied.
        fuel.take(list.len() as u64)?;
    }
    Rc::make_mut(&mut list).extend(added);
    Ok(Value::List(list))
}

fn calculate<'a>(
    name: &'static str,
    a: Value<'a>,
    b: Value<'a>,
    whole: impl Fn(i64, i64) -> Option<i64>,
    broken: impl Fn(f64, f64) -> f64,
) -> Result<Value<'a>> {
    if let (Value::Int(a), Value::Int(b)) = (&a, &b) {
        return whole(*a, *b).map(Value::Int).ok_or(ExpressionError::Range(name));
    }
    let (Some(a), Some(b)) = (a.as_f64(), b.as_f64()) else { return Err(ExpressionError::Types(name)) };
    // Nothing that is not finite goes on: it has no one form on all machines.
    Some(broken(a, b)).filter(|result| result.is_finite()).map(Value::Double).ok_or(ExpressionError::Range(name))
}

fn equal(a: &Value<'_>, b: &Value<'_>, fuel: &mut Fuel) -> Result<bool> {
    fuel.take(1)?;
    Ok(match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Text(a), Value::Text(b)) => {
            fuel.take_bytes(a.len().min(b.len()))?;
            a == b
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            fuel.take_bytes(a.len().min(b.len()))?;
            a == b
        }
        (Value::Int(_) | Value::Double(_), Value::Int(_) | Value::Double(_)) => compare(a, b) == Some(Ordering::Equal),
        (Value::Values(_) | Value::List(_), Value::Values(_) | Value::List(_)) => {
            let (a, b) = (a.items()?, b.items()?);
            if a.len() != b.len() {
                return Ok(false);
            }
            for (a, b) in a.iter().zip(&b) {
                if !equal(a, b, fuel)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Object(_) | Value::Made(_), Value::Object(_) | Value::Made(_)) => {
            let names = a.items()?;
            if names.len() != b.size(fuel)? {
                return Ok(false);
            }
            for name in names {
                let Value::Text(name) = name else { return Ok(false) };
                let (Some(a), Some(b)) = (a.member(&name), b.member(&name)) else { return Ok(false) };
                if !equal(&a, &b, fuel)? {
                    return Ok(false);
                }
            }
            true
        }
        _ => false,
    })
}

fn order(a: &Value<'_>, b: &Value<'_>, fuel: &mut Fuel) -> Result<Option<Ordering>> {
    Ok(match (a, b) {
        (Value::Text(a), Value::Text(b)) => {
            fuel.take_bytes(a.len().min(b.len()))?;
            Some(a.cmp(b))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            fuel.take_bytes(a.len().min(b.len()))?;
            Some(a.cmp(b))
        }
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Int(_) | Value::Double(_), Value::Int(_) | Value::Double(_)) => compare(a, b),
        _ => return Err(ExpressionError::Types("a comparison")),
    })
}

/// Numbers by their value, whatever their kind: an integer that has no double of its own is compared exactly.
fn compare(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Double(b)) => compare_mixed(*a, *b),
        (Value::Double(a), Value::Int(b)) => compare_mixed(*b, *a).map(Ordering::reverse),
        _ => None,
    }
}

fn compare_mixed(whole: i64, number: f64) -> Option<Ordering> {
    const TWO_63: f64 = 9_223_372_036_854_775_808.0;
    if number.is_nan() {
        return None;
    }
    if number >= TWO_63 {
        return Some(Ordering::Less);
    }
    if number < -TWO_63 {
        return Some(Ordering::Greater);
    }
    // Both parts are exact.
    #[expect(clippy::cast_possible_truncation, reason = "it is in the range")]
    let floor = number.floor() as i64;
    Some(whole.cmp(&floor).then(if number > number.floor() { Ordering::Less } else { Ordering::Equal }))
}
