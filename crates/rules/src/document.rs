//! The document in which a project says what is to be done with its messages: TOML, version 1. docs/projects.md explains
//! it to who writes one.

use std::collections::BTreeMap;

use lockstep_types::OutputName;
use serde::{Deserialize, Serialize};

use crate::engine::read_document;
use crate::error::RulesError;
use crate::limits::{
    DOCUMENT_BYTES_MAX, EXPRESSIONS_MAX, FUEL_DEFAULT, FUEL_MAX, GROUP_BYTES_MAX, GROUP_MESSAGES_MAX, NAME_BYTES_MAX,
    OUTPUTS_MAX, REASON_BYTES_MAX, REDUCED_MAX, SPAN_MS_MAX,
};

/// The version of the document that this program reads.
pub const DOCUMENT_VERSION: u32 = 1;

/// Rules as their author writes them. Every part may be missing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// [`DOCUMENT_VERSION`].
    pub version: u32,
    /// What the data of a message is.
    #[serde(default)]
    pub decode: Decode,
    /// An expression for the time at which the device measured, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// An expression for the number by which messages are sorted with `sort.by = "nonce"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// What a message has to be; else it is refused.
    #[serde(default)]
    pub validate: Validate,
    /// What is dropped or flagged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<Filter>,
    /// What the rest cannot say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// The order of messages within a task.
    #[serde(default)]
    pub sort: Sort,
    /// What becomes one task.
    #[serde(default)]
    pub aggregate: Aggregate,
    /// Where tasks go.
    #[serde(default)]
    pub route: Route,
}

/// How the data of a message is read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decode {
    /// The format.
    #[serde(default)]
    pub format: Format,
    /// File of the descriptor set (`protoc --include_imports --descriptor_set_out`), for protobuf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<String>,
    /// Full name of the message, for protobuf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A format of messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Bytes; `message` is null.
    Raw,
    /// JSON (RFC 8259).
    #[default]
    Json,
    /// CBOR (RFC 8949).
    Cbor,
    /// Protocol Buffers, by a descriptor.
    Protobuf,
}

/// What a message has to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validate {
    /// File of a JSON Schema (draft 2020-12) for what was decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Expressions that must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expect: Vec<Expect>,
}

/// An expression that must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The expression.
    pub that: String,
    /// A word for what does not hold.
    pub reason: String,
}

/// What happens to messages of which an expression holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// The expression.
    pub when: String,
    /// What happens.
    #[serde(rename = "do")]
    pub action: Action,
    /// A word for why.
    pub reason: String,
}

/// See [`Filter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is not ordered, and its device hears why.
    Drop,
    /// It is ordered, and marked.
    Flag,
}

/// A WebAssembly module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Code {
    /// Its file.
    pub module: String,
    /// Instructions that it may take for one message, about.
    #[serde(default = "default_fuel")]
    pub fuel: u64,
}

fn default_fuel() -> u64 {
    FUEL_DEFAULT
}

/// The order of messages within a task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sort {
    /// By what.
    #[serde(default)]
    pub by: SortBy,
    /// For how long a group that is complete waits for what comes late, in milliseconds of batch time.
    #[serde(default)]
    pub hold_ms: u64,
}

/// See [`Sort`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SortBy {
    /// The order of the network.
    #[default]
    Arrival,
    /// The device's time.
    Time,
    /// A number that the device counts, as the document's `nonce` says.
    Nonce,
}

/// What becomes one task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aggregate {
    /// Which messages belong together.
    #[serde(default)]
    pub by: GroupBy,
    /// For `by = "field"`: an expression for the name of the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Messages that close a group; the project's setting where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Bytes of data that close a group; the project's setting where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Age in milliseconds that closes a group; the project's setting where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Length in milliseconds of windows of the device's time; the first begins at 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u64>,
    /// An expression that closes the message's group with it, where it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close: Option<String>,
    /// The task's payload, by name: `last`, `mean`, `min`, `max`, `sum`, `count` or `merge` of an expression. Empty: the
    /// messages themselves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reduce: BTreeMap<String, Reduce>,
}

/// Which messages belong together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupBy {
    /// Those of a device.
    #[default]
    Device,
    /// All of the project.
    Project,
    /// Those with the same text of an expression.
    Field,
}

/// One value of a reduced payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reduce {
    /// An expression for the value of one message.
    pub of: String,
    /// What is made of them.
    pub with: Reduction,
}

/// What is made of the values of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// The last one, in the task's order.
    Last,
    /// The mean of numbers.
    Mean,
    /// The smallest number.
    Min,
    /// The largest number.
    Max,
    /// The sum of numbers.
    Sum,
    /// How many there are.
    Count,
    /// Objects, later members over earlier ones.
    Merge,
}

/// Where tasks go.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Names of outputs; `None`: all of the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Vec<String>>,
}

