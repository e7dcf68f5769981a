//! JSON text as Go's `encoding/json` writes it, which is what devices sign and provers check.
//!
//! Source: vectors/apinode/README.md, rule 3. `<`, `>` and `&` are escaped, U+2028 and U+2029 too.

use std::fmt::Write as _;

/// Appends `text` as a JSON string with Go's escapes, quotes included.
pub fn push_string(out: &mut String, text: &str) {
    out.push('"');
    let mut plain_from = 0;
    for (at, c) in text.char_indices() {
        let short = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{0}'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => "",
            _ => continue,
        };
        out.push_str(&text[plain_from..at]);
        plain_from = at + c.len_utf8();
        if short.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push_str(short);
        }
    }
    out.push_str(&text[plain_from..]);
    out.push('"');
}

/// Appends the checked JSON text `value` as Go's `encoding/json` writes a raw value: without white space, and with the
/// characters escaped that could end a script in HTML. Other bytes stay as they are, valid UTF-8 or not.
pub fn push_compact(out: &mut Vec<u8>, value: &[u8]) {
    let (mut in_string, mut at) = (false, 0);
    while let Some(byte) = value.get(at) {
        match (byte, in_string) {
            (b' ' | b'\t' | b'\r' | b'\n', false) => {}
            (b'\\', true) => {
                // What follows a backslash cannot end the string.
                out.extend(&value[at..value.len().min(at + 2)]);
                at += 1;
            }
            (b'<' | b'>' | b'&', true) => out.extend(format!("\\u{byte:04x}").bytes()),
            (0xe2, true) if matches!(value.get(at..at + 3), Some([_, 0x80, 0xa8 | 0xa9])) => {
                out.extend(format!("\\u20{:02x}", value[at + 2] - 0x80).bytes());
                at += 2;
            }
            _ => {
                in_string ^= *byte == b'"';
                out.push(*byte);
            }
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_those_of_go() {
        let mut out = String::new();
        push_string(&mut out, "a\"\\/\u{8}\u{c}\n\r\t\u{0}\u{1f}\u{7f}<>&\u{2028}é🌡");
        assert_eq!(out, "\"a\\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\u{7f}\\u003c\\u003e\\u0026\\u2028é🌡\"");
    }

    #[test]
    fn raw_values_are_written_as_by_go() {
        let mut out = Vec::new();
        push_compact(
            &mut out,
            " { \"a <\\\"&\\\\\" : [ 1 , \"\u{2028}\u{2029}\u{202a} x\" ] ,\n\"b\":\ttrue}\r\n".as_bytes(),
        );
        let expected = "{\"a \\u003c\\\"\\u0026\\\\\":[1,\"\\u2028\\u2029\u{202a} x\"],\"b\":true}";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
