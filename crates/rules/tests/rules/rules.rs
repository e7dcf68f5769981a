//! What rules make of messages, and that nothing a stranger writes costs more than it may.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_rules::limits::{BUNDLE_BYTES_MAX, FUEL_MAX};
use lockstep_rules::{Accepted, Bundle, Input, Judgement, Last, Refusal, Rules, RulesError, Stage};
use lockstep_types::Address;
use serde_json::json;

fn bundle(document: &str, files: &[(&str, &[u8])]) -> Bundle {
    let files: BTreeMap<_, _> =
        files.iter().map(|(name, content)| ((*name).to_owned(), Bytes::copy_from_slice(content))).collect();
    Bundle { document: format!("version = 1\n{document}"), files }
}

fn rules(document: &str, files: &[(&str, &[u8])]) -> Rules {
    Rules::compile(&bundle(document, files)).unwrap()
}

fn refused(document: &str, files: &[(&str, &[u8])]) -> String {
    Rules::compile(&bundle(document, files)).unwrap_err().to_string()
}

fn input(data: impl Into<Bytes>) -> Input {
    Input {
        data: data.into(),
        device: Address([0xab; 20]),
        version: "1".into(),
        nonce: None,
        time_ms: 1_700_000_000_000,
        last: None,
    }
}

fn judge(rules: &Rules, data: &str) -> Result<Accepted, (Stage, String, bool)> {
    let judged = rules.judge(&input(data.to_owned()));
    judged.result.map_err(|Refusal { stage, reason, dropped, .. }| (stage, reason, dropped))
}

fn no(stage: Stage, reason: &str) -> Result<Accepted, (Stage, String, bool)> {
    Err((stage, reason.into(), false))
}

const WEATHER: &str = r#"
time = "message.ts"
[validate]
schema = "schema.json"
[[validate.expect]]
that = "message.celsius > -60 && message.celsius < 60"
reason = "out_of_range"
[[validate.expect]]
that = "last == null || message.ts > last.message.ts"
reason = "not_monotonic"
[[filter]]
when = "has(message.test)"
do = "drop"
reason = "test"
[[filter]]
when = "has(message.battery) && message.battery < 5"
do = "flag"
reason = "low_battery"
[aggregate]
by = "field"
field = "message.station"
window_ms = 3600000
[aggregate.reduce]
celsius = { of = "message.celsius", with = "mean" }
"#;

const SCHEMA: &str = r##"{
  "type": "object",
  "required": ["station", "ts", "celsius"],
  "properties": {
    "station": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 16},
    "ts": {"type": "integer"},
    "celsius": {"$ref": "#/$defs/number"}
  },
  "$defs": {"number": {"type": "number"}}
}"##;

