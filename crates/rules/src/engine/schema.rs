//! JSON Schema, with an end to what it costs: only keywords whose cost is known are taken, nothing is fetched, references
//! that lead back are refused, and patterns are matched in linear time.

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

use super::decode::Decoded;
use super::pattern::{Patterns, with_ascii_classes};
use crate::error::RulesError;
use crate::limits::{PATTERN_BYTES_FOR_FUEL, PATTERN_CACHE_BYTES, SCHEMA_BYTES_MAX, SCHEMA_FUEL, SCHEMA_PARTS_MAX};

/// Keywords that say something about the schema only, or whose value is no schema.
const PLAIN: [&str; 33] = [
    "$schema",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "examples",
    "default",
    "deprecated",
    "readOnly",
    "writeOnly",
    "format",
    "type",
    "enum",
    "const",
    "required",
    "dependentRequired",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minContains",
    "maxContains",
    "minProperties",
    "maxProperties",
    "$ref",
];
/// Keywords whose value is a schema.
const ONE: [&str; 8] = ["additionalProperties", "propertyNames", "items", "contains", "not", "if", "then", "else"];
/// Keywords whose value is a list of schemas.
const LISTS: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];
/// Keywords whose value is an object of schemas.
const OBJECTS: [&str; 3] = ["properties", "patternProperties", "dependentSchemas"];

/// A schema that can be used.
pub(crate) struct Schema {
    validator: Validator,
    weight: Weight,
}

/// What a schema costs at most: for each value of a message, and for each byte of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Weight {
    parts: u64,
    patterns: u64,
    uniques: u64,
}

/// Why a message does not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// It could take too long.
    Fuel,
    /// The place in the message, and what is wrong there.
    At { path: String, error: String },
}

impl Schema {
    /// It may have so many `patterns`, and leaves the rest.
    pub fn compile(text: &[u8], patterns: &mut Patterns) -> Result<Self, RulesError> {
        if text.len() > SCHEMA_BYTES_MAX {
            return Err(RulesError::TooLarge { what: "the schema", bytes_max: SCHEMA_BYTES_MAX });
        }
        let wrong = |error: String| RulesError::Schema(error);
        let schema: Value = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
        let mut weight = Weight::default();
        weigh(&schema, &schema, &mut Vec::new(), &mut (&mut weight, patterns)).map_err(wrong)?;
        let options = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .should_validate_formats(false)
            .with_pattern_options(
                PatternOptions::regex().size_limit(PATTERN_CACHE_BYTES).dfa_size_limit(PATTERN_CACHE_BYTES),
            )
            .offline();
        let validator = options.build(&schema).map_err(|e| wrong(format!("{e}, at {}", e.instance_path())))?;
        Ok(Self { validator, weight })
    }

    /// Whether the message passes, and what that took.
    pub fn check(&self, message: &Decoded, bytes: usize) -> (Result<(), Mismatch>, u64) {
        let Weight { parts, patterns, uniques } = self.weight;
        let elements = message.elements.max(1);
        let texts = patterns * bytes as u64 / PATTERN_BYTES_FOR_FUEL + parts * bytes as u64 / 1_024;
        let fuel = parts * elements + texts + uniques * elements * elements / 8;
        if fuel > SCHEMA_FUEL {
            return (Err(Mismatch::Fuel), 1);
        }
        let checked = self.validator.validate(&message.value).map_err(|error| {
            let text: String = error.to_string().chars().take(200).collect();
            Mismatch::At { path: error.instance_path().to_string(), error: text }
        });
        (checked, fuel)
    }
}

/// What is counted on the way: what it weighs, and the patterns, as often as they are referred to, because the library may
/// compile them as often.
type Counted<'a> = (&'a mut Weight, &'a mut Patterns);

fn add_pattern(pattern: &str, (weight, patterns): &mut Counted<'_>) -> Result<(), String> {
    weight.patterns += 1;
    patterns.take(&with_ascii_classes(pattern))
}

fn weigh<'a>(
    part: &'a Value,
    root: &'a Value,
    above: &mut Vec<&'a str>,
    counted: &mut Counted<'_>,
) -> Result<(), String> {
    counted.0.parts += 1;
    if counted.0.parts > SCHEMA_PARTS_MAX as u64 {
        return Err(format!("it has more than {SCHEMA_PARTS_MAX} parts, with those behind references"));
    }
    let members = match part {
        Value::Bool(_) => return Ok(()),
        Value::Object(members) => members,
        _ => return Err("a schema is an object, true or false".into()),
    };
    for (name, value) in members {
        let keyword = name.as_str();
        if ONE.contains(&keyword) {
            weigh(value, root, above, counted)?;
        } else if LISTS.contains(&keyword) {
            let parts = value.as_array().ok_or_else(|| format!("{keyword} is a list of schemas"))?;
            parts.iter().try_for_each(|part| weigh(part, root, above, counted))?;
        } else if OBJECTS.contains(&keyword) {
            let parts = value.as_object().ok_or_else(|| format!("{keyword} is an object of schemas"))?;
            if keyword == "patternProperties" {
                for pattern in parts.keys() {
                    add_pattern(pattern, counted)?;
                }
            }
            parts.values().try_for_each(|part| weigh(part, root, above, counted))?;
        } else if !PLAIN.contains(&keyword) {
            return Err(format!("the keyword {keyword:?} is not supported"));
        }
        match keyword {
            "$ref" => follow(value, root, above, counted)?,
            "pattern" => {
                add_pattern(value.as_str().unwrap_or_default(), counted)?;
            }
            "uniqueItems" => counted.0.uniques += 1,
            // As many comparisons.
            "enum" | "const" | "required" | "dependentRequired" => counted.0.parts += size(value) / 4,
            _ => {}
        }
    }
    Ok(())
}

fn follow<'a>(
    target: &'a Value,
    root: &'a Value,
    above: &mut Vec<&'a str>,
    counted: &mut Counted<'_>,
) -> Result<(), String> {
    let target = target.as_str().unwrap_or_default();
    let Some(path) = target.strip_prefix('#').filter(|path| !path.contains('%')) else {
        return Err(format!("$ref leads within the schema (\"#/$defs/name\"), not to {target:?}"));
    };
    if above.contains(&target) {
        return Err(format!("the reference {target:?} leads back to itself"));
    }
    let part = root.pointer(path).ok_or_else(|| format!("there is nothing at {target:?}"))?;
    above.push(target);
    weigh(part, root, above, counted)?;
    above.pop();
    Ok(())
}

fn size(value: &Value) -> u64 {
    match value {
        Value::Array(values) => 1 + values.iter().map(size).sum::<u64>(),
        Value::Object(members) => 1 + members.values().map(size).sum::<u64>(),
        _ => 1,
    }
}
