//! What rules make of one message: pure, the same on every machine, with an end. Here are the libraries that read and run
//! what owners write; `no_engine.rs` stands in for all of it in a program without them.

mod code;
mod decode;
mod expression;
mod notes;
mod pattern;
mod schema;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde_json::Value as Json;

use self::code::{Code, CodeError, Decision, Host};
use self::decode::{Decoded, Decoder, Unreadable};
use self::expression::{Expression, ExpressionError, Fuel, Scope, Value};
use self::notes::{Notes, aggregated};
use self::pattern::Patterns;
use self::schema::{Mismatch, Schema};
use crate::bundle::Bundle;
use crate::document::{Action, Document};
use crate::error::RulesError;
use crate::judge::{Accepted, Input, Judgement, Note, Refusal, Stage};
use crate::limits::{EXPRESSION_FUEL, FLAGS_MAX, FUEL_FOR_STEP, GROUP_NAME_BYTES_MAX, INSTRUCTIONS_FOR_FUEL};

/// Reads the text of a document as it stands; nothing of it is checked yet.
pub(crate) fn read_document(text: &str) -> Result<Document, RulesError> {
    toml::from_str(text).map_err(|e| RulesError::Document(e.to_string()))
}

/// Rules that can be applied.
pub struct Rules {
    document: Document,
    decoder: Decoder,
    schema: Option<Schema>,
    expect: Vec<Expression>,
    filter: Vec<Expression>,
    code: Option<Code>,
    time: Option<Expression>,
    nonce: Option<Expression>,
    group: Option<Expression>,
    close: Option<Expression>,
    reduce: Vec<Expression>,
    needs_last: bool,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("document", &self.document).finish_non_exhaustive()
    }
}

/// Fuel that each message takes before anything is done, and bytes of data that one more pays for.
const MESSAGE_FUEL: u64 = 20;
const DATA_BYTES_FOR_FUEL: u64 = 32;

impl Rules {
    /// Makes rules of a bundle.
    ///
    /// # Errors
    /// Whatever cannot be used, said so that its author can mend it.
    pub fn compile(bundle: &Bundle) -> Result<Self, RulesError> {
        let document = Document::parse(&bundle.document)?;
        let file = |name: &str| bundle.files.get(name).ok_or_else(|| RulesError::FileMissing(name.to_owned()));
        let descriptor = document.decode.descriptor.as_deref().map(file).transpose()?;
        let decoder = Decoder::new(&document.decode, descriptor.map(|bytes| &bytes[..]))?;
        let schema = document.validate.schema.as_deref().map(file).transpose()?;
        let mut patterns = Patterns::default();
        let schema = schema.map(|text| Schema::compile(text, &mut patterns)).transpose()?;
        let code = match &document.code {
            Some(code) => Some(Code::compile(file(&code.module)?, code.fuel)?),
            None => None,
        };
        let mut expression = |place: String, text: &str| Expression::compile(&place, text, &mut patterns);
        let expects = document.validate.expect.iter().enumerate();
        let expect = expects.map(|(n, expect)| expression(format!("validate.expect[{n}]"), &expect.that));
        let expect = expect.collect::<Result<Vec<_>, _>>()?;
        let filters = document.filter.iter().enumerate();
        let filter = filters.map(|(n, filter)| expression(format!("filter[{n}]"), &filter.when));
        let filter = filter.collect::<Result<Vec<_>, _>>()?;
        let reduced = document.aggregate.reduce.iter();
        let reduce = reduced.map(|(name, reduce)| expression(format!("aggregate.reduce.{name}"), &reduce.of));
        let reduce = reduce.collect::<Result<Vec<_>, _>>()?;
        let time = document.time.as_deref().map(|text| expression("time".into(), text)).transpose()?;
        let nonce = document.nonce.as_deref().map(|text| expression("nonce".into(), text)).transpose()?;
        let group = document.aggregate.field.as_deref().map(|text| expression("aggregate.field".into(), text));
        let group = group.transpose()?;
        let close = document.aggregate.close.as_deref().map(|text| expression("aggregate.close".into(), text));
        let close = close.transpose()?;
        let all = expect.iter().chain(&filter).chain(&reduce).chain(&time).chain(&nonce).chain(&group).chain(&close);
        let needs_last = code.is_some() || all.into_iter().any(|expression| expression.uses_last);
        Ok(Self { decoder, schema, expect, filter, code, time, nonce, group, close, reduce, needs_last, document })
    }

