//! A reader of one JSON object that accepts, refuses and decodes as Go's `encoding/json` does.
//!
//! It walks bytes without recursion and keeps one bit for each open bracket, so the cost of a hostile body is
//! linear in its length and its memory does not depend on its nesting. Rules that other readers do not share:
//! text after the value is not read; each byte that is not UTF-8, and each lone surrogate escape, becomes U+FFFD.

use std::borrow::Cow;

use crate::error::RequestError;

/// Levels of arrays and objects that are read, the outermost object included.
pub(crate) const NESTING_MAX: u32 = 64;

/// The value of a member that the caller knows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Text(Cow<'a, str>),
    /// A literal in JSON's number grammar.
    Number(&'a str),
    Null,
    /// An object, an array or a boolean, as it was written.
    Other(&'a [u8]),
}

/// Whether `text` is one JSON value and nothing else but white space.
pub(crate) fn is_value(text: &[u8]) -> Result<bool, RequestError> {
    let mut reader = Reader { bytes: text, at: 0 };
    match reader.skip_value() {
        Ok(()) => {}
        Err(RequestError::TooDeep) => return Err(RequestError::TooDeep),
        Err(_) => return Ok(false),
    }
    reader.skip_space();
    Ok(reader.peek().is_none())
}

/// Reads the first JSON object in `body`. `is_known` says whether a member's value is wanted; if so it is decoded
/// and given to `take` with the name. Members come in their order, repeats included.
pub(crate) fn read_object<'a, K>(
    body: &'a [u8],
    is_known: impl Fn(&str) -> Option<K>,
    mut take: impl FnMut(K, Value<'a>) -> Result<(), RequestError>,
) -> Result<(), RequestError> {
    let mut reader = Reader { bytes: body, at: 0 };
    reader.skip_space();
    match reader.peek() {
        Some(b'{') => reader.at += 1,
        Some(_) => {
            reader.skip_value()?;
            return Err(RequestError::NotAnObject);
        }
        None => return Err(reader.error("the body is empty")),
    }
    reader.skip_space();
    if reader.peek() == Some(b'}') {
        return Ok(());
    }
    loop {
        let name = reader.name()?.decode();
        match is_known(&name) {
            Some(key) => take(key, reader.value()?)?,
            None => reader.skip_value()?,
        }
        reader.skip_space();
        match reader.peek() {
            Some(b',') => reader.at += 1,
            Some(b'}') => return Ok(()),
            _ => return Err(reader.error("expected ',' or '}'")),
        }
    }
}

/// Takes the array in `body` apart: the bytes of each of its values, checked. What follows the array must be space.
pub(crate) fn read_array(body: &[u8], values_max: usize) -> Result<Vec<&[u8]>, RequestError> {
    let mut reader = Reader { bytes: body, at: 0 };
    reader.skip_space();
    if reader.peek() != Some(b'[') {
        return Err(reader.error("expected '['"));
    }
    reader.at += 1;
    reader.skip_space();
    let mut values = Vec::new();
    if reader.peek() == Some(b']') {
        reader.at += 1;
    } else {
        loop {
            reader.skip_space();
            let from = reader.at;
            reader.skip_value()?;
            if values.len() == values_max {
                return Err(RequestError::TooMany { max: values_max });
            }
            values.push(&body[from..reader.at]);
            reader.skip_space();
            match reader.peek() {
                Some(b',') => reader.at += 1,
                Some(b']') => break reader.at += 1,
                _ => return Err(reader.error("expected ',' or ']'")),
            }
        }
    }
    reader.end()?;
    Ok(values)
}

/// Checks that `body` is one JSON value and nothing else but space.
pub(crate) fn check_single(body: &[u8]) -> Result<(), RequestError> {
    let mut reader = Reader { bytes: body, at: 0 };
    reader.skip_value()?;
    reader.end()
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The inside of a string literal whose escapes were checked.
struct Literal<'a> {
    bytes: &'a [u8],
    has_escapes: bool,
}

/// Open brackets inside a skipped value, one bit each: 1 for an object.
#[derive(Default)]
struct Nesting {
    bits: u64,
    depth: u32,
}

impl Nesting {
    fn push(&mut self, object: bool) -> Result<(), RequestError> {
        if self.depth + 1 >= NESTING_MAX {
            return Err(RequestError::TooDeep);
        }
        self.depth += 1;
        self.bits = (self.bits << 1) | u64::from(object);
        Ok(())
    }

    fn pop(&mut self) {
        self.depth -= 1;
        self.bits >>= 1;
    }

    /// Whether the innermost bracket is an object's; `None` when none is open.
    fn in_object(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.bits & 1 == 1)
    }
}

