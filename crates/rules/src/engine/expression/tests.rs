use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::engine::pattern::Patterns;
use crate::limits::EXPRESSION_FUEL;

fn scope<'a>(message: &'a Json, last: Option<&'a Json>) -> Scope<'a> {
    Scope {
        variables: [
            Value::of(message),
            last.map_or(Value::Null, |message| Value::Last { message, time: 1_000 }),
            Value::Text("0xab".into()),
            Value::Int(5_000),
            Value::Bytes(b"raw"[..].into()),
            Value::Text("1".into()),
            Value::Null,
        ],
    }
}

fn eval(text: &str, message: &Json, last: Option<&Json>) -> Result<Json, ExpressionError> {
    let expression = Expression::compile("here", text, &mut Patterns::default()).unwrap();
    let mut fuel = Fuel::new(EXPRESSION_FUEL);
    expression.evaluate(&scope(message, last), &mut fuel).and_then(|value| value.to_json(&mut fuel))
}

#[test]
fn expressions_give_what_cel_says() {
    let message = json!({
        "celsius": 21, "humidity": 40.5, "name": "süd", "tags": ["a", "b"], "at": {"lat": 52.52, "lon": 13.405},
        "ts": 1_700_000_000_000_i64, "big": 9_007_199_254_740_993_i64, "none": null, "ok": true,
    });
    let last = json!({"celsius": 20.5, "ts": 1_699_999_999_000_i64});
    let table = [
        ("message.celsius > -60 && message.celsius < 60.0", json!(true)),
        ("message.celsius + 0.5", json!(21.5)),
        ("message.celsius * 2 - 1", json!(41)),
        ("7 / 2", json!(3)),
        ("-7 % 3", json!(-1)),
        ("7 / 2.0", json!(3.5)),
        ("message.humidity >= 40.5 ? 'wet' : 'dry'", json!("wet")),
        ("message.tags.size() == 2 && 'b' in message.tags", json!(true)),
        ("'celsius' in message", json!(true)),
        ("has(message.celsius) && !has(message.fahrenheit)", json!(true)),
        ("message.none == null", json!(true)),
        ("message['celsius'] == 21.0", json!(true)),
        ("message.tags[1]", json!("b")),
        ("size(message.name)", json!(3)),
        ("message.name.startsWith('sü') && message.name.endsWith('d') && message.name.contains('ü')", json!(true)),
        ("message.name.matches('^s.d$')", json!(true)),
        ("last == null || message.ts > last.message.ts", json!(true)),
        ("abs(message.celsius - last.message.celsius) < 1.0", json!(true)),
        ("time - last.time", json!(4_000)),
        ("message.tags.exists(t, t == 'b')", json!(true)),
        ("message.tags.all(t, t.size() == 1)", json!(true)),
        ("message.tags.exists_one(t, t == 'a')", json!(true)),
        ("message.tags.map(t, t + '!')", json!(["a!", "b!"])),
        ("message.tags.filter(t, t != 'a')", json!(["b"])),
        ("message.at.map(k, k)", json!(["lat", "lon"])),
        ("[1, 2] + [3]", json!([1, 2, 3])),
        ("{'a': 1, 'b': [true]}", json!({"a": 1, "b": [true]})),
        ("{'a': 1} == {'a': 1.0}", json!(true)),
        ("int('42') + int(1.9) + int(-1.9)", json!(42)),
        ("double('1.5') + 1", json!(2.5)),
        ("string(1.5) + string(2) + string(true)", json!("1.52true")),
        ("floor(-1.5) + ceil(1.2)", json!(0)),
        ("min(1, 2.5) + max(3, 2)", json!(4.0)),
        ("0.0 == -0.0", json!(true)),
        ("-0.0", json!(0.0)),
        // An integer that no double is.
        ("message.big == 9007199254740992.0", json!(false)),
        ("message.big > 9007199254740992.0", json!(true)),
        ("1 < 1e300 && -1 > -1e300", json!(true)),
        // What decides wins over what fails.
        ("message.fahrenheit > 1 || message.ok", json!(true)),
        ("message.ok || message.fahrenheit > 1", json!(true)),
        ("message.fahrenheit > 1 && false", json!(false)),
        ("['x', 1].exists(v, v > 0)", json!(true)),
        ("device == '0xab' && version == '1' && nonce == null && size(data) == 3", json!(true)),
    ];
    for (text, expected) in table {
        assert_eq!(eval(text, &message, Some(&last)), Ok(expected), "{text}");
    }
}