#[test]
fn each_stage_decides() {
    let rules = rules(WEATHER, &[("schema.json", SCHEMA.as_bytes())]);
    assert!(rules.needs_last());
    let good = r#"{"station":"berlin","ts":7200001,"celsius":21.5}"#;
    let accepted = judge(&rules, good).unwrap();
    let expected = Accepted {
        flags: vec![],
        time_ms: Some(7_200_001),
        nonce: None,
        group: Some("berlin".into()),
        window: Some(2),
        closes: false,
        values: vec![json!(21.5)],
    };
    assert_eq!(accepted, expected);
    assert_eq!(judge(&rules, "{"), no(Stage::Decode, "unreadable"));
    assert_eq!(judge(&rules, r#"{"station":"Berlin","ts":1,"celsius":1}"#), no(Stage::Schema, "schema"));
    assert_eq!(judge(&rules, r#"{"station":"berlin","ts":1,"celsius":"1"}"#), no(Stage::Schema, "schema"));
    assert_eq!(judge(&rules, r#"{"station":"berlin","ts":1,"celsius":99}"#), no(Stage::Expect, "out_of_range"));
    let test = judge(&rules, r#"{"station":"berlin","ts":1,"celsius":9,"test":1}"#);
    assert_eq!(test, Err((Stage::Filter, "test".into(), true)));
    let flagged = judge(&rules, r#"{"station":"berlin","ts":-1,"celsius":9,"battery":4.9}"#).unwrap();
    assert_eq!((flagged.flags, flagged.window), (vec!["low_battery".to_owned()], Some(-1)));
    // The device's clock goes back.
    let last = Last { data: Bytes::from_static(good.as_bytes()), time_ms: 1 };
    let Judgement { result, fuel } = rules.judge(&Input { last: Some(last), ..input(good) });
    assert_eq!(result.unwrap_err().reason, "not_monotonic");
    assert!(fuel < 2_000, "{fuel}");
}

#[test]
fn formats_say_the_same() {
    let expect =
        "[[validate.expect]]\nthat = \"message.n == 7 && message.x == 1.5 && message.t == 'a'\"\nreason = \"no\"\n";
    let text = json!({"n": 7, "x": 1.5, "t": "a"});
    let mut cbor = Vec::new();
    ciborium::into_writer(&text, &mut cbor).unwrap();
    let json = rules(expect, &[]);
    assert!(json.judge(&input(text.to_string())).result.is_ok());
    let read = rules(&format!("[decode]\nformat = \"cbor\"\n{expect}"), &[]);
    assert!(read.judge(&input(cbor.clone())).result.is_ok());
    cbor.push(0);
    assert_eq!(read.judge(&input(cbor)).result.unwrap_err().reason, "unreadable");
    // n = 1: int64, x = 2: double, t = 3: string
    use prost_types::field_descriptor_proto::{Label, Type};
    use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};
    let field = |name: &str, number, kind: Type| FieldDescriptorProto {
        name: Some(name.into()),
        number: Some(number),
        r#type: Some(kind.into()),
        label: Some(Label::Optional.into()),
        ..FieldDescriptorProto::default()
    };
    let fields = vec![field("n", 1, Type::Int64), field("x", 2, Type::Double), field("t", 3, Type::String)];
    let message = DescriptorProto { name: Some("M".into()), field: fields, ..DescriptorProto::default() };
    let file = FileDescriptorProto {
        name: Some("m.proto".into()),
        package: Some("p".into()),
        syntax: Some("proto3".into()),
        message_type: vec![message],
        ..FileDescriptorProto::default()
    };
    let set = prost::Message::encode_to_vec(&FileDescriptorSet { file: vec![file] });
    let decode = "[decode]\nformat = \"protobuf\"\ndescriptor = \"m.desc\"\nmessage = \"p.M\"\n";
    let read = rules(&format!("{decode}{expect}"), &[("m.desc", &set)]);
    let encoded = [&[8, 7, 17][..], &1.5_f64.to_le_bytes(), &[26, 1, b'a']].concat();
    assert!(read.judge(&input(encoded)).result.is_ok());
    assert_eq!(read.judge(&input(vec![8])).result.unwrap_err().reason, "unreadable");
    let raw = rules(
        "[decode]\nformat = \"raw\"\n[[filter]]\nwhen = \"size(data) > 3\"\ndo = \"drop\"\nreason = \"long\"",
        &[],
    );
    assert!(raw.judge(&input(&b"\xff\0"[..])).result.is_ok());
    assert!(raw.judge(&input(&b"\xff\0\xff\0"[..])).result.unwrap_err().dropped);
}

#[test]
fn what_is_not_finite_or_too_much_is_unreadable() {
    let cbor = rules("[decode]\nformat = \"cbor\"", &[]);
    for bytes in [&[0xf9, 0x7e, 0][..], &[0xf9, 0x7c, 0], &[0xfa, 0x7f, 0xc0, 0, 0], &[0x9b, 0xff, 0xff, 0xff, 0xff]] {
        assert_eq!(cbor.judge(&input(bytes.to_vec())).result.unwrap_err().reason, "unreadable", "{bytes:x?}");
    }
    assert_eq!(cbor.judge(&input([vec![0x81; 60_000], vec![0]].concat())).result.unwrap_err().reason, "unreadable");
    let json = rules("", &[]);
    let many = format!("[{}0]", "0,".repeat(9_000));
    let deep = format!("{}0{}", "[".repeat(20_000), "]".repeat(20_000));
    for text in ["1e999", "NaN", "-Infinity", &many, &deep] {
        assert_eq!(judge(&json, text), no(Stage::Decode, "unreadable"));
    }
}

const MODULE: &str = r#"(module
  (import "lockstep" "number" (func $number (param i32 i32 i32 i32 i32) (result i32)))
  (import "lockstep" "reason" (func $reason (param i32 i32)))
  (import "lockstep" "flag" (func $flag (param i32 i32)))
  (import "lockstep" "group" (func $group (param i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "celsius") (data (i32.const 16) "too_hot") (data (i32.const 32) "warm") (data (i32.const 48) "g1")
  (func (export "check") (result i32)
    (if (i32.eqz (call $number (i32.const 0) (i32.const 0) (i32.const 7) (i32.const 2) (i32.const 64)))
      (then (return (i32.const 2))))
    (if (i64.gt_s (i64.load (i32.const 64)) (i64.const 3000))
      (then (call $reason (i32.const 16) (i32.const 7)) (return (i32.const 1))))
    (if (i64.gt_s (i64.load (i32.const 64)) (i64.const 2000))
      (then (call $flag (i32.const 32) (i32.const 4))))
    (call $group (i32.const 48) (i32.const 2))
    (i32.const 0)))"#;

#[test]
fn a_module_decides_flags_and_groups() {
    let rules = rules("[code]\nmodule = \"m.wasm\"", &[("m.wasm", &wat::parse_str(MODULE).unwrap())]);
    let accepted = judge(&rules, r#"{"celsius":25.5}"#).unwrap();
    assert_eq!((accepted.flags, accepted.group), (vec!["warm".to_owned()], Some("g1".to_owned())));
    assert_eq!(judge(&rules, r#"{"celsius":30.01}"#), no(Stage::Code, "too_hot"));
    assert_eq!(judge(&rules, "{}"), Err((Stage::Code, "refused".into(), true)));
}

#[test]
fn hostile_modules_cost_their_fuel_and_no_more() {
    let module = |body: &str| {
        wat::parse_str(format!(
            "(module (import \"lockstep\" \"data\" (func $data (param i32 i32) (result i32)))
               (import \"lockstep\" \"reason\" (func $reason (param i32 i32)))
               (memory (export \"memory\") 1) {body})"
        ))
        .unwrap()
    };
    let check = |body: &str| module(&format!("(func $check (export \"check\") (result i32) {body})"));
    let run = [
        ("an endless loop", check("(loop $l (br $l)) (i32.const 0)"), "fuel"),
        ("growing memory", check("(loop $l (drop (memory.grow (i32.const 1))) (br $l)) (i32.const 0)"), "failed"),
        ("much memory at once", check("(drop (memory.grow (i32.const 60000))) (i32.const 0)"), "failed"),
        ("endless recursion", check("(call $check)"), "failed"),
        ("a trap", check("(unreachable)"), "failed"),
        ("another result", check("(i32.const 7)"), "failed"),
        ("outside of the memory", check("(call $data (i32.const 65530) (i32.const 100))"), "failed"),
        ("far outside", check("(call $data (i32.const -1) (i32.const -1))"), "failed"),
        ("a reason that is none", check("(call $reason (i32.const 0) (i32.const 8)) (i32.const 1)"), "failed"),
        ("a very long reason", check("(call $reason (i32.const 0) (i32.const -1)) (i32.const 1)"), "fuel"),
        (
            "asking for ever",
            check("(loop $l (drop (call $data (i32.const 0) (i32.const 60000))) (br $l)) (i32.const 0)"),
            "fuel",
        ),
        (
            "filling memory",
            check("(loop $l (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536)) (br $l)) (i32.const 0)"),
            "fuel",
        ),
    ];
    for (what, wasm, reason) in run {
        let rules = rules(&format!("[code]\nmodule = \"m.wasm\"\nfuel = {FUEL_MAX}"), &[("m.wasm", &wasm)]);
        let begun = Instant::now();
        let judged = rules.judge(&input(format!("{{\"a\":\"{}\"}}", "x".repeat(60_000))));
        let refusal = judged.result.unwrap_err();
        assert_eq!((refusal.stage, refusal.reason.as_str()), (Stage::Code, reason), "{what}: {}", refusal.detail);
        assert!(begun.elapsed() < Duration::from_secs(2), "{what}: {:?}", begun.elapsed());
        assert!(judged.fuel < FUEL_MAX / 8 + 20_000, "{what}: {}", judged.fuel);
    }
    let never = [
        ("a start function", module("(func $s (unreachable)) (start $s) (func (export \"check\") (result i32) (i32.const 0))")),
        ("no check", module("")),
        ("another check", module("(func (export \"check\") (param i32))")),
        ("much memory from the start", wat::parse_str("(module (memory (export \"memory\") 1000) (func (export \"check\") (result i32) (i32.const 0)))").unwrap()),
        ("a foreign import", wat::parse_str("(module (import \"env\" \"clock\" (func)) (memory (export \"memory\") 1) (func (export \"check\") (result i32) (i32.const 0)))").unwrap()),
        ("no memory", wat::parse_str("(module (func (export \"check\") (result i32) (i32.const 0)))").unwrap()),
        ("nonsense", b"\0asm\x01\0\0\0\xff\xff".to_vec()),
        ("a large table", module("(table 100000 funcref) (func (export \"check\") (result i32) (i32.const 0))")),
    ];
    for (what, wasm) in never {
        let error = refused("[code]\nmodule = \"m.wasm\"", &[("m.wasm", &wasm)]);
        assert!(error.starts_with("the module cannot be used"), "{what}: {error}");
    }
}

#[test]
fn a_module_has_one_nan_whatever_the_machine() {
    // 0/0, minus 0/0 and the root of minus one, added to a NaN with another sign: the bits that come out are the one NaN.
    let body =
        "(i64.ne (i64.reinterpret_f64 (f64.add (f64.div (f64.const 0) (f64.const -0)) (f64.const nan:0x8000000000123)))
                        (i64.const 0x7ff8000000000000))
                (i64.ne (i64.reinterpret_f64 (f64.sqrt (f64.const -1))) (i64.const 0x7ff8000000000000)) (i32.or)";
    let wasm = format!("(module (memory (export \"memory\") 1) (func (export \"check\") (result i32) {body}))");
    let rules = rules("[code]\nmodule = \"m.wasm\"", &[("m.wasm", &wat::parse_str(wasm).unwrap())]);
    assert!(judge(&rules, "{}").is_ok());
}

#[test]
fn hostile_schemas_are_refused_or_cost_little() {
    let mut doubling = String::from(r##"{"$ref":"#/$defs/a0","$defs":{"##);
    for n in 0..30 {
        doubling += &format!(r##""a{n}":{{"allOf":[{{"$ref":"#/$defs/a{0}"}},{{"$ref":"#/$defs/a{0}"}}]}},"##, n + 1);
    }
    doubling += r#""a30":true}}"#;
    let deep = format!("{}true{}", r#"{"not":"#.repeat(5_000), "}".repeat(5_000));
    for schema in [
        r##"{"$ref":"#"}"##,
        r##"{"properties":{"a":{"$ref":"#"}}}"##,
        r##"{"anyOf":[{"properties":{"a":{"$ref":"#/anyOf/0"}}}]}"##,
        r#"{"$ref":"http://example.org/x"}"#,
        r#"{"$ref":"file:///etc/passwd"}"#,
        r#"{"$dynamicRef":"a"}"#,
        r#"{"unevaluatedProperties":false}"#,
        r#"{"$id":"http://example.org/","$anchor":"x"}"#,
        r#"{"pattern":"(((a{1000}){1000}){1000})"}"#,
        r#"{"pattern":"(?=a)b"}"#,
        r#"{"type":"nothing"}"#,
        r#"{"requird":["a"]}"#,
        "[]",
        "{",
        &doubling,
        &deep,
    ] {
        let begun = Instant::now();
        let error = refused("[validate]\nschema = \"s\"", &[("s", schema.as_bytes())]);
        assert!(error.starts_with("the schema cannot be used"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{schema:.60}: {:?}", begun.elapsed());
    }
    let run = [
        (r#"{"items":{"pattern":"^(a+)+$"}}"#.to_owned(), format!("[\"{}b\"]", "a".repeat(60_000))),
        (
            r#"{"uniqueItems":true}"#.to_owned(),
            format!("[{}]", (0..8_000).map(|n| n.to_string()).collect::<Vec<_>>().join(",")),
        ),
        (
            format!(r#"{{"items":{{"anyOf":[{}]}}}}"#, vec![r#"{"const":[1]}"#; 500].join(",")),
            format!("[{}1]", "1,".repeat(8_000)),
        ),
    ];
    for (schema, message) in run {
        let rules = rules("[validate]\nschema = \"s\"", &[("s", schema.as_bytes())]);
        let begun = Instant::now();
        let _ = rules.judge(&input(message));
        assert!(begun.elapsed() < Duration::from_secs(2), "{schema:.60}: {:?}", begun.elapsed());
    }
}

#[test]
fn what_takes_long_to_make_is_refused_soon() {
    // The most expensive patterns that are allowed, as many as are allowed, and one more.
    let patterns = |count: usize| vec![r#"{"pattern":"(\\w{8}){9}x"}"#; count].join(",");
    let schema = |count: usize| format!("{{\"anyOf\":[{}]}}", patterns(count));
    let begun = Instant::now();
    let made = Rules::compile(&bundle("[validate]\nschema = \"s\"", &[("s", schema(32).as_bytes())]));
    println!("{:?} for 32 patterns: {:?}", begun.elapsed(), made.map(drop));
    assert!(begun.elapsed() < Duration::from_secs(2));
    let begun = Instant::now();
    let error = refused("[validate]\nschema = \"s\"", &[("s", schema(33).as_bytes())]);
    assert!(error.contains("more than 32 patterns"), "{error}");
    let many = "message.matches('a') || ".repeat(33) + "true";
    let error = refused(&format!("[[validate.expect]]\nthat = \"{many}\"\nreason = \"x\""), &[]);
    assert!(error.contains("more than 32 patterns"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn the_door_says_nothing_that_the_order_could_change() {
    let rules = rules(
        "[[validate.expect]]\nthat = \"time < 5\"\nreason = \"late\"\n\
         [[validate.expect]]\nthat = \"last != null\"\nreason = \"first\"\n\
         [[validate.expect]]\nthat = \"message == 1\"\nreason = \"not_one\"\n",
        &[],
    );
    assert_eq!(rules.glance(&input("1")).0, Ok(()));
    assert_eq!(rules.glance(&input("2")).0.unwrap_err().reason, "not_one");
    assert_eq!(rules.judge(&input("1")).result.unwrap_err().reason, "late");
}

#[test]
fn a_document_that_cannot_be_used_says_what_is_wrong() {
    let table = [
        ("nonsense", "the document cannot be used"),
        ("[decode]\nformat = \"xml\"", "unknown variant"),
        ("[filter]", "filter"),
        ("colour = 1", "unknown field"),
        ("[decode]\nformat = \"protobuf\"", "needs both"),
        ("[validate]\nschema = \"s.json\"", "\"s.json\", which is not in the bundle"),
        ("[[validate.expect]]\nthat = \"1 >\"\nreason = \"x\"", "validate.expect[0]"),
        ("[[validate.expect]]\nthat = \"true\"\nreason = \"Not A Word\"", "a reason is a word"),
        ("[sort]\nby = \"time\"", "need `time`"),
        ("[aggregate]\nwindow_ms = 5", "need `time`"),
        ("[sort]\nby = \"nonce\"", "belong together"),
        ("nonce = \"message\"", "belong together"),
        ("time = \"message\"\n[sort]\nby = \"time\"\nhold_ms = 5\n[aggregate]\ncount = 5", "do not wait"),
        ("[aggregate]\nby = \"field\"", "aggregate.field"),
        ("[aggregate]\ncount = 0", "at least 1"),
        ("[route]\noutputs = []", "route.outputs"),
        ("[code]\nmodule = \"m\"\nfuel = 0", "code.fuel"),
    ];
    for (document, expected) in table {
        let error = refused(document, &[]);
        assert!(error.contains(expected), "{document}: {error}");
    }
    let other = Bundle { document: "version = 2".into(), files: BTreeMap::new() };
    assert!(Rules::compile(&other).unwrap_err().to_string().contains("version must be 1"));
}

#[test]
fn a_bundle_has_one_form_and_one_hash() {
    let made = bundle(WEATHER, &[("schema.json", SCHEMA.as_bytes())]);
    assert_eq!(Bundle::decode(made.encode().into()).unwrap(), made);
    assert_eq!(Bundle::decode(made.encode().into()).unwrap().hash(), made.hash());
    // An unknown field, a file twice, too much.
    let more = [made.encode(), vec![0x78, 1]].concat();
    assert!(matches!(Bundle::decode(more.into()), Err(RulesError::Bundle(_))));
    let large = bundle("", &[("a", &vec![0; BUNDLE_BYTES_MAX])]);
    assert!(matches!(Bundle::decode(large.encode().into()), Err(RulesError::TooLarge { .. })));
    let collected = Bundle::collect(made.document.clone(), |name| {
        assert_eq!(name, "schema.json");
        Ok::<_, std::io::Error>(SCHEMA.as_bytes().to_vec())
    });
    assert_eq!(collected.unwrap().unwrap(), made);
}

#[test]
fn fuel_pays_for_the_time_that_hostile_rules_take() {
    // Letters of which no byte is like the next, so that no automaton is soon ready for them.
    let letters = |count: u32| -> String {
        let letter = |n: u32| if n.wrapping_mul(2_654_435_761) & 0x1_0000 == 0 { 'a' } else { 'b' };
        (0..count).map(letter).collect()
    };
    let patterns = |states: usize, count: usize| {
        let pattern = format!(r#"{{"not":{{"pattern":"a[ab]{{{states}}}[^ab]"}}}}"#);
        format!(r#"{{"allOf":[{}]}}"#, vec![pattern; count].join(","))
    };
    let schema = |text: String| rules("[validate]\nschema = \"s\"", &[("s", text.as_bytes())]);
    let expect = |that: &str| rules(&format!("[[validate.expect]]\nthat = '''{that}'''\nreason = \"x\""), &[]);
    let module = |wat: &str| {
        let wasm = wat::parse_str(wat).unwrap();
        rules("[code]\nmodule = \"m\"\nfuel = 2000000", &[("m", &wasm)])
    };
    let endless =
        r#"(module (memory (export "memory") 1) (func (export "check") (result i32) (loop (br 0)) (i32.const 0)))"#;
    let loops = "[1,2,3,4,5,6,7,8,9].all(a, [1,2,3,4,5,6,7,8,9].all(b, [1,2,3,4,5,6,7,8,9].all(c, a + b + c > 0)))";
    for (what, rules, text) in [
        ("patterns with many states", schema(patterns(7, 16)), letters(8_000)),
        ("patterns that begin anew again and again", schema(patterns(1, 32)), letters(8_000)),
        ("a pattern in an expression", expect("message.matches('a[ab]{9}[^ab]')"), letters(8_000)),
        ("loops", expect(loops), String::new()),
        ("an endless module", module(endless), String::new()),
        ("texts", expect("message + message + message + message + message == message"), letters(8_000)),
    ] {
        let input = input(format!("\"{text}\""));
        // Other programs on the machine take time away and never give any; so the fastest of them counts.
        let times = (0..20).map(|_| {
            let begun = Instant::now();
            let fuel = rules.judge(&input).fuel;
            (begun.elapsed().as_nanos() as u64 / fuel, fuel)
        });
        let (nanoseconds, fuel) = times.min().unwrap();
        println!("{what}: {fuel} fuel, {nanoseconds} ns for each");
        // Some 17 where the machine has nothing else to do.
        assert!(nanoseconds < 50, "{what}: {nanoseconds} ns");
    }
}

#[test]
fn what_each_stage_did_is_told_to_whoever_asks() {
    let document = "[[validate.expect]]\nthat = \"message.n > 0\"\nreason = \"small\"\n\
                    [[filter]]\nwhen = \"message.n > 5\"\ndo = \"flag\"\nreason = \"large\"\n\
                    [aggregate]\nby = \"field\"\nfield = \"message.s\"\n\
                    [aggregate.reduce.most]\nof = \"message.n\"\nwith = \"max\"\n";
    let rules = rules(document, &[]);
    let told = |data: &'static str| {
        let (judgement, notes) = rules.explain(&input(data));
        assert_eq!(judgement, rules.judge(&input(data)));
        assert_eq!(notes.iter().map(|note| note.fuel).sum::<u64>(), judgement.fuel);
        notes.into_iter().map(|note| format!("{}: {}", note.stage, note.did)).collect::<Vec<_>>()
    };
    let well = ["decode: 3 values", "expect: 1 hold", "filter: large", "aggregate: group \"a\", most 7"];
    assert_eq!(told(r#"{"s":"a","n":7}"#), well);
    let refused = ["decode: 3 values", "expect: refuses it, small: message.n > 0 does not hold"];
    assert_eq!(told(r#"{"s":"a","n":0}"#), refused);
}