impl<'a> Reader<'a> {
    fn error(&self, reason: &'static str) -> RequestError {
        RequestError::Json { at: self.at, reason }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// Nothing but space is left.
    fn end(&mut self) -> Result<(), RequestError> {
        self.skip_space();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("there is something behind the value")),
        }
    }

    /// A member's name and the colon after it.
    fn name(&mut self) -> Result<Literal<'a>, RequestError> {
        self.skip_space();
        if self.peek() != Some(b'"') {
            return Err(self.error("expected a member name"));
        }
        let name = self.string()?;
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.error("expected ':'"));
        }
        self.at += 1;
        Ok(name)
    }

    fn value(&mut self) -> Result<Value<'a>, RequestError> {
        self.skip_space();
        match self.peek() {
            Some(b'"') => Ok(Value::Text(self.string()?.decode())),
            Some(b'-' | b'0'..=b'9') => Ok(Value::Number(self.number()?)),
            Some(b'n') => self.word(b"null").map(|()| Value::Null),
            _ => {
                let from = self.at;
                self.skip_value()?;
                Ok(Value::Other(&self.bytes[from..self.at]))
            }
        }
    }

    /// Checks and passes over one value of any kind.
    fn skip_value(&mut self) -> Result<(), RequestError> {
        let mut open = Nesting::default();
        loop {
            // Here a value begins.
            self.skip_space();
            match self.peek() {
                Some(bracket @ (b'{' | b'[')) => {
                    let object = bracket == b'{';
                    open.push(object)?;
                    self.at += 1;
                    self.skip_space();
                    if self.peek() != Some(if object { b'}' } else { b']' }) {
                        if object {
                            self.name()?;
                        }
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            // Here a value has ended, or an empty bracket is about to: close what closes, or go on to the next.
            loop {
                let Some(in_object) = open.in_object() else { return Ok(()) };
                self.skip_space();
                match (self.peek(), in_object) {
                    (Some(b'}'), true) | (Some(b']'), false) => {
                        self.at += 1;
                        open.pop();
                    }
                    (Some(b','), _) => {
                        self.at += 1;
                        if in_object {
                            self.name()?;
                        }
                        break;
                    }
                    (_, true) => return Err(self.error("expected ',' or '}'")),
                    (_, false) => return Err(self.error("expected ',' or ']'")),
                }
            }
        }
    }

    fn scalar(&mut self) -> Result<(), RequestError> {
        match self.peek() {
            Some(b'"') => self.string().map(|_| ()),
            Some(b'-' | b'0'..=b'9') => self.number().map(|_| ()),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            Some(_) => Err(self.error("expected a value")),
            None => Err(self.error("the text ends")),
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), RequestError> {
        if !self.bytes[self.at..].starts_with(word) {
            return Err(self.error("expected a value"));
        }
        self.at += word.len();
        Ok(())
    }

    fn digits(&mut self) -> Result<(), RequestError> {
        let from = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == from { Err(self.error("expected a digit")) } else { Ok(()) }
    }

    fn number(&mut self) -> Result<&'a str, RequestError> {
        let from = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        // Only ASCII was passed, so this is never the default.
        Ok(std::str::from_utf8(&self.bytes[from..self.at]).unwrap_or_default())
    }

    /// Passes over a string literal, quotes included, and checks its escapes.
    fn string(&mut self) -> Result<Literal<'a>, RequestError> {
        self.at += 1;
        let from = self.at;
        let mut has_escapes = false;
        loop {
            match self.peek() {
                Some(b'"') => {
                    let bytes = &self.bytes[from..self.at];
                    self.at += 1;
                    return Ok(Literal { bytes, has_escapes });
                }
                Some(b'\\') => {
                    has_escapes = true;
                    self.escape()?;
                }
                Some(0..=0x1f) => return Err(self.error("a control character in a string")),
                Some(_) => self.at += 1,
                None => return Err(self.error("the text ends inside a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), RequestError> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                if hex4(self.bytes, self.at + 1).is_none() {
                    return Err(self.error("expected four hex digits after \\u"));
                }
                self.at += 5;
            }
            _ => return Err(self.error("an unknown escape in a string")),
        }
        Ok(())
    }
}

impl<'a> Literal<'a> {
    fn decode(&self) -> Cow<'a, str> {
        if !self.has_escapes
            && let Ok(text) = std::str::from_utf8(self.bytes)
        {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(self.bytes.len());
        let mut rest = self.bytes;
        while let Some(plain) = rest.iter().position(|b| *b == b'\\') {
            push_replacing(&mut out, &rest[..plain]);
            let (character, length) = unescape(&rest[plain..]);
            out.push(character);
            rest = &rest[plain + length..];
        }
        push_replacing(&mut out, rest);
        Cow::Owned(out)
    }
}

/// Appends `bytes`, with U+FFFD for *each byte* that is not part of valid UTF-8. (`from_utf8_lossy` writes one for
/// each broken sequence.)
fn push_replacing(out: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
}

/// The character that the checked escape at the start of `bytes` stands for, and the escape's length.
fn unescape(bytes: &[u8]) -> (char, usize) {
    match bytes[1] {
        b'b' => ('\u{8}', 2),
        b'f' => ('\u{c}', 2),
        b'n' => ('\n', 2),
        b'r' => ('\r', 2),
        b't' => ('\t', 2),
        b'u' => {
            let unit = hex4(bytes, 2).unwrap_or_default();
            if let 0xd800..=0xdbff = unit
                && bytes.get(6..8) == Some(b"\\u")
                && let Some(low @ 0xdc00..=0xdfff) = hex4(bytes, 8)
            {
                let code = 0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                return (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 12);
            }
            (char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER), 6)
        }
        // Quote, backslash and slash stand for themselves.
        other => (char::from(other), 2),
    }
}

fn hex4(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.iter().try_fold(0, |code, b| Some((code << 4) | char::from(*b).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(body: &[u8]) -> Result<Vec<String>, RequestError> {
        let mut out = Vec::new();
        let keep = |name: &str| Some(name.to_owned());
        read_object(body, keep, |name, value| {
            out.push(format!("{name}={value:?}"));
            Ok(())
        })?;
        Ok(out)
    }

    #[test]
    fn what_go_refuses_is_refused() {
        let refused: [&[u8]; 24] = [
            b"",
            b"  ",
            b"[1]",
            b"null",
            b"{",
            b"{a:1}",
            b"{\"a\"}",
            b"{\"a\":}",
            b"{\"a\":1,}",
            b"{\"a\":01}",
            b"{\"a\":+1}",
            b"{\"a\":1.}",
            b"{\"a\":.5}",
            b"{\"a\":1e}",
            b"{\"a\":-}",
            b"{\"a\":tru}",
            b"{\"a\":\"\\x41\"}",
            b"{\"a\":\"\\u00g0\"}",
            b"{\"a\":\"\\'\"}",
            b"{\"a\":\"\t\"}",
            b"{\"a\":[1,]}",
            b"{\"a\":[1}",
            b"{\"a\":{\"b\":1]}",
            b"\xef\xbb\xbf{}",
        ];
        for body in refused {
            assert!(texts(body).is_err(), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn bad_bytes_and_lone_surrogates_become_one_replacement_each() {
        let mut out = None;
        let body = b"{\"a\":\"\xe2\x82c\xff\\udc00\\ud800\\u0041\\ud83d\\ude00\xed\xa0\x80\"}";
        read_object(
            body,
            |_| Some(()),
            |(), v| {
                out = Some(v);
                Ok(())
            },
        )
        .unwrap();
        let expected = "\u{fffd}\u{fffd}c\u{fffd}\u{fffd}\u{fffd}A😀\u{fffd}\u{fffd}\u{fffd}";
        assert_eq!(out, Some(Value::Text(Cow::Borrowed(expected))));
    }

    #[test]
    fn unknown_values_of_any_kind_are_passed_over() {
        let mut seen = Vec::new();
        let body =
            br#" {"x":[[],{},[{"a":[1,-2.5e+3,"\"]"]},true,false,null]],"y":{"a":{"b":[]}, "c" : 0 },"z":7}tail"#;
        read_object(
            body,
            |name| (name == "z").then_some(()),
            |(), v| {
                seen.push(v);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(seen, [Value::Number("7")]);
    }

    #[test]
    fn a_value_is_whole_or_not_one() {
        for text in ["{}", " [1, 2]\n", "7", "\"x\"", "null"] {
            assert_eq!(is_value(text.as_bytes()), Ok(true), "{text}");
        }
        for text in ["", " ", "{", "{}x", "1 2", "\u{1}"] {
            assert_eq!(is_value(text.as_bytes()), Ok(false), "{text}");
        }
        assert_eq!(is_value("[".repeat(100).as_bytes()), Err(RequestError::TooDeep));
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        let within = NESTING_MAX as usize - 1;
        assert!(read_object(nested(within).as_bytes(), |_| None::<()>, |(), _| Ok(())).is_ok());
        let deeper = nested(within + 1);
        assert_eq!(read_object(deeper.as_bytes(), |_| None::<()>, |(), _| Ok(())), Err(RequestError::TooDeep));
        let endless = "{\"a\":".repeat(1 << 20);
        assert_eq!(read_object(endless.as_bytes(), |_| None::<()>, |(), _| Ok(())), Err(RequestError::TooDeep));
    }
}