    /// The document.
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// Whether the device's last accepted message is looked at.
    pub fn needs_last(&self) -> bool {
        self.needs_last
    }

    /// What these rules make of a message.
    pub fn judge(&self, input: &Input) -> Judgement {
        self.judge_with(input, &mut Notes::default())
    }

    /// The same, and what each stage did.
    pub fn explain(&self, input: &Input) -> (Judgement, Vec<Note>) {
        let mut notes = Notes::wanted();
        let judgement = self.judge_with(input, &mut notes);
        if let Err(refusal) = &judgement.result {
            let word = if refusal.dropped { "drops it" } else { "refuses it" };
            notes.add(refusal.stage, judgement.fuel, || format!("{word}, {}: {}", refusal.reason, refusal.detail));
        }
        (judgement, notes.into_list())
    }

    fn judge_with(&self, input: &Input, notes: &mut Notes) -> Judgement {
        let mut fuel = MESSAGE_FUEL + input.data.len() as u64 / DATA_BYTES_FOR_FUEL;
        let result = self.stages(input, &mut fuel, notes);
        Judgement { result, fuel }
    }

    /// What can be told of a message without the device's last one, the time of its batch and the module: so much a node says
    /// at once, and cheaply. [`Rules::judge`] refuses whatever this refuses, at any time.
    ///
    /// With it the fuel that it took.
    pub fn glance(&self, input: &Input) -> (Result<(), Refusal>, u64) {
        let mut fuel = MESSAGE_FUEL + input.data.len() as u64 / DATA_BYTES_FOR_FUEL;
        let result = self.first_stages(input, &mut fuel);
        (result, fuel)
    }

    fn first_stages(&self, input: &Input, spent: &mut u64) -> Result<(), Refusal> {
        let message = self.read(input, spent, &mut Notes::default())?.value;
        let device = input.device.to_string();
        let scope = scope(input, &message, &device, None);
        let mut fuel = Fuel::new(EXPRESSION_FUEL);
        let can_be_told = |expression: &Expression| !expression.uses_last && !expression.uses_time;
        let held = self.expectations(&scope, &mut fuel, can_be_told);
        let filtered = held.and_then(|()| self.filters(&scope, &mut fuel, can_be_told));
        *spent += FUEL_FOR_STEP * (EXPRESSION_FUEL - fuel.left());
        filtered.map(drop)
    }

    /// Reads a message and holds it against the schema.
    fn read(&self, input: &Input, spent: &mut u64, notes: &mut Notes) -> Result<Decoded, Refusal> {
        let refuse =
            |stage, reason: &str, detail: String| Refusal { stage, reason: reason.into(), detail, dropped: false };
        let unreadable = |e: Unreadable| refuse(Stage::Decode, "unreadable", e.to_string());
        let message = self.decoder.decode(&input.data).map_err(unreadable)?;
        *spent += message.elements;
        notes.add(Stage::Decode, *spent, || format!("{} values", message.elements));
        if let Some(schema) = &self.schema {
            let (checked, fuel) = schema.check(&message, input.data.len());
            *spent += fuel;
            checked.map_err(|mismatch| match mismatch {
                Mismatch::Fuel => {
                    refuse(Stage::Schema, "fuel", "the message is too large for a schema of this size".into())
                }
                Mismatch::At { path, error } if path.is_empty() => refuse(Stage::Schema, "schema", error),
                Mismatch::At { path, error } => refuse(Stage::Schema, "schema", format!("{path}: {error}")),
            })?;
            notes.add(Stage::Schema, *spent, || "holds".into());
        }
        Ok(message)
    }

