//! Reading the data of a message. Whatever the format, what comes out is what JSON has: null, booleans, integers of 64 bits,
//! finite numbers, text, lists and objects. Bytes become base64. Everything is bounded before it is kept.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{DescriptorPool, DynamicMessage, MapKey, MessageDescriptor, ReflectMessage as _};
use serde_json::{Map, Number, Value};

use crate::document::{Decode, Format};
use crate::error::RulesError;
use crate::limits::{ELEMENTS_MAX, NESTING_MAX};

/// Why a message's data cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is not of the format.
    #[error("the data is not {0}")]
    Format(&'static str),
    /// It has too many values, or they are too deep in each other.
    #[error("the data has more than {ELEMENTS_MAX} values, or more than {NESTING_MAX} within each other")]
    TooMuch,
    /// It has a number that is none, or infinite.
    #[error("the data has a number that is not finite")]
    NotFinite,
}

/// Reads data.
#[derive(Debug, Clone)]
pub(crate) enum Decoder {
    Raw,
    Json,
    Cbor,
    Protobuf(MessageDescriptor),
}

impl Decoder {
    pub fn new(decode: &Decode, descriptor: Option<&[u8]>) -> Result<Self, RulesError> {
        let wrong = |text: String| RulesError::Descriptor(text);
        Ok(match (decode.format, descriptor, &decode.message) {
            (Format::Protobuf, Some(descriptor), Some(name)) => {
                let pool = DescriptorPool::decode(descriptor).map_err(|e| wrong(e.to_string()))?;
                let found = pool.get_message_by_name(name);
                Self::Protobuf(found.ok_or_else(|| wrong(format!("it has no message {name:?}")))?)
            }
            (Format::Protobuf, ..) => return Err(wrong("there is none".into())),
            (Format::Raw, ..) => Self::Raw,
            (Format::Json, ..) => Self::Json,
            (Format::Cbor, ..) => Self::Cbor,
        })
    }

    /// What the data says; null where it is not read.
    pub fn decode(&self, data: &[u8]) -> Result<Decoded, Unreadable> {
        let mut budget = ELEMENTS_MAX;
        let value = match self {
            Self::Raw => Value::Null,
            Self::Json => {
                let value: Value = serde_json::from_slice(data).map_err(|_| Unreadable::Format("JSON"))?;
                count(&value, NESTING_MAX, &mut budget)?;
                value
            }
            Self::Cbor => {
                let mut rest = data;
                let read = ciborium::de::from_reader_with_recursion_limit(&mut rest, NESTING_MAX);
                let read: ciborium::Value = read.map_err(|_| Unreadable::Format("CBOR"))?;
                if !rest.is_empty() {
                    return Err(Unreadable::Format("CBOR"));
                }
                of_cbor(read, NESTING_MAX, &mut budget)?
            }
            Self::Protobuf(descriptor) => {
                let read = DynamicMessage::decode(descriptor.clone(), data);
                of_message(&read.map_err(|_| Unreadable::Format("this Protobuf"))?, NESTING_MAX, &mut budget)?
            }
        };
        Ok(Decoded { value, elements: (ELEMENTS_MAX - budget) as u64 })
    }
}

/// A message's data as read.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// What it says.
    pub value: Value,
    /// Values in it, those within others counted.
    pub elements: u64,
}

fn take(nesting: usize, budget: &mut usize) -> Result<usize, Unreadable> {
    *budget = budget.checked_sub(1).ok_or(Unreadable::TooMuch)?;
    nesting.checked_sub(1).ok_or(Unreadable::TooMuch)
}

fn count(value: &Value, nesting: usize, budget: &mut usize) -> Result<(), Unreadable> {
    let below = take(nesting, budget)?;
    match value {
        Value::Array(values) => values.iter().try_for_each(|value| count(value, below, budget)),
        Value::Object(members) => members.values().try_for_each(|value| count(value, below, budget)),
        _ => Ok(()),
    }
}

/// A finite number; minus zero is zero.
fn finite(number: f64) -> Result<Value, Unreadable> {
    let number = if number == 0.0 { 0.0 } else { number };
    Number::from_f64(number).map(Value::Number).ok_or(Unreadable::NotFinite)
}

