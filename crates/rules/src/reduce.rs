//! What a group's values come to. A reduction grows with each message and keeps no messages, so that a group of a day costs
//! no more than one of a second.
//!
//! Numbers are doubles, added in the order in which the network has the messages, whatever the order within the task: sums
//! of doubles depend on their order.

use std::cmp::Ordering;

use lockstep_types::{DecodeError, Sequence, proto};
use serde_json::{Map, Number, Value};

use crate::decode::canonical;
use crate::document::Reduction;
use crate::limits::REDUCED_BYTES_MAX;

/// One value of a payload in the making.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reduced {
    count: u64,
    number: f64,
    json: Option<Value>,
    last: (i64, Sequence),
}

impl Reduced {
    /// Takes one message's value. `order` is its place in the task's order, before `sequence` decides.
    pub fn take(&mut self, with: Reduction, value: &Value, order: i64, sequence: Sequence) {
        let number = value.as_f64();
        match with {
            Reduction::Count => self.count += 1,
            Reduction::Sum | Reduction::Mean => {
                let Some(number) = number else { return };
                self.number += number;
                self.count += 1;
            }
            Reduction::Min | Reduction::Max => {
                let Some(number) = number else { return };
                let wanted = if with == Reduction::Min { Ordering::Less } else { Ordering::Greater };
                if self.count == 0 || number.partial_cmp(&self.number) == Some(wanted) {
                    self.number = number;
                }
                self.count += 1;
            }
            Reduction::Last => {
                if self.count == 0 || (order, sequence) >= self.last {
                    self.last = (order, sequence);
                    self.json = Some(value.clone()).filter(fits);
                }
                self.count += 1;
            }
            Reduction::Merge => {
                let Value::Object(members) = value else { return };
                let mut merged = match self.json.take() {
                    Some(Value::Object(merged)) => merged,
                    _ => Map::new(),
                };
                let before = merged.clone();
                merged.extend(members.iter().map(|(name, value)| (name.clone(), value.clone())));
                let merged = Value::Object(merged);
                // What would make it too large is left out, whole.
                self.json = Some(if fits(&merged) { merged } else { Value::Object(before) });
                self.count += 1;
            }
        }
    }

    /// What it has come to.
    pub fn result(&self, with: Reduction) -> Value {
        // Minus zero is zero, and what is not finite is nothing.
        let number = |number: f64| {
            let number = Number::from_f64(if number == 0.0 { 0.0 } else { number });
            number.map_or(Value::Null, Value::Number)
        };
        match with {
            Reduction::Count => self.count.into(),
            _ if self.count == 0 => Value::Null,
            #[expect(clippy::cast_precision_loss, reason = "groups are smaller than 2^53")]
            Reduction::Mean => number(self.number / self.count as f64),
            Reduction::Sum | Reduction::Min | Reduction::Max => number(self.number),
            Reduction::Last | Reduction::Merge => self.json.clone().unwrap_or(Value::Null),
        }
    }

    /// The stored form.
    pub fn to_proto(&self) -> proto::ReductionState {
        proto::ReductionState {
            count: self.count,
            number: self.number.to_bits(),
            json: self.json.as_ref().map(canonical).unwrap_or_default(),
            order: self.last.0,
            sequence: self.last.1.0,
        }
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// It is damaged.
    pub fn from_proto(state: proto::ReductionState) -> Result<Self, DecodeError> {
        let json = match state.json.as_str() {
            "" => None,
            json => Some(serde_json::from_str(json).map_err(|e| DecodeError::malformed("reduction", e))?),
        };
        let last = (state.order, Sequence(state.sequence));
        Ok(Self { count: state.count, number: f64::from_bits(state.number), json, last })
    }
}

fn fits(value: &Value) -> bool {
    canonical(value).len() <= REDUCED_BYTES_MAX
}

/// The payload of a reduced task: JSON, names in ascending order.
pub fn payload<'a>(values: impl Iterator<Item = (&'a String, Value)>) -> String {
    canonical(&Value::Object(values.map(|(name, value)| (name.clone(), value)).collect()))
}