    fn stages(&self, input: &Input, spent: &mut u64, notes: &mut Notes) -> Result<Accepted, Refusal> {
        let message = self.read(input, spent, notes)?;
        // The same rules took it, so it can be read; other rules may have.
        let last = input.last.as_ref().filter(|_| self.needs_last);
        let last = last.and_then(|last| Some((self.decoder.decode(&last.data).ok()?, last)));
        if let Some((decoded, _)) = &last {
            *spent += decoded.elements;
        }
        let last = last.map(|(decoded, last)| (Arc::new(decoded.value), milliseconds(last.time_ms)));
        let Decoded { value, .. } = message;
        let message = Arc::new(value);
        let device = input.device.to_string();
        let scope = scope(input, &message, &device, last.as_ref());
        let mut fuel = Fuel::new(EXPRESSION_FUEL);
        let (before, held) = (*spent, self.expectations(&scope, &mut fuel, |_| true));
        *spent = before + FUEL_FOR_STEP * (EXPRESSION_FUEL - fuel.left());
        held?;
        if !self.expect.is_empty() {
            notes.add(Stage::Expect, *spent, || format!("{} hold", self.expect.len()));
        }
        let flags = self.filters(&scope, &mut fuel, |_| true);
        *spent = before + FUEL_FOR_STEP * (EXPRESSION_FUEL - fuel.left());
        let mut accepted = Accepted { flags: flags?, ..Accepted::default() };
        if !self.filter.is_empty() {
            let flags = || accepted.flags.join(", ");
            notes.add(Stage::Filter, *spent, || if accepted.flags.is_empty() { "nothing".into() } else { flags() });
        }
        if let Some(code) = &self.code {
            let host = Host::new(
                Arc::clone(&message),
                input.data.clone(),
                milliseconds(input.time_ms),
                input.device,
                last.clone(),
            );
            let (decided, taken) = code.run(host);
            *spent += taken.div_ceil(INSTRUCTIONS_FOR_FUEL);
            let (decision, said) = decided.map_err(|error| {
                let reason = if error == CodeError::Fuel { "fuel" } else { "failed" };
                Refusal { stage: Stage::Code, reason: reason.into(), detail: error.to_string(), dropped: false }
            })?;
            if decision != Decision::Accept {
                let reason = said.reason.unwrap_or_else(|| "refused".into());
                let detail = "the module says so".into();
                return Err(Refusal { stage: Stage::Code, reason, detail, dropped: decision == Decision::Drop });
            }
            notes.add(Stage::Code, *spent, || format!("takes it{}", also(&said.group, &said.flags)));
            accepted.group = said.group;
            accepted.flags.extend(said.flags);
            accepted.flags.truncate(FLAGS_MAX);
        }
        let before = fuel.left();
        let result = self.aggregate(&scope, &mut accepted, &mut fuel);
        *spent += FUEL_FOR_STEP * (before - fuel.left());
        result?;
        notes.add(Stage::Aggregate, *spent, || aggregated(&accepted, self.document.aggregate.reduce.keys()));
        Ok(accepted)
    }

    /// Those expressions that must hold and that `wanted` wants.
    fn expectations(
        &self,
        scope: &Scope<'_>,
        fuel: &mut Fuel,
        wanted: impl Fn(&Expression) -> bool,
    ) -> Result<(), Refusal> {
        let expects = self.expect.iter().zip(&self.document.validate.expect);
        for (expression, expect) in expects.filter(|(expression, _)| wanted(expression)) {
            let holds = expression.holds(scope, fuel).map_err(|e| failed(Stage::Expect, &expect.that, &e))?;
            if !holds {
                let detail = format!("{} does not hold", expect.that);
                return Err(Refusal { stage: Stage::Expect, reason: expect.reason.clone(), detail, dropped: false });
            }
        }
        Ok(())
    }

    /// What those filters that `wanted` wants flag.
    fn filters(
        &self,
        scope: &Scope<'_>,
        fuel: &mut Fuel,
        wanted: impl Fn(&Expression) -> bool,
    ) -> Result<Vec<String>, Refusal> {
        let mut flags = Vec::new();
        let filters = self.filter.iter().zip(&self.document.filter);
        for (expression, filter) in filters.filter(|(expression, _)| wanted(expression)) {
            let holds = expression.holds(scope, fuel).map_err(|e| failed(Stage::Filter, &filter.when, &e))?;
            match filter.action {
                Action::Drop if holds => {
                    let detail = format!("{} holds", filter.when);
                    return Err(Refusal { stage: Stage::Filter, reason: filter.reason.clone(), detail, dropped: true });
                }
                Action::Flag if holds && flags.len() < FLAGS_MAX => flags.push(filter.reason.clone()),
                _ => {}
            }
        }
        Ok(flags)
    }

