//! JSON as it is written into payloads and kept values.

use serde_json::Value;

/// JSON with the members of objects in order of their names, without spaces: the same bytes whatever the order in memory.
pub(crate) fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

fn write(value: &Value, text: &mut String) {
    let separated = |text: &mut String, first: &mut bool| {
        if !std::mem::take(first) {
            text.push(',');
        }
    };
    match value {
        Value::Array(values) => {
            let mut first = true;
            text.push('[');
            for value in values {
                separated(text, &mut first);
                write(value, text);
            }
            text.push(']');
        }
        Value::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_unstable_by_key(|(name, _)| *name);
            let mut first = true;
            text.push('{');
            for (name, value) in sorted {
                separated(text, &mut first);
                text.push_str(&Value::String(name.clone()).to_string());
                text.push(':');
                write(value, text);
            }
            text.push('}');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}
