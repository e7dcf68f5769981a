//! Rules of projects, which an owner writes, and messages that meet them.

use std::sync::LazyLock;

use bytes::Bytes;
use lockstep_rules::limits::{ELEMENTS_MAX, EXPRESSION_FUEL, FUEL_FOR_STEP, SCHEMA_FUEL};
use lockstep_rules::{Bundle, Input, Judgement, Last, Rules};
use lockstep_types::Address;

use crate::target::Target;

pub(super) const TARGETS: &[Target] = &[
    Target::new("rules", bundles, read_bundle),
    Target::new("rules_expression", expressions, read_expression),
    Target::new("rules_message", messages, read_message),
];

/// `(module (memory (export "memory") 1) (func (export "check") (result i32) (i32.const 0)))`
const MODULE: &[u8] = b"\0asm\x01\0\0\0\x01\x05\x01\x60\0\x01\x7f\x03\x02\x01\0\x05\x03\x01\0\x01\x07\x12\x02\
    \x06memory\x02\0\x05check\0\0\x0a\x06\x01\x04\0\x41\0\x0b";
const SCHEMA: &[u8] = br#"{"type":"object","properties":{"n":{"type":"number","multipleOf":0.5},"t":{"pattern":"^a+$"},
    "l":{"items":{"enum":[1,2]},"uniqueItems":true}},"required":["n"]}"#;
const EXPRESSIONS: [&str; 4] = [
    "message.n > 1 && (last == null || message.n > last.message.n)",
    "message.l.all(x, x in [1, 2]) || message.t.matches('a+')",
    "size(string(message.n)) < 20 ? abs(message.n) <= 1e6 : false",
    "distance(message.n, 1, 2.5, 3) >= 0.0",
];

fn bundle(format: &str) -> Bundle {
    let expect = |that: &&str| format!("[[validate.expect]]\nthat = \"{that}\"\nreason = \"no\"\n");
    let expects: String = EXPRESSIONS[..2].iter().map(expect).collect();
    let document = format!(
        "version = 1\n[decode]\nformat = \"{format}\"\n[validate]\nschema = \"s\"\n{expects}[code]\nmodule = \"m\"\n\
         [aggregate.reduce]\nn = {{ of = \"message.n\", with = \"mean\" }}\n"
    );
    let files = [("m".to_owned(), Bytes::from_static(MODULE)), ("s".to_owned(), Bytes::from_static(SCHEMA))];
    Bundle { document, files: files.into() }
}

fn input(data: &[u8], last: Option<&[u8]>) -> Input {
    Input {
        data: Bytes::copy_from_slice(data),
        device: Address([1; 20]),
        version: "1".into(),
        nonce: Some(7),
        time_ms: 1_700_000_000_000,
        last: last.map(|data| Last { data: Bytes::copy_from_slice(data), time_ms: 1 }),
    }
}

/// The same again, and no more than it may cost.
fn judge(rules: &Rules, input: &Input) -> Judgement {
    let judged = rules.judge(input);
    assert_eq!(rules.judge(input), judged, "the same message, and something else");
    let code = rules.document().code.as_ref().map_or(0, |code| code.fuel + 10_000);
    let most = FUEL_FOR_STEP * EXPRESSION_FUEL
        + SCHEMA_FUEL
        + 2 * ELEMENTS_MAX as u64
        + code
        + input.data.len() as u64
        + 1_000;
    assert!(judged.fuel <= most, "{} of {most}", judged.fuel);
    if let Err(refusal) = rules.glance(input).0 {
        let reason = judged.result.as_ref().err().map(|refusal| refusal.reason.clone());
        assert!(reason.is_some(), "the door refuses what is taken: {refusal}");
    }
    judged
}

fn bundles() -> Vec<Vec<u8>> {
    vec![bundle("json").encode(), bundle("cbor").encode()]
}

fn read_bundle(bytes: &[u8]) -> bool {
    let Ok(bundle) = Bundle::decode(Bytes::copy_from_slice(bytes)) else { return false };
    assert_eq!(bundle.encode(), bytes, "one bundle has one form");
    let Ok(rules) = Rules::compile(&bundle) else { return true };
    for data in [&br#"{"n":2,"t":"a","l":[1,2]}"#[..], b"\xa1\x61n\x02", b"[]", b""] {
        judge(&rules, &input(data, Some(br#"{"n":1}"#)));
    }
    true
}

fn expressions() -> Vec<Vec<u8>> {
    EXPRESSIONS.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn read_expression(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    if text.contains("'''") {
        return false;
    }
    let document = format!("version = 1\n[[validate.expect]]\nthat = '''{text}'''\nreason = \"no\"\n");
    let Ok(rules) = Rules::compile(&Bundle { document, files: [].into() }) else { return false };
    judge(&rules, &input(br#"{"n":2.5,"t":"aa","l":[1,2,{"x":null}]}"#, Some(br#"{"n":1}"#)));
    true
}

fn messages() -> Vec<Vec<u8>> {
    vec![br#"{"n":2.5,"t":"aa","l":[1,2]}"#.to_vec(), b"\xa2\x61n\xf9\x40\x00\x61l\x82\x01\x02".to_vec()]
}

fn read_message(bytes: &[u8]) -> bool {
    static RULES: LazyLock<[Rules; 2]> =
        LazyLock::new(|| ["json", "cbor"].map(|format| Rules::compile(&bundle(format)).expect("they are valid")));
    let taken = RULES.iter().map(|rules| judge(rules, &input(bytes, None)).result.is_ok());
    taken.fold(false, |any, taken| any | taken)
}
