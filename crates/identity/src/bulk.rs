//! Many messages in one body: an array, or one object in each line.

use crate::apinode::{DeviceRequest, parse};
use crate::error::RequestError;
use crate::json::{check_single, read_array};

/// Reads a body of many messages, in order; each is what the body of one request would be, and may be wrong by itself.
/// The first byte that is no space tells the form: `[` begins an array, `{` the first of several lines. Empty lines do
/// not count.
///
/// # Errors
/// If the body has neither form, or is an array that is not valid JSON, or has more than `messages_max` messages.
pub fn parse_bulk(body: &[u8], messages_max: usize) -> Result<Vec<Result<DeviceRequest, RequestError>>, RequestError> {
    match body.iter().find(|b| !b.is_ascii_whitespace()) {
        Some(b'[') => Ok(read_array(body, messages_max)?.into_iter().map(parse).collect()),
        // A second message in one line must not be lost, as what follows the body of one request is.
        Some(b'{') => {
            Ok(lines(body, messages_max)?.into_iter().map(|l| check_single(l).and_then(|()| parse(l))).collect())
        }
        _ => Err(RequestError::NotABulk),
    }
}

/// Reads the body of one request or of many, told apart by what stands there: one JSON object is one message, also over
/// several lines; anything else is read as [`parse_bulk`] does.
///
/// # Errors
/// As [`parse_bulk`].
pub fn parse_bundle(
    body: &[u8],
    messages_max: usize,
) -> Result<Vec<Result<DeviceRequest, RequestError>>, RequestError> {
    let is_object = body.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
    if is_object && check_single(body).is_ok() {
        return Ok(vec![parse(body)]);
    }
    parse_bulk(body, messages_max)
}

fn lines(body: &[u8], messages_max: usize) -> Result<Vec<&[u8]>, RequestError> {
    let lines = body.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let mut messages = Vec::new();
    for line in lines {
        if messages.len() == messages_max {
            return Err(RequestError::TooMany { max: messages_max });
        }
        messages.push(line);
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"{"projectID":1,"projectVersion":"1","data":"]\n"}"#;

    /// Whether each message was read.
    fn read(body: &str) -> Result<Vec<bool>, RequestError> {
        Ok(parse_bulk(body.as_bytes(), 3)?.iter().map(Result::is_ok).collect())
    }

    #[test]
    fn an_array_is_taken_apart() {
        assert_eq!(read(&format!(" \n[ {ONE} ,7,\n[ ] ]\r\n")).unwrap(), [true, false, false]);
        assert_eq!(read(&format!("[{ONE},{ONE}]")).unwrap(), [true, true]);
        assert_eq!(read("[]").unwrap(), [false; 0]);
    }

    #[test]
    fn a_broken_line_breaks_no_other() {
        assert_eq!(read(&format!("{ONE}\r\n\n  {{broken\n {ONE}")).unwrap(), [true, false, true]);
        assert_eq!(read(&format!(" {ONE}\n\n")).unwrap(), [true]);
    }

    #[test]
    fn two_messages_in_one_line_are_refused_and_not_taken_for_one() {
        assert_eq!(read(&format!("{ONE}{ONE}\n{ONE} ")).unwrap(), [false, true]);
    }

    #[test]
    fn a_bundle_is_one_object_over_several_lines_or_many() {
        let read = |body: &str| -> Result<Vec<bool>, RequestError> {
            Ok(parse_bundle(body.as_bytes(), 3)?.iter().map(Result::is_ok).collect())
        };
        assert_eq!(read(&ONE.replace(',', ",\n")).unwrap(), [true]);
        assert_eq!(read(&format!("{ONE}\n{{}}\n{ONE}")).unwrap(), [true, false, true]);
        assert_eq!(read(&format!("[{ONE},{ONE}]")).unwrap(), [true, true]);
        assert_eq!(read("7"), Err(RequestError::NotABulk));
    }

    #[test]
    fn more_than_allowed_is_refused_in_both_forms() {
        assert_eq!(read("[1,2,3,4]"), Err(RequestError::TooMany { max: 3 }));
        assert_eq!(read("{}\n{}\n{}\n{}"), Err(RequestError::TooMany { max: 3 }));
    }

    #[test]
    fn what_is_neither_is_refused() {
        for bad in ["", "  \n", "null", "\"[]\"", "\u{feff}[]"] {
            assert_eq!(read(bad), Err(RequestError::NotABulk), "{bad}");
        }
        for bad in ["[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1]]", "[1] {}", "[{]}", "[\"]"] {
            assert!(matches!(read(bad), Err(RequestError::Json { .. })), "{bad}");
        }
        assert_eq!(read(&"[".repeat(1_000)), Err(RequestError::TooDeep));
    }
}
