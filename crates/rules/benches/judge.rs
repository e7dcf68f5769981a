//! What rules cost a message: reading it, a schema with three expressions, a small module.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use lockstep_rules::{Bundle, Input, Last, Rules};
use lockstep_types::Address;

const MESSAGE: &str = r#"{"station":"brocken-1","ts":1700000000123,"celsius":21.57,"humidity":40.25,"hectopascal":887.4,
"position":{"lat":51.7991,"lon":10.6157},"battery":87,"firmware":"2.4.1-rc3","status":["ok","solar"]}"#;

const SCHEMA: &str = r#"{"type":"object","required":["station","ts","celsius"],"properties":{
"station":{"type":"string","pattern":"^[a-z][a-z0-9-]{0,31}$"},"ts":{"type":"integer","minimum":0},
"celsius":{"type":"number","minimum":-90,"maximum":60},"humidity":{"type":"number","minimum":0,"maximum":100},
"hectopascal":{"type":"number"},"position":{"type":"object","required":["lat","lon"]},"battery":{"type":"integer"},
"firmware":{"type":"string","maxLength":32},"status":{"type":"array","items":{"enum":["ok","solar","mains","fault"]}}},
"additionalProperties":false}"#;

const EXPECT: &str = r#"
[[validate.expect]]
that = "message.celsius > -60 && message.celsius < 60"
reason = "out_of_range"
[[validate.expect]]
that = "last == null || message.ts > last.message.ts"
reason = "not_monotonic"
[[validate.expect]]
that = "last == null || abs(message.celsius - last.message.celsius) < 10.0"
reason = "jump"
"#;

/// Is the number below a limit, and does the text begin as it should?
const MODULE: &str = r#"(module
  (import "lockstep" "number" (func $number (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "celsius") (data (i32.const 8) "position.lat")
  (func (export "check") (result i32)
    (if (i32.eqz (call $number (i32.const 0) (i32.const 0) (i32.const 7) (i32.const 2) (i32.const 64)))
      (then (return (i32.const 1))))
    (if (i32.eqz (call $number (i32.const 0) (i32.const 8) (i32.const 12) (i32.const 7) (i32.const 72)))
      (then (return (i32.const 1))))
    (i32.or (i64.gt_s (i64.load (i32.const 64)) (i64.const 6000))
            (i64.gt_s (i64.load (i32.const 72)) (i64.const 900000000)))))"#;

fn rules(document: &str, files: &[(&str, &[u8])]) -> Rules {
    let files: BTreeMap<_, _> =
        files.iter().map(|(name, content)| ((*name).to_owned(), Bytes::copy_from_slice(content))).collect();
    Rules::compile(&Bundle { document: format!("version = 1\n{document}"), files }).unwrap()
}

fn judge(c: &mut Criterion) {
    let module = wat::parse_str(MODULE).unwrap();
    let schema: (&str, &[u8]) = ("s.json", SCHEMA.as_bytes());
    let cases = [
        ("read only", rules("", &[])),
        ("schema and three expressions", rules(&format!("[validate]\nschema = \"s.json\"\n{EXPECT}"), &[schema])),
        ("small module", rules("[code]\nmodule = \"m.wasm\"", &[("m.wasm", &module)])),
    ];
    let last = Last { data: Bytes::from(MESSAGE.replace("00123", "00122")), time_ms: 1 };
    let input = Input {
        data: Bytes::from_static(MESSAGE.as_bytes()),
        device: Address([1; 20]),
        version: "1".into(),
        nonce: None,
        time_ms: 2,
        last: Some(last),
    };
    let mut group = c.benchmark_group("rules");
    for (name, rules) in &cases {
        let judged = rules.judge(&input);
        assert!(judged.result.is_ok(), "{name}: {:?}", judged.result);
        println!("{name}: {} fuel", judged.fuel);
        group.bench_function(*name, |b| b.iter(|| rules.judge(black_box(&input))));
    }
    group.finish();
}

criterion_group!(benches, judge);
criterion_main!(benches);