#[test]
fn what_has_no_result_says_why() {
    let message = json!({"a": 1, "s": "x", "f": 1e308});
    let table = [
        ("message.b", ExpressionError::Missing("b".into())),
        ("[1][1]", ExpressionError::Missing("[1]".into())),
        ("message.a + message.s", ExpressionError::Types("+")),
        ("message.s > 1", ExpressionError::Types("a comparison")),
        ("1 / 0", ExpressionError::Range("/")),
        ("1.0 / 0.0", ExpressionError::Range("/")),
        ("9223372036854775807 + 1", ExpressionError::Range("+")),
        ("message.f * 10", ExpressionError::Range("*")),
        ("int(1e30)", ExpressionError::Range("int")),
        ("int('x')", ExpressionError::Range("int")),
        ("double('NaN')", ExpressionError::Range("double")),
        ("!message.a", ExpressionError::Types("!")),
        ("['x'].all(v, v > 0)", ExpressionError::Types("a comparison")),
        ("last.message.x", ExpressionError::Missing("message".into())),
        ("data", ExpressionError::Wanted("value that JSON has")),
    ];
    for (text, expected) in table {
        assert_eq!(eval(text, &message, None), Err(expected), "{text}");
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_a_reason() {
    let long = format!("1 {}", "+ 1".repeat(500));
    let deep = format!("{}1{}", "(".repeat(100), ")".repeat(100));
    let minus = format!("{}1", "-".repeat(900));
    for text in [
        "",
        "1 +",
        "message.",
        "unknown > 1",
        "f(1)",
        "1u",
        "matches('a', message.b)",
        "'a'.matches('(')",
        "'a'.matches('((((a{1000}){1000}){1000}){1000})')",
        "timestamp('2020-01-01T00:00:00Z')",
        "Point{x: 1}",
        "message.?a",
        &long,
        &deep,
        &minus,
        "size()",
        "size(1, 2)",
        "'a",
        "\u{0}",
        "1 = 1",
    ] {
        let error = Expression::compile("here", text, &mut Patterns::default()).expect_err(text).to_string();
        assert!(error.starts_with("here: "), "{text}: {error}");
    }
}

#[test]
fn fuel_ends_what_would_not_end() {
    let many = json!({"v": (0..5_000).collect::<Vec<_>>(), "s": "a".repeat(60_000)});
    for text in [
        "message.v.all(a, message.v.all(b, message.v.all(c, a + b + c >= 0)))",
        "message.v.map(a, message.v.map(b, b))",
        "message.v.map(a, message.s + message.s)",
        "message.v.all(a, message.s.matches('(a+)+b') == false)",
        "message.v.exists(a, a in message.v && a < 0)",
        "message.v.all(a, [message.v, message.v] == [message.v, message.v])",
    ] {
        let begun = std::time::Instant::now();
        assert_eq!(eval(text, &many, None), Err(ExpressionError::Fuel), "{text}");
        assert!(begun.elapsed().as_secs() < 2, "{text}: {:?}", begun.elapsed());
    }
}

#[test]
fn an_object_is_walked_in_the_order_of_its_names_however_it_was_written() {
    let one: Json = serde_json::from_str(r#"{"b":1,"a":2,"c":3}"#).unwrap();
    let other: Json = serde_json::from_str(r#"{"c":3,"a":2,"b":1}"#).unwrap();
    let text = "message.map(k, k + string(message[k]))";
    assert_eq!(eval(text, &one, None), Ok(json!(["a2", "b1", "c3"])));
    assert_eq!(eval(text, &other, None), eval(text, &one, None));
}

#[test]
fn distances_are_the_same_bits_everywhere() {
    // Berlin and Hamburg, where the C library of some machines ends in 588; the other side of the earth.
    let message = json!({});
    let bits = |text: &str| eval(text, &message, None).unwrap().as_f64().unwrap().to_bits();
    assert_eq!(bits("distance(52.52, 13.405, 53.5511, 9.9937)"), 255_250.518_592_645_94_f64.to_bits());
    assert_eq!(bits("distance(0, 0, 0, 180)"), 20_015_114.442_035_925_f64.to_bits());
    assert_eq!(bits("distance(52.52, 13.405, 52.52, 13.405)"), 0);
}

proptest! {
    #[test]
    fn any_text_is_an_expression_or_an_error(text in "[a-z0-9.()\\[\\]{}<>=!&|?:+*/%,'\" -]{0,60}") {
        let message = json!({"a": [1, 2.5, "x"], "b": {"c": null}});
        if let Ok(expression) = Expression::compile("here", &text, &mut Patterns::default()) {
            let mut fuel = Fuel::new(EXPRESSION_FUEL);
            let _ = expression.evaluate(&scope(&message, None), &mut fuel);
        }
    }

    #[test]
    fn numbers_compare_as_they_are(a in any::<i64>(), b in any::<f64>()) {
        prop_assume!(b.is_finite());
        let message = json!({"a": a, "b": b});
        let exact = (i128::from(a)).cmp(&(b.clamp(-1e19, 1e19).floor() as i128));
        let exact = exact.then(if b.fract() == 0.0 { std::cmp::Ordering::Equal } else { std::cmp::Ordering::Less });
        prop_assert_eq!(eval("message.a < message.b", &message, None), Ok(json!(exact.is_lt())));
        prop_assert_eq!(eval("message.a == message.b", &message, None), Ok(json!(exact.is_eq())));
        prop_assert_eq!(eval("message.b > message.a", &message, None), Ok(json!(exact.is_lt())));
    }
}
