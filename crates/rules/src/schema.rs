//! JSON Schema, with an end to what it costs: only keywords whose cost is known are taken, nothing is fetched, references
//! that lead back are refused, and patterns are matched in linear time.

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

use crate::decode::Decoded;
use crate::error::RulesError;
use crate::limits::{PATTERN_BYTES_MAX, PATTERNS_MAX, SCHEMA_BYTES_MAX, SCHEMA_FUEL, SCHEMA_PARTS_MAX};

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
    patterns: usize,
    pattern_bytes: u64,
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
    pub fn compile(text: &[u8], patterns: &mut usize) -> Result<Self, RulesError> {
        if text.len() > SCHEMA_BYTES_MAX {
            return Err(RulesError::TooLarge { what: "the schema", bytes_max: SCHEMA_BYTES_MAX });
        }
        let wrong = |error: String| RulesError::Schema(error);
        let schema: Value = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
        let mut weight = Weight::default();
        weigh(&schema, &schema, &mut Vec::new(), &mut weight).map_err(wrong)?;
        // As often as they are referred to: the library may compile them as often.
        *patterns = patterns
            .checked_sub(weight.patterns)
            .ok_or_else(|| wrong(format!("there are more than {PATTERNS_MAX} patterns")))?;
        let options = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .should_validate_formats(false)
            .with_pattern_options(
                PatternOptions::regex().size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX),
            )
            .offline();
        let validator = options.build(&schema).map_err(|e| wrong(format!("{e}, at {}", e.instance_path())))?;
        Ok(Self { validator, weight })
    }

    /// Whether the message passes, and what that took.
    pub fn check(&self, message: &Decoded, bytes: usize) -> (Result<(), Mismatch>, u64) {
        let Weight { parts, pattern_bytes, uniques, .. } = self.weight;
        let elements = message.elements.max(1);
        let texts = (pattern_bytes * bytes as u64) / 64 + parts * bytes as u64 / 1_024;
        let fuel = parts * elements + texts + uniques * elements * elements / 8;
        if fuel > SCHEMA_FUEL {
            return (Err(Mismatch::Fuel), 0);
        }
        let checked = self.validator.validate(&message.value).map_err(|error| {
            let text: String = error.to_string().chars().take(200).collect();
            Mismatch::At { path: error.instance_path().to_string(), error: text }
        });
        (checked, fuel)
    }
}

fn weigh<'a>(part: &'a Value, root: &'a Value, above: &mut Vec<&'a str>, weight: &mut Weight) -> Result<(), String> {
    weight.parts += 1;
    if weight.parts > SCHEMA_PARTS_MAX as u64 {
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
            weigh(value, root, above, weight)?;
        } else if LISTS.contains(&keyword) {
            let parts = value.as_array().ok_or_else(|| format!("{keyword} is a list of schemas"))?;
            parts.iter().try_for_each(|part| weigh(part, root, above, weight))?;
        } else if OBJECTS.contains(&keyword) {
            let parts = value.as_object().ok_or_else(|| format!("{keyword} is an object of schemas"))?;
            if keyword == "patternProperties" {
                weight.patterns += parts.len();
                weight.pattern_bytes += parts.keys().map(|pattern| pattern.len() as u64).sum::<u64>();
            }
            parts.values().try_for_each(|part| weigh(part, root, above, weight))?;
        } else if !PLAIN.contains(&keyword) {
            return Err(format!("the keyword {keyword:?} is not supported"));
        }
        match keyword {
            "$ref" => follow(value, root, above, weight)?,
            "pattern" => {
                weight.patterns += 1;
                weight.pattern_bytes += value.as_str().map_or(0, str::len) as u64;
            }
            "uniqueItems" => weight.uniques += 1,
            // As many comparisons.
            "enum" | "const" | "required" | "dependentRequired" => weight.parts += size(value) / 4,
            _ => {}
        }
    }
    Ok(())
}

fn follow<'a>(target: &'a Value, root: &'a Value, above: &mut Vec<&'a str>, weight: &mut Weight) -> Result<(), String> {
    let target = target.as_str().unwrap_or_default();
    let Some(path) = target.strip_prefix('#').filter(|path| !path.contains('%')) else {
        return Err(format!("$ref leads within the schema (\"#/$defs/name\"), not to {target:?}"));
    };
    if above.contains(&target) {
        return Err(format!("the reference {target:?} leads back to itself"));
    }
    let part = root.pointer(path).ok_or_else(|| format!("there is nothing at {target:?}"))?;
    above.push(target);
    weigh(part, root, above, weight)?;
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
