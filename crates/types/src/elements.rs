//! Counts what is repeated in an encoding before anything is made of its bytes: two bytes can ask for a structure of
//! hundreds, so that a few megabytes of a peer would take gigabytes of memory.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::message::DecodeError;

/// How often a field may be there.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Field numbers from the outermost message to the field, which is one with a length: bytes, text or a message.
    pub path: &'static [u32],
    /// How often it may be there, all that contain it taken together.
    pub count_max: usize,
}

/// Outermost fields of a request or an answer that is one of several kinds: its encoding has one, and room for newer ones.
pub const KIND_FIELDS_MAX: usize = 8;

/// Deepest that a path goes.
const DEPTH_MAX: usize = 8;

/// Refuses bytes in which one of the `bounds` is passed. Reads nothing but keys and lengths, and holds nothing.
///
/// # Errors
/// If a bound is passed, or the bytes are no encoding as far as the paths go.
pub fn check(what: &'static str, bytes: &[u8], bounds: &[Bound]) -> Result<(), DecodeError> {
    for bound in bounds {
        let mut left = bound.count_max;
        count(what, bytes, &bound.path[..bound.path.len().min(DEPTH_MAX)], &mut left)?;
    }
    Ok(())
}

/// Refuses bytes with more than `fields_max` fields at the outermost level. A decoder reads each of them, also where the
/// next one takes its place: two bytes a time.
///
/// # Errors
/// If there are more, or the bytes are no encoding as far as they are read.
pub fn check_fields(what: &'static str, mut bytes: &[u8], fields_max: usize) -> Result<(), DecodeError> {
    let bad = |reason: &dyn std::fmt::Display| DecodeError::malformed(what, reason);
    for _ in 0..fields_max {
        if bytes.is_empty() {
            return Ok(());
        }
        let (field, wire) = decode_key(&mut bytes).map_err(|e| bad(&e))?;
        skip_field(wire, field, &mut bytes, DecodeContext::default()).map_err(|e| bad(&e))?;
    }
    if bytes.is_empty() { Ok(()) } else { Err(bad(&"too many fields")) }
}

fn count(what: &'static str, mut bytes: &[u8], path: &[u32], left: &mut usize) -> Result<(), DecodeError> {
    let bad = |reason: &dyn std::fmt::Display| DecodeError::malformed(what, reason);
    let Some((wanted, rest)) = path.split_first() else { return Ok(()) };
    while !bytes.is_empty() {
        let (field, wire) = decode_key(&mut bytes).map_err(|e| bad(&e))?;
        if wire != WireType::LengthDelimited {
            skip_field(wire, field, &mut bytes, DecodeContext::default()).map_err(|e| bad(&e))?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut bytes).map_err(|e| bad(&e))?).unwrap_or(usize::MAX);
        let (inner, after) =
            bytes.split_at_checked(length).ok_or_else(|| bad(&"a field is longer than what there is"))?;
        bytes = after;
        if field != *wanted {
            continue;
        }
        if rest.is_empty() {
            *left = left.checked_sub(1).ok_or_else(|| bad(&"too many of one kind"))?;
        } else {
            count(what, inner, rest, left)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto;

    fn bundle(messages: usize, signed: usize) -> Vec<u8> {
        let signed = vec![proto::SignedValue::default(); signed];
        let task = Some(proto::TaskEvidence { is_json: true, signed });
        let message = proto::Message { task, via: 7, ..Default::default() };
        proto::Bundle { version: 1, messages: vec![message; messages] }.encode_to_vec()
    }

    fn allows(bytes: &[u8], path: &'static [u32], count_max: usize) -> bool {
        check("bundle", bytes, &[Bound { path, count_max }]).is_ok()
    }

    #[test]
    fn what_is_repeated_is_counted_at_its_depth() {
        let bytes = bundle(3, 4);
        assert!(allows(&bytes, &[2], 3) && !allows(&bytes, &[2], 2));
        assert!(allows(&bytes, &[2, 11, 2], 12) && !allows(&bytes, &[2, 11, 2], 11));
        assert!(allows(&bytes, &[5], 0) && allows(&[], &[2], 0));
    }

    #[test]
    fn fields_are_counted_at_the_outermost_level_whatever_they_are() {
        let bytes = bundle(3, 4);
        assert!(check_fields("bundle", &bytes, 4).is_ok() && check_fields("bundle", &bytes, 3).is_err());
        assert!(check_fields("bundle", &[], 0).is_ok());
        let same_again = [0x12, 0].repeat(KIND_FIELDS_MAX + 1);
        assert!(check_fields("request", &same_again, KIND_FIELDS_MAX).is_err());
        assert!(check_fields("request", &same_again[2..], KIND_FIELDS_MAX).is_ok());
        assert!(check_fields("request", &bytes[..bytes.len() - 1], 4).is_err(), "it breaks off");
    }

    #[test]
    fn what_breaks_off_is_refused() {
        let bytes = bundle(1, 1);
        assert!(!allows(&bytes[..bytes.len() - 1], &[2], 9));
        assert!(!allows(&[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f], &[2], 9));
    }
}