impl Document {
    /// Reads a document, and checks what can be checked without its files.
    ///
    /// # Errors
    /// What is wrong, with the place.
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        if text.len() > DOCUMENT_BYTES_MAX {
            return Err(RulesError::TooLarge { what: "the document", bytes_max: DOCUMENT_BYTES_MAX });
        }
        let document = read_document(text)?;
        document.check()?;
        Ok(document)
    }

    /// Names of the files that it needs.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let code = self.code.as_ref().map(|code| code.module.as_str());
        [self.decode.descriptor.as_deref(), self.validate.schema.as_deref(), code].into_iter().flatten()
    }

    fn check(&self) -> Result<(), RulesError> {
        let wrong = |text: String| Err(RulesError::Document(text));
        if self.version != DOCUMENT_VERSION {
            return wrong(format!("version must be {DOCUMENT_VERSION}, not {}", self.version));
        }
        let protobuf = self.decode.format == Format::Protobuf;
        if protobuf != self.decode.descriptor.is_some() || protobuf != self.decode.message.is_some() {
            return wrong("decode: descriptor and message belong to format = \"protobuf\", which needs both".into());
        }
        if self.decode.format == Format::Raw && self.validate.schema.is_some() {
            return wrong("validate.schema needs a message that is decoded, not format = \"raw\"".into());
        }
        let expressions = self.validate.expect.len() + self.filter.len() + self.aggregate.reduce.len();
        if expressions > EXPRESSIONS_MAX {
            return wrong(format!("there are {expressions} expressions, more than {EXPRESSIONS_MAX}"));
        }
        let reasons = self.validate.expect.iter().map(|e| &e.reason).chain(self.filter.iter().map(|f| &f.reason));
        if let Some(reason) = reasons.into_iter().find(|reason| !is_word(reason)) {
            return wrong(format!(
                "a reason is a word of a to z, 0 to 9 and _, of at most {REASON_BYTES_MAX}: not {reason:?}"
            ));
        }
        self.check_aggregate()?;
        if self.code.as_ref().is_some_and(|code| code.fuel == 0 || code.fuel > FUEL_MAX) {
            return wrong(format!("code.fuel must be from 1 to {FUEL_MAX}"));
        }
        let outputs = self.route.outputs.as_deref().unwrap_or_default();
        if outputs.len() > OUTPUTS_MAX || self.route.outputs.as_ref().is_some_and(Vec::is_empty) {
            return wrong(format!("route.outputs names 1 to {OUTPUTS_MAX} outputs"));
        }
        if let Some((name, error)) = outputs.iter().find_map(|name| Some((name, name.parse::<OutputName>().err()?))) {
            return wrong(format!("route.outputs: {name:?}: {error}"));
        }
        Ok(())
    }

    fn check_aggregate(&self) -> Result<(), RulesError> {
        let wrong = |text: &str| Err(RulesError::Document(text.into()));
        let (aggregate, sort) = (&self.aggregate, &self.sort);
        if (aggregate.by == GroupBy::Field) != aggregate.field.is_some() {
            return wrong("aggregate.field belongs to by = \"field\"");
        }
        if self.time.is_none() && (sort.by == SortBy::Time || aggregate.window_ms.is_some()) {
            return wrong("sorting by time and windows need `time`, an expression for the device's time");
        }
        if (sort.by == SortBy::Nonce) != self.nonce.is_some() {
            return wrong("sort.by = \"nonce\" and `nonce`, an expression for a whole number, belong together");
        }
        if sort.hold_ms > 0 && aggregate.window_ms.is_none() && aggregate.close.is_none() {
            return wrong(
                "sort.hold_ms needs aggregate.window_ms or aggregate.close: count, bytes and age do not wait",
            );
        }
        let spans = [Some(sort.hold_ms), aggregate.age_ms, aggregate.window_ms];
        if spans.into_iter().flatten().any(|ms| ms > SPAN_MS_MAX) {
            return wrong("hold_ms, age_ms and window_ms are at most 31 days");
        }
        if [aggregate.count, aggregate.bytes, aggregate.age_ms, aggregate.window_ms].contains(&Some(0)) {
            return wrong("aggregate: count, bytes, age_ms and window_ms must be at least 1");
        }
        if aggregate.count.is_some_and(|count| count > GROUP_MESSAGES_MAX)
            || aggregate.bytes.is_some_and(|bytes| bytes > GROUP_BYTES_MAX)
        {
            return Err(RulesError::Document(format!(
                "aggregate: count is at most {GROUP_MESSAGES_MAX}, and bytes at most {GROUP_BYTES_MAX}"
            )));
        }
        let name_ok = |name: &String| (1..=NAME_BYTES_MAX).contains(&name.len());
        if aggregate.reduce.len() > REDUCED_MAX || !aggregate.reduce.keys().all(name_ok) {
            return wrong("aggregate.reduce has at most 32 values, with names of at most 64 bytes");
        }
        Ok(())
    }
}

/// Whether a text can be a reason.
pub(crate) fn is_word(text: &str) -> bool {
    let fits = (1..=REASON_BYTES_MAX).contains(&text.len());
    fits && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