    fn aggregate(&self, scope: &Scope<'_>, accepted: &mut Accepted, fuel: &mut Fuel) -> Result<(), Refusal> {
        let stage = Stage::Aggregate;
        if let (Some(expression), Some(text)) = (&self.time, &self.document.time) {
            let time = expression.evaluate(scope, fuel).and_then(|value| match value {
                Value::Int(ms) => Ok(ms),
                _ => Err(ExpressionError::Wanted("whole number of milliseconds")),
            });
            let time = time.map_err(|e| failed(stage, text, &e))?;
            accepted.time_ms = Some(time);
            let length = self.document.aggregate.window_ms.and_then(|ms| i64::try_from(ms).ok());
            accepted.window = length.map(|length| time.div_euclid(length.max(1)));
        }
        if let (Some(expression), Some(text)) = (&self.nonce, &self.document.nonce) {
            let nonce = expression.evaluate(scope, fuel).and_then(|value| match value {
                Value::Int(nonce) => Ok(nonce),
                _ => Err(ExpressionError::Wanted("whole number")),
            });
            accepted.nonce = Some(nonce.map_err(|e| failed(stage, text, &e))?);
        }
        if let (Some(expression), Some(text)) = (&self.group, &self.document.aggregate.field) {
            let group = expression.evaluate(scope, fuel).and_then(|value| match value {
                Value::Text(name) if name.len() <= GROUP_NAME_BYTES_MAX => Ok(name.into_owned()),
                Value::Int(number) => Ok(number.to_string()),
                _ => Err(ExpressionError::Wanted("text of at most 128 bytes, and no whole number")),
            });
            let group = group.map_err(|e| failed(stage, text, &e))?;
            accepted.group.get_or_insert(group);
        }
        if let (Some(expression), Some(text)) = (&self.close, &self.document.aggregate.close) {
            accepted.closes = expression.holds(scope, fuel).map_err(|e| failed(stage, text, &e))?;
        }
        for (expression, (_, reduce)) in self.reduce.iter().zip(&self.document.aggregate.reduce) {
            let value = match expression.evaluate(scope, fuel) {
                // A device need not send everything each time.
                Err(ExpressionError::Missing(_)) => Ok(Json::Null),
                value => value.and_then(|value| value.to_json(fuel)),
            };
            accepted.values.push(value.map_err(|e| failed(stage, &reduce.of, &e))?);
        }
        Ok(())
    }
}

fn failed(stage: Stage, expression: &str, error: &ExpressionError) -> Refusal {
    let reason = if *error == ExpressionError::Fuel { "fuel" } else { "failed" };
    Refusal { stage, reason: reason.into(), detail: format!("{error}: {expression}"), dropped: false }
}

/// What a module said beside that it takes a message.
fn also(group: &Option<String>, flags: &[String]) -> String {
    let group = group.iter().map(|group| format!(", group {group:?}"));
    group.chain(flags.iter().map(|flag| format!(", {flag}"))).collect()
}

fn milliseconds(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn scope<'a>(input: &'a Input, message: &'a Json, device: &'a str, last: Option<&'a (Arc<Json>, i64)>) -> Scope<'a> {
    let nonce = input.nonce.and_then(|nonce| i64::try_from(nonce).ok());
    Scope {
        variables: [
            Value::of(message),
            last.map_or(Value::Null, |(message, time)| Value::Last { message, time: *time }),
            Value::Text(Cow::Borrowed(device)),
            Value::Int(milliseconds(input.time_ms)),
            Value::Bytes(Cow::Borrowed(&input.data)),
            Value::Text(Cow::Borrowed(&input.version)),
            nonce.map_or(Value::Null, Value::Int),
        ],
    }
}