fn of_cbor(value: ciborium::Value, nesting: usize, budget: &mut usize) -> Result<Value, Unreadable> {
    use ciborium::Value as Cbor;
    let bad = Unreadable::Format("CBOR that JSON could say too: keys are texts or integers, integers have 64 bits");
    let below = take(nesting, budget)?;
    Ok(match value {
        Cbor::Null => Value::Null,
        Cbor::Bool(value) => Value::Bool(value),
        Cbor::Text(text) => Value::String(text),
        Cbor::Bytes(bytes) => Value::String(STANDARD.encode(bytes)),
        Cbor::Float(number) => finite(number)?,
        Cbor::Integer(number) => match (i64::try_from(number), u64::try_from(number)) {
            (Ok(number), _) => number.into(),
            (_, Ok(number)) => number.into(),
            _ => return Err(bad),
        },
        // What a tag means is the author's business.
        Cbor::Tag(_, value) => of_cbor(*value, below, budget)?,
        Cbor::Array(values) => {
            let read = values.into_iter().map(|value| of_cbor(value, below, budget));
            Value::Array(read.collect::<Result<_, _>>()?)
        }
        Cbor::Map(members) => {
            let mut object = Map::new();
            for (key, value) in members {
                let key = match key {
                    Cbor::Text(text) => text,
                    Cbor::Integer(number) => i128::from(number).to_string(),
                    _ => return Err(bad),
                };
                object.insert(key, of_cbor(value, below, budget)?);
            }
            Value::Object(object)
        }
        _ => return Err(bad),
    })
}

/// Fields by their names in the descriptor; scalars that were not sent have their defaults.
fn of_message(message: &DynamicMessage, nesting: usize, budget: &mut usize) -> Result<Value, Unreadable> {
    let below = take(nesting, budget)?;
    let mut object = Map::new();
    for field in message.descriptor().fields() {
        if field.supports_presence() && !message.has_field(&field) {
            continue;
        }
        let value = of_protobuf(&message.get_field(&field), Some(&field.kind()), below, budget)?;
        object.insert(field.name().to_owned(), value);
    }
    Ok(Value::Object(object))
}

fn of_protobuf(
    value: &prost_reflect::Value,
    kind: Option<&prost_reflect::Kind>,
    nesting: usize,
    budget: &mut usize,
) -> Result<Value, Unreadable> {
    use prost_reflect::{Kind, Value as Field};
    if let Field::Message(message) = value {
        return of_message(message, nesting, budget);
    }
    let below = take(nesting, budget)?;
    Ok(match value {
        Field::Bool(value) => Value::Bool(*value),
        Field::I32(number) => (*number).into(),
        Field::I64(number) => (*number).into(),
        Field::U32(number) => (*number).into(),
        Field::U64(number) => (*number).into(),
        Field::F32(number) => finite(f64::from(*number))?,
        Field::F64(number) => finite(*number)?,
        Field::String(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => Value::String(STANDARD.encode(bytes)),
        Field::EnumNumber(number) => match kind {
            Some(Kind::Enum(of)) => match of.get_value(*number) {
                Some(named) => Value::String(named.name().to_owned()),
                None => (*number).into(),
            },
            _ => (*number).into(),
        },
        Field::Message(_) => Value::Null,
        Field::List(values) => {
            let read = values.iter().map(|value| of_protobuf(value, kind, below, budget));
            Value::Array(read.collect::<Result<_, _>>()?)
        }
        Field::Map(entries) => {
            let of = match kind {
                Some(Kind::Message(entry)) => Some(entry.map_entry_value_field().kind()),
                _ => None,
            };
            let mut object = Map::new();
            for (key, value) in entries {
                let key = match key {
                    MapKey::Bool(key) => key.to_string(),
                    MapKey::I32(key) => key.to_string(),
                    MapKey::I64(key) => key.to_string(),
                    MapKey::U32(key) => key.to_string(),
                    MapKey::U64(key) => key.to_string(),
                    MapKey::String(key) => key.clone(),
                };
                object.insert(key, of_protobuf(value, of.as_ref(), below, budget)?);
            }
            Value::Object(object)
        }
    })
}
