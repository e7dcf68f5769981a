//! Functions of expressions.

use std::borrow::Cow;

use super::ExpressionError;
use super::evaluation::{Fuel, Value};

/// Mean radius of the earth in metres (IUGG).
const EARTH_RADIUS_M: f64 = 6_371_008.8;

/// A function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Int,
    Double,
    Text,
    Abs,
    Min,
    Max,
    Floor,
    Ceil,
    Distance,
}

/// Name, number of values, function.
const FUNCTIONS: [(&str, usize, Function); 13] = [
    ("size", 1, Function::Size),
    ("contains", 2, Function::Contains),
    ("startsWith", 2, Function::StartsWith),
    ("endsWith", 2, Function::EndsWith),
    ("int", 1, Function::Int),
    ("double", 1, Function::Double),
    ("string", 1, Function::Text),
    ("abs", 1, Function::Abs),
    ("min", 2, Function::Min),
    ("max", 2, Function::Max),
    ("floor", 1, Function::Floor),
    ("ceil", 1, Function::Ceil),
    ("distance", 4, Function::Distance),
];

impl Function {
    pub fn find(name: &str, count: usize) -> Option<Self> {
        FUNCTIONS.iter().find(|known| (known.0, known.1) == (name, count)).map(|known| known.2)
    }

    pub fn call<'a>(self, values: Vec<Value<'a>>, fuel: &mut Fuel) -> Result<Value<'a>, ExpressionError> {
        use ExpressionError as Error;
        let types = || Err(Error::Types(self.name()));
        let range = Error::Range(self.name());
        Ok(match (self, values.as_slice()) {
            (Self::Size, [value]) => Value::Int(i64::try_from(value.size(fuel)?).map_err(|_| range)?),
            (Self::Contains | Self::StartsWith | Self::EndsWith, [Value::Text(text), Value::Text(part)]) => {
                fuel.take_bytes(text.len() + part.len())?;
                Value::Bool(match self {
                    Self::Contains => text.contains(&**part),
                    Self::StartsWith => text.starts_with(&**part),
                    _ => text.ends_with(&**part),
                })
            }
            (Self::Int, [Value::Int(number)]) => Value::Int(*number),
            (Self::Int, [Value::Double(number)]) => Value::Int(whole(number.trunc()).ok_or(range)?),
            (Self::Int, [Value::Text(text)]) => Value::Int(text.parse().map_err(|_| range)?),
            (Self::Double, [Value::Text(text)]) => {
                fuel.take_bytes(text.len())?;
                let number = text.parse().ok().filter(|number: &f64| number.is_finite());
                Value::Double(number.ok_or(range)?)
            }
            (Self::Double, [value]) => match value.as_f64() {
                Some(number) => Value::Double(number),
                None => return types(),
            },
            (Self::Text, [Value::Text(text)]) => Value::Text(text.clone()),
            (Self::Text, [Value::Int(number)]) => Value::Text(Cow::Owned(number.to_string())),
            (Self::Text, [Value::Bool(value)]) => Value::Text(Cow::Owned(value.to_string())),
            (Self::Text, [value @ Value::Double(_)]) => Value::Text(Cow::Owned(value.to_json(fuel)?.to_string())),
            (Self::Abs, [Value::Int(number)]) => Value::Int(number.checked_abs().ok_or(range)?),
            (Self::Abs, [Value::Double(number)]) => Value::Double(number.abs()),
            (Self::Floor | Self::Ceil, [Value::Int(number)]) => Value::Int(*number),
            (Self::Floor, [Value::Double(number)]) => Value::Int(whole(number.floor()).ok_or(range)?),
            (Self::Ceil, [Value::Double(number)]) => Value::Int(whole(number.ceil()).ok_or(range)?),
            (Self::Min | Self::Max, [Value::Int(a), Value::Int(b)]) => {
                Value::Int(if self == Self::Min { *a.min(b) } else { *a.max(b) })
            }
            (Self::Min | Self::Max, [a, b]) => match (a.as_f64(), b.as_f64()) {
                (Some(a), Some(b)) => Value::Double(if (a <= b) == (self == Self::Min) { a } else { b }),
                _ => return types(),
            },
            (Self::Distance, [a, b, c, d]) => match (a.as_f64(), b.as_f64(), c.as_f64(), d.as_f64()) {
                (Some(a), Some(b), Some(c), Some(d)) => {
                    fuel.take(20)?;
                    Value::Double(Some(distance((a, b), (c, d))).filter(|m| m.is_finite()).ok_or(range)?)
                }
                _ => return types(),
            },
            _ => return types(),
        })
    }

    fn name(self) -> &'static str {
        FUNCTIONS.iter().find(|known| known.2 == self).map_or("a function", |known| known.0)
    }
}

fn whole(number: f64) -> Option<i64> {
    const TWO_63: f64 = 9_223_372_036_854_775_808.0;
    #[expect(clippy::cast_possible_truncation, reason = "it is in the range")]
    (-TWO_63..TWO_63).contains(&number).then_some(number as i64)
}

/// Metres between two places (latitude and longitude in degrees) on a sphere, by the haversine formula. `libm` is the same
/// instructions on every machine, which the system's own library is not.
fn distance(a: (f64, f64), b: (f64, f64)) -> f64 {
    let radians = |degrees: f64| degrees * std::f64::consts::PI / 180.0;
    let half = |difference: f64| {
        let sine = libm::sin(difference / 2.0);
        sine * sine
    };
    let (from, to) = (radians(a.0), radians(b.0));
    let chord = half(to - from) + libm::cos(from) * libm::cos(to) * half(radians(b.1 - a.1));
    2.0 * EARTH_RADIUS_M * libm::asin(libm::sqrt(chord.clamp(0.0, 1.0)))
}
