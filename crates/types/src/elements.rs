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
/// Fields that are looked at on the way to one that is bounded, whatever the bound.
const FIELDS_MAX: usize = 1_024;
/// Fields more for each that a bound allows: a true encoding has fewer in it and before it.
const FIELDS_OF_EACH: usize = 32;

/// Refuses bytes in which one of the `bounds` is passed, or so many fields stand beside what is bounded that reading them
/// would be what costs: two bytes are one, also where the next takes its place. Reads nothing but keys and lengths, and
/// holds nothing.
///
/// # Errors
/// If a bound is passed, or the bytes are no encoding as far as the paths go.
pub fn check(what: &'static str, bytes: &[u8], bounds: &[Bound]) -> Result<(), DecodeError> {
    for bound in bounds {
        // What stands beside it may be bounded by others.
        let beside = bounds.iter().filter(|other| other.path.first() == bound.path.first());
        let most = beside.map(|other| other.count_max).max().unwrap_or_default();
        let fields = FIELDS_MAX.saturating_add(most.saturating_mul(FIELDS_OF_EACH));
        let mut left = Left { count: bound.count_max, fields };
        count(what, bytes, &bound.path[..bound.path.len().min(DEPTH_MAX)], &mut left)?;
    }
    Ok(())
}

/// What may still come.
struct Left {
    /// Of what is bounded.
    count: usize,
    /// Of anything that is looked at.
    fields: usize,
}

/// The key of the next field. Groups are refused: nobody writes them, and one of them is any number of fields.
fn next_key(what: &'static str, bytes: &mut &[u8]) -> Result<(u32, WireType), DecodeError> {
    let (field, wire) = decode_key(bytes).map_err(|e| DecodeError::malformed(what, e))?;
    if matches!(wire, WireType::StartGroup | WireType::EndGroup) {
        return Err(DecodeError::malformed(what, "a group"));
    }
    Ok((field, wire))
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
        let (field, wire) = next_key(what, &mut bytes)?;
        skip_field(wire, field, &mut bytes, DecodeContext::default()).map_err(|e| bad(&e))?;
    }
    if bytes.is_empty() { Ok(()) } else { Err(bad(&"too many fields")) }
}

/// Refuses bytes in which there are not as many numbers in field `numbers` as there are fields `of`, nor none. Both are in
/// the message at `path`. A number takes one byte here and eight in memory; packed ones are one field, however many.
///
/// # Errors
/// If there are more or fewer, or the bytes are no encoding as far as they are read.
pub fn check_numbers(what: &'static str, bytes: &[u8], path: &[u32], of: u32, numbers: u32) -> Result<(), DecodeError> {
    let mut found = Beside { of, numbers, counts: [0, 0] };
    found.count(what, bytes, path)?;
    let [messages, numbers] = found.counts;
    if numbers != 0 && numbers != messages {
        return Err(DecodeError::malformed(what, "as many numbers as what they belong to were expected, or none"));
    }
    Ok(())
}

/// See [`check_numbers`].
struct Beside {
    of: u32,
    numbers: u32,
    /// Of each so many were found.
    counts: [usize; 2],
}

impl Beside {
    fn count(&mut self, what: &'static str, mut bytes: &[u8], path: &[u32]) -> Result<(), DecodeError> {
        let bad = |reason: &dyn std::fmt::Display| DecodeError::malformed(what, reason);
        while !bytes.is_empty() {
            let (field, wire) = next_key(what, &mut bytes)?;
            if wire != WireType::LengthDelimited {
                skip_field(wire, field, &mut bytes, DecodeContext::default()).map_err(|e| bad(&e))?;
                self.counts[1] += usize::from(path.is_empty() && field == self.numbers);
                continue;
            }
            let length = usize::try_from(decode_varint(&mut bytes).map_err(|e| bad(&e))?).unwrap_or(usize::MAX);
            let (inner, after) =
                bytes.split_at_checked(length).ok_or_else(|| bad(&"a field is longer than what there is"))?;
            bytes = after;
            match path.split_first() {
                Some((next, rest)) if field == *next => self.count(what, inner, rest)?,
                None if field == self.of => self.counts[0] += 1,
                // The last byte of each is below 128.
                None if field == self.numbers => self.counts[1] += inner.iter().filter(|byte| **byte < 0x80).count(),
                _ => {}
            }
        }
        Ok(())
    }
}

