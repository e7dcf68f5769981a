//! What a group's values come to. A reduction grows with each message and keeps no messages, so that a group of a day costs
//! no more than one of a second. Values are kept as JSON text, which is as large in memory as it is stored.
//!
//! Numbers are doubles, added in the order in which the network has the messages, whatever the order within the task: sums
//! of doubles depend on their order.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;

use lockstep_types::{DecodeError, Sequence, proto};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

use crate::canonical::canonical;
use crate::document::Reduction;
use crate::limits::REDUCED_BYTES_MAX;

/// One value of a payload in the making.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reduced {
    count: u64,
    number: f64,
    /// What is kept of `last` and `merge`: canonical JSON.
    json: Option<String>,
    last: (i64, Sequence),
}

impl Reduced {
    /// Takes one message's value. `order` is its place in the task's order, before `sequence` decides.
    pub fn take(&mut self, with: Reduction, value: &Value, order: i64, sequence: Sequence) {
        let number = value.as_f64();
        match with {
            // A device need not send everything each time.
            _ if value.is_null() => {}
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
                    self.json = Some(canonical(value)).filter(|text| text.len() <= REDUCED_BYTES_MAX);
                }
                self.count += 1;
            }
            Reduction::Merge => {
                let Value::Object(members) = value else { return };
                let merged = merged(self.json.as_deref().unwrap_or("{}"), members);
                // What would make it too large is left out, whole.
                if merged.len() <= REDUCED_BYTES_MAX {
                    self.json = Some(merged);
                }
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
            Reduction::Last | Reduction::Merge => {
                self.json.as_deref().and_then(|json| serde_json::from_str(json).ok()).unwrap_or(Value::Null)
            }
        }
    }

    /// Bytes of what it keeps.
    pub fn kept_bytes(&self) -> usize {
        self.json.as_ref().map_or(0, String::len)
    }

    /// The stored form.
    pub fn to_proto(&self) -> proto::ReductionState {
        proto::ReductionState {
            count: self.count,
            number: self.number.to_bits(),
            json: self.json.clone().unwrap_or_default(),
            order: self.last.0,
            sequence: self.last.1.0,
        }
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// It is damaged.
    pub fn from_proto(state: proto::ReductionState) -> Result<Self, DecodeError> {
        let json = Some(state.json).filter(|json| !json.is_empty());
        if let Some(json) = &json {
            let IgnoredAny = serde_json::from_str(json).map_err(|e| DecodeError::malformed("reduction", e))?;
        }
        let last = (state.order, Sequence(state.sequence));
        Ok(Self { count: state.count, number: f64::from_bits(state.number), json, last })
    }
}

/// The canonical object `before` with `members` over it.
fn merged(before: &str, members: &Map<String, Value>) -> String {
    let known: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(before).unwrap_or_default();
    let mut all: BTreeMap<Cow<'_, str>, Cow<'_, str>> =
        known.into_iter().map(|(name, value)| (name, Cow::Borrowed(value.get()))).collect();
    all.extend(members.iter().map(|(name, value)| (Cow::Borrowed(name.as_str()), Cow::Owned(canonical(value)))));
    let members = all.iter().map(|(name, value)| format!("{}:{value}", Value::from(name.as_ref())));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// The payload of a reduced task: JSON, names in ascending order.
pub fn payload<'a>(values: impl Iterator<Item = (&'a String, Value)>) -> String {
    canonical(&Value::Object(values.map(|(name, value)| (name.clone(), value)).collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reduce(with: Reduction, values: &[Value]) -> Value {
        let mut reduced = Reduced::default();
        for (n, value) in values.iter().enumerate() {
            reduced.take(with, value, 0, Sequence(n as u64));
            // As after a restart.
            let stored = reduced.to_proto();
            assert_eq!(Reduced::from_proto(stored).unwrap(), reduced);
        }
        reduced.result(with)
    }

    #[test]
    fn what_was_not_sent_counts_as_nothing() {
        let values = [json!(1), Value::Null, json!(4), Value::Null];
        for (with, expected) in [
            (Reduction::Count, json!(2)),
            (Reduction::Sum, json!(5.0)),
            (Reduction::Mean, json!(2.5)),
            (Reduction::Min, json!(1.0)),
            (Reduction::Max, json!(4.0)),
            (Reduction::Last, json!(4)),
            (Reduction::Merge, Value::Null),
        ] {
            assert_eq!(reduce(with, &values), expected, "{with:?}");
            assert_eq!(reduce(with, &[]), if with == Reduction::Count { json!(0) } else { Value::Null });
        }
    }

    #[test]
    fn members_of_objects_are_put_over_each_other() {
        let values = [json!({"b": 1, "a": {"x": 1.5}}), json!(7), json!({"c\"": [1, null], "a": "\u{1}"}), json!({})];
        let merged = reduce(Reduction::Merge, &values);
        assert_eq!(canonical(&merged), "{\"a\":\"\\u0001\",\"b\":1,\"c\\\"\":[1,null]}");
        // What would make it too large is left out, whole; a last value that is too large is nothing.
        let large = json!({"b": 2, "d": "x".repeat(REDUCED_BYTES_MAX)});
        assert_eq!(reduce(Reduction::Merge, &[values[0].clone(), large.clone()]), values[0]);
        assert_eq!(reduce(Reduction::Last, &[json!(1), large]), Value::Null);
    }

    #[test]
    fn fuel_pays_for_merging() {
        let large: Value = (0..230).map(|n| (format!("member{n}"), json!(n))).collect::<Map<_, _>>().into();
        let mut reduced = Reduced::default();
        let begun = std::time::Instant::now();
        for n in 0..100 {
            reduced.take(Reduction::Merge, &large, 0, Sequence(n));
        }
        assert!(reduced.kept_bytes() > 3_000);
        // A unit for each byte that was there, and for as many that came.
        let fuel = 2 * reduced.kept_bytes() as u64;
        let nanoseconds = begun.elapsed().as_nanos() as u64 / 100 / fuel;
        println!("{nanoseconds} ns for each of {fuel} fuel");
        // Some 15 where the machine has nothing else to do.
        assert!(nanoseconds < 200, "{nanoseconds} ns");
    }

    #[test]
    fn numbers_are_written_as_they_always_were() {
        for (text, written) in [
            ("1e15", "1000000000000000.0"),
            ("1e16", "1e+16"),
            ("1e21", "1e+21"),
            ("123456789012345680000", "1.2345678901234568e+20"),
            ("0.1", "0.1"),
            ("1e-5", "0.00001"),
            ("0.00012", "0.00012"),
            ("1e-7", "1e-7"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("-0.0", "-0.0"),
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(
                canonical(&value),
                written,
                "{text}: a version of its own for the rules of apply, if this changes"
            );
        }
    }
}
