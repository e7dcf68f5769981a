//! The members of requests: how their names match, their values are taken, and their limits.

use lockstep_types::ProjectId;
use lockstep_types::message::{PROJECT_ID_MAX, PROJECT_VERSION_BYTES_MAX};

use crate::error::{Field, RequestError};
use crate::json::Value;

pub(crate) const NUMBER: &str = "a whole number from 1 to 18446744073709551615";

/// The field that a member name stands for. Go matches names without regard to case.
pub(crate) fn field_of(fields: &[Field], name: &str) -> Option<Field> {
    fields.iter().copied().find(|field| field.name() == name || folds_to(name, field.name()))
}

/// Go matches member names by Unicode's simple case folding. The fields' names are ASCII, and the only other
/// characters that fold to ASCII letters are the long s and the Kelvin sign.
fn folds_to(name: &str, field: &str) -> bool {
    let fold = |c| match c {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => char::to_ascii_lowercase(&other),
    };
    name.chars().map(fold).eq(field.chars().map(fold))
}

/// As in Go, null leaves the member as it was.
pub(crate) fn set_text(field: Field, target: &mut String, value: Value<'_>) -> Result<(), RequestError> {
    match value {
        Value::Text(text) => *target = text.into_owned(),
        Value::Null => {}
        _ => return Err(RequestError::WrongType { field, expected: "a string" }),
    }
    Ok(())
}

/// As [`set_text`], for a number.
pub(crate) fn set_number(field: Field, target: &mut u64, value: Value<'_>) -> Result<(), RequestError> {
    let wrong = RequestError::WrongType { field, expected: NUMBER };
    match value {
        // JSON's grammar has no plus sign, so `parse` refuses just what Go does: sign, fraction and exponent.
        Value::Number(literal) => *target = literal.parse().map_err(|_| wrong)?,
        Value::Null => {}
        _ => return Err(wrong),
    }
    Ok(())
}

/// Reads hex digits after `0x` or `0X`.
pub(crate) fn parse_hex(field: Field, text: &str) -> Result<Vec<u8>, RequestError> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    digits.and_then(|digits| hex::decode(digits).ok()).ok_or(RequestError::NotHex(field))
}

/// Refuses what the readers of tasks could not store, or what is too large.
pub(crate) fn check_limits(
    project_id: ProjectId,
    project_version: &str,
    data_bytes: usize,
    data_bytes_max: u64,
) -> Result<(), RequestError> {
    match () {
        () if project_id.0 > PROJECT_ID_MAX => Err(RequestError::ProjectIdTooLarge),
        () if project_version.len() > PROJECT_VERSION_BYTES_MAX => Err(RequestError::ProjectVersionTooLong),
        () if project_version.contains('\0') => Err(RequestError::ProjectVersionNul),
        () if data_bytes as u64 > data_bytes_max => Err(RequestError::DataTooLarge { bytes_max: data_bytes_max }),
        () => Ok(()),
    }
}