fn count(what: &'static str, mut bytes: &[u8], path: &[u32], left: &mut Left) -> Result<(), DecodeError> {
    let bad = |reason: &dyn std::fmt::Display| DecodeError::malformed(what, reason);
    let Some((wanted, rest)) = path.split_first() else { return Ok(()) };
    while !bytes.is_empty() {
        left.fields = left.fields.checked_sub(1).ok_or_else(|| bad(&"too many fields"))?;
        let (field, wire) = next_key(what, &mut bytes)?;
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
            left.count = left.count.checked_sub(1).ok_or_else(|| bad(&"too many of one kind"))?;
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

    /// Key and length of a field.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
    }

    #[test]
    fn numbers_are_as_many_as_what_they_belong_to_or_none_whichever_way_they_are_written() {
        let messages = |count: usize| field(2, &[]).repeat(count);
        let single = |count: usize| [0x18, 0xff, 0x01].repeat(count);
        let packed = |count: usize| field(3, &[0xff, 0x01].repeat(count));
        let good = |bytes: &[u8]| check_numbers("bundle", bytes, &[], 2, 3).is_ok();
        for written in [single, packed] {
            for (of, numbers) in [(0, 0), (1, 0), (1, 1), (3, 3), (0, 1), (1, 2), (3, 1), (0, 30)] {
                let bytes = [messages(of), written(numbers)].concat();
                assert_eq!(good(&bytes), numbers == 0 || numbers == of, "{numbers} of {of}");
                let within = field(7, &bytes);
                assert!(good(&within), "another message's");
                assert_eq!(check_numbers("log entry", &within, &[7], 2, 3).is_ok(), good(&bytes));
            }
        }
        assert!(
            good(&[messages(3), single(1), packed(2)].concat()) && !good(&[packed(2), packed(1), messages(2)].concat())
        );
        assert!(!good(&field(2, &[1])[..2]), "it breaks off");
    }

    fn bundle(messages: usize, signed: usize) -> Vec<u8> {
        let signed = vec![proto::SignedValue::default(); signed];
        let task = Some(proto::TaskEvidence { is_json: true, signed });
        let message = proto::Message { task, via: 7, ..Default::default() };
        proto::Bundle { version: 1, messages: vec![message; messages], ages_ms: vec![] }.encode_to_vec()
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
    fn fields_beside_what_is_bounded_are_counted_at_every_level() {
        // One message that says again and again which task it is of; or a group.
        let again = |times: usize| {
            let message = [0x5a, 0].repeat(times);
            let mut bytes = vec![0x12];
            prost::encoding::encode_varint(message.len() as u64, &mut bytes);
            [bytes, message].concat()
        };
        let each = FIELDS_MAX + FIELDS_OF_EACH;
        assert!(allows(&again(each - 1), &[2, 11, 2], 1) && !allows(&again(each), &[2, 11, 2], 1));
        assert!(allows(&again(each), &[2], 1), "nothing in it is looked at");
        let beside = [Bound { path: &[2, 11, 2], count_max: 1 }, Bound { path: &[2, 12], count_max: 2 }];
        assert!(check("bundle", &again(each), &beside).is_ok());
        let group = [&[0x9b, 0x06][..], &[0x08, 0].repeat(9), &[0x9c, 0x06]].concat();
        assert!(!allows(&group, &[2], 1) && check_fields("request", &group, KIND_FIELDS_MAX).is_err());
    }

    #[test]
    fn what_breaks_off_is_refused() {
        let bytes = bundle(1, 1);
        assert!(!allows(&bytes[..bytes.len() - 1], &[2], 9));
        assert!(!allows(&[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f], &[2], 9));
    }
}
